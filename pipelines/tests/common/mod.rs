//! A small plan of hand-made steps: a filter that drops, a count by key and window, a count of those.

use arrow::array::{
    Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array, UInt64Array,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use quikflow_pipelines::expr::StreamSchema;
use quikflow_pipelines::operator::{
    DeadRow, Due, Emit, EpochTime, KEY_GROUPS, KEY_HASH, Keyed, LateRow, Operator, OperatorError, Rows, Stateless,
};
use quikflow_pipelines::plan::{NodePlan, OutputPlan, Plan, Port, SourcePlan, TopologyPlan};
use quikflow_pipelines::step::Step;
use quikflow_topics::broker::{Append, Broker, Projection, TopicRows};
use quikflow_topics::catalogue::{Catalogue, FieldSpec, FieldType, TopicKind, TopicSpec};
use quikflow_topics::ids::{EventTime, Offset, PartitionId};
use quikflow_topics::schema;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// One second in microseconds; windows are ten seconds long.
pub(crate) const SECOND: i64 = 1_000_000;
const WINDOW: i64 = 10 * SECOND;

/// The topic of numbers: records hold `name` (the key) and `n`.
pub(crate) fn numbers() -> Arc<TopicSpec> {
    let mut topic = TopicSpec::new("numbers", TopicKind::Rows);
    topic.partitions = 4;
    topic.disorder = Duration::from_secs(2);
    topic.fields = vec![FieldSpec::new("name", FieldType::String), FieldSpec::new("n", FieldType::Int)];
    Arc::new(topic)
}

fn counts(name: &str) -> Arc<TopicSpec> {
    let mut topic = TopicSpec::new(name, TopicKind::Rows);
    topic.partitions = 2;
    topic.fields = vec![
        FieldSpec::new("name", FieldType::String),
        FieldSpec::new("window", FieldType::Int),
        FieldSpec::new("n", FieldType::Int),
    ];
    Arc::new(topic)
}

fn stream(fields: &[FieldSpec]) -> StreamSchema {
    let mut columns = vec![
        schema::system_field(schema::PARTITION),
        schema::system_field(schema::OFFSET),
        schema::system_field(schema::EVENT_TIME),
        schema::system_field(schema::WATERMARK),
    ];
    columns.extend(fields.iter().map(schema::arrow_field));
    StreamSchema { arrow: Arc::new(Schema::new(columns)), kind: TopicKind::Rows }
}

fn col<'a, T: 'static>(batch: &'a RecordBatch, name: &str) -> &'a T {
    batch.column_by_name(name).unwrap().as_any().downcast_ref().unwrap()
}

fn with_column(batch: &RecordBatch, field: Field, column: ArrayRef) -> RecordBatch {
    let mut fields: Vec<Arc<Field>> = batch.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(field));
    let mut columns = batch.columns().to_vec();
    columns.push(column);
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

/// Keeps n ≥ 0, and lets n = 13 die.
struct Luck(StreamSchema);

impl Step for Luck {
    fn outputs(&self) -> Vec<StreamSchema> {
        vec![self.0.clone()]
    }
    fn build(&self) -> Operator {
        Operator::Stateless(Box::new(LuckOperator))
    }
    fn reads(&self, _input: usize) -> Option<Vec<String>> {
        Some(vec!["n".to_owned()])
    }
    fn passes_through(&self) -> bool {
        true
    }
    fn describe(&self) -> Vec<String> {
        Vec::new()
    }
}

struct LuckOperator;

impl Stateless for LuckOperator {
    fn on_rows(&mut self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let n: &Int64Array = col(&rows.batch, "n");
        assert!(n.values().iter().all(|n| *n != 666), "the number of the beast");
        let keep: BooleanArray = n.values().iter().map(|n| Some(*n >= 0 && *n != 13)).collect();
        for (row, n) in n.values().iter().enumerate().filter(|(_, n)| **n == 13) {
            let _ = n;
            emit.dead.push(DeadRow {
                source: rows.source,
                partition: PartitionId(col::<UInt32Array>(&rows.batch, schema::PARTITION).value(row)),
                offset: Offset(col::<UInt64Array>(&rows.batch, schema::OFFSET).value(row)),
                cause: "validation",
                code: "unlucky".to_owned(),
                path: Some("n".to_owned()),
                message: "13 brings no luck".to_owned(),
                row: None,
            });
        }
        let kept = filter_record_batch(&rows.batch, &keep).unwrap();
        emit.counts.input += rows.batch.num_rows() as u64;
        emit.counts.dead += emit.dead.len() as u64;
        emit.counts.applied += kept.num_rows() as u64;
        emit.counts.filtered += (rows.batch.num_rows() - kept.num_rows()) as u64 - emit.counts.dead;
        emit.push(Rows { source: rows.source, batch: kept });
        Ok(())
    }
}

/// Counts by `name` and window; emits a row (name, window, n) when a window closes. `total` counts
/// windows by their start alone, so its key is another one than the rows came with.
struct Tally {
    input: StreamSchema,
    total: bool,
}

impl Step for Tally {
    fn outputs(&self) -> Vec<StreamSchema> {
        vec![stream(&counts("x").fields)]
    }
    fn build(&self) -> Operator {
        Operator::Keyed {
            prepare: vec![Box::new(Hasher { total: self.total })],
            apply: Box::new(TallyOperator { total: self.total, horizon: i64::MIN, ..TallyOperator::default() }),
        }
    }
    fn fingerprint(&self) -> Option<String> {
        Some(format!("tally of {WINDOW}, total {}", self.total))
    }
    fn reads(&self, _input: usize) -> Option<Vec<String>> {
        let _ = &self.input;
        None
    }
    fn passes_through(&self) -> bool {
        false
    }
    fn describe(&self) -> Vec<String> {
        Vec::new()
    }
}

struct Hasher {
    total: bool,
}

fn hash(text: &str) -> u64 {
    text.bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)))
}

