//! The full-text index beside a table of rows (FTS5, unicode61), and searching it.
//!
//! The index holds no text of its own (`content=''`); the row does. What readers type is never
//! FTS5 syntax: words and "phrases" are parsed here and quoted ([`super::text`]).

use super::cells::Cell;
use super::file::{StoreFile, fault, quoted};
use super::layout::{Layout, option_text};
use super::text::{Query, mark, plain};
use super::{read, rows};
use crate::store::{ItemOutcome, Page, StoreError, WriteBatch};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How texts are cut into words.
pub(super) const TOKENIZE: &str = "tokenize='unicode61 remove_diacritics 2'";

fn index_of(layout: &Layout) -> String {
    quoted(&format!("words:{}", layout.sink.name))
}

/// The column that is indexed: the option `text`, else `content`.
pub(crate) fn text_column(layout: &Layout) -> Result<usize, StoreError> {
    let name = option_text(&layout.sink, "text").map_err(StoreError::BadRequest)?.unwrap_or_else(|| "content".into());
    layout.column(&name).ok_or_else(|| {
        StoreError::BadRequest(format!("sink `{}`: no column `{name}` to index; name one in the option `text`", layout.sink.name))
    })
}

/// Creates the index.
pub(crate) fn create(connection: &Connection, store: &'static str, layout: &Layout) -> Result<(), StoreError> {
    let at = fault(store);
    text_column(layout)?;
    let index = index_of(layout);
    let there: Option<i64> = connection
        .query_row("SELECT 1 FROM sqlite_schema WHERE name = ?1", [format!("words:{}", layout.sink.name)], |r| r.get(0))
        .optional()
        .map_err(at)?;
    if there.is_some() {
        return Ok(());
    }
    connection
        .execute_batch(&format!(
            "CREATE VIRTUAL TABLE {index} USING fts5(body, content='', contentless_delete=1, {TOKENIZE});
             INSERT INTO {index}({index}, rank) VALUES('automerge', 8);
             INSERT INTO {index}({index}, rank) VALUES('crisismerge', 32);
             INSERT INTO {index}({index}, rank) VALUES('hashsize', 8388608);"
        ))
        .map_err(at)
}

/// Writes rows and their words in the caller's transaction.
pub(crate) fn write(
    connection: &Connection,
    store: &'static str,
    layout: &Layout,
    batch: &WriteBatch,
) -> Result<Vec<ItemOutcome>, StoreError> {
    let at = fault(store);
    let column = text_column(layout)?;
    let index = index_of(layout);
    let insert = format!("INSERT INTO {index}(rowid, body) VALUES(?1, ?2)");
    let delete = format!("DELETE FROM {index} WHERE rowid = ?1");
    let deleted = if layout.column("deleted").is_some() { "coalesce(deleted, 0)" } else { "0" };
    let select = format!(
        "SELECT {} FROM {} WHERE _id = ?1 AND _gone = 0 AND {deleted} = 0",
        quoted(&layout.columns[column].name),
        layout.table()
    );
    rows::write(connection, store, layout, batch, &mut |connection, changed, input, row| {
        let put = |text: &str| -> Result<(), StoreError> {
            let mut statement = connection.prepare_cached(&insert).map_err(at)?;
            statement.execute(rusqlite::params![changed.id, plain(text)]).map_err(at)?;
            Ok(())
        };
        if changed.created {
            return match input.cell(column, row) {
                Cell::Text(text) => put(&text),
                _ => Ok(()),
            };
        }
        if changed.existed {
            connection.prepare_cached(&delete).and_then(|mut s| s.execute([changed.id])).map_err(at)?;
        }
        let text: Option<Option<String>> = connection
            .prepare_cached(&select)
            .and_then(|mut s| s.query_row([changed.id], |r| r.get(0)).optional())
            .map_err(at)?;
        text.flatten().map_or(Ok(()), |text| put(&text))
    })
}

