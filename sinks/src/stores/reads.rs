//! The read sides of all stores, found by the table's name.
//!
//! Several sinks may share a table (two topics of notifications, four of alerts): each keeps its own
//! rows and offsets, and readers see them together. A table is in an embedded store or in a real one.

use super::elsewhere::{self, Owner};
use super::layout::Layout;
use super::read::{cursor_place, cursor_text};
use super::remote::client::Remote;
use super::remote::read as remote;
use super::twin::{Form, Inner, Twin, blocking};
use super::{analytics, badges, read, search, union};
use crate::ask::Ask;
use crate::changes::{Changes, Follower};
use crate::store::{Documents, NotificationInbox, Page, Scan, ScanRequest, Search, StoreError, TableInfo, Tables};
use arrow::datatypes::SchemaRef;
use quikflow_topics::catalogue::SinkSpec;
use quikflow_topics::ids::EventTime;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where a table is.
#[derive(Clone)]
enum Side {
    Twin(Arc<Inner>),
    Real(Arc<Remote>),
    Elsewhere(Arc<Owner>),
}

impl Side {
    fn layout(&self, sink: &str) -> Result<Arc<Layout>, StoreError> {
        match self {
            Side::Twin(inner) => inner.layout(sink),
            Side::Real(remote) => remote.layout(sink),
            Side::Elsewhere(owner) => owner.layout(sink),
        }
    }

