//! The servers' own processes, which some tests kill and freeze.

use super::both;
use super::harness::{server, skip};
use std::process::Command;

/// `kill`, `start`, `freeze`, `thaw` or `renew` by the command that started the servers; skips the test where
/// `QUIKFLOW_TEST_SERVICES` names none (`tests/services/run` does).
pub fn service(action: &str, name: &str) {
    let Ok(command) = std::env::var("QUIKFLOW_TEST_SERVICES") else {
        skip("QUIKFLOW_TEST_SERVICES names no command that kills servers (tests/services/run does)")
    };
    let output = Command::new(command).args([action, name]).output().unwrap();
    assert!(output.status.success(), "{action} {name}: {}", both(&output));
}

/// An empty Kafka, so that it is soon back after a kill however many topics other tests have made; skips
/// the test where the Kafka that the environment names is not one that [`service`] can kill.
pub fn empty_kafka() {
    let named = server("QUIKFLOW_TEST_KAFKA");
    let Ok(command) = std::env::var("QUIKFLOW_TEST_SERVICES") else {
        skip("QUIKFLOW_TEST_SERVICES names no command that kills servers (tests/services/run does)")
    };
    let lines = Command::new(command).arg("env").output().unwrap();
    let known =
        String::from_utf8_lossy(&lines.stdout).lines().any(|line| line.ends_with(&format!("QUIKFLOW_TEST_KAFKA={named}")));
    if !known {
        skip("QUIKFLOW_TEST_SERVICES did not start the Kafka that QUIKFLOW_TEST_KAFKA names");
    }
    service("renew", "kafka");
}
