//! A real cluster behind the seam (feature `fluvio`).
//!
//! Fluvio's client finds the cluster and looks after topics; records are asked for and written by requests of
//! [`wire`], over connections of [`leaders`]. All of it runs on a runtime of its own, so that calls may come from any
//! thread. Shown by `topics/tests/fluvio` where `QUIKFLOW_TEST_FLUVIO` names a cluster.

use super::endpoint::{Bounds, Endpoint, Fault, NewTopic, Portion, Raw};
use super::leaders::{Connection, Leader, Leaders, Use};
use super::wire::{self, Fetched};
use super::{FluvioOptions, Tls};
use crate::broker::BrokerError;
use crate::clock::SharedClock;
use ::fluvio::config::{TlsConfig, TlsPaths, TlsPolicy};
use ::fluvio::metadata::topic::{CleanupPolicy, SegmentBasedPolicy, TopicSpec};
use ::fluvio::{Fluvio, FluvioClusterConfig, FluvioError};
use fluvio_spu_schema::server::fetch_offset::FetchOffsetTopic;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// How long one call may take.
const CALL: Duration = Duration::from_secs(20);
/// Bytes that are asked for a record.
const RECORD: usize = 1 << 10;
/// Least and most bytes that are asked of a partition at once, and of all together.
const LEAST: usize = 64 << 10;
const AT_ONCE: usize = 1 << 20;
const TOGETHER: usize = 8 << 20;
/// The most where a single batch may be larger, which would never come otherwise; more than servers take.
const AT_MOST: usize = 64 << 20;
/// Bytes of records in one request.
const REQUEST: usize = 4 << 20;

/// See the module.
pub struct Client {
    runtime: tokio::runtime::Runtime,
    inner: Arc<Inner>,
    /// Where topics ended when news was asked for last.
    seen: Mutex<Vec<Bounds>>,
}

struct Inner {
    config: FluvioClusterConfig,
    clock: SharedClock,
    /// Connected when it is first needed; dropped when a connection broke.
    connection: tokio::sync::Mutex<Option<Arc<Fluvio>>>,
    leaders: tokio::sync::Mutex<Leaders>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("address", &self.inner.config.endpoint).finish_non_exhaustive()
    }
}

/// What a failure means for who tries again.
fn fault(error: &anyhow::Error) -> Fault {
    let text = format!("{error:#}");
    match error.downcast_ref::<FluvioError>() {
        Some(
            FluvioError::MinimumPlatformVersion { .. }
            | FluvioError::MaximumPlatformVersion { .. }
            | FluvioError::ClientConfig(_)
            | FluvioError::ConsumerConfig(_),
        ) => Fault::Refused(format!("{text}; look at QUIKFLOW_BROKER and QUIKFLOW_FLUVIO_…")),
        _ => Fault::Lost(text),
    }
}

impl From<anyhow::Error> for Fault {
    fn from(error: anyhow::Error) -> Fault {
        fault(&error)
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
        let (connection, leaders) = (tokio::sync::Mutex::default(), tokio::sync::Mutex::default());
        let inner = Inner { config, clock: options.clock.clone(), connection, leaders };
        Ok(Client { runtime, inner: Arc::new(inner), seen: Mutex::default() })
    }

