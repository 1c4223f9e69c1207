//! A strict scanner over JSON text: it yields spans, builds no values, goes no deeper than allowed,
//! and refuses an object that has a name twice.
//!
//! Strings are crossed eight bytes at a time. Recursion is bounded by the depth limit, so input
//! nested ten thousand deep costs as much as the limit allows and no stack.

use super::fault::{Code, Fault, shown};
use super::text::unescaped;
use std::borrow::Cow;
use std::collections::HashSet;

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Number,
    /// `escaped`: holds at least one backslash.
    Text {
        escaped: bool,
    },
    Array,
    Object,
}

/// Where a value stands in the text: of a string what is between its quotes, else the whole token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Value {
    /// The token's text; of a string what is between the quotes, escapes as they are.
    pub(super) fn raw<'a>(&self, text: &'a str) -> &'a str {
        text.get(self.start..self.end).unwrap_or_default()
    }

    /// A string's text.
    pub(super) fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let raw = self.raw(text);
        if self.kind == (Kind::Text { escaped: true }) { Cow::Owned(unescaped(raw)) } else { Cow::Borrowed(raw) }
    }

    /// A string's text equals `other`.
    pub(super) fn is(&self, text: &str, other: &str) -> bool {
        match self.kind {
            Kind::Text { escaped: false } => self.raw(text) == other,
            Kind::Text { escaped: true } => unescaped(self.raw(text)) == other,
            _ => false,
        }
    }
}

/// A name and its value in an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) name: Value,
    pub(super) value: Value,
}

/// Why the text is refused.
#[derive(Debug)]
pub(super) struct Trouble {
    code: Code,
    message: String,
    /// Names from the outside in, gathered on the way out, innermost first.
    path: Vec<String>,
}

pub(super) type Scan<T> = Result<T, Box<Trouble>>;

impl Trouble {
    #[cold]
    fn new(code: Code, message: String) -> Box<Trouble> {
        Box::new(Trouble { code, message, path: Vec::new() })
    }

    /// As a fault, with the path from the root.
    pub(super) fn into_fault(self) -> Fault {
        let mut path = String::new();
        for part in self.path.iter().rev() {
            if !path.is_empty() && !part.starts_with('[') {
                path.push('.');
            }
            path.push_str(part);
        }
        // A syntax error names its byte; a path of names half read would only confuse.
        if self.code == Code::InvalidJson {
            path.clear();
        }
        Fault::new(path, self.code, self.message)
    }
}

/// Stands at a byte of the text.
pub(super) struct Scanner<'a> {
    pub(super) text: &'a str,
    at: usize,
    max_depth: usize,
    /// Names of the objects being crossed, a stack.
    names: &'a mut Vec<Value>,
}

