//! What hostile clients can take from the others: nothing for long. How long things take under attack stands in
//! `benches/attack.rs`; here only what happens is looked at.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::hostile::{self, Attack, CDS, Http2, Watcher};
use crate::support::mesh::{DEADLINE, Objects, Serve, route_yaml, until};
use crate::support::process::free_port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weir::admission::Limits;
use weir::control_plane::{ControlPlane, Options, Source};
use weir::mesh::MeshConfig;
use weir::xds::stream::StreamSettings;

const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct Weir {
    serve: Serve,
    objects: Objects,
    _folder: tempfile::TempDir,
}

fn objects(folder: &tempfile::TempDir) -> Objects {
    let objects = Objects { folder: folder.path().to_owned(), service: 8000, backend: 8080 };
    objects.write_all(100, 0);
    objects
}

impl Weir {
    async fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let objects = objects(&folder);
        let args =
            [&["--log", "error", "--config-dir", folder.path().to_str().unwrap()], more].concat();
        let serve = Serve::start(&args, free_port(), free_port());
        serve.ready().await;
        Self { serve, objects, _folder: folder }
    }

    fn xds(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.serve.xds).into()
    }

    /// How much of a resource the clients of ADS have in use.
    async fn admitted(&self, resource: &str) -> u64 {
        let name = format!("weir_admitted{{port=\"xds\",resource=\"{resource}\"}} ");
        self.serve.metric(&name).await.unwrap()
    }

    async fn in_use(&self) -> [u64; 3] {
        [
            self.admitted("connections").await,
            self.admitted("streams").await,
            self.admitted("memory").await,
        ]
    }

    async fn refusals(&self, resource: &str, reason: &str) -> u64 {
        let name = format!(
            "weir_admission_refusals_total{{port=\"xds\",resource=\"{resource}\",reason=\"{reason}\"}} "
        );
        self.serve.metric(&name).await.unwrap()
    }
}

async fn in_time<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, event)
        .await
        .unwrap_or_else(|_| panic!("waited {DEADLINE:?} for: {what}"))
}

/// Plays an attack: while it lasts a new proxy is served and a weight goes live, and all that it took comes back.
async fn withstood(attack: Attack, count: usize) {
    let weir = Weir::start(&["--max-streams", "200", "--client-memory", "96M"]).await;
    let mut watcher = Watcher::new(PROXY, weir.xds(), "8000").await.unwrap();
    let before = weir.in_use().await;
    let tried = Arc::new(AtomicUsize::new(0));
    let attackers = attack.start(weir.xds(), count, &tried);
    for round in 1..=3u32 {
        let goal = count * round as usize / 3;
        until("the attack goes on", async || tried.load(Ordering::Relaxed) >= goal).await;
        let proxy =
            in_time("a new proxy's first clusters", hostile::served(PROXY, weir.xds())).await;
        assert!(proxy.is_ok(), "{attack:?}: {proxy:?}");
        weir.objects.write("virtual-service.yaml", &route_yaml(100 - round, round));
        in_time("the weight", watcher.next()).await.unwrap();
    }
    drop(attackers);
    until("all comes back", async || weir.in_use().await == before).await;
}

macro_rules! withstood {
    ($($name:ident: $attack:ident of $count:literal)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() { withstood(Attack::$attack, $count).await; })*
    };
}

withstood! {
    streams_that_are_opened_and_reset_keep_nobody_out: OpenReset of 3000
    rapid_reset_keeps_nobody_out: RapidReset of 3000
    a_header_flood_keeps_nobody_out: HeaderFlood of 600
    silent_connections_keep_nobody_out: Silent of 900
    slow_connections_keep_nobody_out: Slowloris of 900
    very_many_names_keep_nobody_out: UnknownNames of 24
    messages_without_an_end_keep_nobody_out: Unfinished of 36
    four_connections_can_not_hold_all_streams: Hogging of 600
    proxies_of_very_many_namespaces_keep_nobody_out: Scopes of 300
    streams_that_come_and_go_keep_nobody_out: Churn of 600
    connections_that_come_and_go_keep_nobody_out: Reconnecting of 1500
}

