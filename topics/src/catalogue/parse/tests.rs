//! What is read, and what is refused.

use super::*;
use crate::diagnostics::SourceFile;

fn read(text: &str) -> (Catalogue, Vec<String>) {
    let file = SourceFile::new("t.toml", text);
    let (catalogue, mistakes) = parse(&crate::declaration::parse(&file).unwrap());
    (catalogue, mistakes.iter().map(|m| format!("{} | {}", m.message, m.help.clone().unwrap_or_default())).collect())
}

const GOOD: &str = r#"
    [topics.messages]
    partitions = 4
    retention = "30d"
    cleanup = "compact"
    disorder = "1m"
    [topics.rows]
    [events.SENT]
    topic = "messages"
    key = "channel"
    [events.SENT.payload]
    channel = "string"
    text = { type = "string", min_length = 1, max_length = 10 }
    tags = { type = "list<string>", optional = true }
    [events.EDITED]
    topic = "messages"
    key = "channel"
    payload = { channel = "string", at = "timestamp" }
    [[sink]]
    name = "by-channel"
    from = "rows"
    store = "clickhouse"
    key = ["channel"]
    ttl = "7d"
    rollup = { n = "sum" }
    fold = { way = "own" }
"#;

#[test]
fn what_is_declared_is_in_the_catalogue() {
    let (catalogue, mistakes) = read(GOOD);
    assert_eq!(mistakes, Vec::<String>::new());
    let topic = &catalogue.topics["messages"];
    assert_eq!((topic.partitions, topic.kind, topic.cleanup), (4, TopicKind::Events, Cleanup::Compact));
    assert_eq!(topic.fields.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["channel", "text", "tags", "at"]);
    assert_eq!(catalogue.topics["rows"].kind, TopicKind::Rows);
    assert_eq!(catalogue.events["SENT"].fields[1].max_length, Some(10));
    let sink = &catalogue.sinks[0];
    assert_eq!((sink.table.as_str(), sink.rollup["n"].as_str()), ("by_channel", "sum"));
    assert_eq!(sink.options["fold"]["way"].as_str(), Some("own"));
}

#[test]
fn every_mistake_is_reported_in_one_go() {
    let (_, mistakes) = read(
        r#"
        [topics.messages]
        partitions = 0
        retension = "30d"
        disorder = "soon"
        [events.SENT]
        topic = "mesages"
        key = "chanel"
        payload = { channel = "sting", n = { type = "int", max_length = 3 } }
        [[sink]]
        name = "s"
        from = "rows"
        store = "clickhose"
        key = []
        [[sink]]
        from = "rows"
        store = "redis"
        key = ["a"]
        rollup = { a = "avg" }
        "#,
    );
    for expected in [
        "from 1 to 1024",
        "unknown field `retension` in a topic | did you mean `retention`?",
        "`soon` is not a duration",
        "unknown topic `mesages` | did you mean `messages`?",
        "unknown type `sting` | did you mean `string`?",
        "a field of type int has no `max_length`",
        "the key `chanel` is no field of the payload",
        "unknown store `clickhose` | did you mean `clickhouse`?",
        "a sink needs a key",
        "missing field `name`",
        "`avg` is no way to roll up | available: sum, min, max",
    ] {
        assert!(mistakes.iter().any(|m| m.contains(expected)), "{expected} not in {mistakes:#?}");
    }
}

#[test]
fn r12_one_name_has_one_type_in_a_topic() {
    let (_, mistakes) = read(&GOOD.replace("at = \"timestamp\"", "text = \"int\""));
    assert_eq!(
        mistakes,
        ["`text` is int here, but string in SENT, and one name has one type in a topic | \
          use the same type, or another name; both events are of topic `messages`"]
    );
}

#[test]
fn two_sinks_cannot_share_a_name() {
    let twice = format!("{GOOD}\n[[sink]]\nname = \"by-channel\"\nfrom = \"rows\"\nstore = \"redis\"\nkey = [\"channel\"]");
    let (_, mistakes) = read(&twice);
    assert_eq!(mistakes.len(), 1);
    assert!(mistakes[0].starts_with("there is another sink called `by-channel`"));
}
