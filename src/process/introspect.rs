//! What only the process knows: lag, settledness, topologies, health, metrics; and resetting.

use metrics_exporter_prometheus::PrometheusHandle;
use quikflow_pipelines::engine::status::{EngineStatus, TopologyStatus};
use quikflow_pipelines::engine::supervise::Supervisor;
use quikflow_pipelines::plan::{Half, Plan, TopologyPlan};
use quikflow_query_api::state::{Freshness, Introspection, IntrospectionError, LagReport, LagRow, PartHealth, SinkHealth};
use quikflow_sinks::runner::SinkRunner;
use quikflow_sinks::runner::status::{Circuit, State};
use quikflow_sinks::store::TableInfo;
use quikflow_topics::broker::{Broker, BrokerError, Positions, ResetFrom, TopicStats, TopologyFigures};
use quikflow_topics::brokers::embedded::EmbeddedBroker;
use quikflow_topics::catalogue::{SinkSpec, TopicSpec};
use quikflow_topics::clock::SharedClock;
use quikflow_topics::ids::PartitionId;
use quikflow_topics::share::{Work, note_last, stored_as};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// The parts of a running process.
pub(crate) struct Inside {
    pub(crate) plan: Arc<Plan>,
    pub(crate) broker: Arc<dyn Broker>,
    /// The broker again, where it is the embedded log.
    pub(crate) log: Option<Arc<EmbeddedBroker>>,
    /// None where it does not run.
    pub(crate) engine: Option<Supervisor>,
    pub(crate) sinks: Option<SinkRunner>,
    pub(crate) clock: SharedClock,
    pub(crate) metrics: PrometheusHandle,
    pub(crate) ingest: Option<SocketAddr>,
    pub(crate) query: Option<SocketAddr>,
}

fn failed(error: impl ToString) -> IntrospectionError {
    IntrospectionError::Failed(error.to_string())
}

fn rows_of(group: &str, topic: &str, at: Option<&Positions>, stats: &TopicStats, rows: &mut Vec<LagRow>) {
    for (index, end) in stats.end.iter().copied().enumerate() {
        let partition = u32::try_from(index).unwrap_or(u32::MAX);
        let start = stats.start.get(index).copied().unwrap_or(0);
        let position = at.and_then(|at| at.get(&PartitionId(partition))).map_or(start, |offset| offset.0.max(start));
        let lag = end.saturating_sub(position);
        rows.push(LagRow { group: group.to_owned(), topic: topic.to_owned(), partition, position, end, lag });
    }
}

impl Inside {
    /// The engine's figures, where it runs.
    pub(crate) fn engine_status(&self) -> Option<EngineStatus> {
        self.engine.as_ref().and_then(Supervisor::status)
    }

    /// The topologies' figures over all processes: the engine's own where it has all shares, else those that
    /// were committed.
    fn figures(&self, status: Option<&EngineStatus>) -> Result<BTreeMap<String, TopologyFigures>, BrokerError> {
        let here = self.engine.as_ref().map_or(0, |engine| engine.shares().0.len());
        let shares = self.broker.shares(Work::Pipelines);
        if shares <= 1 || here == shares as usize {
            let of = |t: &TopologyStatus| t.books.figures(t.watermark, t.state_bytes);
            return Ok(status.iter().flat_map(|s| &s.topologies).map(|t| (t.name.clone(), of(t))).collect());
        }
        self.broker.topology_figures()
    }

    /// Why a part has ended by itself, if one has.
    pub(crate) fn failure(&self) -> Option<String> {
        self.engine.as_ref().and_then(Supervisor::failure).map(|error| error.to_string())
    }

