//! A mesh to send traffic through: YAML objects, backends, weir, a real Envoy that binds the services' ports on
//! loopback, and requests.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream};

use super::backend::{ANSWER, Backends, HOLD, ID, REPLY, Seen, joined};
use super::certs::Certificates;
use super::mesh::{DEADLINE, Tally, until};
use super::process::{Reserved, free_port, random};
use super::sds;
use super::sidecar::{Options, Sidecar};

/// The mesh.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub backends: Backends,
    pub certificates: Certificates,
    pub sidecar: Sidecar,
    ports: BTreeMap<String, u16>,
    _reserved: Vec<Reserved>,
}

impl Mesh {
    /// Starts it with `objects` in one folder. In them each `$name` is replaced by a unique port, except
    ///
    /// | | |
    /// |---|---|
    /// | `$HTTP`, `$HTTPS`, `$TCP`, `$CLOSED` | the ports of [`Backends`] |
    /// | `$CERTS` | the folder of [`Certificates`] |
    ///
    /// The client is the pod `client-0` in namespace `shop` with the label `app=client`, in `eu/eu-a`, with access to
    /// the secrets of Istio's agent.
    pub(crate) async fn start(objects: &[String], options: Options<'_>) -> Self {
        Self::start_in([127, 0, 1], objects, options).await
    }

    /// The same with backends in another network than 127.0.1; see [`Backends::start`].
    pub(crate) async fn start_in(
        network: [u8; 3],
        objects: &[String],
        options: Options<'_>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let certificates = Certificates::make(&folder);
        let backends = Backends::start(network, &certificates);
        let mut this = Names { ports: BTreeMap::new(), reserved: Vec::new() };
        let known = [("HTTP", backends.http), ("HTTPS", backends.https), ("TCP", backends.tcp)];
        this.ports.extend(known.map(|(name, port)| (name.to_owned(), port)));
        this.ports.insert("CLOSED".to_owned(), backends.closed);
        let config = folder.join("config");
        std::fs::create_dir(&config).unwrap();
        for (at, text) in objects.iter().enumerate() {
            let text = this.fill(&text.replace("$CERTS", folder.to_str().unwrap()));
            std::fs::write(config.join(format!("{at}.yaml")), text).unwrap();
        }
        let mut bootstrap =
            vec!["--namespace", "shop", "--pod", "client-0", "--label", "app=client"];
        bootstrap.extend(["--locality", "eu/eu-a"]);
        if !options.bootstrap.contains(&"--intercept") {
            bootstrap.extend(["--intercept", "none"]);
        }
        bootstrap.extend(options.bootstrap);
        let mut clusters = options.clusters;
        clusters.push(sds::cluster(sds::start(&certificates)));
        let sidecar =
            Sidecar::start(&folder, Options { bootstrap: &bootstrap, clusters, ..options }).await;
        Self { backends, certificates, sidecar, ports: this.ports, _reserved: this.reserved }
    }

