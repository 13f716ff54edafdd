//! The rules for a single value, compiled from `validate.rules`, and their checks.
//!
//! Source: protoc-gen-validate's `validate.proto` and its C++ templates, which Envoy runs: patterns match the entire
//! string, a range whose upper bound is below the lower bound means "outside", and rules do not apply to an absent
//! wrapper.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use prost_reflect::{DynamicMessage, EnumDescriptor, ReflectMessage as _, Value as Field};
use regex::Regex;

use super::wire::{Malformed, Value, open_any, seconds_and_nanos};

/// The rule for a value.
#[derive(Debug)]
pub(super) enum Rule {
    Int(Range<i128>),
    Float(Range<f64>),
    Bool(bool),
    Text(Box<Text>),
    Bytes(Box<Text>),
    Enum(Enum),
    /// In nanoseconds.
    Duration(Range<i128>),
    /// In nanoseconds since 1970.
    Timestamp(Range<i128>),
    /// The type URLs of an `Any`.
    Any {
        only: Vec<String>,
        not: Vec<String>,
    },
}

/// The rules for a list.
#[derive(Debug, Default)]
pub(super) struct Count {
    pub(super) min: u64,
    pub(super) max: Option<u64>,
    pub(super) unique: bool,
    pub(super) ignore_empty: bool,
}

/// The bounds of a number, duration or timestamp.
#[derive(Debug)]
pub(super) struct Range<T> {
    exact: Option<T>,
    /// The bound, and whether it is inclusive.
    below: Option<(T, bool)>,
    above: Option<(T, bool)>,
    only: Vec<T>,
    not: Vec<T>,
    ignore_empty: bool,
}

/// The rules for a string or bytes.
#[derive(Debug, Default)]
pub(super) struct Text {
    exact: Option<Vec<u8>>,
    min_chars: Option<u64>,
    max_chars: Option<u64>,
    min_bytes: Option<u64>,
    max_bytes: Option<u64>,
    prefix: Option<Vec<u8>>,
    suffix: Option<Vec<u8>>,
    contains: Option<Vec<u8>>,
    not_contains: Option<Vec<u8>>,
    only: Vec<Vec<u8>>,
    not: Vec<Vec<u8>>,
    pattern: Option<(Regex, String)>,
    form: Option<Form>,
    ignore_empty: bool,
}

/// The well-known string formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Email,
    Hostname,
    Ip,
    Ipv4,
    Ipv6,
    Uri,
    UriRef,
    Address,
    Uuid,
    HeaderName,
    HeaderValue,
    /// A header name or value with `strict: false`.
    HeaderText,
}

/// The rules for an enum.
#[derive(Debug)]
pub(super) struct Enum {
    exact: Option<i128>,
    only: Vec<i128>,
    not: Vec<i128>,
    /// The defined numbers, sorted.
    defined: Option<Vec<i128>>,
}

/// A value that violates a rule: what was found and what is expected.
pub(super) struct Mismatch {
    pub(super) found: String,
    pub(super) expected: String,
}

/// Reads the fields of a rule message and tracks which of them are supported.
struct RuleReader<'a> {
    message: &'a DynamicMessage,
    read: Vec<String>,
}

impl<'a> RuleReader<'a> {
    fn get(&mut self, name: &str) -> Option<Field> {
        self.read.push(name.to_owned());
        let field = self.message.descriptor().get_field_by_name(name)?;
        self.message.has_field(&field).then(|| self.message.get_field(&field).into_owned())
    }

    fn get_as<T>(&mut self, name: &str, read: impl Fn(&Field) -> Option<T>) -> Option<T> {
        self.get(name).as_ref().and_then(read)
    }

    fn list(&mut self, name: &str) -> Vec<Field> {
        self.get(name).and_then(|value| value.as_list().map(<[Field]>::to_vec)).unwrap_or_default()
    }

    fn flag(&mut self, name: &str) -> bool {
        self.get(name).and_then(|value| value.as_bool()).unwrap_or_default()
    }

    fn size(&mut self, name: &str) -> Option<u64> {
        self.get(name).and_then(|value| value.as_u64())
    }

    fn bytes(&mut self, name: &str) -> Option<Vec<u8>> {
        self.get_as(name, bytes)
    }

