//! One topology: its steps typed one after the other and connected to sources and topics.

use super::keys::Keys;
use super::prune::{Demand, Wanted, demand};
use super::tables::{TableJoin, kept, whole};
use super::{NodePlan, OutputPlan, Port, SourcePlan, TopologyPlan};
use crate::expr::StreamSchema;
use crate::operator::ORIGIN_COLUMNS;
use crate::step::{Step, StepContext};
use crate::topology::{StepDecl, Text, TopologyDecl, Way};
use arrow::datatypes::{DataType, Field, Schema};
use quikflow_topics::broker::Projection;
use quikflow_topics::catalogue::parse::{type_name, unknown_topic};
use quikflow_topics::catalogue::{Catalogue, FieldSpec, FieldType, TopicKind, TopicSpec};
use quikflow_topics::diagnostics::Diagnostic;
use quikflow_topics::schema;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What the loader knows of topics that topologies have written so far.
pub(super) struct Known<'a> {
    pub(super) catalogue: &'a Catalogue,
    /// Of topics that topologies write.
    pub(super) keys: &'a BTreeMap<String, Keys>,
}

/// A topology that is typed, and the topics that it writes.
pub(super) struct Wired {
    pub(super) plan: TopologyPlan,
    /// Topic, what determines its key, where `to` stands; once a writing port.
    pub(super) written: Vec<(Arc<TopicSpec>, Keys, Diagnostic)>,
}

/// Types a topology twice: over all columns, then over those that are read.
pub(super) fn wire(decl: &TopologyDecl<'_>, known: &Known<'_>) -> Result<Wired, Vec<Diagnostic>> {
    let first = Wiring::run(decl, known, None)?;
    let wanted = demand(&first.nodes, &first.source_schemas(), &first.ends());
    Wiring::run(decl, known, Some(&wanted))?.finish(decl)
}

/// A stream in the course of wiring.
#[derive(Clone)]
struct Stream {
    ports: Vec<Port>,
    schema: StreamSchema,
    keys: Keys,
    /// The same of the key under which its records lie in their partitions.
    source_keys: Keys,
}

struct Source {
    topic: Arc<TopicSpec>,
    schema: StreamSchema,
    /// Read as a stream, not as a table alone.
    stream: bool,
    /// How joins read it as a table, in the order of the steps.
    joins: Vec<TableJoin>,
}

struct End<'a> {
    to: Text<'a>,
    stream: Stream,
}

struct Wiring<'a> {
    decl: &'a TopologyDecl<'a>,
    known: &'a Known<'a>,
    wanted: Option<&'a Demand>,
    sources: Vec<Source>,
    nodes: Vec<NodePlan>,
    /// Whether some step can find a record late.
    can_be_late: bool,
    /// No step so far brings records of several partitions together.
    divisible: bool,
    ends: Vec<End<'a>>,
    mistakes: Vec<Diagnostic>,
}

