//! Plans of small files, and of the shipped one.

use super::*;
use quikflow_topics::catalogue::TopicKind;
use quikflow_topics::diagnostics::SourceFile;

const CATALOGUE: &str = r#"
[topics.messages]
[topics.members]
cleanup = "compact"
[events.SENT]
topic = "messages"
key = "channel"
payload = { channel = "string", user = "string", content = "string", tags = { type = "list<string>", optional = true } }
[events.ADDED]
topic = "members"
key = "channel"
payload = { channel = "string", user = "string" }
[[sink]]
name = "members"
from = "members"
store = "mysql"
key = ["channel", "user"]
"#;

fn loaded(topologies: &str) -> Loaded {
    load(&SourceFile::new("t.toml", format!("{topologies}\n{CATALOGUE}")))
}

fn planned(topologies: &str) -> Plan {
    let loaded = loaded(topologies);
    let shown: Vec<String> = loaded.diagnostics.iter().map(ToString::to_string).collect();
    assert!(shown.is_empty(), "{}", shown.join("\n"));
    loaded.plan.unwrap()
}

const COUNTS: &str = r#"
[[topology]]
name = "counts"
from = "messages"
steps = [
  { filter = "payload.user <> 'bot'" },
  { window = { tumbling = "1m" }, group_by = { channel = "payload.channel" }, aggregate = { n = "count(*)" }, name = "by-minute" },
]
to = "counts"
"#;

#[test]
fn a_source_is_read_for_the_columns_that_steps_need() {
    let plan = planned(COUNTS);
    let counts = &plan.topologies[0];
    assert_eq!(counts.sources[0].projection.columns, ["_partition", "_offset", "_event_time", "channel", "user"]);
    let fields: Vec<&str> = counts.sources[0].schema.arrow.fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(fields, ["_partition", "_offset", "_event_time", "_watermark", "channel", "user"]);
    let topic = &plan.catalogue.topics["counts"];
    assert_eq!(topic.kind, TopicKind::Rows);
    let columns: Vec<&str> = topic.fields.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(columns, ["window_start", "window_end", "channel", "n", "final", "epoch"]);
    assert_eq!(counts.late[0].as_ref().unwrap().name, "late.counts");
    assert_eq!(plan.catalogue.topics["late.counts"].kind, TopicKind::Events);
}

#[test]
fn writers_come_before_readers() {
    let plan = planned(&format!(
        "[[topology]]\nname = \"after\"\nfrom = \"counts\"\nsteps = [ {{ filter = \"n > 1\" }} ]\nto = \"busy\"\n{COUNTS}"
    ));
    let names: Vec<&str> = plan.topologies.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["counts", "after"]);
    assert_eq!(plan.catalogue.topics["busy"].fields, plan.catalogue.topics["counts"].fields);
}

#[test]
fn several_topics_are_read_as_their_union() {
    let plan = planned(
        r#"
        [[topology]]
        name = "users"
        from = ["messages", "members"]
        steps = [ { map = { user = "payload.user", words = "payload.content" } } ]
        to = "users"
        "#,
    );
    let users = &plan.topologies[0];
    assert_eq!(users.nodes[0].inputs, [[Port::Source(0), Port::Source(1)]]);
    assert_eq!(users.sources[1].projection.columns, ["_partition", "_offset", "_event_time", "_key", "user"]);
    assert_eq!(users.sources[0].schema, users.sources[1].schema);
}

#[test]
fn ways_of_a_branch_have_steps_of_their_own() {
    let plan = planned(
        r#"
        [[topology]]
        name = "split"
        from = "messages"
        steps = [ { branch = [
          { when = "payload.user = 'bot'", steps = [ { map = { text = "payload.content" } } ], to = "bots" },
          { to = "people" },
        ] } ]
        "#,
    );
    let split = &plan.topologies[0];
    let outputs: Vec<_> = split.outputs.iter().map(|o| (o.topic.name.as_str(), o.from)).collect();
    assert_eq!(outputs, [("bots", Port::Node { node: 1, port: 0 }), ("people", Port::Node { node: 0, port: 1 })]);
    assert_eq!(split.nodes[1].name, "map-1.1.1");
    // events that go on as they are keep all that is needed to write them out again (R11)
    let columns = &split.sources[0].projection.columns;
    assert!(["_key", "_type", "_id", "_headers", "_rest", "tags"].iter().all(|c| columns.iter().any(|o| o == c)), "{columns:?}");
    assert_eq!(plan.catalogue.topics["people"].kind, TopicKind::Events);
}