    /// The names of fields that are set but were not read.
    fn left(&self) -> Vec<String> {
        let names = self.message.fields().map(|(field, _)| field.name().to_owned());
        names.filter(|name| !self.read.contains(name)).collect()
    }
}

fn bytes(value: &Field) -> Option<Vec<u8>> {
    value
        .as_str()
        .map(|text| text.as_bytes().to_vec())
        .or_else(|| value.as_bytes().map(|bytes| bytes.to_vec()))
}

fn int(value: &Field) -> Option<i128> {
    value
        .as_i32()
        .map(i128::from)
        .or_else(|| value.as_u32().map(i128::from))
        .or_else(|| value.as_i64().map(i128::from))
        .or_else(|| value.as_u64().map(i128::from))
        .or_else(|| value.as_enum_number().map(i128::from))
}

fn float(value: &Field) -> Option<f64> {
    value.as_f64().or_else(|| value.as_f32().map(f64::from))
}

fn nanoseconds(value: &Field) -> Option<i128> {
    let message = value.as_message()?;
    let seconds = message.get_field_by_name("seconds").as_deref().and_then(int)?;
    let nanos = message.get_field_by_name("nanos").as_deref().and_then(int)?;
    Some(total(seconds, nanos))
}

fn total(seconds: i128, nanos: i128) -> i128 {
    seconds * 1_000_000_000 + nanos
}

impl Rule {
    /// Compiles the rules `message` (`validate.UInt32Rules` and so on); `kind` is the name of their field in
    /// `validate.FieldRules`. The second part of the result lists unsupported rules.
    ///
    /// # Errors
    /// What cannot be compiled.
    pub(super) fn compile(
        kind: &str,
        message: &DynamicMessage,
        enumeration: Option<&EnumDescriptor>,
    ) -> Result<(Option<Self>, Vec<String>), String> {
        let mut source = RuleReader { message, read: Vec::new() };
        let rule = match kind {
            "float" | "double" => Some(Self::Float(range(&mut source, float))),
            "int32" | "int64" | "uint32" | "uint64" | "sint32" | "sint64" | "fixed32"
            | "fixed64" | "sfixed32" | "sfixed64" => Some(Self::Int(range(&mut source, int))),
            "bool" => source.get("const").and_then(|value| value.as_bool()).map(Self::Bool),
            "string" => Some(Self::Text(Box::new(text(&mut source)?))),
            "bytes" => Some(Self::Bytes(Box::new(octets(&mut source)?))),
            "enum" => Some(Self::Enum(enum_rule(&mut source, enumeration))),
            // `required` is handled where presence is known.
            "duration" => {
                source.get("required");
                Some(Self::Duration(range(&mut source, nanoseconds)))
            }
            "timestamp" => {
                source.get("required");
                Some(Self::Timestamp(range(&mut source, nanoseconds)))
            }
            "any" => {
                source.get("required");
                let [only, not] = ["in", "not_in"].map(|name| {
                    let urls = source.list(name);
                    urls.iter().filter_map(|url| url.as_str().map(str::to_owned)).collect()
                });
                Some(Self::Any { only, not })
            }
            _ => return Err(format!("unknown rules of kind {kind}")),
        };
        Ok((rule.filter(|rule| !rule.says_nothing()), source.left()))
    }

    fn says_nothing(&self) -> bool {
        match self {
            Self::Int(range) | Self::Duration(range) | Self::Timestamp(range) => {
                range.says_nothing()
            }
            Self::Float(range) => range.says_nothing(),
            Self::Enum(rule) => {
                rule.exact.is_none()
                    && rule.only.is_empty()
                    && rule.not.is_empty()
                    && rule.defined.is_none()
            }
            Self::Any { only, not } => only.is_empty() && not.is_empty(),
            Self::Bool(_) | Self::Text(_) | Self::Bytes(_) => false,
        }
    }

