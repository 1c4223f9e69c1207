//! Fluvio's adapter: over a cluster in memory that fails by seed, in virtual time; and over a real
//! one where `QUIKFLOW_TEST_FLUVIO=host:port` names it (feature `fluvio`).
//!
//! `QUIKFLOW_SEED` repeats a seed that a failure has named.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

#[path = "../common/mod.rs"]
mod common;
mod fake;
#[path = "../../../tests/support/harness.rs"]
mod harness;
mod unread;

use arrow::array::{RecordBatch, StringArray};
use common::{conformance, lane, letter, piece, read, read_good, rows, spec};
use fake::{Dice, Fake, Line};
use quikflow_topics::broker::{Append, Broker, BrokerError, EpochCommit, Guarantee, Positions, ResetFrom, StateKind};
use quikflow_topics::brokers::embedded::{EmbeddedBroker, EmbeddedOptions};
use quikflow_topics::brokers::fluvio::{Endpoint, FluvioBroker, FluvioOptions, Raw};
use quikflow_topics::catalogue::{TopicKind, TopicSpec};
use quikflow_topics::clock::{Clock, SharedClock, SystemClock};
use quikflow_topics::dead_letter::DeadLetterFilter;
use quikflow_topics::ids::{Epoch, Offset, PartitionId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use unread::{
    nothing_new_is_one_question, r1_the_rest_of_a_batch_on_its_way_is_unread, r1_the_rest_of_an_epochs_outputs_is_unread,
};

crate::tests! {
    the_same_calls_have_the_same_answers,
    a_process_may_die_before_any_call_and_an_epoch_is_whole_or_not_there,
    whatever_goes_wrong_each_record_is_read_once,
    r17_a_lane_moves_to_another_process_and_doubles_nothing,
    a_zombies_epoch_does_not_count,
    an_outage_is_waited_for_and_a_refusal_is_not,
    r18_what_others_wrote_wrongly_is_a_dead_letter,
    a_long_journal_is_begun_anew,
    r1_the_rest_of_a_batch_on_its_way_is_unread,
    r1_the_rest_of_an_epochs_outputs_is_unread,
    nothing_new_is_one_question,
    what_does_not_fit_is_said_at_the_start,
    the_same_calls_on_a_real_cluster,
    all_of_a_long_partition_is_read_from_a_real_cluster,
}

const MINUTE: Duration = Duration::from_secs(60);

fn over(line: Arc<Line>, clock: SharedClock) -> Result<Arc<FluvioBroker>, BrokerError> {
    FluvioBroker::over(line, "test", clock, MINUTE)
}

/// A process's broker, with its topics.
fn started(fake: &Arc<Fake>, calls: i64, topics: &[Arc<TopicSpec>]) -> Result<(Arc<FluvioBroker>, Arc<Line>), BrokerError> {
    let line = fake.line(calls);
    let broker = over(line.clone(), fake.clock.clone())?;
    broker.ensure_topics(topics)?;
    Ok((broker, line))
}

fn expected() -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { sync: false, ..EmbeddedOptions::new(dir.path(), SystemClock::shared()) };
    conformance(EmbeddedBroker::open(options).unwrap().as_ref())
}

fn compare(found: &[String], expected: &[String]) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len());
}

fn the_same_calls_have_the_same_answers() {
    let fake = Fake::new(1, 0);
    let broker = over(fake.line(i64::MAX), SystemClock::shared()).unwrap();
    compare(&conformance(broker.as_ref()), &expected());
    assert_eq!(broker.guarantee(), Guarantee::AtLeastOnceDeterministic);

    // Another process finds all of it.
    let before = broker.dead_letters(&DeadLetterFilter::default()).unwrap();
    broker.close();
    assert!(matches!(broker.append(Append::default()), Err(BrokerError::Closed)));
    let (again, _) = started(&fake, i64::MAX, &[spec("events", TopicKind::Events), spec("out", TopicKind::Rows)]).unwrap();
    assert_eq!(again.last_epoch().unwrap(), Epoch(3));
    assert_eq!(again.generation("out").unwrap(), 1);
    assert_eq!(again.lane_line("file:run").unwrap(), 106);
    assert_eq!(again.dead_letters(&DeadLetterFilter::default()).unwrap(), before);
    assert_eq!(before.len(), 4);
}

/// The state of the second epoch does not fit into one record of the journal.
fn state_of(epoch: u64) -> Vec<u8> {
    let mut dice = Dice::new(epoch);
    (0..if epoch == 2 { 600_000 } else { 100 }).map(|_| dice.next() as u8).collect()
}