impl Stateless for Hasher {
    fn on_rows(&mut self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let hashes: UInt64Array = if self.total {
            col::<Int64Array>(&rows.batch, "window").values().iter().map(|window| hash(&window.to_string())).collect()
        } else {
            col::<StringArray>(&rows.batch, "name").iter().map(|name| hash(name.unwrap())).collect()
        };
        let batch = with_column(&rows.batch, Field::new(KEY_HASH, DataType::UInt64, false), Arc::new(hashes));
        emit.push(Rows { source: rows.source, batch });
        Ok(())
    }
}

/// (window, name) → (count, order of the n so far as text): order within a name shows whether the
/// log's order was kept.
#[derive(Default)]
struct TallyOperator {
    total: bool,
    horizon: i64,
    open: BTreeMap<(i64, String), (i64, String)>,
    changed: BTreeSet<(i64, String)>,
}

impl TallyOperator {
    fn write(&self, keys: impl Iterator<Item = (i64, String)>) -> Vec<u8> {
        let entries: Vec<_> = keys.map(|key| (self.open.get(&key).cloned(), key)).collect();
        serde_json::to_vec(&(self.horizon, entries)).unwrap()
    }
}

impl Keyed for TallyOperator {
    fn on_rows(&mut self, _input: usize, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let batch = &rows.batch;
        let names: &StringArray = col(batch, "name");
        let n: &Int64Array = col(batch, "n");
        let times: &TimestampMicrosecondArray = col(batch, schema::EVENT_TIME);
        let watermarks: &Int64Array = col(batch, schema::WATERMARK);
        for row in 0..batch.num_rows() {
            emit.counts.input += 1;
            let window = times.value(row).div_euclid(WINDOW) * WINDOW;
            let end = window + WINDOW;
            if !self.total && (end <= watermarks.value(row) || end <= self.horizon) {
                emit.counts.late += 1;
                emit.late.push(LateRow {
                    source: rows.source,
                    partition: PartitionId(col::<UInt32Array>(batch, schema::PARTITION).value(row)),
                    offset: Offset(col::<UInt64Array>(batch, schema::OFFSET).value(row)),
                });
                continue;
            }
            emit.counts.applied += 1;
            let key = if self.total {
                (col::<Int64Array>(batch, "window").value(row), "all".to_owned())
            } else {
                (window, names.value(row).to_owned())
            };
            let entry = self.open.entry(key.clone()).or_default();
            if self.total {
                entry.0 += n.value(row) % 1_000_000;
            } else {
                entry.0 += 1;
                // A polynomial in the order of arrival.
                entry.1 = format!("{}", (entry.1.parse::<i64>().unwrap_or(0) * 7 + n.value(row)) % 99_991);
            }
            self.changed.insert(key);
        }
        Ok(())
    }

