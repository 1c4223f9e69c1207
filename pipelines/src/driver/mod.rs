//! Runs a plan in virtual time, without timely and without threads, over a log in memory: for the
//! users' `[[test]]` blocks and for cases.
//!
//! It runs the engine's own scheduler, operators and commits. The clock stands still but for
//! `advance`: a record moves wall-clock time to its event time, so that it arrives live, and counts
//! as no silence of others. Topologies are chained: what one writes, others read.

mod compare;
mod run;

pub use compare::{Row, rows_of};
pub use run::VirtualEngine;

use crate::engine::EngineError;
use crate::memory::MemoryBroker;
use crate::plan::Plan;
use crate::topology::cases::{Given, GivenRecord, TestCase};
use arrow::array::StringArray;
use quikflow_topics::broker::{Append, Broker, TopicRows};
use quikflow_topics::catalogue::{Catalogue, TopicKind};
use quikflow_topics::clock::{Clock, ManualClock, SharedClock};
use quikflow_topics::ids::EventTime;
use quikflow_topics::json::{Decoder, Limits};
use serde_json::{Map, Value as Json};
use std::sync::Arc;
use std::time::Duration;

/// What came of a test.
#[derive(Clone, Debug)]
pub struct TestReport {
    /// The topology under test.
    pub topology: String,
    /// What the test shows.
    pub doc: String,
    /// All was as expected.
    pub passed: bool,
    /// Where it failed: expected and found, line by line; empty where it passed.
    pub diff: String,
    /// Where the test stands in the file, in bytes.
    pub span: std::ops::Range<usize>,
}

/// Runs each test on a log of its own. Only the topology under test and those that feed it run.
pub fn run_tests(plan: &Plan, cases: &[TestCase]) -> Vec<TestReport> {
    cases
        .iter()
        .map(|case| {
            let diff = run_case(plan, case).unwrap_or_else(|message| format!("could not be run: {message}\n"));
            TestReport {
                topology: case.topology.clone(),
                doc: case.doc.clone(),
                passed: diff.is_empty(),
                diff,
                span: case.span.clone(),
            }
        })
        .collect()
}

fn run_case(plan: &Plan, case: &TestCase) -> Result<String, String> {
    let plan = needed(plan, &case.topology, case.expect_to.as_deref());
    let first = case.given.first().map_or(EventTime(0), |given| given.at);
    let clock = ManualClock::at(first);
    let shared: SharedClock = clock.clone();
    let broker = MemoryBroker::new(shared.clone());
    broker.ensure_topics(&topics(&plan)).map_err(|error| error.to_string())?;
    let failed = |error: EngineError| error.to_string();
    let mut engine = VirtualEngine::new(Arc::new(plan), broker.clone(), shared).map_err(failed)?;
    let giver = Giver::new(&engine.plan().catalogue, broker.clone(), clock);
    for given in &case.given {
        giver.give(given)?;
        engine.run().map_err(failed)?;
    }
    if case.close {
        engine.run_to_the_end().map_err(failed)?;
    }
    compare::compare(&engine, &broker, case).map_err(|error| error.to_string())
}

/// The topology and those that feed it; where another topic is asked for, all of them.
fn needed(plan: &Plan, topology: &str, other: Option<&str>) -> Plan {
    let mut wanted = vec![topology.to_owned()];
    let own = |topic: &str| {
        plan.topologies.iter().filter(|t| t.name == topology).any(|t| {
            t.outputs.iter().map(|output| &output.topic).chain(t.late.iter().flatten()).any(|written| written.name == topic)
        })
    };
    if other.is_some_and(|topic| !own(topic)) {
        wanted.extend(plan.topologies.iter().map(|t| t.name.clone()));
    }
    // Writers come before readers, so one pass from the end finds all that feed.
    for feeder in plan.topologies.iter().rev() {
        let feeds = plan.topologies.iter().filter(|t| wanted.contains(&t.name)).any(|reader| {
            reader.sources.iter().any(|source| feeder.outputs.iter().any(|output| output.topic.name == source.topic.name))
        });
        if feeds && !wanted.contains(&feeder.name) {
            wanted.push(feeder.name.clone());
        }
    }
    let topologies = plan.topologies.iter().filter(|t| wanted.contains(&t.name)).cloned().collect();
    Plan { catalogue: plan.catalogue.clone(), topologies }
}

