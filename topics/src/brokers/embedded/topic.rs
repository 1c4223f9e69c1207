//! A topic as the log knows it: its spec, its layout, where each partition ends.

use crate::broker::BrokerError;
use crate::catalogue::{Cleanup, FieldSpec, FieldType, TopicKind, TopicSpec};
use crate::chunk::header::Header;
use crate::schema;
use parking_lot::{Mutex, RwLock};
use rusqlite::{Connection, OptionalExtension};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// The columns a topic has had, in the order they were declared: a column's number is its place
/// here and never changes.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    pub(super) columns: Vec<(String, FieldType)>,
    by_name: HashMap<String, u16>,
}

impl Layout {
    fn add(&mut self, name: &str, ty: FieldType) -> Result<bool, BrokerError> {
        if let Some(id) = self.by_name.get(name) {
            let had = self.columns[usize::from(*id)].1;
            if schema::arrow_type(had) != schema::arrow_type(ty) {
                return Err(BrokerError::Storage(format!("field `{name}` was {had:?} and is now {ty:?}: give it another name")));
            }
            return Ok(false);
        }
        let id = u16::try_from(self.columns.len()).ok().filter(|id| *id < 10_000);
        let id = id.ok_or_else(|| BrokerError::Storage("a topic has at most 10,000 columns over its life".to_owned()))?;
        self.by_name.insert(name.to_owned(), id);
        self.columns.push((name.to_owned(), ty));
        Ok(true)
    }

    pub(super) fn id(&self, name: &str) -> Option<u16> {
        self.by_name.get(name).copied()
    }

    pub(super) fn known(&self) -> u16 {
        self.columns.len() as u16
    }

    fn extend(&mut self, fields: &[FieldSpec]) -> Result<bool, BrokerError> {
        let mut changed = false;
        for name in schema::APPEND_SYSTEM {
            let ty = if name == schema::EVENT_TIME { FieldType::Timestamp } else { FieldType::String };
            changed |= self.add(name, ty)?;
        }
        for field in fields {
            changed |= self.add(&field.name, field.ty)?;
        }
        Ok(changed)
    }

    fn to_json(&self) -> String {
        let columns = self.columns.iter().map(|(name, ty)| json!([name, type_name(*ty)]));
        Value::Array(columns.collect()).to_string()
    }

    fn from_json(text: &str) -> Option<Layout> {
        let mut layout = Layout::default();
        for column in serde_json::from_str::<Value>(text).ok()?.as_array()? {
            layout.add(column.get(0)?.as_str()?, type_of(column.get(1)?.as_str()?)?).ok()?;
        }
        Some(layout)
    }
}

/// A chunk's figures.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkMeta {
    pub(super) rows: u32,
    pub(super) bytes: u64,
    pub(super) arrival: i64,
}

/// What there is of a topic, as committed.
#[derive(Clone, Debug, Default)]
pub(super) struct Extent {
    pub(super) chunks: BTreeMap<u64, ChunkMeta>,
    pub(super) ends: Vec<u64>,
    pub(super) next_chunk: u64,
}

/// A topic.
#[derive(Debug)]
pub(super) struct TopicState {
    pub(super) id: i64,
    pub(super) spec: RwLock<Arc<TopicSpec>>,
    pub(super) layout: RwLock<Arc<Layout>>,
    pub(super) generation: AtomicU64,
    pub(super) extent: Mutex<Extent>,
}

impl TopicState {
    pub(super) fn spec(&self) -> Arc<TopicSpec> {
        self.spec.read().clone()
    }

    pub(super) fn layout(&self) -> Arc<Layout> {
        self.layout.read().clone()
    }
}

pub(super) type Topics = BTreeMap<String, Arc<TopicState>>;

/// Reads all topics and their extents.
pub(super) fn load(conn: &Connection) -> Result<Topics, BrokerError> {
    let topics = load_declared(conn)?;
    for (name, topic) in &topics {
        let declared = topic.extent.lock().clone();
        let extent = load_extent(conn, topic.id, declared.ends, declared.next_chunk);
        *topic.extent.lock() = extent.map_err(|e| match e {
            BrokerError::Corrupt(what) => BrokerError::Corrupt(format!("topic `{name}`: {what}")),
            e => e,
        })?;
    }
    Ok(topics)
}