    /// Checks a value.
    ///
    /// # Errors
    /// [`Malformed`] if a message that the rule inspects is malformed.
    pub(super) fn check(&self, value: Value<'_>) -> Result<Option<Mismatch>, Malformed> {
        let wrong = match (self, value) {
            (Self::Int(range), Value::Int(value)) => range.check(value, &value, 0),
            (Self::Float(range), Value::Float(value)) => range.check(value, &value, 0.0),
            (Self::Bool(exact), Value::Bool(value)) if *exact != value => {
                Some(Mismatch { found: value.to_string(), expected: exact.to_string() })
            }
            (Self::Text(text), Value::Bytes(bytes)) => text.check(bytes, true),
            (Self::Bytes(text), Value::Bytes(bytes)) => text.check(bytes, false),
            (Self::Enum(rule), Value::Int(value)) => rule.check(value),
            (Self::Duration(range), Value::Bytes(bytes)) => {
                let (seconds, nanos) = seconds_and_nanos(bytes)?;
                let value = total(seconds.into(), nanos.into());
                range.check_time(value)
            }
            (Self::Timestamp(range), Value::Bytes(bytes)) => {
                let (seconds, nanos) = seconds_and_nanos(bytes)?;
                range.check_time(total(seconds.into(), nanos.into()))
            }
            (Self::Any { only, not }, Value::Bytes(bytes)) => check_url(only, not, bytes)?,
            _ => None,
        };
        Ok(wrong)
    }
}

fn check_url(only: &[String], not: &[String], bytes: &[u8]) -> Result<Option<Mismatch>, Malformed> {
    let (url, _) = open_any(bytes)?;
    if !only.is_empty() && !only.iter().any(|item| item.as_bytes() == url) {
        return Ok(Some(Mismatch {
            found: quoted(url),
            expected: format!("a type URL of {}", only.join(", ")),
        }));
    }
    if not.iter().any(|item| item.as_bytes() == url) {
        return Ok(Some(Mismatch {
            found: quoted(url),
            expected: format!("no type URL of {}", not.join(", ")),
        }));
    }
    Ok(None)
}

fn range<T: Copy>(source: &mut RuleReader<'_>, read: impl Fn(&Field) -> Option<T>) -> Range<T> {
    let exact = source.get_as("const", &read);
    let below = source.get_as("lt", &read).map(|bound| (bound, false));
    let below = below.or(source.get_as("lte", &read).map(|bound| (bound, true)));
    let above = source.get_as("gt", &read).map(|bound| (bound, false));
    let above = above.or(source.get_as("gte", &read).map(|bound| (bound, true)));
    let only = source.list("in").iter().filter_map(&read).collect();
    let not = source.list("not_in").iter().filter_map(&read).collect();
    Range { exact, below, above, only, not, ignore_empty: source.flag("ignore_empty") }
}

impl Range<i128> {
    fn check_time(&self, nanoseconds: i128) -> Option<Mismatch> {
        self.map(Seconds).check(Seconds(nanoseconds), &Seconds(nanoseconds), Seconds(0))
    }
}

/// Nanoseconds, written as seconds.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct Seconds(i128);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, nanos) = (if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs());
        let (whole, part) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
        match part {
            0 => write!(f, "{sign}{whole}s"),
            _ => write!(f, "{sign}{whole}.{}s", format!("{part:09}").trim_end_matches('0')),
        }
    }
}

impl<T: Copy> Range<T> {
    fn says_nothing(&self) -> bool {
        self.exact.is_none()
            && self.below.is_none()
            && self.above.is_none()
            && self.only.is_empty()
            && self.not.is_empty()
    }

    fn map<U>(&self, to: impl Fn(T) -> U) -> Range<U> {
        Range {
            exact: self.exact.map(&to),
            below: self.below.map(|(bound, inclusive)| (to(bound), inclusive)),
            above: self.above.map(|(bound, inclusive)| (to(bound), inclusive)),
            only: self.only.iter().map(|item| to(*item)).collect(),
            not: self.not.iter().map(|item| to(*item)).collect(),
            ignore_empty: self.ignore_empty,
        }
    }
}

impl<T: Copy + PartialOrd + fmt::Display> Range<T> {
    fn check(&self, value: T, shown: &dyn fmt::Display, zero: T) -> Option<Mismatch> {
        if self.ignore_empty && value == zero {
            return None;
        }
        let expected = self.violated(value)?;
        Some(Mismatch { found: shown.to_string(), expected })
    }

