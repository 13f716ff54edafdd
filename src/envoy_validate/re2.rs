//! Checks whether RE2, Envoy's regular expression engine, can compile an expression.
//!
//! Follows the grammar of RE2's parser with its default options (Perl syntax). The program size is not computed: Envoy
//! rejects an expression whose program exceeds the runtime setting `re2.max_program_size.error_level`, 100 by default.

use std::iter::Peekable;
use std::str::Chars;

/// The maximum repetition count, also for the product of nested repetitions. Source: `maximum_repeat_count` in
/// re2/parse.cc.
const MAX_REPEAT: u32 = 1000;

/// The maximum nesting of groups. RE2 has no explicit limit, but its stack does.
const MAX_GROUPS: usize = 1000;

/// Checks `pattern`.
///
/// # Errors
/// A short description of the error.
pub fn check(pattern: &str) -> Result<(), String> {
    // Envoy's RE2 reads bytes as Latin-1: a non-ASCII character counts as two or more.
    let latin1: String = pattern.bytes().map(char::from).collect();
    let mut parser = Parser { rest: latin1.chars().peekable(), groups: vec![Group::default()] };
    parser.run()
}

/// A group that is being parsed.
#[derive(Default)]
struct Group {
    /// The maximum product of repetition counts inside the group.
    repeats: u32,
    /// The same for the last item; `None` if there is no item for an operator to apply to.
    last: Option<u32>,
}

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    /// The open groups, innermost last; the first is the entire expression.
    groups: Vec<Group>,
}

