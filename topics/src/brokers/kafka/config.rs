//! How the brokers are reached, and what a failure means for whoever configured it.

use super::copies::StateCopies;
use super::link::{Heard, Link};
use super::watch::{Watch, Watched};
use crate::broker::BrokerError;
use crate::clock::SharedClock;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use std::sync::Arc;
use std::time::Duration;

/// How long a call to the brokers may take before it fails.
pub(super) const CALL: Duration = Duration::from_secs(20);
/// So long each question of the first contact waits for its answer.
const FIRST_CONTACT: Duration = Duration::from_millis(500);
/// Shares of the work, where nobody has said otherwise: as many processes can share it.
const SHARES: u32 = 4;
/// Most bytes of one record, on the topics and in the clients.
pub(super) const MAX_RECORD: usize = 4 << 20;

/// A client that reads.
pub(super) type Client = BaseConsumer<Heard>;

/// How to sign in: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
#[derive(Clone)]
pub struct Login {
    /// The mechanism.
    pub mechanism: String,
    /// The user.
    pub user: String,
    /// The password; never shown.
    pub password: String,
}

/// How Kafka is reached.
#[derive(Clone)]
pub struct KafkaOptions {
    /// `host:port,…`
    pub brokers: String,
    /// Before every name of a topic, a group and a transactional id; may be empty.
    pub prefix: String,
    /// How to sign in, if at all.
    pub login: Option<Login>,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// A file of authorities to be trusted, in PEM; the system's where absent.
    pub ca_file: Option<String>,
    /// What tells this process from the others that run pipelines; the same after a restart, so that it
    /// takes over from itself at once. None: one process runs them, and who starts takes over.
    pub instance: Option<String>,
    /// Into how many shares the pipelines' work is divided where its topics do not exist yet.
    pub shares: u32,
    /// Copies of the state in files of this process; none where all of it is read from Kafka.
    pub copies: Option<StateCopies>,
    /// Whether an epoch is a transaction. Without, epochs are at least once: for measuring what it costs.
    pub transactions: bool,
    /// Time-outs of lanes.
    pub clock: SharedClock,
    /// Says it once when the brokers do not answer, for all clients.
    pub link: Arc<Link>,
    /// Knows which clients have lost their brokers for good.
    pub watch: Arc<Watch>,
}

impl std::fmt::Debug for KafkaOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let user = self.login.as_ref().map(|login| &login.user);
        f.debug_struct("KafkaOptions").field("brokers", &self.brokers).field("user", &user).field("tls", &self.tls).finish()
    }
}

