//! Recomputes topologies' accounts from the log (R20): what they read, what was late, what died.

use super::EngineError;
use super::books::{Begun, TopologyBooks, keyed_nodes};
use super::graph::Graph;
use super::recover::meta;
use super::source::group;
use crate::plan::{Plan, TopologyPlan};
use quikflow_topics::broker::{Broker, Positions, SlicePart, TopologyState};
use quikflow_topics::catalogue::Cleanup;
use quikflow_topics::dead_letter::{DeadLetter, DeadLetterFilter};
use quikflow_topics::ids::{Offset, PartitionId};
use std::collections::{BTreeMap, BTreeSet};

/// How one topology's accounts stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// The topology.
    pub topology: String,
    /// Records read, by its books.
    pub read: u64,
    /// Rows written to topics.
    pub written: u64,
    /// Records whose fate is open.
    pub in_flight: u64,
    /// Records written to late topics.
    pub late: u64,
    /// Dead letters.
    pub dead: u64,
    /// What could not be compared, and why.
    pub notes: Vec<String>,
    /// What is wrong; empty when nothing is.
    pub findings: Vec<String>,
}

/// Offsets of a consumer group.
type Committed = BTreeMap<(String, PartitionId), Offset>;

/// Compares the books of every topology that has run with the log. The log stands still: it is
/// opened for reading only, and no process writes it.
///
/// # Errors
/// A log that cannot be read.
pub fn verify(plan: &Plan, broker: &dyn Broker) -> Result<Vec<Account>, EngineError> {
    let keyed: Vec<Vec<bool>> = plan.topologies.iter().map(|topology| keyed_nodes(topology)).collect();
    let graph = Graph::new(plan, &keyed);
    let mut parts = Parts { broker, topics: BTreeMap::new() };
    let mut accounts = Vec::new();
    for name in broker.groups()? {
        let Some(name) = name.strip_prefix("topology:") else { continue };
        let (state, committed) = (broker.topology_state(name)?, broker.group_offsets(&group(name))?);
        let mut account = Account { topology: name.to_owned(), ..Account::default() };
        if let Some(books) = books(&state, &mut account) {
            account.findings.extend(books.check_steps());
            match graph.topologies.iter().find(|topology| topology.plan.name == name) {
                Some(topology) if books.same_steps(&TopologyBooks::new(&topology.plan)) => {
                    account.findings = books.check(topology);
                    against_the_log(&topology.plan, &books, &committed, &mut parts, &mut account)?;
                }
                Some(_) => account.notes.push("its steps were changed since it ran: not compared with the log".to_owned()),
                None => account.notes.push("it is not declared any more: not compared with the log".to_owned()),
            }
        }
        beyond_the_end(&committed, broker, &mut account)?;
        accounts.push(account);
    }
    Ok(accounts)
}

fn books(state: &TopologyState, account: &mut Account) -> Option<TopologyBooks> {
    let Some(bytes) = state.meta.get(meta::BOOKS) else {
        account.notes.push("it has no books yet".to_owned());
        return None;
    };
    match serde_json::from_slice::<TopologyBooks>(bytes) {
        Ok(books) => {
            account.read = books.sources.iter().sum();
            account.written = books.outputs.iter().sum();
            account.in_flight = books.steps.iter().map(|step| step.in_flight).sum();
            (account.late, account.dead) = (books.late, books.dead);
            Some(books)
        }
        Err(error) => {
            account.findings.push(format!("its books cannot be read: {error}"));
            None
        }
    }
}

fn beyond_the_end(committed: &Committed, broker: &dyn Broker, account: &mut Account) -> Result<(), EngineError> {
    for ((topic, partition), offset) in committed {
        let end = broker.stats(topic)?.end.get(partition.0 as usize).copied().unwrap_or(0);
        if offset.0 > end {
            account.findings.push(format!("it has committed offset {offset} of {topic}/{partition}, which ends at {end}"));
        }
    }
    Ok(())
}

fn against_the_log(
    plan: &TopologyPlan,
    books: &TopologyBooks,
    committed: &Committed,
    parts: &mut Parts<'_>,
    account: &mut Account,
) -> Result<(), EngineError> {
    let begun = books.begun.clone().unwrap_or_default();
    for (source, read) in plan.sources.iter().zip(&books.sources) {
        let topic = &source.topic.name;
        let compacted = source.topic.cleanup == Cleanup::Compact;
        let found = parts.between(topic, compacted, begun.sources.get(topic), committed)?;
        if found.exact && *read != found.kept {
            account
                .findings
                .push(format!("{} records of {topic} lie before its offsets, and it accounts for {read}", found.kept));
        } else if !(found.kept..=found.span).contains(read) {
            account.findings.push(format!(
                "from {} to {} records of {topic} can lie before its offsets, and it accounts for {read}",
                found.kept, found.span
            ));
        } else if !found.exact {
            let why = if compacted { "is compacted" } else { "was trimmed" };
            account.notes.push(format!(
                "{topic} {why}: of {read} records read {} are kept, at most {} can have been",
                found.kept, found.span
            ));
        }
    }
    late(plan, books, &begun, parts.broker, account)?;
    dead(books, &begun, committed, parts.broker, account)
}

