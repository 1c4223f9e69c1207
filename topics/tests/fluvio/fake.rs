//! A cluster in memory that fails by seed: answers get lost before or after the deed, writes come
//! late, in part or twice, reads leave records out, connections break for a while, processes die between two calls. Time is
//! virtual: a pause moves it.

use quikflow_topics::brokers::fluvio::{Bounds, Endpoint, Fault, Found, NewTopic, Portion, Raw};
use quikflow_topics::clock::{Clock, ManualClock};
use quikflow_topics::ids::EventTime;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Numbers that follow from a seed (splitmix64).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// A write that has not happened yet: when, where, what.
type Late = (Duration, String, u32, Vec<Raw>);

#[derive(Default)]
struct World {
    topics: BTreeMap<String, Vec<Vec<Found>>>,
    late: Vec<Late>,
    /// Nobody is reached before.
    down_until: Duration,
    refuse: Option<String>,
}

impl World {
    fn write(&mut self, topic: &str, partition: u32, records: &[Raw], now: EventTime) -> Vec<u64> {
        let log = &mut self.topics.get_mut(topic).unwrap()[partition as usize];
        let first = log.len() as u64;
        for (offset, raw) in (first..).zip(records) {
            let key = raw.key.clone().map(String::into_bytes);
            log.push(Found { offset, arrival: now.0, key, value: raw.value.clone() });
        }
        (first..first + records.len() as u64).collect()
    }
}

/// The cluster.
pub(crate) struct Fake {
    world: Mutex<World>,
    pub(crate) clock: Arc<ManualClock>,
    /// Of a thousand calls so many go wrong.
    faults: u64,
    dice: Mutex<Dice>,
    pub(crate) calls: AtomicU64,
    /// Reads that left records out.
    pub(crate) holes: AtomicU64,
    pub(crate) pauses: Mutex<Vec<Duration>>,
}

impl Fake {
    pub(crate) fn new(seed: u64, faults: u64) -> Arc<Fake> {
        Arc::new(Fake {
            world: Mutex::default(),
            clock: ManualClock::at(EventTime(1_700_000_000_000_000)),
            faults,
            dice: Mutex::new(Dice::new(seed)),
            calls: AtomicU64::new(0),
            holes: AtomicU64::new(0),
            pauses: Mutex::default(),
        })
    }

    /// A process's way to the cluster, which works for so many calls.
    pub(crate) fn line(self: &Arc<Fake>, calls: i64) -> Arc<Line> {
        Arc::new(Line { fake: self.clone(), left: AtomicI64::new(calls), watch: Mutex::default() })
    }

    /// Nobody is reached for so long.
    pub(crate) fn down_for(&self, time: Duration) {
        self.world.lock().unwrap().down_until = self.clock.elapsed() + time;
    }

    /// Every call is refused with these words.
    pub(crate) fn refuse(&self, why: &str) {
        self.world.lock().unwrap().refuse = Some(why.to_owned());
    }

    /// How many records a topic holds, repeats among them.
    pub(crate) fn stored(&self, topic: &str) -> usize {
        self.world.lock().unwrap().topics[topic].iter().map(Vec::len).sum()
    }

    /// Everything that was to come late comes now.
    pub(crate) fn settle(&self) {
        let mut world = self.world.lock().unwrap();
        for (_, topic, partition, records) in std::mem::take(&mut world.late) {
            world.write(&topic, partition, &records, self.clock.now());
        }
    }

    fn call<T>(&self, call: impl FnOnce(&mut World) -> Result<T, Fault>) -> Result<T, Fault> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let mut world = self.world.lock().unwrap();
        let now = self.clock.elapsed();
        let due: Vec<Late>;
        (due, world.late) = std::mem::take(&mut world.late).into_iter().partition(|late| late.0 <= now);
        for (_, topic, partition, records) in due {
            world.write(&topic, partition, &records, self.clock.now());
        }
        if let Some(why) = &world.refuse {
            return Err(Fault::Refused(why.clone()));
        }
        if now < world.down_until {
            return Err(Fault::Lost("connection refused".to_owned()));
        }
        call(&mut world)
    }

    /// Whether this call goes wrong, and how.
    fn fault(&self, kinds: u64) -> Option<(u64, u64)> {
        let mut dice = self.dice.lock().unwrap();
        (dice.below(1000) < self.faults).then(|| (dice.below(kinds), dice.next()))
    }
}

/// A process's way to the cluster. When its calls are used up the process is as good as dead:
/// nothing it does reaches the cluster any more.
pub(crate) struct Line {
    fake: Arc<Fake>,
    left: AtomicI64,
    /// Called before a write, with its topic.
    watch: Mutex<Option<Watch>>,
}

type Watch = Box<dyn FnMut(&str) + Send>;

