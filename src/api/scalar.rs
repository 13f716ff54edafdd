//! Scalars as Istio's JSON spells them.

use std::fmt;
use std::time;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A non-negative duration like `1h30m`, `2.5s`, `10ms`, `5us` or `7ns` (Go's format, which includes Protobuf's JSON
/// format `2.5s`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Duration(pub time::Duration);

/// In nanoseconds. Source: `kMaxInt64Nanoseconds` in Envoy's `source/common/protobuf/utility.cc`, rounded down to
/// seconds.
const LONGEST: u64 = 9_223_372_035_999_999_999;

impl Duration {
    /// Parses a duration.
    ///
    /// # Errors
    /// `text` is not a duration, is negative, or exceeds Envoy's maximum of 292 years.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix('+').unwrap_or(text);
        if rest.starts_with('-') {
            return Err(format!("`{text}` is negative; expected a duration of 0s or more"));
        }
        if rest == "0" {
            return Ok(Self::default());
        }
        let nanos = nanoseconds(rest).filter(|nanos| *nanos <= LONGEST).ok_or_else(|| {
            format!("`{text}` is not a duration; expected a form like 5s, 250ms or 1h30m")
        })?;
        Ok(Self(time::Duration::from_nanos(nanos)))
    }

    /// Whether it is zero.
    pub(crate) fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

/// The sum of numbers with units, such as `1h30m`. `None` if it is malformed or too large.
fn nanoseconds(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total: u128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !is_part_of_number(c))?);
        let (unit, tail) = tail.split_at(tail.find(is_part_of_number).unwrap_or(tail.len()));
        let unit: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || number.len() > 32 {
            return None;
        }
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = whole.checked_mul(unit).and_then(|nanos| total.checked_add(nanos))?;
        let mut scale = unit;
        for digit in fraction.bytes() {
            scale /= 10;
            total += u128::from(digit - b'0') * scale;
        }
        rest = tail;
    }
    u64::try_from(total).ok()
}

fn is_part_of_number(c: char) -> bool {
    c.is_ascii_digit() || c == '.'
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0.as_secs_f64())
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Duration;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration like 5s, 250ms or 1h30m")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
                Duration::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_both_forms_are_read() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("5s", 5_000_000_000),
            ("2.5s", 2_500_000_000),
            (".5s", 500_000_000),
            ("250ms", 250_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1m1s1ms1us1ns", 61_001_001_001),
            ("1.000000001s", 1_000_000_001),
        ] {
            assert_eq!(
                Duration::parse(text),
                Ok(Duration(time::Duration::from_nanos(nanos))),
                "{text}"
            );
        }
    }

    #[test]
    fn invalid_durations_are_rejected() {
        for text in [
            "",
            "s",
            "5",
            "5x",
            "-5s",
            "5s5",
            "1.2.3s",
            ".s",
            "99999999999999999999999999999999999h",
            "300y",
            "9999999h",
        ] {
            assert!(Duration::parse(text).is_err(), "{text}");
        }
    }
}