/// All topics that a plan declares, reads and writes.
pub fn topics(plan: &Plan) -> Vec<Arc<quikflow_topics::catalogue::TopicSpec>> {
    let mut topics: Vec<_> = plan.catalogue.topics.values().cloned().collect();
    for topology in &plan.topologies {
        let read = topology.sources.iter().map(|source| &source.topic);
        let written = topology.outputs.iter().map(|output| &output.topic).chain(topology.late.iter().flatten());
        for topic in read.chain(written) {
            if topics.iter().all(|known| known.name != topic.name) {
                topics.push(topic.clone());
            }
        }
    }
    topics
}

/// Brings the records of tests into a log in memory, and moves its clock.
pub struct Giver {
    catalogue: Catalogue,
    decoder: Decoder,
    broker: Arc<MemoryBroker>,
    clock: Arc<ManualClock>,
}

impl Giver {
    /// For the events that `catalogue` declares.
    pub fn new(catalogue: &Catalogue, broker: Arc<MemoryBroker>, clock: Arc<ManualClock>) -> Giver {
        Giver { catalogue: catalogue.clone(), decoder: Decoder::new(catalogue, Limits::default()), broker, clock }
    }

    /// Appends a record, or lets time go on.
    ///
    /// # Errors
    /// What the door would say.
    pub fn give(&self, given: &Given) -> Result<(), String> {
        let ahead = given.at.0.saturating_sub(self.clock.now().0);
        let Some(record) = &given.record else {
            self.clock.advance(Duration::from_micros(u64::try_from(ahead).unwrap_or(0)));
            self.broker.wakeup().bump();
            return Ok(());
        };
        if ahead > 0 {
            self.clock.set(given.at);
        }
        let rows = rows(&self.catalogue, &self.decoder, given.at, record)?;
        let append = Append { rows: vec![rows], ..Append::default() };
        self.broker.append_to(append, record.partition).map_err(|error| error.to_string())
    }
}

fn rows(catalogue: &Catalogue, decoder: &Decoder, at: EventTime, record: &GivenRecord) -> Result<TopicRows, String> {
    let topic = catalogue.topics.get(&record.topic).ok_or_else(|| format!("unknown topic `{}`", record.topic))?;
    let mut rows = if topic.kind == TopicKind::Rows {
        compare::row_of(topic, at, &record.payload)?
    } else {
        let mut event = Map::new();
        event.insert("type".to_owned(), Json::String(record.event.clone()));
        event.insert("payload".to_owned(), Json::Object(record.payload.clone()));
        let time = chrono::DateTime::from_timestamp_micros(at.0).ok_or("a time out of range")?;
        event.insert("timestamp".to_owned(), Json::String(time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)));
        if let Some(id) = &record.id {
            event.insert("id".to_owned(), Json::String(id.clone()));
        }
        let text = Json::Object(event).to_string();
        let mut batch = decoder.batch(at, Some(&record.topic));
        batch.event(text.as_bytes(), 1, None);
        let decoded = batch.finish().map_err(|error| error.to_string())?;
        if let Some(fault) = decoded.rejects.first().and_then(|reject| reject.faults.first()) {
            return Err(format!(
                "the door would refuse the `{}` at {}: {} ({})",
                record.event,
                fault.path,
                fault.message,
                fault.code.name()
            ));
        }
        decoded.rows.into_iter().next().ok_or("the door took nothing")?.rows
    };
    if let Some(key) = &record.key {
        let index = rows.schema().index_of(quikflow_topics::schema::KEY).map_err(|error| error.to_string())?;
        let mut columns = rows.columns().to_vec();
        columns[index] = Arc::new(StringArray::from(vec![key.as_str()]));
        rows = arrow::array::RecordBatch::try_new(rows.schema(), columns).map_err(|error| error.to_string())?;
    }
    Ok(TopicRows { topic: topic.clone(), rows })
}
