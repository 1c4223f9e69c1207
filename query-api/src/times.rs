//! Times as people and programs write them: RFC 3339 in UTC, microseconds trimmed.

use chrono::{DateTime, SecondsFormat, Utc};
use quikflow_topics::ids::EventTime;

/// `2026-01-01T12:00:00Z`, with `.123` or `.123456` only where there is a fraction; none for a
/// time that no calendar holds (such as [`EventTime::MIN`]).
pub fn show(time: EventTime) -> Option<String> {
    DateTime::<Utc>::from_timestamp_micros(time.0).map(|t| t.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// Reads RFC 3339, or a bare date (its midnight, UTC).
pub fn read(text: &str) -> Option<EventTime> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(EventTime(time.timestamp_micros()));
    }
    let date = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    Some(EventTime(date.and_hms_opt(0, 0, 0)?.and_utc().timestamp_micros()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_trimmed_and_read_back() {
        let noon = read("2026-01-01T12:00:00Z").unwrap();
        assert_eq!(show(noon).as_deref(), Some("2026-01-01T12:00:00Z"));
        assert_eq!(show(noon.plus(1)).as_deref(), Some("2026-01-01T12:00:00.000001Z"));
        assert_eq!(read("2026-01-01T13:00:00+01:00"), Some(noon));
        assert_eq!(show(read("2026-01-01").unwrap()).as_deref(), Some("2026-01-01T00:00:00Z"));
        assert_eq!(read("noon"), None);
        assert_eq!(show(EventTime::MIN), None);
    }
}
