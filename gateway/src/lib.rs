//! The gateway: who may pass, used alike by the ingest and the query address.
//!
//! * [`auth`]: the bearer token, and the rule "no token, then loopback only"
//! * [`guard`]: the layer that asks for the token, or for a local page where there is none
//! * [`problem`]: errors as RFC 9457 problem documents
//! * [`health`]: `/health/live`, `/health/ready`, `/metrics`
//! * [`serve`]: a listener's connections, bounded, drained on shutdown
//!
//! **Invariant**: nothing here knows a record, a topic or a store.

pub mod auth;
pub mod guard;
pub mod health;
pub mod problem;
pub mod serve;

pub use auth::{Auth, GatewayError, Principal, may_bind};
pub use guard::{admit, guard};
pub use health::health_routes;
pub use problem::{FieldError, Problem};
pub use serve::{ServeLimits, route, serve, serve_with};
