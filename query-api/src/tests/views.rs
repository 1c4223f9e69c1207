//! Views: pages, filters, groups, refusals.

use super::house::{House, MINUTE, NOON};
use super::house::{MemoryStores, channel_activity};
use crate::state::{Freshness, QueryLimits};
use quikflow_topics::ids::EventTime;
use serde_json::{Value, json};

fn rows(answer: &Value) -> Vec<Value> {
    answer["rows"].as_array().unwrap_or_else(|| panic!("no rows in {answer}")).clone()
}

#[tokio::test]
async fn the_list_describes_each_view() {
    let house = House::usual();
    let (status, answer) = house.get("/v1/views").await;
    assert_eq!(status, 200);
    let names: Vec<&str> = answer["views"].as_array().unwrap().iter().filter_map(|v| v["name"].as_str()).collect();
    assert_eq!(names, ["channel_activity", "dead_letters", "lag"]);
    let view = &answer["views"][0];
    assert_eq!(view["columns"][0], json!({"name": "window_start", "type": "timestamp", "nullable": true}));
    assert_eq!(view["rollup"], json!({"messages": "sum", "characters": "sum"}));
}

#[tokio::test]
async fn an_unknown_view_is_named_with_those_there_are() {
    let (status, answer) = House::usual().get("/v1/views/chanel_activity").await;
    assert_eq!(status, 404);
    assert_eq!(answer["views"], json!(["channel_activity", "dead_letters", "lag"]));
    assert!(answer["detail"].as_str().unwrap().contains("did you mean `channel_activity`?"));
}

#[tokio::test]
async fn a_row_is_as_declared_and_the_answer_says_where_it_stands() {
    let (status, answer) = House::usual().get("/v1/views/channel_activity?where=channel%3D'c1'&limit=1").await;
    assert_eq!(status, 200, "{answer}");
    let row = json!({
        "window_start": "2026-01-01T12:00:00Z", "window_end": "2026-01-01T12:01:00Z", "channel": "c1", "messages": 1,
        "authors": 1, "characters": 100, "p95_length": 1.5, "final": true, "tags": ["t1", "a \"b\", c"],
    });
    assert_eq!(rows(&answer), [row]);
    assert_eq!(answer["watermark"], "2026-01-01T13:30:00Z");
    assert_eq!(answer["as_of"], json!({"topic": "analytics.channel-activity", "offsets": {"0": 42}}));
}

#[tokio::test]
async fn r07_open_rows_are_rows_with_a_flag() {
    let house = House::usual();
    let (_, closed) = house.get("/v1/views/channel_activity?limit=10000").await;
    let (_, all) = house.get("/v1/views/channel_activity?limit=10000&include_open=true").await;
    assert_eq!((rows(&closed).len(), rows(&all).len()), (89 * 3, 90 * 3));
    assert!(rows(&closed).iter().all(|r| r["final"] == true));
    assert_eq!(rows(&all).iter().filter(|r| r["final"] == false).count(), 3);
}

async fn pages(house: &House, query: &str) -> (Vec<Value>, usize) {
    let (mut all, mut cursor, mut count) = (Vec::new(), String::new(), 0);
    loop {
        let path = format!("/v1/views/channel_activity?{query}&limit=7{cursor}");
        let (status, answer) = house.get(&path).await;
        assert_eq!(status, 200, "{path}: {answer}");
        all.extend(rows(&answer));
        count += 1;
        match answer["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return (all, count),
        }
    }
}

#[tokio::test]
async fn pages_together_are_the_whole_in_order() {
    let house = House::usual();
    for query in [
        "include_open=false",
        "order_by=-messages",
        "order_by=authors:desc,channel",
        "order_by=authors",
        "order_by=p95_length&columns=messages",
        "group_by=channel,window_start:5m&columns=messages&order_by=-messages",
        "group_by=window_start:10m&columns=characters",
        "where=messages%20%3E%20400&order_by=-window_start",
    ] {
        let (_, whole) = house.get(&format!("/v1/views/channel_activity?{query}&limit=10000")).await;
        let (paged, count) = pages(&house, query).await;
        assert!(!paged.is_empty(), "{query}");
        assert_eq!(count, paged.len().div_ceil(7).max(1), "{query}");
        assert_eq!(paged, rows(&whole), "{query}");
    }
}

#[tokio::test]
async fn a_cursor_belongs_to_its_request() {
    let house = House::usual();
    let (_, first) = house.get("/v1/views/channel_activity?limit=2").await;
    let cursor = first["cursor"].as_str().unwrap();
    let (status, _) = house.get(&format!("/v1/views/channel_activity?limit=2&order_by=-messages&cursor={cursor}")).await;
    assert_eq!(status, 422);
    for bad in ["x", "eyJoIjoxfQ", "%00"] {
        let (status, answer) = house.get(&format!("/v1/views/channel_activity?cursor={bad}")).await;
        assert_eq!((status.as_u16(), &answer["errors"][0]["path"]), (422, &json!("cursor")), "{bad}");
    }
}

