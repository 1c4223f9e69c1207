//! Steps from their declaration to their rows, in the driver and in the engine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod changed;
mod models;
mod registry;
mod replay;
mod stateless;
mod world;

use world::{DAY, SECOND, World, plan};
