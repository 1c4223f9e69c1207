//! (c) the engine from a filled log, and (f) word count: in this process, on the embedded log.

use crate::data::{HISTORY, Shape, events, json_line};
use crate::floor;
use crate::measure::{Run, forget_peak};
use quikflow_pipelines::engine::{Engine, EngineOptions};
use quikflow_pipelines::plan;
use quikflow_topics::broker::{Append, Broker, Positions, Projection, TopicReader};
use quikflow_topics::brokers::embedded::{EmbeddedBroker, EmbeddedOptions};
use quikflow_topics::clock::SystemClock;
use quikflow_topics::diagnostics::SourceFile;
use quikflow_topics::json::decode::{Decoder, Limits};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

pub(crate) const TOPIC: &str = "QuikApp.messages";
pub(crate) const DECLARED: &str = r#"
[topics."QuikApp.messages"]
partitions = 12
[events.MESSAGE_SENT]
topic = "QuikApp.messages"
key   = "channelId"
[events.MESSAGE_SENT.payload]
messageId   = "string"
channelId   = "string"
workspaceId = "string"
userId      = "string"
threadId    = "string"
content     = { type = "string", max_length = 10000 }
"#;

/// A topology of one window over the messages.
pub(crate) fn topology(name: &str, size: &str, aggregate: &str) -> String {
    format!(
        r#"
[[topology]]
name  = "{name}"
from  = "{TOPIC}"
steps = [
  {{ filter = "type = 'MESSAGE_SENT'" }},
  {{ window = {{ tumbling = "{size}", grace = "30s" }}, group_by = {{ channel = "payload.channelId" }}, aggregate = {aggregate}, name = "window" }},
]
to    = "bench.{name}"
"#
    )
}

const COUNT: &str = r#"{ messages = "count(*)" }"#;
pub(crate) const WHOLE: &str = r#"{ messages = "count(*)", authors = "count(distinct payload.userId)", characters = "sum(character_length(payload.content))", p95_length = "approx_percentile_cont(character_length(payload.content), 0.95)" }"#;
const WORDS: &str = r#"
[[topology]]
name  = "words"
from  = "QuikApp.messages"
steps = [
  { explode = "string_to_array(payload.content, ' ')", as = "word" },
  { map = { word = "word" } },
  { filter = "word <> ''" },
  { window = { tumbling = "36500d", grace = "0s" }, group_by = { word = "word" }, aggregate = { count = "count(*)" }, name = "count" },
]
to    = "bench.words"
"#;

pub(crate) fn load(text: &str) -> Outcome<plan::Plan> {
    let loaded = plan::load(&SourceFile::new("bench.toml", text));
    let shown: Vec<String> = loaded.diagnostics.iter().map(ToString::to_string).collect();
    loaded.plan.ok_or_else(|| shown.join("\n\n").into())
}

fn open(folder: &Path) -> Outcome<Arc<EmbeddedBroker>> {
    Ok(EmbeddedBroker::open(EmbeddedOptions::new(folder, SystemClock::shared()))?)
}

/// Fills a log with made-up events through the door's decoder, 8,192 a request.
fn fill(broker: &EmbeddedBroker, shape: Shape) -> Outcome<()> {
    let plan = load(DECLARED)?;
    broker.ensure_topics(&plan.catalogue.topics.values().cloned().collect::<Vec<_>>())?;
    let decoder = Decoder::new(&plan.catalogue, Limits::default());
    let mut lines = String::new();
    let mut pending = Vec::new();
    let mut flush = |lines: &mut String| -> Outcome<()> {
        let mut batch = decoder.batch(SystemClock::shared().now(), None);
        batch.ndjson(lines.as_bytes(), 1, None);
        let decoded = batch.finish()?;
        if let Some(reject) = decoded.rejects.first() {
            return Err(format!("the benchmark's own event was refused: {:?}", reject.faults).into());
        }
        pending.push(broker.append(Append { rows: decoded.rows, ..Append::default() })?);
        lines.clear();
        if pending.len() == 4 {
            pending.remove(0).wait()?;
        }
        Ok(())
    };
    for (number, event) in events(shape, 1).enumerate() {
        json_line(&event, &mut lines);
        if number % 8_192 == 8_191 {
            flush(&mut lines)?;
        }
    }
    flush(&mut lines)?;
    for ticket in pending {
        ticket.wait()?;
    }
    Ok(())
}

/// The first argument that makes this program fill a log and end.
pub(crate) const FILL: &str = "fill-a-log";

