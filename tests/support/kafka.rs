//! A Kafka that the environment names, under a prefix of the test's own.
//!
//! `QUIKFLOW_TEST_KAFKA=host:port` names it. Tests that kill or freeze it do so by `services.rs`.

use super::{Start, harness};

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
