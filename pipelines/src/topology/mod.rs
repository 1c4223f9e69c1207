//! The parser of `[[topology]]` and `[[test]]`: what is written, before it is typed.
//!
//! Kinds of steps are known through the registry [`crate::steps::KINDS`] alone.

pub mod cases;

use crate::step::StepKind;
use crate::steps::KINDS;
use quikflow_topics::declaration::{Node, Table};
use quikflow_topics::diagnostics::{Diagnostic, closest};
use std::collections::BTreeMap;

/// The fields of `[[topology]]`, with what each holds and means.
pub const TOPOLOGY_FIELDS: [(&str, &str, &str); 5] = [
    ("name", "text", "Unique; its consumer group is `topology:<name>`."),
    ("doc", "text", "What it does, for documents."),
    ("from", "list", "The topic it reads, or several."),
    ("steps", "steps", "What it does to each record, in this order."),
    ("to", "text", "The topic it writes; absent when the last step is a `branch`."),
];

/// A text in the file.
#[derive(Clone, Copy)]
pub struct Text<'a> {
    /// The text.
    pub text: &'a str,
    /// Where it stands.
    pub node: &'a Node,
}

/// A `[[topology]]`, read but not typed.
pub struct TopologyDecl<'a> {
    /// Unique.
    pub name: Text<'a>,
    /// May be empty.
    pub doc: &'a str,
    /// The topics it reads.
    pub from: Vec<Text<'a>>,
    /// Its steps and where they lead.
    pub way: Way<'a>,
}

/// Steps, and the topic at their end; none where the last step is a `branch`.
pub struct Way<'a> {
    /// In order.
    pub steps: Vec<StepDecl<'a>>,
    /// The topic.
    pub to: Option<Text<'a>>,
}

/// A step, read but not typed.
pub struct StepDecl<'a> {
    /// The step's table.
    pub table: &'a Table,
    /// Its kind.
    pub kind: &'static StepKind,
    /// The value of the field that names the kind.
    pub value: &'a Node,
    /// Unique in the topology.
    pub name: String,
    /// Of a `branch`: one a way, in order.
    pub ways: Vec<Way<'a>>,
}

impl<'a> StepDecl<'a> {
    /// The topic that a step reads beside its stream: `table` in its value.
    pub fn table_topic(&self) -> Option<Text<'a>> {
        let node = self.value.table().ok()?.get("table")?;
        Some(Text { text: node.str().ok()?, node })
    }
}

impl<'a> Way<'a> {
    /// Every topic that is written.
    pub fn writes(&self) -> Vec<Text<'a>> {
        let ways = self.steps.iter().flat_map(|step| &step.ways);
        self.to.into_iter().chain(ways.flat_map(Way::writes)).collect()
    }

    /// Every topic that steps read beside the stream.
    pub fn tables(&self) -> Vec<Text<'a>> {
        let own = self.steps.iter().filter_map(StepDecl::table_topic);
        own.chain(self.steps.iter().flat_map(|step| &step.ways).flat_map(Way::tables)).collect()
    }
}

/// Reads all `[[topology]]` of a file. A topology with a mistake is left out of the list; the names
/// and outputs of those come second, so that what depends on them is not blamed as well.
pub fn parse<'a>(file: &'a Table) -> (Vec<TopologyDecl<'a>>, Vec<Broken>, Vec<Diagnostic>) {
    let mut topologies: Vec<TopologyDecl<'a>> = Vec::new();
    let mut broken = Vec::new();
    let mut mistakes = Vec::new();
    let mut seen: BTreeMap<String, ()> = BTreeMap::new();
    let nodes = match file.get("topology").map(Node::array) {
        Some(Ok(nodes)) => nodes,
        Some(Err(mistake)) => {
            mistakes.push(mistake);
            &[]
        }
        None => &[],
    };
    for node in nodes {
        let mut reader = Reader { mistakes: Vec::new(), names: BTreeMap::new() };
        let topology = reader.topology(node);
        if let Some(name) = node.table().ok().and_then(|table| table.get("name"))
            && let Ok(text) = name.str()
            && seen.insert(text.to_owned(), ()).is_some()
        {
            reader.mistakes.push(
                name.error(format!("there is another topology called `{text}`"))
                    .help("its name keys its state and its place in the log: give each topology its own"),
            );
        }
        match topology {
            Some(topology) if reader.mistakes.is_empty() => topologies.push(topology),
            _ => broken.push(Broken::of(node)),
        }
        mistakes.append(&mut reader.mistakes);
    }
    (topologies, broken, mistakes)
}

