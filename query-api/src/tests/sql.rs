//! SQL: what it gives, what it refuses, and its bounds.

use super::house::House;
use crate::state::QueryLimits;
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn views_and_parameters() {
    let house = House::usual();
    let sql = "SELECT channel, sum(messages) AS m FROM channel_activity WHERE final AND channel <> $1 GROUP BY channel ORDER BY channel";
    let (status, answer) = house.post("/v1/sql", json!({"sql": sql, "params": ["c0' OR 'a'='a"]})).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["rows"].as_array().unwrap().len(), 3, "the text is a value, not a condition");
    let named = "SELECT count(*) AS n FROM channel_activity WHERE window_start >= $after AND messages > $least";
    let params = json!({"after": "2026-01-01T13:00:00Z", "least": 0});
    let (status, answer) = house.post("/v1/sql", json!({"sql": named, "params": params})).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["rows"], json!([{"n": 90}]));
    assert_eq!(answer["truncated"], false);
    for params in [json!("x"), json!([[1]]), json!({"a": {}}), json!([])] {
        let (status, answer) = house.post("/v1/sql", json!({"sql": sql, "params": params})).await;
        assert_eq!(status, 422, "{params}: {answer}");
    }
}

#[tokio::test]
async fn joins_windows_and_explain() {
    let house = House::usual();
    for sql in [
        "WITH a AS (SELECT channel FROM channel_activity) SELECT count(*) FROM a JOIN channel_activity USING (channel)",
        "SELECT row_number() OVER (PARTITION BY channel ORDER BY window_start) FROM channel_activity",
        "EXPLAIN SELECT * FROM channel_activity",
        "EXPLAIN ANALYZE SELECT count(*) FROM channel_activity",
        "SHOW TABLES",
        "SHOW COLUMNS FROM channel_activity",
        "DESCRIBE channel_activity",
        "VALUES (1, 'a')",
        "SELECT 1 AS x, 1 AS y UNION ALL SELECT 2, 3",
        "SELECT value FROM generate_series(1, 3)",
        "SELECT a.channel, b.channel FROM channel_activity a, channel_activity b LIMIT 1",
        "SELECT * FROM dead_letters",
        "SELECT \"group\", lag FROM lag",
        "SELECT date_trunc('hour', window_start) FROM channel_activity",
    ] {
        let (status, answer) = house.sql(sql).await;
        assert_eq!(status, 200, "{sql}: {answer}");
    }
}

#[tokio::test]
async fn what_does_not_only_read_is_refused() {
    let house = House::usual();
    let before = std::fs::read_dir(".").unwrap().count();
    for sql in [
        "",
        "CREATE TABLE x AS SELECT 1",
        "CREATE VIEW x AS SELECT 1",
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
        "CREATE SCHEMA x",
        "CREATE DATABASE x",
        "CREATE FUNCTION f() RETURNS INT RETURN 1",
        "DROP TABLE channel_activity",
        "DROP SCHEMA public",
        "INSERT INTO channel_activity SELECT * FROM channel_activity",
        "UPDATE channel_activity SET messages = 0",
        "DELETE FROM channel_activity",
        "TRUNCATE TABLE channel_activity",
        "ALTER TABLE channel_activity ADD COLUMN x INT",
        "MERGE INTO channel_activity USING channel_activity AS s ON true WHEN MATCHED THEN DELETE",
        "COPY channel_activity TO 'out.csv'",
        "COPY (SELECT 1) TO 'out.parquet'",
        "EXPLAIN COPY channel_activity TO 'out.csv'",
        "EXPLAIN ANALYZE COPY channel_activity TO 'out.csv'",
        "EXPLAIN ANALYZE INSERT INTO channel_activity SELECT * FROM channel_activity",
        "EXPLAIN ANALYZE CREATE TABLE x AS SELECT 1",
        "SET datafusion.execution.batch_size = 1",
        "RESET datafusion.execution.batch_size",
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "DEALLOCATE p",
        "BEGIN",
        "COMMIT",
        "USE x",
        "ATTACH 'x.db' AS x",
        "LOAD DATA INPATH '/etc/passwd' INTO TABLE x",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE channel_activity",
        "SELECT * INTO x FROM channel_activity",
        "WITH x AS (INSERT INTO channel_activity SELECT * FROM channel_activity) SELECT 1",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM \"/etc/passwd\"",
        "SELECT * FROM 'file:///etc/passwd'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_parquet('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM parquet_metadata('/etc/passwd')",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT load_extension('x')",
        "SELECT repeat('x', 1000000000)",
        "SELECT lpad('x', 1000000000, 'y')",
        "SELECT rpad('x', 1000000000, 'y')",
        "SELECT array_repeat('x', 1000000000)",
        "SELECT list_repeat('x', 1000000000)",
        "SELECT array_resize([1], 1000000000)",
        "SELECT range(0, 10000000000)",
        "SELECT * FROM nowhere",
        "SELECT nothing FROM channel_activity",
        "SELECT 'a",
        "not sql at all",
    ] {
        let (status, answer) = house.sql(sql).await;
        assert_eq!(status, 422, "{sql}: {answer}");
        let detail = answer["detail"].as_str().unwrap();
        assert!(!detail.contains("backtrace") && !detail.contains(".rs:"), "{sql}: {detail}");
    }
    assert_eq!(std::fs::read_dir(".").unwrap().count(), before, "nothing was written");
}

