//! Sizes and ages as people write them: `10MiB`, `30d`, `500ms`.

use std::time::Duration;

/// A duration such as `500ms`, `30s`, `1m`, `2h`, `30d`.
///
/// # Errors
/// A message that names what is allowed.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 7 * 86_400_000,
        _ => return Err(format!("`{text}` is not a duration: write a number and ms, s, m, h, d or w, such as 30s")),
    };
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is not a duration: it starts with no whole number"))?;
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(|| format!("`{text}` is too long a duration"))
}

/// A size in bytes such as `512B`, `64KiB`, `10MiB`, `2GiB` (also `kB`, `MB`, `GB`).
///
/// # Errors
/// A message that names what is allowed.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let bytes: u64 = match unit {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(format!("`{text}` is not a size: write a number and B, KiB, MiB, GiB or TiB, such as 10MiB")),
    };
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is not a size: it starts with no whole number"))?;
    number.checked_mul(bytes).ok_or_else(|| format!("`{text}` is too large a size"))
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    (number, unit.trim())
}

/// `90061000 ms` as `1d1h1m1s`; for explain and errors.
pub fn show_duration(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    let mut shown = String::new();
    for (unit, millis) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if rest >= millis {
            shown.push_str(&format!("{}{unit}", rest / millis));
            rest %= millis;
        }
    }
    if shown.is_empty() { "0s".to_owned() } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_and_shown() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("30d"), Ok(Duration::from_secs(30 * 86_400)));
        assert!(parse_duration("30 parsecs").is_err_and(|e| e.contains("such as 30s")));
        assert_eq!(parse_size("10MiB"), Ok(10 << 20));
        assert!(parse_size("MiB").is_err());
        assert_eq!(show_duration(Duration::from_secs(90_061)), "1d1h1m1s");
        assert_eq!(show_duration(Duration::ZERO), "0s");
    }
}
