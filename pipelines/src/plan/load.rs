//! From a file's text to a plan, with every mistake on the way.

use super::keys::Keys;
use super::wire::{Known, agree, wire};
use super::{Plan, sinks};
use crate::topology::cases::TestCase;
use crate::topology::{self, TopologyDecl};
use quikflow_topics::catalogue::{self, Catalogue, TopicKind, TopicSpec};
use quikflow_topics::declaration;
use quikflow_topics::diagnostics::{Diagnostic, Severity, SourceFile};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The tables at the top of a file.
pub const SECTIONS: [&str; 5] = ["topics", "events", "topology", "sink", "test"];

/// What came of a file.
pub struct Loaded {
    /// What runs; none when the file has an error.
    pub plan: Option<Plan>,
    /// The `[[test]]` blocks that could be read.
    pub tests: Vec<TestCase>,
    /// Errors and warnings, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads, types and connects all of a file. Mistakes that do not hang together are all reported.
pub fn load(file: &Arc<SourceFile>) -> Loaded {
    let table = match declaration::parse(file) {
        Ok(table) => table,
        Err(diagnostics) => return Loaded { plan: None, tests: Vec::new(), diagnostics },
    };
    let mut diagnostics = table.unknown_fields("the file", &SECTIONS);
    let (catalogue, mut mistakes) = catalogue::parse::parse(&table);
    diagnostics.append(&mut mistakes);
    let (decls, broken, mut mistakes) = topology::parse(&table);
    diagnostics.append(&mut mistakes);

    let mut loader = Loader { catalogue, keys: BTreeMap::new(), unknowable: BTreeSet::new(), diagnostics };
    loader.unknowable.extend(broken.iter().flat_map(|broken| broken.topics.iter().cloned()));
    let declared: BTreeSet<String> = loader.catalogue.topics.keys().cloned().collect();
    loader.unknowable.retain(|topic| loader.catalogue.events_of(topic).next().is_none());
    let mut topologies = Vec::new();
    for decl in loader.order(&decls) {
        if let Some(plan) = loader.topology(decl) {
            topologies.push(Arc::new(plan));
        }
    }
    let mut late: Vec<Arc<TopicSpec>> = topologies.iter().flat_map(|t| t.late.iter().flatten().cloned()).collect();
    late.retain(|topic| !declared.contains(&topic.name));
    loader.catalogue.topics.extend(late.into_iter().map(|topic| (topic.name.clone(), topic)));

    let mistakes = sinks::check(&table, &loader.catalogue, &loader.keys, &loader.unknowable);
    loader.diagnostics.extend(mistakes);
    let names: Vec<&str> =
        decls.iter().map(|decl| decl.name.text).chain(broken.iter().filter_map(|broken| broken.name.as_deref())).collect();
    let (tests, mistakes) = topology::cases::parse(&table, &loader.catalogue, &names);
    loader.diagnostics.extend(mistakes);
    loader.unused(&table, &decls, &broken);

    let Loader { catalogue, mut diagnostics, .. } = loader;
    diagnostics.sort_by_key(|diagnostic| diagnostic.span.start);
    let good = diagnostics.iter().all(|diagnostic| diagnostic.severity == Severity::Warning);
    Loaded { plan: good.then_some(Plan { catalogue, topologies }), tests, diagnostics }
}

struct Loader {
    catalogue: Catalogue,
    /// Of topics that topologies write: what determines the key.
    keys: BTreeMap<String, Keys>,
    /// Topics whose columns are not known, since their writer has a mistake: nothing is said of their readers.
    unknowable: BTreeSet<String>,
    diagnostics: Vec<Diagnostic>,
}

impl Loader {
    /// Writers before readers.
    fn order<'d, 'a>(&mut self, decls: &'d [TopologyDecl<'a>]) -> Vec<&'d TopologyDecl<'a>> {
        let reads = |decl: &TopologyDecl<'a>| {
            let tables = decl.way.tables();
            decl.from.iter().copied().chain(tables).map(|topic| (topic.text.to_owned(), topic.node.clone())).collect::<Vec<_>>()
        };
        let writes: Vec<BTreeSet<&str>> = decls.iter().map(|decl| decl.way.writes().iter().map(|to| to.text).collect()).collect();
        let mut ordered: Vec<usize> = Vec::new();
        let mut left: Vec<usize> = (0..decls.len()).collect();
        while !left.is_empty() {
            let waits = |index: &usize| {
                reads(&decls[*index]).iter().any(|(topic, _)| left.iter().any(|other| writes[*other].contains(topic.as_str())))
            };
            let (blocked, free): (Vec<usize>, Vec<usize>) = left.iter().copied().partition(|index| waits(index));
            if free.is_empty() {
                self.cycle(decls, &blocked, &writes, reads);
                break;
            }
            ordered.extend(free);
            left = blocked;
        }
        ordered.into_iter().map(|index| &decls[index]).collect()
    }

    /// Follows the topics from one blocked topology until one comes twice.
    fn cycle<'a>(
        &mut self,
        decls: &[TopologyDecl<'a>],
        blocked: &[usize],
        writes: &[BTreeSet<&str>],
        reads: impl Fn(&TopologyDecl<'a>) -> Vec<(String, declaration::Node)>,
    ) {
        let writer = |topic: &str| blocked.iter().copied().find(|index| writes[*index].contains(topic));
        let mut path: Vec<(usize, String, declaration::Node)> = Vec::new();
        let Some(mut at) = blocked.first().copied() else { return };
        loop {
            if let Some(start) = path.iter().position(|(index, _, _)| *index == at) {
                path.drain(..start);
                break;
            }
            let next = reads(&decls[at]).into_iter().find_map(|(topic, node)| Some((writer(&topic)?, topic, node)));
            let Some((next, topic, node)) = next else { break };
            path.push((at, topic, node));
            at = next;
        }
        let Some((index, topic, node)) = path.first() else { return };
        let mut around: Vec<&str> = path.iter().rev().map(|(_, topic, _)| topic.as_str()).collect();
        around.insert(0, topic.as_str());
        self.diagnostics.push(
            node.error(format!(
                "topology `{}` reads what it writes, by way of others: {}",
                decls[*index].name.text,
                around.join(" → ")
            ))
            .help("records would go round for ever: write one of these to another topic"),
        );
        for index in blocked {
            self.unknowable.extend(writes[*index].iter().map(|topic| (*topic).to_owned()));
        }
    }

    fn topology(&mut self, decl: &TopologyDecl<'_>) -> Option<super::TopologyPlan> {
        let reads: Vec<&str> = decl.from.iter().map(|from| from.text).chain(decl.way.tables().iter().map(|t| t.text)).collect();
        let known = Known { catalogue: &self.catalogue, keys: &self.keys };
        let wired = match reads.iter().any(|topic| self.unknowable.contains(*topic)) {
            true => Err(Vec::new()),
            false => wire(decl, &known),
        };
        let wired = match wired {
            Ok(wired) => wired,
            Err(mistakes) => {
                self.diagnostics.extend(mistakes);
                let writes = decl.way.writes();
                self.unknowable.extend(writes.iter().map(|to| to.text.to_owned()));
                return None;
            }
        };
        let mut plan = wired.plan;
        for (topic, keys, place) in wired.written {
            let keys = match self.keys.get(&topic.name) {
                Some(before) => before.meet(&keys),
                None => keys,
            };
            if let Some(before) = self.catalogue.topics.get(&topic.name).filter(|before| !before.fields.is_empty())
                && let Err(message) = agree(before, &topic)
            {
                self.diagnostics.push(Diagnostic { message, ..place }.help("all writers of a topic write the same columns"));
                continue;
            }
            self.keys.insert(topic.name.clone(), keys);
            self.catalogue
                .topics
                .entry(topic.name.clone())
                .and_modify(|spec| {
                    if spec.fields.is_empty() {
                        *spec = topic.clone();
                    }
                })
                .or_insert(topic);
        }
        // several writers share one spec
        for output in &mut plan.outputs {
            if let Some(spec) = self.catalogue.topics.get(&output.topic.name) {
                output.topic = spec.clone();
            }
        }
        Some(plan)
    }

    /// Warns of events that no topology and no sink reads, and of declared topics without anything.
    fn unused(&mut self, table: &declaration::Table, decls: &[TopologyDecl<'_>], broken: &[topology::Broken]) {
        let mut read: BTreeSet<String> =
            decls.iter().flat_map(|decl| decl.from.iter().map(|from| from.text.to_owned())).collect();
        read.extend(decls.iter().flat_map(|decl| decl.way.tables()).map(|topic| topic.text.to_owned()));
        read.extend(broken.iter().flat_map(|broken| broken.topics.iter().cloned()));
        read.extend(self.catalogue.sinks.iter().map(|sink| sink.from.clone()));
        let span = |section: &str, name: &str| {
            table.get(section).and_then(|node| node.table().ok()).map_or(0..0, |entries| entries.name_span(name))
        };
        for event in self.catalogue.events.values().filter(|event| !event.topic.is_empty() && !read.contains(&event.topic)) {
            let message = format!("event `{}` is not used: no topology and no sink reads `{}`", event.name, event.topic);
            let warning = Diagnostic::warning(&table.file, span("events", &event.name), message);
            self.diagnostics.push(warning.help("read it, or take it away"));
        }
        for topic in self.catalogue.topics.values().filter(|topic| topic.kind == TopicKind::Rows && topic.fields.is_empty()) {
            if !self.unknowable.contains(&topic.name) {
                let message = format!("topic `{}` is not used: no event goes there, and no topology writes it", topic.name);
                let warning = Diagnostic::warning(&table.file, span("topics", &topic.name), message);
                self.diagnostics.push(warning.help("write it, or take it away"));
            }
        }
    }
}