impl<'a> Scanner<'a> {
    /// At the start of `text`. `names` is scratch space, to be kept between events.
    pub(super) fn new(text: &'a str, max_depth: usize, names: &'a mut Vec<Value>) -> Scanner<'a> {
        names.clear();
        Scanner { text, at: 0, max_depth, names }
    }

    /// Where it stands.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    #[inline]
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next byte that is not white space; it stays unread.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.byte() {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                other => return other,
            }
        }
    }

    #[cold]
    fn wrong<T>(&self, wanted: &str) -> Scan<T> {
        let message = match self.byte() {
            None => format!("the JSON ends at byte {} where {wanted} should follow", self.at),
            Some(_) => format!("not JSON: {wanted} should stand at byte {}", self.at),
        };
        Err(Trouble::new(Code::InvalidJson, message))
    }

    /// Reads `byte`.
    #[inline]
    fn expect(&mut self, byte: u8, wanted: &str) -> Scan<()> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        self.wrong(wanted)
    }

    /// Nothing but white space is left.
    pub(super) fn end(&mut self) -> Scan<()> {
        if self.peek().is_none() { Ok(()) } else { self.wrong("the end of the event") }
    }

    /// Any value; `depth` is that of the value itself, 1 at the root.
    pub(super) fn value(&mut self, depth: usize) -> Scan<Value> {
        let first = self.peek();
        let start = self.at;
        match first {
            Some(b'"') => self.string(),
            Some(b'{') => {
                let base = self.names.len();
                self.object(depth, |scanner, name| {
                    scanner.names.push(name);
                    scanner.value(depth + 1).map(drop)
                })?;
                let unique = no_name_twice(self.text, self.names.get(base..).unwrap_or_default().iter());
                self.names.truncate(base);
                unique?;
                Ok(Value { kind: Kind::Object, start, end: self.at })
            }
            Some(b'[') => {
                self.array(depth, |scanner, _| scanner.value(depth + 1).map(drop))?;
                Ok(Value { kind: Kind::Array, start, end: self.at })
            }
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Kind::Bool(true)),
            Some(b'f') => self.word("false", Kind::Bool(false)),
            Some(b'n') => self.word("null", Kind::Null),
            _ => self.wrong("a value"),
        }
    }

    /// An object: `member` is called after each name and must read its value.
    pub(super) fn object(&mut self, depth: usize, mut member: impl FnMut(&mut Scanner<'a>, Value) -> Scan<()>) -> Scan<()> {
        self.expect(b'{', "an object")?;
        self.deep(depth)?;
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            if self.peek() != Some(b'"') {
                return self.wrong("a name in quotes");
            }
            let name = self.string()?;
            self.expect(b':', "a colon")?;
            if let Err(mut trouble) = member(self, name) {
                trouble.path.push(shown(&name.text(self.text)));
                return Err(trouble);
            }
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return self.wrong("a comma or the end of the object"),
            }
        }
    }

    /// An object's members, into `members`; no name may occur twice.
    pub(super) fn members(&mut self, depth: usize, members: &mut Vec<Member>) -> Scan<Value> {
        self.peek();
        let start = self.at;
        let base = members.len();
        self.object(depth, |scanner, name| {
            let value = scanner.value(depth + 1)?;
            members.push(Member { name, value });
            Ok(())
        })?;
        no_name_twice(self.text, members.get(base..).unwrap_or_default().iter().map(|m| &m.name))?;
        Ok(Value { kind: Kind::Object, start, end: self.at })
    }

    /// An event: the members of its envelope, and those of its `payload` where that is an object.
    pub(super) fn event_object(&mut self, envelope: &mut Vec<Member>, payload: &mut Vec<Member>) -> Scan<()> {
        self.object(1, |scanner, name| {
            let inner = scanner.peek() == Some(b'{') && name.is(scanner.text, "payload");
            let value = if inner { scanner.members(2, payload)? } else { scanner.value(2)? };
            envelope.push(Member { name, value });
            Ok(())
        })?;
        no_name_twice(self.text, envelope.iter().map(|m| &m.name))
    }

    /// An array: `item` is called before each item, with its index, and must read it.
    pub(super) fn array(&mut self, depth: usize, mut item: impl FnMut(&mut Scanner<'a>, usize) -> Scan<()>) -> Scan<()> {
        self.expect(b'[', "an array")?;
        self.deep(depth)?;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        for index in 0.. {
            if let Err(mut trouble) = item(self, index) {
                trouble.path.push(format!("[{index}]"));
                return Err(trouble);
            }
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    break;
                }
                _ => return self.wrong("a comma or the end of the array"),
            }
        }
        Ok(())
    }

    #[inline]
    fn deep(&self, depth: usize) -> Scan<()> {
        if depth <= self.max_depth {
            return Ok(());
        }
        Err(Trouble::new(Code::TooDeep, format!("nested deeper than {} levels, flatten the event", self.max_depth)))
    }

    fn word(&mut self, word: &str, kind: Kind) -> Scan<Value> {
        let (start, end) = (self.at, self.at + word.len());
        if self.text.as_bytes().get(start..end) != Some(word.as_bytes()) {
            return self.wrong("a value");
        }
        self.at = end;
        Ok(Value { kind, start, end })
    }

    fn digits(&mut self) -> Scan<()> {
        let start = self.at;
        while self.byte().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start { self.wrong("a digit") } else { Ok(()) }
    }

    fn number(&mut self) -> Scan<Value> {
        let start = self.at;
        if self.byte() == Some(b'-') {
            self.at += 1;
        }
        if self.byte() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.byte() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.byte() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(Value { kind: Kind::Number, start, end: self.at })
    }

    /// A string; stands at its opening quote.
    #[inline]
    fn string(&mut self) -> Scan<Value> {
        self.at += 1;
        let start = self.at;
        let mut escaped = false;
        loop {
            self.at = plain_end(self.text.as_bytes(), self.at);
            match self.byte() {
                Some(b'"') => {
                    let end = self.at;
                    self.at += 1;
                    return Ok(Value { kind: Kind::Text { escaped }, start, end });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(_) => return self.wrong("an escape in place of the control character that"),
                None => return self.wrong("the rest of a string"),
            }
        }
    }

    /// An escape; stands at its backslash.
    fn escape(&mut self) -> Scan<()> {
        self.at += 1;
        match self.byte() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => {
                self.at += 1;
                let first = self.four_hex()?;
                let follows = |s: &Scanner<'a>| s.text.as_bytes().get(s.at..s.at + 2) == Some(b"\\u".as_slice());
                match first {
                    0xd800..=0xdbff if follows(self) => {
                        self.at += 2;
                        let second = self.four_hex()?;
                        if (0xdc00..=0xdfff).contains(&second) { Ok(()) } else { self.lone() }
                    }
                    0xd800..=0xdfff => self.lone(),
                    _ => Ok(()),
                }
            }
            _ => self.wrong("an escape that JSON has"),
        }
    }

    #[cold]
    fn lone(&self) -> Scan<()> {
        let message = format!("half a surrogate pair before byte {}: no text has it, send whole characters", self.at);
        Err(Trouble::new(Code::LoneSurrogate, message))
    }

    fn four_hex(&mut self) -> Scan<u32> {
        let mut code = 0;
        for _ in 0..4 {
            match self.byte().and_then(|b| char::from(b).to_digit(16)) {
                Some(digit) => code = code * 16 + digit,
                None => return self.wrong("a hexadecimal digit"),
            }
            self.at += 1;
        }
        Ok(code)
    }
}

