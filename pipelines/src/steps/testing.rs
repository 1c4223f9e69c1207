//! Runs one step by hand: rows in, epochs ended, state moved to another number of workers.

use crate::expr::StreamSchema;
use crate::operator::{Counts, Emit, EpochTime, KEY_GROUPS, KEY_HASH, Keyed, Operator, Rows, Stateless};
use crate::step::{Step, StepContext};
use arrow::array::{
    ArrayRef, Float64Array, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
    UInt32Array, UInt64Array,
};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::display::array_value_to_string;
use quikflow_topics::catalogue::{Catalogue, TopicKind};
use quikflow_topics::declaration;
use quikflow_topics::diagnostics::{Diagnostic, SourceFile};
use quikflow_topics::ids::{Epoch, EventTime};
use quikflow_topics::schema;
use std::sync::Arc;

/// Microseconds in a second.
pub(crate) const SECOND: i64 = 1_000_000;

/// A stream of events with the fields a, b (text), n (int), x (float), tags (list<string>).
pub(crate) fn stream() -> StreamSchema {
    let mut fields: Vec<Field> = crate::operator::ORIGIN_COLUMNS.map(schema::system_field).to_vec();
    fields.push(schema::system_field(schema::KEY));
    fields.push(schema::system_field(schema::TYPE));
    fields.push(Field::new("a", DataType::Utf8, true));
    fields.push(Field::new("b", DataType::Utf8, true));
    fields.push(Field::new("n", DataType::Int64, true));
    fields.push(Field::new("x", DataType::Float64, true));
    fields.push(Field::new("tags", DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))), true));
    StreamSchema { arrow: Arc::new(Schema::new(fields)), kind: TopicKind::Events }
}

/// One event; `watermark` in seconds, like `at`.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    /// Microseconds.
    pub(crate) at: i64,
    /// Microseconds.
    pub(crate) watermark: i64,
    pub(crate) ty: &'static str,
    pub(crate) a: Option<String>,
    pub(crate) b: Option<String>,
    pub(crate) n: Option<i64>,
    pub(crate) x: Option<f64>,
    pub(crate) tags: Option<Vec<String>>,
}

/// An event at second `at` of partition 0 with field `a`.
pub(crate) fn event(offset: u64, at: i64, a: &str) -> Event {
    Event {
        partition: 0,
        offset,
        at: at * SECOND,
        watermark: i64::MIN,
        ty: "E",
        a: Some(a.to_owned()),
        b: None,
        n: None,
        x: None,
        tags: None,
    }
}

/// Events as a batch of [`stream`].
pub(crate) fn batch(events: &[Event]) -> RecordBatch {
    let mut tags = ListBuilder::new(StringBuilder::new());
    for event in events {
        match &event.tags {
            Some(list) => tags.append_value(list.iter().map(Some)),
            None => tags.append_null(),
        }
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(events.iter().map(|e| e.partition))),
        Arc::new(UInt64Array::from_iter_values(events.iter().map(|e| e.offset))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(events.iter().map(|e| e.at)).with_timezone("UTC")),
        Arc::new(Int64Array::from_iter_values(events.iter().map(|e| e.watermark))),
        Arc::new(events.iter().map(|e| e.a.clone()).collect::<StringArray>()),
        Arc::new(StringArray::from_iter_values(events.iter().map(|e| e.ty))),
        Arc::new(events.iter().map(|e| e.a.clone()).collect::<StringArray>()),
        Arc::new(events.iter().map(|e| e.b.clone()).collect::<StringArray>()),
        Arc::new(events.iter().map(|e| e.n).collect::<Int64Array>()),
        Arc::new(events.iter().map(|e| e.x).collect::<Float64Array>()),
        Arc::new(tags.finish()),
    ];
    RecordBatch::try_new(stream().arrow, columns).unwrap()
}