#[tokio::test]
async fn one_address_has_its_share_of_the_streams() {
    let weir = Weir::start(&["--max-streams", "20"]).await;
    let mut http = Http2::connect(hostile::attacker(0), weir.xds()).await.unwrap();
    for n in 0..6 {
        let stream = http.open(false, 0);
        let _ = http.send(stream, &hostile::request("bench", n, CDS, Vec::new())).await;
    }
    assert!(
        in_time("the refusal", http.until(|seen| seen.ended == 1 && seen.responses == 6)).await,
        "{http:?}"
    );
    assert_eq!(weir.admitted("streams").await, 5, "a quarter of all");
    assert_eq!(weir.refusals("streams", "share").await, 1);
    hostile::served(hostile::attacker(1), weir.xds()).await.unwrap();
}

#[tokio::test]
async fn who_has_the_most_makes_room_for_others() {
    let weir = Weir::start(&["--max-streams", "8", "--peer-share", "100"]).await;
    let mut http = Http2::connect(hostile::attacker(0), weir.xds()).await.unwrap();
    for n in 0..8 {
        let stream = http.open(false, 0);
        http.send(stream, &hostile::request("bench", n, CDS, Vec::new())).await.unwrap();
    }
    assert!(in_time("all clusters", http.until(|seen| seen.messages == 8)).await);
    let mut others = Vec::new();
    for n in 1..5 {
        others.push(hostile::served(hostile::attacker(n), weir.xds()).await.unwrap());
    }
    assert!(
        in_time("the end of as many as the others got", http.until(|seen| seen.ended == 4)).await
    );
    assert_eq!(weir.refusals("streams", "revoked").await, 4);
    assert!(others.iter().all(|other| !other.is_closed()));
    assert_eq!(weir.admitted("streams").await, 8);
}

/// `weir serve` with these limits of file descriptors, soft and hard.
fn limited(soft: u32, hard: u32, args: &[&str]) -> Child {
    let script =
        format!("ulimit -Sn {soft}; ulimit -Hn {hard}; exec \"$0\" serve --log error \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_weir")]).args(args).stdin(Stdio::null());
    command.spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptors_are_kept_for_the_source_and_the_admin_port() {
    let folder = tempfile::tempdir().unwrap();
    let objects = objects(&folder);
    let (xds, admin) = (free_port(), free_port());
    let listen = [format!("127.0.0.1:{xds}"), format!("127.0.0.1:{admin}")];
    let args = [
        "--config-dir",
        folder.path().to_str().unwrap(),
        "--xds-listen",
        &listen[0],
        "--admin-listen",
        &listen[1],
    ];
    let serve = Serve::of(limited(32, 128, &args), xds, admin);
    serve.ready().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", serve.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(
        files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(),
        ["128", "128"],
        "the soft limit is raised"
    );
    let xds = SocketAddr::from(([127, 0, 0, 1], xds));
    let mut watcher = Watcher::new(PROXY, xds, "8000").await.unwrap();
    let tried = Arc::new(AtomicUsize::new(0));
    let _ads = Attack::Silent.start(xds, 400, &tried);
    let on_admin = Arc::new(AtomicUsize::new(0));
    let _pages = Attack::Silent.start(([127, 0, 0, 1], admin).into(), 400, &on_admin);
    let all = |tried: &AtomicUsize| tried.load(Ordering::Relaxed) >= 400;
    until("all have connected", async || all(&tried) && all(&on_admin)).await;
    for round in 1..=3 {
        objects.write("virtual-service.yaml", &route_yaml(100 - round, round));
        in_time("the weight", watcher.next()).await.unwrap();
        serve.ready().await;
        hostile::served(PROXY, xds).await.unwrap();
    }
}