impl Parser<'_> {
    fn run(&mut self) -> Result<(), String> {
        let mut after_operator = false;
        while let Some(next) = self.rest.next() {
            let is_operator = match next {
                '*' | '+' | '?' => {
                    self.take('?');
                    self.operator(after_operator, next, None)?;
                    true
                }
                '{' => match self.repetition() {
                    Some((min, max)) => {
                        self.take('?');
                        self.operator(after_operator, next, Some((min, max)))?;
                        true
                    }
                    None => self.item(),
                },
                '(' => self.open()?,
                ')' => self.close()?,
                '|' => {
                    self.next_branch();
                    false
                }
                '[' => {
                    self.class()?;
                    self.item()
                }
                '\\' => self.escape()?,
                _ => self.item(),
            };
            after_operator = is_operator;
        }
        match self.groups.len() {
            1 => Ok(()),
            _ => Err("missing )".to_owned()),
        }
    }

    fn take(&mut self, wanted: char) -> bool {
        self.rest.next_if_eq(&wanted).is_some()
    }

    fn top(&mut self) -> Option<&mut Group> {
        self.groups.last_mut()
    }

    /// Records an item that can be repeated. Returns false, meaning "not an operator".
    fn item(&mut self) -> bool {
        if let Some(top) = self.top() {
            top.last = Some(1);
            top.repeats = top.repeats.max(1);
        }
        false
    }

    fn next_branch(&mut self) {
        if let Some(top) = self.top() {
            top.last = None;
        }
    }

    fn operator(
        &mut self,
        again: bool,
        shown: char,
        bounds: Option<(u32, Option<u32>)>,
    ) -> Result<(), String> {
        if again {
            return Err(format!("the repetition {shown} directly after another"));
        }
        if let Some((min, max)) = bounds
            && (min > MAX_REPEAT || max.is_some_and(|max| max > MAX_REPEAT || max < min))
        {
            return Err(format!("a repetition of more than {MAX_REPEAT}, or with swapped bounds"));
        }
        let Some(top) = self.top() else {
            return Ok(());
        };
        let Some(last) = top.last else {
            return Err(format!("nothing to repeat before {shown}"));
        };
        if let Some((min, max)) = bounds {
            let most = max.unwrap_or(min);
            let product = last.saturating_mul(most.max(1));
            if (min >= 2 || most >= 2) && product > MAX_REPEAT {
                return Err(format!("nested repetitions of more than {MAX_REPEAT}"));
            }
            top.last = Some(product);
            top.repeats = top.repeats.max(product);
        }
        Ok(())
    }

    /// Parses `{2}`, `{2,}` or `{2,5}` after the brace. Anything else is literal text.
    fn repetition(&mut self) -> Option<(u32, Option<u32>)> {
        let mut ahead = self.rest.clone();
        let min = number(&mut ahead)?;
        let max = match ahead.next()? {
            '}' => Some(min),
            ',' if ahead.next_if_eq(&'}').is_some() => None,
            ',' => {
                let max = number(&mut ahead)?;
                ahead.next_if_eq(&'}')?;
                Some(max)
            }
            _ => return None,
        };
        self.rest = ahead;
        Some((min, max))
    }

    /// Parses what follows an opening parenthesis.
    fn open(&mut self) -> Result<bool, String> {
        if !self.take('?') {
            return self.push();
        }
        let mut ahead = self.rest.clone();
        let is_named = match (ahead.next(), ahead.next()) {
            (Some('<'), Some('=' | '!')) => {
                return Err("look-behind, which RE2 does not support".to_owned());
            }
            (Some('=' | '!'), _) => return Err("look-ahead, which RE2 does not support".to_owned()),
            (Some('>'), _) => return Err("an atomic group, which RE2 does not support".to_owned()),
            (Some('P'), Some('<')) => {
                self.rest.next();
                true
            }
            (Some('<'), _) => true,
            _ => false,
        };
        if is_named {
            self.rest.next();
            self.name()?;
            return self.push();
        }
        self.flags()
    }

    fn push(&mut self) -> Result<bool, String> {
        if self.groups.len() > MAX_GROUPS {
            return Err(format!("more than {MAX_GROUPS} nested groups"));
        }
        self.groups.push(Group::default());
        Ok(false)
    }

    /// Parses a group name up to `>`. Non-ASCII letters are not letters in Latin-1.
    fn name(&mut self) -> Result<(), String> {
        let mut length = 0;
        loop {
            match self.rest.next() {
                Some('>') if length > 0 => return Ok(()),
                Some(c) if c.is_ascii_alphanumeric() || c == '_' => length += 1,
                _ => {
                    return Err(
                        "a group name that is not made of letters, digits and _ followed by >"
                            .to_owned(),
                    );
                }
            }
        }
    }

    /// Parses `(?i-s)` and `(?i-s:` after the question mark.
    fn flags(&mut self) -> Result<bool, String> {
        let (mut negated, mut some) = (false, false);
        loop {
            match self.rest.next() {
                Some('i' | 'm' | 's' | 'U') => some = true,
                Some('-') if !negated => (negated, some) = (true, false),
                Some(':') if some || !negated => return self.push(),
                // A flag change cannot be repeated, and the item before it stays the last item.
                Some(')') if some || !negated => return Ok(false),
                _ => return Err("an unsupported (? construct".to_owned()),
            }
        }
    }

    fn close(&mut self) -> Result<bool, String> {
        let inner = match self.groups.len() {
            0 | 1 => return Err("an unmatched )".to_owned()),
            _ => self.groups.pop().unwrap_or_default(),
        };
        self.item();
        if let Some(top) = self.top() {
            top.last = Some(inner.repeats.max(1));
            top.repeats = top.repeats.max(inner.repeats);
        }
        Ok(false)
    }

    /// Parses an escape outside of a class.
    fn escape(&mut self) -> Result<bool, String> {
        match self.rest.peek() {
            Some('b' | 'B' | 'A' | 'z' | 'C' | 'd' | 'D' | 's' | 'S' | 'w' | 'W') => {
                self.rest.next();
            }
            Some('p' | 'P') => {
                self.rest.next();
                self.unicode_group()?;
            }
            Some('Q') => {
                self.rest.next();
                while let Some(next) = self.rest.next() {
                    if next == '\\' && self.take('E') {
                        return Ok(false);
                    }
                    self.item();
                }
                return Ok(false);
            }
            _ => _ = self.character()?,
        }
        Ok(self.item())
    }

    /// Parses an escaped character.
    fn character(&mut self) -> Result<u32, String> {
        let Some(next) = self.rest.next() else {
            return Err("a \\ at the end".to_owned());
        };
        let code = match next {
            // A single non-zero digit is a backreference.
            '1'..='7' if !self.rest.peek().is_some_and(|c| c.is_digit(8)) => None,
            '0'..='7' => self.octal(next),
            'x' => self.hex(),
            'n' => Some(0x0a),
            'r' => Some(0x0d),
            't' => Some(0x09),
            'a' => Some(0x07),
            'f' => Some(0x0c),
            'v' => Some(0x0b),
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => Some(c.into()),
            _ => None,
        };
        code.ok_or_else(|| {
            let what = if matches!(next, '1'..='9') { "the backreference " } else { "" };
            format!("{what}\\{next}, which RE2 does not support")
        })
    }

    /// Parses up to two octal digits after `first`.
    fn octal(&mut self, first: char) -> Option<u32> {
        let mut code = first.to_digit(8)?;
        for _ in 0..2 {
            let digit = self.rest.next_if(|c| c.is_digit(8)).and_then(|c| c.to_digit(8));
            if let Some(digit) = digit {
                code = code * 8 + digit;
            }
        }
        (code <= MAX_CHARACTER).then_some(code)
    }

    /// Parses `41` or `{41}` after `\x`.
    fn hex(&mut self) -> Option<u32> {
        if !self.take('{') {
            let high = self.rest.next()?.to_digit(16)?;
            return Some(high * 16 + self.rest.next()?.to_digit(16)?);
        }
        let mut code = self.rest.next()?.to_digit(16)?;
        loop {
            match self.rest.next()? {
                '}' => return Some(code),
                c => code = code * 16 + c.to_digit(16)?,
            }
            if code > MAX_CHARACTER {
                return None;
            }
        }
    }

    /// Parses `L`, `{L}` or `{^L}` after `\p`.
    fn unicode_group(&mut self) -> Result<(), String> {
        let name: String = if self.take('{') {
            let mut name = String::new();
            loop {
                match self.rest.next() {
                    Some('}') => break name,
                    Some(c) => name.push(c),
                    None => return Err("an unterminated \\p{".to_owned()),
                }
            }
        } else {
            self.rest.next().map(String::from).unwrap_or_default()
        };
        let bare = name.strip_prefix('^').unwrap_or(&name);
        match UNICODE_GROUPS.split_ascii_whitespace().any(|known| known == bare) {
            true => Ok(()),
            false => Err(format!("the Unicode group {name:?}, which RE2 does not support")),
        }
    }

    /// Parses a class after the opening bracket.
    fn class(&mut self) -> Result<(), String> {
        self.take('^');
        let mut is_first = true;
        loop {
            match self.rest.peek().copied() {
                None => return Err("missing ]".to_owned()),
                Some(']') if !is_first => {
                    self.rest.next();
                    return Ok(());
                }
                Some('[') if self.posix_class()? => {}
                _ if self.class_escape()? => {}
                _ => self.class_range()?,
            }
            is_first = false;
        }
    }

    /// Parses `[:alpha:]`. Without its end it is literal text.
    fn posix_class(&mut self) -> Result<bool, String> {
        let mut ahead = self.rest.clone();
        if ahead.next() != Some('[') || ahead.next() != Some(':') {
            return Ok(false);
        }
        let mut name = String::new();
        loop {
            match ahead.next() {
                None => return Ok(false),
                Some(':') if ahead.peek() == Some(&']') => break,
                Some(c) => name.push(c),
            }
        }
        ahead.next();
        let bare = name.strip_prefix('^').unwrap_or(&name);
        if !POSIX_CLASSES.contains(&bare) {
            return Err(format!("the class [:{name}:], which RE2 does not support"));
        }
        self.rest = ahead;
        Ok(true)
    }

    /// Parses `\d` and `\pL` inside a class.
    fn class_escape(&mut self) -> Result<bool, String> {
        let mut ahead = self.rest.clone();
        if ahead.next() != Some('\\') {
            return Ok(false);
        }
        match ahead.next() {
            Some('d' | 'D' | 's' | 'S' | 'w' | 'W') => {
                self.rest = ahead;
                Ok(true)
            }
            Some('p' | 'P') => {
                self.rest = ahead;
                self.unicode_group().map(|()| true)
            }
            _ => Ok(false),
        }
    }

    fn class_range(&mut self) -> Result<(), String> {
        let low = self.class_character()?;
        let mut ahead = self.rest.clone();
        // `[a-]` contains a minus.
        if ahead.next() != Some('-') || matches!(ahead.peek(), None | Some(']')) {
            return Ok(());
        }
        self.rest = ahead;
        match self.class_character()? < low {
            true => Err("a class range with swapped ends".to_owned()),
            false => Ok(()),
        }
    }

    fn class_character(&mut self) -> Result<u32, String> {
        match self.rest.next() {
            None => Err("missing ]".to_owned()),
            Some('\\') => self.character(),
            Some(c) => Ok(c.into()),
        }
    }
}

