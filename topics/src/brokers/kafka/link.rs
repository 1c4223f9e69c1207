//! Whether the brokers answer, told once for all clients of this process: while Kafka is away each of
//! them reports it many times a second.

use crate::clock::SharedClock;
use parking_lot::{Condvar, Mutex};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The same is said again after so long.
const AGAIN: Duration = Duration::from_secs(30);
/// So long no client may have reported anything before the brokers count as back.
const QUIET: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Told {
    /// When it was last said that the brokers are away, and when a client last reported it.
    away: Option<Duration>,
    reported: Duration,
    /// Reports since they went away.
    reports: u64,
    /// It was said of this absence.
    said: bool,
    /// The last report's words.
    reason: String,
}

/// What the clients of one process know of their connections.
pub struct Link {
    clock: SharedClock,
    absent: AtomicBool,
    told: Mutex<Told>,
    /// A client has reported something.
    news: Condvar,
    /// What was heard last where the brokers, or we, refused a connection: of a password or a certificate.
    refusal: Mutex<Option<(RDKafkaErrorCode, String)>>,
}

impl Link {
    pub(super) fn new(clock: SharedClock) -> Arc<Link> {
        Arc::new(Link {
            clock,
            absent: AtomicBool::new(false),
            told: Mutex::default(),
            news: Condvar::new(),
            refusal: Mutex::default(),
        })
    }

    /// A client has lost a broker or does not reach it: said at the first time, then every half a minute.
    pub(super) fn disturbed(&self, reason: &str) {
        let now = self.clock.elapsed();
        let mut told = self.told.lock();
        told.reported = now;
        told.reports += 1;
        reason.clone_into(&mut told.reason);
        self.absent.store(true, Ordering::Relaxed);
        if told.away.is_none_or(|at| now.saturating_sub(at) >= AGAIN) {
            tracing::warn!(reason, reports = told.reports, "kafka: a broker does not answer; the clients keep trying");
            told.away = Some(now);
            told.said = true;
        }
        drop(told);
        self.news.notify_all();
    }

    /// When a client last reported that a broker is away, in the clock's monotonic time: waits for a report
    /// later than `seen`, so long at most.
    pub(super) fn reported_after(&self, seen: Duration, most: Duration) -> Duration {
        let mut told = self.told.lock();
        if told.reported <= seen && !most.is_zero() {
            self.news.wait_for(&mut told, most);
        }
        told.reported
    }

    /// The words of the last report; empty without one.
    pub(super) fn last_report(&self) -> String {
        self.told.lock().reason.clone()
    }

    /// A client was answered.
    pub(super) fn answered(&self) {
        if !self.absent.load(Ordering::Relaxed) {
            return;
        }
        let mut told = self.told.lock();
        if self.clock.elapsed().saturating_sub(told.reported) < QUIET {
            return;
        }
        if std::mem::take(&mut told.said) {
            tracing::info!(reports = told.reports, "kafka: the brokers answer again");
        }
        told.reports = 0;
        self.absent.store(false, Ordering::Relaxed);
    }

    /// No answer was heard since a client reported that there is none.
    pub(super) fn is_absent(&self) -> bool {
        self.absent.load(Ordering::Relaxed)
    }

    /// Why a connection was refused, where one was: of a password or a certificate, not of a broker that is away.
    pub(super) fn refusal(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.refusal.lock().clone()
    }

    /// What a client reports by itself; the end of a partition is no error.
    pub(super) fn error(&self, error: &KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::PartitionEOF) => {}
            Some(
                RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::RequestTimedOut
                | RDKafkaErrorCode::NetworkException,
            ) => self.disturbed(reason),
            Some(
                code @ (RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed | RDKafkaErrorCode::SSL),
            ) => {
                *self.refusal.lock() = Some((code, reason.to_owned()));
                self.disturbed(reason);
            }
            _ => tracing::warn!(%error, reason, "kafka: a client reports an error"),
        }
    }

    /// What a client says in its own log; lost connections are heard by [`Link::error`] as well.
    pub(super) fn log(&self, level: RDKafkaLogLevel, place: &str, text: &str) {
        // Of several reports at once the client hands on one: a certificate that is refused may stand in the log alone.
        if place == "FAIL" && text.contains("certificate could not be verified") {
            *self.refusal.lock() = Some((RDKafkaErrorCode::SSL, text.to_owned()));
        }
        match level {
            _ if ["FAIL", "REQTMOUT", "ERROR"].contains(&place) => self.disturbed(text),
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::error!(target: "librdkafka", "{place} {text}");
            }
            RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", "{place} {text}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(target: "librdkafka", "{place} {text}"),
            RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", "{place} {text}"),
        }
    }
}

/// Hears what a client without wishes of its own reports.
pub(super) struct Heard(pub(super) Arc<Link>);

impl ClientContext for Heard {
    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(&error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, place: &str, text: &str) {
        self.0.log(level, place, text);
    }
}

impl ConsumerContext for Heard {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::ids::EventTime;

    #[test]
    fn a_certificate_that_is_refused_is_heard_from_the_log_too() {
        let link = Link::new(ManualClock::at(EventTime(0)));
        link.log(RDKafkaLogLevel::Error, "FAIL", "Connect to h:1 failed: Connection refused");
        assert!(link.refusal().is_none());
        link.log(RDKafkaLogLevel::Error, "FAIL", "SSL handshake failed: broker certificate could not be verified, verify …");
        assert_eq!(link.refusal().map(|(code, _)| code), Some(RDKafkaErrorCode::SSL));
    }

    #[test]
    fn what_many_clients_report_is_said_at_the_change_and_every_half_minute() {
        let clock = ManualClock::at(EventTime(0));
        let link = Link::new(clock.clone());
        link.answered();
        assert!(!link.is_absent());
        let said = |link: &Link| link.told.lock().away;
        link.disturbed("gone");
        assert_eq!(said(&link), Some(Duration::ZERO));
        clock.advance(Duration::from_secs(29));
        link.disturbed("gone");
        assert_eq!(said(&link), Some(Duration::ZERO), "said twice within half a minute");
        link.answered();
        assert!(link.is_absent(), "one client hears nothing at this very moment");
        clock.advance(Duration::from_secs(1));
        link.disturbed("gone");
        assert_eq!(said(&link), Some(Duration::from_secs(30)));
        assert_eq!(link.told.lock().reports, 3);
        clock.advance(Duration::from_secs(1));
        link.answered();
        assert!(!link.is_absent());
        assert_eq!(link.told.lock().reports, 0);
    }
}
