//! The request to explain, as Envoy sees it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;

use super::path;

/// A placeholder for the id that Envoy assigns to a request without one.
const SOME_ID: &str = "00000000-0000-4000-8000-000000000000";

/// A request or connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrafficQuery {
    /// An HTTP request.
    Http(Request),
    /// A non-HTTP connection.
    Tcp {
        /// The host or address.
        host: String,
        /// The port.
        port: u16,
        /// The server name (SNI) of a TLS client.
        sni: Option<String>,
    },
}

impl TrafficQuery {
    /// A connection to `HOST:PORT`.
    ///
    /// # Errors
    /// What is wrong with the text and what is expected.
    pub fn tcp(to: &str, sni: Option<String>) -> Result<Self, String> {
        let parsed =
            to.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        match parsed.filter(|(host, port)| !host.is_empty() && *port > 0) {
            Some((host, port)) => Ok(Self::Tcp { host: host.to_ascii_lowercase(), port, sni }),
            None => Err(format!("`{to}`: expected HOST:PORT")),
        }
    }
}

/// An HTTP request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// `http` or `https`.
    pub scheme: String,
    /// The host of the URL, which the client connects to.
    pub host: String,
    /// The port of the URL.
    pub port: u16,
    /// The authority: the `host` header if given, else the URL's.
    pub authority: String,
    /// The path without its query, as sent by the client.
    pub path: String,
    /// The query without its `?`; `None` if there is no `?`.
    pub query: Option<String>,
    /// The headers by lower-case name; repeated headers are joined by commas.
    pub headers: BTreeMap<String, String>,
}

fn invalid(text: &str, what: &str) -> String {
    format!("`{text}` {what}; expected a request like 'GET http://web.shop/api?x=1'")
}