/// Reads all topics, without looking at their chunks.
pub(super) fn load_declared(conn: &Connection) -> Result<Topics, BrokerError> {
    let mut statement = conn.prepare("select id, name, spec, layout, generation, ends, next_chunk from topics")?;
    let mut rows = statement.query([])?;
    let mut topics = Topics::new();
    while let Some(row) = rows.next()? {
        let (id, name): (i64, String) = (row.get(0)?, row.get(1)?);
        let bad = || BrokerError::Corrupt(format!("the declaration of topic `{name}` cannot be read"));
        let spec = spec_from_json(&row.get::<_, String>(2)?).ok_or_else(bad)?;
        let layout = Layout::from_json(&row.get::<_, String>(3)?).ok_or_else(bad)?;
        let ends: Vec<u8> = row.get(5)?;
        let ends = ends.chunks_exact(8).map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]));
        let mut ends: Vec<u64> = ends.collect();
        ends.resize(spec.partitions as usize, 0);
        let extent = Extent { chunks: BTreeMap::new(), ends, next_chunk: row.get::<_, i64>(6)? as u64 };
        let state = TopicState {
            id,
            spec: RwLock::new(Arc::new(spec)),
            layout: RwLock::new(Arc::new(layout)),
            generation: AtomicU64::new(row.get::<_, i64>(4)? as u64),
            extent: Mutex::new(extent),
        };
        topics.insert(name, Arc::new(state));
    }
    Ok(topics)
}

fn load_extent(conn: &Connection, id: i64, ends: Vec<u64>, next_chunk: u64) -> Result<Extent, BrokerError> {
    let mut extent = Extent { chunks: BTreeMap::new(), ends, next_chunk };
    let mut statement = conn.prepare(&format!("select id, rows, bytes, arrival from c{id} order by id"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let chunk = row.get::<_, i64>(0)? as u64;
        let meta = ChunkMeta { rows: row.get(1)?, bytes: row.get::<_, i64>(2)? as u64, arrival: row.get(3)? };
        extent.chunks.insert(chunk, meta);
        extent.next_chunk = extent.next_chunk.max(chunk + 1);
    }
    let last: Option<Vec<u8>> =
        conn.query_row(&format!("select header from c{id} order by id desc limit 1"), [], |row| row.get(0)).optional()?;
    if let Some(header) = last {
        for (end, of_chunk) in extent.ends.iter_mut().zip(Header::decode(&header)?.ends) {
            *end = (*end).max(of_chunk);
        }
    }
    Ok(extent)
}

/// Creates or brings up to date the topics given; inside a transaction of the writer. Returns the
/// new map; the caller puts it in place when the transaction has committed.
pub(super) fn ensure(conn: &Connection, known: &Topics, specs: &[Arc<TopicSpec>]) -> Result<Vec<(String, Ensured)>, BrokerError> {
    let mut result = Vec::new();
    for spec in specs {
        if spec.partitions == 0 {
            return Err(BrokerError::Storage(format!("topic `{}` has no partition", spec.name)));
        }
        let text = spec_to_json(spec);
        if let Some(state) = known.get(&spec.name) {
            let mut layout = (*state.layout()).clone();
            let wrong = |e: BrokerError| BrokerError::Storage(format!("topic `{}`: {e}", spec.name));
            layout.extend(&spec.fields).map_err(wrong)?;
            let had = state.spec();
            let mut extent = None;
            if had.partitions != spec.partitions {
                if state.extent.lock().ends.iter().any(|end| *end > 0) {
                    return Err(BrokerError::Storage(format!(
                        "topic `{}` has {} partitions and records; it cannot have {}",
                        spec.name, had.partitions, spec.partitions
                    )));
                }
                extent = Some(spec.partitions as usize);
            }
            if *had != **spec || layout.known() != state.layout().known() {
                conn.execute("update topics set spec = ?2, layout = ?3 where id = ?1", (state.id, &text, layout.to_json()))?;
            }
            result.push((spec.name.clone(), Ensured::Changed { spec: spec.clone(), layout, partitions: extent }));
        } else {
            let mut layout = Layout::default();
            layout.extend(&spec.fields)?;
            conn.execute(
                "insert into topics(name, spec, layout, generation, ends, next_chunk) values(?1, ?2, ?3, 0, x'', 1)",
                (&spec.name, &text, layout.to_json()),
            )?;
            let id = conn.last_insert_rowid();
            conn.execute_batch(&format!(
                "create table c{id}(id integer primary key, rows integer not null, bytes integer not null,
                   arrival integer not null, header blob not null, body blob not null);
                 create table d{id}(id integer primary key, data blob not null);"
            ))?;
            let state = TopicState {
                id,
                spec: RwLock::new(spec.clone()),
                layout: RwLock::new(Arc::new(layout)),
                generation: AtomicU64::new(0),
                extent: Mutex::new(Extent { chunks: BTreeMap::new(), ends: vec![0; spec.partitions as usize], next_chunk: 1 }),
            };
            result.push((spec.name.clone(), Ensured::New(Arc::new(state))));
        }
    }
    Ok(result)
}