    /// The topologies' positions: the engine's, or those committed where it does not run.
    fn positions(
        &self,
        topology: &TopologyPlan,
        status: Option<&EngineStatus>,
    ) -> Result<BTreeMap<String, Positions>, BrokerError> {
        let found = status.and_then(|s| s.topologies.iter().find(|t| t.name == topology.name));
        if let Some(found) = found.filter(|_| self.broker.shares(Work::Pipelines) <= 1) {
            return Ok(found.positions.clone());
        }
        // Other processes may have shares of it.
        let mut positions: BTreeMap<String, Positions> = BTreeMap::new();
        for ((topic, partition), offset) in self.broker.group_offsets(&format!("topology:{}", topology.name))? {
            positions.entry(topic).or_default().insert(partition, offset);
        }
        for (topic, here) in found.iter().flat_map(|found| &found.positions) {
            positions.entry(topic.clone()).or_default().extend(here);
        }
        let whole = topology.sources.iter().filter(|source| topology.divisible && source.whole.is_some());
        for topic in whole.map(|source| &source.topic) {
            positions.insert(topic.name.clone(), self.read_by_all(&topology.name, topic)?);
        }
        Ok(positions)
    }

    /// How far the last of all shares has come in a table that each of them reads whole.
    fn read_by_all(&self, topology: &str, topic: &TopicSpec) -> Result<Positions, BrokerError> {
        let mut all = Positions::new();
        for share in 0..self.broker.shares(Work::Pipelines) {
            let offsets = self.broker.group_offsets(&stored_as(&format!("topology:{topology}"), share))?;
            for partition in (0..topic.partitions).map(PartitionId) {
                let next = offsets.get(&(topic.name.clone(), partition)).copied().unwrap_or_default();
                note_last(&mut all, partition, next);
            }
        }
        Ok(all)
    }

