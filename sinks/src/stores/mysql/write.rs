//! Rows into MySQL: plain inserts while keys are new, else locked, compared and written in one transaction.

use super::faults::{fault, number_of};
use super::{NAME, Sql, names, quoted};
use crate::store::StoreError;
use crate::stores::layout::Layout;
use crate::stores::remote::write::in_shares;
use crate::stores::remote::{Guard, Put, PutOutcome};
use quikflow_topics::catalogue::FieldType;
use rusqlite::types::Value;
use sqlx::mysql::MySqlPool;
use sqlx::{Error, MySql, QueryBuilder, Row};
use std::collections::BTreeMap;

/// Bytes of one statement; servers take 16 MiB and more.
const BYTES: usize = 4 << 20;
/// Holes that a statement may have are 65,535.
const HOLES: usize = 60_000;
/// Deadlocks in a row that are tried again at once.
const TRIES: usize = 5;
/// The longest key, in bytes, that an index takes.
pub(super) const LONGEST_KEY: usize = 3_000;
/// A key that is there already.
const DUPLICATE: u16 = 1062;
/// Two writers wait for each other; one of them begins again.
const DEADLOCK: u16 = 1213;

fn bind_value(list: &mut sqlx::query_builder::Separated<'_, MySql, &'static str>, ty: FieldType, value: &Value) {
    match (ty, value) {
        (FieldType::Float, Value::Real(r)) => list.push_bind(*r),
        (FieldType::Float, Value::Integer(i)) => list.push_bind(*i as f64),
        (FieldType::Int | FieldType::Bool | FieldType::Timestamp, Value::Integer(i)) => list.push_bind(*i),
        (FieldType::String | FieldType::Json | FieldType::StringList, Value::Text(t)) => list.push_bind(t.clone()),
        _ => list.push_bind(None::<i64>),
    };
}

/// The insert of rows, without what it does where one is there.
fn insert<'p>(layout: &Layout, rows: impl Iterator<Item = &'p Put>) -> QueryBuilder<MySql> {
    let mut sql = QueryBuilder::<MySql>::new(format!("INSERT INTO {} ({}) ", quoted(&layout.sink.name), names(layout)));
    sql.push_values(rows, |mut list, Put { row, .. }| {
        list.push_bind(row.key.as_bytes().to_vec()).push_bind(row.base).push_bind(i64::from(row.gone));
        list.push_bind(row.arrival).push_bind(row.revision).push_bind(row.versions.clone()).push_bind(row.sets.clone());
        for (column, value) in layout.columns.iter().zip(&row.values) {
            bind_value(&mut list, column.ty, value);
        }
    });
    sql
}

/// What an insert does where the key is there: the guard once more, in every assignment. MySQL
/// assigns from left to right, so what the guard looks at comes last.
fn on_duplicate(layout: &Layout, guard: Guard) -> String {
    let (holds, last) = match guard {
        Guard::Absent => return " ON DUPLICATE KEY UPDATE _k = _k".to_owned(),
        Guard::Newer => ("VALUES(_v) > _v", "_v"),
        Guard::Revision(_) => ("VALUES(_rev) = _rev + 1", "_rev"),
    };
    let mut all: Vec<String> = ["_v", "_gone", "_arr", "_rev", "_vs", "_sets"].map(str::to_owned).into();
    all.retain(|name| name != last);
    all.extend(layout.columns.iter().map(|c| quoted(&c.name)));
    all.push(last.to_owned());
    let each: Vec<String> = all.iter().map(|name| format!("{name} = IF({holds}, VALUES({name}), {name})")).collect();
    format!(" ON DUPLICATE KEY UPDATE {}", each.join(", "))
}

/// Whether a row may be inserted as it is where its key is new.
fn may_be_new(put: &Put) -> bool {
    !matches!(put.guard, Guard::Revision(Some(_))) && put.row.key.len() <= LONGEST_KEY
}

impl Sql {
    /// Writes rows, in shares.
    pub(super) async fn put_all(&self, layout: &Layout, puts: Vec<Put>, calls: usize) -> Result<Vec<PutOutcome>, StoreError> {
        let pool = self.pool().await?;
        let rows = (HOLES / (layout.columns.len() + 7)).min(500);
        in_shares(puts, (rows, BYTES), calls, async |share| {
            let new = self.seen.lock().get(&layout.sink.name).is_none_or(|old| !old) && share.iter().all(may_be_new);
            if new && insert_new(pool, layout, &share).await.map_err(fault)? {
                return Ok(vec![PutOutcome::Done; share.len()]);
            }
            let mut tries = 0;
            let (written, old) = loop {
                match put_share(pool, layout, &share).await {
                    Err(error) if number_of(&error) == DEADLOCK && tries < TRIES => tries += 1,
                    done => break done.map_err(fault)?,
                }
            };
            self.seen.lock().insert(layout.sink.name.clone(), old);
            Ok(written)
        })
        .await
    }
}

/// Inserts rows, all or none; false: some key is there (or another writer is at it).
async fn insert_new(pool: &MySqlPool, layout: &Layout, share: &[Put]) -> Result<bool, Error> {
    match insert(layout, share.iter()).build().execute(pool).await {
        Ok(_) => Ok(true),
        Err(error) if [DUPLICATE, DEADLOCK].contains(&number_of(&error)) => {
            tracing::debug!(store = NAME, sink = layout.sink.name, "some keys are there already");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Writes rows in one transaction; also whether any key was there.
async fn put_share(pool: &MySqlPool, layout: &Layout, share: &[Put]) -> Result<(Vec<PutOutcome>, bool), Error> {
    let mut change = pool.begin().await?;
    let table = quoted(&layout.sink.name);
    let mut sql = QueryBuilder::<MySql>::new(format!("SELECT _k, _v, _rev FROM {table} WHERE _k IN ("));
    let mut list = sql.separated(", ");
    for put in share {
        list.push_bind(put.row.key.as_bytes().to_vec());
    }
    // Another writer of new keys waits for the same gaps: one of the two begins again.
    sql.push(") ORDER BY _k FOR UPDATE");
    let mut there: BTreeMap<Vec<u8>, (i64, i64)> = BTreeMap::new();
    for row in sql.build().fetch_all(&mut *change).await? {
        there.insert(row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?));
    }
    let (mut taken, mut outcomes) = (Vec::with_capacity(share.len()), Vec::with_capacity(share.len()));
    for put in share {
        let old = there.get(put.row.key.as_bytes());
        let holds = match put.guard {
            Guard::Newer => old.is_none_or(|(version, _)| put.row.base > *version),
            Guard::Absent => old.is_none(),
            Guard::Revision(revision) => old.map(|(_, revision)| *revision) == revision,
        };
        outcomes.push(if put.row.key.len() > LONGEST_KEY {
            let message = format!("the key is longer than {LONGEST_KEY} bytes");
            PutOutcome::Rejected { code: "key_too_long".into(), message }
        } else if holds {
            taken.push(put);
            PutOutcome::Done
        } else {
            PutOutcome::Lost
        });
    }
    if let Some(first) = taken.first() {
        let mut sql = insert(layout, taken.iter().copied());
        // The guards of a batch are of one kind.
        sql.push(on_duplicate(layout, first.guard));
        sql.build().execute(&mut *change).await?;
    }
    change.commit().await?;
    Ok((outcomes, !there.is_empty()))
}