/// Takes rows out of the index.
pub(crate) fn remove(connection: &Connection, store: &'static str, layout: &Layout, ids: &[i64]) -> Result<(), StoreError> {
    let at = fault(store);
    let mut statement = connection.prepare_cached(&format!("DELETE FROM {} WHERE rowid = ?1", index_of(layout))).map_err(at)?;
    for id in ids {
        statement.execute([id]).map_err(at)?;
    }
    Ok(())
}

/// Empties the index.
pub(crate) fn clear(connection: &Connection, store: &'static str, layout: &Layout) -> Result<(), StoreError> {
    let index = index_of(layout);
    connection.execute(&format!("INSERT INTO {index}({index}) VALUES('delete-all')"), []).map(|_| ()).map_err(fault(store))
}

/// Merges a bounded share of the index's segments.
pub(crate) fn tidy(
    connection: &Connection,
    store: &'static str,
    tables: &BTreeMap<String, Arc<Layout>>,
) -> Result<(), StoreError> {
    for layout in tables.values() {
        let index = index_of(layout);
        let sql = format!("INSERT INTO {index}({index}, rank) VALUES('merge', 64)");
        connection.execute(&sql, []).map_err(fault(store))?;
    }
    Ok(())
}

/// What is looked for, in SQL: every match with its score.
struct Question {
    sql: String,
    values: Vec<Value>,
}

impl Question {
    fn new(layout: &Layout, query: &Query, filter: &[(String, String)]) -> Result<Question, StoreError> {
        let index = index_of(layout);
        let mut values = vec![Value::Text(query.fts().to_owned())];
        let mut condition = String::new();
        if !filter.is_empty() {
            // Asked of each match. As `rowid IN (…)` the index would be searched anew for every row of the list.
            let conditions = read::conditions(layout, filter, None, None, &mut values)?;
            condition = format!(" AND EXISTS (SELECT 1 FROM {} WHERE _id = {index}.rowid AND {conditions})", layout.table());
        }
        let sql = format!("SELECT rowid AS id, bm25({index}) AS score FROM {index} WHERE {index} MATCH ?1{condition}");
        Ok(Question { sql, values })
    }

    fn ask(&self, connection: &Connection, order: &str) -> rusqlite::Result<Vec<(i64, f64)>> {
        let mut statement = connection.prepare_cached(&format!("{} {order}", self.sql))?;
        let rows = statement.query_map(rusqlite::params_from_iter(&self.values), |r| Ok((r.get(0)?, r.get(1)?)))?;
        rows.collect()
    }
}

/// All matches of a question, best first.
type Ranking = Arc<Vec<(i64, f64)>>;

/// The rankings of questions whose next pages were asked for: ranking is work on every match, and a
/// page needs a hundred. Kept for a minute, 8 MiB of them at most.
pub(crate) struct Rankings(moka::sync::Cache<String, Ranking>);

impl Default for Rankings {
    fn default() -> Rankings {
        let size = |key: &String, ranking: &Ranking| u32::try_from(key.len() + ranking.len() * 16).unwrap_or(u32::MAX);
        let cache = moka::sync::Cache::builder().max_capacity(8 << 20).weigher(size).time_to_live(Duration::from_secs(60));
        Rankings(cache.build())
    }
}

impl Rankings {
    fn of(&self, name: &str, question: &Question, connection: &Connection) -> rusqlite::Result<Ranking> {
        let key = format!("{name}\u{1f}{}\u{1f}{:?}", question.sql, question.values);
        if let Some(ranking) = self.0.get(&key) {
            return Ok(ranking);
        }
        let mut all = question.ask(connection, "")?;
        all.sort_unstable_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        let ranking = Arc::new(all);
        self.0.insert(key, ranking.clone());
        Ok(ranking)
    }
}

