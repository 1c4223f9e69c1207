//! Realistic traffic of a chat product: all 24 event types and channel members, by seed.
//!
//! A clock walks from `from` to `to`; at each step either something scheduled is due (an answer to
//! a call, the end of a session) or somebody starts something new. Event times are in order but for
//! a slight disorder of at most two seconds, as clients' clocks and networks make it.

mod deeds;
mod random;
mod text;
mod traffic;
mod world;

pub(crate) use traffic::{Options, Traffic};

/// The event types of the product, by topic.
#[cfg(test)]
pub(crate) const TYPES: [&str; 24] = [
    "USER_CREATED",
    "USER_UPDATED",
    "USER_DELETED",
    "USER_BANNED",
    "MESSAGE_SENT",
    "MESSAGE_EDITED",
    "MESSAGE_DELETED",
    "REACTION_ADDED",
    "USER_ONLINE",
    "USER_OFFLINE",
    "USER_TYPING",
    "STATUS_CHANGED",
    "CALL_STARTED",
    "CALL_ENDED",
    "PARTICIPANT_JOINED",
    "PARTICIPANT_LEFT",
    "LOGIN_SUCCESS",
    "LOGIN_FAILED",
    "PERMISSION_DENIED",
    "DATA_EXPORTED",
    "PAGE_VIEW",
    "FEATURE_USED",
    "ERROR_OCCURRED",
    "PERFORMANCE_METRIC",
];
