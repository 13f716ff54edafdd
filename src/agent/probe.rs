//! Probes and hooks of the kubelet, which the agent performs in its stead: what the kubelet itself sends to the application
//! would go through Envoy, which may demand mutual TLS.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{GRPCAction, HTTPGetAction, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::insecure;
use crate::envoy::with_causes;
use crate::redirect::{SOURCE_V4, SOURCE_V6};

/// The timeout of a probe that has none, as in Kubernetes.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How many redirects within the application are followed, as by the kubelet.
const REDIRECTS: usize = 10;

/// The probes and hooks of the application, by the path at which the kubelet asks for them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Probes(BTreeMap<String, Probe>);

/// A probe or hook.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    action: Action,
    /// A hook may take as long as the kubelet waits.
    timeout: Option<Duration>,
}

#[derive(Debug, Clone)]
enum Action {
    Http(HttpGet),
    Tcp { host: Option<String>, port: u16 },
    Grpc { port: u16, service: String },
}

#[derive(Debug, Clone)]
struct HttpGet {
    https: bool,
    host: Option<String>,
    port: u16,
    path: PathAndQuery,
    headers: HeaderMap,
}

/// What the environment variable says of a probe.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Handler {
    http_get: Option<HTTPGetAction>,
    tcp_socket: Option<TCPSocketAction>,
    grpc: Option<GRPCAction>,
    timeout_seconds: Option<u64>,
}

impl Probes {
    /// Reads the JSON that an injector writes: `{"/app-health/NAME/livez": {"httpGet": {...}, "timeoutSeconds": 1}}`.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let handlers: BTreeMap<String, Handler> =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        let probes = handlers.into_iter().map(|(path, handler)| {
            let probe = Probe::of(&path, handler)?;
            Ok((path, probe))
        });
        probes.collect::<Result<_, _>>().map(Self)
    }

    /// The probe or hook of a path.
    pub(crate) fn find(&self, path: &str) -> Option<&Probe> {
        self.0.get(path)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Probe,
    Hook,
}

/// What a path is for.
fn kind(path: &str) -> Result<Kind, String> {
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["", "app-health", _, "livez" | "readyz" | "startupz"] => Ok(Kind::Probe),
        ["", "app-lifecycle", _, "prestopz" | "poststartz"] => Ok(Kind::Hook),
        _ => Err(format!(
            "{path:?} is neither /app-health/CONTAINER/{{livez,readyz,startupz}} nor \
             /app-lifecycle/CONTAINER/{{prestopz,poststartz}}"
        )),
    }
}

impl Action {
    fn of(handler: Handler) -> Result<Self, String> {
        match handler {
            Handler { http_get: Some(get), tcp_socket: None, grpc: None, .. } => {
                HttpGet::of(get).map(Self::Http).map_err(|reason| format!("httpGet.{reason}"))
            }
            Handler { http_get: None, tcp_socket: Some(tcp), grpc: None, .. } => {
                let port = number(&tcp.port).map_err(|reason| format!("tcpSocket.{reason}"))?;
                Ok(Self::Tcp { host: given(tcp.host), port })
            }
            Handler { http_get: None, tcp_socket: None, grpc: Some(grpc), .. } => {
                let port = number(&IntOrString::Int(grpc.port));
                let port = port.map_err(|reason| format!("grpc.{reason}"))?;
                Ok(Self::Grpc { port, service: grpc.service.unwrap_or_default() })
            }
            _ => Err("expected exactly one of httpGet, tcpSocket and grpc".to_owned()),
        }
    }
}

impl HttpGet {
    fn of(get: HTTPGetAction) -> Result<Self, String> {
        let https = match get.scheme.as_deref().unwrap_or("HTTP") {
            scheme if scheme.eq_ignore_ascii_case("http") => false,
            scheme if scheme.eq_ignore_ascii_case("https") => true,
            scheme => return Err(format!("scheme: {scheme:?} is neither HTTP nor HTTPS")),
        };
        let mut headers = HeaderMap::new();
        for item in get.http_headers.unwrap_or_default() {
            let parts = (item.name.parse::<HeaderName>(), item.value.parse::<HeaderValue>());
            let (Ok(name), Ok(value)) = parts else {
                return Err(format!("httpHeaders: {:?}: {:?} is no header", item.name, item.value));
            };
            headers.append(name, value);
        }
        let path = path(get.path.as_deref().unwrap_or("/"))?;
        Ok(Self { https, host: given(get.host), port: number(&get.port)?, path, headers })
    }

