//! Path normalization of Envoy's HTTP connection manager.
//!
//! Source: Envoy's API documentation of `HttpConnectionManager.normalize_path` and `merge_slashes`; details were
//! verified with Envoy 1.40 for each character, plain and encoded.

/// Applies `normalize_path`: removes dot segments, replaces `\` with `/`, and normalizes percent-encoding. `None` if
/// Envoy responds with 400.
pub(super) fn normalized(path: &str) -> Option<String> {
    if path.contains("%00") || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let segments: Vec<&str> =
        path.split('/').skip(1).flat_map(|item| without_parameters(item).split('\\')).collect();
    let mut kept: Vec<String> = Vec::with_capacity(segments.len());
    for (n, segment) in segments.iter().enumerate() {
        let segment = recoded(segment);
        let dots = matches!(segment.as_str(), "." | "..");
        if segment == ".." {
            kept.pop();
        }
        if !dots {
            kept.push(segment);
        } else if n + 1 == segments.len() {
            kept.push(String::new());
        }
    }
    Some(format!("/{}", kept.join("/")))
}

/// Applies `merge_slashes`.
pub(super) fn merged(path: &str) -> String {
    let mut last = '\0';
    path.chars()
        .filter(|character| (std::mem::replace(&mut last, *character), *character) != ('/', '/'))
        .collect()
}

/// A dot segment may have parameters (`..;x`), unless its dots are encoded.
fn without_parameters(segment: &str) -> &str {
    match segment.split_once(';') {
        Some((dots @ ("." | ".."), _)) => dots,
        _ => segment,
    }
}

/// Letters, digits and `-._~` are never encoded, and a few others always are. Any other encoded character stays
/// encoded.
fn recoded(segment: &str) -> String {
    let mut out = String::with_capacity(segment.len());
    let mut rest = segment;
    while let Some(character) = rest.chars().next() {
        let encoded =
            rest.strip_prefix('%').and_then(|rest| rest.get(..2)).filter(|_| character == '%');
        let decoded =
            encoded.and_then(|digits| u8::from_str_radix(digits, 16).ok()).map(char::from);
        if let Some(plain) =
            decoded.filter(|plain| plain.is_ascii_alphanumeric() || "-._~".contains(*plain))
        {
            out.push(plain);
            rest = rest.get(3..).unwrap_or_default();
            continue;
        }
        if "\"<>^`{|}".contains(character) {
            out.push_str(&format!("%{:02X}", u32::from(character)));
        } else {
            out.push(character);
        }
        rest = rest.get(character.len_utf8()..).unwrap_or_default();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The results of Envoy 1.40.
    #[test]
    fn a_path_is_normalized_as_envoy_does() {
        for (path, normal) in [
            ("/", "/"),
            ("//", "//"),
            ("/a//b", "/a//b"),
            ("/.", "/"),
            ("/a/.", "/a/"),
            ("/a/b/..", "/a/"),
            ("/a/b/../../..", "/"),
            ("//..", "/"),
            ("/a///..", "/a//"),
            ("/..//a", "//a"),
            ("/a/..b/.c/...", "/a/..b/.c/..."),
            ("/a/%2E%2e/b", "/b"),
            ("/a/.%2e", "/"),
            ("/a\\..\\b", "/b"),
            ("/a\\\\b", "/a//b"),
            ("/a%5C..%5cb", "/a%5C..%5cb"),
            ("/a%2fb/..%2Fc", "/a%2fb/..%2Fc"),
            ("/%6e%7E%41%2d%5f%30", "/n~A-_0"),
            ("/%252e/%2/%/%zz/%%2e", "/%252e/%2/%/%zz/%."),
            ("/\"<>^`{|}[]@:!$&'()*+,;=", "/%22%3C%3E%5E%60%7B%7C%7D[]@:!$&'()*+,;="),
            ("/%22%3c%40", "/%22%3c%40"),
            ("/a/..;x/b", "/b"),
            ("/a/.;/..;x\\b", "/"),
            ("/a;x/.x;/%2e;", "/a;x/.x;/.;"),
            ("/a\\..;x", "/a/..;x"),
        ] {
            assert_eq!(normalized(path).as_deref(), Some(normal), "{path}");
        }
        assert_eq!([normalized("/a%00"), normalized("/\u{e9}")], [None, None]);
    }

    #[test]
    fn slashes_are_merged_if_configured() {
        assert_eq!(merged("//a///b/"), "/a/b/");
    }
}
