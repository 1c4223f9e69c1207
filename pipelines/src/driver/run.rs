//! The engine without threads: one worker's operators, called one after the other.

use crate::engine::EngineError;
use crate::engine::books::{TopologyBooks, keyed_nodes};
use crate::engine::commit::Gatherer;
use crate::engine::core::Core;
use crate::engine::graph::Graph;
use crate::engine::recover::{Recovered, recover};
use crate::engine::schedule::{Limits, MadeEpoch, Scheduler};
use crate::plan::Plan;
use quikflow_topics::broker::Broker;
use quikflow_topics::clock::SharedClock;
use quikflow_topics::ids::EventTime;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The end of time in a test: 9999-01-01.
const THE_END: EventTime = EventTime(253_370_764_800_000_000);

/// An engine that computes and commits an epoch when it is told to.
pub struct VirtualEngine {
    plan: Arc<Plan>,
    graph: Arc<Graph>,
    broker: Arc<dyn Broker>,
    clock: SharedClock,
    scheduler: Scheduler,
    core: Core,
    gatherer: Gatherer,
    limits: Limits,
}

impl VirtualEngine {
    /// Brings back what the last committed epoch left.
    ///
    /// # Errors
    /// As `Engine::start`.
    pub fn new(plan: Arc<Plan>, broker: Arc<dyn Broker>, clock: SharedClock) -> Result<VirtualEngine, EngineError> {
        let keyed: Vec<Vec<bool>> = plan.topologies.iter().map(|topology| keyed_nodes(topology)).collect();
        let graph = Arc::new(Graph::new(&plan, &keyed));
        let Recovered { epoch, states, times, books } = recover(&graph, &broker, broker.last_epoch()?)?;
        let core = Core::new(graph.clone(), 0, 1, &states)?;
        let mut scheduler = Scheduler::new(graph.clone(), broker.clone(), times, epoch)?;
        scheduler.note(0, &core.gauges());
        let gatherer = Gatherer::new(graph.clone(), broker.clone(), books);
        let limits = Limits { rows: 65_536, bytes: 32 << 20, slice_rows: 16_384 };
        Ok(VirtualEngine { plan, graph, broker, clock, scheduler, core, gatherer, limits })
    }

