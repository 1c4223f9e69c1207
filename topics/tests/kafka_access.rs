//! A Kafka that asks who comes: TLS, logins, and what is said to those who may not.
//!
//! `QUIKFLOW_TEST_KAFKA_GUARDED=host:port` names a listener with TLS and SASL whose user `quikflow` may do
//! everything, `clerk` what is allowed here (by `QUIKFLOW_TEST_PYTHON`'s client over `QUIKFLOW_TEST_KAFKA`) and
//! `stranger` nothing (the password is the name), and `QUIKFLOW_TEST_CA` the authority of
//! its certificate; `tests/services/services start kafka` prints both.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod common;
#[path = "../../tests/support/harness.rs"]
mod harness;

use common::{lane, read, spec};
use quikflow_topics::broker::{Broker, Positions};
use quikflow_topics::brokers::kafka::{KafkaBroker, KafkaOptions, Login};
use quikflow_topics::catalogue::TopicKind;
use quikflow_topics::clock::SystemClock;
use std::time::Duration;

crate::tests! {
    each MECHANISMS: who_signs_in_over_tls_writes_and_reads,
    a_wrong_password_is_told_at_once,
    a_certificate_of_another_authority_is_told_at_once,
    an_encrypted_port_is_not_spoken_to_in_the_clear,
    a_user_without_rights_is_told_which_topic,
    a_user_with_some_rights_is_told_the_one_that_is_missing,
}

const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// The guarded listener with this login, over TLS.
fn guarded(mechanism: &str, user: &str, password: &str) -> KafkaOptions {
    let brokers = harness::server("QUIKFLOW_TEST_KAFKA_GUARDED");
    let prefix = format!("access-{mechanism}-{}", SystemClock::shared().now().0);
    let mut options = KafkaOptions::from_url(&format!("kafka://{brokers}/{prefix}"), SystemClock::shared()).unwrap();
    let (mechanism, user, password) = (mechanism.to_owned(), user.to_owned(), password.to_owned());
    options.login = Some(Login { mechanism, user, password });
    options.tls = true;
    options.ca_file = Some(harness::server("QUIKFLOW_TEST_CA"));
    options
}

/// What is said where it cannot be opened.
fn refused(options: KafkaOptions) -> String {
    let message = KafkaBroker::open(options).map(drop).unwrap_err().to_string();
    println!("{message}");
    message
}

fn who_signs_in_over_tls_writes_and_reads(mechanism: &'static str) {
    let broker = KafkaBroker::open(guarded(mechanism, "quikflow", "quikflow")).unwrap();
    let events = spec("events", TopicKind::Events);
    broker.ensure_topics(std::slice::from_ref(&events)).unwrap();
    let lines: Vec<u64> = (1..=50).collect();
    broker.append(lane(&events, 0, &lines)).unwrap().wait().unwrap();
    let (mut found, mut positions) = (0, Positions::new());
    for _ in 0..100 {
        let seen = broker.wakeup().version();
        let (rows, next) = read(broker.as_ref(), "events", &positions);
        (found, positions) = (found + rows.len(), next);
        if found == lines.len() {
            break;
        }
        broker.wakeup().wait(seen, Duration::from_millis(100));
    }
    assert_eq!(found, lines.len());
    broker.close();
}

fn a_wrong_password_is_told_at_once() {
    for mechanism in MECHANISMS {
        let clock = SystemClock::shared();
        let began = clock.elapsed();
        let message = refused(guarded(mechanism, "quikflow", "sesame"));
        assert!(message.contains("QUIKFLOW_KAFKA_PASSWORD"), "{message}");
        assert!(!message.contains("sesame"), "the password stands in the message: {message}");
        assert!((clock.elapsed() - began).as_secs() < 10, "{mechanism}: said after the time-out of a call");
    }
}

fn a_certificate_of_another_authority_is_told_at_once() {
    let options = KafkaOptions { ca_file: None, ..guarded("PLAIN", "quikflow", "quikflow") };
    let message = refused(options);
    assert!(message.contains("QUIKFLOW_KAFKA_CA"), "{message}");
}

fn an_encrypted_port_is_not_spoken_to_in_the_clear() {
    let options = KafkaOptions { tls: false, ca_file: None, ..guarded("PLAIN", "quikflow", "quikflow") };
    let message = refused(options);
    assert!(message.contains("QUIKFLOW_KAFKA_TLS"), "{message}");
}

fn a_user_without_rights_is_told_which_topic() {
    let message = refused(guarded("PLAIN", "stranger", "stranger"));
    assert!(message.contains("quikflow.dead") && message.contains("QUIKFLOW_KAFKA_USER lacks this right"), "{message}");
}

/// Allows a user something on what a prefix begins: address, user, prefix, then `kind=OPERATION,…`.
const ALLOW: &str = r#"
import sys
try:
    from confluent_kafka.admin import (AclBinding, AclOperation, AclPermissionType, AdminClient, ResourcePatternType, ResourceType)
except ImportError:
    sys.exit(77)
address, user, prefix, rules = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
allowed = []
for rule in rules:
    kind, operations = rule.split("=")
    for operation in operations.split(","):
        allowed.append(AclBinding(ResourceType[kind], prefix, ResourcePatternType.PREFIXED, "User:" + user, "*",
                                  AclOperation[operation], AclPermissionType.ALLOW))
admin = AdminClient({"bootstrap.servers": address})
for future in admin.create_acls(allowed).values():
    future.result()
"#;

fn allow(prefix: &str, rules: &[&str]) {
    let python = std::env::var("QUIKFLOW_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut command = std::process::Command::new(python);
    command.args(["-c", ALLOW, &harness::server("QUIKFLOW_TEST_KAFKA"), "clerk", prefix]).args(rules);
    let output = command.output().unwrap();
    if output.status.code() == Some(77) {
        harness::skip("no confluent-kafka for this Python (QUIKFLOW_TEST_PYTHON)");
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn a_user_with_some_rights_is_told_the_one_that_is_missing() {
    let options = guarded("PLAIN", "clerk", "clerk");
    let prefix = options.prefix.clone();
    let events = spec("events", TopicKind::Events);
    // What reading takes.
    allow(&prefix, &["TOPIC=CREATE,DESCRIBE,DESCRIBE_CONFIGS,READ", "GROUP=READ"]);
    let broker = KafkaBroker::open(options.clone()).unwrap();
    broker.ensure_topics(std::slice::from_ref(&events)).unwrap();
    let refused = |broker: &KafkaBroker| {
        let answer = broker.append(lane(&events, 0, &[1, 2, 3])).and_then(|ticket| ticket.wait());
        let message = answer.unwrap_err().to_string();
        println!("{message}");
        assert!(message.contains("QUIKFLOW_KAFKA_USER lacks this right"), "{message}");
        message
    };
    let message = refused(&broker);
    assert!(message.contains("transactional id"), "{message}");
    broker.close();
    allow(&prefix, &["TRANSACTIONAL_ID=WRITE,DESCRIBE"]);
    let broker = KafkaBroker::open(options.clone()).unwrap();
    broker.ensure_topics(std::slice::from_ref(&events)).unwrap();
    refused(&broker);
    broker.close();
    allow(&prefix, &["TOPIC=WRITE"]);
    let broker = KafkaBroker::open(options).unwrap();
    broker.ensure_topics(std::slice::from_ref(&events)).unwrap();
    assert_eq!(broker.append(lane(&events, 0, &[1, 2, 3])).unwrap().wait().unwrap().accepted, 3);
    broker.close();
}