impl Request {
    /// Parses `METHOD URL` (or just a URL, which means GET) and headers of the form `NAME: VALUE`.
    ///
    /// # Errors
    /// What is wrong with the text and what is expected.
    pub fn parse(text: &str, headers: &[String]) -> Result<Self, String> {
        let text = text.trim();
        let (method, url) = match text.split_once(char::is_whitespace) {
            Some((method, url)) => (method, url.trim()),
            None => ("GET", text),
        };
        if method.is_empty() || !method.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-') {
            return Err(invalid(text, "does not start with a method"));
        }
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| invalid(text, "does not start with http:// or https://"))?;
        let scheme = scheme.to_ascii_lowercase();
        let default = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return Err(invalid(text, "is neither http nor https")),
        };
        let (authority, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let authority: http::uri::Authority =
            authority.parse().map_err(|error| invalid(text, &format!("has no host ({error})")))?;
        // Clients do not send fragments.
        let target = target.split('#').next().unwrap_or_default();
        if let Some(character) = target.chars().find(|character| !character.is_ascii_graphic()) {
            return Err(invalid(
                text,
                &format!("has {character:?} in its path, which must be percent-encoded"),
            ));
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let host = Some(authority.host())
            .filter(|host| !host.is_empty())
            .ok_or_else(|| invalid(text, "has no host"))?;
        let mut request = Self {
            method: method.to_ascii_uppercase(),
            scheme,
            host: host.to_ascii_lowercase(),
            port: authority.port_u16().unwrap_or(default),
            authority: authority.as_str().rsplit('@').next().unwrap_or_default().to_owned(),
            path: if path.is_empty() { "/".to_owned() } else { path.to_owned() },
            query,
            headers: BTreeMap::new(),
        };
        for header in headers {
            request.add_header(header)?;
        }
        Ok(request)
    }

    /// Adds a header of the form `NAME: VALUE`.
    fn add_header(&mut self, header: &str) -> Result<(), String> {
        let (name, value) = header
            .split_once(':')
            .filter(|(name, _)| !name.trim().is_empty())
            .ok_or_else(|| format!("`{header}` is not a header; expected 'NAME: VALUE'"))?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        if name == "host" {
            value.clone_into(&mut self.authority);
            return Ok(());
        }
        self.headers
            .entry(name)
            .and_modify(|known| {
                known.push(',');
                known.push_str(value);
            })
            .or_insert_with(|| value.to_owned());
        Ok(())
    }

    /// The request as seen by routes, after processing by `manager`.
    ///
    /// # Errors
    /// The response status and reason if it is rejected.
    pub(crate) fn received(
        &self,
        manager: &HttpConnectionManager,
    ) -> Result<Self, (u32, &'static str)> {
        let mut seen = self.clone();
        if manager.normalize_path.as_ref().is_some_and(|normalize| normalize.value) {
            seen.path =
                path::normalized(&self.path).ok_or((400, "the path cannot be normalized"))?;
        }
        if manager.merge_slashes {
            seen.path = path::merged(&seen.path);
        }
        seen.drop_hop_by_hop(manager)?;
        // The scheme reported by a downstream proxy takes precedence.
        let forwarded = seen
            .headers
            .entry("x-forwarded-proto".to_owned())
            .or_insert_with(|| self.scheme.clone());
        if forwarded.is_empty() {
            return Err((
                404,
                "x-forwarded-proto is empty, and without a scheme no route is matched",
            ));
        }
        if matches!(forwarded.to_ascii_lowercase().as_str(), "http" | "https") {
            seen.scheme = forwarded.to_ascii_lowercase();
        }
        seen.headers.entry("x-request-id".to_owned()).or_insert_with(|| SOME_ID.to_owned());
        seen.headers.remove("x-envoy-internal");
        Ok(seen)
    }

    /// Removes hop-by-hop headers except those of an upgrade.
    fn drop_hop_by_hop(
        &mut self,
        manager: &HttpConnectionManager,
    ) -> Result<(), (u32, &'static str)> {
        let connection = self.headers.get("connection").map(|text| list(text)).unwrap_or_default();
        let upgrade =
            self.headers.get("upgrade").filter(|_| connection.iter().any(|item| item == "upgrade"));
        match upgrade.filter(|kind| !kind.eq_ignore_ascii_case("h2c")) {
            Some(kind) => {
                if !manager
                    .upgrade_configs
                    .iter()
                    .any(|upgrade_config| upgrade_config.upgrade_type.eq_ignore_ascii_case(kind))
                {
                    return Err((403, "the upgrade is not allowed"));
                }
            }
            None => {
                for name in connection.iter().map(String::as_str).chain(["connection", "upgrade"]) {
                    self.headers.remove(name);
                }
            }
        }
        for name in ["keep-alive", "proxy-connection", "transfer-encoding"] {
            self.headers.remove(name);
        }
        if let Some(given) = self.headers.remove("te").map(|text| list(&text))
            && given.iter().any(|item| item == "trailers")
        {
            self.headers.insert("te".to_owned(), "trailers".to_owned());
        }
        Ok(())
    }

    /// A header, including pseudo-headers (`:method`).
    pub(crate) fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        Some(match name {
            ":method" => self.method.as_str().into(),
            ":scheme" => self.scheme.as_str().into(),
            ":authority" | "host" => self.authority.as_str().into(),
            ":path" => match &self.query {
                Some(query) => format!("{}?{query}", self.path).into(),
                None => self.path.as_str().into(),
            },
            _ => self.headers.get(name)?.as_str().into(),
        })
    }

    /// The first value of a query parameter; empty if it has none.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        let mut all = self
            .query
            .as_deref()?
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        all.find(|(own, _)| *own == name).map(|(_, value)| value)
    }
}

