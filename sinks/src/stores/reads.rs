//! The read sides of all stores, found by the table's name.
//!
//! Several sinks may share a table (two topics of notifications, four of alerts): each keeps its own
//! rows and offsets, and readers see them together.

use super::layout::Layout;
use super::read::{cursor_place, cursor_text};
use super::twin::{Form, Inner, Twin, blocking};
use super::{analytics, badges, read, search, union};
use crate::store::{Documents, NotificationInbox, Page, Scan, ScanRequest, Search, StoreError, TableInfo, Tables};
use quikflow_topics::catalogue::SinkSpec;
use quikflow_topics::ids::EventTime;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A table: its store and the sinks that write it.
#[derive(Clone)]
struct Table {
    store: Arc<Inner>,
    sinks: Vec<String>,
}

impl Table {
    fn layouts(&self) -> Result<Vec<Arc<Layout>>, StoreError> {
        self.sinks.iter().map(|sink| self.store.layout(sink)).collect()
    }

    fn first(&self) -> Result<Arc<Layout>, StoreError> {
        self.layouts()?.into_iter().next().ok_or_else(|| StoreError::BadRequest("a table without a sink".into()))
    }
}

/// All tables.
#[derive(Default)]
pub(crate) struct Reads {
    tables: BTreeMap<String, Table>,
    search: Option<String>,
    inbox: Option<String>,
    counts: Option<String>,
}

impl Reads {
    /// Adds a sink's table.
    pub(crate) fn add(&mut self, twin: &Twin, sink: &SinkSpec) -> Result<(), StoreError> {
        let layout = twin.0.layout(&sink.name)?;
        match twin.0.form {
            Form::Search if self.search.is_none() => self.search = Some(sink.table.clone()),
            Form::Outbox if self.inbox.is_none() || sink.table == "notifications" => self.inbox = Some(sink.table.clone()),
            Form::Rows if layout.counts && self.counts.is_none() => self.counts = Some(sink.table.clone()),
            _ => {}
        }
        let Some(table) = self.tables.get_mut(&sink.table) else {
            let table = Table { store: twin.0.clone(), sinks: vec![sink.name.clone()] };
            self.tables.insert(sink.table.clone(), table);
            return Ok(());
        };
        let first = table.first()?;
        let fits = Arc::ptr_eq(&table.store, &twin.0) && first.counts == layout.counts && union::fits(&first, &layout);
        if !fits || twin.0.form == Form::Search {
            let message = format!("sinks `{}` and `{}` cannot share the table `{}`", first.sink.name, sink.name, sink.table);
            return Err(StoreError::BadRequest(format!("{message}: store, mode or a column's type differ")));
        }
        table.sinks.push(sink.name.clone());
        Ok(())
    }

    /// Marks set in the inbox but not among the counts, when the process ended between the two.
    pub(crate) fn bring_marks(&self) -> Result<(), StoreError> {
        let (Some(inbox), Some(counts)) = (&self.inbox, &self.counts) else { return Ok(()) };
        let (inbox, counts) = (self.table(inbox)?, self.table(counts)?);
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
        if table.store.form == Form::Analytics || table.first()?.counts {
            return Err(StoreError::BadRequest(format!("table `{name}` is a view: scan it")));
        }
        Ok(table)
    }

    fn of_inbox(&self) -> Result<Table, StoreError> {
        match &self.inbox {
            Some(name) => self.table(name),
            None => Err(StoreError::BadRequest("no sink has the store `outbox`, so there are no notifications".into())),
        }
    }
}

impl Tables for Reads {
    fn tables(&self) -> Vec<TableInfo> {
        let info = |(name, table): (&String, &Table)| {
            let layouts = table.layouts().ok()?;
            let layout = layouts.first()?;
            let key = |at: &usize| (*at < layout.visible).then(|| layout.columns[*at].name.clone());
            let sink = &layout.sink;
            Some(TableInfo {
                name: name.clone(),
                doc: sink.doc.clone(),
                schema: if layout.counts { badges::schema() } else { union::schema(&layouts) },
                key: if layout.counts { vec!["user".into()] } else { layout.key_columns.iter().filter_map(key).collect() },
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
        let layouts = table.layouts()?;
        let file = &table.store.file;
        if layouts.iter().any(|l| l.counts) {
            return badges::scan(file, &layouts, request);
        }
        let one = |layout: &Arc<Layout>, request: &ScanRequest| match table.store.form {
            Form::Analytics => analytics::scan(file, layout, request),
            _ => read::scan(file, layout, request),
        };
        match layouts.as_slice() {
            [layout] => one(layout, request),
            _ => union::scan(&layouts, request, one),
        }
    }
}

#[async_trait::async_trait]
impl Documents for Reads {
    async fn get(&self, table: &str, id: &str) -> Result<Option<serde_json::Value>, StoreError> {
        let (table, id) = (self.documents(table)?, id.to_owned());
        blocking(table.store.file.name, move || {
            for layout in table.layouts()? {
                if let Some(found) = read::get(&table.store.file, &layout, &id)? {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        })
        .await
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
        let (table, equals) = (self.documents(table)?, equals.to_vec());
        let after = cursor.map(cursor_place).transpose()?;
        blocking(table.store.file.name, move || {
            let limit = limit.clamp(1, 10_000);
            let mut found = Vec::new();
            for (rank, layout) in table.layouts()?.iter().enumerate() {
                found.extend(read::list(&table.store.file, layout, rank, &equals, (from, to), after, limit + 1)?);
            }
            found.sort_by_key(|(place, _)| std::cmp::Reverse(*place));
            let more = found.len() > limit;
            found.truncate(limit);
            let cursor = found.last().filter(|_| more).map(|(place, _)| cursor_text(*place));
            Ok(Page { items: found.into_iter().map(|(_, item)| item).collect(), cursor })
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
        let table = self.table(self.search.as_ref().ok_or_else(missing)?)?;
        let (query, filter, cursor) = (query.to_owned(), filter.to_vec(), cursor.map(str::to_owned));
        blocking(table.store.file.name, move || {
            search::find(&table.store.file, &*table.first()?, &query, &filter, cursor.as_deref(), limit)
        })
        .await
    }
}

#[async_trait::async_trait]
impl NotificationInbox for Reads {
    async fn badge(&self, user: &str) -> Result<u64, StoreError> {
        let table = match &self.counts {
            Some(counts) => self.table(counts)?,
            None => self.of_inbox()?,
        };
        let user = user.to_owned();
        blocking(table.store.file.name, move || {
            table.layouts()?.iter().map(|layout| badges::unread(&table.store.file, layout, &user)).sum()
        })
        .await
    }

    async fn mark_read(&self, user: &str, id: &str) -> Result<bool, StoreError> {
        let inbox = self.of_inbox()?;
        let counts = self.counts.as_ref().map(|name| self.table(name)).transpose()?;
        let (user, id) = (user.to_owned(), id.to_owned());
        blocking(inbox.store.file.name, move || {
            for layout in inbox.layouts()? {
                let Some(key) = badges::mark(&inbox.store.file, &layout, &user, &id)? else { continue };
                if let Some(counts) = counts {
                    badges::mark_key(&counts.store.file.writer(), counts.store.file.name, &user, &key)?;
                }
                return Ok(true);
            }
            Ok(false)
        })
        .await
    }
}
