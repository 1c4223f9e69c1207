//! Expressions over a small stream of events, and over one of rows.

use super::*;
use arrow::array::{Int64Array, StringArray, TimestampMicrosecondArray, new_null_array};
use arrow::datatypes::{Field, Schema};
use quikflow_topics::declaration::{Table, parse};
use quikflow_topics::diagnostics::SourceFile;
use quikflow_topics::schema::{arrow_type, system_field};
use quikflow_topics::{FieldType, schema};

fn stream(kind: TopicKind) -> StreamSchema {
    let mut fields: Vec<Field> =
        [schema::PARTITION, schema::OFFSET, schema::EVENT_TIME, schema::WATERMARK, schema::KEY, schema::TYPE]
            .iter()
            .map(|name| system_field(name))
            .collect();
    fields.push(Field::new("channelId", DataType::Utf8, true));
    fields.push(Field::new("length", DataType::Int64, true));
    fields.push(Field::new("tags", arrow_type(FieldType::StringList), true));
    fields.push(Field::new("user", DataType::Utf8, true));
    StreamSchema { arrow: Arc::new(Schema::new(fields)), kind }
}

fn table(sql: &str) -> Table {
    let quoted = if sql.contains('\'') { format!("x = \"{sql}\"\n") } else { format!("x = '{sql}'\n") };
    parse(&SourceFile::new("t.toml", quoted)).unwrap()
}

fn compiled(sql: &str) -> Result<Expr, String> {
    Expr::compile(table(sql).get("x").unwrap(), &stream(TopicKind::Events)).map_err(|d| d.to_string())
}

fn condition(sql: &str) -> Result<Expr, String> {
    Expr::compile_bool(table(sql).get("x").unwrap(), &stream(TopicKind::Events)).map_err(|d| d.to_string())
}

fn batch() -> RecordBatch {
    let arrow = stream(TopicKind::Events).arrow;
    let texts = |values: [&str; 3]| Arc::new(StringArray::from_iter_values(values)) as ArrayRef;
    let mut columns: Vec<ArrayRef> = arrow.fields().iter().map(|f| new_null_array(f.data_type(), 3)).collect();
    columns[0] = Arc::new(arrow::array::UInt32Array::from(vec![0; 3]));
    columns[1] = Arc::new(arrow::array::UInt64Array::from(vec![0, 1, 2]));
    columns[2] = Arc::new(TimestampMicrosecondArray::from(vec![0, 1_767_225_600_000_000, 5]).with_timezone("UTC"));
    columns[3] = Arc::new(Int64Array::from(vec![i64::MIN; 3]));
    columns[5] = texts(["A", "B", "A"]);
    columns[6] = texts(["1", "x", "3"]);
    columns[7] = Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]));
    RecordBatch::try_new(arrow, columns).unwrap()
}

#[test]
fn a_plain_column_is_not_copied() {
    let expr = compiled("payload.channelId").unwrap();
    let batch = batch();
    let out = expr.evaluate(&batch).unwrap();
    assert!(Arc::ptr_eq(&out, batch.column(6)));
    assert_eq!(expr.columns, ["channelId"]);
}

