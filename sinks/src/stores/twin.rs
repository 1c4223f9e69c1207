//! An embedded store: its file, its sinks' tables, and the write side over all of them.

use super::analytics;
use super::cells::Cell;
use super::file::{self, StoreFile, begin, fault};
use super::layout::Layout;
use super::outbox::Outbox;
use super::{rows, search};
use crate::changes::{Change, Follower, Hub};
use crate::store::{ItemOutcome, SinkProgress, Store, StoreError, WriteBatch};
use parking_lot::RwLock;
use quikflow_topics::catalogue::{SinkSpec, TopicSpec};
use quikflow_topics::failpoint;
use quikflow_topics::ids::EventTime;
use rusqlite::OptionalExtension;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What a store is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// One SQLite row a key.
    Rows,
    /// The same, with a full-text index.
    Search,
    /// Columnar parts.
    Analytics,
    /// Rows, and files of what is to be delivered.
    Outbox,
}

/// An embedded store.
#[derive(Clone)]
pub(crate) struct Twin(pub(crate) Arc<Inner>);

/// Its parts.
pub(crate) struct Inner {
    pub(crate) file: StoreFile,
    pub(crate) form: Form,
    pub(crate) tables: RwLock<BTreeMap<String, Arc<Layout>>>,
    outbox: Option<Outbox>,
    /// Told what changes, where the store tells it.
    hub: Option<Hub>,
}

/// The store that serves `store = "…"`: name of the file, form.
pub(crate) fn form_of(store: &str) -> Option<(&'static str, Form)> {
    Some(match store {
        "mongodb" => ("messages", Form::Rows),
        "elasticsearch" => ("search", Form::Search),
        "clickhouse" => ("analytics", Form::Analytics),
        "redis" => ("badges", Form::Rows),
        "mysql" => ("users", Form::Rows),
        "audit" => ("audit", Form::Rows),
        "outbox" => ("outbox", Form::Outbox),
        _ => return None,
    })
}

impl Twin {
    /// Opens the store `name` under `dir` (its file in `dir/stores`).
    pub(crate) fn open(dir: &Path, name: &'static str, form: Form) -> Result<Twin, StoreError> {
        let folder = dir.join("stores");
        let made = std::fs::create_dir_all(&folder);
        made.map_err(|e| StoreError::Refused { store: name, message: format!("cannot make {}: {e}", folder.display()) })?;
        let page = if form == Form::Analytics { 65_536 } else { 8_192 };
        // Messages and their words come in no order of their keys; the others write where they wrote last.
        let cache = if matches!(name, "messages" | "search") { 12 << 10 } else { 3 << 10 };
        let file = StoreFile::open(name, &folder.join(format!("{name}.sqlite")), page, cache)?;
        if form == Form::Analytics {
            analytics::create(&file.writer(), name)?;
        }
        let outbox = if form == Form::Outbox { Some(Outbox::open(dir, &file.writer())?) } else { None };
        let hub = (name == "badges").then(Hub::default);
        hub.iter().for_each(Hub::hears);
        Ok(Twin(Arc::new(Inner { file, form, tables: RwLock::default(), outbox, hub })))
    }

    /// Creates a sink's table.
    pub(crate) fn add(&self, sink: &Arc<SinkSpec>, topic: &TopicSpec) -> Result<(), StoreError> {
        let layout = Layout::new(sink, topic)?;
        if self.0.form == Form::Analytics {
            analytics::check(&layout)?;
        }
        let store = self.0.file.name;
        let at = fault(store);
        let mut writer = self.0.file.writer();
        let tx = begin(store, &mut writer)?;
        let stored: Option<String> = tx
            .query_row("SELECT layout FROM _sinks WHERE name = ?1", [&sink.name], |r| r.get(0))
            .optional()
            .map_err(at)?
            .filter(|text: &String| !text.is_empty());
        let now = layout.fingerprint();
        if let Some(stored) = &stored {
            compatible(store, sink, stored, &now)?;
        }
        if self.0.form != Form::Analytics {
            rows::create(&tx, store, &layout)?;
        }
        if self.0.form == Form::Search {
            search::create(&tx, store, &layout)?;
        }
        tx.execute(
            "INSERT INTO _sinks(name, generation, positions, expired_before, layout) VALUES(?1, 0, '[]', 0, ?2)
             ON CONFLICT(name) DO UPDATE SET layout = excluded.layout",
            [&sink.name, &now],
        )
        .map_err(at)?;
        tx.commit().map_err(at)?;
        if let Some(outbox) = &self.0.outbox {
            outbox.sweep(&writer, &sink.name)?;
        }
        self.0.tables.write().insert(sink.name.clone(), Arc::new(layout));
        Ok(())
    }
}

