//! R15: what a chain shows.

use super::link::{Link, Salts};
use super::{ChainRow, Head, verify_chain};
use crate::operator::{Emit, Rows};
use crate::steps::testing::{Event, Shards, event, mistakes, plan};
use std::collections::BTreeMap;

fn chain(length: u64) -> Vec<ChainRow> {
    let mut salts = Salts::new();
    let mut head = Head::default();
    (0..length)
        .map(|i| {
            let fields = BTreeMap::from([("event".to_owned(), "LOGIN".to_owned()), ("user".to_owned(), format!("u{i}"))]);
            let link = Link::new(&head, "QuikApp.audit", 3, i * 2, salts.next(), fields);
            head = link.head;
            link.row
        })
        .collect()
}

fn verify(rows: Vec<ChainRow>) -> Result<u64, String> {
    verify_chain(rows, &BTreeMap::new()).map(|v| v.rows).map_err(|e| e.to_string())
}

#[test]
fn r15_a_rewritten_row_is_found() {
    assert_eq!(verify(chain(5)), Ok(5));
    let tamper = |change: &dyn Fn(&mut Vec<ChainRow>)| {
        let mut rows = chain(5);
        change(&mut rows);
        verify(rows).unwrap_err()
    };
    let changed = tamper(&|rows| drop(rows[2].fields.insert("user".to_owned(), "someone else".to_owned())));
    assert_eq!(changed, "the chain of QuikApp.audit/3 is broken at index 2: the value of `user` was changed");
    assert!(tamper(&|rows| drop(rows[2].fields.remove("user"))).contains("`user` is missing"));
    assert!(tamper(&|rows| drop(rows.remove(2))).contains("index 2 was expected"));
    assert!(tamper(&|rows| rows.swap(1, 2)).contains("index 1 was expected"));
    assert!(tamper(&|rows| rows[2].offset += 1).contains("its hash does not fit"));
    assert!(tamper(&|rows| rows[2].digests = "{}".to_owned()).contains("its hash does not fit"));
    // A row forged whole, with its own hash, breaks the next one.
    let forged = tamper(&|rows| {
        let head = Head { next: 2, hash: hash_of(&rows[1].hash) };
        rows[2] = Link::new(&head, "QuikApp.audit", 3, 4, [0; 16], BTreeMap::new()).row;
    });
    assert!(forged.contains("index 3: it does not follow"), "{forged}");
}

fn hash_of(hex: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    for (i, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(i * 2..i * 2 + 2).unwrap(), 16).unwrap();
    }
    hash
}

#[test]
fn r15_erasure_removes_values_and_salt_and_the_chain_holds() {
    let mut rows = chain(5);
    rows[2].salt = None;
    rows[2].fields.clear();
    let verified = verify_chain(rows.clone(), &BTreeMap::new()).unwrap();
    assert_eq!((verified.rows, verified.erased), (5, 1));
    // A trimmed chain starts at its checkpoint.
    let checkpoint = verify_chain(rows[..3].to_vec(), &BTreeMap::new()).unwrap().heads;
    assert_eq!(verify_chain(rows[3..].to_vec(), &checkpoint).unwrap().heads, verified.heads);
}

