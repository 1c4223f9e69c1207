//! The gateway: who may pass, used alike by the ingest and the query address.
//!
//! * [`auth`]: the bearer token, and the rule "no token, then loopback only"
//! * [`guard`]: the layer that asks for the token, or for a local page where there is none
//! * [`sign_in`]: users with passwords, sessions, access tokens; [`permission`]: what a user may
//! * [`peer`]: from where a request came, and how often requests may
//! * [`problem`]: errors as RFC 9457 problem documents
//! * [`health`]: `/health/live`, `/health/ready`, `/metrics`
//! * [`serve`]: a listener's connections, bounded, drained on shutdown
//!
//! **Invariant**: nothing here knows a topic or a store; what is asked of stores are the traits of [`sign_in`].

pub mod auth;
pub mod guard;
pub mod health;
pub mod peer;
pub mod permission;
pub mod problem;
pub mod serve;
pub mod sign_in;

pub use auth::{Auth, GatewayError, Principal, may_bind};
pub use guard::{Caller, admit, guard};
pub use health::health_routes;
pub use peer::Peer;
pub use problem::{FieldError, Problem};
pub use serve::{ServeLimits, route, serve, serve_with};
pub use sign_in::SignIn;