/// Fills a log in a process of its own, so that nothing it left in memory is measured with the engine.
fn fill_apart(folder: &Path, shape: Shape) -> Outcome<()> {
    let Shape { events, channels, users, start: _, step_seconds, content } = shape;
    let numbers = [events.to_string(), channels.to_string(), users.to_string(), step_seconds.to_string(), content.to_string()];
    let filled = std::process::Command::new(std::env::current_exe()?).arg(FILL).arg(folder).args(numbers).status()?;
    if filled.success() { Ok(()) } else { Err("the log could not be filled".into()) }
}

/// What the process of [`fill_apart`] does with its arguments.
pub(crate) fn fill_and_end(mut arguments: impl Iterator<Item = String>) -> Outcome<()> {
    let mut next = || arguments.next().ok_or("filling a log wants a folder and five numbers");
    let folder = next()?;
    let shape = Shape {
        events: next()?.parse()?,
        channels: next()?.parse()?,
        users: next()?.parse()?,
        start: HISTORY,
        step_seconds: next()?.parse()?,
        content: next()?.parse()?,
    };
    let broker = open(Path::new(&folder))?;
    let run = Run::own();
    fill(&broker, shape)?;
    run.end("filling the log (decode, compress, commit; one thread)", shape.events);
    broker.close();
    Ok(())
}

/// About 0.8 groups an event by the minute, as in the archive that other engines were measured with.
pub(crate) fn shape(records: u64) -> Shape {
    Shape { events: records, channels: 1_000, users: 10_000, start: HISTORY, step_seconds: 16.0, content: 500 }
}

/// The first argument that makes this program measure one case and end.
pub(crate) const MEASURE: &str = "measure-a-case";

/// Runs topologies over what the log holds, and prints a row; stopped half-way and restored, when `kill`
/// is given. Returns a checksum of the rows that stand at the end. Each case is a process of its own, so
/// that its peak holds nothing of the others.
fn measure(folder: &Path, name: &str, declared: &str, workers: usize, size: &str, records: u64, kill: bool) -> Outcome<u64> {
    let numbers = [workers.to_string(), records.to_string(), kill.to_string()];
    let mut command = std::process::Command::new(std::env::current_exe()?);
    let ended = command.arg(MEASURE).arg(folder).args([name, declared, size]).args(numbers).status()?;
    if !ended.success() {
        return Err(format!("{name} was not measured").into());
    }
    Ok(std::fs::read_to_string(folder.join(ANSWER))?.parse()?)
}

/// The file in the log's folder that tells the checksum.
const ANSWER: &str = "answer";

/// What the process of [`measure`] does with its arguments.
pub(crate) fn measure_and_end(mut arguments: impl Iterator<Item = String>) -> Outcome<()> {
    let mut next = || arguments.next().ok_or("measuring a case wants a folder, three texts, two numbers and a truth value");
    let (folder, name, declared, size) = (next()?, next()?, next()?, next()?);
    let (workers, records, kill) = (next()?.parse()?, next()?.parse()?, next()?.parse()?);
    let answer = measure_here(Path::new(&folder), &name, &declared, workers, &size, records, kill)?;
    Ok(std::fs::write(Path::new(&folder).join(ANSWER), answer.to_string())?)
}

fn measure_here(folder: &Path, name: &str, declared: &str, workers: usize, size: &str, records: u64, kill: bool) -> Outcome<u64> {
    let plan = Arc::new(load(&format!("{DECLARED}{declared}"))?);
    let broker = open(folder)?;
    broker.ensure_topics(&plan.catalogue.topics.values().cloned().collect::<Vec<_>>())?;
    forget_peak();
    let run = Run::own();
    let options = || EngineOptions { workers, ..EngineOptions::default() };
    let start = |broker: &Arc<EmbeddedBroker>| Engine::start(plan.clone(), broker.clone(), SystemClock::shared(), options());
    let mut engine = start(&broker)?;
    if kill {
        while read(&engine) < records / 2 && engine.failure().is_none() {
            std::thread::yield_now();
        }
        engine.stop()?;
        engine = start(&broker)?;
    }
    if !engine.wait_caught_up(Duration::from_secs(3_600)) {
        return Err("the engine did not catch up".into());
    }
    run.end(
        &format!(
            "{name}, {size}, {workers} worker{}{}",
            if workers == 1 { "" } else { "s" },
            if kill { ", restarted" } else { "" }
        ),
        records,
    );
    if let Some(failure) = engine.failure() {
        return Err(failure.into());
    }
    engine.stop()?;
    let topology = plan.topologies.first().ok_or("no topology")?;
    let output = topology.outputs.first().ok_or("no output")?.topic.name.clone();
    let answer = answer(broker.as_ref(), &output)?;
    broker.reset_topology(&topology.name, &[output], quikflow_topics::broker::ResetFrom::Earliest)?;
    broker.close();
    Ok(answer)
}

