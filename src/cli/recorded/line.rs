//! One line of recorded requests. Three forms are read: a JSON object, and the two default text formats, of Istio and of
//! Envoy.

use serde_json::{Map, Value};

use super::Request;
use crate::translate::{INBOUND_PASSTHROUGH, is_inbound};

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A request that the pod sent.
    Sent(Request),
    /// A line of an access log about something else: a request that the pod received, or a connection without HTTP.
    NotSent,
}

const EXPECTED: &str = "expected a JSON object with `method`, `path` and `host` or `authority`, or a line of an access \
    log in the default format of Istio or Envoy";

/// What a line says about a request. An access log has `-` for what is absent; here it is `None`.
#[derive(Debug, Default)]
struct Fields {
    method: Option<String>,
    path: Option<String>,
    authority: Option<String>,
    port: Option<u16>,
    /// The address and the port that the client connected to.
    local_address: Option<String>,
    upstream_cluster: Option<String>,
    headers: Vec<String>,
}

/// Reads a line that is not empty.
///
/// # Errors
/// What was found, and what would be right.
pub(super) fn read_line(text: &str) -> Result<Line, String> {
    if !text.starts_with('{') {
        return access_log(text)
            .ok_or_else(|| format!("`{}`: {EXPECTED}", shortened(text)))?
            .line(true);
    }
    let object: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| format!("is not a JSON object: {error}"))?;
    let is_log = ["authority", "upstream_cluster", "downstream_local_address"]
        .iter()
        .any(|key| object.contains_key(*key));
    json(&object)?.line(is_log)
}

/// The beginning of a text, for messages.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 60;
    let start: String = text.chars().take(SHOWN).collect();
    if start.len() < text.len() { format!("{start}...") } else { start }
}

/// A field of an access log, in which `-` stands for an absent value.
fn present(text: &str) -> Option<String> {
    (!text.is_empty() && text != "-").then(|| text.to_owned())
}

fn json(object: &Map<String, Value>) -> Result<Fields, String> {
    let authority = match text(object, "authority")? {
        Some(authority) => Some(authority),
        None => text(object, "host")?,
    };
    let mut headers = headers(object)?;
    headers.extend(text(object, "user_agent")?.map(|agent| format!("user-agent: {agent}")));
    Ok(Fields {
        method: text(object, "method")?,
        path: text(object, "path")?,
        authority,
        port: port(object)?,
        local_address: text(object, "downstream_local_address")?,
        upstream_cluster: text(object, "upstream_cluster")?,
        headers,
    })
}

fn text(object: &Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(present(text)),
        Some(other) => Err(format!("{key}: {other}, expected a string")),
    }
}

fn port(object: &Map<String, Value>) -> Result<Option<u16>, String> {
    let Some(found) = object.get("port").filter(|found| !found.is_null()) else { return Ok(None) };
    let port = found.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    port.map(Some).ok_or_else(|| format!("port: {found}, expected a number from 1 to 65535"))
}

/// Headers as an object of strings.
fn headers(object: &Map<String, Value>) -> Result<Vec<String>, String> {
    match object.get("headers") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Object(headers)) => headers
            .iter()
            .map(|(name, value)| match value {
                Value::String(value) => Ok(format!("{name}: {value}")),
                other => Err(format!("headers.{name}: {other}, expected a string")),
            })
            .collect(),
        Some(other) => Err(format!(
            "headers: {}, expected an object like {{\"x-user\": \"alice\"}}",
            shortened(&other.to_string())
        )),
    }
}

impl Fields {
    /// The line that has these fields. In an access log, a line without a method is about a connection without HTTP.
    fn line(self, is_log: bool) -> Result<Line, String> {
        let received = self.upstream_cluster.as_ref().is_some_and(|name| {
            // Envoy's statistics, and so its log, may have the name with a semicolon.
            is_inbound(name) || name.trim_end_matches(';') == INBOUND_PASSTHROUGH
        });
        if received || (is_log && self.method.is_none()) {
            return Ok(Line::NotSent);
        }
        let authority = self.authority.ok_or_else(|| format!("has no host: {EXPECTED}"))?;
        let (host, named_port) = host_and_port(&authority);
        // Envoy chooses the listener by the port of the connection, whatever the host header says.
        let connected = self.local_address.as_deref().and_then(|address| host_and_port(address).1);
        let port = self.port.or(connected).or(named_port).unwrap_or(80);
        let path = self.path.unwrap_or_else(|| "/".to_owned());
        if !path.starts_with('/') {
            return Err(format!("path: `{}`, expected one that begins with /", shortened(&path)));
        }
        let method = self.method.unwrap_or_else(|| "GET".to_owned());
        let request = format!("{method} http://{host}:{port}{path}");
        let mut headers = self.headers;
        if authority != host && authority != format!("{host}:{port}") {
            headers.push(format!("host: {authority}"));
        }
        headers.sort();
        crate::explain::Request::parse(&request, &headers)?;
        Ok(Line::Sent((request, headers)))
    }
}

