//! Dead letters: each id once (R14).

use super::sql;
use crate::broker::BrokerError;
use crate::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus, Origin};
use crate::ids::{EventTime, Offset, PartitionId};
use rusqlite::Connection;
use rusqlite::types::Value;

fn status_name(status: DeadLetterStatus) -> &'static str {
    match status {
        DeadLetterStatus::Open => "open",
        DeadLetterStatus::Replaying => "replaying",
        DeadLetterStatus::Replayed => "replayed",
        DeadLetterStatus::Resolved => "resolved",
    }
}

fn status_of(name: &str) -> Result<DeadLetterStatus, BrokerError> {
    use DeadLetterStatus::{Open, Replayed, Replaying, Resolved};
    let found = [Open, Replaying, Replayed, Resolved].into_iter().find(|s| status_name(*s) == name);
    found.ok_or_else(|| BrokerError::Corrupt(format!("a dead letter has the unknown status `{name}`")))
}

/// Stores a dead letter unless its id is there.
pub(super) fn insert(conn: &Connection, letter: &DeadLetter) -> Result<(), BrokerError> {
    let mut statement = conn.prepare_cached(
        "insert into dead(id, at, cause, code, path, message, topology, step, topic, partition, \"offset\", full_size, status, bytes)
         values(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14) on conflict(id) do nothing",
    )?;
    let origin = letter.origin.as_ref();
    statement.execute(rusqlite::params![
        letter.id,
        letter.at.0,
        letter.cause,
        letter.code,
        letter.path,
        letter.message,
        letter.topology,
        letter.step,
        origin.map(|o| o.topic.as_str()),
        origin.map(|o| o.partition.0),
        origin.map(|o| o.offset.0 as i64),
        letter.full_size as i64,
        status_name(letter.status),
        letter.bytes,
    ])?;
    Ok(())
}

/// Puts a letter in the place of the one of its id that is being replayed; whether there is one.
pub(super) fn fails_again(conn: &Connection, letter: &DeadLetter) -> Result<bool, BrokerError> {
    let mut statement = conn.prepare_cached(
        "update dead set at = ?2, cause = ?3, code = ?4, path = ?5, message = ?6, status = ?7
         where id = ?1 and status = 'replaying'",
    )?;
    let DeadLetter { id, at, cause, code, path, message, status, .. } = letter;
    Ok(statement.execute((id, at.0, cause, code, path, message, status_name(*status)))? > 0)
}

/// Forgets the letters of a topology's steps whose records, those from `first` on, it reads again:
/// what fails again is a letter again.
pub(super) fn forget(conn: &Connection, topology: &str, topic: &str, partition: usize, first: u64) -> Result<(), BrokerError> {
    let mut statement = conn.prepare_cached(
        "delete from dead
         where topology = ?1 and id like 'step:%' and topic = ?2 and partition = ?3 and \"offset\" >= ?4",
    )?;
    statement.execute((topology, topic, partition as i64, first as i64))?;
    Ok(())
}

/// Sets the status of those that exist; how many.
pub(super) fn mark(conn: &Connection, ids: &[String], status: DeadLetterStatus) -> Result<usize, BrokerError> {
    let mut statement = conn.prepare_cached("update dead set status = ?2 where id = ?1")?;
    let mut count = 0;
    for id in ids {
        count += statement.execute((id, status_name(status)))?;
    }
    Ok(count)
}

/// Lists, newest first.
pub(super) fn list(conn: &Connection, filter: &DeadLetterFilter) -> Result<Vec<(u64, DeadLetter)>, BrokerError> {
    let mut sql =
        "select seq, id, at, cause, code, path, message, topology, step, topic, partition, \"offset\", full_size, status, bytes
                   from dead where true"
            .to_owned();
    let mut values = Vec::new();
    let mut when = |condition: &str, value: Option<Value>| {
        if let Some(value) = value {
            values.push(value);
            sql.push_str(&format!(" and {condition} ?{}", values.len()));
        }
    };
    let text = |t: &Option<String>| t.clone().map(Value::Text);
    when("id =", text(&filter.id));
    when("cause =", text(&filter.cause));
    when("code =", text(&filter.code));
    when("topology =", text(&filter.topology));
    when("step =", text(&filter.step));
    when("at >=", filter.from.map(|t| Value::Integer(t.0)));
    when("at <", filter.to.map(|t| Value::Integer(t.0)));
    when("seq <", filter.before_seq.map(|s| Value::Integer(s as i64)));
    if let Some(status) = filter.status {
        // Written out, so that the index over those that wait is used.
        sql.push_str(&format!(" and status = '{}'", status_name(status)));
    }
    let limit = filter.at_most();
    sql.push_str(&format!(" order by seq desc limit {limit}"));
    let mut statement = conn.prepare(&sql)?;
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    let mut letters = Vec::new();
    while let Some(row) = rows.next()? {
        let topic: Option<String> = row.get(9)?;
        let origin = match topic {
            Some(topic) => {
                Some(Origin { topic, partition: PartitionId(row.get(10)?), offset: Offset(row.get::<_, i64>(11)? as u64) })
            }
            None => None,
        };
        let letter = DeadLetter {
            id: row.get(1)?,
            at: EventTime(row.get(2)?),
            cause: row.get(3)?,
            code: row.get(4)?,
            path: row.get(5)?,
            message: row.get(6)?,
            topology: row.get(7)?,
            step: row.get(8)?,
            origin,
            full_size: row.get::<_, i64>(12)? as u64,
            status: status_of(&row.get::<_, String>(13)?)?,
            bytes: row.get(14)?,
        };
        letters.push((row.get::<_, i64>(0)? as u64, letter));
    }
    Ok(letters)
}

/// The key of a group's place in `kv`.
pub(super) fn place_key(group: &str, topic: &str, partition: PartitionId) -> String {
    let unit = sql::UNIT;
    format!("{group}{unit}{topic}{unit}{partition}")
}