#[test]
fn r12_a_filter_may_come_but_a_window_may_not_change() {
    let print = |text: &str| {
        let plan = planned(text);
        (fingerprint(&plan.topologies[0], false), plan)
    };
    let (stored, _) = print(COUNTS);
    let (_, filtered) = print(&COUNTS.replace("steps = [", "steps = [ { filter = \"payload.content <> ''\" },"));
    assert_eq!(compatible(&filtered.topologies[0], false, &stored), Ok(()));
    let (_, longer) = print(&COUNTS.replace("1m", "2m"));
    let mistakes = compatible(&longer.topologies[0], false, &stored).unwrap_err();
    assert_eq!(mistakes.len(), 1);
    assert!(mistakes[0].contains("step `by-minute` of topology `counts` changed"), "{}", mistakes[0]);
    assert!(mistakes[0].contains("quikflow reset --topology counts"), "{}", mistakes[0]);
    let (_, renamed) = print(&COUNTS.replace("by-minute", "by-time"));
    assert_eq!(compatible(&renamed.topologies[0], false, &stored).unwrap_err().len(), 2);
}

#[test]
fn r19_a_table_is_read_whole_unless_both_lie_by_the_same_text() {
    let joined = |from: &str, before: &str, on: &str, table_on: &str| {
        let plan = planned(&format!(
            "[[topology]]\nname = \"one\"\nfrom = \"messages\"\nsteps = [ {before} ]\nto = \"ones\"\n\
             [[topology]]\nname = \"two\"\nfrom = \"{from}\"\nsteps = [ {{ join = {{ table = \"members\", on = \"{on}\", \
             table_on = \"payload.{table_on}\", select = {{ seen = \"payload.user\" }} }}, name = \"j\" }}, \
             {{ map = {{ seen = \"seen\" }} }} ]\nto = \"twos\""
        ));
        let two = plan.topologies.iter().find(|topology| topology.name == "two").unwrap();
        assert_eq!(two.division(), Division::BySource, "{before}");
        two.sources[1].whole.clone()
    };
    let map = |channel: &str| format!("{{ map = {{ channel = \"{channel}\", user = \"payload.user\" }} }}");
    let rekeyed = |key: &str| format!("{{ rekey = \"{key}\" }}, {}", map("payload.channel"));
    let partitions = planned(COUNTS).topologies[0].sources[0].topic.partitions;
    let kept = |column: &str| Some(Whole { kept: Some(Kept { column: column.to_owned(), partitions }) });
    let all = Some(Whole { kept: None });
    let as_it_is = map("payload.channel");
    assert_eq!(joined("messages", &as_it_is, "payload.channel", "channel"), None, "both by channel");
    assert_eq!(joined("messages", &as_it_is, "payload.channel", "user"), kept("user"));
    assert_eq!(joined("messages", &as_it_is, "payload.user", "channel"), all);
    assert_eq!(joined("ones", &as_it_is, "channel", "channel"), None, "copied");
    assert_eq!(joined("ones", &rekeyed("payload.channel"), "channel", "channel"), None, "the same key once more");
    assert_eq!(joined("ones", &rekeyed("payload.user"), "user", "channel"), None, "by user, which is text of both");
    // What a key is made of is not its text: 'A' lies with 'a' there, and in the table it does not.
    assert_eq!(joined("ones", &rekeyed("lower(payload.channel)"), "channel", "channel"), all);
    assert_eq!(joined("ones", &rekeyed("'all'"), "channel", "channel"), all);
}

