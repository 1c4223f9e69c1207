//! A real cluster behind the seam (feature `fluvio`).
//!
//! The client's futures run on a runtime of its own, so that calls may come from any thread. No
//! broker can be had from the package registries: this file is shown by `topics/tests/fluvio`
//! where `QUIKFLOW_TEST_FLUVIO` names a cluster.

use super::endpoint::{Endpoint, Fault, Found, NewTopic, Raw};
use super::{FluvioOptions, Tls};
use crate::broker::BrokerError;
use crate::partitioner::partition_of;
use ::fluvio::config::{TlsConfig, TlsPaths, TlsPolicy};
use ::fluvio::consumer::{ConsumerConfigExtBuilder, RetryMode};
use ::fluvio::metadata::topic::{CleanupPolicy, SegmentBasedPolicy, TopicSpec};
use ::fluvio::{
    Fluvio, FluvioClusterConfig, FluvioError, Isolation, Offset, RecordKey, TopicProducerConfigBuilder, TopicProducerPool,
};
use futures::StreamExt;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// How long one call may take.
const CALL: Duration = Duration::from_secs(20);
/// Bytes after which a call has read enough.
const READ: usize = 8 << 20;
/// Bytes that a stream brings at once: what is cut off is sent again.
const AT_ONCE: i32 = 1 << 20;
/// The same where a single batch may be larger, which would never come otherwise; more than clients write at once.
const AT_MOST: i32 = 64 << 20;
/// Most bytes of one request and of one batch.
const REQUEST: usize = 4 << 20;

/// See the module.
pub struct Client {
    runtime: tokio::runtime::Runtime,
    inner: Arc<Inner>,
}

struct Inner {
    config: FluvioClusterConfig,
    /// Connected when it is first needed; dropped when a connection broke.
    connection: tokio::sync::Mutex<Option<Arc<Fluvio>>>,
    producers: Mutex<HashMap<String, Arc<TopicProducerPool>>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("address", &self.inner.config.endpoint).finish_non_exhaustive()
    }
}

/// The partition that the record was given: murmur2 of its key, as everywhere.
struct ByKey;

impl ::fluvio::Partitioner for ByKey {
    fn partition(&self, config: &::fluvio::PartitionerConfig, key: Option<&[u8]>, _value: &[u8]) -> u32 {
        partition_of(key.and_then(|key| std::str::from_utf8(key).ok()), config.partition_count()).0
    }
}

/// What a failure means for who tries again.
fn fault(error: &anyhow::Error) -> Fault {
    let text = error.to_string();
    match error.downcast_ref::<FluvioError>() {
        Some(
            FluvioError::MinimumPlatformVersion { .. }
            | FluvioError::MaximumPlatformVersion { .. }
            | FluvioError::ClientConfig(_)
            | FluvioError::ConsumerConfig(_)
            | FluvioError::TopicProducerConfigBuilder(_)
            | FluvioError::NegativeOffset(_),
        ) => Fault::Refused(format!("{text}; look at QUIKFLOW_BROKER and QUIKFLOW_FLUVIO_…")),
        _ => Fault::Lost(text),
    }
}

impl Client {
    /// A client of the cluster; nothing is asked of it yet.
    ///
    /// # Errors
    /// The operating system gives no threads.
    pub fn new(options: &FluvioOptions) -> Result<Client, BrokerError> {
        super::choose_cryptography();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("fluvio").enable_all().build();
        let runtime = runtime.map_err(|e| BrokerError::Storage(format!("fluvio: no threads: {e}")))?;
        let policy = |tls: &Tls| {
            let path = std::path::PathBuf::from;
            let (cert, key, ca_cert) = (path(&tls.cert), path(&tls.key), path(&tls.ca));
            TlsPolicy::Verified(TlsConfig::Files(TlsPaths { domain: tls.domain.clone(), key, cert, ca_cert }))
        };
        let mut config = FluvioClusterConfig::new(&options.address);
        if let Some(tls) = &options.tls {
            config = config.with_tls(policy(tls));
        }
        config.client_id = Some("quikflow".to_owned());
        let inner = Inner { config, connection: tokio::sync::Mutex::default(), producers: Mutex::default() };
        Ok(Client { runtime, inner: Arc::new(inner) })
    }

    /// Runs a call on the runtime, for so long at most; a connection that failed is made anew next time.
    fn run<T, F>(&self, call: impl FnOnce(Arc<Inner>) -> F) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, anyhow::Error>> + Send + 'static,
    {
        let (answer, answered) = std::sync::mpsc::channel();
        let inner = self.inner.clone();
        let future = call(inner.clone());
        self.runtime.spawn(async move {
            let outcome = match tokio::time::timeout(CALL, future).await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(error)) => Err(fault(&error)),
                Err(_) => Err(Fault::Lost(format!("no answer within {CALL:?}"))),
            };
            if matches!(outcome, Err(Fault::Lost(_))) {
                inner.connection.lock().await.take();
                inner.producers.lock().clear();
            }
            // Nobody may be waiting any more, which is fine.
            drop(answer.send(outcome));
        });
        answered.recv().unwrap_or_else(|_| Err(Fault::Lost("the client has stopped".to_owned())))
    }
}

impl Inner {
    async fn connected(&self) -> Result<Arc<Fluvio>, anyhow::Error> {
        let mut connection = self.connection.lock().await;
        match connection.as_ref() {
            Some(connected) => Ok(connected.clone()),
            None => {
                let connected = Arc::new(Fluvio::connect_with_config(&self.config).await?);
                *connection = Some(connected.clone());
                Ok(connected)
            }
        }
    }

