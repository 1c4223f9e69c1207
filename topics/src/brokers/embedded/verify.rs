//! Walks the log: headers, checksums of columns, continuity of offsets, checksums of state. For
//! `quikflow verify`.

use super::slice::Chunk;
use super::sql;
use super::topic::{self, TopicState};
use crate::broker::BrokerError;
use crate::catalogue::Cleanup;
use crate::chunk::header::Header;
use crate::chunk::{ARRIVAL_COLUMN, Damaged, OFFSET_COLUMN, checksum, column};
use crate::schema;
use arrow::datatypes::DataType;
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;

/// What was walked and what is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// By topic.
    pub topics: Vec<TopicReport>,
    /// Pieces of state read.
    pub state_pieces: u64,
    /// What is wrong outside of topics; empty when nothing is.
    pub findings: Vec<String>,
}

/// One topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct TopicReport {
    /// Its name.
    pub topic: String,
    /// Chunks read.
    pub chunks: u64,
    /// Records in them.
    pub records: u64,
    /// What is wrong; empty when nothing is.
    pub findings: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty() && self.topics.iter().all(|t| t.findings.is_empty())
    }
}

/// At most so many findings a topic; a damaged disk would fill the memory with them.
const MOST: usize = 100;

/// Walks the log of `dir`, offline or beside its owner; `progress` is called with the topic and
/// the number of its chunks read, now and then.
///
/// # Errors
/// When the file cannot be opened or read at all; damage within is in the report.
pub fn verify(dir: &Path, progress: &mut dyn FnMut(&str, u64)) -> Result<Report, BrokerError> {
    let conn = sql::open_reader(dir)?;
    let mut report = Report::default();
    let quick: String = conn.query_row("pragma quick_check(1)", [], |row| row.get(0))?;
    if quick != "ok" {
        report.findings.push(format!("the file itself: {quick}"));
    }
    // One snapshot, so that merging beside it changes nothing underway.
    conn.execute_batch("begin")?;
    for state in topic::load_declared(&conn)?.values() {
        report.topics.push(verify_topic(&conn, state, progress)?);
    }
    let mut statement = conn.prepare("select id, topology, step, checksum, bytes from state")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        report.state_pieces += 1;
        let bytes = row.get_ref(4)?.as_blob().map_err(rusqlite::Error::from)?;
        if checksum(bytes) as i64 != row.get::<_, i64>(3)? {
            let (topology, step): (String, String) = (row.get(1)?, row.get(2)?);
            report.findings.push(format!("state of step `{step}` of topology `{topology}` does not match its checksum"));
        }
    }
    Ok(report)
}

fn verify_topic(
    conn: &Connection,
    state: &Arc<TopicState>,
    progress: &mut dyn FnMut(&str, u64),
) -> Result<TopicReport, BrokerError> {
    let spec = state.spec();
    let mut report = TopicReport { topic: spec.name.clone(), ..TopicReport::default() };
    let mut statement = conn.prepare(&format!("select id, header, body from c{} order by id", state.id))?;
    let mut rows = statement.query([])?;
    let mut ends: Vec<Option<u64>> = vec![None; spec.partitions as usize];
    while let Some(row) = rows.next()? {
        let id = row.get::<_, i64>(0)? as u64;
        report.chunks += 1;
        if report.chunks.is_multiple_of(256) {
            progress(&spec.name, report.chunks);
        }
        let mut found = Vec::new();
        match Header::decode(row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?) {
            Err(damaged) => {
                found.push(damaged.to_string());
                ends.fill(None);
            }
            Ok(header) => {
                report.records += u64::from(header.rows);
                continuity(&header, spec.cleanup == Cleanup::Compact, &mut ends, &mut found);
                let chunk = Chunk { topic: state.clone(), id, header, body: row.get(2)? };
                columns(conn, &chunk, &mut found);
            }
        }
        report.findings.extend(found.into_iter().map(|f| format!("chunk {id}: {f}")));
        if report.findings.len() > MOST {
            report.findings.push("there is more; the rest of this topic was not read".to_owned());
            break;
        }
    }
    Ok(report)
}

/// Offsets go on where the chunk before ended; in compacted topics they may leave gaps.
fn continuity(header: &Header, gaps: bool, ends: &mut [Option<u64>], found: &mut Vec<String>) {
    for part in &header.parts {
        let Some(end) = ends.get_mut(part.partition as usize) else {
            found.push(format!("partition {} does not exist", part.partition));
            continue;
        };
        if end.is_some_and(|end| if gaps { part.first < end } else { part.first != end }) {
            found.push(format!("partition {}: offset {} after {}", part.partition, part.first, end.unwrap_or(0)));
        }
        if !gaps && part.next - part.first != u64::from(part.rows) {
            found.push(format!("partition {}: {} records from {} to {}", part.partition, part.rows, part.first, part.next));
        }
        *end = Some(part.next);
        if !gaps && header.ends.get(part.partition as usize) != Some(&part.next) {
            found.push(format!("partition {}: the header says that it ends elsewhere", part.partition));
        }
    }
}

fn columns(conn: &Connection, chunk: &Chunk, found: &mut Vec<String>) {
    let layout = chunk.topic.layout();
    for entry in &chunk.header.columns {
        let ty = match entry.id {
            ARRIVAL_COLUMN => Some(schema::time_type()),
            OFFSET_COLUMN => Some(DataType::UInt64),
            id => layout.columns.get(usize::from(id)).map(|(_, ty)| schema::arrow_type(*ty)),
        };
        let rows = chunk.header.rows as usize;
        let checked = chunk.with_column(conn, entry.id, |bytes| match ty {
            Some(ty) => column::decode(bytes, rows, &ty).map(|_| ()).map_err(|e| Damaged(format!("column {}: {e}", entry.id))),
            None => Err(Damaged(format!("column {} is not declared", entry.id))),
        });
        if let Err(error) = checked {
            found.push(error.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Log, append, append_many, spec};
    use super::super::*;
    use super::verify;

    #[test]
    fn damage_is_found_by_reading_and_by_verify() {
        let log = Log::new();
        let spec = spec("t");
        let broker = log.open();
        broker.ensure_topics(std::slice::from_ref(&spec)).unwrap();
        append_many(&broker, &spec, 10, 0);
        drop(broker);
        let conn = rusqlite::Connection::open(log.dir.path().join(sql::FILE)).unwrap();
        let mut body: Vec<u8> = conn.query_row("select body from c1", [], |row| row.get(0)).unwrap();
        let at = body.len() / 2;
        body[at] ^= 1;
        conn.execute("update c1 set body = ?1", [body]).unwrap();
        drop(conn);
        let broker = EmbeddedBroker::open_read_only(log.dir.path()).unwrap();
        let slice = broker.reader("t", &Positions::new()).unwrap().poll(100).unwrap().unwrap();
        let damaged = slice.decode(&Projection::all(&spec)).unwrap_err();
        assert!(matches!(damaged, BrokerError::Corrupt(_)), "{damaged:?}");
        let report = verify(log.dir.path(), &mut |_, _| {}).unwrap();
        assert_eq!(report.topics[0].findings.len(), 1, "{report:?}");
        assert!(matches!(broker.append(append(&spec, &[("a", None, 1)])), Err(BrokerError::Closed)));
    }
}