fn commit(out: &Arc<TopicSpec>, epoch: u64, numbers: &[i64]) -> EpochCommit {
    EpochCommit {
        epoch: Epoch(epoch),
        outputs: vec![rows(out, numbers)],
        state: vec![piece(0, StateKind::Delta, state_of(epoch))],
        offsets: vec![("topology:t".to_owned(), "events".to_owned(), PartitionId(0), Offset(epoch))],
        meta: vec![("t".to_owned(), "time".to_owned(), vec![epoch as u8])],
        dead_letters: vec![letter(&format!("step:t:{epoch}"), b"x")],
        ..EpochCommit::default()
    }
}

/// The n of all records of a topic, sorted.
fn numbers(broker: &dyn Broker, topic: &str) -> Vec<i64> {
    let mut found: Vec<i64> = read(broker, topic, &Positions::new()).0.iter().map(|row| row.1).collect();
    found.sort_unstable();
    found
}

/// R5, R19 without transactions: the process dies before its n-th call, for every n; whoever takes
/// over finds each epoch whole or not at all: outputs, state, offsets, dead letters.
fn a_process_may_die_before_any_call_and_an_epoch_is_whole_or_not_there() {
    let topics = [spec("events", TopicKind::Events), spec("out", TopicKind::Rows)];
    let out = &topics[1];
    let of = |epoch: u64| -> Vec<i64> { (0..8).map(|n| epoch as i64 * 100 + n).collect() };
    let mut outcomes = BTreeMap::new();
    let mut repeats = 0;
    for calls in 0.. {
        let fake = Fake::new(7, 0);
        let mut answered = 0;
        let whole = (|| {
            let (broker, _) = started(&fake, calls, &topics)?;
            broker.last_epoch()?;
            for epoch in 1..=3 {
                broker.commit_epoch(commit(out, epoch, &of(epoch)))?.wait()?;
                answered = epoch;
            }
            Ok::<(), BrokerError>(())
        })();
        let (heir, _) = started(&fake, i64::MAX, &topics).unwrap();
        let last = heir.last_epoch().unwrap().0;
        assert!(last >= answered && last <= answered + 1, "{calls} calls: answered {answered}, found {last}");
        let expected: Vec<i64> = (1..=last).flat_map(of).collect();
        assert_eq!(numbers(heir.as_ref(), "out"), expected, "{calls} calls");
        let state = heir.topology_state("t").unwrap();
        assert_eq!(state.pieces.len() as u64, last, "{calls} calls");
        assert!(state.pieces.iter().zip(1..).all(|(piece, epoch)| piece.bytes == state_of(epoch)));
        assert_eq!(heir.dead_letters(&DeadLetterFilter::default()).unwrap().len() as u64, last, "{calls} calls");
        let offsets = heir.group_offsets("topology:t").unwrap();
        assert_eq!(offsets.values().next().map_or(0, |offset| offset.0), last);
        // And it goes on.
        heir.commit_epoch(commit(out, last + 1, &of(last + 1))).unwrap().wait().unwrap();
        assert_eq!(numbers(heir.as_ref(), "out").len() as u64, (last + 1) * 8);
        repeats += fake.stored("test-out") - (last as usize + 1) * 8;
        *outcomes.entry(last).or_insert(0) += 1;
        if whole.is_ok() {
            break;
        }
    }
    // Every outcome was met, and what was read once was in truth written several times.
    assert_eq!(outcomes.len(), 4, "{outcomes:?}");
    assert!(repeats > 0 && outcomes.values().sum::<i32>() > 30, "{outcomes:?} {repeats}");
}

/// What the model knows of a run.
#[derive(Default)]
struct Model {
    /// Epochs' outputs that have to be there.
    outputs: Vec<i64>,
    /// Records of answered appends, and of those that nobody knows of.
    sure: Vec<i64>,
    perhaps: Vec<i64>,
    epoch: u64,
    line: u64,
    next: i64,
}