/// Finds rows that hold all words, best first.
pub(crate) fn find(
    file: &StoreFile,
    layout: &Layout,
    rankings: &Rankings,
    (query, filter): (&str, &[(String, String)]),
    cursor: Option<&str>,
    limit: usize,
) -> Result<Page, StoreError> {
    let at = fault(file.name);
    let Some(query) = Query::parse(query) else {
        return Err(StoreError::BadRequest("the query holds no word; write words or \"a phrase\"".into()));
    };
    let limit = limit.clamp(1, 1_000);
    let question = Question::new(layout, &query, filter)?;
    let after = cursor.map(place).transpose()?;
    let reader = file.reader()?;
    let connection = reader.get()?;
    let mut found: Vec<(i64, f64)> = match after {
        None => question.ask(connection, &format!("ORDER BY score, id LIMIT {}", limit + 1)).map_err(at)?,
        Some((score, id)) => {
            let ranking = rankings.of(&layout.sink.name, &question, connection).map_err(at)?;
            // Scores move with what is written meanwhile; where the row itself stands is surer.
            let next =
                ranking.iter().position(|(row, _)| *row == id).map(|at| at + 1).unwrap_or_else(|| {
                    ranking.partition_point(|(row, other)| other.total_cmp(&score).then(row.cmp(&id)).is_le())
                });
            ranking.iter().skip(next).take(limit + 1).copied().collect()
        }
    };
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|(id, score)| format!("{:x}.{id}", score.to_bits()));
    let ids: Vec<i64> = found.iter().map(|(id, _)| *id).collect();
    let scores: BTreeMap<i64, f64> = found.into_iter().collect();
    let mut items = read::by_ids(connection, file.name, layout, &ids)?;
    let name = &layout.columns[text_column(layout)?].name;
    let texts: Vec<String> =
        items.iter().map(|(_, i)| plain(i[name.as_str()].as_str().unwrap_or_default()).into_owned()).collect();
    let fragments = fragments(&texts, &query).map_err(at)?;
    for ((id, item), fragment) in items.iter_mut().zip(fragments) {
        if let Some(fields) = item.as_object_mut() {
            fields.insert("score".into(), scores.get(id).map_or(0.0, |score| -score).into());
            let list: Vec<serde_json::Value> = fragment.into_iter().map(serde_json::Value::String).collect();
            fields.insert("highlights".into(), serde_json::Value::Array(list));
        }
    }
    Ok(Page { items: items.into_iter().map(|(_, item)| item).collect(), cursor: next })
}

/// A cursor as the score and the id of a page's last row.
fn place(cursor: &str) -> Result<(f64, i64), StoreError> {
    let read = |(score, id): (&str, &str)| Some((f64::from_bits(u64::from_str_radix(score, 16).ok()?), id.parse().ok()?));
    let place = cursor.split_once('.').and_then(read);
    place.ok_or_else(|| StoreError::BadRequest("`cursor` is not one that a page gave".into()))
}

/// A fragment of each text with its matches marked: FTS5's own answer, from a small index in memory.
pub(crate) fn fragments(texts: &[String], query: &Query) -> rusqlite::Result<Vec<Option<String>>> {
    let memory = Connection::open_in_memory()?;
    memory.execute_batch(&format!("CREATE VIRTUAL TABLE h USING fts5(body, {TOKENIZE})"))?;
    let mut insert = memory.prepare("INSERT INTO h(rowid, body) VALUES(?1, ?2)")?;
    for (i, text) in texts.iter().enumerate() {
        insert.execute(rusqlite::params![i64::try_from(i).unwrap_or(i64::MAX), text.replace(['\u{1}', '\u{2}'], " ")])?;
    }
    let mut fragments = vec![None; texts.len()];
    let mut select = memory.prepare("SELECT rowid, snippet(h, 0, char(1), char(2), '…', 32) FROM h WHERE h MATCH ?1")?;
    let mut rows = select.query([query.fts()])?;
    while let Some(row) = rows.next()? {
        let at = usize::try_from(row.get::<_, i64>(0)?).unwrap_or(usize::MAX);
        if let Some(slot) = fragments.get_mut(at) {
            *slot = Some(mark(&row.get::<_, String>(1)?));
        }
    }
    Ok(fragments)
}
