//! RFC 3339 times to microseconds and back.

/// Microseconds since 1970-01-01T00:00:00Z, and whether [`write_time`] gives back the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadTime {
    /// µs since the epoch; finer digits are cut off.
    pub micros: i64,
    /// The text is what [`write_time`] writes.
    pub faithful: bool,
}

const SECOND: i64 = 1_000_000;

/// Reads an RFC 3339 time: `2026-01-01T12:00:00Z`, with any number of fraction digits, with an
/// offset such as `+02:00`; a leap second is read as the second after it. None when it is not one.
pub fn read_time(text: &str) -> Option<ReadTime> {
    let bytes = text.as_bytes();
    if bytes.len() < 20 {
        return None;
    }
    let punctuation = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if punctuation.iter().any(|&(at, byte)| bytes[at] != byte) || !matches!(bytes[10], b'T' | b't') {
        return None;
    }
    let year = two(bytes, 0)? * 100 + two(bytes, 2)?;
    let (month, day) = (two(bytes, 5)?, two(bytes, 8)?);
    let (hour, minute, second) = (two(bytes, 11)?, two(bytes, 14)?, two(bytes, 17)?);
    let leap_second = second == 60 && minute == 59;
    if !(1..=12).contains(&month)
        || day < 1
        || day > days_in(year, month)
        || hour > 23
        || minute > 59
        || (second > 59 && !leap_second)
    {
        return None;
    }
    let (mut at, mut micros, mut digits) = (19, 0, 0);
    let mut zeros_at_end = 0;
    if bytes[19] == b'.' {
        at = 20;
        while let Some(digit) = bytes.get(at).filter(|b| b.is_ascii_digit()) {
            if digits < 6 {
                micros = micros * 10 + i64::from(digit - b'0');
            }
            zeros_at_end = if *digit == b'0' { zeros_at_end + 1 } else { 0 };
            digits += 1;
            at += 1;
        }
        if digits == 0 {
            return None;
        }
        for _ in digits..6 {
            micros *= 10;
        }
    }
    let zone = bytes.get(at..)?;
    let (offset, zulu) = match zone {
        [b'Z'] => (0, true),
        [b'z'] => (0, false),
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let (hours, minutes) = (two(zone, 1)?, two(zone, 4)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let seconds = hours * 3600 + minutes * 60;
            (if *sign == b'-' { -seconds } else { seconds }, false)
        }
        _ => return None,
    };
    let days = days_from_civil(year, month, day);
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset;
    // Written are no, three or six digits: the fewest that hold the microseconds.
    let shortest = match digits {
        0 => true,
        3 => zeros_at_end < 3,
        6 => zeros_at_end < 3,
        _ => false,
    };
    let faithful = zulu && bytes[10] == b'T' && !leap_second && shortest;
    Some(ReadTime { micros: seconds * SECOND + micros, faithful })
}

/// Appends microseconds since the epoch as RFC 3339 in UTC, with no, three or six fraction digits:
/// the fewest that hold it. Years beyond 0000–9999 are clamped to the nearest time that has a text.
pub fn write_time(micros: i64, out: &mut String) {
    const FIRST: i64 = -62_167_219_200 * SECOND;
    const LAST: i64 = 253_402_300_800 * SECOND - 1;
    let micros = micros.clamp(FIRST, LAST);
    let (seconds, fraction) = (micros.div_euclid(SECOND), micros.rem_euclid(SECOND));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil_from_days(days);
    let mut push = |value: i64, width: u32| {
        for place in (0..width).rev() {
            let digit = (value / 10_i64.pow(place)) % 10;
            out.push(char::from(b'0' + u8::try_from(digit).unwrap_or(0)));
        }
    };
    push(year, 4);
    let mut parts = String::new();
    for (sign, value) in [('-', month), ('-', day), ('T', second / 3600), (':', second / 60 % 60), (':', second % 60)] {
        parts.push(sign);
        parts.push(char::from(b'0' + u8::try_from(value / 10).unwrap_or(0)));
        parts.push(char::from(b'0' + u8::try_from(value % 10).unwrap_or(0)));
    }
    out.push_str(&parts);
    if fraction != 0 {
        let (value, width) = if fraction % 1000 == 0 { (fraction / 1000, 3) } else { (fraction, 6) };
        out.push('.');
        for place in (0..width).rev() {
            let digit = (value / 10_i64.pow(place)) % 10;
            out.push(char::from(b'0' + u8::try_from(digit).unwrap_or(0)));
        }
    }
    out.push('Z');
}

fn two(bytes: &[u8], at: usize) -> Option<i64> {
    let (tens, ones) = (bytes.get(at)?, bytes.get(at + 1)?);
    (tens.is_ascii_digit() && ones.is_ascii_digit()).then(|| i64::from(tens - b'0') * 10 + i64::from(ones - b'0'))
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar. Years are counted from
/// March, so that the leap day comes last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days - era * 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Option<(i64, bool)> {
        read_time(text).map(|t| (t.micros, t.faithful))
    }

    #[test]
    fn r11_times_are_read_to_the_microsecond_and_unfaithful_text_is_known() {
        assert_eq!(read("1970-01-01T00:00:00Z"), Some((0, true)));
        assert_eq!(read("2020-06-09T21:18:32Z"), Some((1_591_737_512_000_000, true)));
        assert_eq!(read("2020-06-09T23:18:32+02:00"), Some((1_591_737_512_000_000, false)));
        assert_eq!(read("2020-06-09T21:18:32.120Z"), Some((1_591_737_512_120_000, true)));
        assert_eq!(read("2020-06-09T21:18:32.000Z"), Some((1_591_737_512_000_000, false)));
        assert_eq!(read("2020-06-09T21:18:32.1234567Z"), Some((1_591_737_512_123_456, false)));
        assert_eq!(read("2016-12-31T23:59:60Z"), Some((1_483_228_800_000_000, false)));
        assert_eq!(read("2020-02-29T00:00:00z"), Some((1_582_934_400_000_000, false)));
        for bad in [
            "",
            "2020-06-09",
            "2020-06-09 21:18:32Z",
            "2021-02-29T00:00:00Z",
            "2020-06-09T24:00:00Z",
            "2020-06-09T21:18:32",
            "2020-06-09T21:18:32.Z",
            "2020-06-09T21:18:32+0200",
            "2020-13-09T21:18:32Z",
            "2020-06-09T21:18:32ZZ",
            "20é0-06-09T21:18:32Z",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_faithfully(micros in -62_167_219_200_000_000_i64..253_402_300_799_999_999) {
            let mut text = String::new();
            write_time(micros, &mut text);
            prop_assert_eq!(read(&text), Some((micros, true)), "{}", text);
            let chrono = chrono::DateTime::parse_from_rfc3339(&text).unwrap();
            prop_assert_eq!(chrono.timestamp_micros(), micros);
        }
    }
}