    /// The status of the application's answer, after redirects to itself.
    async fn perform(&self, application: IpAddr, asked: &HeaderMap) -> Result<StatusCode, String> {
        let mut get = self.clone();
        for _ in 0..=REDIRECTS {
            let answer = get.once(application, asked).await?;
            let status = answer.status();
            let location = answer.headers().get(header::LOCATION);
            let Some(location) = location.filter(|_| status.is_redirection()) else {
                return Ok(status);
            };
            match get.redirected(location, application) {
                Some(next) => get = next,
                // The kubelet takes a redirect to another host for success.
                None => return Ok(StatusCode::OK),
            }
        }
        Err(format!("more than {REDIRECTS} redirects"))
    }

    fn host(&self, application: IpAddr) -> String {
        self.host.clone().unwrap_or_else(|| application.to_string())
    }

    async fn once(
        &self,
        application: IpAddr,
        asked: &HeaderMap,
    ) -> Result<Response<Incoming>, String> {
        let stream = connect(self.host.as_deref(), application, self.port).await?;
        let request = self.request(application, asked)?;
        if !self.https {
            return exchange(stream, request).await;
        }
        let host = self.host(application);
        let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
        let connector = TlsConnector::from(insecure::client_config()?);
        let stream = connector.connect(name, stream).await;
        exchange(stream.map_err(|error| format!("TLS: {error}"))?, request).await
    }

    fn request(
        &self,
        application: IpAddr,
        asked: &HeaderMap,
    ) -> Result<Request<Empty<Bytes>>, String> {
        let mut headers = self.headers.clone();
        if !headers.contains_key(header::HOST) {
            let host = authority(&self.host(application), self.port);
            headers.insert(header::HOST, host.parse().map_err(|_| format!("host: {host:?}"))?);
        }
        // As the kubelet would send them itself.
        if let Some(agent) = asked.get(header::USER_AGENT) {
            headers.entry(header::USER_AGENT).or_insert(agent.clone());
        }
        headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.path.clone().into();
        *request.headers_mut() = headers;
        Ok(request)
    }

    /// Where a redirect leads, if it is to the same host.
    fn redirected(&self, location: &HeaderValue, application: IpAddr) -> Option<Self> {
        let location = location.to_str().ok()?;
        let mut next = self.clone();
        if !location.contains("://") {
            // A reference within the same authority, or to another one by "//".
            if location.starts_with("//") {
                return None;
            }
            let folder = self.path.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            let absolute = match location.starts_with('/') {
                true => location.to_owned(),
                false => format!("{folder}/{location}"),
            };
            next.path = path(&absolute).ok()?;
            return Some(next);
        }
        let uri: Uri = location.parse().ok()?;
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
        if !host.eq_ignore_ascii_case(&self.host(application)) {
            return None;
        }
        next.https = uri.scheme() == Some(&Scheme::HTTPS);
        next.port = uri.port_u16().unwrap_or(if next.https { 443 } else { 80 });
        next.path = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        Some(next)
    }
}

impl Probe {
    fn of(path: &str, handler: Handler) -> Result<Self, String> {
        let timeout = handler.timeout_seconds.filter(|seconds| *seconds > 0);
        let timeout = timeout.map(Duration::from_secs);
        let timeout = match kind(path)? {
            Kind::Probe => Some(timeout.unwrap_or(TIMEOUT)),
            Kind::Hook => timeout,
        };
        let action = Action::of(handler).map_err(|reason| format!("{path}: {reason}"))?;
        Ok(Self { action, timeout })
    }

