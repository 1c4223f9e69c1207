//! Whether stored state fits a plan (R12).

use super::{Kept, TopologyPlan};
use quikflow_topics::units::show_duration;
use std::collections::BTreeMap;
use std::time::Duration;

/// The name under which the sources of a topology with state are fingerprinted.
const SOURCES: &str = "(sources)";

/// The name under which it is fingerprinted how shares read tables whole.
const TABLES: &str = "(tables)";

/// For each stateful step, by name, what its stored state depends on. Steps without state are not
/// in it, so they may come and go. `divided`: of a share of the work (R19).
pub fn fingerprint(topology: &TopologyPlan, divided: bool) -> BTreeMap<String, String> {
    let steps = topology.nodes.iter().filter_map(|node| Some((node.name.clone(), node.step.fingerprint()?)));
    let mut prints: BTreeMap<String, String> = steps.collect();
    if !prints.is_empty() {
        let sources: Vec<&str> = topology.sources.iter().map(|source| source.topic.name.as_str()).collect();
        prints.insert(SOURCES.to_owned(), sources.join(", "));
        let whole = topology.sources.iter().filter_map(|source| Some((&source.topic.name, source.whole.as_ref()?)));
        let tables: Vec<String> = whole
            .map(|(topic, whole)| match &whole.kept {
                Some(Kept { column, partitions }) => {
                    format!("of {topic} the rows whose {column} lies in a share of {partitions} partitions")
                }
                None => format!("all of {topic}"),
            })
            .collect();
        if divided && !tables.is_empty() {
            prints.insert(TABLES.to_owned(), tables.join(", "));
        }
    }
    prints
}

/// A fingerprint for people: its lengths of time, which are stored in microseconds, as one writes
/// them. Numbers in the texts of expressions are left alone.
fn readable(print: &str) -> String {
    const BEFORE_A_TIME: [&str; 6] = ["tumbling", "offset", "grace", "within", "in", "history"];
    let mut depth = 0;
    let mut last = "";
    let words = print.split(' ').map(|word| {
        let outside = depth == 0;
        depth += word.matches('[').count() as i64 - word.matches(']').count() as i64;
        let micros = word.parse::<i64>().ok().filter(|_| outside && BEFORE_A_TIME.contains(&last));
        last = word;
        match micros {
            Some(micros) if micros < 0 => format!("-{}", show_duration(Duration::from_micros(micros.unsigned_abs()))),
            Some(micros) => show_duration(Duration::from_micros(micros.unsigned_abs())),
            None => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Whether state stored under `stored` may be used by `topology`.
///
/// # Errors
/// One message for each step that differs; each names the remedy.
pub fn compatible(topology: &TopologyPlan, divided: bool, stored: &BTreeMap<String, String>) -> Result<(), Vec<String>> {
    let current = fingerprint(topology, divided);
    let remedy = format!("run `quikflow reset --topology {}` to rebuild its state and output", topology.name);
    let of = |step: &str| match step {
        SOURCES => format!("the sources of topology `{}`", topology.name),
        TABLES => format!("what each share of the work holds of the tables of topology `{}`", topology.name),
        step => format!("step `{step}` of topology `{}`", topology.name),
    };
    let mut mistakes = Vec::new();
    for (step, before) in stored {
        match current.get(step) {
            Some(now) if now == before => {}
            Some(now) => {
                mistakes.push(format!("{} changed from `{}` to `{}`; {remedy}", of(step), readable(before), readable(now)));
            }
            None => mistakes.push(format!("{} is gone, and its state is still there; {remedy}", of(step))),
        }
    }
    for step in current.keys().filter(|step| !stored.is_empty() && !stored.contains_key(*step)) {
        mistakes.push(format!("{} is new, and has not seen the records before; {remedy}", of(step)));
    }
    if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
}