impl KafkaOptions {
    /// From `kafka://host:port,…`, with `/prefix` behind it where several installations share the
    /// brokers; no login, no TLS.
    ///
    /// # Errors
    /// What the URL lacks.
    pub fn from_url(url: &str, clock: SharedClock) -> Result<KafkaOptions, BrokerError> {
        let wrong = || BrokerError::Storage("`broker` has to be kafka://host:port,host:port".to_owned());
        let rest = url.strip_prefix("kafka://").ok_or_else(wrong)?;
        let (brokers, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let port =
            |broker: &str| broker.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !brokers.split(',').all(port) || brokers.contains('@') {
            return Err(wrong());
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !prefix.chars().all(legal) {
            return Err(BrokerError::Storage(
                "the prefix behind kafka://host:port/ takes letters, digits, `.`, `_` and `-`".to_owned(),
            ));
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}.") };
        Ok(KafkaOptions {
            brokers: brokers.to_owned(),
            prefix,
            login: None,
            tls: false,
            ca_file: None,
            instance: None,
            shares: SHARES,
            copies: None,
            transactions: true,
            link: Link::new(clock.clone()),
            watch: Arc::default(),
            clock,
        })
    }

    /// What every client has in common.
    pub(super) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("client.id", "quikflow").set("log_level", "4");
        config.set("broker.address.family", "any").set("reconnect.backoff.max.ms", "1000");
        // A broker that has just started tells of topics without partitions or leaders: that is soon asked again.
        config.set("topic.metadata.refresh.interval.ms", "5000").set("metadata.max.age.ms", "15000");
        let protocol = match (self.login.is_some(), self.tls) {
            (false, false) => "plaintext",
            (false, true) => "ssl",
            (true, false) => "sasl_plaintext",
            (true, true) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if let Some(login) = &self.login {
            config.set("sasl.mechanism", &login.mechanism);
            config.set("sasl.username", &login.user).set("sasl.password", &login.password);
        }
        if let Some(file) = &self.ca_file {
            config.set("ssl.ca.location", file);
        }
        config
    }

    /// For consumers: what was committed, gaps allowed, no group's offsets.
    pub(super) fn consumer(&self) -> ClientConfig {
        let mut config = self.client();
        config.set("isolation.level", "read_committed").set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false").set("enable.partition.eof", "true");
        config.set("auto.offset.reset", "earliest").set("group.id", format!("{}quikflow", self.prefix));
        config.set("max.partition.fetch.bytes", "524288").set("queued.max.messages.kbytes", "16384");
        config.set("fetch.wait.max.ms", "500").set("check.crcs", "true");
        config
    }

    /// What hears of a client that has no wishes of its own.
    pub(super) fn heard(&self) -> Heard {
        Heard(self.link.clone())
    }

    /// A client that reads, with these settings.
    pub(super) fn reader(&self) -> Result<Watched<Client>, BrokerError> {
        self.reading(&self.consumer())
    }

    /// The same for who asks for what is not committed yet too.
    pub(super) fn reader_of_all(&self) -> Result<Watched<Client>, BrokerError> {
        self.reading(self.consumer().set("isolation.level", "read_uncommitted"))
    }

    /// Waits for a first answer; a password or a certificate that is refused is told at once, where any other
    /// call would only say after [`CALL`] that nobody answers.
    pub(super) fn first_contact(&self, client: &Client, topic: &str) -> Result<(), BrokerError> {
        let began = self.clock.elapsed();
        loop {
            let Err(error) = client.fetch_metadata(Some(topic), FIRST_CONTACT) else { return Ok(()) };
            // What a client has to report is heard by asking it.
            while client.poll(Duration::ZERO).is_some() {}
            if let Some((code, reason)) = self.link.refusal() {
                return Err(BrokerError::Storage(format!("kafka: {reason}{}", advice(Some(code)))));
            }
            if self.clock.elapsed().saturating_sub(began) >= CALL {
                let heard = format!("{error}: {}", self.link.last_report());
                return Err(BrokerError::Storage(format!(
                    "kafka: asking {}: {heard}; check QUIKFLOW_BROKER, QUIKFLOW_KAFKA_TLS and that Kafka runs",
                    self.brokers
                )));
            }
        }
    }

    fn reading(&self, config: &ClientConfig) -> Result<Watched<Client>, BrokerError> {
        let client: Client = config.create_with_context(self.heard()).map_err(|e| failed("opening a reader", &e))?;
        Ok(self.watch.add(client))
    }

    /// The same for who reads up to the end and then stops: the end is told when a fetch comes back empty.
    pub(super) fn quick_reader(&self) -> Result<Watched<Client>, BrokerError> {
        self.reading(self.consumer().set("fetch.wait.max.ms", "10"))
    }

    /// For producers: idempotent, acknowledged by all in-sync replicas.
    pub(super) fn producer(&self) -> ClientConfig {
        let mut config = self.client();
        config.set("enable.idempotence", "true").set("acks", "all").set("compression.type", "lz4");
        config.set("linger.ms", "2").set("batch.num.messages", "10000").set("message.max.bytes", MAX_RECORD.to_string());
        config.set("queue.buffering.max.messages", "500000").set("queue.buffering.max.kbytes", "131072");
        config
    }

    /// For producers of transactions.
    pub(super) fn transactional(&self, id: &str) -> ClientConfig {
        let mut config = self.producer();
        config.set("transactional.id", format!("{}{id}", self.prefix)).set("transaction.timeout.ms", "20000");
        // A transaction ends when all is acknowledged; what each record became need not be heard.
        config.set("linger.ms", "1").set("delivery.report.only.error", "true");
        config
    }
}

/// Calls until the brokers have an answer: a topic that was just made, a partition that moves and a
/// broker that has just started refuse for a moment.
pub(super) fn patiently<T>(what: &str, mut call: impl FnMut() -> Result<T, KafkaError>) -> Result<T, BrokerError> {
    let (mut refusals, mut timeouts) = (0, 0);
    loop {
        let error = match call() {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::ReplicaNotAvailable
                | RDKafkaErrorCode::OffsetNotAvailable
                | RDKafkaErrorCode::FencedLeaderEpoch
                | RDKafkaErrorCode::UnknownLeaderEpoch
                | RDKafkaErrorCode::CoordinatorLoadInProgress
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::NetworkException,
            ) if refusals < 100 => {
                refusals += 1;
                std::thread::sleep(Duration::from_millis(100));
            }
            Some(RDKafkaErrorCode::OperationTimedOut | RDKafkaErrorCode::RequestTimedOut) if timeouts < 1 => timeouts += 1,
            _ => return Err(failed(what, &error)),
        }
    }
}

/// What is said where the user may not do what was asked for.
const LACKS_RIGHT: &str = "; the user of QUIKFLOW_KAFKA_USER lacks this right";

/// Whether a failure is one of rights: asking again does not mend it.
pub(super) fn lacks_right(error: &BrokerError) -> bool {
    matches!(error, BrokerError::Storage(text) if text.ends_with(LACKS_RIGHT))
}

/// A failure in words, with what to do where that is known.
pub(super) fn failed(what: &str, error: &KafkaError) -> BrokerError {
    let code = match error {
        KafkaError::Transaction(inner) => Some(inner.code()),
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    };
    BrokerError::Storage(format!("kafka: {what}: {error}{}", advice(code)))
}

/// What to do about a failure, where that is known.
fn advice(code: Option<RDKafkaErrorCode>) -> &'static str {
    match code {
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
        ) => LACKS_RIGHT,
        Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed) => {
            "; check QUIKFLOW_KAFKA_USER, QUIKFLOW_KAFKA_PASSWORD and QUIKFLOW_KAFKA_MECHANISM"
        }
        Some(RDKafkaErrorCode::SSL) => "; check QUIKFLOW_KAFKA_TLS and QUIKFLOW_KAFKA_CA",
        Some(
            RDKafkaErrorCode::AllBrokersDown
            | RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::OperationTimedOut
            | RDKafkaErrorCode::MessageTimedOut
            | RDKafkaErrorCode::Resolve,
        ) => "; no broker answers, check QUIKFLOW_BROKER and that Kafka runs",
        Some(
            RDKafkaErrorCode::Fenced
            | RDKafkaErrorCode::ProducerFenced
            | RDKafkaErrorCode::InvalidProducerEpoch
            | RDKafkaErrorCode::InvalidProducerIdMapping,
        ) => "; another process has taken over",
        _ => "",
    }
}