impl<'a> Wiring<'a> {
    fn run(decl: &'a TopologyDecl<'a>, known: &'a Known<'a>, wanted: Option<&'a Demand>) -> Result<Wiring<'a>, Vec<Diagnostic>> {
        let mut wiring = Wiring {
            decl,
            known,
            wanted,
            sources: vec![],
            nodes: vec![],
            can_be_late: false,
            divisible: true,
            ends: vec![],
            mistakes: vec![],
        };
        if let Some(stream) = wiring.streams() {
            wiring.way(&decl.way, stream);
        }
        match wiring.mistakes.is_empty() {
            true => Ok(wiring),
            false => Err(wiring.mistakes),
        }
    }

    fn topic(&mut self, name: Text<'_>) -> Option<Arc<TopicSpec>> {
        let topics = &self.known.catalogue.topics;
        let found = topics.get(name.text).cloned();
        match &found {
            None => self.mistakes.push(unknown_topic(name.node, name.text, topics.keys().map(String::as_str))),
            Some(topic) if topic.kind == TopicKind::Rows && topic.fields.is_empty() => {
                self.mistakes.push(
                    name.node
                        .error(format!("nothing is written to topic `{}`", name.text))
                        .help("declare an event type for it, or a topology that writes it"),
                );
                return None;
            }
            Some(_) => {}
        }
        found
    }

    /// The sources named by `from`; their union is the stream.
    fn streams(&mut self) -> Option<Stream> {
        let decl = self.decl;
        let mut union: Vec<Field> = Vec::new();
        let mut kind = None;
        let mut keys: Option<Keys> = None;
        for from in &decl.from {
            let topic = self.topic(*from)?;
            if *kind.get_or_insert(topic.kind) != topic.kind {
                self.mistakes.push(
                    from.node
                        .error("a topic of events and a topic of rows cannot be read as one")
                        .help("make two topologies of it"),
                );
                return None;
            }
            for field in &topic.fields {
                let field = schema::arrow_field(field);
                match union.iter().find(|other| other.name() == field.name()) {
                    Some(other) if other.data_type() != field.data_type() => {
                        let message = format!(
                            "`{}` is {} in `{}`, but {} in another topic read here",
                            field.name(),
                            field.data_type(),
                            from.text,
                            other.data_type()
                        );
                        self.mistakes.push(from.node.error(message).help("read the topics in two topologies"));
                        return None;
                    }
                    Some(_) => {}
                    None => union.push(field),
                }
            }
            let own = self.topic_keys(&topic);
            keys = Some(match keys {
                Some(keys) => Keys::meet(&keys, &own),
                None => own,
            });
            self.sources.push(Source {
                topic,
                schema: StreamSchema { arrow: Arc::new(Schema::empty()), kind: kind? },
                stream: true,
                joins: vec![],
            });
        }
        let kind = kind?;
        let wanted = self.wanted.map(|wanted| wanted.sources[..decl.from.len()].iter().flatten().cloned().collect::<Wanted>());
        let schema = source_schema(&union, kind, wanted.as_ref());
        self.sources.iter_mut().for_each(|source| source.schema = schema.clone());
        let keys = keys.unwrap_or_default();
        let ports = (0..self.sources.len()).map(Port::Source).collect();
        Some(Stream { ports, schema, source_keys: keys.clone(), keys })
    }

    /// What determines the key of a topic's records.
    fn topic_keys(&self, topic: &TopicSpec) -> Keys {
        if let Some(keys) = self.known.keys.get(&topic.name) {
            return keys.clone();
        }
        Keys::of_events(self.known.catalogue, &topic.name)
    }

    /// The source that reads `topic` as a table.
    fn table(&mut self, name: Text<'_>) -> Option<(usize, StreamSchema)> {
        let topic = self.topic(name)?;
        if let Some(index) = self.sources.iter().position(|source| source.topic.name == topic.name) {
            return Some((index, self.sources[index].schema.clone()));
        }
        let fields: Vec<Field> = topic.fields.iter().map(schema::arrow_field).collect();
        let index = self.sources.len();
        let schema = source_schema(&fields, topic.kind, self.wanted.map(|wanted| &wanted.sources[index]));
        self.sources.push(Source { topic, schema: schema.clone(), stream: false, joins: vec![] });
        Some((index, schema))
    }

    fn way(&mut self, way: &'a Way<'a>, mut stream: Stream) {
        for step in &way.steps {
            match self.step(step, stream) {
                Some(next) => stream = next,
                None => return,
            }
        }
        if let Some(to) = way.to {
            self.ends.push(End { to, stream });
        }
    }

    /// Types a step; of a branch, its ways too.
    fn step(&mut self, step: &'a StepDecl<'a>, stream: Stream) -> Option<Stream> {
        let mut inputs = vec![stream.ports];
        let mut schemas = vec![stream.schema];
        if let Some(table) = step.table_topic() {
            let (index, schema) = self.table(table)?;
            inputs.push(vec![Port::Source(index)]);
            schemas.push(schema);
        }
        let sources = inputs.iter().enumerate().map(|(input, ports)| match (input, ports.first()) {
            (1.., Some(Port::Source(source))) => vec![(*source, self.sources[*source].topic.name.clone())],
            // rows of the stream come from what `from` names, whatever steps came before
            _ => {
                let streams = self.sources.iter().enumerate().filter(|(_, source)| source.stream);
                streams.map(|(index, source)| (index, source.topic.name.clone())).collect()
            }
        });
        let mut context = StepContext {
            table: step.table,
            value: step.value,
            name: step.name.clone(),
            inputs: schemas,
            sources: sources.collect(),
            wanted: self.wanted.and_then(|wanted| wanted.nodes[self.nodes.len()].first()),
            catalogue: self.known.catalogue,
            topology: self.decl.name.text,
        };
        let built = match (step.kind.plan)(&mut context) {
            Ok(built) => built,
            Err(mut mistakes) => {
                self.mistakes.append(&mut mistakes);
                return None;
            }
        };
        let keys = stream.keys.after(built.as_ref());
        let source_keys = self.divided(built.as_ref(), step, &stream.source_keys, &inputs);
        let outputs = built.outputs();
        let node = self.nodes.len();
        self.can_be_late |= built.can_be_late();
        self.nodes.push(NodePlan { name: step.name.clone(), kind: step.kind.name, step: Arc::from(built), inputs });
        let port = |port: usize, schema: StreamSchema| Stream {
            ports: vec![Port::Node { node, port }],
            schema,
            keys: keys.clone(),
            source_keys: source_keys.clone(),
        };
        if step.ways.is_empty() {
            return outputs.into_iter().next().map(|schema| port(0, schema));
        }
        for (index, (way, schema)) in step.ways.iter().zip(outputs).enumerate() {
            self.way(way, port(index, schema));
        }
        None
    }

    /// Notes whether a step's state can be divided by source partition: records that its key brings together
    /// have to lie in one. A table beside the stream has to lie by the same text, in as many partitions; one that does
    /// not is read whole by every share. Returns the key under which the outputs lie.
    fn divided(&mut self, built: &dyn Step, step: &StepDecl<'_>, keys: &Keys, inputs: &[Vec<Port>]) -> Keys {
        if let Some(columns) = built.state_columns() {
            let divided: Vec<&Source> = self.sources.iter().filter(|source| whole(&source.joins).is_none()).collect();
            let same = divided.windows(2).all(|two| two[0].topic.partitions == two[1].topic.partitions);
            match (columns.as_slice(), inputs.get(1).and_then(|ports| ports.first())) {
                ([on, table_on], Some(Port::Source(table))) => self.table_beside(on, table_on, keys, *table, same),
                ([group], None) => {
                    let alone = self.sources.iter().filter(|source| source.stream).count() == 1;
                    self.divisible &= same && keys.gather(group, alone);
                }
                _ => self.divisible = false,
            }
        }
        match step.kind.name {
            // The new key is not the one that the partition is of.
            "rekey" => keys.behind_a_new_key(),
            // Rows of their own, under another key.
            "window" | "count_within" => Keys::default(),
            _ => keys.after(built),
        }
    }

    /// Notes how shares of the work read the table of a join.
    fn table_beside(&mut self, on: &BTreeSet<String>, table_on: &BTreeSet<String>, keys: &Keys, table: usize, same: bool) {
        let lies = self.topic_keys(&self.sources[table].topic).gather(table_on, false);
        let beside = same && lies && keys.gather(on, false);
        if self.sources[table].stream {
            self.divisible &= beside;
            return;
        }
        let streams = self.sources.iter().filter(|source| source.stream);
        let partitions: Vec<u32> = streams.map(|source| source.topic.partitions).collect();
        let join = match beside {
            true => TableJoin::Beside,
            false => TableJoin::Whole(kept(on, table_on, keys, &partitions, &self.sources[table].schema)),
        };
        self.sources[table].joins.push(join);
    }

    fn source_schemas(&self) -> Vec<StreamSchema> {
        self.sources.iter().map(|source| source.schema.clone()).collect()
    }

    /// Ports that lead to topics, and the columns that go there.
    fn ends(&self) -> Vec<(Port, Wanted)> {
        let columns = |stream: &Stream| -> Wanted {
            let system: &[&str] = match stream.schema.kind {
                TopicKind::Events => &schema::APPEND_SYSTEM,
                TopicKind::Rows => &[schema::KEY],
            };
            let names = stream.schema.arrow.fields().iter().map(|field| field.name().clone());
            names.filter(|name| !name.starts_with('_') || system.contains(&name.as_str())).collect()
        };
        let ends = self.ends.iter().map(|end| (columns(&end.stream), &end.stream.ports));
        ends.flat_map(|(columns, ports)| ports.iter().map(move |port| (*port, columns.clone()))).collect()
    }

    fn finish(self, decl: &TopologyDecl<'_>) -> Result<Wired, Vec<Diagnostic>> {
        let mut outputs = Vec::new();
        let mut written = Vec::new();
        let mut mistakes = Vec::new();
        for end in &self.ends {
            match self.output_topic(end) {
                Ok(topic) => {
                    let from = end.stream.ports.iter();
                    outputs.extend(from.map(|from| OutputPlan { topic: topic.clone(), from: *from }));
                    written.push((topic, end.stream.keys.clone(), end.to.node.error("")));
                }
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let several = self.sources.iter().filter(|source| source.stream).count() > 1;
        let late = |source: &Source| {
            (source.stream && self.can_be_late).then(|| {
                let name = match several {
                    true => format!("late.{}.{}", decl.name.text, source.topic.name),
                    false => format!("late.{}", decl.name.text),
                };
                let doc = format!("Records of {} that came too late for {}.", source.topic.name, decl.name.text);
                Arc::new(TopicSpec { name, doc, ..source.topic.as_ref().clone() })
            })
        };
        let plan = TopologyPlan {
            name: decl.name.text.to_owned(),
            doc: decl.doc.to_owned(),
            divisible: self.divisible,
            half: None,
            late: self.sources.iter().map(late).collect(),
            sources: self.sources.iter().map(source_plan).collect(),
            nodes: self.nodes,
            outputs,
        };
        Ok(Wired { plan, written })
    }

    /// The topic that an end writes: its columns are the stream's.
    fn output_topic(&self, end: &End<'_>) -> Result<Arc<TopicSpec>, Diagnostic> {
        let declared = self.known.catalogue.topics.get(end.to.text);
        if self.known.catalogue.events_of(end.to.text).next().is_some() {
            return Err(end
                .to
                .node
                .error(format!("topic `{}` holds events from the door", end.to.text))
                .help("write a topic of its own, it need not be declared"));
        }
        let mut spec = match declared {
            Some(spec) => spec.as_ref().clone(),
            None => TopicSpec::new(end.to.text, TopicKind::Rows),
        };
        spec.kind = end.stream.schema.kind;
        if spec.doc.is_empty() {
            spec.doc = self.decl.doc.to_owned();
        }
        spec.fields = Vec::new();
        for field in end.stream.schema.arrow.fields().iter().filter(|field| !field.name().starts_with('_')) {
            let Some(ty) = self.field_type(field, spec.kind) else {
                return Err(end
                    .to
                    .node
                    .error(format!("column `{}` is of type {}, which no topic stores", field.name(), field.data_type()))
                    .help("cast it in a `map` before"));
            };
            spec.fields.push(FieldSpec { optional: true, ..FieldSpec::new(field.name(), ty) });
        }
        if let Some(other) = declared.filter(|other| !other.fields.is_empty()) {
            agree(other, &spec).map_err(|message| {
                end.to
                    .node
                    .error(message)
                    .help("several topologies may write one topic only with the same columns; or write another topic")
            })?;
        }
        Ok(Arc::new(spec))
    }

    fn field_type(&self, field: &Field, kind: TopicKind) -> Option<FieldType> {
        if kind == TopicKind::Events
            && let Some(same) = self.sources.iter().find_map(|source| source.topic.field(field.name()))
            && schema::arrow_type(same.ty) == *field.data_type()
        {
            return Some(same.ty);
        }
        match field.data_type() {
            DataType::Utf8 => Some(FieldType::String),
            DataType::Int64 => Some(FieldType::Int),
            DataType::Float64 => Some(FieldType::Float),
            DataType::Boolean => Some(FieldType::Bool),
            ty if *ty == schema::time_type() => Some(FieldType::Timestamp),
            DataType::List(item) if *item.data_type() == DataType::Utf8 => Some(FieldType::StringList),
            _ => None,
        }
    }
}

/// Whether two writers of a topic write the same columns.
pub(super) fn agree(one: &TopicSpec, other: &TopicSpec) -> Result<(), String> {
    for field in &one.fields {
        match other.field(&field.name) {
            None => return Err(format!("topic `{}` has a column `{}`, which is not written here", one.name, field.name)),
            Some(same) if same.ty != field.ty => {
                return Err(format!(
                    "column `{}` of topic `{}` is {}, and {} is written here",
                    field.name,
                    one.name,
                    type_name(field.ty),
                    type_name(same.ty)
                ));
            }
            Some(_) => {}
        }
    }
    match other.fields.iter().find(|field| one.field(&field.name).is_none()) {
        Some(field) => Err(format!("topic `{}` has no column `{}`, which is written here", one.name, field.name)),
        None => Ok(()),
    }
}

/// The origin columns, then the system columns and fields that are wanted.
fn source_schema(fields: &[Field], kind: TopicKind, wanted: Option<&Wanted>) -> StreamSchema {
    let keep = |name: &str| wanted.is_none_or(|wanted| wanted.contains(name));
    let origin = ORIGIN_COLUMNS.iter().map(|name| schema::system_field(name));
    let system = schema::SYSTEM.iter().filter(|name| !ORIGIN_COLUMNS.contains(name) && keep(name));
    let system = system.map(|name| schema::system_field(name));
    let fields = fields.iter().filter(|field| keep(field.name())).cloned();
    StreamSchema { arrow: Arc::new(Schema::new(origin.chain(system).chain(fields).collect::<Vec<_>>())), kind }
}

fn source_plan(source: &Source) -> SourcePlan {
    let names = source.schema.arrow.fields().iter().map(|field| field.name().as_str());
    let names: Vec<&str> = names.filter(|name| *name != schema::WATERMARK).collect();
    SourcePlan {
        topic: source.topic.clone(),
        projection: Projection::of(&source.topic, &names),
        schema: source.schema.clone(),
        whole: whole(&source.joins),
    }
}