/// Refuses names that occur twice. Few names are compared in pairs, many through a hash set.
fn no_name_twice<'v>(text: &str, names: impl ExactSizeIterator<Item = &'v Value> + Clone) -> Scan<()> {
    let twice = |name: &Value| -> Scan<()> {
        let mut trouble = Trouble::new(Code::DuplicateKey, "this name occurs twice in its object, send it once".into());
        trouble.path.push(shown(&name.text(text)));
        Err(trouble)
    };
    let plain = names.clone().all(|n| n.kind == Kind::Text { escaped: false });
    if plain && names.len() <= 24 {
        for (i, name) in names.clone().enumerate() {
            let bytes = name.raw(text).as_bytes();
            if names.clone().take(i).any(|other| other.end - other.start == bytes.len() && other.raw(text).as_bytes() == bytes) {
                return twice(name);
            }
        }
        return Ok(());
    }
    let mut seen = HashSet::with_capacity(names.len());
    for name in names {
        if !seen.insert(name.text(text)) {
            return twice(name);
        }
    }
    Ok(())
}

/// The first byte from `at` that ends a plain run: a quote, a backslash or a control character.
#[inline]
pub(super) fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = 0x8080_8080_8080_8080;
    let has_zero = |word: u64| word.wrapping_sub(ONES) & !word & TOPS;
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*chunk);
        // A borrow can only mark a byte above a marked one: the lowest mark is right.
        let control = word.wrapping_sub(ONES * 0x20) & !word & TOPS;
        let marks = has_zero(word ^ (ONES * 0x22)) | has_zero(word ^ (ONES * 0x5c)) | control;
        if marks != 0 {
            return at + (marks.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while let Some(&byte) = bytes.get(at) {
        if byte == b'"' || byte == b'\\' || byte < 0x20 {
            break;
        }
        at += 1;
    }
    at
}