    /// Another size of epochs and slices.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> VirtualEngine {
        self.limits = limits;
        self
    }

    /// The plan that runs.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The accounts, by topology.
    pub fn books(&self) -> &[TopologyBooks] {
        self.gatherer.books()
    }

    /// What does not balance in any topology (R20).
    pub fn unbalanced(&self) -> Vec<String> {
        (0..self.graph.topologies.len()).flat_map(|topology| self.gatherer.unbalanced(topology)).collect()
    }

    /// Computes and commits until nothing is left to do now.
    ///
    /// # Errors
    /// What would end the engine.
    pub fn run(&mut self) -> Result<(), EngineError> {
        loop {
            let made = self.scheduler.make(&self.clock, self.clock.elapsed(), self.limits)?;
            match made {
                Some(made) => self.compute(&made)?,
                None if self.scheduler.at_end() => return Ok(()),
                None => {}
            }
        }
    }

    /// Lets time run to its end, topology after topology, so that all windows close.
    ///
    /// # Errors
    /// What would end the engine.
    pub fn run_to_the_end(&mut self) -> Result<(), EngineError> {
        self.run()?;
        for topology in 0..self.graph.topologies.len() {
            let made = self.scheduler.finish(topology, THE_END);
            self.compute(&made)?;
            self.run()?;
        }
        Ok(())
    }

    fn compute(&mut self, made: &MadeEpoch) -> Result<(), EngineError> {
        self.apply(made)?;
        self.commit(made)
    }

    fn apply(&mut self, made: &MadeEpoch) -> Result<(), EngineError> {
        let mut parcels = Vec::new();
        for task in &made.work.tasks {
            self.core.read(made.work.epoch, task, &mut parcels)?;
        }
        for task in &made.work.replays {
            self.core.replay(made.work.epoch, task, &mut parcels)?;
        }
        let mut by_level: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        for level in 1..=self.graph.levels {
            for parcel in parcels.drain(..) {
                by_level.entry(parcel.level as usize).or_default().push(parcel);
            }
            let taken = by_level.remove(&level).unwrap_or_default();
            self.core.apply(level, &made.work, taken, &mut parcels)?;
        }
        Ok(())
    }

    fn commit(&mut self, made: &MadeEpoch) -> Result<(), EngineError> {
        let effects = self.core.take_effects(&made.work);
        self.scheduler.note(0, &effects.gauges);
        let commit = self.gatherer.gather(made, vec![effects], self.clock.now())?;
        self.broker.commit_epoch(commit)?.wait()?;
        self.scheduler.committed(made);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryBroker;
    use quikflow_topics::broker::{Append, TopicRows};
    use quikflow_topics::clock::{ManualClock, SharedClock};
    use quikflow_topics::diagnostics::SourceFile;
    use quikflow_topics::json::decode::{Decoder, Limits as Bounds};

    const JOIN: &str = r#"
[topics.messages]
[topics.members]
cleanup = "compact"
[events.SENT]
topic = "messages"
key = "channel"
[events.SENT.payload]
channel = "string"
[events.JOINED]
topic = "members"
key = ["channel", "user"]
[events.JOINED.payload]
channel = "string"
user = "string"
[[topology]]
name = "fan-out"
from = "messages"
steps = [
  { join = { table = "members", on = "payload.channel", table_on = "payload.channel", table_key = ["payload.user"], select = { user = "payload.user" }, kind = "inner", max_wait = "1h" }, name = "members" },
  { map = { user = "user" } },
]
to = "out"
"#;

    #[test]
    fn r20_the_accounts_of_an_epoch_balance_though_the_next_one_has_been_applied() {
        let plan = Arc::new(crate::plan::load(&SourceFile::new("join.toml", JOIN)).plan.expect("a plan"));
        let clock: SharedClock = ManualClock::at(EventTime(1_767_225_600_000_000));
        let broker: Arc<dyn Broker> = MemoryBroker::new(clock.clone());
        broker.ensure_topics(&plan.catalogue.topics.values().cloned().collect::<Vec<_>>()).expect("topics");
        let decoder = Decoder::new(&plan.catalogue, Bounds::default());
        let mut batch = decoder.batch(clock.now(), None);
        let line =
            |n: usize| format!(r#"{{"type":"SENT","payload":{{"channel":"c{n}"}},"timestamp":"2026-01-01T00:00:00Z"}}"#) + "\n";
        batch.ndjson((0..40).map(line).collect::<String>().as_bytes(), 1, None);
        let rows: Vec<TopicRows> = batch.finish().expect("decoded").rows;
        assert_eq!(rows.iter().map(|r| r.rows.num_rows()).sum::<usize>(), 40);
        broker.append(Append { rows, ..Append::default() }).expect("taken").wait().expect("durable");

        let mut engine = VirtualEngine::new(plan, broker, clock.clone()).expect("an engine");
        let limits = Limits { rows: 10, bytes: 32 << 20, slice_rows: 10 };
        let mut ahead = Vec::new();
        while let Some(made) = engine.scheduler.make(&clock, clock.elapsed(), limits).expect("an epoch") {
            engine.apply(&made).expect("applied");
            ahead.push(made);
        }
        assert!(ahead.len() > 1, "one epoch took all records");
        for made in &ahead {
            engine.commit(made).expect("committed");
            assert_eq!(engine.unbalanced(), Vec::<String>::new(), "epoch {}", made.work.epoch.0);
        }
        let held: u64 = engine.gatherer.books()[0].steps[0].inputs[0].input;
        assert_eq!(held, 40, "the join was to take all records");
    }
}
