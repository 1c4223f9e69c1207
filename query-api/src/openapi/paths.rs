//! Every path of the query API, with its parameters and an example: the source of `/openapi.json`.
//! A test asks the router for each of them.

/// A path and method.
pub struct Endpoint {
    /// `get`, `post`, `put`
    pub method: &'static str,
    /// With `{names}`.
    pub path: &'static str,
    /// The group that it is shown in.
    pub tag: &'static str,
    /// One line.
    pub summary: &'static str,
    /// More, in Markdown.
    pub doc: &'static str,
    /// Query parameters: name, what it does, example.
    pub parameters: &'static [(&'static str, &'static str, &'static str)],
    /// An example of the body, as JSON.
    pub body: Option<&'static str>,
    /// An example of the answer.
    pub answer: &'static str,
    /// Media types; the first is the example's.
    pub media: &'static [&'static str],
}

const JSON: &[&str] = &["application/json"];
const ROWS: &[&str] = &["application/json", "text/csv", "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"];
const TEXT: &[&str] = &["text/plain"];
const FROM: (&str, &str, &str) = ("from", "not before; RFC 3339 or a date", "2026-01-01T12:00:00Z");
const TO: (&str, &str, &str) = ("to", "before; RFC 3339 or a date", "2026-01-01T13:00:00Z");
const CURSOR: (&str, &str, &str) = ("cursor", "`cursor` of the page before", "");
const FORMAT: (&str, &str, &str) = ("format", "json, csv, arrow or parquet; else by Accept", "json");
const USER: (&str, &str, &str) = ("userId", "whose; may be left out by who is signed in", "u1");

const NONE: Endpoint =
    Endpoint { method: "get", path: "", tag: "", summary: "", doc: "", parameters: &[], body: None, answer: "{}", media: JSON };