fn late(
    plan: &TopologyPlan,
    books: &TopologyBooks,
    begun: &Begun,
    broker: &dyn Broker,
    account: &mut Account,
) -> Result<(), EngineError> {
    let mut written = 0;
    for topic in plan.late.iter().flatten() {
        let before = begun.late.get(&topic.name).map_or(0, |ends| ends.iter().sum());
        let end: u64 = broker.stats(&topic.name)?.end.iter().sum();
        written += end.saturating_sub(before);
    }
    let steps: u64 = books.steps.iter().flat_map(|step| &step.inputs).map(|counts| counts.late).sum();
    if written != books.late {
        account.findings.push(format!("{written} records are in its late topics, and it accounts for {}", books.late));
    }
    // Several rows of one record are one late record.
    if books.late > steps || (steps > 0 && books.late == 0) {
        account.findings.push(format!("its steps found {steps} rows late, and it wrote {} records to late topics", books.late));
    }
    Ok(())
}

fn dead(
    books: &TopologyBooks,
    begun: &Begun,
    committed: &Committed,
    broker: &dyn Broker,
    account: &mut Account,
) -> Result<(), EngineError> {
    let counted = |letter: &DeadLetter| {
        letter.origin.as_ref().is_some_and(|origin| {
            let first = begun.sources.get(&origin.topic).and_then(|at| at.get(origin.partition.0 as usize)).copied().unwrap_or(0);
            let next = committed.get(&(origin.topic.clone(), origin.partition)).map_or(0, |offset| offset.0);
            (first..next).contains(&origin.offset.0)
        })
    };
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    // Steps that have letters of any time: one of before may have been replayed and failed again.
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut filter = DeadLetterFilter { topology: Some(account.topology.clone()), limit: 1_000, ..DeadLetterFilter::default() };
    loop {
        let page = broker.dead_letters(&filter)?;
        known.extend(page.iter().filter_map(|(_, letter)| letter.step.clone()));
        for (_, letter) in page.iter().filter(|(_, letter)| counted(letter)) {
            *found.entry(letter.step.clone().unwrap_or_default()).or_default() += 1;
        }
        match page.last() {
            Some((seq, _)) if page.len() == filter.limit => filter.before_seq = Some(*seq),
            _ => break,
        }
    }
    let total: u64 = found.values().sum();
    if total < books.dead {
        account.findings.push(format!("it has {total} dead letters, and accounts for {}", books.dead));
    } else if total > books.dead {
        account.notes.push(format!("{} dead letters are of a time before it was reset", total - books.dead));
    } else {
        for step in &books.steps {
            // Several rows of one record are one dead letter.
            let rows: u64 = step.inputs.iter().map(|counts| counts.dead).sum();
            let letters = found.get(&step.name).copied().unwrap_or(0);
            if letters > rows || (rows > 0 && !known.contains(&step.name)) {
                account.findings.push(format!("step `{}` let {rows} rows die, and has {letters} dead letters", step.name));
            }
        }
    }
    Ok(())
}

/// How many records lie between two places of a topic.
struct Between {
    /// Those that are kept.
    kept: u64,
    /// As many as there can have been.
    span: u64,
    /// Nothing of it was trimmed or compacted.
    exact: bool,
}

/// The runs of records that the log holds, by topic; each topic is walked once.
struct Parts<'b> {
    broker: &'b dyn Broker,
    topics: BTreeMap<String, Vec<SlicePart>>,
}

impl Parts<'_> {
    fn between(
        &mut self,
        topic: &str,
        compacted: bool,
        begun: Option<&Vec<u64>>,
        committed: &Committed,
    ) -> Result<Between, EngineError> {
        if !self.topics.contains_key(topic) {
            let mut reader = self.broker.reader(topic, &Positions::new())?;
            let mut parts = Vec::new();
            while let Some(slice) = reader.poll(usize::MAX)? {
                parts.extend_from_slice(slice.parts());
            }
            self.topics.insert(topic.to_owned(), parts);
        }
        let first = |partition: PartitionId| begun.and_then(|at| at.get(partition.0 as usize)).copied().unwrap_or(0);
        let mine = || committed.iter().filter(|((of, _), _)| of == topic).map(|((_, partition), next)| (*partition, next.0));
        let next: BTreeMap<PartitionId, u64> = mine().collect();
        let span = mine().map(|(partition, next)| next.saturating_sub(first(partition))).sum();
        let mut kept = 0;
        for part in &self.topics[topic] {
            let from = part.first.0.max(first(part.partition));
            let to = part.next.0.min(next.get(&part.partition).copied().unwrap_or(0));
            let all = from == part.first.0 && to == part.next.0;
            match (all, compacted) {
                (true, _) => kept += u64::from(part.rows),
                (false, false) => kept += to.saturating_sub(from),
                // Which of its offsets are left is not known without decoding: a lower bound.
                (false, true) => {}
            }
        }
        Ok(Between { kept, span, exact: kept == span })
    }
}