impl Line {
    /// From now on nothing gets through.
    pub(crate) fn cut(&self) {
        self.left.store(0, Ordering::SeqCst);
    }

    /// Calls this before each write, with the topic's name.
    pub(crate) fn watch(&self, watch: impl FnMut(&str) + Send + 'static) {
        *self.watch.lock().unwrap() = Some(Box::new(watch));
    }

    fn call<T>(&self, call: impl FnOnce(&mut World) -> Result<T, Fault>) -> Result<T, Fault> {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(Fault::Refused("this process is dead".to_owned()));
        }
        self.fake.call(call)
    }
}

fn lost() -> Fault {
    Fault::Lost("connection reset".to_owned())
}

impl Endpoint for Line {
    fn topics(&self) -> Result<Vec<(String, u32)>, Fault> {
        let fault = self.fake.fault(1);
        self.call(|world| {
            fault.map_or(Ok(()), |_| Err(lost()))?;
            Ok(world.topics.iter().map(|(name, partitions)| (name.clone(), partitions.len() as u32)).collect())
        })
    }

    fn create(&self, topic: &NewTopic) -> Result<(), Fault> {
        let fault = self.fake.fault(2);
        self.call(|world| {
            if fault.is_some_and(|(kind, _)| kind == 0) {
                return Err(lost());
            }
            if world.topics.contains_key(&topic.name) {
                return Err(Fault::Refused(format!("topic {} is there already", topic.name)));
            }
            world.topics.insert(topic.name.clone(), vec![Vec::new(); topic.partitions as usize]);
            fault.map_or(Ok(()), |_| Err(lost()))
        })
    }

    fn produce(&self, topic: &str, partition: u32, records: &[Raw]) -> Result<Vec<u64>, Fault> {
        if let Some(watch) = self.watch.lock().unwrap().as_mut() {
            watch(topic);
        }
        let fault = self.fake.fault(6);
        let (now, elapsed) = (self.fake.clock.now(), self.fake.clock.elapsed());
        self.call(|world| {
            match fault {
                None => return Ok(world.write(topic, partition, records, now)),
                // Nothing was done.
                Some((0, _)) => {}
                // All was done.
                Some((1, _)) => drop(world.write(topic, partition, records, now)),
                // Some was done.
                Some((2, drawn)) => {
                    let some = (drawn % (records.len() as u64 + 1)) as usize;
                    world.write(topic, partition, &records[..some], now);
                }
                // It will be done, a while later.
                Some((3, drawn)) => {
                    let due = elapsed + Duration::from_millis(drawn % 400);
                    world.late.push((due, topic.to_owned(), partition, records.to_vec()));
                }
                // It was done twice, and answered.
                Some((4, _)) => {
                    world.write(topic, partition, records, now);
                    return Ok(world.write(topic, partition, records, now));
                }
                // The connection breaks, for everyone, for a while.
                Some((_, drawn)) => world.down_until = elapsed + Duration::from_millis(drawn % 5_000),
            }
            Err(lost())
        })
    }

    fn read(&self, topic: &str, from: &[(u32, u64)], most: usize) -> Result<Vec<Portion>, Fault> {
        let fault = self.fake.fault(2);
        self.call(|world| {
            let portion = |(partition, from): &(u32, u64)| {
                let log = &world.topics[topic][*partition as usize];
                let records = log.iter().skip(*from as usize).take(most).cloned().collect();
                Portion { records, first: 0, end: log.len() as u64 }
            };
            let mut portions: Vec<Portion> = from.iter().map(portion).collect();
            let Some((kind, drawn)) = fault else { return Ok(portions) };
            // A stretch is left out, as where bytes were cut within a batch.
            let found = portions.iter_mut().map(|portion| &mut portion.records).find(|found| found.len() > 1);
            match found.filter(|_| kind == 0) {
                Some(found) => {
                    let first = (drawn % (found.len() as u64 - 1)) as usize;
                    found.drain(first..first + 1 + (drawn >> 32) as usize % (found.len() - 1 - first));
                    self.fake.holes.fetch_add(1, Ordering::SeqCst);
                }
                None => return Err(lost()),
            }
            Ok(portions)
        })
    }

    fn bounds(&self, topics: &[(String, u32)]) -> Result<Vec<Bounds>, Fault> {
        let fault = self.fake.fault(1);
        self.call(|world| {
            fault.map_or(Ok(()), |_| Err(lost()))?;
            Ok(topics.iter().map(|(topic, _)| world.topics[topic].iter().map(|log| (0, log.len() as u64)).collect()).collect())
        })
    }

    fn pause(&self, time: Duration) {
        self.fake.pauses.lock().unwrap().push(time);
        self.fake.clock.advance(time);
    }
}