    /// Runs a call on the runtime, for so long at most; what failed is asked and connected anew next time.
    fn run<T, F>(&self, call: impl FnOnce(Arc<Inner>) -> F) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        let (answer, answered) = std::sync::mpsc::channel();
        let inner = self.inner.clone();
        let future = call(inner.clone());
        self.runtime.spawn(async move {
            let outcome = match tokio::time::timeout(CALL, future).await {
                Ok(answer) => answer,
                Err(_) => Err(Fault::Lost(format!("no answer within {CALL:?}"))),
            };
            if matches!(outcome, Err(Fault::Lost(_))) {
                inner.connection.lock().await.take();
                *inner.leaders.lock().await = Leaders::default();
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

    /// Who leads each of these partitions: by leader, their places in the list.
    async fn led(
        &self,
        topic: &str,
        partitions: impl Iterator<Item = u32> + Clone,
    ) -> Result<BTreeMap<Leader, Vec<usize>>, Fault> {
        let mut leaders = self.leaders.lock().await;
        if partitions.clone().any(|partition| leaders.leader(topic, partition).is_none()) {
            leaders.ask(self.connected().await?.as_ref()).await?;
        }
        let mut led: BTreeMap<Leader, Vec<usize>> = BTreeMap::new();
        for (place, partition) in partitions.enumerate() {
            let leader = leaders.leader(topic, partition);
            let leader =
                leader.ok_or_else(|| Fault::Lost(format!("nobody leads partition {partition} of topic `{topic}` yet")))?;
            led.entry(leader).or_default().push(place);
        }
        Ok(led)
    }

    async fn leader(&self, leader: Leader, of: Use) -> Result<Connection, Fault> {
        Ok(self.leaders.lock().await.connection(leader.id, of, &self.config.tls).await?)
    }

    /// Where these partitions of one leader begin and end, by topic.
    async fn offsets(&self, connection: &Connection, topics: Vec<FetchOffsetTopic>) -> Result<Vec<Bounds>, Fault> {
        let answer = connection.send_receive(wire::offsets_request(topics)).await.map_err(anyhow::Error::from)?;
        answer.topics.into_iter().map(wire::bounds).collect()
    }

    /// Where all partitions of topics begin and end: one question for each leader.
    async fn bounds(&self, topics: &[(String, u32)]) -> Result<Vec<Bounds>, Fault> {
        let mut bounds: Vec<Bounds> = topics.iter().map(|(_, partitions)| vec![(0, 0); *partitions as usize]).collect();
        // By leader: which topic, and its partitions.
        let mut asked: BTreeMap<Leader, Vec<(usize, Vec<usize>)>> = BTreeMap::new();
        for (nth, (topic, partitions)) in topics.iter().enumerate() {
            for (leader, places) in self.led(topic, 0..*partitions).await? {
                asked.entry(leader).or_default().push((nth, places));
            }
        }
        for (leader, of) in asked {
            let connection = self.leader(leader, Use::Read).await?;
            let question = |(nth, places): &(usize, Vec<usize>)| {
                let partitions: Vec<u32> = places.iter().filter_map(|place| u32::try_from(*place).ok()).collect();
                wire::offsets(&topics[*nth].0, &partitions)
            };
            let answers = self.offsets(&connection, of.iter().map(question).collect()).await?;
            for ((nth, places), answer) in of.into_iter().zip(answers) {
                for (place, found) in places.into_iter().zip(answer) {
                    bounds[nth][place] = found;
                }
            }
        }
        Ok(bounds)
    }

    /// Records of partitions, each from an offset on: about so many bytes of each.
    async fn read(&self, topic: &str, from: &[(u32, u64)], bytes: usize) -> Result<Vec<Portion>, Fault> {
        let mut portions = vec![Portion::default(); from.len()];
        for (leader, places) in self.led(topic, from.iter().map(|(partition, _)| *partition)).await? {
            let connection = self.leader(leader, Use::Read).await?;
            let mut asked: Vec<(usize, (u32, u64))> = places.into_iter().map(|place| (place, from[place])).collect();
            let mut bytes = bytes;
            while !asked.is_empty() {
                let questions: Vec<(u32, u64)> = asked.iter().map(|(_, question)| *question).collect();
                let request = wire::fetch(topic, &questions, u32::try_from(bytes).unwrap_or(u32::MAX), leader.alone);
                let answer = connection.send_receive(request).await.map_err(anyhow::Error::from)?;
                let mut again = Vec::new();
                for ((place, (partition, from)), fetched) in asked.into_iter().zip(wire::fetched(answer, &questions)?) {
                    match fetched {
                        // Its first batch is larger than what was asked for.
                        Fetched::Portion(portion) if portion.records.is_empty() && portion.end > from && bytes < AT_MOST => {
                            again.push((place, (partition, from)));
                        }
                        Fetched::Portion(portion) => portions[place] = portion,
                        Fetched::Evicted => {
                            let bounds = self.offsets(&connection, vec![wire::offsets(topic, &[partition])]).await?;
                            let first = bounds.into_iter().flatten().next().map_or(0, |(first, _)| first).max(from + 1);
                            tracing::debug!(topic, partition, from, first, "fluvio: reading from the first record kept");
                            again.push((place, (partition, first)));
                        }
                    }
                }
                asked = again;
                bytes = (bytes * 8).min(AT_MOST);
            }
        }
        Ok(portions)
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
            let led = inner.led(&topic, std::iter::once(partition)).await?.into_keys().next();
            let leader = led.ok_or_else(|| Fault::Lost(format!("nobody leads partition {partition}")))?;
            let connection = inner.leader(leader, Use::Write).await?;
            let mut offsets = Vec::with_capacity(records.len());
            let mut rest = records.as_slice();
            while !rest.is_empty() {
                let mut bytes = 0;
                let fits = |raw: &&Raw| {
                    let before = bytes;
                    bytes += raw.value.len();
                    before < REQUEST
                };
                let many = rest.iter().take_while(fits).count();
                let (now, later) = rest.split_at(many);
                rest = later;
                let request = wire::produce(&topic, partition, now, inner.clock.now().0 / 1000, CALL / 2)?;
                let answer = connection.send_receive(request).await.map_err(anyhow::Error::from)?;
                let placed = answer.responses.into_iter().flat_map(|topic| topic.partitions).next();
                let placed = placed.ok_or_else(|| Fault::Lost(format!("topic `{topic}` has not answered")))?;
                wire::fault(&placed.error_code).map_or(Ok(()), Err)?;
                let first = u64::try_from(placed.base_offset).unwrap_or(0);
                offsets.extend(first..first + now.len() as u64);
            }
            Ok(offsets)
        })
    }

    fn read(&self, topic: &str, from: &[(u32, u64)], most: usize) -> Result<Vec<Portion>, Fault> {
        let (topic, from) = (topic.to_owned(), from.to_vec());
        let share = (TOGETHER / from.len().max(1)).clamp(LEAST, AT_ONCE);
        let bytes = most.saturating_mul(RECORD).clamp(LEAST, share);
        self.run(move |inner| async move { inner.read(&topic, &from, bytes).await })
    }

    fn bounds(&self, topics: &[(String, u32)]) -> Result<Vec<Bounds>, Fault> {
        let topics = topics.to_vec();
        self.run(move |inner| async move { inner.bounds(&topics).await })
    }

    fn news(&self, topics: &[(String, u32)]) -> bool {
        // Whoever asks next will say what is wrong.
        let Ok(bounds) = self.bounds(topics) else { return true };
        let mut seen = self.seen.lock();
        std::mem::replace(&mut *seen, bounds.clone()) != bounds
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}
