//! What is not shown yet and belongs to what is: nobody may take a partition for read to its end before.

use super::common::{lane, read, spec};
use super::fake::Fake;
use super::{MINUTE, commit, started};
use quikflow_topics::broker::{Append, Broker, Positions};
use quikflow_topics::catalogue::TopicKind;
use quikflow_topics::ids::{Offset, PartitionId};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// The partitions that nothing was shown of.
fn unseen(positions: &Positions) -> Positions {
    positions.iter().filter(|(_, next)| next.0 == 0).map(|(partition, next)| (*partition, *next)).collect()
}

/// Who was shown a part of a batch waits for the rest of it, wherever its writer dies.
pub(super) fn r1_the_rest_of_a_batch_on_its_way_is_unread() {
    let events = spec("events", TopicKind::Events);
    let lines: Vec<u64> = (1..=12).collect();
    for with_lane in [true, false] {
        let append = || Append { lane: lane(&events, 0, &lines).lane.filter(|_| with_lane), ..lane(&events, 0, &lines) };
        let mut waited = 0;
        for calls in 0.. {
            let fake = Fake::new(12, 0);
            let (broker, _) = started(&fake, i64::MAX, std::slice::from_ref(&events)).unwrap();
            let written = started(&fake, calls, std::slice::from_ref(&events))
                .is_ok_and(|(writer, _)| writer.append(append()).unwrap().wait().is_ok());
            let (shown, positions) = read(broker.as_ref(), "events", &Positions::new());
            let unseen = unseen(&positions);
            if written {
                assert!(unseen.is_empty(), "{positions:?}");
                // Without a lane it may die after the answer and before it has said that all is there.
                assert!(!with_lane || !broker.unread("events", &positions, true).unwrap());
                break;
            }
            if shown.is_empty() || unseen.is_empty() {
                continue;
            }
            waited += 1;
            assert!(broker.unread("events", &unseen, true).unwrap(), "after {calls} calls");
            assert!(!broker.unread("other", &unseen, true).unwrap_or_default());
            // Whoever sends it is gone: not for ever.
            fake.clock.advance(MINUTE);
            assert!(!broker.unread("events", &unseen, true).unwrap(), "after {calls} calls");
        }
        assert_eq!(waited, 2, "a batch of three partitions stops twice in the middle");
    }
}

pub(super) fn r1_the_rest_of_an_epochs_outputs_is_unread() {
    let topics = [spec("events", TopicKind::Events), spec("out", TopicKind::Rows)];
    let fake = Fake::new(13, 0);
    let (broker, line) = started(&fake, i64::MAX, &topics).unwrap();
    broker.last_epoch().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (weak, told, far) = (Arc::downgrade(&broker), seen.clone(), fake.clone());
    line.watch(move |topic| {
        let Some(broker) = weak.upgrade().filter(|_| topic == "test-out") else { return };
        let any = far.stored("test-out") > 0;
        let all: Positions = (0..3).map(|partition| (PartitionId(partition), Offset(0))).collect();
        told.lock().unwrap().push((any, broker.unread("out", &all, true).unwrap()));
    });
    broker.commit_epoch(commit(&topics[1], 1, &(1..=12).collect::<Vec<_>>())).unwrap().wait().unwrap();
    assert_eq!(*seen.lock().unwrap(), [(false, true), (true, true), (true, true)]);
    let (_, positions) = read(broker.as_ref(), "out", &Positions::new());
    assert!(unseen(&positions).is_empty() && !broker.unread("out", &positions, true).unwrap());
}

/// However many partitions there are; and what was all read is not asked for again.
pub(super) fn nothing_new_is_one_question() {
    let events = spec("events", TopicKind::Events);
    let fake = Fake::new(14, 0);
    let (broker, _) = started(&fake, i64::MAX, std::slice::from_ref(&events)).unwrap();
    broker.append(lane(&events, 0, &[1, 2, 3, 4, 5])).unwrap().wait().unwrap();
    let mut reader = broker.reader("events", &Positions::new()).unwrap();
    while reader.poll(2).unwrap().is_some() {}
    let asked = |what: &mut dyn FnMut()| {
        let before = fake.calls.load(Ordering::SeqCst);
        what();
        fake.calls.load(Ordering::SeqCst) - before
    };
    assert_eq!(asked(&mut || assert!(reader.poll(2).unwrap().is_none())), 1);
    let positions = reader.positions();
    let mut unread = || assert!(!broker.unread("events", &positions, true).unwrap());
    assert!(asked(&mut unread) > 0);
    assert_eq!(asked(&mut unread), 0);
}