/// A changed key, or a column with another type, would mix old rows with new ones (R12).
pub(crate) fn compatible(store: &'static str, sink: &SinkSpec, stored: &str, now: &str) -> Result<(), StoreError> {
    let (old_key, old_columns) = stored.split_once('|').unwrap_or((stored, ""));
    let (key, columns) = now.split_once('|').unwrap_or((now, ""));
    let new: BTreeMap<&str, &str> = columns.split(',').filter_map(|c| c.rsplit_once(':')).collect();
    let changed = old_columns.split(',').filter_map(|c| c.rsplit_once(':')).find(|(n, t)| new.get(n).is_some_and(|now| now != t));
    let what = match changed {
        _ if old_key != key => format!("its key was `{old_key}` and is `{key}` now"),
        Some((name, ty)) => format!("its column `{name}` was {ty} and has another type now"),
        None => return Ok(()),
    };
    let message = format!("sink `{}` has rows of another form: {what}; give the sink another name", sink.name);
    Err(StoreError::Refused { store, message })
}

impl Inner {
    /// A sink's table.
    pub(crate) fn layout(&self, sink: &str) -> Result<Arc<Layout>, StoreError> {
        let missing = || StoreError::BadRequest(format!("sink `{sink}` is not known to the store {}", self.file.name));
        self.tables.read().get(sink).cloned().ok_or_else(missing)
    }

    /// Follows a sink's table; none: the store tells no changes.
    pub(crate) fn follow(&self, table: &str) -> Option<Follower> {
        self.hub.as_ref().map(|hub| hub.follow(table))
    }

    /// Tells who follows a table that rows of these ids (of counts: users) are others now; of none: that any may be.
    pub(crate) fn tell(&self, table: &str, mut ids: Vec<String>) {
        let Some(hub) = &self.hub else { return };
        ids.sort_unstable();
        ids.dedup();
        hub.tell(table, if ids.is_empty() { Change::Missed } else { Change::Keys(ids.into()) });
    }

    fn write(&self, batch: &WriteBatch) -> Result<Vec<ItemOutcome>, StoreError> {
        let layout = self.layout(&batch.sink.name)?;
        let followed = self.hub.as_ref().is_some_and(|hub| hub.is_followed(&layout.sink.table));
        let mut told = Vec::new();
        let store = self.file.name;
        let mut writer = self.file.writer();
        let tx = begin(store, &mut writer)?;
        let outcomes = match self.form {
            Form::Rows => rows::write(&tx, store, &layout, batch, &mut |_, _, input, row| {
                if followed {
                    told.extend(told_of(&layout, input, row));
                }
                Ok(())
            })?,
            Form::Search => search::write(&tx, store, &layout, batch)?,
            Form::Analytics => analytics::write(&tx, store, &layout, batch)?,
            Form::Outbox => {
                let mut delivery = self.outbox.as_ref().map(|outbox| outbox.begin(&tx, &layout)).transpose()?;
                let outcomes = rows::write(&tx, store, &layout, batch, &mut |_, _, input, row| match &mut delivery {
                    Some(delivery) => delivery.row(input, row),
                    None => Ok(()),
                })?;
                delivery.map_or(Ok(()), |delivery| delivery.finish(&tx))?;
                outcomes
            }
        };
        failpoint::hit("sink.offset.before");
        if outcomes.iter().all(|o| matches!(o, ItemOutcome::Written | ItemOutcome::Older)) {
            file::set_progress(&tx, store, &batch.sink.name, &batch.next, batch.generation)?;
        }
        tx.commit().map_err(fault(store))?;
        failpoint::hit("sink.offset.after");
        if !told.is_empty() {
            self.tell(&layout.sink.table, told);
        }
        if self.form == Form::Analytics {
            analytics::merge_small(&mut writer, store, &layout)?;
        }
        Ok(outcomes)
    }

    fn clear(&self, sink: &str) -> Result<(), StoreError> {
        let layout = self.layout(sink)?;
        let store = self.file.name;
        let at = fault(store);
        let mut writer = self.file.writer();
        let tx = begin(store, &mut writer)?;
        match self.form {
            Form::Analytics => analytics::clear(&tx, store, &layout)?,
            _ => {
                if self.form == Form::Search {
                    search::clear(&tx, store, &layout)?;
                }
                tx.execute(&format!("DELETE FROM {}", layout.table()), []).map_err(at)?;
            }
        }
        if let Some(outbox) = &self.outbox {
            outbox.forget(&tx, sink)?;
        }
        tx.execute("UPDATE _sinks SET generation = 0, positions = '[]', expired_before = 0 WHERE name = ?1", [sink])
            .map_err(at)?;
        tx.commit().map_err(at)?;
        self.tell(&layout.sink.table, Vec::new());
        self.outbox.as_ref().map_or(Ok(()), |outbox| outbox.sweep(&writer, sink))
    }