/// What is known of a topology that could not be read.
pub struct Broken {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Topics that it names as read or written, as far as they can be seen.
    pub topics: Vec<String>,
}

impl Broken {
    fn of(node: &Node) -> Broken {
        let text = |node: &Node| node.str().ok().map(str::to_owned);
        let table = node.table().ok();
        let mut topics = Vec::new();
        collect(node, &mut topics);
        Broken { name: table.and_then(|table| table.get("name")).and_then(text), topics }
    }
}

/// Every text under a field called `to`, `from` or `table`, however deep.
fn collect(node: &Node, topics: &mut Vec<String>) {
    use quikflow_topics::declaration::Value;
    match &node.value {
        Value::Table(table) => {
            for (name, _, node) in &table.entries {
                match name.as_str() {
                    "to" | "from" | "table" => topics.extend(node.strings().unwrap_or_default()),
                    _ => {}
                }
                collect(node, topics);
            }
        }
        Value::Array(nodes) => nodes.iter().for_each(|node| collect(node, topics)),
        _ => {}
    }
}

struct Reader {
    mistakes: Vec<Diagnostic>,
    /// Names of steps.
    names: BTreeMap<String, ()>,
}

impl Reader {
    fn ok<T>(&mut self, result: Result<T, Diagnostic>) -> Option<T> {
        result.map_err(|mistake| self.mistakes.push(mistake)).ok()
    }

