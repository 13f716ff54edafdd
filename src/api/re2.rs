//! Whether RE2, as Envoy uses it, takes an expression. Reads the expression once from left to right; builds nothing.
//!
//! Source: RE2's syntax page; each rule was tried with Envoy 1.40, and the tests hold what it said.

/// The largest number of repetitions, nested ones multiplied.
const MAX_REPEAT: u64 = 1000;
/// A bound in braces that is longer is read as plain text.
const MAX_BOUND_DIGITS: usize = 8;

/// Whether Envoy's RE2 takes `expression`.
///
/// # Errors
/// What it does not take, and what would be right.
pub fn check(expression: &str) -> Result<(), String> {
    if expression.is_empty() {
        return Err("is empty; expected an RE2 expression".to_owned());
    }
    Reader { rest: expression, groups: vec![Group::default()], repeated: false }.read()
}

/// What is open at one place: the whole expression, or a group.
#[derive(Default)]
struct Group {
    /// How often the item before the place may be repeated already; `None` where there is no item.
    item: Option<u64>,
    /// The most that any item before that may be.
    most: u64,
}

struct Reader<'a> {
    rest: &'a str,
    groups: Vec<Group>,
    /// The last thing read was a repetition.
    repeated: bool,
}

impl Reader<'_> {
    fn read(mut self) -> Result<(), String> {
        while let Some(c) = self.rest.chars().next() {
            let was_repeated = std::mem::take(&mut self.repeated);
            match c {
                '(' => self.open()?,
                ')' => self.close()?,
                '|' => {
                    self.skip(1);
                    self.end_item();
                }
                '[' => self.class()?,
                '\\' => self.escape()?,
                '*' | '+' | '?' => {
                    let operator = c.to_string();
                    self.skip(1);
                    self.repeat(&operator, 1, was_repeated)?;
                }
                '{' => match bounds(self.rest) {
                    Some((length, least, most)) => {
                        let operator = self.rest.get(..length).unwrap_or_default().to_owned();
                        let backwards = most.is_some_and(|most| most < least);
                        if backwards || least > MAX_REPEAT || most.is_some_and(|most| most > MAX_REPEAT) {
                            return Err(format!("repeats by `{operator}`; expected at most {MAX_REPEAT}, in order"));
                        }
                        self.skip(length);
                        self.repeat(&operator, most.unwrap_or(least).max(1), was_repeated)?;
                    }
                    None => self.literal(1),
                },
                other => self.literal(other.len_utf8()),
            }
        }
        if self.groups.len() > 1 {
            return Err("has a `(` without `)`".to_owned());
        }
        Ok(())
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default();
    }

    fn end_item(&mut self) {
        if let Some(group) = self.groups.last_mut() {
            group.most = group.most.max(group.item.take().unwrap_or(1));
        }
    }

    fn item(&mut self, repeats: u64) {
        self.end_item();
        if let Some(group) = self.groups.last_mut() {
            group.item = Some(repeats);
        }
    }

    fn literal(&mut self, bytes: usize) {
        self.skip(bytes);
        self.item(1);
    }

    fn repeat(&mut self, operator: &str, times: u64, was_repeated: bool) -> Result<(), String> {
        let Some(item) = self.groups.last_mut().and_then(|group| group.item.as_mut()) else {
            return Err(format!("has nothing for `{operator}` to repeat"));
        };
        if was_repeated {
            return Err(format!(
                "repeats a repetition with `{operator}`; RE2 has no possessive repetition, and a group is needed \
                 around the inner one otherwise"
            ));
        }
        *item = item.saturating_mul(times);
        if times > 1 && *item > MAX_REPEAT {
            return Err(format!(
                "repeats {item} times with `{operator}` and what is in it; expected at most {MAX_REPEAT}"
            ));
        }
        if self.rest.starts_with('?') {
            self.skip(1);
        }
        self.repeated = true;
        Ok(())
    }

    fn open(&mut self) -> Result<(), String> {
        let Some(flags) = self.rest.strip_prefix("(?") else {
            self.skip(1);
            self.groups.push(Group::default());
            return Ok(());
        };
        let unknown = |what: &str| Err(format!("has `{what}`, which RE2 does not have"));
        for (form, what) in [
            ("=", "look-ahead `(?=`"),
            ("!", "negative look-ahead `(?!`"),
            ("<=", "look-behind `(?<=`"),
            ("<!", "negative look-behind `(?<!`"),
            (">", "an atomic group `(?>`"),
            ("P=", "a back-reference `(?P=`"),
            ("#", "a comment `(?#`"),
        ] {
            if flags.starts_with(form) {
                return Err(format!("has {what}, which RE2 does not have"));
            }
        }
        if let Some(named) = flags.strip_prefix("P<").or_else(|| flags.strip_prefix('<')) {
            let name = named.split('>').next().unwrap_or_default();
            let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if name.is_empty() || !plain || name.len() == named.len() {
                return Err(format!("has a group named `{name}`; expected letters, digits and `_` up to a `>`"));
            }
            let length = self.rest.len() - named.len() + name.len() + 1;
            self.skip(length);
            self.groups.push(Group::default());
            return Ok(());
        }
        let (mut negated, mut after_minus) = (false, false);
        for (at, c) in flags.char_indices() {
            match c {
                'i' | 'm' | 's' | 'U' => after_minus = false,
                '-' if !negated => (negated, after_minus) = (true, true),
                ':' | ')' if !after_minus => {
                    self.skip(2 + at + 1);
                    if c == ':' {
                        self.groups.push(Group::default());
                    }
                    return Ok(());
                }
                _ => return unknown(self.rest.get(..2 + at + c.len_utf8()).unwrap_or("(?")),
            }
        }
        Err("has a `(?` without `)`".to_owned())
    }

    fn close(&mut self) -> Result<(), String> {
        self.end_item();
        match self.groups.pop() {
            Some(group) if !self.groups.is_empty() => {
                self.skip(1);
                self.item(group.most.max(1));
                Ok(())
            }
            _ => Err("has a `)` without `(`".to_owned()),
        }
    }

    /// What follows a backslash outside of a class.
    fn escape(&mut self) -> Result<(), String> {
        if let Some(quoted) = self.rest.strip_prefix("\\Q") {
            let length = quoted.find("\\E").map_or(quoted.len(), |end| end + 2);
            self.literal(2 + length);
            return Ok(());
        }
        let length = match self.rest.as_bytes().get(1) {
            Some(b'b' | b'B' | b'A' | b'z' | b'C') => 2,
            _ => escape_length(self.rest)?,
        };
        self.literal(length);
        Ok(())
    }

    fn class(&mut self) -> Result<(), String> {
        let unclosed = || "has a `[` without `]`".to_owned();
        self.skip(1);
        if self.rest.starts_with('^') {
            self.skip(1);
        }
        let mut first = true;
        loop {
            if self.rest.is_empty() {
                return Err(unclosed());
            }
            if self.rest.starts_with(']') && !first {
                self.literal(1);
                return Ok(());
            }
            first = false;
            if let Some(end) = self.rest.strip_prefix("[:").and_then(|rest| rest.find(":]")) {
                let name = self.rest.get(2..2 + end).unwrap_or_default();
                if !POSIX.contains(&name.trim_start_matches('^')) {
                    return Err(format!("has the class `[:{name}:]`; expected one like `[:alpha:]`"));
                }
                self.skip(end + 4);
                continue;
            }
            if self.rest.starts_with('\\')
                && matches!(self.rest.as_bytes().get(1), Some(b'd' | b'D' | b's' | b'S' | b'w' | b'W' | b'p' | b'P'))
            {
                self.skip(escape_length(self.rest)?);
                continue;
            }
            let low = self.class_character()?;
            if self.rest.starts_with('-') && !self.rest.starts_with("-]") && self.rest.len() > 1 {
                self.skip(1);
                let high = self.class_character()?;
                if let (Some(low), Some(high)) = (low, high)
                    && low > high
                {
                    return Err(format!("has the range `{low}-{high}`, which is backwards"));
                }
            }
        }
    }

    /// One character of a class; `None` where it is an escape whose value does not matter here.
    fn class_character(&mut self) -> Result<Option<char>, String> {
        let Some(c) = self.rest.chars().next() else { return Err("has a `[` without `]`".to_owned()) };
        if c != '\\' {
            self.skip(c.len_utf8());
            return Ok(Some(c));
        }
        let escape = self.rest;
        if matches!(escape.as_bytes().get(1), Some(b'd' | b'D' | b's' | b'S' | b'w' | b'W' | b'p' | b'P')) {
            return Err(format!("has `{}` in a range; expected a character", escape.get(..2).unwrap_or_default()));
        }
        let length = escape_length(escape)?;
        self.skip(length);
        let character = escape.chars().nth(1).filter(|c| length == 2 && c.is_ascii_punctuation());
        Ok(character)
    }
}

