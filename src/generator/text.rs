//! What people in the generated chat write and do: words, pages, features, errors.

use super::random::{Random, Zipf};

const WORDS: &[&str] = &[
    "the",
    "we",
    "to",
    "a",
    "is",
    "it",
    "and",
    "for",
    "this",
    "that",
    "on",
    "with",
    "you",
    "can",
    "build",
    "test",
    "release",
    "deploy",
    "review",
    "meeting",
    "customer",
    "ticket",
    "today",
    "tomorrow",
    "please",
    "thanks",
    "great",
    "broken",
    "fixed",
    "branch",
    "merge",
    "latency",
    "dashboard",
    "invoice",
    "design",
    "draft",
    "numbers",
    "coffee",
    "lunch",
    "standup",
    "retro",
    "queue",
    "cache",
    "index",
    "search",
    "upload",
    "avatar",
    "invite",
    "channel",
    "thread",
    "emoji",
    "phone",
    "call",
    "screen",
    "notes",
    "agenda",
    "budget",
    "quarter",
    "launch",
    "rollback",
    "alert",
    "metric",
    "graph",
    "sprint",
    "backlog",
    "owner",
    "naïve",
    "café",
    "größer",
    "été",
    "日本語",
    "привет",
    "🚀",
    "👍",
];

/// Pages of the web client.
pub(crate) const PAGES: &[&str] =
    &["/channels", "/inbox", "/search", "/threads", "/files", "/people", "/settings", "/settings/profile", "/calls", "/admin"];
/// Features that are counted.
pub(crate) const FEATURES: &[&str] = &[
    "message_composer",
    "emoji_picker",
    "search",
    "file_upload",
    "thread_view",
    "slash_command",
    "mention",
    "screen_share",
    "huddle",
    "dark_mode",
    "pin_message",
    "bookmark",
];
/// Client errors.
pub(crate) const ERRORS: &[&str] =
    &["TypeError", "NetworkError", "TimeoutError", "QuotaExceededError", "WebSocketClosed", "UploadFailed"];
/// Metric, unit, median.
pub(crate) const METRICS: &[(&str, &str, f64)] = &[
    ("first_contentful_paint", "ms", 640.0),
    ("time_to_interactive", "ms", 1_450.0),
    ("message_send_latency", "ms", 85.0),
    ("search_latency", "ms", 190.0),
    ("memory_used", "MiB", 210.0),
    ("websocket_reconnects", "count", 1.0),
];
/// Emoji of reactions, the most used first.
pub(crate) const EMOJI: &[&str] = &["👍", "❤️", "😂", "🎉", "👀", "🚀", "✅", "🙏", "😢", "🔥"];
/// Devices.
pub(crate) const DEVICES: &[&str] = &["web", "ios", "android", "desktop"];
/// User agents by device, same order.
pub(crate) const AGENTS: &[&str] = &[
    "Mozilla/5.0 (X11; Linux x86_64) Firefox/145.0",
    "QuikApp/4.2 (iPhone; iOS 19.1)",
    "QuikApp/4.2 (Android 16)",
    "QuikApp-Desktop/4.2 (macOS 16.0)",
];
/// What rights are asked for and denied: resource, action.
pub(crate) const DENIED: &[(&str, &str)] =
    &[("channel:private", "read"), ("workspace:billing", "read"), ("user:roles", "update"), ("channel:announcements", "create")];

/// A message of some words: mostly short, now and then long.
pub(crate) fn sentence(random: &mut Random, words: &Zipf) -> String {
    let length = (random.around(9.0, 1.0) as usize).clamp(1, 400);
    let mut text = String::with_capacity(length * 6);
    for at in 0..length {
        if at > 0 {
            text.push(' ');
        }
        text.push_str(WORDS[words.draw(random)]);
    }
    match random.below(12) {
        0 => text.push('?'),
        1 | 2 => text.push('!'),
        3 => text.push_str(" 🙂"),
        _ => {}
    }
    text
}

/// The law by which words are drawn.
pub(crate) fn word_law() -> Zipf {
    Zipf::new(WORDS.len(), 0.7)
}