#[test]
fn r15_chains_go_on_over_cuts_restores_and_workers() {
    let step = plan(r#"{ chain = {}, name = "c" }"#);
    let events: Vec<Event> =
        (0..20).map(|i| Event { partition: (i % 3) as u32, n: Some(i), ..event(i as u64, i, "u1") }).collect();
    for workers in [1, 2, 3] {
        let mut shards = Shards::new(step.as_ref(), 2);
        let mut rows = 0;
        for part in events.chunks(4) {
            rows += shards.events(part).len();
            rows += shards.end(0).len();
            shards = shards.restore(step.as_ref(), workers);
        }
        assert_eq!(rows, 20);
        // The next row of each partition has the index after the last one's.
        let last: Vec<Event> = (0..3).map(|partition| Event { partition, ..event(100, 1, "u1") }).collect();
        shards.events(&last);
        let mut found: Vec<String> = shards.end(0);
        found.sort();
        let indices: Vec<&str> =
            found.iter().map(|row| row.split(' ').find(|cell| cell.starts_with("chain_index=")).unwrap()).collect();
        assert_eq!(indices, ["chain_index=7", "chain_index=7", "chain_index=6"]);
    }
}

#[test]
fn r15_what_the_step_writes_verifies() {
    let step = plan(r#"{ chain = {}, name = "c" }"#);
    let crate::operator::Operator::Keyed { mut prepare, mut apply } = step.build() else { panic!("keyed") };
    let events: Vec<Event> = (0..9)
        .map(|i| Event { n: Some(i), x: Some(0.5), tags: Some(vec!["a".to_owned()]), ..event(i as u64, i, "u1") })
        .collect();
    let mut prepared = Emit::default();
    prepare[0].on_rows(Rows { source: 0, batch: crate::steps::testing::batch(&events) }, &mut prepared).unwrap();
    let mut emit = Emit::default();
    for (_, rows) in prepared.rows {
        apply.on_rows(0, rows, &mut emit).unwrap();
    }
    let time = quikflow_topics::ids::EventTime(0);
    let epoch = crate::operator::EpochTime {
        epoch: quikflow_topics::ids::Epoch(1),
        watermark: time,
        sources: vec![time],
        wall_clock: time,
    };
    apply.on_epoch_end(&epoch, &mut emit).unwrap();
    let rows = super::chain_rows(&emit.rows[0].1.batch).unwrap();
    assert_eq!(rows[0].fields.keys().collect::<Vec<_>>(), ["a", "n", "tags", "x"]);
    assert_eq!(rows[0].topic, "topic.0");
    assert_eq!(verify(rows), Ok(9));
    assert!(mistakes(r#"{ chain = { algorithm = "md5" }, name = "c" }"#).contains("unknown field `algorithm`"));
}

#[test]
fn r15_every_broken_row_is_reported_and_anchors_are_compared() {
    use super::audit::{Anchor, Audit, Audited};
    let audit = |rows: Vec<ChainRow>, trimmed: bool, anchors: &[Anchor]| -> Audited {
        let mut audit = Audit::new(trimmed, anchors);
        rows.into_iter().for_each(|row| audit.row(row));
        audit.finish()
    };
    let rows = chain(6);
    let chain_of = ("QuikApp.audit".to_owned(), 3);
    let anchor = |index: usize| {
        let head = Head { next: index as u64 + 1, hash: hash_of(&rows[index].hash) };
        Anchor::of("audit.log", &chain_of, &head, "then".to_owned()).unwrap()
    };
    let anchors = [anchor(1), anchor(5)];
    // Rows of a chain may lie out of order in the log.
    let mut mixed = rows.clone();
    mixed.swap(0, 3);
    let done = audit(mixed, false, &anchors);
    assert_eq!((done.rows, done.anchored, done.findings), (6, 2, Vec::new()));
    assert_eq!(done.heads[&chain_of].next, 6);

    let mut changed = rows.clone();
    for row in [1, 4] {
        changed[row].fields.insert("user".to_owned(), "someone else".to_owned());
    }
    let found = audit(changed, false, &[]).findings;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[1].contains("index 4: the value of `user` was changed"), "{found:?}");

    let gap = audit([&rows[..2], &rows[4..]].concat(), false, &anchors);
    assert_eq!(gap.findings, ["the chain of QuikApp.audit/3 lacks the rows from index 2 to 3"]);
    assert!(audit([&rows[..], &rows[2..3]].concat(), false, &[]).findings[0].contains("index 2 twice"));

    // Rewritten whole, it verifies but for the anchors; cut off, too.
    assert!(audit(chain(6), false, &[]).findings.is_empty());
    assert_eq!(audit(chain(6), false, &anchors).findings.len(), 2);
    let cut = audit(rows[..5].to_vec(), false, &anchors);
    assert!(cut.findings.len() == 1 && cut.findings[0].contains("rows were taken out"), "{:?}", cut.findings);

    // Trimmed: the anchor before the first row left fits its predecessor's hash.
    let trimmed = audit(rows[2..].to_vec(), true, &anchors);
    assert_eq!((trimmed.rows, trimmed.anchored, trimmed.findings), (4, 2, Vec::new()));
    assert!(trimmed.notes[0].contains("trimmed before index 2"));
}