/// The items of a header whose value is a list, in lower case.
fn list(value: &str) -> Vec<String> {
    value.split(',').map(|item| item.trim().to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager() -> HttpConnectionManager {
        use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager;
        let websocket = http_connection_manager::UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..Default::default()
        };
        HttpConnectionManager {
            normalize_path: Some(envoy_types::pb::google::protobuf::BoolValue { value: true }),
            upgrade_configs: vec![websocket],
            ..Default::default()
        }
    }

    #[test]
    fn a_request_is_read() {
        let headers =
            ["X-User: alice".to_owned(), "x-user: bob".to_owned(), "host: other".to_owned()];
        let request = Request::parse("post http://Web:8080/a/../b/./c?x=1&y", &headers).unwrap();
        assert_eq!(
            (request.method.as_str(), request.host.as_str(), request.port),
            ("POST", "web", 8080)
        );
        assert_eq!((request.path.as_str(), request.authority.as_str()), ("/a/../b/./c", "other"));
        assert_eq!(
            (request.parameter("x"), request.parameter("y"), request.parameter("z")),
            (Some("1"), Some(""), None)
        );
        assert_eq!(request.header("x-user").as_deref(), Some("alice,bob"));
        for (url, path, query) in [
            ("http://web", "/", None),
            ("http://web?a=/b", "/", Some("a=/b")),
            ("http://web/a\\b<%2e>#c?d", "/a\\b<%2e>", None),
            ("http://user@web:80/?", "/", Some("")),
        ] {
            let request = Request::parse(url, &[]).unwrap();
            assert_eq!((request.path.as_str(), request.query.as_deref()), (path, query), "{url}");
            assert!(request.authority.starts_with("web"), "{url}");
        }
    }

    fn seen(text: &str, headers: &[&str]) -> Result<Request, (u32, &'static str)> {
        let headers: Vec<_> = headers.iter().map(|header| (*header).to_owned()).collect();
        Request::parse(text, &headers).unwrap().received(&manager())
    }

    fn rejected(text: &str, headers: &[&str]) -> u32 {
        seen(text, headers).unwrap_err().0
    }

    #[test]
    fn a_request_is_processed_as_before_envoys_routing() {
        let plain = seen("GET http://web/a/%2e%2e/p?a=/../1", &[]).unwrap();
        assert_eq!(plain.header(":path").as_deref(), Some("/p?a=/../1"));
        assert_eq!(
            (plain.header(":scheme").as_deref(), plain.header("x-forwarded-proto").as_deref()),
            (Some("http"), Some("http"))
        );
        assert!(plain.header("x-request-id").is_some());
        for (given, scheme) in
            [("https", "https"), ("HTTPS", "https"), ("ftp", "http"), ("https,http", "http")]
        {
            let seen = seen("GET http://web/", &[&format!("x-forwarded-proto: {given}")]).unwrap();
            assert_eq!(seen.header(":scheme").as_deref(), Some(scheme), "{given}");
            assert_eq!(seen.header("x-forwarded-proto").as_deref(), Some(given));
        }
        let hops = [
            "connection: close, x-a",
            "x-a: 1",
            "x-b: 2",
            "keep-alive: 5",
            "te: gzip, trailers",
            "upgrade: x",
        ];
        let seen_hops = seen("GET http://web/", &hops).unwrap();
        let left = ["connection", "x-a", "x-b", "keep-alive", "te", "upgrade"]
            .map(|name| seen_hops.header(name));
        assert_eq!(
            left.map(|value| value.map(Cow::into_owned)),
            [None, None, Some("2".to_owned()), None, Some("trailers".to_owned()), None]
        );
        let upgraded =
            seen("GET http://web/", &["connection: upgrade", "upgrade: WebSocket"]).unwrap();
        assert_eq!(upgraded.header("upgrade").as_deref(), Some("WebSocket"));
        assert_eq!(rejected("GET http://web/", &["connection: upgrade", "upgrade: other"]), 403);
        assert_eq!(rejected("GET http://web/%00", &[]), 400);
        assert_eq!(rejected("GET http://web/", &["x-forwarded-proto:"]), 404);
    }

    #[test]
    fn invalid_requests_are_rejected() {
        for text in [
            "",
            "GET",
            "GET web/x",
            "GET ftp://web/",
            "G=T http://web/",
            "GET http:///x",
            "GET http://web/\u{e9}",
        ] {
            assert!(Request::parse(text, &[]).is_err(), "{text}");
        }
        assert!(Request::parse("http://web", &["novalue".to_owned()]).is_err());
    }
}