const POSIX: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "word",
    "xdigit",
];

/// The general categories of Unicode that have names of their own here.
const CATEGORIES: [&str; 38] = [
    "Any", "C", "Cc", "Cf", "Co", "Cs", "L", "Ll", "Lm", "Lo", "Lt", "Lu", "M", "Mc", "Me", "Mn", "N", "Nd", "Nl",
    "No", "P", "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S", "Sc", "Sk", "Sm", "So", "Z", "Zl", "Zp", "Zs", "Yi",
];

/// How long the escape at the beginning of `text` is.
fn escape_length(text: &str) -> Result<usize, String> {
    let Some(c) = text.chars().nth(1) else { return Err("ends in a single backslash".to_owned()) };
    let rest = text.get(1 + c.len_utf8()..).unwrap_or_default();
    let digits = |allowed: fn(&u8) -> bool, most: usize| rest.bytes().take(most).take_while(allowed).count();
    match c {
        '1'..='7' if !rest.starts_with(|c: char| c.is_digit(8)) => {
            Err(format!("has the back-reference `\\{c}`, which RE2 does not have"))
        }
        '0'..='7' => Ok(2 + digits(|b| (b'0'..=b'7').contains(b), 2)),
        'x' => {
            let value = match rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
                Some((hex, _)) => Some((hex, hex.len() + 4)),
                None => rest.get(..2).map(|hex| (hex, 4)),
            };
            let value = value.filter(|(hex, _)| !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()));
            match value.and_then(|(hex, length)| Some((u32::from_str_radix(hex, 16).ok()?, length))) {
                Some((value, length)) if value <= 0x10_ffff => Ok(length),
                _ => Err("has a `\\x` without a character; expected `\\x41` or `\\x{1F600}`".to_owned()),
            }
        }
        'p' | 'P' => {
            let (name, length) = match rest.strip_prefix('{') {
                Some(rest) => match rest.split_once('}') {
                    Some((name, _)) => (name.trim_start_matches('^'), name.len() + 4),
                    None => return Err(format!("has a `\\{c}{{` without `}}`")),
                },
                None => {
                    let length = rest.chars().next().map_or(0, char::len_utf8);
                    (rest.get(..length).unwrap_or_default(), 2 + length)
                }
            };
            // Of the scripts (Greek, Han, ...) only the form of the name is looked at.
            let script = name.len() > 2
                && name.starts_with(|c: char| c.is_ascii_uppercase())
                && name.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_');
            if CATEGORIES.contains(&name) || script {
                Ok(length)
            } else {
                Err(format!("has the class `\\{c}{{{name}}}`; expected a Unicode category or script, like L or Greek"))
            }
        }
        'd' | 'D' | 's' | 'S' | 'w' | 'W' | 'n' | 'r' | 't' | 'a' | 'f' | 'v' => Ok(2),
        c if c.is_ascii() && !c.is_ascii_alphanumeric() => Ok(2),
        c => Err(format!("has the escape `\\{c}`, which RE2 does not have")),
    }
}

