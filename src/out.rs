//! Standard output and standard error: results on the one, everything else on the other.
//!
//! Colours only where a terminal looks on and `NO_COLOR` is not set. A reader that goes away
//! (`quikflow generate | head`) ends the command without a complaint.

use crate::exit::Failure;
use std::io::{IsTerminal, Write};

/// Writes bytes to standard output.
///
/// # Errors
/// When it cannot be written; a closed pipe ends the process with 0.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(|e| Failure::failed(format!("standard output: {e}"))),
    }
}

/// Writes a line to standard output.
///
/// # Errors
/// As [`bytes`].
pub(crate) fn line(text: impl AsRef<str>) -> Result<(), Failure> {
    let mut whole = text.as_ref().as_bytes().to_vec();
    if whole.last() != Some(&b'\n') {
        whole.push(b'\n');
    }
    bytes(&whole)
}

/// Writes a line to standard error; where that is closed nobody wants it.
pub(crate) fn note(text: impl AsRef<str>) {
    let mut stderr = std::io::stderr().lock();
    writeln!(stderr, "{}", text.as_ref()).unwrap_or_default();
}

/// Writes an error to standard error.
pub(crate) fn error(text: impl AsRef<str>) {
    let name = if colour_on_stderr() { "\u{1b}[1;31merror\u{1b}[0m" } else { "error" };
    note(format!("{name}: {}", text.as_ref()));
}

/// A diagnostic or error text with its first word coloured where a terminal looks on.
pub(crate) fn diagnostic(text: &str) {
    if !colour_on_stderr() {
        return note(text);
    }
    let shown = match text.split_once(':') {
        Some(("error", rest)) => format!("\u{1b}[1;31merror\u{1b}[0m:{rest}"),
        Some(("warning", rest)) => format!("\u{1b}[1;33mwarning\u{1b}[0m:{rest}"),
        _ => text.to_owned(),
    };
    note(shown);
}

/// Whether standard output may be coloured.
pub(crate) fn colour_on_stdout() -> bool {
    may_colour(std::io::stdout().is_terminal())
}

/// Whether standard error may be coloured.
pub(crate) fn colour_on_stderr() -> bool {
    may_colour(std::io::stderr().is_terminal())
}

/// Whether standard error is a terminal: progress bars only there.
pub(crate) fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

fn may_colour(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// Text in bold where standard output may be coloured.
pub(crate) fn bold(text: &str) -> String {
    if colour_on_stdout() { format!("\u{1b}[1m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// 1234567 as `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_grouped() {
        assert_eq!(super::thousands(0), "0");
        assert_eq!(super::thousands(999), "999");
        assert_eq!(super::thousands(1_234_567), "1,234,567");
    }
}
