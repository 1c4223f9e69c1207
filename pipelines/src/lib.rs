//! Pipelines: a topology of `topologies.toml` becomes a plan, and the plan runs as a timely
//! dataflow, or in the test driver without timely.
//!
//! * [`step`]: what a kind of step is, and the registry of them all
//! * [`steps`]: one file a kind: its fields, its doc, its operator
//! * [`expr`]: SQL expressions, compiled once, evaluated over Arrow
//! * [`operator`]: the contract of operators: stateless and keyed
//! * [`topology`]: the parser of `[[topology]]` and `[[test]]`
//! * [`plan`]: topologies, typed and connected, ready to be built
//! * [`explain`]: shows a plan as text, JSON, Mermaid or a drawing
//! * [`engine`]: timely workers, epochs, time, recovery, accounts
//! * [`memory`]: a log in memory, for the test driver
//! * [`driver`]: runs a plan in virtual time for `[[test]]` blocks and cases
//!
//! **Invariant**: only `engine/` imports timely; operators know no clock and no IO.

pub mod driver;
pub mod engine;
pub mod explain;
pub mod expr;
pub mod memory;
pub mod operator;
pub mod plan;
pub mod schema_json;
pub mod step;
pub mod steps;
pub mod topology;