    /// Replaces the objects of a file, or writes one more file. In them `$name` is a port that is known.
    pub(crate) fn write(&self, file: &str, text: &str) {
        let known = self.ports.iter();
        let text = known.fold(text.to_owned(), |text, (name, port)| {
            text.replace(&format!("${name}"), &port.to_string())
        });
        let (config, new) =
            (self.sidecar.folder().join("config"), self.sidecar.folder().join("new.yaml"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, config.join(file)).unwrap();
    }

    /// The port of that name.
    pub(crate) fn port(&self, name: &str) -> u16 {
        *self.ports.get(name).unwrap_or_else(|| panic!("no object uses ${name}"))
    }

    /// Prepares a request to Envoy's port of that name, for that host.
    pub(crate) fn request(&self, method: &str, port: &str, host: &str, path: &str) -> Request {
        let id = format!("{:016x}", random());
        let headers = HeaderMap::from_iter([(
            HeaderName::from_static(ID),
            HeaderValue::from_str(&id).unwrap(),
        )]);
        Request {
            id,
            to: SocketAddr::from(([127, 0, 0, 1], self.port(port))),
            from: Ipv4Addr::LOCALHOST,
            version: Version::HTTP_11,
            method: method.parse().unwrap(),
            host: host.to_owned(),
            path: path.to_owned(),
            headers,
            body: Bytes::new(),
            backends: self.backends.clone(),
        }
    }

    /// A GET to Envoy's port `$web`.
    pub(crate) fn get(&self, host: &str, path: &str) -> Request {
        self.request("GET", "web", host, path)
    }

    /// A connection to Envoy's port of that name, from that address.
    pub(crate) async fn connect(&self, port: &str, from: Ipv4Addr) -> TcpStream {
        connect(from, (Ipv4Addr::LOCALHOST, self.port(port)).into()).await.unwrap()
    }

    /// A counter or gauge of a cluster.
    pub(crate) async fn cluster_stat(
        &self,
        port: &str,
        subset: &str,
        host: &str,
        name: &str,
    ) -> u64 {
        let port = self.port(port);
        self.sidecar.stat(&format!("cluster.outbound|{port}|{subset}|{host};.{name}")).await
    }

    /// A counter or gauge of an inbound port.
    pub(crate) async fn http_stat(&self, port: &str, name: &str) -> u64 {
        let port = self.port(port);
        let stats = self
            .sidecar
            .envoy()
            .stats(&format!("^http.outbound_[^_]*_{port};\\.{name}$"))
            .await
            .unwrap();
        stats.values().sum()
    }

    /// Envoy's state of a cluster's endpoints, by address.
    pub(crate) async fn endpoints(
        &self,
        port: &str,
        subset: &str,
        host: &str,
    ) -> BTreeMap<String, Value> {
        let name = format!("outbound|{}|{subset}|{host}", self.port(port));
        let all = self.sidecar.envoy().get("/clusters?format=json").await.unwrap();
        let all: Value = serde_json::from_slice(&all).unwrap();
        let clusters = all["cluster_statuses"].as_array().unwrap();
        let cluster = clusters.iter().find(|cluster| cluster["name"] == *name);
        let cluster = cluster.unwrap_or_else(|| panic!("Envoy has no cluster {name}"));
        let hosts = cluster["host_statuses"].as_array().into_iter().flatten();
        let address = |item: &Value| {
            item["address"]["socket_address"]["address"].as_str().unwrap().to_owned()
        };
        hosts.map(|item| (address(item), item.clone())).collect()
    }

    /// The addresses of the endpoints that are ejected.
    pub(crate) async fn ejected(&self, host: &str) -> Vec<String> {
        let all = self.endpoints("web", "", host).await;
        let out = all
            .into_iter()
            .filter(|(_, item)| item["health_status"]["failed_outlier_check"] == true);
        out.map(|(address, _)| address).collect()
    }

    /// Makes these backends fail, in addition to those already ejected, until they are ejected too.
    pub(crate) async fn eject(&self, host: &str, backends: &[u8]) {
        let all = self.ejected(host).await.len() + backends.len();
        until("they are ejected", async || {
            let request = backends
                .iter()
                .fold(self.get(host, "/"), |request, backend| request.answer_of(*backend, "500"));
            request.send().await;
            self.ejected(host).await.len() == all
        })
        .await;
    }
}

/// The names in objects and their values.
struct Names {
    ports: BTreeMap<String, u16>,
    reserved: Vec<Reserved>,
}

impl Names {
    fn fill(&mut self, text: &str) -> String {
        let mut parts = text.split('$');
        let mut filled = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let end = part.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(part.len());
            let (name, rest) = part.split_at(end);
            if name.is_empty() {
                filled.push('$');
            } else {
                filled += &self.port(name).to_string();
            }
            filled += rest;
        }
        filled
    }

    fn port(&mut self, name: &str) -> u16 {
        if let Some(port) = self.ports.get(name) {
            return *port;
        }
        assert!(
            name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()),
            "${name} is not defined"
        );
        let (port, reserved) = loop {
            let port = free_port();
            if let Ok(reserved) = Reserved::new(SocketAddr::from(([127, 0, 0, 1], port))) {
                break (port, reserved);
            }
        };
        self.reserved.push(reserved);
        self.ports.insert(name.to_owned(), port);
        port
    }
}

/// A ServiceEntry for `host` on port `$port` with `protocol`. Its endpoints are backends; the Nth has the label
/// `version: vN`.
pub(crate) fn entry(host: &str, port: &str, protocol: &str, backends: &[u8]) -> String {
    let target = if protocol == "TCP" { "$TCP" } else { "$HTTP" };
    let all = backends
        .iter()
        .map(|n| format!("  - {{address: 127.0.1.{n}, labels: {{version: v{n}}}}}\n"));
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {}, namespace: shop}}\nspec:\n  \
         hosts: [{host}]\n  resolution: STATIC\n  ports: [{{number: ${port}, name: main, protocol: {protocol}, \
         targetPort: {target}}}]\n  endpoints:\n{}",
        host.replace('.', "-"),
        all.collect::<String>()
    )
}

/// A connection from one address to another.
pub(crate) async fn connect(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

/// The backend that answers a new connection to [`Backends::tcp`], and the connection; `None` if it is closed first.
pub(crate) async fn greeting(stream: TcpStream) -> Option<(u8, BufReader<TcpStream>)> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    tokio::time::timeout(DEADLINE, stream.read_line(&mut line))
        .await
        .expect("a greeting, or an end")
        .ok()?;
    Some((line.trim().parse().ok()?, stream))
}