#[test]
fn names_of_events_and_rows_are_found() {
    for (sql, columns) in [
        ("type = 'A'", vec!["_type"]),
        ("event_time > '2025-12-31T23:59:59Z'", vec!["_event_time"]),
        ("payload.tags[1] = 'x'", vec!["tags"]),
        ("array_length(payload.tags) > 0", vec!["tags"]),
        ("user = 'u' and key is null", vec!["_key", "user"]),
        ("payload.\\\"channelId\\\" in ('a', 'b')", vec!["channelId"]),
        ("_offset >= 7", vec!["_offset"]),
        ("case when type = 'A' then payload.length > 1 else false end", vec!["_type", "length"]),
    ] {
        let expr = condition(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        assert_eq!(expr.columns, columns, "{sql}");
    }
    let rows = stream(TopicKind::Rows);
    assert_eq!(Expr::compile(table("channelId").get("x").unwrap(), &rows).unwrap().columns, ["channelId"]);
    let error = Expr::compile(table("payload.channelId").get("x").unwrap(), &rows).unwrap_err();
    assert_eq!(error.help.unwrap(), "did you mean `channelId`? available: channelId, length, tags, user, type, key, event_time");
}

#[test]
fn literals_become_times_and_are_folded() {
    let expr = condition("event_time > '2025-12-31T23:59:59Z'").unwrap();
    let out = expr.evaluate(&batch()).unwrap();
    let values: Vec<_> = out.as_any().downcast_ref::<arrow::array::BooleanArray>().unwrap().iter().collect();
    assert_eq!(values, [Some(false), Some(true), Some(false)]);
    assert!(!format!("{}", expr.physical).contains("CAST"), "{}", expr.physical);
    assert_eq!(compiled("1 + 2").unwrap().constant(), Some(ScalarValue::Int64(Some(3))));
}

#[test]
fn what_is_yielded_is_what_topics_store() {
    for (sql, ty) in [
        ("character_length(payload.channelId)", DataType::Int64),
        ("payload.length / 2.5", DataType::Float64),
        ("upper(payload.channelId)", DataType::Utf8),
        ("substr(payload.channelId, 1, 2)", DataType::Utf8),
        ("date_trunc('minute', event_time)", schema::time_type()),
        ("string_to_array(payload.channelId, ',')", arrow_type(FieldType::StringList)),
        ("null", DataType::Utf8),
    ] {
        let expr = compiled(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        assert_eq!(expr.data_type, ty, "{sql}");
        assert_eq!(expr.evaluate(&batch()).unwrap().data_type(), &ty, "{sql}");
    }
}

#[test]
fn mistakes_stand_under_a_caret() {
    for (sql, message, caret, help) in [
        ("payload.chanelId = 'x'", "unknown column `payload.chanelId`", "payload.chanelId", "did you mean `payload.channelId`?"),
        ("type = 'A' and payload.length > 'x'", "this compares a number with text", "payload.length > 'x'", ""),
        ("now() > event_time", "gives another answer each time", "now", "the record's own"),
        ("random() > 0.5", "gives another answer each time", "random", "the record's own"),
        ("count(*) > 1", "`count` aggregates many records", "count", "`aggregate`"),
        ("lowr(type) = 'a'", "unknown function `lowr`", "lowr", "did you mean `lower`?"),
        ("type = ", "expected an expression, found the end", "type = ", ""),
        ("type = 'a' )", "expected an operator or the end, found )", ")", ""),
        ("payload.length", "a condition is wanted here, and this is a number", "payload.length", "compare it"),
        ("exists (select 1)", "it cannot hold a query", "exists", "`join`"),
    ] {
        let table = table(sql);
        let error = Expr::compile_bool(table.get("x").unwrap(), &stream(TopicKind::Events)).unwrap_err();
        let lower = error.message.to_lowercase();
        assert!(lower.contains(&message.to_lowercase()), "{sql}: {}", error.message);
        let marked = error.file.text.get(error.span.clone()).unwrap();
        assert!(marked.contains(caret), "{sql}: marked {marked}");
        assert!(error.help.clone().unwrap_or_default().contains(help), "{sql}: {:?}", error.help);
    }
}

#[test]
fn text_is_made_of_numbers() {
    let expr = Expr::compile_text(table("payload.length").get("x").unwrap(), &stream(TopicKind::Events)).unwrap();
    let out = expr.evaluate(&batch()).unwrap();
    assert_eq!(out.as_any().downcast_ref::<StringArray>().unwrap().value(0), "1");
    let error = Expr::compile_text(table("payload.tags").get("x").unwrap(), &stream(TopicKind::Events)).unwrap_err();
    assert_eq!(error.message, "text is wanted here, and this is a list of text");
}

#[test]
fn aggregates_are_taken_apart() {
    let call =
        |sql: &str| AggregateCall::compile(table(sql).get("x").unwrap(), &stream(TopicKind::Events)).map_err(|d| d.to_string());
    let count = call("count(*)").unwrap();
    assert_eq!((count.function.as_str(), count.args.len(), count.distinct), ("count", 0, false));
    let distinct = call("COUNT(distinct payload.user) filter (where type = 'A')").unwrap();
    assert!(distinct.distinct);
    assert_eq!(distinct.columns(), ["_type", "user"]);
    for sql in [
        "approx_percentile_cont(character_length(payload.channelId), 0.95)",
        "approx_percentile_cont(0.95) within group (order by character_length(payload.channelId))",
    ] {
        let percentile = call(sql).unwrap();
        assert_eq!(percentile.args[0].data_type, DataType::Int64, "{sql}");
        assert_eq!(percentile.args[1].constant(), Some(ScalarValue::Float64(Some(0.95))), "{sql}");
    }
    for (sql, message) in [
        ("sum(payload.length) / count(*)", "one call of an aggregate function"),
        ("summ(payload.length)", "did you mean `sum`?"),
        ("upper(type)", "sees one record"),
        ("sum(payload.lenght)", "did you mean `payload.length`?"),
        ("count(*) filter (where payload.length)", "a condition is wanted"),
    ] {
        assert!(call(sql).unwrap_err().contains(message), "{sql}: {}", call(sql).unwrap_err());
    }
}
