//! The read sides of all stores, found by the table's name.

use super::layout::Layout;
use super::twin::{Form, Inner, Twin, blocking};
use super::{analytics, badges, read, search};
use crate::store::{Documents, NotificationInbox, Page, Scan, ScanRequest, Search, StoreError, TableInfo, Tables};
use quikflow_topics::catalogue::SinkSpec;
use quikflow_topics::ids::EventTime;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A table: its store and its sink.
#[derive(Clone)]
struct Table {
    store: Arc<Inner>,
    sink: String,
}

impl Table {
    fn layout(&self) -> Result<Arc<Layout>, StoreError> {
        self.store.layout(&self.sink)
    }
}

/// All tables.
#[derive(Default)]
pub(crate) struct Reads {
    tables: BTreeMap<String, Table>,
    search: Option<Table>,
    inbox: Option<Table>,
    counts: Option<Table>,
}

impl Reads {
    /// Adds a sink's table.
    pub(crate) fn add(&mut self, twin: &Twin, sink: &SinkSpec) -> Result<(), StoreError> {
        let table = Table { store: twin.0.clone(), sink: sink.name.clone() };
        let layout = table.layout()?;
        match twin.0.form {
            // Messages are searched in the same store whatever the index is called.
            Form::Search if self.search.is_none() => self.search = Some(table.clone()),
            Form::Outbox if self.inbox.is_none() || sink.table == "notifications" => self.inbox = Some(table.clone()),
            Form::Rows if layout.counts && self.counts.is_none() => self.counts = Some(table.clone()),
            _ => {}
        }
        match self.tables.insert(sink.table.clone(), table) {
            None => Ok(()),
            Some(other) => {
                let message = format!("sinks `{}` and `{}` both write the table `{}`", other.sink, sink.name, sink.table);
                Err(StoreError::BadRequest(message))
            }
        }
    }

    /// Marks set in the inbox but not among the counts, when the process ended between the two.
    pub(crate) fn bring_marks(&self) -> Result<(), StoreError> {
        let (Some(inbox), Some(counts)) = (&self.inbox, &self.counts) else { return Ok(()) };
        let marks = badges::marks(&inbox.store.file)?;
        let writer = counts.store.file.writer();
        for (user, key) in marks {
            badges::mark_key(&writer, counts.store.file.name, &user, &key)?;
        }
        Ok(())
    }

    fn table(&self, name: &str) -> Result<Table, StoreError> {
        self.tables.get(name).cloned().ok_or_else(|| {
            let known: Vec<&str> = self.tables.keys().map(String::as_str).collect();
            StoreError::BadRequest(format!("unknown table `{name}`; available: {}", known.join(", ")))
        })
    }

    /// A table whose rows can be read one by one.
    fn documents(&self, name: &str) -> Result<Table, StoreError> {
        let table = self.table(name)?;
        if table.store.form == Form::Analytics || table.layout()?.counts {
            return Err(StoreError::BadRequest(format!("table `{name}` is a view: scan it")));
        }
        Ok(table)
    }
}

impl Tables for Reads {
    fn tables(&self) -> Vec<TableInfo> {
        let info = |(name, table): (&String, &Table)| {
            let layout = table.layout().ok()?;
            let key = |at: &usize| layout.columns[*at].name.clone();
            let sink = &layout.sink;
            Some(TableInfo {
                name: name.clone(),
                doc: sink.doc.clone(),
                schema: if layout.counts { badges::schema() } else { read::schema(&layout) },
                key: if layout.counts { vec!["user".into()] } else { layout.key_columns.iter().map(key).collect() },
                time_column: (!layout.counts).then(|| layout.columns[layout.time].name.clone()),
                final_column: layout.final_column.clone(),
                rollup: sink.rollup.clone(),
                topic: sink.from.clone(),
                sink: sink.name.clone(),
            })
        };
        self.tables.iter().filter_map(info).collect()
    }

    fn scan(&self, table: &str, request: &ScanRequest) -> Result<Scan, StoreError> {
        let table = self.table(table)?;
        let layout = table.layout()?;
        match table.store.form {
            Form::Analytics => analytics::scan(&table.store.file, &layout, request),
            _ if layout.counts => badges::scan(&table.store.file, &layout, request),
            _ => read::scan(&table.store.file, &layout, request),
        }
    }
}

#[async_trait::async_trait]
impl Documents for Reads {
    async fn get(&self, table: &str, id: &str) -> Result<Option<serde_json::Value>, StoreError> {
        let (table, id) = (self.documents(table)?, id.to_owned());
        blocking(table.store.file.name, move || read::get(&table.store.file, &*table.layout()?, &id)).await
    }

    async fn list(
        &self,
        table: &str,
        equals: &[(String, String)],
        from: Option<EventTime>,
        to: Option<EventTime>,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let (table, equals, cursor) = (self.documents(table)?, equals.to_vec(), cursor.map(str::to_owned));
        blocking(table.store.file.name, move || {
            read::list(&table.store.file, &*table.layout()?, &equals, (from, to), cursor.as_deref(), limit)
        })
        .await
    }
}

#[async_trait::async_trait]
impl Search for Reads {
    async fn search(
        &self,
        query: &str,
        filter: &[(String, String)],
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let missing = || StoreError::BadRequest("no sink has the store `elasticsearch`, so there is nothing to search".into());
        let table = self.search.clone().ok_or_else(missing)?;
        let (query, filter, cursor) = (query.to_owned(), filter.to_vec(), cursor.map(str::to_owned));
        blocking(table.store.file.name, move || {
            search::find(&table.store.file, &*table.layout()?, &query, &filter, cursor.as_deref(), limit)
        })
        .await
    }
}

fn no_inbox() -> StoreError {
    StoreError::BadRequest("no sink has the store `outbox`, so there are no notifications".into())
}

#[async_trait::async_trait]
impl NotificationInbox for Reads {
    async fn badge(&self, user: &str) -> Result<u64, StoreError> {
        let table = self.counts.clone().or_else(|| self.inbox.clone()).ok_or_else(no_inbox)?;
        let user = user.to_owned();
        blocking(table.store.file.name, move || badges::unread(&table.store.file, &*table.layout()?, &user)).await
    }

    async fn mark_read(&self, user: &str, id: &str) -> Result<bool, StoreError> {
        let (inbox, counts) = (self.inbox.clone().ok_or_else(no_inbox)?, self.counts.clone());
        let (user, id) = (user.to_owned(), id.to_owned());
        blocking(inbox.store.file.name, move || {
            let layout = inbox.layout()?;
            let there = badges::mark(&inbox.store.file, &layout, &user, &id)?;
            if let (true, Some(counts)) = (there, counts) {
                let key = read::key_of(&layout, &id);
                badges::mark_key(&counts.store.file.writer(), counts.store.file.name, &user, &key)?;
            }
            Ok(there)
        })
        .await
    }
}
