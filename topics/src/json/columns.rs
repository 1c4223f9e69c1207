//! Column builders of a topic. A field that no row has costs nothing: nulls are filled in when a
//! later value comes, or at the end.

use crate::catalogue::{FieldType, TopicSpec};
use crate::schema;
use arrow::array::{
    ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, ListBuilder, RecordBatch, StringBuilder, TimestampMicrosecondBuilder,
    new_null_array,
};
use arrow::error::ArrowError;
use std::sync::Arc;

/// A column of text.
#[derive(Default)]
pub(super) struct TextColumn {
    builder: StringBuilder,
    rows: usize,
    /// Nobody asks for it.
    unasked: bool,
}

impl TextColumn {
    /// Sets the value of `row`; rows between the last one set and this one are null.
    #[inline]
    pub(super) fn set(&mut self, row: usize, value: &str) {
        if self.unasked {
            return;
        }
        if row > self.rows {
            self.builder.append_nulls(row - self.rows);
        }
        self.builder.append_value(value);
        self.rows = row + 1;
    }

    fn finish(mut self, rows: usize) -> ArrayRef {
        self.builder.append_nulls(rows - self.rows);
        Arc::new(self.builder.finish())
    }
}

enum Builder {
    Text(TextColumn),
    Int(Int64Builder),
    Float(Float64Builder),
    Bool(BooleanBuilder),
    Time(TimestampMicrosecondBuilder),
    List(Box<ListBuilder<StringBuilder>>),
}

/// A column of a declared field.
pub(super) struct Column {
    ty: FieldType,
    builder: Option<Builder>,
    rows: usize,
    /// Nobody asks for it.
    unasked: bool,
}

