//! Made-up chat events, drawn by seed: shaped like a real chat archive (a few loud channels, many
//! quiet ones, contents of some hundred characters).

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::fmt::Write as _;

/// Some day long ago: events of history.
pub(crate) const HISTORY: i64 = 1_600_000_000_000_000;

/// How the events are spread.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// How many events.
    pub(crate) events: u64,
    /// Channels; drawn by a power law.
    pub(crate) channels: u64,
    /// Users; drawn by a power law.
    pub(crate) users: u64,
    /// Time of the first event, in microseconds since 1970.
    pub(crate) start: i64,
    /// Seconds of event time from one event to the next, on average.
    pub(crate) step_seconds: f64,
    /// Bytes of content, about.
    pub(crate) content: usize,
}

/// One event.
pub(crate) struct Event {
    /// Microseconds since 1970.
    pub(crate) at: i64,
    /// Number of the message.
    pub(crate) number: u64,
    /// Channel.
    pub(crate) channel: u64,
    /// User.
    pub(crate) user: u64,
    /// Text.
    pub(crate) content: String,
}

/// The events in order of time.
pub(crate) fn events(shape: Shape, seed: u64) -> impl Iterator<Item = Event> {
    let mut random = StdRng::seed_from_u64(seed);
    let words: Vec<String> = (0..5_000)
        .map(|_| (0..random.random_range(2..11)).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect())
        .collect();
    let mut at = shape.start;
    (0..shape.events).map(move |number| {
        at += (shape.step_seconds * 2e6 * random.random::<f64>()) as i64;
        let mut power = |n: u64| ((n as f64).powf(random.random::<f64>()) as u64).min(n - 1);
        let (channel, user) = (power(shape.channels), power(shape.users));
        let wanted = shape.content / 2 + random.random_range(0..=shape.content.max(1));
        let mut content = String::with_capacity(wanted + 12);
        while content.len() < wanted {
            content.push_str(&words[random.random_range(0..words.len())]);
            content.push(' ');
        }
        Event { at, number, channel, user, content }
    })
}

/// The event as a line of JSON.
pub(crate) fn json_line(event: &Event, line: &mut String) {
    let time = chrono::DateTime::from_timestamp_micros(event.at).unwrap_or_default();
    let written = write!(
        line,
        r#"{{"type":"MESSAGE_SENT","payload":{{"messageId":"msg_{}","channelId":"channel-{:04}","workspaceId":"ws_1","userId":"usr_{:016x}","threadId":"thr_{:016x}","content":"{}"}},"timestamp":"{}"}}"#,
        event.number,
        event.channel,
        event.user.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        event.number / 7,
        event.content,
        time.format("%Y-%m-%dT%H:%M:%S%.6fZ")
    );
    assert!(written.is_ok());
    line.push('\n');
}