    fn maintain(&self, now: EventTime) -> Result<(), StoreError> {
        let layouts: Vec<Arc<Layout>> = self.tables.read().values().cloned().collect();
        for layout in layouts {
            let ttl = layout.sink.ttl.map(|ttl| now.minus(i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX)));
            if self.form == Form::Analytics {
                analytics::maintain(&self.file, &layout, ttl)?;
            } else if let Some(before) = ttl {
                self.expire(&layout, before)?;
            }
        }
        if self.form == Form::Search {
            search::tidy(&self.file.writer(), self.file.name, &self.tables.read())?;
        }
        Ok(())
    }

    /// Takes away rows that arrived before, some thousand a transaction so that writers get their turn.
    fn expire(&self, layout: &Layout, before: EventTime) -> Result<(), StoreError> {
        let store = self.file.name;
        let at = fault(store);
        loop {
            let mut writer = self.file.writer();
            let tx = begin(store, &mut writer)?;
            let ids: Vec<i64> = {
                let sql = format!("SELECT _id FROM {} WHERE _arr < ?1 LIMIT 2000", layout.table());
                let mut statement = tx.prepare_cached(&sql).map_err(at)?;
                let rows = statement.query_map([before.0], |r| r.get(0)).map_err(at)?;
                rows.collect::<rusqlite::Result<_>>().map_err(at)?
            };
            if self.form == Form::Search {
                search::remove(&tx, store, layout, &ids)?;
            }
            {
                let sql = format!("DELETE FROM {} WHERE _id = ?1", layout.table());
                let mut statement = tx.prepare_cached(&sql).map_err(at)?;
                for id in &ids {
                    statement.execute([id]).map_err(at)?;
                }
            }
            tx.commit().map_err(at)?;
            if !ids.is_empty() {
                self.tell(&layout.sink.table, Vec::new());
            }
            if ids.len() < 2000 {
                return Ok(());
            }
        }
    }
}

/// What followers are told of a changed row: its id, or whose count it is in.
fn told_of(layout: &Layout, input: &rows::Input<'_>, row: usize) -> Option<String> {
    if !layout.counts {
        return input.key(row).ok().map(|key| key.replace('\u{1f}', "/"));
    }
    match input.cell(layout.user()?, row) {
        Cell::Text(user) => Some((*user).to_owned()),
        _ => None,
    }
}

/// Runs a sink's blocking work where the runner waits for it: its thread has nothing else to do, and
/// memory of a second one would be kept beside it. On an async thread the others take its place.
async fn here<T: Send + 'static>(
    store: &'static str,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::runtime::Handle::current().runtime_flavor() {
        tokio::runtime::RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => blocking(store, work).await,
    }
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    store: &'static str,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => Err(StoreError::Refused { store, message: format!("a piece of work did not end: {e}") }),
    }
}

#[async_trait::async_trait]
impl Store for Twin {
    fn name(&self) -> &'static str {
        self.0.file.name
    }

    /// Rows of documents and words of texts lie all over their indexes: each batch writes most of
    /// the pages that ten times its rows would (measured: a quarter of the bytes and half of the CPU time).
    fn gathers(&self) -> u32 {
        match (self.0.form, self.0.file.name) {
            (Form::Search, _) => 4,
            (_, "messages") => 2,
            _ => 1,
        }
    }

    async fn ensure(&self, sink: &SinkSpec, topic: &TopicSpec) -> Result<(), StoreError> {
        let (this, sink, topic) = (self.clone(), Arc::new(sink.clone()), topic.clone());
        blocking(self.name(), move || this.add(&sink, &topic)).await
    }

    async fn progress(&self, sink: &str) -> Result<SinkProgress, StoreError> {
        let (inner, sink) = (self.0.clone(), sink.to_owned());
        blocking(self.name(), move || file::progress(inner.file.reader()?.get()?, inner.file.name, &sink)).await
    }

    async fn write(&self, batch: WriteBatch) -> Result<Vec<ItemOutcome>, StoreError> {
        let inner = self.0.clone();
        here(self.name(), move || inner.write(&batch)).await
    }

    async fn clear(&self, sink: &str) -> Result<(), StoreError> {
        let (inner, sink) = (self.0.clone(), sink.to_owned());
        blocking(self.name(), move || inner.clear(&sink)).await
    }

    async fn maintain(&self, now: EventTime) -> Result<(), StoreError> {
        let inner = self.0.clone();
        here(self.name(), move || inner.maintain(now)).await
    }
}
