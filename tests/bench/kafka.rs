//! (k) the engine from a filled topic of plain JSON on Kafka: one process, two processes, and what a
//! transaction an epoch costs.
//!
//! `QUIKFLOW_TEST_KAFKA=host:port` names the broker; `QUIKFLOW_TEST_PYTHON` a Python with
//! confluent-kafka, which fills the topic (`tests/services/services start kafka` prints both).

use crate::data::{events, json_line};
use crate::door::batched_on_kafka;
use crate::engine::{DECLARED, Outcome, TOPIC, WHOLE, answer, load, shape, topology};
use crate::measure::{Run, cpu_seconds, forget_peak, peak_mib};
use quikflow_pipelines::engine::{Engine, EngineOptions};
use quikflow_topics::broker::{Broker, ResetFrom};
use quikflow_topics::brokers::kafka::{KafkaBroker, KafkaOptions};
use quikflow_topics::clock::SystemClock;
use quikflow_topics::share::Work;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const QUIKFLOW: &str = env!("CARGO_BIN_EXE_quikflow");

/// A Kafka and the names of one benchmark on it.
struct Kafka {
    hosts: String,
    prefix: String,
}

impl Kafka {
    fn url(&self) -> String {
        format!("kafka://{}/{}", self.hosts, self.prefix)
    }

    fn open(&self, transactions: bool) -> Outcome<Arc<KafkaBroker>> {
        let options = KafkaOptions::from_url(&self.url(), SystemClock::shared())?;
        Ok(KafkaBroker::open(KafkaOptions { transactions, ..options })?)
    }

    /// Another client fills the topic with plain JSON.
    fn fill(&self, records: u64, partitions: u32) -> Outcome<()> {
        let python = std::env::var("QUIKFLOW_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let mut command = Command::new(python);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/fill_kafka.py"));
        command.args([&self.hosts, &format!("{}.{TOPIC}", self.prefix), &partitions.to_string()]);
        let mut child = command.stdin(Stdio::piped()).spawn()?;
        let mut lines = std::io::BufWriter::new(child.stdin.take().ok_or("no input")?);
        let mut line = String::new();
        for event in events(shape(records), 1) {
            line.clear();
            json_line(&event, &mut line);
            write!(lines, "channel-{:04}\t{line}", event.channel)?;
        }
        drop(lines);
        if child.wait()?.success() { Ok(()) } else { Err("the topic was not filled".into()) }
    }
}

/// Runs the topology in this process over what the topic holds; the answer and the wall time.
fn measure(kafka: &Kafka, name: &str, declared: &str, options: EngineOptions, transactions: bool, records: u64) -> Outcome<u64> {
    let plan = Arc::new(load(&format!("{DECLARED}{declared}"))?);
    let broker = kafka.open(transactions)?;
    broker.ensure_topics(&plan.catalogue.topics.values().cloned().collect::<Vec<_>>())?;
    forget_peak();
    let run = Run::own();
    let engine = Engine::start(plan.clone(), broker.clone(), SystemClock::shared(), options)?;
    if !engine.wait_caught_up(Duration::from_secs(3_600)) {
        return Err("the engine did not catch up".into());
    }
    run.end(name, records);
    let epochs = engine.status().epoch.0;
    println!("{:<58} {epochs:>11} epochs", "");
    engine.failure().map_or(Ok(()), Err)?;
    engine.stop()?;
    let topology = plan.topologies.first().ok_or("no topology")?;
    let output = topology.outputs.first().ok_or("no output")?.topic.name.clone();
    let answer = answer(broker.as_ref(), &output)?;
    broker.reset_topology(&topology.name, &[output], ResetFrom::Earliest)?;
    broker.close();
    Ok(answer)
}

/// A process that does not outlive the benchmark, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) && self.0.kill().is_ok() {
            drop(self.0.wait());
        }
    }
}

