//! What can be wrong with an event: one name a rule.

use std::fmt;

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// The rule that an event broke. [`Code::name`] is what clients and dead letters see.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $($(#[doc = $doc])* $variant,)* }

        impl Code {
            /// All of them.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// The name that clients and dead letters see.
            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $name,)* }
            }
        }
    };
}

codes! {
    /// The bytes are not UTF-8.
    InvalidUtf8 = "invalid_utf8",
    /// Not JSON, or cut short.
    InvalidJson = "invalid_json",
    /// An escape `\ud800`–`\udfff` without its other half: no text has it.
    LoneSurrogate = "lone_surrogate",
    /// Nested deeper than allowed.
    TooDeep = "too_deep",
    /// A name occurs twice in one object.
    DuplicateKey = "duplicate_key",
    /// More bytes than one event may have.
    TooLarge = "too_large",
    /// No event type of this name is declared.
    UnknownType = "unknown_type",
    /// The event type belongs to another topic than the one addressed.
    WrongTopic = "wrong_topic",
    /// A required field is absent or null.
    MissingField = "missing_field",
    /// Another JSON type than declared.
    WrongType = "wrong_type",
    /// A number that the declared type cannot hold.
    OutOfRange = "out_of_range",
    /// More characters, items or bytes than allowed.
    TooLong = "too_long",
    /// Fewer characters or items than asked for.
    TooShort = "too_short",
    /// A number below `min`.
    TooSmall = "too_small",
    /// A number above `max`.
    TooBig = "too_big",
    /// Not one of the values allowed.
    NotAllowed = "not_allowed",
    /// Not an RFC 3339 time.
    BadTimestamp = "bad_timestamp",
    /// The event time lies too far after its arrival (R3).
    FarFuture = "far_future",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thing wrong with an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The field (`payload.content`, `payload.mentions[2]`); empty where the whole event is at fault.
    pub path: String,
    /// The rule.
    pub code: Code,
    /// For people: what, where, what to do. Never holds the client's text beyond names.
    pub message: String,
}

impl Fault {
    /// A fault at `path`.
    pub fn new(path: impl Into<String>, code: Code, message: impl Into<String>) -> Fault {
        Fault { path: path.into(), code, message: message.into() }
    }
}

/// A client's name, bounded for use in a message or a path.
pub(super) fn shown(name: &str) -> String {
    const MOST: usize = 80;
    if name.chars().nth(MOST).is_none() {
        return name.to_owned();
    }
    let mut short: String = name.chars().take(MOST).collect();
    short.push('…');
    short
}
