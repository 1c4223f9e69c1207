//! The one sink runner.
