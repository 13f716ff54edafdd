//! Whether RE2, with which Envoy matches, can compile a regular expression.
//!
//! Follows the grammar of RE2's own parser with the flags of its default options (Perl syntax). What an expression costs is not
//! computed: Envoy refuses one whose program is larger than `re2.max_program_size.error_level` of its runtime, 100 unless set.

use std::iter::Peekable;
use std::str::Chars;

/// The most that a repetition may say, and that nested ones may multiply to. Source: `maximum_repeat_count` in re2/parse.cc.
const MAX_REPEAT: u32 = 1000;

/// How deep groups may lie in each other here; RE2 knows no such limit, but its stack does.
const MAX_GROUPS: usize = 1000;

/// Says whether RE2 takes `pattern`.
///
/// # Errors
/// What RE2 would find wrong, in few words.
pub fn check(pattern: &str) -> Result<(), String> {
    // Envoy's RE2 reads bytes as Latin-1: a character outside of ASCII is two or more to it.
    let latin1: String = pattern.bytes().map(char::from).collect();
    let mut parser = Parser { rest: latin1.chars().peekable(), groups: vec![Group::default()] };
    parser.run()
}

/// What stands between two parentheses, as far as it was read.
#[derive(Default)]
struct Group {
    /// By how much what stands there is repeated at most, by repetitions of two and more inside of it.
    repeats: u32,
    /// The same, of the last item alone; none if there is no item that an operator could apply to.
    last: Option<u32>,
}

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    /// The groups that are open, the innermost last; the first is the whole.
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

    /// Something that can be repeated. Gives false, for "no operator".
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

    fn operator(&mut self, again: bool, shown: char, bounds: Option<(u32, Option<u32>)>) -> Result<(), String> {
        if again {
            return Err(format!("the repetition {shown} right behind another"));
        }
        if let Some((min, max)) = bounds
            && (min > MAX_REPEAT || max.is_some_and(|max| max > MAX_REPEAT || max < min))
        {
            return Err(format!("a repetition of more than {MAX_REPEAT}, or with its ends swapped"));
        }
        let Some(top) = self.top() else {
            return Ok(());
        };
        let Some(last) = top.last else {
            return Err(format!("nothing before the repetition {shown}"));
        };
        if let Some((min, max)) = bounds {
            let most = max.unwrap_or(min);
            let product = last.saturating_mul(most.max(1));
            if (min >= 2 || most >= 2) && product > MAX_REPEAT {
                return Err(format!("repetitions in each other of more than {MAX_REPEAT}"));
            }
            top.last = Some(product);
            top.repeats = top.repeats.max(product);
        }
        Ok(())
    }

    /// `{2}`, `{2,}` or `{2,5}` behind its brace. Anything else is no repetition but text.
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

    /// What follows an opening parenthesis.
    fn open(&mut self) -> Result<bool, String> {
        if !self.take('?') {
            return self.push();
        }
        let mut ahead = self.rest.clone();
        let is_named = match (ahead.next(), ahead.next()) {
            (Some('<'), Some('=' | '!')) => return Err("look-behind, which RE2 does not have".to_owned()),
            (Some('=' | '!'), _) => return Err("look-ahead, which RE2 does not have".to_owned()),
            (Some('>'), _) => return Err("an atomic group, which RE2 does not have".to_owned()),
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
            return Err(format!("more than {MAX_GROUPS} groups in each other"));
        }
        self.groups.push(Group::default());
        Ok(false)
    }

    /// A group's name up to `>`. Letters outside of ASCII do not stay letters as Latin-1.
    fn name(&mut self) -> Result<(), String> {
        let mut length = 0;
        loop {
            match self.rest.next() {
                Some('>') if length > 0 => return Ok(()),
                Some(c) if c.is_ascii_alphanumeric() || c == '_' => length += 1,
                _ => return Err("a group's name that is not of letters, digits and _ before a >".to_owned()),
            }
        }
    }

    /// `(?i-s)` and `(?i-s:` behind the question mark.
    fn flags(&mut self) -> Result<bool, String> {
        let (mut negated, mut some) = (false, false);
        let wrong = || Err("(? with something that RE2 does not know".to_owned());
        loop {
            match self.rest.next() {
                Some('i' | 'm' | 's' | 'U') => some = true,
                Some('-') if !negated => (negated, some) = (true, false),
                Some(':' | ')') if negated && !some => return wrong(),
                Some(':') => return self.push(),
                // A change of flags is nothing that could be repeated, and what stands before it stays the last item.
                Some(')') => return Ok(false),
                _ => return wrong(),
            }
        }
    }

    fn close(&mut self) -> Result<bool, String> {
        let inner = match self.groups.len() {
            0 | 1 => return Err("a ) without its (".to_owned()),
            _ => self.groups.pop().unwrap_or_default(),
        };
        self.item();
        if let Some(top) = self.top() {
            top.last = Some(inner.repeats.max(1));
            top.repeats = top.repeats.max(inner.repeats);
        }
        Ok(false)
    }

    /// What follows a backslash outside of a class.
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

    /// The character that a backslash and what follows stand for.
    fn character(&mut self) -> Result<u32, String> {
        let Some(next) = self.rest.next() else {
            return Err("a \\ at the end".to_owned());
        };
        let unknown = || Err(format!("\\{next}, which RE2 does not know"));
        let octal = |c: &char| ('0'..='7').contains(c);
        match next {
            '0'..='7' => {
                // One digit alone that is not zero means what a group matched.
                if next != '0' && !self.rest.peek().is_some_and(octal) {
                    return Err(format!("the backreference \\{next}, which RE2 does not have"));
                }
                let mut code = next.to_digit(8).unwrap_or_default();
                for _ in 0..2 {
                    if let Some(digit) = self.rest.next_if(octal).and_then(|digit| digit.to_digit(8)) {
                        code = code * 8 + digit;
                    }
                }
                match code <= MAX_CHARACTER {
                    true => Ok(code),
                    false => unknown(),
                }
            }
            '8' | '9' => Err(format!("the backreference \\{next}, which RE2 does not have")),
            'x' => self.hex().map_or_else(unknown, Ok),
            'n' => Ok(0x0a),
            'r' => Ok(0x0d),
            't' => Ok(0x09),
            'a' => Ok(0x07),
            'f' => Ok(0x0c),
            'v' => Ok(0x0b),
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => Ok(c.into()),
            _ => unknown(),
        }
    }

    /// `41` or `{41}` behind `\x`.
    fn hex(&mut self) -> Option<u32> {
        if !self.take('{') {
            let mut digit = || self.rest.next().and_then(|c| c.to_digit(16));
            return Some(digit()? * 16 + digit()?);
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

    /// `L`, `{L}` or `{^L}` behind `\p`.
    fn unicode_group(&mut self) -> Result<(), String> {
        let name: String = if self.take('{') {
            let mut name = String::new();
            loop {
                match self.rest.next() {
                    Some('}') => break name,
                    Some(c) => name.push(c),
                    None => return Err("a \\p{ without its }".to_owned()),
                }
            }
        } else {
            self.rest.next().map(String::from).unwrap_or_default()
        };
        let bare = name.strip_prefix('^').unwrap_or(&name);
        match UNICODE_GROUPS.split_ascii_whitespace().any(|known| known == bare) {
            true => Ok(()),
            false => Err(format!("the Unicode group {name:?}, which RE2 does not know")),
        }
    }

    /// What follows an opening bracket, up to its end.
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

    /// `[:alpha:]`. Without its end it is ordinary text.
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
            return Err(format!("the class [:{name}:], which RE2 does not know"));
        }
        self.rest = ahead;
        Ok(true)
    }

    /// `\d` and `\pL` inside of a class.
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
        // `[a-]` holds a minus.
        if ahead.next() != Some('-') || matches!(ahead.peek(), None | Some(']')) {
            return Ok(());
        }
        self.rest = ahead;
        match self.class_character()? < low {
            true => Err("a range in a class with its ends swapped".to_owned()),
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

/// A number without leading zeros; none if there is no such, or it is too long for RE2 to read.
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
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "word",
    "xdigit",
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
