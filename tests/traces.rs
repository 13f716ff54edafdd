//! Traces of changes, as an OpenTelemetry collector gets them.

use std::fs::File;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span, status::StatusCode};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::support::ads::{Ask, CDS, Client, EDS, LDS, RDS, Variant, ask, connect};
use crate::support::certs::Certificates;
use crate::support::mesh::{DEADLINE, Objects, Serve, route_yaml, until};
use crate::support::process::free_port;

/// A collector.
struct Collector {
    address: SocketAddr,
    received: mpsc::UnboundedReceiver<(Option<String>, ResourceSpans)>,
    /// What it answers; `None` if it takes what it gets.
    refusal: Arc<Mutex<Option<Status>>>,
}

struct Service {
    received: mpsc::UnboundedSender<(Option<String>, ResourceSpans)>,
    refusal: Arc<Mutex<Option<Status>>>,
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if let Some(refusal) = self.refusal.lock().clone() {
            return Err(refusal);
        }
        let tenant = request.metadata().get("x-tenant");
        let tenant = tenant.map(|tenant| tenant.to_str().unwrap().to_owned());
        for spans in request.into_inner().resource_spans {
            self.received.send((tenant.clone(), spans)).unwrap();
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start(port: u16) -> Self {
        Self::of(tonic::transport::Server::builder(), port).await
    }

    /// One with TLS. Its certificate is for `localhost`.
    async fn start_with_tls(certificates: &Certificates) -> Self {
        let identity = Identity::from_pem(
            certificates.text("collector.pem"),
            certificates.text("collector-key.pem"),
        );
        let tls = ServerTlsConfig::new().identity(identity);
        Self::of(tonic::transport::Server::builder().tls_config(tls).unwrap(), 0).await
    }

    async fn of(mut server: tonic::transport::Server, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, received) = mpsc::unbounded_channel();
        let refusal = Arc::<Mutex<Option<Status>>>::default();
        let service = Service { received: sender, refusal: refusal.clone() };
        let server = server
            .add_service(TraceServiceServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        // Ends with the runtime of the test.
        tokio::spawn(server);
        Self { address, received, refusal }
    }

    /// The next spans, which are those of one change.
    async fn trace(&mut self) -> (Option<String>, ResourceSpans) {
        let next = tokio::time::timeout(DEADLINE, self.received.recv());
        next.await.expect("no spans in time").unwrap()
    }
}

fn spans(of: &ResourceSpans) -> &[Span] {
    &of.scope_spans[0].spans
}

fn value(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|found| found.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// `weir serve` with a folder, and its log in a file.
struct Weir {
    serve: Serve,
    objects: Objects,
    folder: tempfile::TempDir,
}

impl Weir {
    async fn start(args: &[&str], variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config");
        std::fs::create_dir(&config).unwrap();
        let objects = Objects { folder: config.clone(), service: free_port(), backend: 8080 };
        objects.write_all(100, 0);
        let (xds, admin) = (free_port(), free_port());
        let child = Command::new(env!("CARGO_BIN_EXE_weir"))
            .arg("serve")
            .args(args)
            .arg("--config-dir")
            .arg(&config)
            .args(["--xds-listen", &format!("127.0.0.1:{xds}")])
            .args(["--admin-listen", &format!("127.0.0.1:{admin}")])
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stderr(File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let serve = Serve::of(child, xds, admin);
        serve.ready().await;
        Self { serve, objects, folder }
    }

    /// A proxy that has everything.
    async fn proxy(&self, pod: &str) -> Client {
        let mut client = connect(self.serve.xds, Variant::Delta, None).await;
        let node = Some(format!("sidecar~127.0.0.1~{pod}.shop~shop.svc.cluster.local"));
        client.send(Ask { node, ..ask(CDS, &[]) }).await;
        let clusters = client.got(CDS).await;
        client.ack(&clusters).await;
        let service = self.objects.service;
        let own = clusters.names().into_iter().filter(|name| name.contains("my-app"));
        client.fetch(EDS, &own.collect::<Vec<_>>()).await;
        client.fetch(LDS, &[]).await;
        client.fetch(RDS, &[&service.to_string()]).await;
        client
    }

    fn route(&self, v1: u32, v2: u32) {
        self.objects.write("virtual-service.yaml", &route_yaml(v1, v2));
    }

    /// Waits until the time line says this.
    async fn told(&self, what: &str) {
        until(&format!("the time line has {what}"), async || {
            let text = self.serve.admin().get("/api/v1/timeline").await.unwrap();
            String::from_utf8_lossy(&text).contains(what)
        })
        .await;
    }

    async fn counted(&self, result: &str) -> u64 {
        let name = format!("weir_trace_spans_total{{result=\"{result}\"}}");
        self.serve.metric(&name).await.unwrap_or_default()
    }

    fn log(&self, text: &str) -> usize {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap();
        log.lines().filter(|line| line.contains(text)).count()
    }
}

#[tokio::test]
async fn a_change_is_one_trace_until_the_last_proxy_has_acked_it() {
    let mut collector = Collector::start(0).await;
    let url = format!("http://{}", collector.address);
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=team%20a"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
    ];
    let weir = Weir::start(&[], &variables).await;
    let (mut first, mut last) = (weir.proxy("client-0").await, weir.proxy("client-1").await);

    weir.route(90, 10);
    let (to_first, to_last) = (first.got(RDS).await, last.got(RDS).await);
    first.ack(&to_first).await;
    weir.told("FIRST_ACK").await;
    last.ack(&to_last).await;

    // What was there when weir started has no trace, so this is the first one.
    let (tenant, received) = collector.trace().await;
    assert_eq!(tenant.as_deref(), Some("team a"));
    let resource = &received.resource.as_ref().unwrap().attributes;
    assert_eq!(value(resource, "service.name"), "weir");
    assert_eq!(value(resource, "service.version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(value(resource, "deployment.environment.name"), "test");
    let names: Vec<_> = spans(&received).iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["change VirtualService", "publish", "first ACK", "last ACK"]);
    let [root, publish, first_ack, last_ack] = spans(&received) else { panic!("{received:?}") };
    for child in [publish, first_ack, last_ack] {
        assert_eq!((&child.trace_id, &child.parent_span_id), (&root.trace_id, &root.span_id));
        assert!(child.start_time_unix_nano >= root.start_time_unix_nano, "{received:?}");
        assert!(child.end_time_unix_nano <= root.end_time_unix_nano, "{received:?}");
    }
    assert_eq!(last_ack.end_time_unix_nano, root.end_time_unix_nano);
    assert!(first_ack.end_time_unix_nano < last_ack.end_time_unix_nano, "{received:?}");
    assert_eq!(publish.end_time_unix_nano, last_ack.start_time_unix_nano);
    assert_eq!(root.status.as_ref().unwrap().code, i32::from(StatusCode::Ok));
    for (key, expected) in [
        ("weir.object.namespace", "shop"),
        ("weir.object.name", "my-app"),
        ("weir.change", "spec.http[0]: v1 100 -> 90 %, v2 0 -> 10 %"),
        ("weir.proxies.in_scope", "2"),
        ("weir.proxies.live", "2"),
        ("weir.outcome", "live"),
    ] {
        assert_eq!(value(&root.attributes, key), expected, "{key}");
    }
    until("4 spans are exported", async || weir.counted("exported").await == 4).await;
    assert_eq!(weir.counted("dropped").await, 0);

    // A version that is not valid is a trace that says so; what is on its way when weir stops is one, too.
    weir.objects.write("virtual-service.yaml", &route_yaml(50, 50).replace(": 50", ": -50"));
    let (_, received) = collector.trace().await;
    assert_eq!(value(&spans(&received)[0].attributes, "error.type"), "rejected");
    weir.route(80, 20);
    first.got(RDS).await;
    weir.serve.terminate();
    let (_, received) = collector.trace().await;
    assert_eq!(value(&spans(&received)[0].attributes, "weir.outcome"), "stopped");
    weir.serve.ended().await;
}

#[tokio::test]
async fn a_collector_that_is_down_or_refuses_does_no_harm_and_is_told_once() {
    const FAILS: &str = "cannot export traces";
    let port = free_port();
    let weir = Weir::start(&["--otlp-endpoint", &format!("http://127.0.0.1:{port}")], &[]).await;
    let mut proxy = weir.proxy("client-0").await;
    weir.route(90, 10);
    let route = proxy.got(RDS).await;
    proxy.ack(&route).await;
    until("weir says that it cannot export", async || weir.log(FAILS) == 1).await;

    // It is tried again.
    let mut collector = Collector::start(port).await;
    let (_, received) = collector.trace().await;
    assert_eq!(value(&spans(&received)[0].attributes, "weir.outcome"), "live");
    until("weir says that it exports", async || weir.log("exporting traces again") == 1).await;

    // What it refuses for good is dropped at once, and that is said once.
    *collector.refusal.lock() = Some(Status::permission_denied("no"));
    let mut dropped = 0;
    for weight in [20, 30] {
        weir.route(100 - weight, weight);
        let route = proxy.got(RDS).await;
        proxy.ack(&route).await;
        until("spans are dropped", async || weir.counted("dropped").await > dropped).await;
        dropped = weir.counted("dropped").await;
    }
    assert_eq!(weir.log(FAILS), 2);
    *collector.refusal.lock() = None;
    weir.route(60, 40);
    let route = proxy.got(RDS).await;
    proxy.ack(&route).await;
    let (_, received) = collector.trace().await;
    let what = value(&spans(&received)[0].attributes, "weir.change");
    assert_eq!(what, "spec.http[0]: v1 70 -> 60 %, v2 30 -> 40 %");
    assert_eq!((weir.counted("dropped").await, weir.log(FAILS)), (dropped, 2));
}

#[tokio::test]
async fn a_collector_with_tls_gets_traces_only_if_its_certificate_is_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(folder.path());
    let mut collector = Collector::start_with_tls(&certificates).await;
    let url = format!("https://localhost:{}", collector.address.port());
    for (roots, trusted) in [("other-ca.pem", false), ("ca.pem", true)] {
        let roots = certificates.file(roots);
        let variables = [("OTEL_EXPORTER_OTLP_CERTIFICATE", roots.as_str())];
        let weir = Weir::start(&["--otlp-endpoint", &url], &variables).await;
        let mut proxy = weir.proxy("client-0").await;
        weir.route(90, 10);
        let route = proxy.got(RDS).await;
        proxy.ack(&route).await;
        if trusted {
            let (_, received) = collector.trace().await;
            assert_eq!(value(&spans(&received)[0].attributes, "weir.outcome"), "live");
        } else {
            until("weir says why", async || weir.log("invalid peer certificate") == 1).await;
            assert!(collector.received.try_recv().is_err());
        }
    }
}

#[test]
fn a_wrong_address_of_the_collector_is_a_usage_error() {
    let printed = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["serve", "--config-dir", ".", "--otlp-endpoint", "collector:4317"])
        .output()
        .unwrap();
    assert_eq!(printed.status.code(), Some(2), "{printed:?}");
    let said = String::from_utf8_lossy(&printed.stderr);
    let expected = "--otlp-endpoint is `collector:4317`: expected http://HOST:PORT or https://HOST";
    assert!(said.contains(expected), "{said}");
}