/// The bounds `{n}`, `{n,}` or `{n,m}` at the beginning of `text`, and how long they are. Anything else in braces is
/// plain text.
fn bounds(text: &str) -> Option<(usize, u64, Option<u64>)> {
    let (inside, _) = text.strip_prefix('{')?.split_once('}')?;
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let octal = text.len() > 1 && text.starts_with('0');
        if plain && !octal && text.len() <= MAX_BOUND_DIGITS { text.parse::<u64>().ok() } else { None }
    };
    let (least, most) = match inside.split_once(',') {
        None => (number(inside)?, Some(number(inside)?)),
        Some((least, "")) => (number(least)?, None),
        Some((least, most)) => (number(least)?, Some(number(most)?)),
    };
    Some((inside.len() + 2, least, most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_envoy_takes_is_fine() {
        for good in [
            "a",
            "a*?",
            "a{2}?",
            "a{1000}",
            "a{,5}",
            "a{",
            "a{x}",
            "/u/{id}",
            "{",
            "()",
            "(?:a)",
            "(?i)a",
            "(?)",
            "(?i:a)",
            "(?-i)a",
            "(?P<n>a)",
            "(?<n>a)",
            "\\12",
            "\\0",
            "\\x41",
            "\\x{41}",
            "\\z",
            "\\A",
            "\\C",
            "\\Qa*\\E",
            "\\Qa*",
            "\\_",
            "\\<",
            "\\/",
            "\\-",
            "[]a]",
            "[^]a]",
            "[a-]",
            "[-a]",
            "[a-b-c]",
            "[[:alpha:]]",
            "[[:alpha]",
            "[\\d]",
            "\\b",
            "\\B",
            "\\pN",
            "\\p{Greek}",
            "\\p{^Lu}",
            "\\p{Any}",
            "^*",
            "$+",
            "(|a)",
            "a||b",
            "(a*){1000}",
            "a{01}",
            "a{1,02}",
            "(?P<1>a)",
            "[[.a.]]",
            "(?s).",
            "(?U)a",
            "(?m)^a",
            "(?iii)a",
            "(?i-s:a)",
            "(?:){2}",
            "x{99999999999}",
            "[\\p{Lu}]",
            "[\\pZ-a]",
            "[\\x41-\\x42]",
            "[\\n]",
            "[^\\D]",
            "((a{10}){10}){10}",
            "^(http|https)://([a-z0-9-]+\\.)*example\\.com(:[0-9]{1,5})?/.*$",
            "é+",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_envoy_refuses_is_found() {
        for bad in [
            "",
            "*",
            "a**",
            "a*+",
            "a{2}{3}",
            "a{1001}",
            "a{2,1}",
            "{2}",
            "(",
            "(a",
            "a)",
            "(?i-)a",
            "(?x)a",
            "(?P=n)",
            "(?=a)",
            "(?!a)",
            "(?<=a)",
            "(?<!a)",
            "(?>a)",
            "a++",
            "a?+",
            "\\1",
            "\\8",
            "\\x4",
            "\\x{110000}",
            "\\x{}",
            "\\u0041",
            "\\Z",
            "\\e",
            "\\é",
            "\\",
            "[",
            "[]",
            "[^]",
            "[b-a]",
            "[[:foo:]]",
            "[a-\\d]",
            "[\\b]",
            "\\pX",
            "|*",
            "(*a)",
            "(?i)*",
            "((a{100}){100})",
            "((a{10}){10}){11}",
            "(a{2,}){501}",
            "[\\Qa\\E]",
            "(?P<n-x>a)",
            "(?P<>a)",
            "\\h",
            "\\K",
            "\\R",
            "\\X",
            "\\G",
            "(?#c)",
            "(?|a)",
            "(?&n)",
            "(?1)",
            "(?R)",
            "\\k<n>",
            "\\g1",
            "\\N",
            "\\cA",
            "(?--i)a",
            "a{1}*",
            "a{3}+",
            "a*{3}",
            "(?i){2}",
            "[a",
            "[a\\",
            "\\p{",
            "\\p{Lu",
            "(?P<é>a)",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert_eq!(check("a(?=b)").unwrap_err(), "has look-ahead `(?=`, which RE2 does not have");
    }

    proptest! {
        #[test]
        fn no_text_is_too_much(text in "[\\[\\](){}*+?|\\\\^$.:a-c0-9<>=!PpQEx,é-]{0,40}") {
            let _ = check(&text);
        }
    }
}