/// All paths.
pub const PATHS: &[Endpoint] = &[
    Endpoint {
        path: "/v1/views",
        tag: "views",
        summary: "The views: columns, key, roll-ups",
        answer: r#"{"views":[{"name":"channel_activity","doc":"Messages by channel and minute.","columns":[{"name":"channel","type":"string","nullable":true}],"key":["channel","window_start"],"time_column":"window_start","final_column":"final","rollup":{"messages":"sum"},"topic":"analytics.channel-activity","sink":"channel-activity"}]}"#,
        ..NONE
    },
    Endpoint {
        path: "/v1/views/{view}",
        tag: "views",
        summary: "Rows of a view",
        doc: "JSON comes in pages (`cursor`), ordered by time and key; CSV, Arrow and Parquet stream and are whole without `limit`. \
              Only final rows unless `include_open=true`. With `group_by` columns roll up as the view declares (`sum`, `min`, `max`); \
              a distinct count or percentile does not, which is an error that names the column: leave it out with `columns`. \
              Each answer carries the watermark and the offsets it stands at (headers `X-Watermark`, `X-As-Of` where it isn't JSON).",
        parameters: &[
            FROM,
            TO,
            ("where", "an SQL condition over the view's columns", "messages > 10 and channel <> 'c9'"),
            ("group_by", "columns; a time with a bucket: window_start:1h", "channel,window_start:1h"),
            ("columns", "the columns wanted", "messages,characters"),
            ("order_by", "columns; -column or column:desc from high to low", "-messages"),
            ("limit", "rows; a JSON page has 1,000 unless told, 10,000 at most", "100"),
            CURSOR,
            ("include_open", "true: rows of open windows too", "false"),
            FORMAT,
        ],
        answer: r#"{"view":"channel_activity","columns":[{"name":"channel","type":"string","nullable":true}],"rows":[{"window_start":"2026-01-01T12:00:00Z","window_end":"2026-01-01T12:01:00Z","channel":"c1","messages":2,"authors":1,"characters":10,"p95_length":5.0,"final":true}],"cursor":null,"watermark":"2026-01-01T12:05:00Z","as_of":{"topic":"analytics.channel-activity","offsets":{"0":12}}}"#,
        media: ROWS,
        ..NONE
    },
    Endpoint {
        path: "/v1/views/{view}/changes",
        tag: "views",
        summary: "What changes in a view, as it changes",
        doc: "Server-sent events. `reset`: read the view, now and whenever it comes again (changes may have been missed); `change`: \
              the ids of rows that are others now or gone, of `badges` the users. Views whose sinks have `store = \"redis\"`: \
              badges and presence.",
        parameters: &[("key", "only changes of this row or user", "u1")],
        answer: "event: change\ndata: {\"keys\":[\"u1\"]}\n\n",
        media: &["text/event-stream"],
        ..NONE
    },
    Endpoint {
        method: "post",
        path: "/v1/sql",
        tag: "sql",
        summary: "Read-only SQL",
        doc: "Views and tables by their names, topics as `topic.\"QuikApp.messages\"`, and `dead_letters`, `lag`. Names are \
              case-sensitive as they stand (`channelId` needs no quotes). Parameters are values: `$1`, `$2` from an array, `$name` from \
              an object. Bounded in time (504), memory (422), rows and bytes (`truncated`; header `X-Truncated`) and in how many run \
              at once (429).",
        parameters: &[FORMAT],
        body: Some(
            r#"{"sql":"SELECT channel, sum(messages) AS messages FROM channel_activity WHERE final AND channel <> $1 GROUP BY channel ORDER BY 2 DESC LIMIT 10","params":["c9"]}"#,
        ),
        answer: r#"{"columns":[{"name":"channel","type":"string","nullable":true},{"name":"messages","type":"int","nullable":true}],"rows":[{"channel":"c1","messages":2}],"row_count":1,"truncated":false}"#,
        media: ROWS,
    },
    Endpoint {
        path: "/api/v1/channels/{id}/messages",
        tag: "messages",
        summary: "Messages of a channel, newest first",
        parameters: &[
            ("limit", "50 unless told, 200 at most", "50"),
            ("before", "the cursor of the page before, a message's id, or a time", ""),
        ],
        answer: r#"{"items":[{"_id":"c1/m1","channelId":"c1","messageId":"m1","userId":"u1","content":"hello"}],"cursor":null}"#,
        ..NONE
    },
    Endpoint {
        path: "/api/v1/messages/{id}",
        tag: "messages",
        summary: "One message",
        parameters: &[("channelId", "where several channels hold a message of this id (409 without)", "c1")],
        answer: r#"{"_id":"c1/m1","channelId":"c1","messageId":"m1","userId":"u1","content":"hello"}"#,
        ..NONE
    },
    Endpoint {
        path: "/api/v1/search",
        tag: "messages",
        summary: "Full-text search with highlights",
        doc: "All words must be there; \"quoted phrases\" in order. Best first.",
        parameters: &[
            ("q", "required: words and phrases", "hello \"good morning\""),
            ("type", "messages", "messages"),
            ("workspaceId", "only of this workspace", ""),
            ("channelId", "only of this channel", "c1"),
            ("userId", "only of this author", ""),
            ("limit", "20 unless told, 100 at most", "20"),
            CURSOR,
        ],
        answer: r#"{"items":[{"_id":"c1/m1","messageId":"m1","content":"hello","score":1.2,"highlights":["<em>hello</em>"]}],"cursor":null}"#,
        ..NONE
    },
    Endpoint {
        path: "/api/v1/users/{id}",
        tag: "users",
        summary: "A user as they stand",
        answer: r#"{"_id":"u1","userId":"u1","displayName":"Ann"}"#,
        ..NONE
    },
    Endpoint {
        path: "/api/v1/users/{id}/badge",
        tag: "users",
        summary: "How many notifications are unread",
        answer: r#"{"userId":"u1","unread":3}"#,
        ..NONE
    },
    Endpoint {
        path: "/api/v1/notifications",
        tag: "users",
        summary: "A user's notifications, newest first",
        parameters: &[USER, ("limit", "50 unless told, 200 at most", "50"), CURSOR],
        answer: r#"{"items":[{"_id":"u1/msg:u1:c1:m1","user":"u1","kind":"message","read":false}],"cursor":null,"unread":1}"#,
        ..NONE
    },
    Endpoint {
        method: "put",
        path: "/api/v1/notifications/{id}/read",
        tag: "users",
        summary: "Marks a notification as read",
        doc: "`id` is the notification's `_id`, percent-encoded. Again is harmless.",
        parameters: &[USER],
        answer: r#"{"id":"u1/msg:u1:c1:m1","read":true,"unread":0}"#,
        ..NONE
    },
    Endpoint {
        path: "/api/v1/audit/logs",
        tag: "audit",
        summary: "The audit log, newest first",
        parameters: &[
            ("type", "only of this event type", "LOGIN_FAILED"),
            ("userId", "only of this user", "u1"),
            ("severity", "LOW, MEDIUM, HIGH or CRITICAL", "HIGH"),
            ("ip", "only from this address", ""),
            ("action", "only this action", ""),
            ("resource", "only on this resource", ""),
            FROM,
            TO,
            ("limit", "100 unless told, 1,000 at most", "100"),
            CURSOR,
        ],
        answer: r#"{"items":[{"_id":"0/17","userId":"u1","severity":"HIGH"}],"cursor":null}"#,
        ..NONE
    },
    Endpoint {
        path: "/api/v1/audit/logs/search",
        tag: "audit",
        summary: "Audit entries that hold a text in any column",
        parameters: &[("q", "required: the text", "10.0.0.7"), FROM, TO, ("limit", "100 unless told, 1,000 at most", "100")],
        answer: r#"{"items":[{"userId":"u1","severity":"HIGH"}]}"#,
        ..NONE
    },
    Endpoint {
        path: "/api/v1/audit/logs/{id}",
        tag: "audit",
        summary: "One audit entry",
        answer: r#"{"_id":"0/17","userId":"u1","severity":"HIGH"}"#,
        ..NONE
    },
    Endpoint {
        path: "/api/v1/audit/reports/compliance",
        tag: "audit",
        summary: "Audit events a day by severity and kind, and their totals",
        parameters: &[FROM, TO, ("include_open", "true: days that are not over too", "true")],
        answer: r#"{"from":null,"to":null,"days":[{"window_start":"2026-01-01T00:00:00Z","severity":"HIGH","kind":"LOGIN_FAILED","count":5}],"totals":[{"severity":"HIGH","kind":"LOGIN_FAILED","count":5}],"complete":true,"watermark":"2026-01-02T00:00:00Z","as_of":{"topic":"audit.compliance","offsets":{"0":1}}}"#,
        ..NONE
    },
    Endpoint {
        path: "/api/v1/analytics/metrics",
        tag: "analytics",
        summary: "Performance metrics by minute, newest first",
        parameters: &[
            FROM,
            TO,
            ("limit", "100 unless told, 1,000 at most", "100"),
            CURSOR,
            ("include_open", "true: open minutes too", "false"),
        ],
        answer: r#"{"view":"performance","columns":[],"rows":[{"window_start":"2026-01-01T12:00:00Z","metric":"ttfb","count":3,"p50":80.0,"p95":120.0,"p99":130.0}],"cursor":null,"watermark":null,"as_of":{"topic":"analytics.performance","offsets":{}}}"#,
        ..NONE
    },
    Endpoint {
        path: "/api/v1/analytics/dashboard",
        tag: "analytics",
        summary: "The newest rows of each analytics view",
        parameters: &[
            FROM,
            TO,
            ("limit", "rows of each view: 10 unless told, 100 at most", "10"),
            ("include_open", "true: open windows too", "true"),
        ],
        answer: r#"{"views":{"channel_activity":{"rows":[],"watermark":null,"as_of":{"topic":"analytics.channel-activity","offsets":{}}}},"unavailable":[]}"#,
        ..NONE
    },
    Endpoint {
        path: "/v1/dlq",
        tag: "dead letters",
        summary: "Dead letters, newest first",
        parameters: &[
            ("cause", "decode, validation, expression, sink, …", "validation"),
            ("code", "max_length, bad_timestamp, …", ""),
            ("topology", "only of this topology", ""),
            ("step", "only of this step or sink", ""),
            ("status", "open, replaying, replayed or resolved", "open"),
            FROM,
            TO,
            ("limit", "100 unless told, 1,000 at most", "100"),
            CURSOR,
        ],
        answer: r#"{"items":[{"id":"step:messages:validate:QuikApp.messages:0:7","at":"2026-01-01T12:00:00Z","cause":"validation","code":"too_old","path":null,"message":"older than a day","topology":"messages","step":"validate","origin":{"topic":"QuikApp.messages","partition":0,"offset":7},"status":"open","size":120,"record":"{…}"}],"cursor":null}"#,
        ..NONE
    },
    Endpoint {
        path: "/v1/dlq/{id}",
        tag: "dead letters",
        summary: "One dead letter, with its bytes in base64",
        answer: r#"{"id":"step:messages:validate:QuikApp.messages:0:7","cause":"validation","status":"open","record":"{}","bytes":"e30=","replayable":true}"#,
        ..NONE
    },
    Endpoint {
        method: "post",
        path: "/v1/dlq/replay",
        tag: "dead letters",
        summary: "Another try, at the failed step or sink only, at most once",
        body: Some(r#"{"filter":{"topology":"messages","status":"open"}}"#),
        answer: r#"{"marked":1,"status":"replaying","skipped":[]}"#,
        ..NONE
    },
    Endpoint {
        method: "post",
        path: "/v1/dlq/resolve",
        tag: "dead letters",
        summary: "Puts dead letters aside for good",
        body: Some(r#"{"ids":["step:messages:validate:QuikApp.messages:0:7"]}"#),
        answer: r#"{"marked":1,"status":"resolved","skipped":[]}"#,
        ..NONE
    },
    Endpoint {
        method: "post",
        path: "/v1/stores",
        tag: "process",
        summary: "A read of this process's embedded stores, for other processes of the system",
        doc: "What a process whose `QUIKFLOW_EMBEDDED_STORES_URL` names this one asks: `tables`, `scan` (answered as an Arrow stream), \
              `get`, `list`, `search`, `badge`, `mark_read`. 421 where this process reads them elsewhere itself.",
        body: Some(r#"{"badge":{"user":"u1"}}"#),
        answer: "3",
        ..NONE
    },
    Endpoint {
        path: "/v1/lag",
        tag: "process",
        summary: "Lag of every topology and sink",
        doc: "`settled`: all lag is zero and every closed window has reached its store. `late`: records that came too late \
              for a window, by topology. `sinks`: whether each sink's store answers (`state`, `circuit`).",
        answer: r#"{"lag":0,"settled":true,"late":{"channel-activity":3},"sinks":[{"sink":"messages","store":"messages","state":"running","circuit":"closed"}],"groups":[{"group":"sink:messages","lag":0,"partitions":[{"group":"sink:messages","topic":"QuikApp.messages","partition":0,"position":7,"end":7,"lag":0}]}]}"#,
        ..NONE
    },
    Endpoint {
        path: "/v1/topologies",
        tag: "process",
        summary: "The topologies as they run",
        answer: r#"{"topologies":[{"name":"channel-activity","doc":"Messages by channel and minute."}]}"#,
        ..NONE
    },
    Endpoint {
        method: "post",
        path: "/v1/topologies/{name}/reset",
        tag: "process",
        summary: "Throws away a topology's state and output and rebuilds them",
        body: Some(r#"{"from":"earliest"}"#),
        answer: r#"{"topology":"channel-activity","from":"earliest"}"#,
        ..NONE
    },
    Endpoint {
        path: "/v1/topics",
        tag: "topics",
        summary: "The topics and their figures",
        answer: r#"{"topics":[{"name":"QuikApp.messages","kind":"events","partitions":12,"records":7,"bytes":900}]}"#,
        ..NONE
    },
    Endpoint {
        path: "/v1/topics/{topic}",
        tag: "topics",
        summary: "One topic: columns, offsets, times",
        answer: r#"{"name":"QuikApp.messages","kind":"events","partitions":12,"columns":[],"start":[0],"end":[7]}"#,
        ..NONE
    },
    Endpoint {
        path: "/v1/topics/{topic}/records",
        tag: "topics",
        summary: "Records of a topic, in order",
        parameters: &[
            ("from", "an offset, or `next` of the answer before", "0"),
            ("max", "100 unless told, 1,000 at most", "100"),
            ("partition", "only of this one", "0"),
        ],
        answer: r#"{"records":[{"_partition":0,"_offset":0,"_key":"c1","_event_time":"2026-01-01T12:00:00Z","_type":"MESSAGE_SENT"}],"count":1,"next":"0:1"}"#,
        ..NONE
    },
    Endpoint { path: "/health", tag: "process", summary: "The process answers", answer: r#"{"status":"live"}"#, ..NONE },
    Endpoint { path: "/health/live", tag: "process", summary: "The process answers", answer: r#"{"status":"live"}"#, ..NONE },
    Endpoint {
        path: "/health/ready",
        tag: "process",
        summary: "Every part can work; 503 where not",
        answer: r#"{"status":"ready","parts":[{"part":"broker","ready":true,"detail":"open"}]}"#,
        ..NONE
    },
    Endpoint { path: "/metrics", tag: "process", summary: "Prometheus metrics", answer: "quikflow_lag 0\n", media: TEXT, ..NONE },
    Endpoint { path: "/openapi.json", tag: "process", summary: "This document", answer: r#"{"openapi":"3.1.0"}"#, ..NONE },
];
