//! What `top` shows: one look at a running process, and the rates between two.

use crate::commands::lag;
use crate::out::thousands;
use crate::table::Table;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// One look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// When, in monotonic time.
    at: Duration,
    /// Records ever written, by topic.
    ends: BTreeMap<String, u64>,
    /// (follower, topic) → (lag, end).
    lag: BTreeMap<(String, String), (u64, u64)>,
    /// All lag is zero, and every closed window has reached its store.
    settled: bool,
    /// By topology: watermark, late, dead letters, state bytes.
    topologies: Vec<(String, String, u64, u64, u64)>,
    /// The last epoch, p50 and p99 in milliseconds: this process's.
    engine: (u64, f64, f64),
    /// Records that topologies have read, in all processes.
    read: u64,
    failure: Option<String>,
    /// What sinks say whose store does not answer.
    troubled: BTreeMap<String, String>,
}

impl Snapshot {
    /// From what `/v1/status` and `/v1/lag` say.
    pub(crate) fn of(status: &Value, report: &Value, at: Duration) -> Snapshot {
        let engine = status.get("engine").unwrap_or(&Value::Null);
        let number = |value: &Value, name: &str| value.get(name).and_then(Value::as_f64).unwrap_or(0.0);
        let topologies = status.get("topologies").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let ends = status.get("topics").and_then(Value::as_object).into_iter().flatten();
        Snapshot {
            at,
            ends: ends.filter_map(|(topic, end)| Some((topic.clone(), end.as_u64()?))).collect(),
            lag: lag::by_follower(report).into_iter().map(|(key, (lag, _, end))| (key, (lag, end))).collect(),
            settled: lag::is_settled(report),
            topologies: topologies
                .iter()
                .map(|topology| {
                    let text = |name: &str| topology.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
                    let count = |name: &str| topology.get(name).and_then(Value::as_u64).unwrap_or(0);
                    (text("name"), text("watermark"), count("late"), count("dead"), count("state_bytes"))
                })
                .collect(),
            engine: (
                engine.get("epoch").and_then(Value::as_u64).unwrap_or(0),
                number(engine, "epoch_p50_ms"),
                number(engine, "epoch_p99_ms"),
            ),
            read: topologies.iter().filter_map(|topology| topology.get("read")?.as_u64()).sum(),
            failure: engine.get("failure").and_then(Value::as_str).map(str::to_owned),
            troubled: lag::troubled(report).into_iter().map(|(sink, state)| (format!("sink:{sink}"), state)).collect(),
        }
    }

    /// The line at the top.
    pub(crate) fn headline(&self, before: Option<&Snapshot>) -> String {
        let (epoch, p50, p99) = self.engine;
        let rate = before.map_or(0.0, |before| self.rate(self.read, before.read, before));
        let state = match &self.failure {
            Some(failure) => format!("FAILED: {failure}"),
            None if self.settled => "settled".to_owned(),
            None => "working".to_owned(),
        };
        format!(
            "epoch {} · p50 {p50:.1} ms · p99 {p99:.1} ms · {} records read/s · {state}",
            thousands(epoch),
            thousands(rate as u64)
        )
    }

    /// What a counter grew by since `before`, a second.
    fn rate(&self, now: u64, start: u64, before: &Snapshot) -> f64 {
        let seconds = self.at.saturating_sub(before.at).as_secs_f64().max(0.001);
        now.saturating_sub(start) as f64 / seconds
    }

    /// Topics with the records written since `before`, a second.
    pub(crate) fn topics(&self, before: Option<&Snapshot>) -> Table {
        let mut table = Table::new(["topic", "records", "in/s"]);
        for (topic, end) in &self.ends {
            let rate = before.map_or_else(String::new, |before| {
                let start = before.ends.get(topic).copied().unwrap_or(*end);
                thousands(self.rate(*end, start, before).round() as u64)
            });
            table.row([topic.clone(), thousands(*end), rate]);
        }
        table
    }

    /// Followers with their lag, the furthest behind first.
    pub(crate) fn followers(&self) -> Table {
        let mut table = Table::new(["follower", "topic", "lag", "state"]);
        let mut rows: Vec<_> = self.lag.iter().collect();
        rows.sort_by_key(|(key, (lag, _))| (std::cmp::Reverse(*lag), (*key).clone()));
        for ((group, topic), (lag, _)) in rows {
            let state = self.troubled.get(group).cloned().unwrap_or_default();
            table.row([group.clone(), topic.clone(), thousands(*lag), state]);
        }
        table
    }

    /// Topologies with their time and state.
    pub(crate) fn topologies(&self) -> Table {
        let mut table = Table::new(["topology", "watermark", "late", "dead letters", "state KiB"]);
        for (name, watermark, late, dead, state) in &self.topologies {
            table.row([name.clone(), watermark.clone(), thousands(*late), thousands(*dead), thousands(*state / 1024)]);
        }
        table
    }

    /// All of it, plain.
    pub(crate) fn text(&self, before: Option<&Snapshot>) -> String {
        let parts = [self.topics(before).render(), self.topologies().render(), self.followers().render()];
        format!("{}\n\n{}", self.headline(before), parts.join("\n\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_what_came_between_two_looks() {
        let status = |end: u64| {
            serde_json::json!({ "topics": { "t": end }, "engine": { "epoch": 7, "epoch_p50_ms": 1.5 },
                "topologies": [{ "name": "x", "watermark": "2026-01-01T00:00:00.000Z", "late": 2, "read": 5 * end }] })
        };
        let row = serde_json::json!({ "group": "topology:x", "topic": "t", "lag": 3, "end": 10 });
        let lag = serde_json::json!({ "groups": [{ "partitions": [row] }], "settled": false });
        let one = Snapshot::of(&status(100), &lag, Duration::from_secs(1));
        let two = Snapshot::of(&status(300), &lag, Duration::from_secs(3));
        let text = two.text(Some(&one));
        assert!(text.contains("t          300   100") && text.contains("500 records read/s"), "{text}");
        assert!(text.contains("epoch 7") && text.contains("2026-01-01T00:00:00.000Z") && text.contains("topology:x"), "{text}");
    }
}
