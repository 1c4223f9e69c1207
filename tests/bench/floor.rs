//! The floor: a bare loop that does for one fixed question what `channel_activity` does for any.
//!
//! One thread reads the columns from the log, groups by channel and window, counts, sums, keeps exact
//! distinct users, a percentile sketch, closes windows, and every so many events writes changed
//! groups, new pairs, new dictionary entries, output rows and offsets in one synced transaction of
//! SQLite. No expressions, no plan, no workers, no accounts: what is left when all of that is free.

use crate::measure::Run;
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use hashbrown::{HashMap, HashSet};
use quikflow_topics::broker::{Broker, Positions, Projection};
use quikflow_topics::schema;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;

const GRACE: i64 = 35_000_000;

#[derive(Default)]
struct Group {
    channel: u32,
    messages: i64,
    characters: i64,
    authors: i64,
    sketch: Vec<(i16, u32)>,
    changed: bool,
}

#[derive(Default)]
struct Window {
    groups: Vec<Group>,
    by_channel: HashMap<u32, u32>,
    pairs: HashSet<(u32, u32)>,
}

#[derive(Default)]
struct Dictionary {
    codes: HashMap<String, u32>,
    fresh: Vec<u8>,
}

impl Dictionary {
    fn code(&mut self, text: &str) -> u32 {
        if let Some(code) = self.codes.get(text) {
            return *code;
        }
        let code = self.codes.len() as u32;
        self.codes.insert(text.to_owned(), code);
        self.fresh.extend_from_slice(&(text.len() as u32).to_le_bytes());
        self.fresh.extend_from_slice(text.as_bytes());
        code
    }
}

/// Runs the loop over all of `topic`; windows of `size` microseconds, a commit each `every` events.
/// Returns (groups closed, messages counted).
pub(crate) fn run(broker: &dyn Broker, topic: &str, size: i64, every: usize, name: &str) -> Result<(u64, u64), Box<dyn Error>> {
    let spec = broker.topic(topic).ok_or("no such topic")?;
    let projection = Projection::of(&spec, &[schema::PARTITION, schema::EVENT_TIME, "channelId", "userId", "content"]);
    let folder = tempfile::tempdir()?;
    let database = rusqlite::Connection::open(folder.path().join("floor.sqlite"))?;
    database.execute_batch(
        "pragma page_size=65536; pragma journal_mode=wal; pragma synchronous=full;
         create table piece(id integer primary key, groups blob, pairs blob, names blob, rows blob, offsets blob);",
    )?;
    let run = Run::own();
    let (mut channels, mut users) = (Dictionary::default(), Dictionary::default());
    let mut windows: BTreeMap<i64, Window> = BTreeMap::new();
    let mut touched: BTreeSet<i64> = BTreeSet::new();
    let (mut newest, mut closed, mut counted, mut since) = (HashMap::<u32, i64>::new(), 0, 0, 0);
    let mut pairs_out: Vec<u8> = Vec::new();
    let mut reader = broker.reader(topic, &Positions::new())?;
    while let Some(slice) = reader.poll(every)? {
        let batch = slice.decode(&projection)?;
        let partitions = batch.column(0).as_primitive::<arrow::datatypes::UInt32Type>();
        let times = batch.column(1).as_primitive::<TimestampMicrosecondType>();
        let (channel, user) = (batch.column(2).as_string::<i32>(), batch.column(3).as_string::<i32>());
        let lengths = arrow::compute::cast(&characters(batch.column(4)), &arrow::datatypes::DataType::Int64)?;
        let lengths = lengths.as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let at = times.value(row);
            let start = at - at.rem_euclid(size);
            newest.entry(partitions.value(row)).and_modify(|t| *t = (*t).max(at)).or_insert(at);
            let window = windows.entry(start).or_default();
            touched.insert(start);
            let code = channels.code(channel.value(row));
            let next = window.groups.len() as u32;
            let id = *window.by_channel.entry(code).or_insert(next);
            if id == next {
                window.groups.push(Group { channel: code, ..Group::default() });
            }
            let group = &mut window.groups[id as usize];
            let (author, length) = (users.code(user.value(row)), lengths.value(row));
            group.messages += 1;
            group.characters += length;
            group.changed = true;
            if window.pairs.insert((id, author)) {
                group.authors += 1;
                pairs_out.extend_from_slice(&start.to_le_bytes());
                pairs_out.extend_from_slice(&id.to_le_bytes());
                pairs_out.extend_from_slice(&author.to_le_bytes());
            }
            let bucket = ((length.max(1) as f64).ln() / 0.02) as i16;
            match group.sketch.iter_mut().find(|(b, _)| *b == bucket) {
                Some((_, n)) => *n += 1,
                None => group.sketch.push((bucket, 1)),
            }
        }
        since += batch.num_rows();
        counted += batch.num_rows() as u64;
        if since < every {
            continue;
        }
        since = 0;
        let watermark = newest.values().min().copied().unwrap_or(i64::MIN);
        commit(&database, &mut windows, &mut touched, &mut pairs_out, [&mut channels, &mut users], &newest)?;
        while let Some(first) = windows.first_entry() {
            if *first.key() + size + GRACE > watermark {
                break;
            }
            closed += first.remove().groups.len() as u64;
        }
    }
    commit(&database, &mut windows, &mut touched, &mut pairs_out, [&mut channels, &mut users], &newest)?;
    run.end(name, counted);
    closed += windows.values().map(|w| w.groups.len() as u64).sum::<u64>();
    Ok((closed, counted))
}