#[tokio::test]
async fn r21_counts_and_sums_add_up() {
    let house = House::usual();
    let query = "group_by=channel,window_start:1h&columns=messages,characters";
    let (status, answer) = house.get(&format!("/v1/views/channel_activity?{query}")).await;
    assert_eq!(status, 200, "{answer}");
    // Of the second hour 29 minutes are there and it is not over: it is not final.
    assert_eq!(rows(&answer).len(), 3);
    let minutes: i64 = (0..60).map(|m| m * 10 + 1).sum();
    let expected = json!({
        "channel": "c1", "window_start": "2026-01-01T12:00:00Z", "window_end": "2026-01-01T13:00:00Z",
        "messages": minutes, "characters": 6000, "final": true,
    });
    assert_eq!(rows(&answer)[1], expected);
    let (_, open) = house.get(&format!("/v1/views/channel_activity?{query}&include_open=true")).await;
    assert_eq!(rows(&open).len(), 6);
    assert_eq!(rows(&open)[5]["final"], false);
}

#[tokio::test]
async fn r21_distinct_counts_and_percentiles_do_not_roll_up() {
    let house = House::usual();
    let (status, answer) = house.get("/v1/views/channel_activity?group_by=channel").await;
    assert_eq!(status, 422);
    let named: Vec<&str> = answer["errors"].as_array().unwrap().iter().filter_map(|e| e["path"].as_str()).collect();
    assert_eq!(named, ["authors", "p95_length", "tags"]);
    assert!(answer["detail"].as_str().unwrap().contains("columns=characters,messages"), "{answer}");
    // Grouped by its whole key each group is one row: nothing has to roll up.
    let (status, answer) = house.get("/v1/views/channel_activity?group_by=window_start,channel&limit=1").await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(rows(&answer)[0]["p95_length"], 0.5);
}

#[tokio::test]
async fn a_bucket_does_not_cut_windows() {
    let (status, answer) = House::usual().get("/v1/views/channel_activity?group_by=window_start:90s&columns=messages").await;
    assert_eq!(status, 422);
    assert!(answer["detail"].as_str().unwrap().contains("take a multiple"), "{answer}");
}

#[tokio::test]
async fn where_it_is_unknown_how_far_windows_are_closed_a_bucket_is_not_called_final() {
    let stores = MemoryStores { tables: vec![channel_activity(90, 3)], documents: Vec::new() };
    let house = House::new(stores, Freshness::default(), QueryLimits::default());
    let (_, answer) = house.get("/v1/views/channel_activity?group_by=window_start:1h&columns=messages").await;
    assert_eq!(rows(&answer).iter().map(|r| r["final"].clone()).collect::<Vec<_>>(), [Value::Null, Value::Null]);
    assert_eq!(answer["watermark"], Value::Null);
}

#[tokio::test]
async fn a_range_is_half_open() {
    let path = "/v1/views/channel_activity?from=2026-01-01T12:10:00Z&to=2026-01-01T12:12:00Z&columns=window_start";
    let (_, answer) = House::usual().get(path).await;
    let starts: std::collections::BTreeSet<String> =
        rows(&answer).iter().map(|r| r["window_start"].as_str().unwrap().to_owned()).collect();
    let shown = |m: i64| crate::times::show(EventTime(NOON + m * MINUTE)).unwrap();
    assert_eq!(starts.into_iter().collect::<Vec<_>>(), [shown(10), shown(11)]);
}

#[tokio::test]
async fn mistakes_are_named() {
    let house = House::usual();
    for (query, path, says) in [
        ("form=2026-01-01", "form", "did you mean `from`?"),
        ("from=yesterday", "from", "RFC 3339"),
        ("from=2026-02-01&to=2026-01-01", "from", "after `to`"),
        ("limit=0", "limit", "from 1 to 10000"),
        ("limit=10001", "limit", "from 1 to 10000"),
        ("include_open=yes", "include_open", "true or false"),
        ("columns=mesages", "columns", "did you mean `messages`?"),
        ("order_by=messages+sideways", "order_by", "column:desc"),
        ("order_by=tags", "order_by", "no order"),
        ("order_by=messages&group_by=window_start:1h&columns=characters", "order_by", "not in the grouped answer"),
        ("group_by=channel:1h", "group_by", "no time"),
        ("group_by=window_start:1parsec", "group_by", "such as 30s"),
        ("group_by=window_start:0s", "group_by", "longer than nothing"),
        ("group_by=channel,channel", "group_by", "twice"),
        ("format=xml", "format", "json, csv, arrow, parquet"),
        ("where=chanel='c1'", "where", "chanel"),
        ("where=messages", "where", "true or false"),
        ("where=messages+%3E", "where", ""),
        ("where=true)+or+(true", "where", ""),
        ("where=exists(select+1)", "where", ""),
        ("where=messages+in+(select+1)", "where", ""),
        ("where=sum(messages)%3E1", "where", "one row"),
        ("where=messages=$1", "where", ""),
        ("where=true;drop+table+x", "where", ""),
        ("where=repeat('x',1000000000)='x'", "where", "repeat"),
    ] {
        let (status, answer) = house.get(&format!("/v1/views/channel_activity?{query}")).await;
        assert_eq!(status, 422, "{query}: {answer}");
        assert_eq!(answer["errors"][0]["path"], path, "{query}: {answer}");
        assert!(answer["detail"].as_str().unwrap().contains(says), "{query}: {answer}");
    }
}

#[tokio::test]
async fn values_in_conditions_stay_values() {
    let house = House::usual();
    let (status, answer) = house.get("/v1/views/channel_activity?where=channel+%3D+'c1''+or+true+--'").await;
    assert_eq!((status.as_u16(), rows(&answer).len()), (200, 0));
    let (_, answer) = house.get("/v1/views/channel_activity?where=channel+like+'c%25'+and+messages+between+10+and+12").await;
    assert_eq!(rows(&answer).len(), 3);
}