    /// Asks the application. `asked` are the headers of the kubelet's request.
    ///
    /// # Errors
    /// Why the probe fails without an answer, or with one that is no HTTP.
    pub(crate) async fn perform(
        &self,
        application: IpAddr,
        asked: &HeaderMap,
    ) -> Result<StatusCode, String> {
        let outcome = async {
            match &self.action {
                Action::Http(get) => get.perform(application, asked).await,
                Action::Tcp { host, port } => {
                    connect(host.as_deref(), application, *port).await.map(|_| StatusCode::OK)
                }
                Action::Grpc { port, service } => {
                    grpc(SocketAddr::new(application, *port), service).await
                }
            }
        };
        match self.timeout {
            Some(limit) => tokio::time::timeout(limit, outcome)
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {limit:?}"))),
            None => outcome.await,
        }
    }
}

/// Sends a request, and returns the head of the response. The body is of no interest, so the connection ends.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, String> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|error| with_causes(&error))?;
    let answer = sender.send_request(request);
    tokio::pin!(answer, connection);
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // The answer tells how it ended.
        _ = &mut connection => answer.await,
    };
    answer.map_err(|error| with_causes(&error))
}

async fn grpc(address: SocketAddr, service: &str) -> Result<StatusCode, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let channel = endpoint
        .map_err(|error| error.to_string())?
        .connect_with_connector(connector(address.ip()))
        .await
        .map_err(|error| with_causes(&error))?;
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel).check(request).await;
    let answer = answer.map_err(|status| format!("{}: {}", status.code(), status.message()))?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(StatusCode::OK),
        other => Err(other.as_str_name().to_owned()),
    }
}

/// The response to `GET path` of the application, with its body still to be read.
pub(super) async fn get(
    address: SocketAddr,
    path: &str,
    headers: HeaderMap,
) -> Result<Response<Incoming>, String> {
    let client = Client::builder(TokioExecutor::new()).build(connector(address.ip()));
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() =
        format!("http://{address}{path}").parse().map_err(|_| format!("path: {path:?}"))?;
    *request.headers_mut() = headers;
    client.request(request).await.map_err(|error| with_causes(&error))
}

/// Connects from the address that is not redirected.
fn connector(application: IpAddr) -> HttpConnector {
    let mut connector = HttpConnector::new();
    if application.is_ipv4() {
        connector.set_local_address(Some(SOURCE_V4.into()));
    } else if has_source_v6() {
        connector.set_local_address(Some(SOURCE_V6.into()));
    }
    connector
}

/// Whether `weir redirect` has given the pod the address for IPv6.
fn has_source_v6() -> bool {
    std::net::UdpSocket::bind((SOURCE_V6, 0)).is_ok()
}

/// Connects to a host, by default to the application in this pod.
async fn connect(host: Option<&str>, application: IpAddr, port: u16) -> Result<TcpStream, String> {
    let connected = match host {
        Some(host) => TcpStream::connect((host, port)).await,
        None => connect_to(SocketAddr::new(application, port)).await,
    };
    connected.map_err(|error| format!("connecting to port {port}: {error}"))
}

async fn connect_to(application: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if application.is_ipv4() {
        let socket = TcpSocket::new_v4()?;
        socket.bind((SOURCE_V4, 0).into())?;
        socket
    } else {
        let socket = TcpSocket::new_v6()?;
        // Without redirection it does not matter from where.
        _ = socket.bind((SOURCE_V6, 0).into());
        socket
    };
    socket.connect(application).await
}

fn given(host: Option<String>) -> Option<String> {
    host.filter(|host| !host.is_empty())
}

fn number(port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(text) => text.parse().ok(),
    };
    number.filter(|port| *port > 0).ok_or_else(|| match port {
        IntOrString::Int(number) => format!("port: {number} is not a port (1 to 65535)"),
        IntOrString::String(name) => format!("port: {name:?} is not a number (1 to 65535)"),
    })
}

/// A path with an optional query. What a URL may not contain is percent-encoded.
fn path(text: &str) -> Result<PathAndQuery, String> {
    use std::fmt::Write as _;

    let mut encoded = String::with_capacity(text.len() + 1);
    if !text.starts_with('/') {
        encoded.push('/');
    }
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded.parse().map_err(|error| format!("path: {text:?}: {error}"))
}