    fn topology<'a>(&mut self, node: &'a Node) -> Option<TopologyDecl<'a>> {
        let table = self.ok(node.table())?;
        self.mistakes.extend(table.unknown_fields("a topology", &TOPOLOGY_FIELDS.map(|(name, _, _)| name)));
        let name = self.ok(table.require("name").and_then(text));
        let doc = table.get("doc").map_or(Some(""), |node| self.ok(node.str()));
        let from = self.ok(table.require("from")).map(|node| self.from(node));
        let steps = match table.get("steps") {
            Some(steps) => self.ok(steps.array()).unwrap_or(&[]),
            None => &[],
        };
        let to = table.get("to").and_then(|node| self.ok(text(node)));
        let steps = self.steps(steps, "");
        self.end(&steps, table);
        Some(TopologyDecl { name: name?, doc: doc?, from: from?, way: Way { steps, to } })
    }

    fn from<'a>(&mut self, node: &'a Node) -> Vec<Text<'a>> {
        let nodes = match node.array() {
            Ok([]) => {
                self.mistakes.push(node.error("a topology reads at least one topic").help("name it"));
                return Vec::new();
            }
            Ok(nodes) => nodes,
            Err(_) => std::slice::from_ref(node),
        };
        let mut from: Vec<Text<'a>> = Vec::new();
        for node in nodes {
            if let Some(topic) = self.ok(text(node)) {
                if from.iter().any(|other| other.text == topic.text) {
                    self.mistakes.push(node.error(format!("`{}` is read twice", topic.text)).help("name each topic once"));
                }
                from.push(topic);
            }
        }
        from
    }

    /// A way ends in a topic, or in a branch.
    fn end(&mut self, steps: &[StepDecl<'_>], table: &Table) {
        let branches = steps.last().is_some_and(|step| !step.ways.is_empty());
        match table.get("to") {
            Some(to) if branches => {
                self.mistakes.push(to.error("the last step is a `branch`, its ways say where to").help("take `to` away"));
            }
            None if !branches => {
                self.mistakes.push(table.error("missing field `to`").help("name the topic that is written: to = \"…\""));
            }
            _ => {}
        }
        for step in steps.iter().rev().skip(1).filter(|step| !step.ways.is_empty()) {
            self.mistakes.push(
                Diagnostic::error(&step.table.file, step.table.name_span("branch"), "a `branch` is the last step")
                    .help("put the steps that follow into `steps` of each way"),
            );
        }
    }

    fn steps<'a>(&mut self, nodes: &'a [Node], prefix: &str) -> Vec<StepDecl<'a>> {
        let numbered = nodes.iter().enumerate();
        numbered.filter_map(|(index, node)| self.step(node, &format!("{prefix}{}", index + 1))).collect()
    }

    fn step<'a>(&mut self, node: &'a Node, position: &str) -> Option<StepDecl<'a>> {
        let table = self.ok(node.table())?;
        let kinds: Vec<_> = table
            .entries
            .iter()
            .filter_map(|(name, span, value)| Some((KINDS.iter().copied().find(|kind| kind.name == name)?, span, value)))
            .collect();
        let (kind, value) = match kinds.as_slice() {
            [(kind, _, value)] => (*kind, *value),
            [] => {
                let mistake = self.unknown(table, node);
                self.mistakes.push(mistake);
                return None;
            }
            [(first, _, _), (second, span, _), ..] => {
                self.mistakes.push(
                    Diagnostic::error(
                        &table.file,
                        (*span).clone(),
                        format!("this step is a `{}` and a `{}`", first.name, second.name),
                    )
                    .help("make two steps of it"),
                );
                return None;
            }
        };
        let name = match table.get("name") {
            Some(name) => self.ok(name.str()).map(str::to_owned),
            None if kind.stateful => {
                self.mistakes.push(
                    Diagnostic::error(
                        &table.file,
                        table.name_span(kind.name),
                        format!("a `{}` keeps state and needs a name", kind.name),
                    )
                    .help("add name = \"…\": it keys the step's state, so that other steps may come and go before it"),
                );
                None
            }
            None => Some(format!("{}-{position}", kind.name)),
        }?;
        if self.names.insert(name.clone(), ()).is_some() {
            let mistake = table.get("name").map_or_else(|| node.error(""), |node| node.error(""));
            self.mistakes.push(Diagnostic {
                message: format!("there is another step called `{name}` in this topology"),
                help: Some("its name keys its state: give each step its own".to_owned()),
                ..mistake
            });
        }
        let mut ways = Vec::new();
        if kind.name == "branch" {
            for (index, way) in value.array().unwrap_or(&[]).iter().enumerate() {
                let Ok(table) = way.table() else { continue };
                let steps = match table.get("steps") {
                    Some(steps) => self.ok(steps.array()).unwrap_or(&[]),
                    None => &[],
                };
                let steps = self.steps(steps, &format!("{position}.{}.", index + 1));
                self.end(&steps, table);
                let to = table.get("to").and_then(|node| self.ok(text(node)));
                ways.push(Way { steps, to });
            }
        }
        Some(StepDecl { table, kind, value, name, ways })
    }

    fn unknown(&self, table: &Table, node: &Node) -> Diagnostic {
        let available = KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>();
        let list = available.join(", ");
        let fields: Vec<_> = table.entries.iter().filter(|(name, _, _)| name != "name").collect();
        let near = fields.iter().find_map(|entry| Some((entry, closest(&entry.0, available.iter().copied())?)));
        match (near, fields.first()) {
            (Some(((name, span, _), near)), _) => Diagnostic::error(&table.file, span.clone(), format!("unknown step `{name}`"))
                .help(format!("did you mean `{near}`? available: {list}")),
            (None, Some((name, span, _))) => {
                Diagnostic::error(&table.file, span.clone(), format!("unknown step `{name}`")).help(format!("available: {list}"))
            }
            (None, None) => node.error("an empty step").help(format!("available: {list}")),
        }
    }
}

fn text(node: &Node) -> Result<Text<'_>, Diagnostic> {
    match node.str()? {
        "" => Err(node.error("this is empty").help("write a name")),
        text => Ok(Text { text, node }),
    }
}