/// Records read and committed so far, over all topologies.
fn read(engine: &Engine) -> u64 {
    let status = engine.status();
    let positions = status.topologies.iter().flat_map(|t| t.positions.values());
    positions.flat_map(|partitions| partitions.values()).map(|offset| offset.0).sum()
}

/// A checksum over the last version of each row of an output, whatever the batching was.
pub(crate) fn answer(broker: &dyn Broker, topic: &str) -> Outcome<u64> {
    let spec = broker.topic(topic).ok_or("no such topic")?;
    let names: Vec<&str> = spec.fields.iter().map(|f| f.name.as_str()).filter(|n| !["epoch", "final"].contains(n)).collect();
    let projection = Projection::of(&spec, &names);
    let keys = names.iter().filter(|n| ["window_start", "channel", "word"].contains(n)).count();
    let mut newest: BTreeMap<String, String> = BTreeMap::new();
    let mut reader: Box<dyn TopicReader> = broker.reader(topic, &Positions::new())?;
    while let Some(slice) = reader.poll(8_192)? {
        let batch = slice.decode(&projection)?;
        let shown: Vec<_> = batch
            .columns()
            .iter()
            .map(|c| arrow::util::display::ArrayFormatter::try_new(c.as_ref(), &arrow::util::display::FormatOptions::default()))
            .collect::<Result<_, _>>()?;
        for row in 0..batch.num_rows() {
            let (mut key, mut all) = (String::new(), String::new());
            for (at, name) in names.iter().enumerate() {
                let cell = format!("{}|", shown[at].value(row));
                if ["window_start", "channel", "word"].contains(name) {
                    key.push_str(&cell);
                }
                all.push_str(&cell);
            }
            newest.insert(key, all);
        }
    }
    assert!(keys > 0);
    let text: String = newest.into_values().collect();
    Ok(xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
}

/// (c): a count by the hour; channel activity by the hour and by the minute; the bare loop beside it.
pub(crate) fn engine_from_log(records: u64) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let shape = shape(records);
    fill_apart(folder.path(), shape)?;
    {
        let broker = open(folder.path())?;
        for (name, size, every) in [
            ("by the hour", 3_600, 8_192),
            ("by the hour", 3_600, 65_536),
            ("by the minute", 60, 8_192),
            ("by the minute", 60, 65_536),
        ] {
            forget_peak();
            let (groups, counted) = floor::run(
                broker.as_ref(),
                TOPIC,
                size * 1_000_000,
                every,
                &format!("floor: bare loop {name}, a commit each {every}"),
            )?;
            assert_eq!(counted, records, "the loop lost records");
            println!("{:<58} {groups:>11} groups", "");
        }
        broker.close();
    }
    for workers in [1, 2] {
        measure(folder.path(), "count only", &topology("count", "1h", COUNT), workers, "1h", records, false)?;
        for size in ["1h", "1m"] {
            measure(folder.path(), "channel_activity", &topology("activity", size, WHOLE), workers, size, records, false)?;
        }
    }
    let whole = measure(folder.path(), "channel_activity", &topology("activity", "1m", WHOLE), 2, "1m", records, false)?;
    let restarted = measure(folder.path(), "channel_activity", &topology("activity", "1m", WHOLE), 1, "1m", records, true)?;
    assert_eq!(whole, restarted, "a restart with another number of workers changed the answer");
    println!("the answer after a restart is the same: {whole:016x}");
    Ok(())
}

/// (f): word count over `words` words of 5,000.
pub(crate) fn word_count(words: u64) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let shape = Shape { events: words / 100, channels: 1_000, users: 10_000, start: HISTORY, step_seconds: 1.0, content: 650 };
    fill_apart(folder.path(), shape)?;
    let mut counted = 0_u64;
    for event in events(shape, 1) {
        counted += event.content.split(' ').filter(|word| !word.is_empty()).count() as u64;
    }
    for workers in [1, 2] {
        measure(folder.path(), "word count (events are words)", WORDS, workers, "all", counted, false)?;
    }
    Ok(())
}
