//! The embedded stores: for each production store a twin in SQLite, one file each.
//!
//! | `store` | file | form |
//! |---|---|---|
//! | `mongodb` | `messages.sqlite` | rows by key |
//! | `elasticsearch` | `search.sqlite` | rows and a full-text index |
//! | `clickhouse` | `analytics.sqlite` | columnar parts |
//! | `redis` | `badges.sqlite` | rows by key, counts |
//! | `mysql` | `users.sqlite` | rows by key |
//! | `audit` | `audit.sqlite` | rows that never change |
//! | `outbox` | `outbox.sqlite` | rows, and files to be delivered |
//!
//! * [`layout`]: a sink's table; [`rules`]: what an event type does to a row
//! * [`rows`], [`merge`], [`read`]: tables of rows
//! * [`search`], [`text`]: the full-text index
//! * [`analytics`]: columnar parts
//! * [`outbox`], [`badges`]: notifications
//! * [`file`]: the SQLite file; [`twin`]: a store; [`reads`]: the read sides, by table

mod analytics;
mod badges;
mod cells;
mod file;
mod layout;
mod merge;
mod outbox;
mod read;
mod reads;
mod rows;
mod rules;
mod search;
mod text;
mod twin;
mod union;

use crate::store::{ReadSide, Store, StoreError, StoreSet};
use quikflow_topics::catalogue::{SinkSpec, TopicSpec};
use quikflow_topics::clock::SharedClock;
use reads::Reads;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use twin::{Form, Twin, form_of};

/// The names that `store` may have in a sink.
pub const STORES: [&str; 7] = ["mongodb", "elasticsearch", "clickhouse", "redis", "mysql", "audit", "outbox"];

/// All embedded stores of a data directory that some sink needs.
pub struct EmbeddedStores {
    twins: BTreeMap<&'static str, Twin>,
    reads: Arc<Reads>,
}

impl EmbeddedStores {
    /// Opens the stores under `dir` (`dir/stores/<name>.sqlite`, `dir/outbox/`) and creates what the
    /// sinks lack. Blocking.
    ///
    /// # Errors
    /// An unknown store name, two sinks with one table, options that make no sense, a stored table
    /// of another form, storage errors.
    pub fn open(
        dir: &Path,
        _clock: SharedClock,
        sinks: &[(Arc<SinkSpec>, Arc<TopicSpec>)],
    ) -> Result<EmbeddedStores, StoreError> {
        let mut twins: BTreeMap<&'static str, Twin> = BTreeMap::new();
        let mut reads = Reads::default();
        for (sink, topic) in sinks {
            let (name, form) = known(sink)?;
            let twin = match twins.get(name) {
                Some(twin) => twin.clone(),
                None => {
                    let twin = Twin::open(dir, name, form)?;
                    twins.insert(name, twin.clone());
                    twin
                }
            };
            twin.add(sink, topic)?;
            reads.add(&twin, sink)?;
        }
        reads.bring_marks()?;
        Ok(EmbeddedStores { twins, reads: Arc::new(reads) })
    }

    /// The read sides of all stores.
    pub fn read_side(&self) -> ReadSide {
        ReadSide {
            tables: self.reads.clone(),
            documents: self.reads.clone(),
            search: self.reads.clone(),
            inbox: self.reads.clone(),
        }
    }
}

fn known(sink: &SinkSpec) -> Result<(&'static str, Form), StoreError> {
    form_of(&sink.store).ok_or_else(|| {
        let message = format!("sink `{}` names the store `{}`; available: {}", sink.name, sink.store, STORES.join(", "));
        StoreError::Refused { store: "embedded", message }
    })
}

impl StoreSet for EmbeddedStores {
    fn store_of(&self, sink: &SinkSpec) -> Result<Arc<dyn Store>, StoreError> {
        let (name, _) = known(sink)?;
        let missing = || StoreError::BadRequest(format!("sink `{}` was not among those the stores were opened with", sink.name));
        Ok(Arc::new(self.twins.get(name).ok_or_else(missing)?.clone()))
    }

    fn all(&self) -> Vec<Arc<dyn Store>> {
        self.twins.values().map(|twin| Arc::new(twin.clone()) as Arc<dyn Store>).collect()
    }
}
