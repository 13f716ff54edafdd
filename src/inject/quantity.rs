//! Amounts of CPU time and memory as Kubernetes writes them.

/// The value of a quantity such as `100m`, `2`, `1.5Gi` or `1e3`; `None` if it is not one, or is negative.
pub(super) fn parse(text: &str) -> Option<f64> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    if !number.bytes().any(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: f64 = number.parse().ok()?;
    let factor = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        exponent => {
            let power = exponent.strip_prefix(['e', 'E'])?;
            let digits = power.strip_prefix(['+', '-']).unwrap_or(power);
            let is_short = (1..=2).contains(&digits.len());
            let is_number = is_short && digits.bytes().all(|byte| byte.is_ascii_digit());
            10f64.powi(power.parse().ok().filter(|_| is_number)?)
        }
    };
    Some(number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, value) in [
            ("2", 2.0),
            ("100m", 0.1),
            ("1.5Gi", 1_610_612_736.0),
            ("128Mi", 134_217_728.0),
            (".5", 0.5),
            ("5.", 5.0),
            ("1e3", 1000.0),
            ("1E", 1e18),
            ("12E-1", 1.2),
            ("+1k", 1000.0),
        ] {
            let found = parse(text).unwrap_or_else(|| panic!("{text}"));
            assert!((found - value).abs() <= value * 1e-9, "{text}: {found}");
        }
        for text in
            ["", "m", "-1", "1 Gi", "1gi", "1K", "1e", "1e+", "1.2.3", "ten", "0x1", "1e999"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
