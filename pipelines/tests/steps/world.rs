//! A declaration run by hand: its plan, a log in memory, an engine without threads.
#![allow(dead_code, reason = "each test file uses a part")]

use quikflow_pipelines::driver::{Giver, Row, VirtualEngine, rows_of, topics};
use quikflow_pipelines::memory::MemoryBroker;
use quikflow_pipelines::plan::{Plan, load};
use quikflow_pipelines::topology::cases::{Given, GivenRecord};
use quikflow_topics::broker::Broker;
use quikflow_topics::clock::{ManualClock, SharedClock};
use quikflow_topics::diagnostics::SourceFile;
use quikflow_topics::ids::EventTime;
use serde_json::{Value, json};
use std::sync::Arc;

/// One second in microseconds.
pub(crate) const SECOND: i64 = 1_000_000;
/// 2026-01-01, in seconds.
pub(crate) const DAY: i64 = 1_767_225_600;

/// The plan of a declaration without mistakes.
pub(crate) fn plan(text: &str) -> Arc<Plan> {
    let loaded = load(&SourceFile::new("test.toml", text.to_owned()));
    Arc::new(loaded.plan.unwrap_or_else(|| panic!("{:?}\n{text}", loaded.diagnostics)))
}

/// A log in memory with the topics of a plan.
pub(crate) struct World {
    pub(crate) broker: Arc<MemoryBroker>,
    pub(crate) clock: Arc<ManualClock>,
    giver: Giver,
}

impl World {
    pub(crate) fn new(plan: &Plan) -> World {
        let clock = ManualClock::at(EventTime(DAY * SECOND));
        let shared: SharedClock = clock.clone();
        let broker = MemoryBroker::new(shared);
        broker.ensure_topics(&topics(plan)).unwrap();
        let giver = Giver::new(&plan.catalogue, broker.clone(), clock.clone());
        World { broker, clock, giver }
    }

    /// Appends an event at second `at` of the day.
    pub(crate) fn give(&self, topic: &str, event: &str, at: i64, payload: Value) {
        self.give_at(topic, event, at * SECOND, payload, None);
    }

    /// Appends an event at microsecond `at` of the day, to a partition of its own if one is given.
    pub(crate) fn give_at(&self, topic: &str, event: &str, at: i64, payload: Value, partition: Option<u32>) {
        let Value::Object(mut payload) = payload else { panic!("a payload is an object") };
        payload.retain(|_, value| !value.is_null());
        let (topic, event) = (topic.to_owned(), event.to_owned());
        let record = GivenRecord { topic, event, payload, key: None, id: None, partition };
        self.giver.give(&Given { at: EventTime(DAY * SECOND + at), record: Some(record), span: 0..0 }).unwrap();
    }

    /// An engine without threads that goes on from what is committed.
    pub(crate) fn engine(&self, plan: &Arc<Plan>) -> VirtualEngine {
        self.broker.ensure_topics(&topics(plan)).unwrap();
        VirtualEngine::new(plan.clone(), self.broker.clone(), self.clock.clone()).unwrap()
    }

    /// Some columns of a topic's rows, as JSON texts, sorted.
    pub(crate) fn rows(&self, topic: &str, columns: &[&str]) -> Vec<String> {
        let pick = |row: Row| json!(columns.iter().map(|name| row.get(*name).cloned()).collect::<Vec<_>>()).to_string();
        let mut rows: Vec<String> = rows_of(&self.broker.records(topic).unwrap()).into_iter().map(pick).collect();
        rows.sort();
        rows
    }
}