/// weir within the test, with times that are short enough to wait for.
async fn hasty(limits: Limits) -> (ControlPlane, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    objects(&folder);
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let plane = ControlPlane::start(Options {
        source: Source::Directory(folder.path().to_owned()),
        status: None,
        webhook: None,
        peers: None,
        gates_listen: None,
        xds_listen: Some(any),
        secure: None,
        admin_listen: any,
        mesh: MeshConfig::default(),
        streams: StreamSettings::default(),
        load: None,
        limits,
        admin_limits: Limits {
            first_request: limits.first_request,
            idle: limits.idle,
            ..Limits::admin()
        },
        timeline_memory: 8 << 20,
        traces: None,
    })
    .await
    .unwrap();
    plane.ready().await;
    (plane, folder)
}

const HASTE: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(3600);

/// Reads until the other side closes the connection, be it with a reset.
async fn closed(mut stream: tokio::net::TcpStream) {
    let mut buffer = [0; 1024];
    in_time("the connection's end", async {
        while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let (plane, _folder) =
        hasty(Limits { first_request: HASTE, idle: LONG, ..Limits::default() }).await;
    for to in [plane.xds_addr().unwrap(), plane.admin_addr()] {
        closed(hostile::connect(PROXY, to).await.unwrap()).await;
    }
}

#[tokio::test]
async fn a_connection_whose_first_request_never_ends_is_closed() {
    let (plane, _folder) =
        hasty(Limits { first_request: HASTE, idle: LONG, ..Limits::default() }).await;
    for (to, beginning) in [
        (
            plane.xds_addr().unwrap(),
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x05"[..],
        ),
        (plane.xds_addr().unwrap(), b"PRI"),
        (plane.admin_addr(), b"GET /ready HTTP/1.1\r\nhost: weir\r\nx-more: "),
        (plane.admin_addr(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
    ] {
        let mut stream = hostile::connect(PROXY, to).await.unwrap();
        stream.write_all(beginning).await.unwrap();
        closed(stream).await;
    }
}

#[tokio::test]
async fn a_connection_all_of_whose_streams_have_ended_is_closed() {
    let (plane, _folder) =
        hasty(Limits { first_request: LONG, idle: HASTE, ..Limits::default() }).await;
    let mut http = hostile::served(PROXY, plane.xds_addr().unwrap()).await.unwrap();
    http.reset(1);
    http.flush().await.unwrap();
    in_time("the end of a connection to ADS", http.until(|_| false)).await;
    let mut stream = hostile::connect(PROXY, plane.admin_addr()).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: weir\r\n\r\n").await.unwrap();
    closed(stream).await;
}

#[tokio::test]
async fn a_stream_without_a_first_message_is_ended() {
    let (plane, _folder) = hasty(Limits { first_request: HASTE, ..Limits::default() }).await;
    let mut http = Http2::connect(PROXY, plane.xds_addr().unwrap()).await.unwrap();
    http.open(false, 0);
    http.flush().await.unwrap();
    in_time("the stream's end", http.until(|seen| seen.ended == 1)).await;
}

#[tokio::test]
async fn a_message_that_does_not_end_is_given_up() {
    let (plane, _folder) = hasty(Limits { message: HASTE, ..Limits::default() }).await;
    let mut http = hostile::served(PROXY, plane.xds_addr().unwrap()).await.unwrap();
    http.send(1, &[0, 0, 0, 0, 200, 1, 2, 3]).await.unwrap();
    in_time("the stream's end", http.until(|seen| seen.ended == 1)).await;
    assert!(!http.is_closed(), "the connection may be used for others");
}

#[tokio::test]
async fn a_connection_with_an_open_stream_stays() -> io::Result<()> {
    let (plane, folder) =
        hasty(Limits { first_request: HASTE, idle: HASTE, message: HASTE, ..Limits::default() })
            .await;
    let mut watcher = Watcher::new(PROXY, plane.xds_addr().unwrap(), "8000").await?;
    // Another one that says nothing comes later and goes earlier.
    closed(hostile::connect(PROXY, plane.xds_addr().unwrap()).await?).await;
    objects(&folder).write("virtual-service.yaml", &route_yaml(50, 50));
    in_time("the weight", watcher.next()).await?;
    Ok(())
}
