//! CSV, Arrow and Parquet: what is read back is what was there.

use super::house::House;
use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use axum::body::Body;
use axum::http::{HeaderMap, Request};

async fn fetch(house: &House, accept: &str, path: &str) -> (HeaderMap, Vec<u8>) {
    let request = Request::get(path).header("accept", accept).body(Body::empty()).unwrap();
    let (status, headers, bytes) = house.send(request).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&bytes));
    (headers, bytes)
}

fn expected() -> RecordBatch {
    let (info, batches) = super::house::channel_activity(90, 3);
    concat_batches(&info.schema, &batches).unwrap().slice(0, 89 * 3)
}

#[tokio::test]
async fn arrow_streams_come_back_whole_without_limit() {
    let house = House::usual();
    let (headers, bytes) = fetch(&house, "application/vnd.apache.arrow.stream", "/v1/views/channel_activity").await;
    assert_eq!(headers["x-watermark"], "2026-01-01T13:30:00Z");
    assert_eq!(headers["x-as-of"], r#"{"topic":"analytics.channel-activity","offsets":{"0":42}}"#);
    let reader = arrow::ipc::reader::StreamReader::try_new(&bytes[..], None).unwrap();
    let schema = reader.schema();
    let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    assert_eq!(concat_batches(&schema, &batches).unwrap(), expected());
}

#[tokio::test]
async fn parquet_comes_back_whole_without_limit() {
    let house = House::usual();
    let (headers, bytes) = fetch(&house, "application/vnd.apache.parquet", "/v1/views/channel_activity").await;
    assert_eq!(headers["content-type"], "application/vnd.apache.parquet");
    let bytes = bytes::Bytes::from(bytes);
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
    let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    let read = concat_batches(&batches[0].schema(), &batches).unwrap();
    assert_eq!(read.columns(), expected().columns());
}

/// A reader of RFC 4180, made for this test only.
fn parse_csv(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut field, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => field.push(chars.next().unwrap()),
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut field)),
            '\r' if !quoted => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut field));
                rows.push(std::mem::take(&mut row));
            }
            c => field.push(c),
        }
    }
    rows
}

#[tokio::test]
async fn csv_quotes_and_writes_lists_as_json() {
    let house = House::usual();
    let (headers, bytes) = fetch(&house, "text/csv", "/v1/views/channel_activity").await;
    assert_eq!(headers["content-type"], "text/csv; charset=utf-8");
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with("window_start,window_end,channel,messages,authors,characters,p95_length,final,tags\r\n"));
    let rows = parse_csv(&text);
    assert_eq!(rows.len(), 1 + 89 * 3);
    let row = ["2026-01-01T12:00:00Z", "2026-01-01T12:01:00Z", "c1", "1", "1", "100", "1.5", "true", r#"["t1","a \"b\", c"]"#];
    assert_eq!(rows[2], row);
    assert_eq!(rows[1][4], "", "null is an empty field");
}

#[tokio::test]
async fn the_form_is_chosen_by_parameter_then_accept() {
    let house = House::usual();
    let kind = |headers: &HeaderMap| headers["content-type"].to_str().unwrap().to_owned();
    let (headers, _) = fetch(&house, "application/json", "/v1/views/channel_activity?format=csv").await;
    assert_eq!(kind(&headers), "text/csv; charset=utf-8");
    let (headers, _) = fetch(&house, "text/csv;q=0.5, application/json", "/v1/views/channel_activity").await;
    assert_eq!(kind(&headers), "application/json");
    let (headers, _) = fetch(&house, "text/html, */*;q=0.1", "/v1/views/channel_activity").await;
    assert_eq!(kind(&headers), "application/json");
    let request = Request::get("/v1/views/channel_activity").header("accept", "image/png").body(Body::empty()).unwrap();
    assert_eq!(house.send(request).await.0, 406);
}

#[tokio::test]
async fn streams_take_order_and_limit() {
    let house = House::usual();
    let path = "/v1/views/channel_activity?order_by=-messages&limit=2&columns=messages,channel";
    let (_, bytes) = fetch(&house, "text/csv", path).await;
    assert_eq!(String::from_utf8(bytes).unwrap(), "messages,channel\r\n882,c2\r\n881,c1\r\n");
}

#[tokio::test]
async fn an_empty_view_is_still_a_whole_file() {
    let house = House::usual();
    let path = "/v1/views/channel_activity?from=2030-01-01";
    let (headers, bytes) = fetch(&house, "application/vnd.apache.parquet", path).await;
    assert_eq!(headers["x-as-of"], r#"{"topic":"analytics.channel-activity","offsets":{"0":42}}"#);
    let builder = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes)).unwrap();
    assert_eq!(builder.metadata().file_metadata().num_rows(), 0);
}

#[tokio::test]
async fn sql_answers_in_each_form() {
    let house = House::usual();
    let body = r#"{"sql":"SELECT channel, count(*) AS n, count(*) AS n2 FROM channel_activity GROUP BY channel ORDER BY 1"}"#;
    let ask = |format: &str| Request::post(format!("/v1/sql?format={format}")).body(Body::from(body)).unwrap();
    let (_, headers, csv) = house.send(ask("csv")).await;
    assert_eq!(String::from_utf8(csv).unwrap(), "channel,n,n2\r\nc0,90,90\r\nc1,90,90\r\nc2,90,90\r\n");
    assert_eq!(headers["x-truncated"], "false");
    let (_, _, arrow) = house.send(ask("arrow")).await;
    let rows: usize = arrow::ipc::reader::StreamReader::try_new(&arrow[..], None).unwrap().map(|b| b.unwrap().num_rows()).sum();
    assert_eq!(rows, 3);
    let (_, _, parquet) = house.send(ask("parquet")).await;
    let builder = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(parquet)).unwrap();
    assert_eq!(builder.metadata().file_metadata().num_rows(), 3);
}
