//! Where traces go, from a flag and from the environment variables that OpenTelemetry defines.

use std::collections::BTreeMap;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

const ENDPOINT: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOL: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
const HEADERS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];
const CERTIFICATE: [&str; 2] =
    ["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"];

/// How long the collector may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Where traces go, and what they say of weir.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    pub(super) endpoint: Endpoint,
    /// What each request carries. The values are secret.
    pub(super) headers: MetadataMap,
    /// The attributes of the resource.
    pub(super) resource: BTreeMap<String, String>,
}

/// A variable that is set, and is not empty.
struct Variable {
    name: &'static str,
    value: String,
}

/// The first of these that is set.
fn first(names: &[&'static str], lookup: &impl Fn(&str) -> Option<String>) -> Option<Variable> {
    names.iter().find_map(|name| {
        let value = lookup(name).filter(|value| !value.trim().is_empty())?;
        Some(Variable { name, value: value.trim().to_owned() })
    })
}

impl TraceOptions {
    /// Reads the options: `flag` is the value of `--otlp-endpoint`, `pod` the namespace and the name of weir's pod, `lookup`
    /// finds environment variables. `None` if no traces are exported.
    ///
    /// # Errors
    /// Says which flag or variable is wrong, and what is expected.
    pub(crate) fn read(
        flag: Option<&str>,
        pod: Option<(&str, &str)>,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, String> {
        let url = match flag {
            Some(url) => Variable { name: "--otlp-endpoint", value: url.to_owned() },
            None if is_off(&lookup) => return Ok(None),
            None => match first(&ENDPOINT, &lookup) {
                Some(url) => url,
                None => return Ok(None),
            },
        };
        if let Some(protocol) = first(&PROTOCOL, &lookup).filter(|set| set.value != "grpc") {
            let Variable { name, value } = protocol;
            return Err(format!("${name} is `{value}`: expected grpc, which is what weir speaks"));
        }
        let headers = match first(&HEADERS, &lookup) {
            Some(set) => headers(&set)?,
            None => MetadataMap::new(),
        };
        let endpoint = endpoint(&url, first(&CERTIFICATE, &lookup).as_ref())?;
        Ok(Some(Self { endpoint, headers, resource: resource(pod, &lookup)? }))
    }
}

/// Whether the environment says that no traces are exported.
fn is_off(lookup: &impl Fn(&str) -> Option<String>) -> bool {
    let disabled = first(&["OTEL_SDK_DISABLED"], lookup);
    let exporter = first(&["OTEL_TRACES_EXPORTER"], lookup);
    disabled.is_some_and(|set| set.value.eq_ignore_ascii_case("true"))
        || exporter.is_some_and(|set| !set.value.split(',').any(|name| name.trim() == "otlp"))
}

fn endpoint(url: &Variable, certificate: Option<&Variable>) -> Result<Endpoint, String> {
    let Variable { name, value } = url;
    let name = if name.starts_with('-') { (*name).to_owned() } else { format!("${name}") };
    let expected = "expected http://HOST:PORT or https://HOST:PORT, where the port is usually 4317";
    if value.contains(['@', '?']) {
        let headers = HEADERS[1];
        return Err(format!(
            "{name} has a user or a query: {expected}; ${headers} is the place for credentials"
        ));
    }
    let wrong = || format!("{name} is `{value}`: {expected}");
    let uri: http::Uri = value.parse().map_err(|_| wrong())?;
    let host = uri.host().filter(|host| !host.is_empty());
    let is_of_http = matches!(uri.scheme_str(), Some("http" | "https"));
    if host.is_none() || !is_of_http {
        return Err(wrong());
    }
    if !matches!(uri.path_and_query().map_or("", |path| path.as_str()), "" | "/") {
        return Err(format!(
            "{name} is `{value}`: {expected}, without a path, which is for OTLP over HTTP"
        ));
    }
    let is_secure = uri.scheme_str() == Some("https");
    let endpoint = Endpoint::from(uri).connect_timeout(CONNECT).timeout(ANSWER);
    if !is_secure {
        return Ok(endpoint);
    }
    let tls = match certificate {
        Some(Variable { name, value }) => {
            let pem = std::fs::read(value).map_err(|error| format!("${name}: {value}: {error}"))?;
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
        }
        None => ClientTlsConfig::new().with_native_roots(),
    };
    endpoint.tls_config(tls).map_err(|error| {
        use std::error::Error as _;
        let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        let variable = CERTIFICATE[0];
        format!("{name} is `{value}`: {why}; ${variable} names a file with the roots to trust")
    })
}

/// Reads `key=value,key=value` with values that are percent-encoded. The error does not show a value.
fn pairs(variable: &Variable) -> Result<BTreeMap<String, String>, String> {
    let Variable { name, value } = variable;
    let wrong = |n: usize| {
        format!(
            "${name}: item {n} is not KEY=VALUE with a percent-encoded value; expected KEY=VALUE,KEY=VALUE"
        )
    };
    let items = value.split(',').enumerate().filter(|(_, item)| !item.trim().is_empty());
    items
        .map(|(n, item)| {
            let (key, value) = item.split_once('=').ok_or_else(|| wrong(n + 1))?;
            let value = decoded(value.trim()).ok_or_else(|| wrong(n + 1))?;
            let key = decoded(key.trim()).filter(|key| !key.is_empty());
            Ok((key.ok_or_else(|| wrong(n + 1))?, value))
        })
        .collect()
}

/// A text without percent-encoding; `None` if that is wrong.
fn decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|two| two.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(part.get(2..)?.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

fn headers(variable: &Variable) -> Result<MetadataMap, String> {
    let mut headers = MetadataMap::new();
    for (key, value) in pairs(variable)? {
        let wrong = |what: &str| format!("${}: header `{key}`: {what}", variable.name);
        let mut value: MetadataValue<Ascii> =
            value.parse().map_err(|_| wrong("its value is not printable ASCII"))?;
        value.set_sensitive(true);
        let name = MetadataKey::from_bytes(key.to_ascii_lowercase().as_bytes())
            .map_err(|_| wrong("this is no name of a header that carries text"))?;
        headers.insert(name, value);
    }
    Ok(headers)
}

/// What is said of weir. The environment overrides what weir knows.
fn resource(
    pod: Option<(&str, &str)>,
    lookup: &impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, String>, String> {
    let mut resource = BTreeMap::from([
        ("service.name".to_owned(), "weir".to_owned()),
        ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ]);
    if let Some((namespace, name)) = pod {
        resource.insert("k8s.namespace.name".to_owned(), namespace.to_owned());
        resource.insert("k8s.pod.name".to_owned(), name.to_owned());
    }
    if let Some(set) = first(&["OTEL_RESOURCE_ATTRIBUTES"], lookup) {
        resource.extend(pairs(&set)?);
    }
    if let Some(set) = first(&["OTEL_SERVICE_NAME"], lookup) {
        resource.insert("service.name".to_owned(), set.value);
    }
    Ok(resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(flag: Option<&str>, set: &[(&str, &str)]) -> Result<Option<TraceOptions>, String> {
        TraceOptions::read(flag, Some(("weir-system", "weir-0")), |name| {
            set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn uri(flag: Option<&str>, set: &[(&str, &str)]) -> Option<String> {
        read(flag, set).unwrap().map(|options| options.endpoint.uri().to_string())
    }

    #[test]
    fn the_flag_comes_before_the_variable_for_traces_and_that_before_the_one_for_all_signals() {
        let [all, traces] = [(ENDPOINT[1], "http://all:4317"), (ENDPOINT[0], "http://traces:4317")];
        assert_eq!(uri(None, &[]), None);
        assert_eq!(uri(None, &[(ENDPOINT[0], " ")]), None);
        assert_eq!(uri(None, &[all]).unwrap(), "http://all:4317/");
        assert_eq!(uri(None, &[all, traces]).unwrap(), "http://traces:4317/");
        assert_eq!(uri(Some("http://flag:1/"), &[all, traces]).unwrap(), "http://flag:1/");
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(uri(None, &[all, off]), None);
            assert!(uri(Some("http://flag:1"), &[off]).is_some());
        }
    }

    #[test]
    fn a_wrong_address_says_where_it_is_and_what_is_expected() {
        for wrong in ["collector:4317", "collector", "grpc://collector:4317", "http://", ""] {
            let said = read(Some(wrong), &[]).unwrap_err();
            let begun = format!("--otlp-endpoint is `{wrong}`: expected http://HOST:PORT");
            assert!(said.starts_with(&begun), "{said}");
        }
        for secret in ["https://user:secret@host:1", "https://host:1/?api-key=secret"] {
            let said = read(Some(secret), &[]).unwrap_err();
            assert!(said.starts_with("--otlp-endpoint has a user or a query: expected"), "{said}");
            assert!(!said.contains("secret"), "{said}");
        }
        let said = read(None, &[(ENDPOINT[1], "http://host:4318/v1/traces")]).unwrap_err();
        assert!(said.starts_with("$OTEL_EXPORTER_OTLP_ENDPOINT is `http://host:4318/v1"), "{said}");
        assert!(said.ends_with("without a path, which is for OTLP over HTTP"), "{said}");
        let other = (PROTOCOL[1], "http/protobuf");
        let said = read(Some("http://host:4317"), &[other]).unwrap_err();
        assert!(said.contains("OTLP_PROTOCOL is `http/protobuf`: expected grpc"), "{said}");
        let missing = (CERTIFICATE[1], "/nowhere/ca.pem");
        let said = read(Some("https://host:4317"), &[missing]).unwrap_err();
        assert!(said.starts_with("$OTEL_EXPORTER_OTLP_CERTIFICATE: /nowhere/ca.pem: "), "{said}");
    }

    #[test]
    fn headers_are_sent_and_never_shown() {
        let url = Some("http://host:4317");
        let set = (HEADERS[1], "Authorization=Bearer%20secret, x-tenant = a ,");
        let options = read(url, &[set]).unwrap().unwrap();
        assert_eq!(options.headers.get("authorization").unwrap(), "Bearer secret");
        assert_eq!(options.headers.get("x-tenant").unwrap(), "a");
        assert!(!format!("{options:?}").contains("secret"), "{options:?}");
        for wrong in ["secret", "a=b,=secret", "a=%zz", "a=%ff", "a b=secret", "x=secret%0a"] {
            let said = read(url, &[(HEADERS[0], wrong)]).unwrap_err();
            assert!(said.starts_with("$OTEL_EXPORTER_OTLP_TRACES_HEADERS: "), "{said}");
            assert!(!said.contains("secret"), "{said}");
        }
    }

    #[test]
    fn the_environment_adds_to_what_weir_says_of_itself_and_overrides_it() {
        let url = Some("http://host:4317");
        let own = read(url, &[]).unwrap().unwrap().resource;
        assert_eq!(own["service.name"], "weir");
        assert_eq!((&*own["k8s.namespace.name"], &*own["k8s.pod.name"]), ("weir-system", "weir-0"));
        let set = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a,deployment.environment.name=t%2C1");
        let all = read(url, &[set]).unwrap().unwrap().resource;
        assert_eq!((&*all["service.name"], &*all["deployment.environment.name"]), ("a", "t,1"));
        let all = read(url, &[set, ("OTEL_SERVICE_NAME", "b")]).unwrap().unwrap().resource;
        assert_eq!(all["service.name"], "b");
    }
}