/// `HOST:PORT`, with an IPv6 address in brackets.
fn authority(host: &str, port: u16) -> String {
    match host.parse() {
        Ok(ip) => SocketAddr::new(ip, port).to_string(),
        Err(_) => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3));

    fn http(probe: &str) -> HttpGet {
        let text = format!(r#"{{"/app-health/web/livez": {{"httpGet": {probe}}}}}"#);
        let probes = Probes::parse(&text).unwrap();
        let Action::Http(get) = &probes.find("/app-health/web/livez").unwrap().action else {
            panic!("{probes:?}")
        };
        get.clone()
    }

    #[test]
    fn the_request_is_the_one_that_the_kubelet_would_send() {
        let get = http(
            r#"{"path": "ok?a=b c", "port": 8080, "scheme": "HTTPS",
                "httpHeaders": [{"name": "X-A", "value": "1"}, {"name": "X-A", "value": "2"}]}"#,
        );
        let asked = [(header::USER_AGENT, HeaderValue::from_static("kube-probe/1.37"))];
        let request = get.request(OWN, &asked.into_iter().collect()).unwrap();
        assert!(get.https);
        assert_eq!(request.uri(), "/ok?a=b%20c");
        let headers = request.headers();
        assert_eq!(headers[header::HOST], "10.1.2.3:8080");
        assert_eq!(headers[header::USER_AGENT], "kube-probe/1.37");
        assert_eq!(headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        let named = http(r#"{"port": 80, "httpHeaders": [{"name": "Host", "value": "web.test"}]}"#);
        let request = named.request(OWN, &HeaderMap::new()).unwrap();
        assert_eq!(
            (request.uri().path(), &request.headers()[header::HOST]),
            ("/", &HeaderValue::from_static("web.test"))
        );
    }

    #[test]
    fn redirects_are_followed_within_the_host() {
        let get = http(r#"{"path": "/a/b?c", "port": 8080}"#);
        let to = |location: &str| {
            let next = get.redirected(&location.parse().unwrap(), OWN)?;
            Some(format!("{} {} {}", next.https, next.port, next.path))
        };
        assert_eq!(to("/x?y").as_deref(), Some("false 8080 /x?y"));
        assert_eq!(to("x").as_deref(), Some("false 8080 /a/x"));
        assert_eq!(to("https://10.1.2.3/x").as_deref(), Some("true 443 /x"));
        assert_eq!(to("http://10.1.2.3:81").as_deref(), Some("false 81 /"));
        assert_eq!(to("https://web.test/login"), None);
        assert_eq!(to("//web.test/login"), None);
    }

    #[test]
    fn timeouts_are_those_of_kubernetes() {
        let probes = Probes::parse(
            r#"{"/app-health/a/livez": {"tcpSocket": {"port": 1}},
                "/app-health/a/readyz": {"grpc": {"port": 1, "service": "s"}, "timeoutSeconds": 7},
                "/app-lifecycle/a/prestopz": {"httpGet": {"port": "80"}}}"#,
        )
        .unwrap();
        let timeout = |path: &str| probes.find(path).unwrap().timeout;
        assert_eq!(timeout("/app-health/a/livez"), Some(TIMEOUT));
        assert_eq!(timeout("/app-health/a/readyz"), Some(Duration::from_secs(7)));
        assert_eq!(timeout("/app-lifecycle/a/prestopz"), None);
        assert!(probes.find("/app-health/b/livez").is_none());
    }

    #[test]
    fn errors_name_the_path_and_the_member() {
        for (text, part) in [
            (r#"{"/health": {}}"#, "\"/health\" is neither"),
            (r#"{"/app-health/a/livez": {}}"#, "/app-health/a/livez: expected exactly one of"),
            (
                r#"{"/app-health/a/livez": {"httpGet": {"port": "web"}}}"#,
                "/app-health/a/livez: httpGet.port: \"web\" is not a number",
            ),
            (
                r#"{"/app-health/a/livez": {"grpc": {"port": 70000}}}"#,
                "grpc.port: 70000 is not a port",
            ),
            (
                r#"{"/app-health/a/livez": {"httpGet": {"port": 1, "scheme": "FTP"}}}"#,
                "httpGet.scheme: \"FTP\" is neither",
            ),
            (
                r#"{"/app-health/a/livez": {"httpGet": {"port": 1, "httpHeaders": [{"name": "a b", "value": ""}]}}}"#,
                "httpGet.httpHeaders: \"a b\"",
            ),
        ] {
            let error = Probes::parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