/// A request to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub id: String,
    to: SocketAddr,
    from: Ipv4Addr,
    version: Version,
    method: Method,
    host: String,
    path: String,
    headers: HeaderMap,
    body: Bytes,
    backends: Backends,
}

impl Request {
    /// Adds a header.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        self
    }

    /// Makes backends respond with these statuses in order; see [`ANSWER`].
    pub(crate) fn answer(self, statuses: &str) -> Self {
        self.header(ANSWER, statuses)
    }

    /// Makes one backend respond with these statuses.
    pub(crate) fn answer_of(self, backend: u8, statuses: &str) -> Self {
        self.header(&format!("{ANSWER}-{backend}"), statuses)
    }

    /// Makes backends respond with this header.
    pub(crate) fn reply(self, name: &str, value: &str) -> Self {
        self.header(&format!("{REPLY}{name}"), value)
    }

    /// Makes backends hold it until it is released, from the Nth attempt on.
    pub(crate) fn hold(self, from: usize) -> Self {
        self.header(HOLD, &from.to_string())
    }

    pub(crate) fn body(mut self, body: &'static str) -> Self {
        self.body = Bytes::from_static(body.as_bytes());
        self
    }

    /// Sets the source address.
    pub(crate) fn from(mut self, address: Ipv4Addr) -> Self {
        self.from = address;
        self
    }

    /// Sets the destination address instead of Envoy's.
    pub(crate) fn to(mut self, address: SocketAddr) -> Self {
        self.to = address;
        self
    }

    /// Uses HTTP/2.
    pub(crate) fn http2(mut self) -> Self {
        self.version = Version::HTTP_2;
        self
    }

    /// Sends it on a new connection and returns the response with what backends have seen of it so far.
    pub(crate) async fn send(self) -> Answer {
        let (backends, id) = (self.backends.clone(), self.id.clone());
        let exchange = async {
            let (head, body) = self.begin().await.unwrap().into_parts();
            (head, body.collect().await.unwrap().to_bytes())
        };
        let (head, body) = tokio::time::timeout(DEADLINE, exchange).await.expect("an answer");
        let body = String::from_utf8_lossy(&body).into_owned();
        Answer { status: head.status, headers: head.headers, body, seen: backends.seen(&id) }
    }

    /// Sends it in a separate task.
    pub(crate) fn spawn(self) -> tokio::task::JoinHandle<Answer> {
        tokio::spawn(self.send())
    }

    /// Sends it and returns the response with its streaming body.
    pub(crate) async fn begin(self) -> hyper::Result<hyper::Response<Incoming>> {
        let stream = TokioIo::new(connect(self.from, self.to).await.unwrap());
        let http2 = self.version == Version::HTTP_2;
        let uri = if http2 { format!("http://{}{}", self.host, self.path) } else { self.path };
        let mut request = hyper::Request::new(Full::new(self.body));
        *request.method_mut() = self.method;
        *request.uri_mut() = uri.parse().unwrap();
        *request.headers_mut() = self.headers;
        // Connection errors are also reported by the request.
        if http2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            sender.send_request(request).await
        } else {
            request.headers_mut().insert(HOST, self.host.parse().unwrap());
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
            tokio::spawn(connection.with_upgrades());
            sender.send_request(request).await
        }
    }
}

/// The response.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
    /// What backends saw of the request.
    pub seen: Vec<Seen>,
}

impl Answer {
    /// The backend that answered, with 200.
    #[track_caller]
    pub(crate) fn backend(&self) -> u8 {
        assert_eq!(self.status, 200, "{self:?}");
        self.body.parse().unwrap_or_else(|_| panic!("no backend answered: {self:?}"))
    }

    /// The only attempt that a backend saw.
    #[track_caller]
    pub(crate) fn only(&self) -> &Seen {
        assert_eq!(self.seen.len(), 1, "{self:?}");
        &self.seen[0]
    }

    /// A header's values, joined by commas; empty if absent.
    pub(crate) fn header(&self, name: &str) -> String {
        joined(&self.headers, name)
    }
}

/// Sends the same request `count` times and counts the responding backends as `v1`, `v2`, ...
pub(crate) async fn tally(count: usize, request: impl Fn() -> Request) -> Tally {
    let mut tally = Tally::default();
    for _ in 0..count {
        let answer = request().send().await;
        let key = if answer.status == 200 {
            format!("v{}", answer.body)
        } else {
            answer.status.as_str().to_owned()
        };
        *tally.answers.entry(key).or_default() += 1;
    }
    tally
}
