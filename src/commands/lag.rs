//! `quikflow lag`: how far topologies and sinks are behind.

use crate::client::{Client, Side, block_on};
use crate::exit::{Ended, Failure, Outcome};
use crate::out;
use crate::settings::Settings;
use crate::table::Table;
use quikflow_topics::clock::SystemClock;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often `--wait` looks.
const EVERY: Duration = Duration::from_millis(100);

/// Shows the lag of every topology and sink; with --wait returns when all is zero and settled
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: quikflow lag --wait --timeout 60s\n\nWith --wait: exit 0 when every lag is zero and every closed window has reached its store, 1 when the time is over."
)]
pub(crate) struct Args {
    /// Wait until all is zero and every closed window has reached its store
    #[arg(long)]
    wait: bool,
    /// With --wait: for at most so long
    #[arg(long, default_value = "60s", value_parser = super::duration, value_name = "DURATION")]
    timeout: Duration,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// The running process's address [default: http://127.0.0.1:8090]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

/// Does it.
pub(crate) fn run(args: Args, settings: &Settings) -> Ended {
    block_on(async {
        let client = Client::connect(settings, args.url.as_deref(), Side::Query).await?;
        let clock = SystemClock::shared();
        let started = clock.elapsed();
        loop {
            let report = client.get("/v1/lag", &[]).await?;
            let settled = is_settled(&report);
            let over = clock.elapsed() - started >= args.timeout;
            if !args.wait || settled || over {
                if args.json {
                    out::line(report.to_string())?;
                } else {
                    out::line(render(&report))?;
                }
                if args.wait && !settled {
                    return Err(Failure::failed(format!(
                        "not settled after {}: see the lag above, and `quikflow top`",
                        quikflow_topics::units::show_duration(args.timeout)
                    )));
                }
                return Ok(Outcome::Done);
            }
            tokio::time::sleep(EVERY).await;
        }
    })
}

/// All lag is zero, and every closed window has reached its store.
pub(crate) fn is_settled(report: &Value) -> bool {
    report.get("settled").and_then(Value::as_bool).unwrap_or(false)
}

/// Lag summed over partitions: (group, topic) → (records behind, partitions behind, end).
pub(crate) fn by_follower(report: &Value) -> BTreeMap<(String, String), (u64, usize, u64)> {
    let mut sums: BTreeMap<(String, String), (u64, usize, u64)> = BTreeMap::new();
    let groups = report.get("groups").and_then(Value::as_array).into_iter().flatten();
    for row in groups.filter_map(|group| group.get("partitions")?.as_array()).flatten() {
        let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
        let number = |name: &str| row.get(name).and_then(Value::as_u64).unwrap_or(0);
        let sum = sums.entry((text("group"), text("topic"))).or_default();
        sum.0 += number("lag");
        sum.1 += usize::from(number("lag") > 0);
        sum.2 += number("end");
    }
    sums
}

/// A table of the followers, then one line that says whether all is settled.
pub(crate) fn render(report: &Value) -> String {
    let mut table = Table::new(["follower", "topic", "lag", "of", "partitions behind"]);
    for ((group, topic), (lag, behind, end)) in by_follower(report) {
        table.row([group, topic, out::thousands(lag), out::thousands(end), behind.to_string()]);
    }
    let settled = if is_settled(report) { "settled" } else { "not settled" };
    format!("{}\n{}{}{settled}", table.render(), late(report), away(report))
}

/// A line of the records that came too late, if there are any.
fn late(report: &Value) -> String {
    let counts = report.get("late").and_then(Value::as_object).into_iter().flatten();
    let counts: Vec<String> =
        counts.map(|(topology, count)| format!("{topology} {}", out::thousands(count.as_u64().unwrap_or(0)))).collect();
    if counts.is_empty() { String::new() } else { format!("came too late for their window: {}\n", counts.join(", ")) }
}

/// What sinks say whose store does not answer.
pub(crate) fn troubled(report: &Value) -> Vec<(String, String)> {
    let sinks = report.get("sinks").and_then(Value::as_array).into_iter().flatten();
    let text = |sink: &Value, name: &str| sink.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
    let state = |sink: &Value| match (text(sink, "state").as_str(), text(sink, "circuit").as_str()) {
        ("running", _) => None,
        ("stopped", _) => Some(format!("ended: {}", text(sink, "error"))),
        (_, circuit) => Some(format!("circuit {circuit}: {}", text(sink, "error"))),
    };
    sinks.filter_map(|sink| Some((text(sink, "sink"), state(sink)?))).collect()
}

fn away(report: &Value) -> String {
    troubled(report).into_iter().map(|(sink, state)| format!("sink {sink}: {state}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_summed_over_partitions() {
        let row = |partition: u32, lag: u64| serde_json::json!({ "group": "sink:x", "topic": "t", "partition": partition, "position": 5, "end": 5 + lag, "lag": lag });
        let group = serde_json::json!({ "group": "sink:x", "lag": 7, "partitions": [row(0, 0), row(1, 7)] });
        let report = serde_json::json!({ "lag": 7, "groups": [group], "settled": false });
        assert_eq!(by_follower(&report)[&("sink:x".to_owned(), "t".to_owned())], (7, 1, 17));
        assert!(render(&report).ends_with("\nnot settled"));
        let troubled = serde_json::json!({ "settled": true, "late": { "activity": 1200 }, "sinks": [
            { "sink": "a", "state": "running", "circuit": "closed" },
            { "sink": "b", "state": "backing_off", "circuit": "open", "error": "no answer" } ] });
        let text = render(&troubled);
        assert!(
            text.contains("came too late for their window: activity 1,200\nsink b: circuit open: no answer\nsettled"),
            "{text}"
        );
        assert!(is_settled(&serde_json::json!({ "settled": true })) && !is_settled(&Value::Null));
    }
}