    fn on_epoch_end(&mut self, time: &EpochTime, emit: &mut Emit) -> Result<(), OperatorError> {
        self.horizon = self.horizon.max(time.watermark.0);
        // The totals stay open: they are read from state at the end of a test, by a snapshot of the topic.
        let closed: Vec<_> =
            self.open.range(..).filter(|((window, _), _)| window + WINDOW <= self.horizon).map(|(key, _)| key.clone()).collect();
        if closed.is_empty() || self.total && time.watermark < EventTime(1_000_000 * SECOND) {
            return Ok(());
        }
        let (mut windows, mut names, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for key in closed {
            let (count, order) = self.open.remove(&key).unwrap();
            self.changed.insert(key.clone());
            windows.push(key.0);
            names.push(key.1);
            counts.push(count + 1_000_000 * order.parse::<i64>().unwrap_or(0));
        }
        let rows = windows.len();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(vec![0; rows])),
            Arc::new(UInt64Array::from(vec![0; rows])),
            Arc::new(TimestampMicrosecondArray::from(windows.clone()).with_timezone("UTC")),
            Arc::new(Int64Array::from(vec![i64::MIN; rows])),
            Arc::new(StringArray::from(names)),
            Arc::new(Int64Array::from(windows)),
            Arc::new(Int64Array::from(counts)),
        ];
        emit.push(Rows { source: 0, batch: RecordBatch::try_new(stream(&super_counts()).arrow, columns).unwrap() });
        Ok(())
    }

    fn delta(&mut self) -> Option<Vec<u8>> {
        let changed = std::mem::take(&mut self.changed);
        (!changed.is_empty()).then(|| self.write(changed.into_iter()))
    }

    fn snapshot(&mut self) -> Vec<u8> {
        self.changed.clear();
        self.write(self.open.keys().cloned().collect::<Vec<_>>().into_iter())
    }

    fn restore(&mut self, bytes: &[u8], _snapshot: bool, owns: &dyn Fn(u32) -> bool) -> Result<(), OperatorError> {
        let (horizon, entries): (i64, Vec<(Option<(i64, String)>, (i64, String))>) = serde_json::from_slice(bytes).unwrap();
        self.horizon = self.horizon.max(horizon);
        for (value, key) in entries {
            let hash = if self.total { hash(&key.0.to_string()) } else { hash(&key.1) };
            if owns((hash % u64::from(KEY_GROUPS)) as u32) {
                match value {
                    Some(value) => self.open.insert(key, value),
                    None => self.open.remove(&key),
                };
            }
        }
        Ok(())
    }

    fn due(&self) -> Due {
        Due { watermark: self.open.keys().next().map(|(window, _)| EventTime(window + WINDOW)), wall_clock: None }
    }

    fn state_bytes(&self) -> usize {
        self.open.len() * 64
    }
}

fn super_counts() -> Vec<FieldSpec> {
    counts("x").fields.clone()
}