    /// What is expected, if a value violates it.
    fn violated(&self, value: T) -> Option<String> {
        if let Some(exact) = self.exact
            && value != exact
        {
            return Some(exact.to_string());
        }
        // Written so that NaN violates every bound.
        let is_below = self
            .below
            .is_none_or(|(bound, inclusive)| value < bound || inclusive && value == bound);
        let is_above = self
            .above
            .is_none_or(|(bound, inclusive)| value > bound || inclusive && value == bound);
        let outside = matches!((self.below, self.above), (Some((below, _)), Some((above, _))) if below <= above);
        if if outside { !is_below && !is_above } else { !is_below || !is_above } {
            let at_most = self.below.map(|(bound, inclusive)| match inclusive {
                true => format!("at most {bound}"),
                false => format!("less than {bound}"),
            });
            let at_least = self.above.map(|(bound, inclusive)| match inclusive {
                true => format!("at least {bound}"),
                false => format!("more than {bound}"),
            });
            let parts: Vec<_> = at_least.into_iter().chain(at_most).collect();
            return Some(parts.join(if outside { " or " } else { " and " }));
        }
        if !self.only.is_empty() && !self.only.contains(&value) {
            return Some(format!("one of {}", join(&self.only)));
        }
        self.not.contains(&value).then(|| format!("none of {}", join(&self.not)))
    }
}