/// A host, in brackets if it is an IPv6 address, and the port after it, if there is one.
fn host_and_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !port.contains(']') => {
            port.parse().map_or((authority, None), |port| (host, Some(port)))
        }
        _ => (authority, None),
    }
}

/// A part of a line of an access log in text form.
#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    Plain(&'a str),
    Quoted(&'a str),
}

/// A line in the default text format of Istio or of Envoy. Which one it is, is seen by the number of fields and by where
/// quoted ones are. Envoy does not escape quotes, so a line with one in a header has another shape and is not read.
fn access_log(text: &str) -> Option<Fields> {
    /// The quoted fields among the 20 of Istio and the 11 of Envoy, after the request line: `"` is a quoted one.
    const ISTIO: &[u8] = b"....\"....\"\"\"\"\"......";
    const ENVOY: &[u8] = b"......\"\"\"\"\"";
    let (_, rest) = text.strip_prefix('[')?.split_once("] ")?;
    let parts = parts(rest)?;
    let (Part::Quoted(request), fields) = parts.split_first()? else { return None };
    let shape: Vec<u8> = fields
        .iter()
        .map(|part| if matches!(part, Part::Quoted(_)) { b'"' } else { b'.' })
        .collect();
    let (agent, authority, later) = match shape {
        shape if shape == ISTIO => (10, 12, Some((14, 16))),
        shape if shape == ENVOY => (7, 9, None),
        _ => return None,
    };
    let field = FieldsOfLog(fields);
    let (upstream_cluster, local_address) =
        later.map_or((None, None), |(cluster, address)| (field.at(cluster), field.at(address)));
    // A connection without HTTP has `- - -`.
    let [method, path, _protocol] = *request.split(' ').collect::<Vec<_>>() else { return None };
    Some(Fields {
        method: present(method),
        path: present(path),
        authority: field.at(authority),
        port: None,
        upstream_cluster,
        local_address,
        headers: field.at(agent).map(|agent| format!("user-agent: {agent}")).into_iter().collect(),
    })
}

struct FieldsOfLog<'a>(&'a [Part<'a>]);

impl FieldsOfLog<'_> {
    fn at(&self, index: usize) -> Option<String> {
        match self.0.get(index)? {
            Part::Plain(text) | Part::Quoted(text) => present(text),
        }
    }
}

