//! Pieces of messages for people.

/// `one, two LAST_WORD three`; empty without names.
pub(crate) fn listed(names: &[impl AsRef<str>], last_word: &str) -> String {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    match names.as_slice() {
        [] => String::new(),
        [name] => (*name).to_owned(),
        [first @ .., last] => format!("{} {last_word} {last}", first.join(", ")),
    }
}

/// `one, two and 3 more`: the first `count` of the names, and how many there are besides; empty without names.
pub(crate) fn first_of(names: &[impl AsRef<str>], count: usize) -> String {
    let mut shown: Vec<String> =
        names.iter().take(count).map(|name| name.as_ref().to_owned()).collect();
    let more = names.len().saturating_sub(count);
    shown.extend((more > 0).then(|| format!("{more} more")));
    listed(&shown, "and")
}

/// The longest beginning of a text that has at most `bytes` bytes.
pub(crate) fn prefix(text: &str, bytes: usize) -> &str {
    let end = (0..=text.len().min(bytes)).rev().find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_listed_as_in_a_sentence() {
        for (names, text) in
            [(&[][..], ""), (&["a"], "a"), (&["a", "b"], "a or b"), (&["a", "b", "c"], "a, b or c")]
        {
            assert_eq!(listed(names, "or"), text);
        }
    }

    #[test]
    fn only_the_first_names_are_listed() {
        for (names, text) in
            [(&[][..], ""), (&["a", "b"], "a and b"), (&["a", "b", "c", "d"], "a, b and 2 more")]
        {
            assert_eq!(first_of(names, 2), text);
        }
    }

    #[test]
    fn a_prefix_ends_between_characters() {
        for (bytes, text) in [(0, ""), (1, "a"), (2, "a"), (3, "aé"), (9, "aéb")] {
            assert_eq!(prefix("aéb", bytes), text);
        }
    }
}
