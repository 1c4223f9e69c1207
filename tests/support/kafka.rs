//! A Kafka that the environment names, under a prefix of the test's own.
//!
//! `QUIKFLOW_TEST_KAFKA=host:port` names it. Tests that kill or freeze it need its process too:
//! `QUIKFLOW_TEST_KAFKA_PID_FILE`, and `QUIKFLOW_TEST_KAFKA_START`, a command that starts it again on
//! its data and returns when it answers.

use super::{Start, harness};
use std::path::PathBuf;
use std::process::Command;

/// Where it is, and a prefix nobody else has.
pub struct Kafka {
    /// `host:port`
    pub brokers: String,
    /// Before every topic.
    pub prefix: String,
}

impl Kafka {
    /// The one that the environment names; skips the test where it names none.
    pub fn named(test: &str) -> Kafka {
        let brokers = harness::server("QUIKFLOW_TEST_KAFKA");
        let stamp = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros();
        Kafka { brokers, prefix: format!("{test}-{stamp}") }
    }

    /// How a process is started on it.
    pub fn start(&self) -> Start {
        let broker = format!("kafka://{}/{}", self.brokers, self.prefix);
        Start { env: vec![("QUIKFLOW_BROKER".to_owned(), broker)], ..Start::default() }
    }
}

/// The broker's own process.
pub struct Broker {
    pid_file: PathBuf,
    start: String,
}

impl Broker {
    /// The one that the environment names; skips the test where it names none.
    pub fn named() -> Broker {
        let pid_file = harness::server("QUIKFLOW_TEST_KAFKA_PID_FILE").into();
        Broker { pid_file, start: harness::server("QUIKFLOW_TEST_KAFKA_START") }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(&self.pid_file).unwrap();
        let sent = Command::new("kill").args([signal, pid.trim()]).status().unwrap();
        assert!(sent.success(), "no signal {signal} to Kafka");
    }

    /// Starts it again on its data.
    pub fn start(&self) {
        let started = Command::new("sh").args(["-c", &self.start]).status().unwrap();
        assert!(started.success(), "Kafka was not started again");
    }
}