    /// One reading of everything: sinks after the engine, so that what the engine wrote in between
    /// shows as lag.
    fn read_lag(&self) -> Result<LagReport, BrokerError> {
        let status = self.engine_status();
        let caught_up = self.engine.is_none() || status.as_ref().is_some_and(|s| s.caught_up && s.in_flight == 0 && !s.holding);
        let mut rows = Vec::new();
        for topology in &self.plan.topologies {
            let positions = self.positions(topology, status.as_ref())?;
            let mut names: Vec<&str> = topology.sources.iter().map(|s| s.topic.name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            for topic in names {
                let stats = self.broker.stats(topic)?;
                rows_of(&format!("topology:{}", topology.name), topic, positions.get(topic), &stats, &mut rows);
            }
        }
        let mut sinks = Vec::new();
        for sink in self.sinks.iter().flat_map(SinkRunner::status) {
            let stats = self.broker.stats(&sink.topic)?;
            rows_of(&format!("sink:{}", sink.sink), &sink.topic, Some(&sink.positions), &stats, &mut rows);
            sinks.push(SinkHealth { sink: sink.sink, store: sink.store, state: sink.state, circuit: sink.circuit });
        }
        if self.broker.shares(Work::Sinks) > 1 {
            let missing = |spec: &&Arc<SinkSpec>| !sinks.iter().any(|sink| sink.sink == spec.name);
            let others: Vec<&Arc<SinkSpec>> = self.plan.catalogue.sinks.iter().filter(missing).collect();
            sinks.extend(self.sinks_of_others(&others, &mut rows)?);
        }
        let settled = caught_up && rows.iter().all(|row| row.lag == 0);
        let figures = self.figures(status.as_ref())?.into_iter();
        let late = figures.filter(|(_, f)| f.late > 0).map(|(name, f)| (name, f.late)).collect();
        Ok(LagReport { rows, settled, late, sinks })
    }

    /// Sinks that other processes run, as far as they said that they have come.
    fn sinks_of_others(&self, others: &[&Arc<SinkSpec>], rows: &mut Vec<LagRow>) -> Result<Vec<SinkHealth>, BrokerError> {
        let mut sinks = Vec::new();
        for spec in others {
            let group = format!("sink:{}", spec.name);
            let offsets = self.broker.group_offsets(&group)?.into_iter().filter(|((topic, _), _)| *topic == spec.from);
            let positions: Positions = offsets.map(|((_, partition), offset)| (partition, offset)).collect();
            rows_of(&group, &spec.from, Some(&positions), &self.broker.stats(&spec.from)?, rows);
            let (sink, store) = (spec.name.clone(), spec.store.clone());
            sinks.push(SinkHealth { sink, store, state: State::Elsewhere, circuit: Circuit::Closed });
        }
        Ok(sinks)
    }

    /// Everything for `/v1/status`.
    ///
    /// # Errors
    /// Storage errors.
    pub(crate) fn status(&self) -> Result<Value, BrokerError> {
        let mut topics = BTreeMap::new();
        for spec in self.broker.topics() {
            topics.insert(spec.name.clone(), self.broker.stats(&spec.name)?.end.iter().sum::<u64>());
        }
        let (shares, starts) = self.engine.as_ref().map(Supervisor::shares).unwrap_or_default();
        let status = self.engine_status();
        let figures = self.figures(status.as_ref())?;
        let shown = |topology: &Arc<TopologyPlan>| {
            let of = figures.get(&topology.name).cloned().unwrap_or_default();
            json!({
                "name": topology.name, "watermark": of.watermark.map(|w| crate::commands::rfc3339(w.0)),
                "late": of.late, "dead": of.dead, "read": of.read, "state_bytes": of.state_bytes,
            })
        };
        let topologies: Vec<Value> = self.plan.topologies.iter().map(shown).collect();
        let engine = status.map(|status| {
            let unbalanced: Vec<&String> = status.topologies.iter().flat_map(|t| &t.unbalanced).collect();
            json!({
                "epoch": status.epoch, "rows": status.rows, "rows_per_second": status.rows_per_second,
                "epoch_p50_ms": status.epoch_p50.as_secs_f64() * 1e3, "epoch_p99_ms": status.epoch_p99.as_secs_f64() * 1e3,
                "shares": shares, "starts": starts,
                "in_flight": status.in_flight, "caught_up": status.caught_up, "holding": status.holding, "failure": status.failure, "unbalanced": unbalanced,
            })
        });
        let sinks = self.sinks.as_ref().map(SinkRunner::status);
        Ok(
            json!({ "topics": topics, "topologies": topologies, "lost": self.broker.lost(), "engine": engine, "sinks": sinks, "addresses": self.addresses() }),
        )
    }

    /// Where the process listens.
    pub(crate) fn addresses(&self) -> Value {
        let url = |address: Option<SocketAddr>| address.map(|address| format!("http://{address}"));
        json!({ "ingest": url(self.ingest), "query": url(self.query) })
    }

    /// Metrics in Prometheus' text form, the figures of this moment among them.
    pub(crate) fn render_metrics(&self) -> String {
        if let Some(status) = self.engine_status() {
            metrics::gauge!("quikflow_engine_epoch").set(status.epoch.0 as f64);
            metrics::gauge!("quikflow_engine_epoch_seconds", "quantile" => "0.5").set(status.epoch_p50.as_secs_f64());
            metrics::gauge!("quikflow_engine_epoch_seconds", "quantile" => "0.99").set(status.epoch_p99.as_secs_f64());
            for topology in status.topologies {
                let label = [("topology", topology.name)];
                metrics::gauge!("quikflow_topology_lag", &label).set(topology.lag as f64);
                metrics::gauge!("quikflow_topology_late", &label).set(topology.books.late as f64);
                metrics::gauge!("quikflow_topology_dead_letters", &label).set(topology.books.dead as f64);
                metrics::gauge!("quikflow_topology_state_bytes", &label).set(topology.state_bytes as f64);
                if let Some(watermark) = topology.watermark {
                    metrics::gauge!("quikflow_topology_watermark_seconds", &label).set(watermark.0 as f64 / 1e6);
                }
            }
        }
        for sink in self.sinks.iter().flat_map(SinkRunner::status) {
            let label = [("sink", sink.sink)];
            metrics::gauge!("quikflow_sink_lag", &label).set(sink.lag as f64);
            // 0: the store is called; 1: only now and then; 2: such a try is under way; 3: the sink has ended.
            let breaker = if sink.state.is_stopped() { 3.0 } else { f64::from(sink.circuit as u8) };
            metrics::gauge!("quikflow_sink_breaker", &label).set(breaker);
            metrics::gauge!("quikflow_sink_batch_rows", &label).set(sink.batch_rows as f64);
        }
        for (topic, records) in self.broker.lost() {
            metrics::gauge!("quikflow_lost_to_retention", "topic" => topic).set(records as f64);
        }
        if let Some(log) = &self.log {
            metrics::gauge!("quikflow_log_bytes").set(log.stored_bytes() as f64);
            metrics::gauge!("quikflow_log_wal_bytes").set(log.wal_bytes() as f64);
        }
        self.metrics.render()
    }

    /// Whether the process can do its work, and what it waits for.
    ///
    /// # Errors
    /// What is not ready, in words.
    pub(crate) fn ready(&self) -> Result<(), String> {
        let waiting: Vec<String> =
            self.health().into_iter().filter(|part| !part.ready).map(|part| format!("{}: {}", part.part, part.detail)).collect();
        if waiting.is_empty() { Ok(()) } else { Err(waiting.join("; ")) }
    }

    fn reset_blocking(&self, name: &str, from: ResetFrom) -> Result<Value, IntrospectionError> {
        let topologies = reset_with(&self.plan, name);
        if topologies.is_empty() {
            let known = self.plan.topologies.iter().map(|t| t.name.clone()).collect();
            return Err(IntrospectionError::UnknownTopology { name: name.to_owned(), known });
        }
        // Nobody sees a half-reset engine, and two resets wait for each other.
        let forget = || topologies.iter().try_for_each(|t| self.broker.reset_topology(&t.name, &outputs_of(t), from));
        let reset = match &self.engine {
            Some(engine) => engine.pause(forget).map_err(failed)?,
            None => forget(),
        };
        reset.map_err(failed)?;
        let outputs: Vec<String> = topologies.iter().rev().flat_map(|t| outputs_of(t)).collect();
        let readers: Vec<&str> =
            topologies.iter().rev().filter(|t| !is_of(&self.plan, name, t)).map(|t| t.name.as_str()).collect();
        Ok(
            json!({ "topology": name, "readers": readers, "reset": outputs, "from": if from == ResetFrom::Earliest { "earliest" } else { "latest" } }),
        )
    }
}

/// The topologies that a reset of one means: all that read what it writes, and it last. What they
/// made of the rows thrown away is thrown away with them, or the rows made anew would count twice.
/// Readers come before those they read, so a reset that was cut off leaves nothing counted twice.
pub(crate) fn reset_with<'p>(plan: &'p Plan, name: &str) -> Vec<&'p Arc<TopologyPlan>> {
    let mut thrown_away: Vec<String> = Vec::new();
    let mut topologies: Vec<&Arc<TopologyPlan>> = Vec::new();
    // Writers come before readers.
    for topology in &plan.topologies {
        if is_of(plan, name, topology) || topology.sources.iter().any(|source| thrown_away.contains(&source.topic.name)) {
            thrown_away.extend(outputs_of(topology));
            topologies.push(topology);
        }
    }
    topologies.reverse();
    topologies
}