macro_rules! setter {
    ($(#[$doc:meta])* $name:ident($value:ty), $variant:ident, $new:expr) => {
        $(#[$doc])*
        #[inline]
        pub(super) fn $name(&mut self, row: usize, value: $value) {
            if self.unasked {
                return;
            }
            let pad = row - self.rows;
            self.rows = row + 1;
            if let Builder::$variant(builder) = self.builder.get_or_insert_with(|| Builder::$variant($new)) {
                if pad > 0 {
                    builder.append_nulls(pad);
                }
                builder.append_value(value);
            }
        }
    };
}

impl Column {
    fn new(ty: FieldType) -> Column {
        Column { ty, builder: None, rows: 0, unasked: false }
    }

    setter!(
        /// Sets an `int`.
        set_int(i64), Int, Int64Builder::new()
    );
    setter!(
        /// Sets a `float`.
        set_float(f64), Float, Float64Builder::new()
    );
    setter!(
        /// Sets a `bool`.
        set_bool(bool), Bool, BooleanBuilder::new()
    );
    setter!(
        /// Sets a `timestamp`.
        set_time(i64), Time, TimestampMicrosecondBuilder::new().with_timezone("UTC")
    );

    /// Sets a `string`, or a `json`'s text.
    #[inline]
    pub(super) fn set_text(&mut self, row: usize, value: &str) {
        if self.unasked {
            return;
        }
        self.rows = row + 1;
        if let Builder::Text(column) = self.builder.get_or_insert_with(|| Builder::Text(TextColumn::default())) {
            column.set(row, value);
        }
    }

    /// Sets a `list<string>`: `fill` appends its items.
    pub(super) fn set_list(&mut self, row: usize, fill: impl FnOnce(&mut StringBuilder)) {
        if self.unasked {
            return;
        }
        let pad = row - self.rows;
        self.rows = row + 1;
        let new = || Builder::List(Box::new(ListBuilder::new(StringBuilder::new())));
        if let Builder::List(builder) = self.builder.get_or_insert_with(new) {
            if pad > 0 {
                builder.append_nulls(pad);
            }
            fill(builder.values());
            builder.append(true);
        }
    }

    fn finish(self, rows: usize) -> ArrayRef {
        let missing = rows - self.rows;
        macro_rules! finished {
            ($builder:ident) => {{
                if missing > 0 {
                    $builder.append_nulls(missing);
                }
                Arc::new($builder.finish())
            }};
        }
        match self.builder {
            None => new_null_array(&schema::arrow_type(self.ty), rows),
            Some(Builder::Text(column)) => column.finish(rows),
            Some(Builder::Int(mut b)) => finished!(b),
            Some(Builder::Float(mut b)) => finished!(b),
            Some(Builder::Bool(mut b)) => finished!(b),
            Some(Builder::Time(mut b)) => finished!(b),
            Some(Builder::List(mut b)) => finished!(b),
        }
    }
}

/// The columns of the rows to be appended to one topic.
pub(super) struct TopicColumns {
    pub(super) topic: Arc<TopicSpec>,
    pub(super) rows: usize,
    pub(super) key: TextColumn,
    pub(super) event_time: TimestampMicrosecondBuilder,
    pub(super) ty: TextColumn,
    pub(super) id: TextColumn,
    pub(super) headers: TextColumn,
    pub(super) rest: TextColumn,
    /// By the field's place in the topic.
    pub(super) fields: Vec<Column>,
    /// Each row's line, or index in its array.
    pub(super) lines: Vec<u64>,
}

impl TopicColumns {
    pub(super) fn new(topic: &Arc<TopicSpec>) -> TopicColumns {
        TopicColumns {
            topic: Arc::clone(topic),
            rows: 0,
            key: TextColumn::default(),
            event_time: TimestampMicrosecondBuilder::new().with_timezone("UTC"),
            ty: TextColumn::default(),
            id: TextColumn::default(),
            headers: TextColumn::default(),
            rest: TextColumn::default(),
            fields: topic.fields.iter().map(|field| Column::new(field.ty)).collect(),
            lines: Vec::new(),
        }
    }

    /// The same for who asks for some columns only, by name; the event time is always there.
    pub(super) fn only(topic: &Arc<TopicSpec>, names: &[String]) -> TopicColumns {
        let mut columns = TopicColumns::new(topic);
        let unasked = |name: &str| !names.iter().any(|asked| asked == name);
        columns.key.unasked = unasked(schema::KEY);
        columns.ty.unasked = unasked(schema::TYPE);
        columns.id.unasked = unasked(schema::ID);
        columns.headers.unasked = unasked(schema::HEADERS);
        columns.rest.unasked = unasked(schema::REST);
        for (column, field) in columns.fields.iter_mut().zip(&topic.fields) {
            column.unasked = unasked(&field.name);
        }
        columns
    }

    /// A batch of the columns that are asked for, in the order of [`TopicSpec::append_schema`].
    pub(super) fn finish_asked(mut self) -> Result<RecordBatch, ArrowError> {
        let rows = self.rows;
        let mut columns: Vec<Option<ArrayRef>> = Vec::with_capacity(schema::APPEND_SYSTEM.len() + self.fields.len());
        columns.push((!self.key.unasked).then(|| self.key.finish(rows)));
        columns.push(Some(Arc::new(self.event_time.finish())));
        for column in [self.ty, self.id, self.headers, self.rest] {
            columns.push((!column.unasked).then(|| column.finish(rows)));
        }
        columns.extend(self.fields.into_iter().map(|column| (!column.unasked).then(|| column.finish(rows))));
        let asked: Vec<usize> = (0..columns.len()).filter(|at| columns[*at].is_some()).collect();
        let schema = Arc::new(self.topic.append_schema().project(&asked)?);
        RecordBatch::try_new(schema, columns.into_iter().flatten().collect())
    }

    /// A batch in [`TopicSpec::append_schema`], and the rows' lines.
    pub(super) fn finish(mut self) -> Result<(RecordBatch, Vec<u64>), ArrowError> {
        let rows = self.rows;
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema::APPEND_SYSTEM.len() + self.fields.len());
        columns.push(self.key.finish(rows));
        columns.push(Arc::new(self.event_time.finish()));
        for column in [self.ty, self.id, self.headers, self.rest] {
            columns.push(column.finish(rows));
        }
        columns.extend(self.fields.into_iter().map(|column| column.finish(rows)));
        Ok((RecordBatch::try_new(self.topic.append_schema(), columns)?, self.lines))
    }
}
