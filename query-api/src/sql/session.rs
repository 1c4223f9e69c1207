//! What a query can see: views and tables by their bare names, topics as `topic."NAME"`; and within
//! which bounds it runs.

use crate::problem::Problem;
use crate::relations::Relations;
use crate::relations::provider::{AsOf, RelationTable};
use crate::state::QueryLimits;
use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider};
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use std::sync::Arc;

/// The schema that topics are in.
pub const TOPICS: &str = "topic";
/// The schema of views and tables; need not be written.
pub const VIEWS: &str = "public";
const CATALOG: &str = "quikflow";

/// Functions that make much out of little, outside the bound of memory.
const REFUSED_FUNCTIONS: [&str; 8] =
    ["repeat", "lpad", "rpad", "array_repeat", "array_resize", "range", "generate_series", "spark_repeat"];

/// An empty session within the bounds: no disk, no files, names as they are written.
///
/// # Errors
/// Never in practice: 500.
pub fn empty(limits: &QueryLimits) -> Result<SessionContext, Problem> {
    let mut config = SessionConfig::new()
        // One partition a query: rows come in the store's order, and a query takes one thread.
        .with_target_partitions(1)
        .with_batch_size(4_096)
        .with_information_schema(true)
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema(CATALOG, VIEWS);
    let options = config.options_mut();
    options.sql_parser.enable_ident_normalization = false;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.time_zone = Some("UTC".to_owned());
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(GreedyMemoryPool::new(limits.memory)))
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
        .build_arc()
        .map_err(Problem::internal)?;
    let state = SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features().build();
    let context = SessionContext::new_with_state(state);
    for name in REFUSED_FUNCTIONS {
        context.deregister_udf(name);
    }
    Ok(context)
}

/// A session that sees everything.
///
/// # Errors
/// Never in practice: 500.
pub fn whole(limits: &QueryLimits, relations: &Relations) -> Result<SessionContext, Problem> {
    let context = empty(limits)?;
    let (views, topics) = (MemorySchemaProvider::new(), MemorySchemaProvider::new());
    for (schema, list) in [(&views, relations.views()), (&topics, relations.topics())] {
        for relation in list {
            let name = relation.info.name.clone();
            let table = RelationTable::new(relation, AsOf::default());
            schema.register_table(name, Arc::new(table)).map_err(Problem::internal)?;
        }
    }
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema(VIEWS, Arc::new(views)).map_err(Problem::internal)?;
    catalog.register_schema(TOPICS, Arc::new(topics)).map_err(Problem::internal)?;
    context.register_catalog(CATALOG, Arc::new(catalog));
    Ok(context)
}