/// Processes that share the topology's work, until all is read; the answer.
#[allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn processes(kafka: &Kafka, folder: &Path, name: &str, declared: &str, count: usize, records: u64) -> Outcome<u64> {
    let broker = kafka.open(true)?;
    let plan = load(&format!("{DECLARED}{declared}"))?.for_shares(broker.shares(Work::Pipelines));
    // The one that reads the messages comes before the one that reads what it combined.
    let (first, topology) = (plan.topologies.first().ok_or("no topology")?, plan.topologies.last().ok_or("no topology")?);
    let file = folder.join(format!("{name}.toml"));
    std::fs::write(&file, format!("{DECLARED}{declared}"))?;
    // What lies between two halves as well.
    let mut topics = plan.catalogue.topics.clone();
    let sources = plan.topologies.iter().flat_map(|topology| &topology.sources);
    topics.extend(sources.map(|source| (source.topic.name.clone(), source.topic.clone())));
    broker.ensure_topics(&topics.into_values().collect::<Vec<_>>())?;
    let start = |number: usize| -> Outcome<Running> {
        let mut command = Command::new(QUIKFLOW);
        command.args(["run", "pipelines", "--workers", "1", "--topologies"]).arg(&file);
        command.arg("--data").arg(folder.join(format!("{name}-{number}"))).env("QUIKFLOW_BROKER", kafka.url());
        let log = std::fs::File::create(folder.join(format!("{name}-{number}.log")))?;
        Ok(Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?))
    };
    // From the first record read, when all of them have their shares.
    let mut children: Vec<Running> = (0..count).map(start).collect::<Outcome<_>>()?;
    let offsets = |of: &str, from: &str| -> Outcome<u64> {
        let offsets = broker.group_offsets(&format!("topology:{of}"))?;
        Ok(offsets.iter().filter(|((topic, _), _)| topic == from).map(|(_, offset)| offset.0).sum())
    };
    let read = || offsets(&first.name, TOPIC);
    // Of a topology in two halves, the second has read all that the first wrote.
    let merged = || -> Outcome<bool> {
        let between = topology.sources.first().map(|source| source.topic.name.as_str()).filter(|from| *from != TOPIC);
        let Some(between) = between else { return Ok(true) };
        let written: u64 = broker.stats(between)?.end.iter().sum();
        Ok(written > 0 && offsets(&topology.name, between)? >= written)
    };
    let mut started = None;
    loop {
        let done = read()?;
        if done > 0 && started.is_none() {
            let cpu: f64 = children.iter().map(|child| cpu_seconds(child.0.id())).sum();
            started = Some((Instant::now(), done, cpu));
        }
        if done >= records && merged()? {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let (began, before, cpu) = started.ok_or("nothing was read")?;
    let wall = began.elapsed().as_secs_f64();
    let cpu = children.iter().map(|child| cpu_seconds(child.0.id())).sum::<f64>() - cpu;
    let peak = children.iter().map(|child| peak_mib(child.0.id())).fold(0.0, f64::max);
    let counted = (records - before) as f64;
    println!(
        "{:<58} {:>11.0} events/s {:>7.2} CPU s/M {wall:>7.2} s {peak:>6.0} MiB",
        format!("{count} process(es) of one worker, from the first commit on: {}", topology.name),
        counted / wall,
        cpu / counted * 1e6
    );
    for child in &mut children {
        Command::new("kill").args(["-TERM", &child.0.id().to_string()]).status()?;
        child.0.wait()?;
    }
    let output = topology.outputs.first().ok_or("no output")?.topic.name.clone();
    let found = answer(broker.as_ref(), &output)?;
    broker.close();
    Ok(found)
}

/// (k), all of it.
pub(crate) fn engine_from_kafka(records: u64) -> Outcome<()> {
    let hosts = std::env::var("QUIKFLOW_TEST_KAFKA").map_err(|_| "case k needs QUIKFLOW_TEST_KAFKA=host:port")?;
    let folder = tempfile::tempdir()?;
    let kafka = Kafka { hosts, prefix: format!("bench-{}", std::process::id()) };
    kafka.fill(records, 12)?;
    let activity = |name: &str| topology(name, "1h", WHOLE);
    let options = |workers| EngineOptions { workers, ..EngineOptions::default() };
    let mut answers = Vec::new();
    for workers in [1, 2] {
        let name = format!("Kafka, channel_activity, 1h, {workers} worker(s)");
        answers.push(measure(&kafka, &name, &activity("activity"), options(workers), true, records)?);
    }
    // Epochs of about 100 ms each: what a transaction costs, in turns.
    let short = || EngineOptions { max_epoch_rows: 4_096, ..options(1) };
    for _ in 0..2 {
        for (transactions, name) in
            [(true, "Kafka, epochs of 4,096, exactly once"), (false, "Kafka, epochs of 4,096, at least once")]
        {
            answers.push(measure(&kafka, name, &activity("activity"), short(), transactions, records)?);
        }
    }
    for count in [1, 2] {
        let name = format!("activity{count}");
        answers.push(processes(&kafka, folder.path(), &name, &activity(&name), count, records)?);
    }
    // By user, while the records' key is the channel: combined, through a topic, merged.
    let by_user = |name: &str| activity(name).replace("payload.channelId", "payload.userId");
    let mut divided =
        vec![measure(&kafka, "Kafka, by another key, 1h, 1 worker", &by_user("by_user"), options(1), true, records)?];
    for count in [1, 2] {
        let name = format!("by_user{count}");
        divided.push(processes(&kafka, folder.path(), &name, &by_user(&name), count, records)?);
    }
    if divided.iter().any(|answer| Some(answer) != divided.first()) {
        return Err(format!("the answers by another key differ: {divided:x?}").into());
    }
    let door = Kafka { hosts: kafka.hosts.clone(), prefix: format!("{}-door", kafka.prefix) };
    batched_on_kafka(&door.url(), folder.path(), records)?;
    let first = answers.first().copied();
    if answers.iter().any(|answer| Some(*answer) != first) {
        return Err(format!("the answers differ: {answers:x?}").into());
    }
    println!("all answers are the same: {:016x}", first.unwrap_or_default());
    Ok(())
}