    fn same(&self, other: &Side) -> bool {
        match (self, other) {
            (Side::Twin(one), Side::Twin(other)) => Arc::ptr_eq(one, other),
            (Side::Real(one), Side::Real(other)) => Arc::ptr_eq(one, other),
            (Side::Elsewhere(one), Side::Elsewhere(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// A table: its store and the sinks that write it.
#[derive(Clone)]
struct Table {
    side: Side,
    sinks: Vec<String>,
}

impl Table {
    fn layouts(&self) -> Result<Vec<Arc<Layout>>, StoreError> {
        self.sinks.iter().map(|sink| self.side.layout(sink)).collect()
    }

    fn first(&self) -> Result<Arc<Layout>, StoreError> {
        self.layouts()?.into_iter().next().ok_or_else(|| StoreError::BadRequest("a table without a sink".into()))
    }

    async fn unread(&self, user: &str) -> Result<u64, StoreError> {
        let (layouts, user) = (self.layouts()?, user.to_owned());
        match self.side.clone() {
            Side::Twin(inner) => {
                blocking(inner.file.name, move || layouts.iter().map(|l| badges::unread(&inner.file, l, &user)).sum()).await
            }
            Side::Real(remote) => {
                let this = remote.clone();
                remote
                    .on(async move {
                        let mut sum = 0;
                        for layout in layouts {
                            this.ready(&layout).await?;
                            sum += this.backend.unread(&layout, &user).await?;
                        }
                        Ok(sum)
                    })
                    .await
            }
            Side::Elsewhere(_) => Err(asked_whole()),
        }
    }

    /// Marks rows as read, whether or not they are here yet.
    async fn mark(&self, marks: Vec<(String, String)>) -> Result<(), StoreError> {
        let layouts = self.layouts()?;
        match self.side.clone() {
            Side::Twin(inner) => {
                blocking(inner.file.name, move || {
                    let writer = inner.file.writer();
                    marks.iter().try_for_each(|(user, key)| badges::mark_key(&writer, inner.file.name, user, key))?;
                    drop(writer);
                    let tables: BTreeSet<&str> = layouts.iter().map(|layout| layout.sink.table.as_str()).collect();
                    let users: Vec<String> = marks.into_iter().map(|(user, _)| user).collect();
                    tables.into_iter().filter(|_| !users.is_empty()).for_each(|table| inner.tell(table, users.clone()));
                    Ok(())
                })
                .await
            }
            Side::Real(remote) => {
                let this = remote.clone();
                remote
                    .on(async move {
                        for layout in &layouts {
                            this.ready(layout).await?;
                        }
                        for (user, key) in &marks {
                            this.backend.mark(&layouts, user, key).await?;
                        }
                        Ok(())
                    })
                    .await
            }
            Side::Elsewhere(_) => Err(asked_whole()),
        }
    }
}

/// Marks and counts belong together: whoever has the inbox is asked for both.
fn asked_whole() -> StoreError {
    StoreError::BadRequest("counts of another process are asked for by user".into())
}

/// All tables.
#[derive(Default)]
pub(crate) struct Reads {
    tables: BTreeMap<String, Table>,
    search: Option<String>,
    rankings: Arc<search::Rankings>,
    inbox: Option<String>,
    counts: Option<String>,
    /// Whether marks set in the inbox are known to be among the counts.
    brought: AtomicBool,
    /// Embedded stores are written by another process, which alone knows when.
    only_reads: AtomicBool,
}

impl Reads {
    /// Adds a sink's table in an embedded store.
    pub(crate) fn add(&mut self, twin: &Twin, sink: &SinkSpec) -> Result<(), StoreError> {
        self.add_to(Side::Twin(twin.0.clone()), twin.0.form, sink)
    }

    /// Adds a sink's table in a real store.
    pub(crate) fn add_real(&mut self, store: &Arc<Remote>, form: Form, sink: &SinkSpec) -> Result<(), StoreError> {
        self.add_to(Side::Real(store.clone()), form, sink)
    }

    /// Adds a sink's table in an embedded store of another process.
    pub(crate) fn add_elsewhere(&mut self, owner: &Arc<Owner>, form: Form, sink: &SinkSpec) -> Result<(), StoreError> {
        self.add_to(Side::Elsewhere(owner.clone()), form, sink)
    }

    /// Another process writes the embedded stores.
    pub(crate) fn only_reads(&self) {
        self.only_reads.store(true, Ordering::SeqCst);
    }

    /// Whether embedded stores are another process's.
    pub(crate) fn elsewhere(&self) -> bool {
        self.tables.values().any(|table| matches!(table.side, Side::Elsewhere(_)))
    }

    /// The process that has the inbox or its counts, where it is another one.
    fn owner_of_inbox(&self) -> Option<Arc<Owner>> {
        let sides = [&self.inbox, &self.counts].into_iter().flatten().filter_map(|name| self.tables.get(name));
        sides.into_iter().find_map(|table| if let Side::Elsewhere(owner) = &table.side { Some(owner.clone()) } else { None })
    }

    fn add_to(&mut self, side: Side, form: Form, sink: &SinkSpec) -> Result<(), StoreError> {
        let layout = side.layout(&sink.name)?;
        match form {
            Form::Search if self.search.is_none() => self.search = Some(sink.table.clone()),
            Form::Outbox if self.inbox.is_none() || sink.table == "notifications" => self.inbox = Some(sink.table.clone()),
            Form::Rows if layout.counts && self.counts.is_none() => self.counts = Some(sink.table.clone()),
            _ => {}
        }
        let Some(table) = self.tables.get_mut(&sink.table) else {
            self.tables.insert(sink.table.clone(), Table { side, sinks: vec![sink.name.clone()] });
            return Ok(());
        };
        let first = table.first()?;
        let fits = table.side.same(&side) && first.counts == layout.counts && union::fits(&first, &layout);
        if !fits || form == Form::Search {
            let message = format!("sinks `{}` and `{}` cannot share the table `{}`", first.sink.name, sink.name, sink.table);
            return Err(StoreError::BadRequest(format!("{message}: store, mode or a column's type differ")));
        }
        table.sinks.push(sink.name.clone());
        Ok(())
    }

    /// Marks set in the inbox but not among the counts, when the process ended between the two:
    /// brought over before the first count is asked for.
    async fn bring_marks(&self) -> Result<(), StoreError> {
        let (Some(inbox), Some(counts)) = (&self.inbox, &self.counts) else { return Ok(()) };
        if self.brought.load(Ordering::SeqCst) {
            return Ok(());
        }
        let (inbox, counts) = (self.table(inbox)?, self.table(counts)?);
        if let Side::Twin(inner) = inbox.side {
            let marks = blocking(inner.file.name, move || badges::marks(&inner.file)).await?;
            counts.mark(marks).await?;
        }
        self.brought.store(true, Ordering::SeqCst);
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
        let first = table.first()?;
        if first.sink.store == "clickhouse" || first.counts {
            return Err(StoreError::BadRequest(format!("table `{name}` is a view: scan it")));
        }
        Ok(table)
    }

    /// The inbox, which delivers from this machine and so is always embedded.
    fn of_inbox(&self) -> Result<(Arc<Inner>, Table), StoreError> {
        let table = match &self.inbox {
            Some(name) => self.table(name)?,
            None => return Err(StoreError::BadRequest("no sink has the store `outbox`, so there are no notifications".into())),
        };
        match &table.side {
            Side::Twin(inner) => Ok((inner.clone(), table)),
            Side::Real(_) | Side::Elsewhere(_) => Err(StoreError::BadRequest("the inbox is not in an embedded store".into())),
        }
    }
}

/// The columns that readers of a table see.
fn table_schema(layouts: &[Arc<Layout>]) -> SchemaRef {
    if layouts.iter().any(|layout| layout.counts) { badges::schema() } else { union::schema(layouts) }
}

/// Those of them that a scan asks for.
fn projected(schema: &SchemaRef, request: &ScanRequest) -> Result<SchemaRef, StoreError> {
    let Some(columns) = &request.columns else { return Ok(schema.clone()) };
    let at: Result<Vec<usize>, _> = columns.iter().map(|column| schema.index_of(column)).collect();
    at.and_then(|at| schema.project(&at)).map(Arc::new).map_err(|error| StoreError::BadRequest(error.to_string()))
}

impl Tables for Reads {
    fn tables(&self) -> Vec<TableInfo> {
        let info = |(name, table): (&String, &Table)| {
            let layouts = table.layouts().ok()?;
            let layout = layouts.first()?;
            let schema = table_schema(&layouts);
            let key = |at: &usize| (*at < layout.visible).then(|| layout.columns[*at].name.clone());
            let sink = &layout.sink;
            Some(TableInfo {
                name: name.clone(),
                doc: sink.doc.clone(),
                schema,
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

    fn scan(&self, name: &str, request: &ScanRequest) -> Result<Scan, StoreError> {
        let table = self.table(name)?;
        let layouts = table.layouts()?;
        if let Side::Elsewhere(owner) = &table.side {
            return owner.scan(name, request, projected(&table_schema(&layouts), request)?);
        }
        if layouts.iter().any(|l| l.counts) {
            return match &table.side {
                Side::Twin(inner) => badges::scan(&inner.file, &layouts, request),
                Side::Real(store) => remote::counts(store, layouts, request),
                Side::Elsewhere(_) => Err(asked_whole()),
            };
        }
        let one = |layout: &Arc<Layout>, request: &ScanRequest| match &table.side {
            Side::Twin(inner) if inner.form == Form::Analytics => analytics::scan(&inner.file, layout, request),
            Side::Twin(inner) => read::scan(&inner.file, layout, request),
            Side::Real(store) => remote::scan(store, layout, request),
            Side::Elsewhere(_) => Err(asked_whole()),
        };
        match layouts.as_slice() {
            [layout] => one(layout, request),
            _ => union::scan(&layouts, request, one),
        }
    }
}

impl Changes for Reads {
    fn follow(&self, table: &str) -> Result<Follower, StoreError> {
        let another =
            || StoreError::BadRequest(format!("another process writes the table `{table}`, which can be followed there"));
        let follower = match self.table(table)?.side {
            Side::Twin(_) if self.only_reads.load(Ordering::SeqCst) => return Err(another()),
            Side::Twin(inner) => inner.follow(table),
            Side::Real(store) => store.follow(table),
            Side::Elsewhere(_) => return Err(another()),
        };
        let silent = || StoreError::BadRequest(format!("table `{table}` cannot be followed: its sink's store is not redis"));
        follower.ok_or_else(silent)
    }
}

#[async_trait::async_trait]
impl Documents for Reads {
    async fn get(&self, name: &str, id: &str) -> Result<Option<serde_json::Value>, StoreError> {
        let (table, id) = (self.documents(name)?, id.to_owned());
        let layouts = table.layouts()?;
        let inner = match table.side {
            Side::Twin(inner) => inner,
            Side::Elsewhere(owner) => {
                let found = owner.documents(Ask::Get { table: name.to_owned(), id }).await?;
                return Ok(Some(found).filter(|found| !found.is_null()));
            }
            Side::Real(store) => return remote::get(&store, layouts, id).await,
        };
        blocking(inner.file.name, move || {
            for layout in layouts {
                if let Some(found) = read::get(&inner.file, &layout, &id)? {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        })
        .await
    }

    async fn list(
        &self,
        name: &str,
        equals: &[(String, String)],
        from: Option<EventTime>,
        to: Option<EventTime>,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let (table, equals) = (self.documents(name)?, equals.to_vec());
        let layouts = table.layouts()?;
        let inner = match table.side {
            Side::Twin(inner) => inner,
            Side::Elsewhere(owner) => {
                let (from, to) = (from.map(|time| time.0), to.map(|time| time.0));
                let cursor = cursor.map(str::to_owned);
                return owner.page(Ask::List { table: name.to_owned(), equals, from, to, cursor, limit }).await;
            }
            Side::Real(store) => {
                let asked = remote::Asked { equals, range: (from, to), cursor: cursor.map(str::to_owned), limit };
                return remote::list(&store, layouts, asked).await;
            }
        };
        let after = cursor.map(cursor_place).transpose()?;
        blocking(inner.file.name, move || {
            let limit = limit.clamp(1, 10_000);
            let mut found = Vec::new();
            for (rank, layout) in layouts.iter().enumerate() {
                found.extend(read::list(&inner.file, layout, rank, &equals, (from, to), after, limit + 1)?);
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
        let layout = table.first()?;
        match table.side {
            Side::Twin(inner) => {
                let (rankings, name) = (self.rankings.clone(), inner.file.name);
                let looked_for =
                    move || search::find(&inner.file, &layout, &rankings, (&query, &filter), cursor.as_deref(), limit);
                blocking(name, looked_for).await
            }
            Side::Real(store) => {
                let this = store.clone();
                store
                    .on(async move {
                        this.ready(&layout).await?;
                        this.backend.search(&layout, &query, &filter, cursor.as_deref(), limit).await
                    })
                    .await
            }
            Side::Elsewhere(owner) => owner.page(Ask::Search { query, filter, cursor, limit }).await,
        }
    }
}

#[async_trait::async_trait]
impl NotificationInbox for Reads {
    async fn badge(&self, user: &str) -> Result<u64, StoreError> {
        if let Some(owner) = self.owner_of_inbox() {
            let unread = owner.documents(Ask::Badge { user: user.to_owned() }).await?;
            return unread.as_u64().ok_or_else(elsewhere::strange);
        }
        self.bring_marks().await?;
        let table = match &self.counts {
            Some(counts) => self.table(counts)?,
            None => self.of_inbox()?.1,
        };
        table.unread(user).await
    }

    async fn mark_read(&self, user: &str, id: &str) -> Result<bool, StoreError> {
        if let Some(owner) = self.owner_of_inbox() {
            let marked = owner.documents(Ask::MarkRead { user: user.to_owned(), id: id.to_owned() }).await?;
            return marked.as_bool().ok_or_else(elsewhere::strange);
        }
        let (inner, inbox) = self.of_inbox()?;
        let layouts = inbox.layouts()?;
        let (of, wanted) = (user.to_owned(), id.to_owned());
        let marked = blocking(inner.file.name, move || {
            for layout in layouts {
                if let Some(key) = badges::mark(&inner.file, &layout, &of, &wanted)? {
                    return Ok(Some(key));
                }
            }
            Ok(None)
        })
        .await?;
        let Some(key) = marked else { return Ok(false) };
        if let Some(counts) = &self.counts {
            self.table(counts)?.mark(vec![(user.to_owned(), key)]).await?;
        }
        Ok(true)
    }
}
