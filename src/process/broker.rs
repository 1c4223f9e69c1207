//! The broker that the settings name.

use crate::exit::Failure;
use crate::settings::Settings;
use quikflow_topics::broker::Broker;
use quikflow_topics::brokers::embedded::{EmbeddedBroker, EmbeddedOptions};
use quikflow_topics::clock::SharedClock;
use std::path::Path;
use std::sync::Arc;

/// Which broker, and how it is reached.
#[derive(Clone, Debug)]
pub(crate) enum Choice {
    /// The log in the data directory.
    Embedded,
    /// Kafka.
    #[cfg(feature = "kafka")]
    Kafka(KafkaSettings),
    /// Fluvio: its URL, and its files for TLS.
    #[cfg(feature = "fluvio")]
    Fluvio(String, Option<quikflow_topics::brokers::fluvio::Tls>),
}

/// What the settings say of Kafka.
#[cfg(feature = "kafka")]
#[derive(Clone)]
pub(crate) struct KafkaSettings {
    url: String,
    login: Option<quikflow_topics::brokers::kafka::Login>,
    tls: bool,
    ca_file: Option<String>,
    standby: bool,
}

#[cfg(feature = "kafka")]
impl std::fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSettings").field("url", &self.url).field("tls", &self.tls).finish_non_exhaustive()
    }
}

impl Choice {
    /// From the settings.
    ///
    /// # Errors
    /// Exit 2 for what makes no sense together.
    pub(crate) fn from(settings: &Settings) -> Result<Choice, Failure> {
        #[cfg(feature = "kafka")]
        if let Some(url) = settings.get("broker").filter(|url| url.starts_with("kafka://")) {
            return Ok(Choice::Kafka(kafka(url, settings)?));
        }
        #[cfg(feature = "fluvio")]
        if let Some(url) = settings.get("broker").filter(|url| url.starts_with("fluvio://")) {
            return Ok(Choice::Fluvio(url.to_owned(), fluvio_tls(settings)?));
        }
        // What is not compiled in is refused here.
        settings.check_components().map(|()| Choice::Embedded)
    }

    /// Whether one process owns the log.
    pub(crate) fn is_embedded(&self) -> bool {
        matches!(self, Choice::Embedded)
    }

    /// Opens it. The second of the answer: the embedded log, for figures that only it has.
    ///
    /// # Errors
    /// What the broker says: exit 2 for Kafka, whose settings may be wrong.
    pub(crate) fn open(
        &self,
        data: &Path,
        clock: &SharedClock,
    ) -> Result<(Arc<dyn Broker>, Option<Arc<EmbeddedBroker>>), Failure> {
        match self {
            Choice::Embedded => {
                let log = EmbeddedBroker::open(EmbeddedOptions::new(data, clock.clone()))?;
                Ok((log.clone(), Some(log)))
            }
            #[cfg(feature = "kafka")]
            Choice::Kafka(settings) => {
                use crate::exit::Context;
                use quikflow_topics::brokers::kafka::{KafkaBroker, KafkaOptions, StateCopies};
                std::fs::create_dir_all(data).usage(data.display())?;
                let options = KafkaOptions::from_url(&settings.url, clock.clone()).usage("QUIKFLOW_BROKER")?;
                let KafkaSettings { login, tls, ca_file, standby, .. } = settings.clone();
                let instance = super::instance::take(data)?;
                let copies = Some(StateCopies { directory: data.join("state-copies").join(&instance), standby });
                let options = KafkaOptions { login, tls, ca_file, instance: Some(instance), copies, ..options };
                let broker = KafkaBroker::open(options).map_err(|error| Failure::usage(error.to_string()))?;
                Ok((broker, None))
            }
            #[cfg(feature = "fluvio")]
            Choice::Fluvio(url, tls) => {
                use crate::exit::Context;
                use quikflow_topics::brokers::fluvio::{FluvioBroker, FluvioOptions};
                std::fs::create_dir_all(data).usage(data.display())?;
                let options = FluvioOptions::from_url(url, clock.clone()).usage("QUIKFLOW_BROKER")?;
                let options = FluvioOptions { tls: tls.clone(), ..options };
                let broker = FluvioBroker::open(options).map_err(|error| Failure::usage(error.to_string()))?;
                Ok((broker, None))
            }
        }
    }
}

/// What an epoch's commit promises on the broker that the settings name: its name, and the promise.
pub(crate) fn promise(settings: &Settings) -> (&'static str, &'static str) {
    let exactly = "exactly once: outputs, state and offsets of an epoch become visible together";
    match settings.get("broker").unwrap_or("embedded").split("://").next() {
        Some("kafka") => ("kafka", exactly),
        Some("fluvio") => (
            "fluvio",
            "at least once under deterministic ids: an output may stand in its topic several times under one id; \
             quikflow's readers pass each once, other readers have to",
        ),
        _ => ("embedded", exactly),
    }
}

#[cfg(feature = "kafka")]
fn kafka(url: &str, settings: &Settings) -> Result<KafkaSettings, Failure> {
    use quikflow_topics::brokers::kafka::Login;
    let login = match (settings.get("kafka_user"), settings.get("kafka_password")) {
        (Some(user), Some(password)) => {
            let mechanism = settings.get("kafka_mechanism").unwrap_or("SCRAM-SHA-512").to_uppercase();
            if !["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"].contains(&mechanism.as_str()) {
                return Err(Failure::usage("`kafka_mechanism` is none of PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512"));
            }
            Some(Login { mechanism, user: user.to_owned(), password: password.to_owned() })
        }
        (None, None) => None,
        _ => return Err(Failure::usage("`kafka_user` and `kafka_password` go together; set both or none")),
    };
    let tls = settings.switch("kafka_tls", false)?;
    let ca_file = settings.get("kafka_ca").map(str::to_owned);
    if ca_file.is_some() && !tls {
        return Err(Failure::usage("`kafka_ca` is set and `kafka_tls` is off; turn it on or unset the file"));
    }
    let standby = settings.switch("standby", false)?;
    Ok(KafkaSettings { url: url.to_owned(), login, tls, ca_file, standby })
}

/// All four files or none.
#[cfg(feature = "fluvio")]
fn fluvio_tls(settings: &Settings) -> Result<Option<quikflow_topics::brokers::fluvio::Tls>, Failure> {
    let of = |name: &str| settings.get(name).map(str::to_owned);
    match (of("fluvio_domain"), of("fluvio_ca"), of("fluvio_cert"), of("fluvio_key")) {
        (None, None, None, None) => Ok(None),
        (Some(domain), Some(ca), Some(cert), Some(key)) => {
            Ok(Some(quikflow_topics::brokers::fluvio::Tls { domain, ca, cert, key }))
        }
        _ => Err(Failure::usage("`fluvio_domain`, `fluvio_ca`, `fluvio_cert` and `fluvio_key` go together; set all or none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_promise_follows_the_broker() {
        let of = |broker: Option<&str>| promise(&Settings::of(broker.map(|url| ("broker", url))));
        assert_eq!(of(None).0, "embedded");
        assert!(of(Some("kafka://h:1")).1.starts_with("exactly once"));
        let (name, promise) = of(Some("fluvio://h:1"));
        assert!(name == "fluvio" && promise.contains("deterministic ids") && promise.contains("readers pass each once"));
    }
}