fn whatever_goes_wrong_each_record_is_read_once() {
    let seeds: Vec<u64> = std::env::var("QUIKFLOW_SEED").map_or((0..40).collect(), |seed| vec![seed.parse().unwrap()]);
    let (mut repeats, mut crashes, mut failures) = (0, 0, 0);
    for seed in seeds {
        let seen = std::panic::catch_unwind(|| one_run(seed));
        let Ok((repeated, crashed, failed)) = seen else { panic!("QUIKFLOW_SEED={seed} repeats this failure") };
        (repeats, crashes, failures) = (repeats + repeated, crashes + crashed, failures + failed);
    }
    // The runs were no sunny days.
    assert!(repeats > 100 && crashes > 20, "{repeats} repeats, {crashes} crashes, {failures} failures");
}

fn one_run(seed: u64) -> (usize, usize, usize) {
    let topics = [spec("events", TopicKind::Events), spec("door", TopicKind::Events), spec("out", TopicKind::Rows)];
    let fake = Fake::new(seed, 150);
    let mut dice = Dice::new(seed ^ 0xd1ce);
    let mut model = Model { next: 1, ..Model::default() };
    let (mut crashes, mut failures) = (0, 0);
    let fresh = |fake: &Arc<Fake>| loop {
        if let Ok(started) = started(fake, i64::MAX, &topics) {
            break started;
        }
    };
    let (mut broker, mut line) = fresh(&fake);
    let mut unsure: Option<(u64, Vec<i64>)> = None;
    for _ in 0..60 {
        match dice.below(10) {
            0 => {
                line.cut();
                (broker, line) = fresh(&fake);
                crashes += 1;
            }
            1..=3 => {
                let numbers: Vec<i64> = (0..1 + dice.below(12) as i64).map(|n| model.next + n).collect();
                model.next += numbers.len() as i64;
                let append = Append { rows: vec![rows(&topics[1], &numbers)], ..Append::default() };
                match broker.append(append).unwrap().wait() {
                    Ok(_) => model.sure.extend(numbers),
                    Err(_) => {
                        failures += 1;
                        model.perhaps.extend(numbers);
                    }
                }
            }
            4..=6 => {
                let lines: Vec<u64> = (1..=1 + dice.below(6)).map(|n| model.line + n).collect();
                // Until it is answered the client sends it again, perhaps to another process.
                while broker.append(lane(&topics[0], model.line, &lines)).unwrap().wait().is_err() {
                    failures += 1;
                    (broker, line) = fresh(&fake);
                }
                model.line = *lines.last().unwrap();
            }
            _ => {
                // As the engine does: after a failure it starts again from the last commit.
                let Ok(last) = broker.last_epoch() else { continue };
                if let Some((epoch, numbers)) = unsure.take() {
                    if last.0 >= epoch {
                        model.outputs.extend(numbers);
                    }
                    model.epoch = last.0;
                }
                assert_eq!(last.0, model.epoch);
                let numbers: Vec<i64> = (0..dice.below(10) as i64).map(|n| model.next + n).collect();
                model.next += numbers.len() as i64;
                let small = EpochCommit { state: Vec::new(), ..commit(&topics[2], last.0 + 1, &numbers) };
                match broker.commit_epoch(small).unwrap().wait() {
                    Ok(()) => {
                        model.outputs.extend(numbers);
                        model.epoch += 1;
                    }
                    Err(_) => {
                        failures += 1;
                        unsure = Some((last.0 + 1, numbers));
                    }
                }
            }
        }
    }
    fake.settle();
    let (last, _) = fresh(&fake);
    let epoch = (0..).find_map(|_| last.last_epoch().ok()).unwrap().0;
    if let Some((of, numbers)) = unsure.filter(|(of, _)| *of <= epoch) {
        assert_eq!(of, epoch);
        model.outputs.extend(numbers);
    }
    model.outputs.sort_unstable();
    assert_eq!(numbers(last.as_ref(), "out"), model.outputs);
    assert_eq!(numbers(last.as_ref(), "events"), (1..=model.line as i64).collect::<Vec<_>>());
    // R17: a lane's order holds in each partition.
    let (in_order, _) = read(last.as_ref(), "events", &Positions::new());
    assert!(in_order.windows(2).all(|pair| pair[0].0 != pair[1].0 || pair[0].1 < pair[1].1), "{in_order:?}");
    let door = numbers(last.as_ref(), "door");
    assert!(door.windows(2).all(|pair| pair[0] < pair[1]), "a record twice: {door:?}");
    assert!(model.sure.iter().all(|n| door.binary_search(n).is_ok()), "a record is missing");
    assert!(door.iter().all(|n| model.sure.contains(n) || model.perhaps.contains(n)), "a record from nowhere");
    from_the_middle(last.as_ref(), &["out", "events", "door"], &mut dice);
    let stored: usize = ["test-out", "test-events", "test-door"].iter().map(|topic| fake.stored(topic)).sum();
    (stored - model.outputs.len() - in_order.len() - door.len(), crashes, failures)
}