/// Characters of each content, not bytes.
fn characters(contents: &dyn Array) -> arrow::array::Int32Array {
    let contents = contents.as_string::<i32>();
    (0..contents.len()).map(|row| contents.value(row).chars().count() as i32).collect::<Vec<_>>().into()
}

fn commit(
    database: &rusqlite::Connection,
    windows: &mut BTreeMap<i64, Window>,
    touched: &mut BTreeSet<i64>,
    pairs: &mut Vec<u8>,
    names: [&mut Dictionary; 2],
    offsets: &HashMap<u32, i64>,
) -> rusqlite::Result<()> {
    let (mut groups, mut rows) = (Vec::new(), Vec::new());
    for start in std::mem::take(touched) {
        let Some(window) = windows.get_mut(&start) else { continue };
        for group in window.groups.iter_mut().filter(|g| g.changed) {
            group.changed = false;
            let mut sorted = group.sketch.clone();
            sorted.sort_unstable();
            let (mut left, mut p95) = ((f64::from(group.messages as i32) * 0.95).ceil() as i64, 0.0);
            for (bucket, n) in &sorted {
                left -= i64::from(*n);
                if left <= 0 {
                    p95 = (f64::from(*bucket) * 0.02 + 0.01).exp();
                    break;
                }
            }
            for number in [start, i64::from(group.channel), group.messages, group.characters, group.authors] {
                groups.extend_from_slice(&number.to_le_bytes());
                rows.extend_from_slice(&number.to_le_bytes());
            }
            rows.extend_from_slice(&p95.to_le_bytes());
            for (bucket, n) in sorted {
                groups.extend_from_slice(&bucket.to_le_bytes());
                groups.extend_from_slice(&n.to_le_bytes());
            }
        }
    }
    let [channels, users] = names;
    let mut fresh = std::mem::take(&mut channels.fresh);
    fresh.append(&mut users.fresh);
    let stood: Vec<u8> =
        offsets.iter().flat_map(|(p, t)| [p.to_le_bytes().to_vec(), t.to_le_bytes().to_vec()].concat()).collect();
    let packed = |bytes: &[u8]| lz4_flex::compress_prepend_size(bytes);
    database.execute_batch("begin immediate")?;
    database.prepare_cached("insert into piece(groups, pairs, names, rows, offsets) values(?,?,?,?,?)")?.execute((
        packed(&groups),
        packed(pairs),
        packed(&fresh),
        packed(&rows),
        stood,
    ))?;
    database.execute_batch("commit")?;
    pairs.clear();
    Ok(())
}

/// What SQLite's full-text index alone costs for these contents: no documents, no offsets.
pub(crate) fn full_text(file: &std::path::Path, records: u64) -> Result<(), Box<dyn Error>> {
    use std::io::BufRead as _;
    let folder = tempfile::tempdir()?;
    let database = rusqlite::Connection::open(folder.path().join("floor.sqlite"))?;
    database.execute_batch(
        "pragma page_size=16384; pragma journal_mode=wal; pragma synchronous=full;
         create virtual table piece using fts5(body, content='', contentless_delete=1, tokenize='unicode61 remove_diacritics 2');",
    )?;
    let mut contents = Vec::new();
    for line in std::io::BufReader::new(std::fs::File::open(file)?).lines() {
        let event: serde_json::Value = serde_json::from_str(&line?)?;
        contents.push(event["payload"]["content"].as_str().unwrap_or_default().to_owned());
    }
    let run = Run::own();
    for chunk in contents.chunks(8_192) {
        database.execute_batch("begin immediate")?;
        let mut insert = database.prepare_cached("insert into piece(body) values(?)")?;
        for content in chunk {
            insert.execute([content])?;
        }
        database.execute_batch("commit")?;
    }
    run.end("floor: FTS5 alone, a commit each 8192", records);
    Ok(())
}