/// The parts of a line, which one blank separates.
fn parts(mut rest: &str) -> Option<Vec<Part<'_>>> {
    /// More than any format that is read.
    const MOST: usize = 32;
    let mut parts = Vec::new();
    while parts.len() < MOST {
        let after = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (text, after) = quoted.split_once('"')?;
                parts.push(Part::Quoted(text));
                after
            }
            None => {
                let end = rest.find(' ').unwrap_or(rest.len());
                let (text, after) = rest.split_at(end);
                parts.push(Part::Plain(text));
                after
            }
        };
        if after.is_empty() {
            return Some(parts);
        }
        rest = after.strip_prefix(' ')?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(request: &str, headers: &[&str]) -> Result<Line, String> {
        Ok(Line::Sent((request.to_owned(), headers.iter().map(ToString::to_string).collect())))
    }

    #[test]
    fn requests_in_the_words_of_the_flags() {
        assert_eq!(read_line(r#"{"host": "web"}"#), sent("GET http://web:80/", &[]));
        let all = r#"{"method": "POST", "host": "web.shop", "port": 8080, "path": "/a?b=1", "headers": {"x-user": "al"}}"#;
        assert_eq!(read_line(all), sent("POST http://web.shop:8080/a?b=1", &["x-user: al"]));
        assert_eq!(read_line(r#"{"host": "[fd00::1]:81"}"#), sent("GET http://[fd00::1]:81/", &[]));
        assert_eq!(read_line(r#"{"host": "[fd00::1]"}"#), sent("GET http://[fd00::1]:80/", &[]));
    }

    /// A line of Istio's JSON log, with what matters here.
    fn istio(more: &str) -> String {
        format!(
            r#"{{"start_time":"2026-01-02T03:04:05.678Z","method":"GET","path":"/api","protocol":"HTTP/1.1","response_code":200,"authority":"web:80","user_agent":"curl/8","upstream_host":"10.2.0.1:80","downstream_local_address":"10.1.0.1:80","requested_server_name":null{more}}}"#
        )
    }

    #[test]
    fn the_json_log_of_istio() {
        let agent = ["user-agent: curl/8"];
        let out = r#","upstream_cluster":"outbound|80|v1|web.shop.svc.cluster.local""#;
        assert_eq!(read_line(&istio(out)), sent("GET http://web:80/api", &agent));
        for received in ["inbound|80||", "inbound|80||;", "InboundPassthroughCluster"] {
            let more = format!(r#","upstream_cluster":"{received}""#);
            assert_eq!(read_line(&istio(&more)), Ok(Line::NotSent), "{received}");
        }
        let tcp = istio(out).replace("\"GET\"", "null").replace("\"/api\"", "null");
        assert_eq!(read_line(&tcp), Ok(Line::NotSent));
    }

    #[test]
    fn the_port_of_the_connection_counts_and_the_host_stays_as_it_was() {
        let other = istio("").replace("10.1.0.1:80", "10.1.0.1:8080");
        let headers = ["host: web:80", "user-agent: curl/8"];
        assert_eq!(read_line(&other), sent("GET http://web:8080/api", &headers));
    }

    const ISTIO_TEXT: &str = "[2026-01-02T03:04:05.678Z] \"GET /api?x=1 HTTP/1.1\" 200 - via_upstream - \"-\" 0 5 12 11 \"-\" \
        \"my agent/1 (x)\" \"5f0c\" \"web.shop:8000\" \"10.2.0.1:80\" outbound|8000||web.shop.svc.cluster.local \
        10.2.0.9:40000 10.1.0.1:8000 10.2.0.9:40001 - default";
    const ENVOY_TEXT: &str = "[2026-01-02T03:04:05.678Z] \"GET / HTTP/2\" 503 UH 0 19 0 - \"-\" \"curl/8\" \"5f0c\" \
        \"web\" \"-\"";

    #[test]
    fn the_text_logs_of_istio_and_envoy() {
        let agent = ["user-agent: my agent/1 (x)"];
        assert_eq!(read_line(ISTIO_TEXT), sent("GET http://web.shop:8000/api?x=1", &agent));
        assert_eq!(read_line(ENVOY_TEXT), sent("GET http://web:80/", &["user-agent: curl/8"]));
        let received =
            ISTIO_TEXT.replace("outbound|8000||web.shop.svc.cluster.local", "inbound|80||");
        assert_eq!(read_line(&received), Ok(Line::NotSent));
        for text in [ISTIO_TEXT, ENVOY_TEXT] {
            let request = text.split('"').nth(1).unwrap();
            assert_eq!(read_line(&text.replace(request, "- - -")), Ok(Line::NotSent));
        }
    }

    #[test]
    fn what_cannot_be_read_is_said_with_what_would_be_right() {
        let quote = ISTIO_TEXT.replace("my agent", "my \"agent");
        let cases = [
            ("2026-01-02T03:04:05Z\tinfo\tReady", "expected a JSON object"),
            (&*quote, "expected a JSON object"),
            ("[] \"", "expected a JSON object"),
            ("{\"host\": ", "is not a JSON object"),
            (r#"{"level": "info", "msg": "x"}"#, "has no host"),
            (r#"{"host": "web", "port": 70000}"#, "port: 70000, expected a number from 1"),
            (r#"{"host": "web", "method": 1}"#, "method: 1, expected a string"),
            (r#"{"host": "web", "headers": ["a"]}"#, "expected an object like"),
            (r#"{"host": "web", "path": "api"}"#, "expected one that begins with /"),
            (r#"{"host": "a b"}"#, "has no host"),
        ];
        for (line, wanted) in cases {
            let why = read_line(line).unwrap_err();
            assert!(why.contains(wanted), "{line}: {why}");
        }
    }
}