/// numbers → luck → tally → counts, and from the tallies → total → totals.
pub(crate) fn plan() -> Arc<Plan> {
    let numbers = numbers();
    let schema = stream(&numbers.fields);
    let columns: Vec<&str> = vec![schema::PARTITION, schema::OFFSET, schema::EVENT_TIME, "name", "n"];
    let late = TopicSpec { name: "late.count".to_owned(), ..(*numbers).clone() };
    let node = |name: &str, kind, step: Arc<dyn Step>, from: Port| NodePlan {
        name: name.to_owned(),
        kind,
        step,
        inputs: vec![vec![from]],
    };
    let port = |node| Port::Node { node, port: 0 };
    let topology = TopologyPlan {
        name: "count".to_owned(),
        doc: String::new(),
        divisible: false,
        half: None,
        sources: vec![SourcePlan {
            topic: numbers.clone(),
            projection: Projection::of(&numbers, &columns),
            schema: schema.clone(),
            whole: None,
        }],
        nodes: vec![
            node("luck", "luck", Arc::new(Luck(schema.clone())), Port::Source(0)),
            node("tally", "tally", Arc::new(Tally { input: schema.clone(), total: false }), port(0)),
            node("total", "tally", Arc::new(Tally { input: schema, total: true }), port(1)),
        ],
        outputs: vec![
            OutputPlan { topic: counts("counts"), from: port(1) },
            OutputPlan { topic: counts("totals"), from: port(2) },
        ],
        late: vec![Some(Arc::new(late))],
    };
    Arc::new(Plan { catalogue: Catalogue::default(), topologies: vec![Arc::new(topology)] })
}

/// Creates the topics that the plan reads and writes.
pub(crate) fn ensure(broker: &dyn Broker, plan: &Plan) {
    for topology in &plan.topologies {
        let mut topics: Vec<Arc<TopicSpec>> = topology.sources.iter().map(|source| source.topic.clone()).collect();
        topics.extend(topology.outputs.iter().map(|output| output.topic.clone()));
        topics.extend(topology.late.iter().flatten().cloned());
        broker.ensure_topics(&topics).unwrap();
    }
}

/// (name, n, event time in seconds).
pub(crate) type Number = (String, i64, i64);

/// Appends records in one commit.
pub(crate) fn append(broker: &dyn Broker, numbers_: &[Number]) {
    let topic = numbers();
    let schema: SchemaRef = topic.append_schema();
    let rows = numbers_.len();
    let names: ArrayRef = Arc::new(StringArray::from_iter_values(numbers_.iter().map(|n| &n.0)));
    let columns: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .map(|field| -> ArrayRef {
            match field.name().as_str() {
                schema::KEY | "name" => names.clone(),
                "n" => Arc::new(Int64Array::from_iter_values(numbers_.iter().map(|n| n.1))),
                schema::EVENT_TIME => Arc::new(
                    TimestampMicrosecondArray::from_iter_values(numbers_.iter().map(|n| n.2 * SECOND)).with_timezone("UTC"),
                ),
                schema::TYPE => Arc::new(StringArray::from(vec!["ROW"; rows])),
                _ => arrow::array::new_null_array(field.data_type(), rows),
            }
        })
        .collect();
    let rows = RecordBatch::try_new(schema, columns).unwrap();
    let append = Append { rows: vec![TopicRows { topic, rows }], ..Append::default() };
    broker.append(append).unwrap().wait().unwrap();
}

/// Rows of `counts` or `totals` as (window in seconds, name, n), sorted.
pub(crate) fn rows_of(batch: &RecordBatch) -> Vec<(i64, String, i64)> {
    let mut rows: Vec<_> = (0..batch.num_rows())
        .map(|row| {
            let name = col::<StringArray>(batch, "name").value(row).to_owned();
            (col::<Int64Array>(batch, "window").value(row) / SECOND, name, col::<Int64Array>(batch, "n").value(row))
        })
        .collect();
    rows.sort();
    rows
}

/// Records of a topic of numbers as (name, n, event time in seconds), sorted.
pub(crate) fn numbers_of(batch: &RecordBatch) -> Vec<Number> {
    let mut rows: Vec<_> = (0..batch.num_rows())
        .map(|row| {
            let name = col::<StringArray>(batch, "name").value(row).to_owned();
            let time = col::<TimestampMicrosecondArray>(batch, schema::EVENT_TIME).value(row) / SECOND;
            (name, col::<Int64Array>(batch, "n").value(row), time)
        })
        .collect();
    rows.sort();
    rows
}