fn join<T: fmt::Display>(list: &[T]) -> String {
    list.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

fn enum_rule(source: &mut RuleReader<'_>, enumeration: Option<&EnumDescriptor>) -> Enum {
    let exact = source.get_as("const", int);
    let only = source.list("in").iter().filter_map(int).collect();
    let not = source.list("not_in").iter().filter_map(int).collect();
    let defined = source.flag("defined_only").then_some(enumeration).flatten().map(|enumeration| {
        let mut numbers: Vec<i128> =
            enumeration.values().map(|value| value.number().into()).collect();
        numbers.sort_unstable();
        numbers
    });
    Enum { exact, only, not, defined }
}

impl Enum {
    fn check(&self, value: i128) -> Option<Mismatch> {
        let expected = self.violated(value)?;
        Some(Mismatch { found: value.to_string(), expected })
    }

    /// What is expected, if a value violates it.
    fn violated(&self, value: i128) -> Option<String> {
        if self.exact.is_some_and(|exact| exact != value) {
            return Some(join(self.exact.as_slice()));
        }
        if !self.only.is_empty() && !self.only.contains(&value) {
            return Some(format!("one of {}", join(&self.only)));
        }
        if self.not.contains(&value) {
            return Some(format!("none of {}", join(&self.not)));
        }
        match &self.defined {
            Some(defined) if defined.binary_search(&value).is_err() => {
                Some(format!("a number that the enum defines ({})", join(defined)))
            }
            _ => None,
        }
    }
}

/// The rules of a string: sizes without `_bytes` in their names count characters.
fn text(source: &mut RuleReader<'_>) -> Result<Text, String> {
    let mut out = common(source)?;
    let exact = source.size("len");
    out.min_chars = exact.or(source.size("min_len"));
    out.max_chars = exact.or(source.size("max_len"));
    let exact = source.size("len_bytes");
    out.min_bytes = exact.or(source.size("min_bytes"));
    out.max_bytes = exact.or(source.size("max_bytes"));
    out.not_contains = source.bytes("not_contains");
    let forms = [
        ("email", Form::Email),
        ("hostname", Form::Hostname),
        ("ip", Form::Ip),
        ("ipv4", Form::Ipv4),
        ("ipv6", Form::Ipv6),
        ("uri", Form::Uri),
        ("uri_ref", Form::UriRef),
        ("address", Form::Address),
        ("uuid", Form::Uuid),
    ];
    out.form =
        forms.into_iter().filter(|(name, _)| source.flag(name)).map(|(_, form)| form).next_back();
    // Absent means strict.
    let strict = source.get("strict").and_then(|value| value.as_bool()) != Some(false);
    match source.get_as("well_known_regex", int) {
        Some(1 | 2) if !strict => out.form = Some(Form::HeaderText),
        Some(1) => out.form = Some(Form::HeaderName),
        Some(2) => out.form = Some(Form::HeaderValue),
        None | Some(0) => {}
        Some(other) => return Err(format!("unknown well_known_regex {other}")),
    }
    Ok(out)
}

/// The rules of bytes: all sizes count bytes.
fn octets(source: &mut RuleReader<'_>) -> Result<Text, String> {
    let mut out = common(source)?;
    let exact = source.size("len");
    out.min_bytes = exact.or(source.size("min_len"));
    out.max_bytes = exact.or(source.size("max_len"));
    let forms = [("ip", Form::Ip), ("ipv4", Form::Ipv4), ("ipv6", Form::Ipv6)];
    out.form =
        forms.into_iter().filter(|(name, _)| source.flag(name)).map(|(_, form)| form).next_back();
    Ok(out)
}

fn common(source: &mut RuleReader<'_>) -> Result<Text, String> {
    let pattern = match source.get("pattern") {
        Some(pattern) => {
            let pattern = pattern.as_str().unwrap_or_default().to_owned();
            let whole = Regex::new(&format!(r"\A(?:{pattern})\z"))
                .map_err(|error| format!("the pattern {pattern} cannot be compiled: {error}"))?;
            Some((whole, pattern))
        }
        None => None,
    };
    Ok(Text {
        exact: source.bytes("const"),
        prefix: source.bytes("prefix"),
        suffix: source.bytes("suffix"),
        contains: source.bytes("contains"),
        only: source.list("in").iter().filter_map(bytes).collect(),
        not: source.list("not_in").iter().filter_map(bytes).collect(),
        pattern,
        ignore_empty: source.flag("ignore_empty"),
        ..Text::default()
    })
}

impl Text {
    fn check(&self, bytes: &[u8], is_text: bool) -> Option<Mismatch> {
        if self.ignore_empty && bytes.is_empty() {
            return None;
        }
        let expected = self.expected(bytes, is_text)?;
        Some(Mismatch { found: quoted(bytes), expected })
    }

    /// What is expected; `None` if the value is valid.
    fn expected(&self, bytes: &[u8], is_text: bool) -> Option<String> {
        if let Some(exact) = &self.exact
            && exact != bytes
        {
            return Some(quoted(exact));
        }
        if !self.only.is_empty() && !self.only.iter().any(|item| item == bytes) {
            return Some(format!("one of {}", quoted_list(&self.only)));
        }
        if self.not.iter().any(|item| item == bytes) {
            return Some(format!("none of {}", quoted_list(&self.not)));
        }
        if self.min_chars.is_some() || self.max_chars.is_some() {
            // Every byte that is not a continuation byte starts a character.
            let chars = bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
            if let Some(size) = size(chars, self.min_chars, self.max_chars, "characters") {
                return Some(size);
            }
        }
        if let Some(size) = size(bytes.len(), self.min_bytes, self.max_bytes, "bytes") {
            return Some(size);
        }
        if let Some(prefix) = self.prefix.as_ref().filter(|prefix| !bytes.starts_with(prefix)) {
            return Some(format!("a string that starts with {}", quoted(prefix)));
        }
        if let Some(suffix) = self.suffix.as_ref().filter(|suffix| !bytes.ends_with(suffix)) {
            return Some(format!("a string that ends with {}", quoted(suffix)));
        }
        if let Some(part) = self.contains.as_ref().filter(|part| !contains(bytes, part)) {
            return Some(format!("a string that contains {}", quoted(part)));
        }
        if let Some(part) = self.not_contains.as_ref().filter(|part| contains(bytes, part)) {
            return Some(format!("a string that does not contain {}", quoted(part)));
        }
        if let Some((pattern, shown)) = &self.pattern
            && !std::str::from_utf8(bytes).is_ok_and(|text| pattern.is_match(text))
        {
            return Some(format!("a string that matches {shown}"));
        }
        let form = self.form?;
        (!form.fits(bytes, is_text)).then(|| form.to_string())
    }
}

fn size(is: usize, min: Option<u64>, max: Option<u64>, unit: &str) -> Option<String> {
    let is = is as u64;
    match (min, max) {
        (Some(min), Some(max)) if min == max && is != min => {
            Some(format!("exactly {min} {unit}, not {is}"))
        }
        (Some(min), _) if is < min => Some(format!("at least {min} {unit}, not {is}")),
        (_, Some(max)) if is > max => Some(format!("at most {max} {unit}, not {is}")),
        _ => None,
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    part.is_empty() || bytes.windows(part.len()).any(|window| window == part)
}

/// A value for messages, truncated if long.
pub(super) fn quoted(bytes: &[u8]) -> String {
    const SHOWN: usize = 80;
    let text = String::from_utf8_lossy(bytes);
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => {
            format!("{:?}… ({} bytes)", text.get(..end).unwrap_or_default(), bytes.len())
        }
        None => format!("{text:?}"),
    }
}

fn quoted_list(list: &[Vec<u8>]) -> String {
    list.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Email => "an e-mail address",
            Self::Hostname => "a host name",
            Self::Ip => "an IP address",
            Self::Ipv4 => "an IPv4 address",
            Self::Ipv6 => "an IPv6 address",
            Self::Uri => "a URI with a scheme",
            Self::UriRef => "a URI or a relative reference",
            Self::Address => "an IP address or a host name",
            Self::Uuid => "a UUID",
            Self::HeaderName => "a header name",
            Self::HeaderValue => "a header value without control characters",
            Self::HeaderText => "a string without NUL, CR and LF",
        })
    }
}