    async fn producer(&self, topic: &str) -> Result<Arc<TopicProducerPool>, anyhow::Error> {
        if let Some(producer) = self.producers.lock().get(topic) {
            return Ok(producer.clone());
        }
        let config = TopicProducerConfigBuilder::default()
            .batch_size(REQUEST)
            .max_request_size(REQUEST)
            .linger(Duration::from_millis(1))
            .isolation(Isolation::ReadCommitted)
            .timeout(CALL / 2)
            .partitioner(Arc::new(ByKey))
            .build()?;
        let producer = Arc::new(self.connected().await?.topic_producer_with_config(topic, config).await?);
        self.producers.lock().insert(topic.to_owned(), producer.clone());
        Ok(producer)
    }

    /// Records from an offset to the end, at most so many; none only at the end.
    async fn some(&self, topic: &str, partition: u32, from: Offset, most: usize) -> Result<Vec<Found>, anyhow::Error> {
        let found = self.fetch(topic, partition, from.clone(), most, AT_ONCE).await?;
        if found.is_empty() { self.fetch(topic, partition, from, most, AT_MOST).await } else { Ok(found) }
    }

    async fn fetch(
        &self,
        topic: &str,
        partition: u32,
        from: Offset,
        most: usize,
        bytes_at_once: i32,
    ) -> Result<Vec<Found>, anyhow::Error> {
        let config = ConsumerConfigExtBuilder::default()
            .topic(topic)
            .partition(partition)
            .offset_start(from)
            .isolation(Isolation::ReadCommitted)
            .max_bytes(bytes_at_once)
            .disable_continuous(true)
            .retry_mode(RetryMode::Disabled)
            .build()?;
        let mut stream = self.connected().await?.consumer_with_config(config).await?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        while found.len() < most
            && bytes < READ
            && let Some(record) = stream.next().await
        {
            let record = record?;
            bytes += record.value().len();
            found.push(Found {
                offset: u64::try_from(record.offset()).unwrap_or(0),
                arrival: record.timestamp().saturating_mul(1000),
                key: record.key().map(<[u8]>::to_vec),
                value: record.value().to_vec(),
            });
        }
        Ok(found)
    }
}

impl Endpoint for Client {
    fn topics(&self) -> Result<Vec<(String, u32)>, Fault> {
        self.run(|inner| async move {
            let admin = inner.connected().await?.admin().await;
            let all = admin.all::<TopicSpec>().await?;
            Ok(all.into_iter().map(|topic| (topic.name, topic.spec.partitions())).collect())
        })
    }

    fn create(&self, topic: &NewTopic) -> Result<(), Fault> {
        let topic = topic.clone();
        self.run(|inner| async move {
            let admin = inner.connected().await?.admin().await;
            let mut spec = TopicSpec::new_computed(topic.partitions, 1, None);
            let seconds = topic.retention.map_or(u32::MAX, |kept| u32::try_from(kept.as_secs()).unwrap_or(u32::MAX));
            spec.set_cleanup_policy(CleanupPolicy::Segment(SegmentBasedPolicy { time_in_seconds: seconds }));
            Ok(admin.create(topic.name, false, spec).await?)
        })
    }

    fn produce(&self, topic: &str, partition: u32, records: &[Raw]) -> Result<Vec<u64>, Fault> {
        let (topic, records) = (topic.to_owned(), records.to_vec());
        self.run(move |inner| async move {
            let producer = inner.producer(&topic).await?;
            let mut sent = Vec::with_capacity(records.len());
            for record in records {
                let key = record.key.map_or(RecordKey::NULL, RecordKey::from);
                sent.push(producer.send(key, record.value).await?);
            }
            producer.flush().await?;
            let mut offsets = Vec::with_capacity(sent.len());
            for output in sent {
                let placed = output.wait().await?;
                if placed.partition_id() != partition {
                    anyhow::bail!("a record went to partition {} instead of {partition}", placed.partition_id());
                }
                offsets.push(u64::try_from(placed.offset()).unwrap_or(0));
            }
            Ok(offsets)
        })
    }

    fn read(&self, topic: &str, partition: u32, from: u64, most: usize) -> Result<Vec<Found>, Fault> {
        let topic = topic.to_owned();
        let wanted = topic.clone();
        let read = self.run(move |inner| async move {
            let from = Offset::absolute(i64::try_from(from).unwrap_or(i64::MAX))?;
            // At the end it ends at once: how much there is was asked before.
            inner.some(&wanted, partition, from, most).await
        });
        match (read, from) {
            // Retention may have taken what was asked for.
            (Err(fault), from) if from < self.bounds(&topic, partition)?.0 => {
                tracing::debug!(?fault, topic, from, "fluvio: reading from the first record kept");
                self.run(move |inner| async move { inner.some(&topic, partition, Offset::beginning(), most).await })
            }
            (read, _) => read,
        }
    }

    fn bounds(&self, topic: &str, partition: u32) -> Result<(u64, u64), Fault> {
        let topic = topic.to_owned();
        self.run(move |inner| async move {
            let last = inner.some(&topic, partition, Offset::from_end(1), 1).await?;
            let Some(last) = last.first() else { return Ok((0, 0)) };
            let first = inner.some(&topic, partition, Offset::beginning(), 1).await?;
            Ok((first.first().map_or(0, |first| first.offset), last.offset + 1))
        })
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}