#[test]
fn r19_what_explode_puts_in_the_keys_place_is_no_key() {
    let division = |text: &str| planned(text).topologies[0].division();
    let counted = |column: &str| {
        format!(
            "[[topology]]\nname = \"t\"\nfrom = \"messages\"\nsteps = [ {{ explode = \"payload.tags\", as = \"{column}\" }}, \
             {{ window = {{ tumbling = \"1m\" }}, group_by = {{ channel = \"payload.channel\" }}, aggregate = {{ n = \"count(*)\" }}, \
             name = \"w\" }} ]\nto = \"t\""
        )
    };
    assert_eq!(division(&counted("tag")), Division::BySource);
    assert_eq!(division(&counted("channel")), Division::Combined);
}

#[test]
fn r12_state_of_another_division_is_refused() {
    let joined = "[[topology]]\nname = \"j\"\nfrom = \"messages\"\nsteps = [ { join = { table = \"members\", on = \"payload.user\", \
                  table_on = \"payload.user\", select = { seen = \"payload.channel\" } }, name = \"j\" } ]\nto = \"js\"";
    let plan = planned(joined);
    let topology = &plan.topologies[0];
    let [whole, divided] = [false, true].map(|divided| fingerprint(topology, divided));
    assert_eq!((compatible(topology, false, &whole), compatible(topology, true, &divided)), (Ok(()), Ok(())));
    let mistakes = compatible(topology, true, &whole).unwrap_err();
    assert!(mistakes[0].contains("what each share of the work holds of the tables of topology `j` is new"), "{}", mistakes[0]);
    let mut other = divided;
    other.values_mut().for_each(|print| *print = print.replace("all of", "some of"));
    assert_eq!(compatible(topology, true, &other).unwrap_err().len(), 1);
}

#[test]
fn r13_a_sink_key_determines_the_topic_key() {
    let with_sink = |key: &str| {
        let sink = format!("[[sink]]\nname = \"s\"\nfrom = \"counts\"\nstore = \"clickhouse\"\nkey = {key}");
        loaded(&format!("{COUNTS}\n{sink}")).diagnostics.iter().map(|d| d.message.clone()).collect::<Vec<_>>()
    };
    for good in ["['channel', 'window_start']", "['_partition', '_offset']", "['_key']"] {
        assert_eq!(with_sink(good), Vec::<String>::new(), "{good}");
    }
    assert!(with_sink("['window_start']")[0].contains("does not determine the key of topic `counts`"));
    let mapped = |map: &str| {
        loaded(&format!(
            "[[topology]]\nname = \"m\"\nfrom = \"messages\"\nsteps = [ {{ map = {map} }} ]\nto = \"m\"\n\
             [[sink]]\nname = \"s\"\nfrom = \"m\"\nstore = \"clickhouse\"\nkey = ['room']"
        ))
        .diagnostics
        .len()
    };
    assert_eq!(mapped("{ room = 'payload.channel' }"), 0);
    assert_eq!(mapped("{ room = 'key' }"), 0);
    assert_eq!(mapped("{ room = 'upper(payload.channel)' }"), 1);
}

#[test]
fn the_shipped_file_checks() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../topologies.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let loaded = load(&SourceFile::new("topologies.toml", text));
    let shown: Vec<String> = loaded.diagnostics.iter().map(ToString::to_string).collect();
    assert!(shown.is_empty(), "{}", shown.join("\n\n"));
    let plan = loaded.plan.unwrap();
    assert_eq!(plan.topologies.len(), 18);
    assert!(loaded.tests.len() >= plan.topologies.len(), "each topology has a test");
    // R19: processes divide all of them; the members of a message's channel are read whole, by channel.
    let whole = |plan: &TopologyPlan| plan.sources.iter().filter_map(|source| source.whole.clone()).collect::<Vec<_>>();
    let own = Whole { kept: Some(Kept { column: "channelId".to_owned(), partitions: 12 }) };
    for topology in &plan.topologies {
        assert_ne!(topology.division(), Division::Whole, "{}", topology.name);
        let expected = if topology.name == "fan-out" { vec![own.clone()] } else { vec![] };
        assert_eq!(whole(topology), expected, "{}", topology.name);
    }
}
