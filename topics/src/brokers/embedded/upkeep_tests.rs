//! Tests of merging, retention and compaction.

use super::tests::*;
use super::*;

/// Waits for what happens behind the writer, without sleeping: each turn is an empty commit.
fn until(broker: &EmbeddedBroker, done: impl Fn() -> bool) {
    for _ in 0..200_000 {
        if done() {
            return;
        }
        broker.append_dead_letters(Vec::new()).unwrap().wait().unwrap();
    }
    panic!("it never happened");
}

#[test]
fn r10_offsets_survive_a_merge() {
    let log = Log::new();
    let spec = spec("t");
    let broker = log.open();
    broker.ensure_topics(std::slice::from_ref(&spec)).unwrap();
    let mut middle = broker.reader("t", &Positions::new()).unwrap();
    let mut places = Vec::new();
    for n in 0..300 {
        log.clock.advance(Duration::from_millis(1));
        let done = append_many(&broker, &spec, 1, n);
        let (p, o) = done.positions[0][0].unwrap();
        places.push((p.0, o.0, n));
        if n == 100 {
            while middle.poll(7).unwrap().is_some() {}
        }
    }
    let before = middle.positions();
    until(&broker, || broker.stats("t").unwrap().chunks < 100);
    let (mut all, _) = read(&broker, "t", &Positions::new(), 64);
    let (mut rest, _) = read(&broker, "t", &before, 1_000);
    let mut seen = 0;
    while let Some(slice) = middle.poll(50).unwrap() {
        seen += slice.rows();
    }
    assert_eq!((seen, rest.len()), (199, 199));
    places.sort();
    all.sort();
    rest.sort();
    assert_eq!(all, places);
    assert!(rest.iter().all(|r| r.2 > 100));
    drop(broker);
    let report = verify::verify(log.dir.path(), &mut |_, _| {}).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.topics[0].records, 300);
}

#[test]
fn r10_retention_counts_from_arrival_and_never_passes_the_slowest_group() {
    let log = Log::new();
    let mut spec = (*spec("t")).clone();
    spec.retention = Some(Duration::from_secs(60));
    let spec = Arc::new(spec);
    let broker = log.open();
    broker.ensure_topics(std::slice::from_ref(&spec)).unwrap();
    append_many(&broker, &spec, 9_000, 0);
    let ends: Positions = broker.stats("t").unwrap().end.iter().enumerate().map(ends_as_position).collect();
    broker.report_progress("sink:s", "t", &Positions::new()).unwrap();
    log.clock.advance(Duration::from_secs(100));
    append_many(&broker, &spec, 9_000, 9_000);
    log.clock.advance(Duration::from_secs(30));
    append_many(&broker, &spec, 1, 0);
    assert_eq!(broker.stats("t").unwrap().records, 18_001);
    broker.report_progress("sink:s", "t", &ends).unwrap();
    until(&broker, || {
        log.clock.advance(Duration::from_millis(1));
        broker.stats("t").unwrap().records == 9_001
    });
    assert_eq!(broker.stats("t").unwrap().start, ends.values().map(|o| o.0).collect::<Vec<_>>());
    assert_eq!(broker.groups().unwrap(), ["sink:s"]);
    drop(broker);
    let broker = log.open();
    assert_eq!(broker.group_offsets("sink:s").unwrap().len(), 3);
    assert_eq!(read(&broker, "t", &Positions::new(), 500).0.len(), 9_001);
}

#[test]
fn r10_compaction_keeps_the_newest_record_of_each_key_at_its_offset() {
    let log = Log::new();
    let mut spec = (*spec("t")).clone();
    spec.cleanup = crate::catalogue::Cleanup::Compact;
    let spec = Arc::new(spec);
    let broker = log.open();
    broker.ensure_topics(std::slice::from_ref(&spec)).unwrap();
    for n in 0..5 {
        append_many(&broker, &spec, 1_000, n * 1_000);
    }
    let last = broker.stats("t").unwrap().end;
    until(&broker, || broker.stats("t").unwrap().records <= 1_017);
    let (all, _) = read(&broker, "t", &Positions::new(), 100);
    assert_eq!(broker.stats("t").unwrap().end, last);
    let mut newest = [0; 17];
    for (_, _, n) in &all {
        let key = (n % 17) as usize;
        newest[key] = newest[key].max(*n);
    }
    assert!(newest.iter().all(|n| *n >= 4_983));
    drop(broker);
    let report = verify::verify(log.dir.path(), &mut |_, _| {}).unwrap();
    assert!(report.is_sound(), "{report:?}");
}