#[tokio::test]
async fn deep_and_long_texts_do_not_break_the_process() {
    let house = House::usual();
    // Within the bound of tokens: answered, or out of time on a busy machine, and the process lives.
    let chain = format!("SELECT {}", vec!["1"; 900].join("+"));
    let ors = format!("SELECT 1 FROM channel_activity WHERE {}", vec!["messages = 1"; 250].join(" OR "));
    for sql in [chain, ors] {
        let (status, answer) = house.sql(&sql).await;
        assert!(status == 200 || status == 504, "{answer}");
        assert_eq!(house.state.runtime.idle().await, Ok(()));
    }
    for sql in [
        format!("SELECT {}", vec!["1"; 3000].join("+")),
        format!("SELECT {}1{}", "(".repeat(1000), ")".repeat(1000)),
        format!("SELECT {} 1", "NOT ".repeat(1900)),
        format!("SELECT '{}'", "x".repeat(70_000)),
        format!("SELECT {}1{}", "(SELECT ".repeat(200), ")".repeat(200)),
    ] {
        let (status, answer) = house.sql(&sql).await;
        assert_eq!(status, 422, "{}: {answer}", sql.get(..40).unwrap());
    }
    assert_eq!(house.sql("SELECT 1").await.0, 200);
}

/// Far more rows than there is time for, counted so that none can be left out.
const ENDLESS: &str = "SELECT count(*) FROM channel_activity a, channel_activity b, channel_activity c, channel_activity d \
                       WHERE a.messages + b.messages + c.messages * d.messages % 7 = 3";

#[tokio::test]
async fn time_is_bounded_and_the_query_really_ends() {
    let house = House::with_limits(QueryLimits { sql_time: Duration::from_millis(300), ..QueryLimits::default() });
    let (status, answer) = house.sql(ENDLESS).await;
    assert_eq!(status, 504, "{answer}");
    assert!(answer["detail"].as_str().unwrap().contains("longer than 300ms"));
    let idle = tokio::time::timeout(Duration::from_secs(30), house.state.runtime.idle()).await;
    assert_eq!(idle, Ok(Ok(())), "the cancelled query gave its place back");
    assert_eq!(house.state.runtime.running(), 0);
}

#[tokio::test]
async fn a_caller_who_goes_away_ends_the_query() {
    let house = House::usual();
    let asked = tokio::time::timeout(Duration::from_millis(300), house.sql(ENDLESS)).await;
    assert!(asked.is_err());
    let idle = tokio::time::timeout(Duration::from_secs(30), house.state.runtime.idle()).await;
    assert_eq!(idle, Ok(Ok(())));
}

#[tokio::test]
async fn so_many_run_so_many_wait_and_no_more() {
    let limits = QueryLimits { running: 1, queue: 1, sql_time: Duration::from_millis(500), ..QueryLimits::default() };
    let house = House::with_limits(limits);
    let answers = tokio::join!(house.sql(ENDLESS), house.sql(ENDLESS), house.sql(ENDLESS));
    let mut statuses = [answers.0.0.as_u16(), answers.1.0.as_u16(), answers.2.0.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [429, 504, 504]);
    assert_eq!(house.get("/v1/views/channel_activity?limit=1").await.0, 200, "views do not wait behind SQL");
}

#[tokio::test]
async fn memory_is_bounded_and_refusal_is_polite() {
    let house = House::with_limits(QueryLimits { memory: 1 << 20, ..QueryLimits::default() });
    let sql = "SELECT array_agg(a.channel || b.channel || c.channel) FROM channel_activity a, channel_activity b, channel_activity c \
               GROUP BY a.messages * 1000000 + b.messages * 1000 + c.messages";
    let (status, answer) = house.sql(sql).await;
    assert_eq!(status, 422, "{answer}");
    assert_eq!(answer["type"], "urn:quikflow:memory_limit");
    let sort =
        "SELECT a.channel FROM channel_activity a, channel_activity b, channel_activity c ORDER BY a.messages * c.messages";
    let (status, answer) = house.sql(sort).await;
    assert_eq!((status.as_u16(), &answer["type"]), (422, &json!("urn:quikflow:memory_limit")), "{answer}");
}

#[tokio::test]
async fn rows_and_bytes_are_bounded_and_the_answer_says_so() {
    let house = House::with_limits(QueryLimits { sql_rows: 10, ..QueryLimits::default() });
    let (_, answer) = house.sql("SELECT * FROM channel_activity").await;
    assert_eq!((&answer["row_count"], &answer["truncated_by"]), (&json!(10), &json!("rows")));
    let (_, exact) = house.sql("SELECT * FROM channel_activity LIMIT 10").await;
    assert_eq!((&exact["row_count"], &exact["truncated"]), (&json!(10), &json!(false)));
    let house = House::with_limits(QueryLimits { result_bytes: 2_000, ..QueryLimits::default() });
    let (_, answer) = house.sql("SELECT * FROM channel_activity").await;
    assert_eq!((&answer["truncated"], &answer["truncated_by"]), (&json!(true), &json!("bytes")));
}

#[tokio::test]
async fn bodies_are_bounded_and_read_strictly() {
    let house = House::usual();
    for (body, status) in [
        ("{".to_owned(), 422),
        (r#"{"sql":"SELECT 1","parms":[]}"#.to_owned(), 422),
        (r#"{"sql":1}"#.to_owned(), 422),
        (format!(r#"{{"sql":"{}"}}"#, "x".repeat(300 << 10)), 413),
    ] {
        let request = axum::http::Request::post("/v1/sql").body(axum::body::Body::from(body)).unwrap();
        let (got, headers, _) = house.send(request).await;
        assert_eq!(got, status);
        assert_eq!(headers["content-type"], "application/problem+json");
    }
}