/// Plans the step `{ … }` over some inputs.
pub(crate) fn plan_on(toml: &str, inputs: Vec<StreamSchema>) -> Result<Box<dyn Step>, Vec<Diagnostic>> {
    let file = SourceFile::new("test.toml", format!("step = {toml}\n"));
    let tree = declaration::parse(&file)?;
    let table = tree.get("step").unwrap().table().unwrap();
    let kind = super::KINDS.iter().find(|kind| table.get(kind.name).is_some()).expect("a step of a known kind");
    let value = table.get(kind.name).unwrap();
    let catalogue = Catalogue::default();
    let name = "step".to_owned();
    let sources = (0..inputs.len()).map(|i| vec![(i, format!("topic.{i}"))]).collect();
    (kind.plan)(&mut StepContext { table, value, name, inputs, sources, wanted: None, catalogue: &catalogue, topology: "test" })
}

/// Plans the step over [`stream`]; mistakes are the test's.
pub(crate) fn plan(toml: &str) -> Box<dyn Step> {
    plan_on(toml, vec![stream()]).unwrap_or_else(|mistakes| panic!("{}", show(&mistakes)))
}

/// The mistakes in the step, as people see them.
pub(crate) fn mistakes(toml: &str) -> String {
    match plan_on(toml, vec![stream()]) {
        Ok(_) => panic!("no mistake found in {toml}"),
        Err(mistakes) => show(&mistakes),
    }
}

fn show(mistakes: &[Diagnostic]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n")
}

/// A batch's rows as `column=value` in the columns' order, without the origin columns and nulls.
pub(crate) fn rows_of(batch: &RecordBatch) -> Vec<String> {
    let schema = batch.schema();
    let row = |row: usize| {
        let cells = schema.fields().iter().zip(batch.columns()).skip(4);
        let cells = cells.filter(|(_, column)| column.is_valid(row));
        cells
            .map(|(field, column)| format!("{}={}", field.name(), array_value_to_string(column, row).unwrap()))
            .collect::<Vec<_>>()
            .join(" ")
    };
    (0..batch.num_rows()).map(row).collect()
}

/// A keyed step on some workers, with the state that it has written so far.
pub(crate) struct Shards {
    prepare: Vec<Box<dyn Stateless>>,
    pub(crate) apply: Vec<Box<dyn Keyed>>,
    /// Of each shard, in order: (bytes, snapshot).
    pieces: Vec<Vec<(Vec<u8>, bool)>>,
    output: Arc<Schema>,
    pub(crate) counts: Counts,
    pub(crate) dead: Vec<crate::operator::DeadRow>,
    pub(crate) late: Vec<(u32, u64)>,
    epoch: u64,
}

impl Shards {
    pub(crate) fn new(step: &dyn Step, workers: usize) -> Shards {
        let built = (0..workers).map(|_| step.build());
        let mut prepare = Vec::new();
        let mut apply = Vec::new();
        for operator in built {
            let Operator::Keyed { prepare: p, apply: a } = operator else { panic!("the step is keyed") };
            prepare = p;
            apply.push(a);
        }
        Shards {
            prepare,
            apply,
            pieces: vec![Vec::new(); workers],
            output: step.outputs()[0].arrow.clone(),
            counts: Counts::default(),
            dead: Vec::new(),
            late: Vec::new(),
            epoch: 0,
        }
    }

    /// Throws the operators away and builds them anew from what they have written.
    pub(crate) fn restore(self, step: &dyn Step, workers: usize) -> Shards {
        let mut restored = Shards::new(step, workers);
        for (index, operator) in restored.apply.iter_mut().enumerate() {
            for pieces in &self.pieces {
                for (bytes, snapshot) in pieces {
                    operator.restore(bytes, *snapshot, &|group| group as usize % workers == index).unwrap();
                }
            }
            let whole = operator.snapshot();
            restored.pieces[index].push((whole, true));
        }
        Shards { counts: self.counts, dead: self.dead, late: self.late, epoch: self.epoch, ..restored }
    }

