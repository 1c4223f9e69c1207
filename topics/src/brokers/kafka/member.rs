//! Who has which share of the work (R19): a consumer group over the topic `quikflow.work`, of the sinks
//! over `quikflow.sinks`, whose partitions are the shares and hold no records.
//!
//! Shares move cooperatively: who keeps one is not disturbed. A process is a static member
//! (`group.instance.id`), so one that starts again within the session time-out has its shares back
//! at once, and a zombie is refused by the group even when it has lost its generation.
//!
//! The group's metadata is taken when shares are: an epoch of an earlier generation is refused.

use super::Shared;
use super::config::failed;
use super::link::Link;
use super::watch::Watched;
use crate::broker::BrokerError;
use crate::share::{Membership, ShareHolder, Work};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long brokers that are away may take to answer whether they are back.
const ASKED: Duration = Duration::from_millis(500);

/// A group, and where its shares are counted.
#[derive(Clone)]
struct Seat {
    group: &'static str,
    topic: String,
    /// By which place in the group epochs are committed; of sinks nobody asks.
    metadata: Arc<Mutex<Option<Arc<ConsumerGroupMetadata>>>>,
}

impl Seat {
    fn of(shared: &Shared, work: Work) -> Seat {
        match work {
            Work::Pipelines => Seat { group: "pipelines", topic: shared.own_topic("work"), metadata: shared.membership.clone() },
            Work::Sinks => Seat { group: "sinks", topic: shared.own_topic("sinks"), metadata: Arc::default() },
        }
    }
}

/// What the group's consumer tells.
struct Group {
    seat: Seat,
    link: Arc<Link>,
    holder: Arc<dyn ShareHolder>,
    mine: Mutex<BTreeSet<u32>>,
    lost: AtomicBool,
}

fn shares(list: &TopicPartitionList) -> Vec<u32> {
    list.elements().iter().filter_map(|element| u32::try_from(element.partition()).ok()).collect()
}

impl ClientContext for Group {
    fn error(&self, error: KafkaError, reason: &str) {
        self.link.error(&error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, place: &str, text: &str) {
        self.link.log(level, place, text);
    }
}

impl ConsumerContext for Group {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Group>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(list) = rebalance {
            let gone = shares(list);
            let lost = consumer.assignment_lost();
            tracing::info!(group = self.seat.group, shares = ?gone, lost, "kafka: shares of the work are given up");
            self.mine.lock().retain(|share| !gone.contains(share));
            // Lost: others may have them already, nothing of this process is committed any more.
            *self.seat.metadata.lock() = if lost { None } else { consumer.group_metadata().map(Arc::new) };
            self.holder.given_up(&gone);
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Group>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                let new = shares(list);
                *self.seat.metadata.lock() = consumer.group_metadata().map(Arc::new);
                let mut mine = self.mine.lock();
                mine.extend(&new);
                let all: Vec<u32> = mine.iter().copied().collect();
                drop(mine);
                tracing::info!(group = self.seat.group, shares = ?all, ?new, "kafka: shares of the work are taken");
                self.holder.taken(&all);
            }
            Rebalance::Revoke(_) => {}
            Rebalance::Error(error) => {
                tracing::warn!(group = self.seat.group, %error, "kafka: a group is disturbed");
                self.lost.store(true, Ordering::SeqCst);
            }
        }
    }
}

/// See [`Membership`].
pub(super) struct Member {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Membership for Member {}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("kafka: the thread of the group ended by a panic");
        }
    }
}

/// Joins the group.
pub(super) fn join(shared: &Arc<Shared>, work: Work, holder: Arc<dyn ShareHolder>) -> Result<Member, BrokerError> {
    let seat = Seat::of(shared, work);
    let consumer = open(shared, &seat, &holder)?;
    let stop = Arc::new(AtomicBool::new(false));
    let thread = {
        let (shared, stop) = (shared.clone(), stop.clone());
        std::thread::Builder::new().name("kafka-group".to_owned()).spawn(move || follow(&shared, &seat, consumer, &holder, &stop))
    };
    let thread = thread.map_err(|e| BrokerError::Storage(format!("kafka: no thread: {e}")))?;
    Ok(Member { stop, thread: Some(thread) })
}

fn open(shared: &Arc<Shared>, seat: &Seat, holder: &Arc<dyn ShareHolder>) -> Result<Watched<BaseConsumer<Group>>, BrokerError> {
    let options = &shared.options;
    let mut config = options.consumer();
    config.set("group.id", format!("{}{}", options.prefix, seat.group));
    config.set("partition.assignment.strategy", "cooperative-sticky");
    config.set("session.timeout.ms", "10000").set("heartbeat.interval.ms", "1000");
    // A revoke waits for the epoch in flight, and that for the brokers.
    config.set("max.poll.interval.ms", "600000");
    if let Some(instance) = &options.instance {
        config.set("group.instance.id", instance);
    }
    let context = Group {
        link: options.link.clone(),
        holder: holder.clone(),
        mine: Mutex::default(),
        seat: seat.clone(),
        lost: AtomicBool::new(false),
    };
    let consumer: BaseConsumer<Group> = config.create_with_context(context).map_err(|e| failed("joining the group", &e))?;
    consumer.subscribe(&[&seat.topic]).map_err(|e| failed("joining the group", &e))?;
    Ok(options.watch.add(consumer))
}

/// Keeps the membership alive; a member that the group refuses for good joins anew.
fn follow(
    shared: &Arc<Shared>,
    seat: &Seat,
    first: Watched<BaseConsumer<Group>>,
    holder: &Arc<dyn ShareHolder>,
    stop: &AtomicBool,
) {
    let mut consumer = first;
    while !stop.load(Ordering::SeqCst) {
        let refused = match consumer.poll(Duration::from_millis(100)) {
            Some(Err(error)) => is_final(&error),
            _ => consumer.client().fatal_error().is_some(),
        };
        // Where nothing is read and written nobody else finds out that the brokers are back.
        let link = &consumer.context().link;
        if link.is_absent() && consumer.fetch_metadata(Some(&seat.topic), ASKED).is_ok() {
            link.answered();
        }
        if refused || consumer.is_lost() || consumer.context().lost.swap(false, Ordering::SeqCst) {
            let mine: Vec<u32> = std::mem::take(&mut *consumer.context().mine.lock()).into_iter().collect();
            tracing::warn!(group = seat.group, shares = ?mine, "kafka: the group has refused this member, it joins anew");
            seat.metadata.lock().take();
            holder.given_up(&mine);
            match open(shared, seat, holder) {
                Ok(again) => consumer = again,
                Err(error) => tracing::warn!(%error, "kafka: the group cannot be joined"),
            }
        }
    }
    seat.metadata.lock().take();
}

fn is_final(error: &KafkaError) -> bool {
    matches!(error, KafkaError::MessageConsumptionFatal(_))
        || matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::FencedInstanceId))
}