/// Parses a number without leading zeros; `None` if there is none or it is too long for RE2.
fn number(rest: &mut Peekable<Chars<'_>>) -> Option<u32> {
    let first = rest.next_if(char::is_ascii_digit)?.to_digit(10)?;
    if first == 0 && rest.peek().is_some_and(char::is_ascii_digit) {
        return None;
    }
    let mut number = first;
    while let Some(digit) = rest.next_if(char::is_ascii_digit) {
        if number >= 100_000_000 {
            return None;
        }
        number = number * 10 + digit.to_digit(10)?;
    }
    Some(number)
}

/// The largest character of Latin-1.
const MAX_CHARACTER: u32 = 0xff;

const POSIX_CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
    "space", "upper", "word", "xdigit",
];

/// Unicode's general categories and scripts as RE2 names them. Source: re2/unicode_groups.cc, and `Any` of re2/parse.cc.
const UNICODE_GROUPS: &str = "Any \
    Adlam Ahom Anatolian_Hieroglyphs Arabic Armenian Avestan Balinese Bamum Bassa_Vah Batak Bengali \
    Bhaiksuki Bopomofo Brahmi Braille Buginese Buhid C Canadian_Aboriginal Carian Caucasian_Albanian Cc \
    Cf Chakma Cham Cherokee Chorasmian Co Common Coptic Cs Cuneiform Cypriot Cypro_Minoan Cyrillic \
    Deseret Devanagari Dives_Akuru Dogra Duployan Egyptian_Hieroglyphs Elbasan Elymaic Ethiopic \
    Georgian Glagolitic Gothic Grantha Greek Gujarati Gunjala_Gondi Gurmukhi Han Hangul Hanifi_Rohingya \
    Hanunoo Hatran Hebrew Hiragana Imperial_Aramaic Inherited Inscriptional_Pahlavi \
    Inscriptional_Parthian Javanese Kaithi Kannada Katakana Kawi Kayah_Li Kharoshthi \
    Khitan_Small_Script Khmer Khojki Khudawadi L Lao Latin Lepcha Limbu Linear_A Linear_B Lisu Ll Lm Lo \
    Lt Lu Lycian Lydian M Mahajani Makasar Malayalam Mandaic Manichaean Marchen Masaram_Gondi Mc Me \
    Medefaidrin Meetei_Mayek Mende_Kikakui Meroitic_Cursive Meroitic_Hieroglyphs Miao Mn Modi Mongolian \
    Mro Multani Myanmar N Nabataean Nag_Mundari Nandinagari Nd New_Tai_Lue Newa Nko Nl No Nushu \
    Nyiakeng_Puachue_Hmong Ogham Ol_Chiki Old_Hungarian Old_Italic Old_North_Arabian Old_Permic \
    Old_Persian Old_Sogdian Old_South_Arabian Old_Turkic Old_Uyghur Oriya Osage Osmanya P Pahawh_Hmong \
    Palmyrene Pau_Cin_Hau Pc Pd Pe Pf Phags_Pa Phoenician Pi Po Ps Psalter_Pahlavi Rejang Runic S \
    Samaritan Saurashtra Sc Sharada Shavian Siddham SignWriting Sinhala Sk Sm So Sogdian Sora_Sompeng \
    Soyombo Sundanese Syloti_Nagri Syriac Tagalog Tagbanwa Tai_Le Tai_Tham Tai_Viet Takri Tamil Tangsa \
    Tangut Telugu Thaana Thai Tibetan Tifinagh Tirhuta Toto Ugaritic Vai Vithkuqi Wancho Warang_Citi \
    Yezidi Yi Z Zanabazar_Square Zl Zp Zs";