/// A reader that begins in the middle sees the rest of what one from the start has seen.
fn from_the_middle(broker: &dyn Broker, topics: &[&str], dice: &mut Dice) {
    for topic in topics {
        let (whole, ends) = read(broker, topic, &Positions::new());
        let mut reader = broker.reader(topic, &Positions::new()).unwrap();
        for _ in 0..dice.below(4) {
            reader.poll(1 + dice.below(20) as usize).unwrap();
        }
        let (rest, at_end) = read(broker, topic, &reader.positions());
        assert!(whole.len() >= rest.len());
        for partition in 0..3 {
            let of = |rows: &[common::Read]| rows.iter().filter(|row| row.0 == partition).cloned().collect::<Vec<_>>();
            let (whole, rest) = (of(&whole), of(&rest));
            assert!(whole.ends_with(&rest), "{topic} {partition}: {whole:?} {rest:?}");
        }
        assert_eq!(at_end, ends);
        // Repeats behind the last record are no lag.
        let stats = broker.stats(topic).unwrap();
        let lag: u64 = ends.iter().map(|(partition, next)| stats.end[partition.0 as usize].saturating_sub(next.0)).sum();
        assert_eq!(lag, 0, "{topic}: {stats:?} {ends:?}");
    }
}

fn r17_a_lane_moves_to_another_process_and_doubles_nothing() {
    let events = spec("events", TopicKind::Events);
    let fake = Fake::new(3, 0);
    let ((one, _), (two, _)) = (
        started(&fake, i64::MAX, std::slice::from_ref(&events)).unwrap(),
        started(&fake, i64::MAX, std::slice::from_ref(&events)).unwrap(),
    );
    let send = |broker: &FluvioBroker, previous: u64, lines: &[u64]| {
        let done = broker.append(lane(&events, previous, lines)).unwrap().wait().unwrap();
        (done.accepted, done.duplicates, done.lane_line)
    };
    assert_eq!(send(&one, 0, &[1, 2, 3]), (3, 0, 3));
    assert_eq!(send(&two, 0, &[1, 2, 3]), (0, 3, 3));
    assert_eq!(send(&two, 3, &[4, 5]), (2, 0, 5));
    assert_eq!(send(&one, 3, &[4, 5]), (0, 2, 5));
    assert_eq!(send(&one, 5, &[6]), (1, 0, 6));
    assert_eq!(numbers(one.as_ref(), "events"), [1, 2, 3, 4, 5, 6]);
}

fn a_zombies_epoch_does_not_count() {
    let topics = [spec("events", TopicKind::Events), spec("out", TopicKind::Rows)];
    let fake = Fake::new(4, 0);
    let (zombie, _) = started(&fake, i64::MAX, &topics).unwrap();
    assert_eq!(zombie.last_epoch().unwrap(), Epoch(0));
    zombie.commit_epoch(commit(&topics[1], 1, &[1])).unwrap().wait().unwrap();
    let (heir, _) = started(&fake, i64::MAX, &topics).unwrap();
    assert_eq!(heir.last_epoch().unwrap(), Epoch(1));
    let refused = zombie.commit_epoch(commit(&topics[1], 2, &[2])).unwrap().wait().unwrap_err().to_string();
    assert!(refused.contains("another process has taken over"), "{refused}");
    assert!(matches!(zombie.commit_epoch(commit(&topics[1], 3, &[3])).unwrap().wait(), Err(BrokerError::Closed)));
    heir.commit_epoch(commit(&topics[1], 2, &[20])).unwrap().wait().unwrap();
    let late = heir.commit_epoch(commit(&topics[1], 2, &[21])).unwrap().wait().unwrap_err().to_string();
    assert!(late.contains("epoch 2 is not after"), "{late}");
    for broker in [&zombie, &heir] {
        assert_eq!(numbers(broker.as_ref(), "out"), [1, 20]);
    }
}

