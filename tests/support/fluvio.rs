//! A Fluvio that the environment names, under a prefix of the test's own.
//!
//! `QUIKFLOW_TEST_FLUVIO=host:port` names its controller.

use super::{Start, harness};

/// How a process is started on it, under a prefix nobody else has; skips the test where the environment names none.
pub fn start(test: &str) -> Start {
    let address = harness::server("QUIKFLOW_TEST_FLUVIO");
    let stamp = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros();
    let broker = format!("fluvio://{address}/{test}-{stamp:x}");
    Start { env: vec![("QUIKFLOW_BROKER".to_owned(), broker)], ..Start::default() }
}
