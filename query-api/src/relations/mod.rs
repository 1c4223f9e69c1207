//! All that can be read as a table: the stores' tables, dead letters, lag, and each topic.
//!
//! One form for all of them: a [`TableInfo`] that describes it and a blocking [`Relation::scan`] that
//! yields Arrow batches as they are taken. Views and SQL both read through here.

mod own;
pub(crate) use own::status_name;
pub mod provider;
mod topics;

use crate::problem::Problem;
use crate::state::Introspection;
use quikflow_sinks::store::{Scan, ScanRequest, StoreError, TableInfo, Tables};
use quikflow_topics::broker::Broker;
use std::sync::Arc;

/// Where a relation's rows come from.
#[derive(Clone)]
enum Source {
    Store(Arc<dyn Tables>),
    DeadLetters(Arc<dyn Broker>),
    Lag(Arc<dyn Introspection>),
    Topic(Arc<dyn Broker>),
}

/// Something that can be read as a table.
#[derive(Clone)]
pub struct Relation {
    /// What it is.
    pub info: TableInfo,
    source: Source,
}

impl std::fmt::Debug for Relation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Relation").field(&self.info.name).finish()
    }
}

impl Relation {
    /// Reads it; blocking, so never on an async thread.
    ///
    /// # Errors
    /// Storage errors.
    pub fn scan(&self, request: &ScanRequest) -> Result<Scan, StoreError> {
        match &self.source {
            Source::Store(tables) => tables.scan(&self.info.name, request),
            Source::DeadLetters(broker) => own::scan_dead_letters(broker.clone(), &self.info, request),
            Source::Lag(process) => own::scan_lag(process.as_ref(), &self.info, request),
            Source::Topic(broker) => topics::scan(broker.as_ref(), &self.info, request),
        }
    }
}

/// All relations of this process.
#[derive(Clone)]
pub struct Relations {
    tables: Arc<dyn Tables>,
    broker: Arc<dyn Broker>,
    process: Arc<dyn Introspection>,
}

impl Relations {
    /// Over the stores, the broker and the process.
    pub fn new(tables: Arc<dyn Tables>, broker: Arc<dyn Broker>, process: Arc<dyn Introspection>) -> Relations {
        Relations { tables, broker, process }
    }

    /// The views: the stores' tables, `dead_letters` and `lag`, by name.
    pub fn views(&self) -> Vec<Relation> {
        let mut views: Vec<Relation> =
            self.tables.tables().into_iter().map(|info| Relation { info, source: Source::Store(self.tables.clone()) }).collect();
        let own = [
            Relation { info: own::dead_letters_info(), source: Source::DeadLetters(self.broker.clone()) },
            Relation { info: own::lag_info(), source: Source::Lag(self.process.clone()) },
        ];
        for relation in own {
            if !views.iter().any(|v| v.info.name == relation.info.name) {
                views.push(relation);
            }
        }
        views.sort_by(|a, b| a.info.name.cmp(&b.info.name));
        views
    }

    /// One view.
    ///
    /// # Errors
    /// 404 with the list of views.
    pub fn view(&self, name: &str) -> Result<Relation, Problem> {
        let views = self.views();
        if let Some(found) = views.iter().find(|v| v.info.name == name) {
            return Ok(found.clone());
        }
        let names: Vec<&str> = views.iter().map(|v| v.info.name.as_str()).collect();
        let detail = crate::params::unknown("view", name, names.iter().copied());
        Err(Problem::not_found(detail).with("views", serde_json::json!(names)))
    }

    /// The topics as tables.
    pub fn topics(&self) -> Vec<Relation> {
        let source = Source::Topic(self.broker.clone());
        let all = self.broker.topics();
        all.iter().map(|spec| Relation { info: topics::info(spec), source: source.clone() }).collect()
    }
}