fn an_outage_is_waited_for_and_a_refusal_is_not() {
    let events = spec("events", TopicKind::Events);
    let fake = Fake::new(5, 0);
    let (broker, _) = started(&fake, i64::MAX, std::slice::from_ref(&events)).unwrap();
    let append = || broker.append(Append { rows: vec![rows(&events, &[5])], ..Append::default() }).unwrap().wait();
    fake.down_for(MINUTE / 2);
    let (before, calls) = (fake.clock.elapsed(), fake.calls.load(Ordering::SeqCst));
    assert_eq!(append().unwrap().accepted, 1);
    let (waited, tries) = (fake.clock.elapsed() - before, fake.calls.load(Ordering::SeqCst) - calls);
    assert!(waited >= MINUTE / 2 && waited < MINUTE, "{waited:?}");
    // Pauses double, half of each drawn, up to five seconds: few tries, and never a burst of them.
    let pauses = std::mem::take(&mut *fake.pauses.lock().unwrap());
    assert!(tries <= 22, "{tries} tries in {waited:?}: {pauses:?}");
    for (nth, pause) in pauses.iter().enumerate() {
        let most = Duration::from_millis(50 << nth.min(7)).min(Duration::from_secs(5));
        assert!(*pause >= most / 2 && *pause <= most, "pause {nth}: {pauses:?}");
    }
    // Longer than the budget: said, with the setting to look at.
    fake.down_for(MINUTE * 10);
    let before = fake.clock.elapsed();
    let error = append().unwrap_err().to_string();
    let waited = fake.clock.elapsed() - before;
    assert!(error.contains("QUIKFLOW_BROKER") && error.contains("connection refused"), "{error}");
    assert!(waited >= MINUTE && waited < MINUTE * 2, "{waited:?}");
    fake.clock.advance(MINUTE * 10);
    assert_eq!(append().unwrap().accepted, 1);
    // A refusal is final at once.
    fake.pauses.lock().unwrap().clear();
    fake.refuse("the topic is read-only");
    assert!(append().unwrap_err().to_string().contains("the topic is read-only"));
    assert!(fake.pauses.lock().unwrap().is_empty());
}