impl Form {
    fn fits(self, bytes: &[u8], is_text: bool) -> bool {
        if !is_text {
            return match self {
                Self::Ipv4 => bytes.len() == 4,
                Self::Ipv6 => bytes.len() == 16,
                _ => matches!(bytes.len(), 4 | 16),
            };
        }
        let Ok(text) = std::str::from_utf8(bytes) else {
            return false;
        };
        match self {
            Self::Email => is_email(text),
            Self::Hostname => is_hostname(text),
            Self::Ip => text.parse::<IpAddr>().is_ok(),
            Self::Ipv4 => text.parse::<Ipv4Addr>().is_ok(),
            Self::Ipv6 => text.parse::<Ipv6Addr>().is_ok(),
            Self::Uri => has_scheme(text) && is_uri_text(text),
            Self::UriRef => is_uri_text(text),
            Self::Address => is_hostname(text) || text.parse::<IpAddr>().is_ok(),
            Self::Uuid => is_uuid(bytes),
            Self::HeaderName => is_header_name(bytes),
            Self::HeaderValue => !bytes.iter().any(|byte| matches!(byte, 0..=8 | 10..=31 | 127)),
            Self::HeaderText => !bytes.iter().any(|byte| matches!(byte, 0 | b'\n' | b'\r')),
        }
    }
}

fn is_hostname(text: &str) -> bool {
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(is_host_label)
}

fn is_host_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn is_email(text: &str) -> bool {
    text.len() <= 254
        && text
            .rsplit_once('@')
            .is_some_and(|(user, host)| is_mailbox_user(user) && is_hostname(host))
}

fn is_mailbox_user(user: &str) -> bool {
    (1..=64).contains(&user.len())
        && user.bytes().all(|byte| {
            byte.is_ascii_graphic()
                && !matches!(byte, b'(' | b')' | b'<' | b'>' | b',' | b';' | b'@')
        })
}

fn has_scheme(text: &str) -> bool {
    text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
    })
}

/// Whether the string contains only URI characters and complete escapes. Source: RFC 3986, appendix A.
fn is_uri_text(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let fine = match byte {
            b'%' => [bytes.next(), bytes.next()]
                .iter()
                .all(|digit| digit.is_some_and(|d| d.is_ascii_hexdigit())),
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => false,
            _ => byte.is_ascii_graphic(),
        };
        if !fine {
            return false;
        }
    }
    true
}

fn is_uuid(bytes: &[u8]) -> bool {
    bytes.len() == 36
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// Source: `^:?[0-9a-zA-Z!#$%&'*+-.^_|~\x60]+$`, in which `+-.` is a range.
fn is_header_name(bytes: &[u8]) -> bool {
    let name = bytes.strip_prefix(b":").unwrap_or(bytes);
    !name.is_empty()
        && name.iter().all(|byte| {
            byte.is_ascii_alphanumeric()
                || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+'..=b'.' | b'^' | b'_' | b'|' | b'~' | b'`')
        })
}
