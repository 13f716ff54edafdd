//! The request that is asked about, as Envoy sees it.

use std::collections::BTreeMap;

/// A request or connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// An HTTP request.
    Http(Request),
    /// A connection that is not HTTP.
    Tcp {
        /// The host or address.
        host: String,
        /// The port.
        port: u16,
        /// The server name a TLS client asks for.
        sni: Option<String>,
    },
}

/// An HTTP request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// `http` or `https`.
    pub scheme: String,
    /// The host of the URL, which is where the client connects to.
    pub host: String,
    /// The port of the URL.
    pub port: u16,
    /// The authority: the `host` header where one was given, else the URL's.
    pub authority: String,
    /// The path without its query.
    pub path: String,
    /// The query without its `?`; `None` where there is no `?`.
    pub query: Option<String>,
    /// The headers by lower-case name; several of one name are joined by commas.
    pub headers: BTreeMap<String, String>,
}

impl Request {
    /// Reads `METHOD URL` (or a URL alone, which is a GET) and headers of the form `NAME: VALUE`.
    ///
    /// # Errors
    /// What is wrong with the text, and what would be right.
    pub fn parse(text: &str, headers: &[String]) -> Result<Self, String> {
        let text = text.trim();
        let (method, url) = match text.split_once(char::is_whitespace) {
            Some((method, url)) => (method, url.trim()),
            None => ("GET", text),
        };
        let bad = |what: &str| format!("`{text}` {what}; expected a request like 'GET http://web.shop/api?x=1'");
        if method.is_empty() || !method.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-') {
            return Err(bad("does not begin with a method"));
        }
        let uri: http::Uri = url.parse().map_err(|error| bad(&format!("has no URL ({error})")))?;
        let scheme = uri.scheme_str().ok_or_else(|| bad("has no http:// or https://"))?.to_owned();
        let default = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return Err(bad("is not of http or https")),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| bad("has no host"))?;
        let mut request = Self {
            method: method.to_ascii_uppercase(),
            scheme,
            host: host.to_ascii_lowercase(),
            port: uri.port_u16().unwrap_or(default),
            authority: uri.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default(),
            path: normal_path(uri.path()),
            query: uri.query().map(str::to_owned),
            headers: BTreeMap::new(),
        };
        for header in headers {
            let (name, value) = header
                .split_once(':')
                .filter(|(name, _)| !name.trim().is_empty())
                .ok_or_else(|| format!("`{header}` is no header; expected the form 'NAME: VALUE'"))?;
            let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
            if name == "host" {
                request.authority = value.to_owned();
                continue;
            }
            request
                .headers
                .entry(name)
                .and_modify(|known| {
                    known.push(',');
                    known.push_str(value);
                })
                .or_insert_with(|| value.to_owned());
        }
        Ok(request)
    }

    /// A header, those of HTTP itself (`:method`) included.
    pub fn header(&self, name: &str) -> Option<&str> {
        match name {
            ":method" => Some(&self.method),
            ":scheme" => Some(&self.scheme),
            ":authority" | "host" => Some(&self.authority),
            _ => self.headers.get(name).map(String::as_str),
        }
    }

    /// The first value of a query parameter; empty where it has none.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let mut all = self.query.as_deref()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        all.find(|(own, _)| *own == name).map(|(_, value)| value)
    }
}

/// The path without `.` and `..`. Source: Envoy's HTTP connection manager, `normalize_path` (RFC 3986, section 6).
fn normal_path(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." | ".." => {
                if part == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            part => kept.push(part),
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read() {
        let headers = ["X-User: alice".to_owned(), "x-user: bob".to_owned(), "host: other".to_owned()];
        let request = Request::parse("post http://Web:8080/a/../b/./c?x=1&y", &headers).unwrap();
        assert_eq!((request.method.as_str(), request.host.as_str(), request.port), ("POST", "web", 8080));
        assert_eq!((request.path.as_str(), request.authority.as_str()), ("/b/c", "other"));
        assert_eq!(
            (request.parameter("x"), request.parameter("y"), request.parameter("z")),
            (Some("1"), Some(""), None)
        );
        assert_eq!(request.header("x-user"), Some("alice,bob"));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for text in ["", "GET", "GET web/x", "GET ftp://web/", "G=T http://web/", "GET http:///x"] {
            assert!(Request::parse(text, &[]).is_err(), "{text}");
        }
        assert!(Request::parse("http://web", &["novalue".to_owned()]).is_err());
    }
}