    fn gather(&mut self, emit: Emit, rows: &mut Vec<String>) {
        for (_, out) in &emit.rows {
            assert_eq!(out.batch.schema(), self.output);
            rows.extend(rows_of(&out.batch));
        }
        let c = emit.counts;
        self.counts.input += c.input;
        self.counts.applied += c.applied;
        self.counts.filtered += c.filtered;
        self.counts.duplicate += c.duplicate;
        self.counts.late += c.late;
        self.counts.dead += c.dead;
        self.counts.output += c.output;
        self.dead.extend(emit.dead);
        self.late.extend(emit.late.iter().map(|l| (l.partition.0, l.offset.0)));
    }

    /// Rows of an input go to the workers that own their keys; gives the rows that come out.
    pub(crate) fn rows(&mut self, input: usize, rows: Rows) -> Vec<String> {
        let mut out = Vec::new();
        let mut prepared = Emit::default();
        self.prepare[input].on_rows(rows, &mut prepared).unwrap();
        self.counts.filtered += prepared.counts.filtered;
        self.counts.dead += prepared.counts.dead;
        self.counts.input += prepared.counts.filtered + prepared.counts.dead;
        self.dead.extend(prepared.dead);
        let workers = self.apply.len();
        for (_, rows) in prepared.rows {
            let last = rows.batch.num_columns() - 1;
            assert_eq!(rows.batch.schema().field(last).name(), KEY_HASH);
            let hashes: &UInt64Array = rows.batch.column(last).as_any().downcast_ref().unwrap();
            for worker in 0..workers {
                let mine = (0..hashes.len()).filter(|i| (hashes.value(*i) % u64::from(KEY_GROUPS)) as usize % workers == worker);
                let mine: UInt32Array = mine.map(|i| Some(i as u32)).collect();
                if mine.is_empty() {
                    continue;
                }
                let mut emit = Emit::default();
                let part = Rows { source: rows.source, batch: take_record_batch(&rows.batch, &mine).unwrap() };
                self.apply[worker].on_rows(input, part, &mut emit).unwrap();
                self.gather(emit, &mut out);
            }
        }
        out
    }

    /// Events of source 0 on input 0.
    pub(crate) fn events(&mut self, events: &[Event]) -> Vec<String> {
        self.rows(0, Rows { source: 0, batch: batch(events) })
    }

    /// Ends the epoch with this watermark of every source, and writes the state.
    pub(crate) fn end(&mut self, watermark: i64) -> Vec<String> {
        let wall_clock = EventTime(0);
        self.end_at(EpochTime {
            epoch: Epoch(0),
            watermark: EventTime(watermark),
            sources: vec![EventTime(watermark); 2],
            wall_clock,
        })
    }

    /// The same with all of the time given, but for the epoch's number.
    pub(crate) fn end_at(&mut self, time: EpochTime) -> Vec<String> {
        self.epoch += 1;
        let time = EpochTime { epoch: Epoch(self.epoch), ..time };
        let mut out = Vec::new();
        for worker in 0..self.apply.len() {
            let mut emit = Emit::default();
            self.apply[worker].on_epoch_end(&time, &mut emit).unwrap();
            self.gather(emit, &mut out);
            let operator = &mut self.apply[worker];
            let piece = match self.epoch % 4 {
                3 => Some((operator.snapshot(), true)),
                _ => operator.delta().map(|bytes| (bytes, false)),
            };
            if let Some((bytes, snapshot)) = piece {
                if snapshot {
                    self.pieces[worker].clear();
                }
                self.pieces[worker].push((bytes, snapshot));
            }
        }
        let in_flight: u64 = self.apply.iter().map(|a| a.in_flight()).sum();
        let c = &self.counts;
        assert_eq!(
            c.input,
            c.applied + c.filtered + c.duplicate + c.late + c.dead + in_flight,
            "R20: each record has one fate: {c:?}, {in_flight} in flight"
        );
        out
    }
}