/// Whether it is the topology of this name, or the half of it that combines.
fn is_of(plan: &Plan, name: &str, topology: &TopologyPlan) -> bool {
    let reads = |t: &TopologyPlan, topic: &TopicSpec| t.name == name && t.sources.iter().any(|s| s.topic.name == topic.name);
    topology.name == name
        || matches!(&topology.half, Some(Half::Combines(topic)) if plan.topologies.iter().any(|t| reads(t, topic)))
}

/// The topics that a topology writes, late ones among them.
pub(crate) fn outputs_of(topology: &TopologyPlan) -> Vec<String> {
    let mut names: Vec<String> =
        topology.outputs.iter().map(|o| &o.topic).chain(topology.late.iter().flatten()).map(|topic| topic.name.clone()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The trait is the query side's, and `reset` has to outlive the request that asks for it.
pub(crate) struct Asked(pub(crate) Arc<Inside>);

#[async_trait::async_trait]
impl Introspection for Asked {
    fn lag(&self) -> Result<LagReport, IntrospectionError> {
        self.0.read_lag().map_err(failed)
    }

    fn topologies(&self) -> Result<Vec<Value>, IntrospectionError> {
        let status = self.0.engine_status();
        let figures = self.0.figures(status.as_ref()).map_err(failed)?;
        let of = |topology: &Arc<TopologyPlan>| {
            let running = status.as_ref().and_then(|s| s.topologies.iter().find(|t| t.name == topology.name));
            json!({
                "name": topology.name,
                "doc": topology.doc,
                "from": topology.sources.iter().map(|s| &s.topic.name).collect::<Vec<_>>(),
                "to": topology.outputs.iter().map(|o| &o.topic.name).collect::<Vec<_>>(),
                "late": topology.late.iter().flatten().map(|topic| &topic.name).collect::<Vec<_>>(),
                "lag": running.map(|r| r.lag),
                "watermark": figures.get(&topology.name).and_then(|f| f.watermark).map(|w| crate::commands::rfc3339(w.0)),
                "state_bytes": figures.get(&topology.name).map(|f| f.state_bytes),
                "late_records": figures.get(&topology.name).map(|f| f.late),
                "dead_letters": figures.get(&topology.name).map(|f| f.dead),
                "books": running.map(|r| &r.books),
                "unbalanced": running.map(|r| &r.unbalanced),
            })
        };
        Ok(self.0.plan.topologies.iter().map(of).collect())
    }

    fn freshness(&self, table: &TableInfo) -> Freshness {
        let writer = self.0.plan.topologies.iter().find(|t| t.outputs.iter().any(|o| o.topic.name == table.topic));
        let status = self.0.engine_status();
        // Where it cannot be asked for now, none is told.
        let figures = self.0.figures(status.as_ref()).unwrap_or_default();
        let watermark = writer.and_then(|writer| figures.get(&writer.name)?.watermark);
        Freshness { watermark, closed: None }
    }

    fn health(&self) -> Vec<PartHealth> {
        self.0.health()
    }

    fn metrics(&self) -> String {
        self.0.render_metrics()
    }

    async fn reset(&self, topology: &str, from: ResetFrom) -> Result<Value, IntrospectionError> {
        let (inside, name) = (self.0.clone(), topology.to_owned());
        tokio::task::spawn_blocking(move || inside.reset_blocking(&name, from)).await.map_err(failed)?
    }
}

impl Inside {
    fn health(&self) -> Vec<PartHealth> {
        let mut parts = Vec::new();
        if let Some(engine) = &self.engine {
            let failure = engine.failure().map(|error| error.to_string());
            let detail = failure.or_else(|| engine.waiting()).unwrap_or_default();
            parts.push(PartHealth { part: "engine".into(), ready: detail.is_empty(), detail });
        }
        for sink in self.sinks.iter().flat_map(SinkRunner::status) {
            let detail = match &sink.state {
                State::Running | State::Elsewhere => String::new(),
                State::BackingOff { error, .. } => error.clone(),
                State::Stopped { error } => error.clone().unwrap_or_else(|| "stopped".into()),
            };
            parts.push(PartHealth { part: format!("sink {}", sink.sink), ready: detail.is_empty(), detail });
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quikflow_pipelines::plan::load;
    use quikflow_topics::diagnostics::SourceFile;

    #[test]
    fn a_reset_throws_both_halves_of_a_topology_away_and_what_lies_between() {
        let file = SourceFile::new("topologies.toml", include_str!("../../topologies.toml").to_owned());
        let plan = load(&file).plan.unwrap_or_else(|| panic!("the shipped topologies have mistakes")).for_shares(4);
        let with = |name: &str| reset_with(&plan, name).into_iter().map(|t| t.name.clone()).collect::<Vec<_>>();
        assert_eq!(with("features"), ["features", "features.combine"]);
        assert_eq!(with("channel-activity"), ["channel-activity"]);
        let combine = plan.topologies.iter().find(|t| t.name == "features.combine").map(|t| outputs_of(t));
        assert_eq!(combine.unwrap_or_default(), ["late.features", "quikflow.shuffle.features"]);
    }
}
