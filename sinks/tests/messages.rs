//! Messages as events change them: documents, search, notifications.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod common;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array, UInt64Array, new_null_array};
use common::{Dice, harness, sink};
use quikflow_sinks::changes::Change;
use quikflow_sinks::store::{StoreError, StoreSet, WriteBatch};
use quikflow_sinks::stores::Stores;
use quikflow_topics::catalogue::{FieldSpec, FieldType, SinkSpec, TopicKind, TopicSpec};
use quikflow_topics::clock::ManualClock;
use quikflow_topics::ids::EventTime;
use quikflow_topics::schema;
use std::collections::BTreeMap;
use std::sync::Arc;

const FIELDS: [&str; 6] = ["messageId", "channelId", "userId", "content", "emoji", "body"];

fn topic() -> Arc<TopicSpec> {
    let mut topic = TopicSpec::new("QuikApp.messages", TopicKind::Events);
    topic.fields = FIELDS.iter().map(|f| FieldSpec::new(*f, FieldType::String)).collect();
    Arc::new(topic)
}

/// (offset, type, fields).
type Event = (u64, &'static str, Vec<(&'static str, &'static str)>);

fn batch(sink: &Arc<SinkSpec>, topic: &TopicSpec, events: &[Event]) -> WriteBatch {
    let times = || {
        let times: Vec<i64> = events.iter().map(|e| 1_700_000_000_000_000 + e.0 as i64 * 1_000_000).collect();
        Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")) as ArrayRef
    };
    let field = |name: &str| {
        let value = |e: &Event| e.2.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        Arc::new(StringArray::from_iter(events.iter().map(value))) as ArrayRef
    };
    let columns: Vec<ArrayRef> = topic
        .schema()
        .fields()
        .iter()
        .map(|f| match f.name().as_str() {
            schema::PARTITION => Arc::new(UInt32Array::from(vec![0; events.len()])) as ArrayRef,
            schema::OFFSET => Arc::new(UInt64Array::from_iter_values(events.iter().map(|e| e.0))),
            schema::EVENT_TIME | schema::ARRIVAL_TIME => times(),
            schema::TYPE => Arc::new(StringArray::from_iter_values(events.iter().map(|e| e.1))),
            name if FIELDS.contains(&name) => field(name),
            _ => new_null_array(f.data_type(), events.len()),
        })
        .collect();
    let rows = RecordBatch::try_new(topic.schema(), columns).expect("a batch");
    WriteBatch { sink: sink.clone(), rows, generation: 0, next: BTreeMap::new() }
}

/// Embedded stores, and with `real` those of which a test server is named.
fn open(dir: &std::path::Path, sinks: &[Arc<SinkSpec>], real: &[String]) -> Stores {
    let sinks: Vec<_> = sinks.iter().map(|s| (s.clone(), topic())).collect();
    Stores::open_with(dir, ManualClock::at(EventTime(0)), &sinks, &common::urls_for(dir, real)).expect("the stores")
}

/// All embedded, or with the real stores that are there.
const SIDES: [&str; 2] = ["embedded", "real"];

crate::tests! {
    each SIDES: async r13_a_message_is_the_same_in_whatever_order_its_events_come,
    each SIDES: async search_finds_marks_and_pages,
    each SIDES: async r13_notifications_are_delivered_and_counted_once,
}

/// The real stores of a side.
fn stores_of(side: &str) -> Vec<String> {
    if side == "real" { common::real_stores() } else { Vec::new() }
}

fn events() -> Vec<Event> {
    let id = |m| vec![("channelId", "c1"), ("messageId", m)];
    let with = |m, more: &[(&'static str, &'static str)]| [id(m), more.to_vec()].concat();
    vec![
        (0, "MESSAGE_SENT", with("m1", &[("userId", "u1"), ("content", "<p>first &amp; <b>fore</b>most</p>")])),
        (1, "MESSAGE_SENT", with("m2", &[("userId", "u2"), ("content", "second thoughts")])),
        (2, "MESSAGE_EDITED", with("m1", &[("content", "an earlier edit")])),
        (3, "REACTION_ADDED", with("m1", &[("userId", "u2"), ("emoji", "🎉")])),
        (4, "MESSAGE_EDITED", with("m1", &[("content", "the last edit of a message")])),
        (5, "REACTION_ADDED", with("m1", &[("userId", "u3"), ("emoji", "🎉")])),
        (6, "REACTION_ADDED", with("m1", &[("userId", "u2"), ("emoji", "🎉")])),
        (7, "MESSAGE_DELETED", id("m2")),
        (8, "MESSAGE_EDITED", with("m3", &[("content", "an edit of what was never sent")])),
    ]
}

/// R13: events of a message in any order, any number of times, give the same document and index.
async fn r13_a_message_is_the_same_in_whatever_order_its_events_come(side: &'static str) {
    let seed = 20_261_122;
    println!("seed {seed}");
    let messages = Arc::new(sink("messages", "QuikApp.messages", "mongodb", "messages", &["channelId", "messageId"]));
    let search = Arc::new(sink("search", "QuikApp.messages", "elasticsearch", "messages_search", &["channelId", "messageId"]));
    let mut dice = Dice(seed);
    let real = stores_of(side);
    for round in 0..if real.is_empty() { 20 } else { 4 } {
        let dir = tempfile::tempdir().expect("a folder");
        let stores = open(dir.path(), &[messages.clone(), search.clone()], &real);
        let mut order = [events(), events()].concat();
        if round > 0 {
            for i in (1..order.len()).rev() {
                order.swap(i, dice.below(i as u64 + 1) as usize);
            }
        }
        for sink in [&messages, &search] {
            let store = stores.store_of(sink).expect("a store");
            for share in order.chunks(1 + dice.below(5) as usize) {
                store.write(batch(sink, &topic(), share)).await.expect("written");
            }
        }
        let side = stores.read_side();
        let page =
            side.documents.list("messages", &[("channelId".into(), "c1".into())], None, None, None, 10).await.expect("a page");
        let ids: Vec<_> = page.items.iter().map(|m| m["messageId"].as_str().unwrap_or_default()).collect();
        assert_eq!(ids, ["m2", "m1"], "newest first, and none that was never sent (round {round})");
        assert_eq!(page.items[0]["deleted"], true);
        let first = side.documents.get("messages", "c1/m1").await.expect("an answer").expect("a document");
        assert_eq!(first["content"], "the last edit of a message");
        assert_eq!(first["userId"], "u1");
        assert_eq!(first["editedAt"], "2023-11-14T22:13:24Z");
        assert_eq!(first["deleted"], false);
        let reactions: Vec<_> = first["reactions"].as_array().expect("a list").iter().map(|r| r["userId"].clone()).collect();
        assert_eq!(reactions, ["u2", "u3"], "each reaction once");
        for (query, found) in
            [("edit", 1), ("\"last edit\"", 1), ("\"edit last\"", 0), ("foremost", 0), ("second", 0), ("never", 0)]
        {
            let page = side.search.search(query, &[], None, 10).await.expect("a page");
            assert_eq!(page.items.len(), found, "{query} in round {round}");
        }
    }
}

/// Words through tags and entities, marked and escaped; no syntax of the index; paging; filters.
async fn search_finds_marks_and_pages(side: &'static str) {
    let search = Arc::new(sink("search", "QuikApp.messages", "elasticsearch", "messages", &["channelId", "messageId"]));
    let real = stores_of(side);
    let dir = tempfile::tempdir().expect("a folder");
    let stores = open(dir.path(), std::slice::from_ref(&search), &real);
    let ids: Vec<&'static str> = ["a", "b", "c", "d", "e"].into();
    let mut all: Vec<Event> = ids
        .iter()
        .enumerate()
        .map(|(i, m)| (i as u64, "MESSAGE_SENT", vec![("channelId", "c1"), ("messageId", *m), ("content", "common words")]))
        .collect();
    let text = "<p>it&#39;s <b>fore</b>most &lt;script&gt; Crème</p>";
    all.push((9, "MESSAGE_SENT", vec![("channelId", "c2"), ("messageId", "x"), ("content", text)]));
    stores.store_of(&search).expect("a store").write(batch(&search, &topic(), &all)).await.expect("written");
    let side = stores.read_side().search;
    let page = side.search("\"foremost script\" creme", &[], None, 10).await.expect("a page");
    assert_eq!(page.items.len(), 1);
    assert_eq!(page.items[0]["content"], text, "the content stays as it was");
    assert_eq!(
        page.items[0]["highlights"][0].as_str().map(str::trim),
        Some("it's <em>foremost &lt;script</em>&gt; <em>Crème</em>")
    );
    let (mut cursor, mut found) = (None, Vec::new());
    loop {
        let page = side.search("common", &[("channelId".into(), "c1".into())], cursor.as_deref(), 2).await.expect("a page");
        found.extend(page.items.iter().map(|m| m["messageId"].as_str().unwrap_or_default().to_owned()));
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    found.sort();
    assert_eq!(found, ids, "each once over the pages");
    for syntax in ["a OR b", "body:x", "NEAR(common words)", "comm*", "\"", "-- ;", "common AND"] {
        let answer = side.search(syntax, &[], None, 10).await;
        assert!(matches!(&answer, Ok(_) | Err(StoreError::BadRequest(_))), "{syntax}: {answer:?}");
    }
    assert!(side.search("comm*", &[], None, 10).await.expect("a page").items.is_empty(), "a star is no wildcard");
}

/// Two topics of notifications in one table: files once, counts by user, marks that outlive rows.
async fn r13_notifications_are_delivered_and_counted_once(side: &'static str) {
    let of = |name: &str, store: &str, table: &str| {
        let mut sink = sink(name, "QuikApp.messages", store, table, &["userId", "messageId"]);
        sink.options.insert("deliver".into(), toml::Value::Array(vec!["push".into(), "email".into()]));
        sink.options.insert("mode".into(), if store == "redis" { "badges" } else { "latest" }.into());
        Arc::new(sink)
    };
    let sinks = [of("n1", "outbox", "notifications"), of("n2", "outbox", "notifications"), of("b1", "redis", "badges")];
    let real = stores_of(side);
    let dir = tempfile::tempdir().expect("a folder");
    let stores = open(dir.path(), &sinks, &real);
    let mut follower = stores.read_side().changes.follow("badges").expect("a follower");
    assert_eq!(common::next_change(&mut follower).await, Change::Missed);
    let whose = Change::Keys(["u1".to_owned()].into());
    let note = |offset, id| -> Event { (offset, "ROW", vec![("userId", "u1"), ("messageId", id), ("body", "hello\nthere")]) };
    for _ in 0..2 {
        for (sink, id) in [(&sinks[0], "m1"), (&sinks[1], "m2"), (&sinks[2], "m1"), (&sinks[2], "m2")] {
            let offset = if id == "m1" { 1 } else { 2 };
            stores.store_of(sink).expect("a store").write(batch(sink, &topic(), &[note(offset, id)])).await.expect("written");
        }
    }
    let files = |kind: &str| std::fs::read_dir(dir.path().join("outbox").join(kind)).expect("a folder").count();
    assert_eq!((files("email"), files("push")), (2, 2));
    let pushes = std::fs::read_to_string(dir.path().join("outbox/push/n1-000001.jsonl")).expect("a file of pushes");
    let push: serde_json::Value = serde_json::from_str(&pushes).expect("one line, though the batch came twice");
    assert_eq!((&push["_id"], &push["body"]), (&"u1/m1".into(), &"hello\nthere".into()));
    let first = std::fs::read_dir(dir.path().join("outbox/email")).expect("a folder").next().expect("a file").expect("a file");
    let mail = String::from_utf8(std::fs::read(first.path()).expect("bytes")).expect("text");
    assert!(mail.contains("To: u1@users.invalid") && mail.contains("Message-ID: <") && mail.contains("hello"), "{mail}");
    for _ in 0..2 {
        assert_eq!(common::next_change(&mut follower).await, whose, "one of each row, none of its repetition");
    }
    let side = stores.read_side();
    assert_eq!(side.inbox.badge("u1").await.expect("a count"), 2);
    assert!(side.inbox.mark_read("u1", "m1").await.expect("an answer"));
    assert_eq!(common::next_change(&mut follower).await, whose, "what is read changes the count");
    assert!(side.inbox.mark_read("u1", "u1/m1").await.expect("an answer"), "again is harmless");
    assert!(!side.inbox.mark_read("u2", "m1").await.expect("an answer"), "not another's");
    assert_eq!(side.inbox.badge("u1").await.expect("a count"), 1);
    let page =
        side.documents.list("notifications", &[("userId".into(), "u1".into())], None, None, None, 1).await.expect("a page");
    let next = side.documents.list("notifications", &[], None, None, page.cursor.as_deref(), 9).await.expect("a page");
    assert_eq!((page.items.len(), next.items.len(), next.cursor), (1, 1, None));
    assert_eq!((&page.items[0]["read"], &next.items[0]["read"]), (&false.into(), &true.into()));
    let scan = side.tables.scan("badges", &quikflow_sinks::store::ScanRequest::default()).expect("a scan");
    let rows: usize = scan.batches.map(|b| b.expect("a batch").num_rows()).sum();
    assert_eq!(rows, 1, "one row a user");
}
