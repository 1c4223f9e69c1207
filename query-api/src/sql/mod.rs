//! `POST /v1/sql`: read-only SQL over views, the stores' tables, topics, dead letters and lag.
//!
//! [`runtime`] has threads of its own, [`session`] what a query can see, [`guard`] what it may say,
//! [`values`] binds parameters as values, [`route`] is the path.

pub mod errors;
pub mod guard;
pub mod route;
pub mod runtime;
pub mod session;
pub mod values;