/// A record that is no event of its topic stops nobody; one that others wrote rightly is read.
fn r18_what_others_wrote_wrongly_is_a_dead_letter() {
    let events = spec("events", TopicKind::Events);
    let fake = Fake::new(9, 0);
    let (broker, line) = started(&fake, i64::MAX, std::slice::from_ref(&events)).unwrap();
    let event = |n: &str| format!(r#"{{"type":"T","timestamp":"2026-01-01T00:00:00Z","payload":{{"text":"a","n":{n}}}}}"#);
    let values = [event("1"), "no JSON".to_owned(), event("\"one\""), event("2")];
    let records: Vec<Raw> = values.iter().map(|value| Raw { key: None, value: value.clone().into_bytes() }).collect();
    line.produce("test-events", 1, &records).unwrap();
    for _ in 0..2 {
        let (good, _, bad) = read_good(broker.as_ref(), "events", &Positions::new());
        let mut good: Vec<i64> = good.iter().map(|row| row.1).collect();
        good.sort_unstable();
        assert_eq!(good, [1, 2]);
        assert!(bad > 0);
        let letters = broker.dead_letters(&DeadLetterFilter::default()).unwrap();
        let found: Vec<_> = letters.iter().rev().map(|(_, l)| (l.origin.clone().unwrap().offset.0, l.bytes.clone())).collect();
        assert_eq!(found, [(1, values[1].clone().into_bytes()), (2, values[2].clone().into_bytes())]);
    }
}

/// The way to the state stays short: a start begins at the last whole book.
fn a_long_journal_is_begun_anew() {
    let topics = [spec("events", TopicKind::Events), spec("out", TopicKind::Rows)];
    let fake = Fake::new(6, 0);
    let (broker, _) = started(&fake, i64::MAX, &topics).unwrap();
    broker.last_epoch().unwrap();
    broker.commit_epoch(commit(&topics[1], 1, &[1])).unwrap().wait().unwrap();
    for epoch in 2..=5_200 {
        let meta = vec![("t".to_owned(), "time".to_owned(), epoch.to_string().into_bytes())];
        broker.commit_epoch(EpochCommit { epoch: Epoch(epoch), meta, ..EpochCommit::default() }).unwrap().wait().unwrap();
    }
    assert_eq!(fake.stored("test-quikflow-starts"), 1);
    let calls = fake.calls.load(Ordering::SeqCst);
    let (heir, _) = started(&fake, i64::MAX, &topics).unwrap();
    assert_eq!(heir.last_epoch().unwrap(), Epoch(5_200));
    let state = heir.topology_state("t").unwrap();
    assert_eq!((state.pieces.len(), state.meta["time"].as_slice()), (1, &b"5200"[..]));
    assert_eq!(state.pieces[0].bytes, state_of(1));
    assert_eq!(heir.group_offsets("topology:t").unwrap().len(), 1);
    assert_eq!(numbers(heir.as_ref(), "out"), [1]);
    let calls = fake.calls.load(Ordering::SeqCst) - calls;
    assert!(calls < 60, "{calls} calls to start");
    heir.reset_topology("t", &["out".to_owned()], ResetFrom::Latest).unwrap();
    assert_eq!((numbers(heir.as_ref(), "out").len(), heir.topology_state("t").unwrap().pieces.len()), (0, 0));
}

fn what_does_not_fit_is_said_at_the_start() {
    let fake = Fake::new(8, 0);
    let (broker, _) = started(&fake, i64::MAX, &[spec("QuikApp.messages", TopicKind::Events)]).unwrap();
    assert_eq!(fake.stored("test-quikapp-messages"), 0);
    let more = Arc::new(TopicSpec { partitions: 5, ..(*spec("QuikApp.messages", TopicKind::Events)).clone() });
    let message = broker.ensure_topics(&[more]).unwrap_err().to_string();
    assert!(message.contains("has 3 partitions, the catalogue says 5"), "{message}");
    let message = broker.ensure_topics(&[spec("quikapp-messages", TopicKind::Events)]).unwrap_err().to_string();
    assert!(message.contains("would both be `test-quikapp-messages`"), "{message}");
    let message = broker.ensure_topics(&[spec(&"x".repeat(60), TopicKind::Events)]).unwrap_err().to_string();
    assert!(message.contains("65 letters") && message.contains("shorten it or the prefix"), "{message}");
    for wrong in ["fluvio://", "fluvio://host", "fluvio://u:p@h:1", "http://h:1", "fluvio://h:1/A", "fluvio://h:1,h:2"] {
        assert!(FluvioOptions::from_url(wrong, SystemClock::shared()).is_err(), "{wrong}");
    }
    let right = FluvioOptions::from_url("fluvio://h:9003/mine", SystemClock::shared()).unwrap();
    assert_eq!((right.address.as_str(), right.prefix.as_str()), ("h:9003", "mine"));
}

/// The broker on the cluster that the environment names, with topics of its own.
fn real() -> Arc<FluvioBroker> {
    let address = harness::server("QUIKFLOW_TEST_FLUVIO");
    #[cfg(not(feature = "fluvio"))]
    harness::skip(format!("this build has no feature fluvio; {address} is not asked"));
    #[cfg(feature = "fluvio")]
    {
        static NTH: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let (stamp, nth) = (SystemClock::shared().now().0, NTH.fetch_add(1, Ordering::SeqCst));
        let url = format!("fluvio://{address}/t{stamp}-{nth}");
        let options = FluvioOptions::from_url(&url, SystemClock::shared()).unwrap();
        FluvioBroker::open(options).unwrap()
    }
}

fn the_same_calls_on_a_real_cluster() {
    let broker = real();
    compare(&conformance(broker.as_ref()), &expected());
}

/// More than a stream gives at once, whose bytes are cut within batches, and records larger than that.
fn all_of_a_long_partition_is_read_from_a_real_cluster() {
    let broker = real();
    let events = spec("events", TopicKind::Events);
    broker.ensure_topics(std::slice::from_ref(&events)).unwrap();
    let last = 60_000;
    for first in (0..last).step_by(3_000) {
        let lines: Vec<u64> = (first + 1..=first + 3_000).collect();
        broker.append(lane(&events, first, &lines)).unwrap().wait().unwrap();
    }
    let mut large = rows(&events, &[last as i64 + 1, last as i64 + 2]);
    let at = large.rows.schema().index_of("text").unwrap();
    let mut columns = large.rows.columns().to_vec();
    columns[at] = Arc::new(StringArray::from_iter_values(["x".repeat(2 << 20), "y".repeat(3 << 20)]));
    large.rows = RecordBatch::try_new(large.rows.schema(), columns).unwrap();
    broker.append(Append { rows: vec![large], ..Append::default() }).unwrap().wait().unwrap();
    let found = numbers(broker.as_ref(), "events");
    assert_eq!(found.len() as u64, last + 2);
    assert!(found.iter().zip(1..).all(|(found, n)| *found == n), "some twice, others not");
    from_the_middle(broker.as_ref(), &["events"], &mut Dice::new(11));
}
