//! Numbers: what a column holds, and whether it gives back the text (R11).

use std::fmt::Write;

/// A number of a column; `faithful`: printing it gives back the text it was read from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Read<T> {
    pub(super) value: T,
    pub(super) faithful: bool,
}

/// A JSON number as i64: whole numbers, also when written `1e3` or `5.0`. None where it has a
/// fraction or does not fit.
pub(super) fn int(text: &str) -> Option<Read<i64>> {
    if let Ok(value) = text.parse::<i64>() {
        return Some(Read { value, faithful: text != "-0" });
    }
    let value = whole(text)?;
    Some(Read { value, faithful: false })
}

/// The whole number that a decimal with fraction or exponent stands for.
fn whole(text: &str) -> Option<i64> {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (text.get(..at)?, text.get(at + 1..)?.parse::<i32>().ok()?),
        None if text.contains('.') => (text, 0),
        None => return None,
    };
    let (digits, negative) = mantissa.strip_prefix('-').map_or((mantissa, false), |rest| (rest, true));
    let (before, after) = digits.split_once('.').unwrap_or((digits, ""));
    let point = i64::try_from(before.len()).ok()?.checked_add(i64::from(exponent))?;
    let all = [before, after].concat();
    let significant = all.trim_end_matches('0').len();
    if all.trim_start_matches('0').is_empty() {
        return Some(0);
    }
    // Digits beyond the point make a fraction; more than 19 before it never fit.
    let leading = all.len() - all.trim_start_matches('0').len();
    let point = usize::try_from(point).ok()?;
    if significant > point || point.saturating_sub(leading) > 19 {
        return None;
    }
    let mut value: i128 = 0;
    for index in leading..point {
        let digit = all.as_bytes().get(index).map_or(0, |b| i128::from(b - b'0'));
        value = value * 10 + digit;
    }
    i64::try_from(if negative { -value } else { value }).ok()
}

/// A JSON number as f64; none where it is beyond the largest.
pub(super) fn float(text: &str) -> Option<Read<f64>> {
    let value: f64 = text.parse().ok()?;
    if !value.is_finite() {
        return None;
    }
    let mut printed = Short::default();
    let faithful = write!(printed, "{value:?}").is_ok() && trimmed(printed.text()) == text;
    Some(Read { value, faithful })
}

/// Appends a float as JSON: the shortest text that reads back as the same number, whole numbers
/// without a fraction. JSON has no NaN and no infinity: they become `null`.
pub(super) fn write_float(value: f64, out: &mut String) {
    let mut printed = Short::default();
    if value.is_finite() && write!(printed, "{value:?}").is_ok() {
        out.push_str(trimmed(printed.text()));
    } else {
        out.push_str("null");
    }
}

/// Appends an integer.
pub(super) fn write_int(value: i64, out: &mut String) {
    let mut printed = Short::default();
    if write!(printed, "{value}").is_ok() {
        out.push_str(printed.text());
    }
}

fn trimmed(printed: &str) -> &str {
    printed.strip_suffix(".0").unwrap_or(printed)
}

/// Room for a printed number.
#[derive(Default)]
struct Short {
    bytes: [u8; 32],
    length: usize,
}

impl Short {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

impl Write for Short {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.length + text.len();
        self.bytes.get_mut(self.length..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r11_whole_numbers_are_read_in_any_form_and_unfaithful_text_is_known() {
        let read = |text| int(text).map(|r| (r.value, r.faithful));
        assert_eq!(read("12"), Some((12, true)));
        assert_eq!(read("-9223372036854775808"), Some((i64::MIN, true)));
        assert_eq!(read("9223372036854775808"), None);
        assert_eq!(read("-0"), Some((0, false)));
        assert_eq!(read("1e3"), Some((1000, false)));
        assert_eq!(read("12.50e1"), Some((125, false)));
        assert_eq!(read("5.0"), Some((5, false)));
        assert_eq!(read("0.5"), None);
        assert_eq!(read("1e-1"), None);
        assert_eq!(read("0e999999999"), Some((0, false)));
        assert_eq!(read("1e999999999"), None);
        assert_eq!(read("1e99999999999"), None);
        assert_eq!(read("9.223372036854775807e18"), Some((i64::MAX, false)));
        assert_eq!(read("0.001e3"), Some((1, false)));
    }

    #[test]
    fn r11_floats_know_whether_they_give_back_their_text() {
        let read = |text| float(text).map(|r| (r.value, r.faithful));
        assert_eq!(read("0.1"), Some((0.1, true)));
        assert_eq!(read("5"), Some((5.0, true)));
        assert_eq!(read("5.0"), Some((5.0, false)));
        assert_eq!(read("0.10"), Some((0.1, false)));
        assert_eq!(read("0.1000000000000000055511151231257827"), Some((0.1, false)));
        assert_eq!(read("1e400"), None);
        let mut out = String::new();
        write_float(-0.0, &mut out);
        write_float(f64::NAN, &mut out);
        write_float(1.0e300, &mut out);
        write_int(i64::MIN, &mut out);
        assert_eq!(out, "-0null1e300-9223372036854775808");
    }
}