/// What [`ensure`] found.
pub(super) enum Ensured {
    /// A topic that was not there.
    New(Arc<TopicState>),
    /// A topic that was; its spec and layout as they are now.
    Changed { spec: Arc<TopicSpec>, layout: Layout, partitions: Option<usize> },
}

fn type_name(ty: FieldType) -> &'static str {
    match ty {
        FieldType::String => "string",
        FieldType::Int => "int",
        FieldType::Float => "float",
        FieldType::Bool => "bool",
        FieldType::Timestamp => "timestamp",
        FieldType::StringList => "list<string>",
        FieldType::Json => "json",
    }
}

fn type_of(name: &str) -> Option<FieldType> {
    use FieldType::{Bool, Float, Int, Json, String, StringList, Timestamp};
    [String, Int, Float, Bool, Timestamp, StringList, Json].into_iter().find(|ty| type_name(*ty) == name)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn spec_to_json(spec: &TopicSpec) -> String {
    let fields = spec.fields.iter().map(|f| {
        json!({"name": f.name, "type": type_name(f.ty), "optional": f.optional, "min_length": f.min_length,
               "max_length": f.max_length, "min": f.min, "max": f.max, "one_of": f.one_of})
    });
    json!({
        "name": spec.name, "doc": spec.doc, "partitions": spec.partitions,
        "kind": if spec.kind == TopicKind::Events { "events" } else { "rows" },
        "cleanup": if spec.cleanup == Cleanup::Compact { "compact" } else { "delete" },
        "retention": spec.retention.map(millis), "disorder": millis(spec.disorder), "idle_after": millis(spec.idle_after),
        "live_within": millis(spec.live_within), "future_within": millis(spec.future_within),
        "fields": fields.collect::<Vec<_>>(),
    })
    .to_string()
}

fn spec_from_json(text: &str) -> Option<TopicSpec> {
    let value: Value = serde_json::from_str(text).ok()?;
    let span = |name: &str| Some(Duration::from_millis(value.get(name)?.as_u64()?));
    let kind = if value.get("kind")?.as_str()? == "events" { TopicKind::Events } else { TopicKind::Rows };
    let mut spec = TopicSpec::new(value.get("name")?.as_str()?, kind);
    value.get("doc")?.as_str()?.clone_into(&mut spec.doc);
    spec.partitions = u32::try_from(value.get("partitions")?.as_u64()?).ok()?;
    spec.cleanup = if value.get("cleanup")?.as_str()? == "delete" { Cleanup::Delete } else { Cleanup::Compact };
    spec.retention = span("retention");
    spec.disorder = span("disorder")?;
    spec.idle_after = span("idle_after")?;
    spec.live_within = span("live_within")?;
    spec.future_within = span("future_within")?;
    for field in value.get("fields")?.as_array()? {
        let mut f = FieldSpec::new(field.get("name")?.as_str()?, type_of(field.get("type")?.as_str()?)?);
        f.optional = field.get("optional")?.as_bool()?;
        f.min_length = field.get("min_length")?.as_u64();
        f.max_length = field.get("max_length")?.as_u64();
        f.min = field.get("min")?.as_f64();
        f.max = field.get("max")?.as_f64();
        f.one_of = field.get("one_of")?.as_array()?.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        spec.fields.push(f);
    }
    Some(spec)
}
