//! Compares `weir explain` with a real Envoy: the same requests, simulated and sent, for the routes of every case.
//!
//! Envoy gets the very route configurations that weir translates, in the HTTP connection managers that weir translates,
//! with one change: every action is a direct response that says which virtual host and route it is. So the matching is
//! Envoy's own, and its answer can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use crate::support::mesh::DEADLINE;
use crate::support::process::free_port;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use prost::Message;
use serde_json::{Value, json};
use weir::cli::objects::Objects;
use weir::envoy::{EnvoyBinary, SpawnOptions};
use weir::explain::{self, Outcome, Request, TrafficQuery};
use weir::mesh::{MeshConfig, Scope, ScopeView};
use weir::snapshot::{ResourceType, Snapshot, SnapshotBuilder};

/// The minimum number of requests over all cases.
const REQUESTS: usize = 6_000;

struct Case {
    name: String,
    objects: Objects,
    scope: Scope,
    snapshot: Snapshot,
}

struct Table {
    case: usize,
    configuration: route::RouteConfiguration,
    /// The port of its services.
    port: u16,
    /// What weir's listener has requests taken in by.
    manager: hcm::HttpConnectionManager,
    /// The port on which Envoy listens for it.
    listens: u16,
}

#[tokio::test]
async fn explain_agrees_with_envoy_on_every_request() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let cases = std::fs::read_dir(root.join("cases")).unwrap();
    let mut folders: Vec<PathBuf> = cases.map(|entry| entry.unwrap().path()).collect();
    folders.push(root.join("explain"));
    folders.sort();
    let cases: Vec<Case> = folders.iter().map(|folder| case(folder)).collect();
    let mut tables: Vec<Table> =
        cases.iter().enumerate().flat_map(|(at, case)| route_tables(at, case)).collect();
    let folder = tempfile::tempdir().unwrap();
    let envoy = start(folder.path(), &mut tables).await;
    let (seed, per_table) = (0x9e37_79b9_7f4a_7c15, REQUESTS.div_ceil(tables.len()) + 1);
    let (count, wrong, taken, routes) = tokio::task::spawn_blocking(move || {
        let mut random = Random(seed);
        let (mut count, mut wrong, mut taken) = (0, Vec::new(), BTreeSet::new());
        let hosts = tables.iter().flat_map(|table| &table.configuration.virtual_hosts);
        let routes: usize = hosts.map(|host| host.routes.len()).sum();
        for (at, table) in tables.iter().enumerate() {
            let case = &cases[table.case];
            let mut connection = Connection::new(table.listens);
            for request in requests(table, per_table, &mut random) {
                count += 1;
                let (got, played) = (connection.send(&request), play(case, table, &request));
                taken.insert((at, got.clone()));
                if got != played {
                    wrong.push(format!(
                        "{} {request:?}\n  Envoy   {got}\n  explain {played}",
                        case.name
                    ));
                }
            }
        }
        (count, wrong, taken.len(), routes)
    })
    .await
    .unwrap();
    drop(envoy);
    assert!(count >= REQUESTS, "only {count} requests");
    assert!(taken * 10 >= routes * 9, "only {taken} of {routes} routes matched any request");
    assert!(
        wrong.is_empty(),
        "seed {seed:x}: {} of {count} differ:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(10)].join("\n")
    );
}

fn case(folder: &Path) -> Case {
    let objects = Objects::load(&folder.join("input.yaml"), MeshConfig::default()).unwrap();
    let scope = objects.mesh.scope(&objects.proxy("shop/client-0", false).unwrap());
    let snapshot = SnapshotBuilder::default().snapshot(&objects.mesh, &scope);
    Case {
        name: folder.file_name().unwrap().to_string_lossy().into_owned(),
        objects,
        scope,
        snapshot,
    }
}

fn route_tables(at: usize, case: &Case) -> Vec<Table> {
    let all = case.snapshot.get(ResourceType::Route).values();
    all.map(|resource| {
        let configuration = route::RouteConfiguration::decode(resource.bytes().as_slice()).unwrap();
        let port = configuration.name.rsplit(':').next().unwrap().parse().unwrap();
        let listeners = case.snapshot.get(ResourceType::Listener).values();
        let mut listeners =
            listeners.map(|item| listener::Listener::decode(item.bytes().as_slice()).unwrap());
        let manager = listeners
            .find_map(|item| managers(&item).find(|(name, _)| *name == configuration.name));
        let (_, manager) = manager
            .unwrap_or_else(|| panic!("{}: nothing asks for {}", case.name, configuration.name));
        Table { case: at, configuration, port, manager, listens: 0 }
    })
    .collect()
}

/// Envoy with a listener for each table.
async fn start(folder: &Path, tables: &mut [Table]) -> weir::envoy::EnvoyProcess {
    let mut listeners = Vec::new();
    let mut used = BTreeSet::new();
    for table in tables.iter_mut() {
        table.listens = loop {
            let port = free_port();
            if used.insert(port) {
                break port;
            }
        };
        let mut barrier_reached = table.configuration.clone();
        for host in &mut barrier_reached.virtual_hosts {
            for (n, item) in host.routes.iter_mut().enumerate() {
                let body =
                    Some(core::data_source::Specifier::InlineString(format!("{}|{n}", host.name)));
                *item = route::Route {
                    r#match: item.r#match.clone(),
                    action: Some(route::route::Action::DirectResponse(
                        route::DirectResponseAction {
                            status: 200,
                            body: Some(core::DataSource { specifier: body, ..Default::default() }),
                            ..Default::default()
                        },
                    )),
                    ..Default::default()
                };
            }
        }
        listeners.push(json!({
            "name": format!("{}-{}", table.case, barrier_reached.name),
            "address": {"socketAddress": {"address": "127.0.0.1", "portValue": table.listens}},
            "filterChains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typedConfig": typed(table.manager.clone(), barrier_reached),
            }]}]
        }));
    }
    let bootstrap = json!({
        "node": {"id": "explain", "cluster": "explain"},
        "admin": {"address": {"socketAddress": {"address": "127.0.0.1", "portValue": 0}}},
        "staticResources": {"listeners": listeners},
    });
    let file = folder.join("bootstrap.json");
    std::fs::write(&file, serde_json::to_vec(&bootstrap).unwrap()).unwrap();
    let binary = tokio::task::spawn_blocking(|| EnvoyBinary::find(None)).await.unwrap().unwrap();
    let mut process = binary.spawn(&SpawnOptions::new(file)).unwrap();
    process.ready(DEADLINE).await.unwrap();
    process
}

/// The managers of a listener that ask for routes, with the names of these.
fn managers(
    listener: &listener::Listener,
) -> impl Iterator<Item = (String, hcm::HttpConnectionManager)> {
    let filters = listener.filter_chains.iter().flat_map(|chain| &chain.filters);
    filters.filter_map(|filter| {
        let Some(listener::filter::ConfigType::TypedConfig(any)) = &filter.config_type else {
            return None;
        };
        if !any.type_url.ends_with(".HttpConnectionManager") {
            return None;
        }
        let manager = hcm::HttpConnectionManager::decode(any.value.as_slice()).unwrap();
        match &manager.route_specifier {
            Some(hcm::http_connection_manager::RouteSpecifier::Rds(rds)) => {
                Some((rds.route_config_name.clone(), manager))
            }
            _ => None,
        }
    })
}

/// A manager with routes of its own instead of those that it would ask for.
fn typed(mut manager: hcm::HttpConnectionManager, routes: route::RouteConfiguration) -> Value {
    manager.route_specifier =
        Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(routes));
    let mut json = weir::proto_json::message_to_json(&manager).unwrap();
    let name = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    json["@type"] = format!("type.googleapis.com/{name}").into();
    json
}

#[derive(Clone, Debug)]
struct Wanted {
    method: &'static str,
    authority: String,
    target: String,
    headers: BTreeMap<String, String>,
}

/// Requests for every host of a table, with values that its routes match and values that they do not.
fn requests(table: &Table, count: usize, random: &mut Random) -> Vec<Wanted> {
    let hosts = &table.configuration.virtual_hosts;
    (0..count)
        .map(|n| {
            let host = &hosts[n % hosts.len()];
            let domain = random.of(&host.domains).replace('*', "some");
            let domain = if domain == "some" { "nobody.knows.example".to_owned() } else { domain };
            let authority = match random.below(4) {
                0 => format!("{domain}:{}", table.port),
                1 => domain.to_uppercase(),
                _ => domain,
            };
            let item = random.of(&host.routes).r#match.clone().unwrap_or_default();
            let other = random.of(&host.routes).r#match.clone().unwrap_or_default();
            let mut wanted = Wanted {
                method: random.of::<&str>(&["GET", "GET", "POST", "PUT", "DELETE"]),
                authority,
                target: path(&item, random),
                headers: BTreeMap::new(),
            };
            for header in item.headers.iter().chain(&other.headers) {
                apply(header, &mut wanted, random);
            }
            let parameters: Vec<String> = item
                .query_parameters
                .iter()
                .filter(|_| random.below(4) > 0)
                .map(|query| match &query.query_parameter_match_specifier {
                    Some(
                        route::query_parameter_matcher::QueryParameterMatchSpecifier::StringMatch(
                            text,
                        ),
                    ) => (query.name.clone(), sample(text)),
                    _ => (query.name.clone(), "any".to_owned()),
                })
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            if !parameters.is_empty() {
                let sign = if wanted.target.contains('?') { '&' } else { '?' };
                wanted.target = format!("{}{sign}{}", wanted.target, parameters.join("&"));
            }
            hop_by_hop(&mut wanted, random);
            wanted
        })
        .collect()
}

fn path(item: &route::RouteMatch, random: &mut Random) -> String {
    use route::route_match::PathSpecifier;
    let text = match &item.path_specifier {
        Some(PathSpecifier::Prefix(text) | PathSpecifier::Path(text)) => text.clone(),
        Some(PathSpecifier::SafeRegex(regex)) => of_regex(&regex.regex),
        _ => "/".to_owned(),
    };
    match random.below(12) {
        0 => format!("{text}x"),
        1 => format!("{}/deeper", text.trim_end_matches('/')),
        2 => text.to_uppercase(),
        3 => format!("{}/./a/../b", text.trim_end_matches('/')),
        4 => "/elsewhere".to_owned(),
        5 => text.chars().take(text.len().saturating_sub(1).max(1)).collect(),
        6..9 => disguised(&text, random),
        _ => text,
    }
}

/// A path that Envoy may take for `text` once it has normalized it.
fn disguised(text: &str, random: &mut Random) -> String {
    let mut text = text.to_owned();
    for _ in 0..=random.below(2) {
        let places: Vec<usize> =
            text.char_indices().skip(1).map(|(at, _)| at).chain([text.len()]).collect();
        let at = *random.of(&places);
        let (start, end) = (text[..at].to_owned(), text[at..].to_owned());
        let next = end.chars().next().filter(|next| next.is_ascii());
        let extra = random.of(&[
            "/.", "/x/..", "/%2e", "/x/.%2E", "/x/..;y", "/.;", "\\.", "\\x\\..", "/", "%2F", "\"",
            "%7e",
        ]);
        text = match (random.below(3), next) {
            (0, Some(next)) => format!("{start}%{:02x}{}", u32::from(next), &end[1..]),
            (1, Some('/')) => format!("{start}\\{}", &end[1..]),
            _ => format!("{start}{extra}{end}"),
        };
    }
    text
}

/// Headers that are for the connection alone, and those that say which.
fn hop_by_hop(wanted: &mut Wanted, random: &mut Random) {
    let (name, value) = *random.of(&[
        ("x-hop", "1"),
        ("x-forwarded-proto", "HTTPS"),
        ("x-forwarded-proto", "http, https"),
        ("te", "gzip, trailers"),
        ("te", "gzip"),
        ("keep-alive", "timeout=5"),
        ("upgrade", "websocket"),
        ("upgrade", "other"),
        ("connection", "x-hop"),
    ]);
    match random.below(16) {
        0 => drop(wanted.headers.insert("connection".to_owned(), "upgrade".to_owned())),
        1 | 2 => drop(wanted.headers.insert(name.to_owned(), value.to_owned())),
        3 => wanted.target = "/a%00b".to_owned(),
        _ => {}
    }
}

fn apply(header: &route::HeaderMatcher, wanted: &mut Wanted, random: &mut Random) {
    use route::header_matcher::HeaderMatchSpecifier;
    let value = match &header.header_match_specifier {
        Some(HeaderMatchSpecifier::StringMatch(text)) => sample(text),
        _ => "something".to_owned(),
    };
    if header.name == ":method" {
        let known = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];
        if let Some(method) =
            known.into_iter().find(|method| *method == value).filter(|_| random.below(3) > 0)
        {
            wanted.method = method;
        }
    }
    if header.name == ":path" && value.starts_with('/') && random.below(2) > 0 {
        wanted.target = value.clone();
    }
    if header.name == ":scheme" && random.below(3) > 0 {
        wanted.headers.insert("x-forwarded-proto".to_owned(), value.clone());
    }
    if header.name.starts_with(':') {
        return;
    }
    match random.below(6) {
        0 => {
            wanted.headers.remove(&header.name);
        }
        1 => {
            wanted.headers.insert(header.name.clone(), String::new());
        }
        2 => {
            wanted.headers.insert(header.name.clone(), format!("{value}z"));
        }
        _ => {
            wanted.headers.insert(header.name.clone(), value);
        }
    }
}

fn sample(text: &matcher::StringMatcher) -> String {
    use matcher::string_matcher::MatchPattern;
    match &text.match_pattern {
        Some(MatchPattern::Exact(text) | MatchPattern::Prefix(text)) => text.clone(),
        Some(MatchPattern::SafeRegex(regex)) => of_regex(&regex.regex),
        _ => "x".to_owned(),
    }
}

/// A string similar to what an expression matches; Envoy decides whether it does.
fn of_regex(pattern: &str) -> String {
    let mut out = pattern
        .replace("[0-9]+", "7")
        .replace("\\d+", "7")
        .replace("[a-z]+", "q")
        .replace(".*", "anything");
    out = out
        .replace(".+", "some")
        .replace("(", "")
        .replace(")", "")
        .replace("?", "")
        .replace('|', "");
    out.chars().filter(|c| c.is_ascii_graphic() && !"[]{}^$\\+*#%".contains(*c)).collect()
}

/// `VIRTUAL HOST|ROUTE` from Envoy's response, or the status if no route matched.
struct Connection {
    port: u16,
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Connection {
    fn new(port: u16) -> Self {
        let writer = TcpStream::connect(("127.0.0.1", port)).unwrap();
        writer.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { port, reader: BufReader::new(writer.try_clone().unwrap()), writer }
    }

    fn send(&mut self, request: &Wanted) -> String {
        let mut text = format!(
            "{} {} HTTP/1.1\r\nhost: {}\r\ncontent-length: 0\r\n",
            request.method, request.target, request.authority
        );
        for (name, value) in &request.headers {
            text += &format!("{name}: {value}\r\n");
        }
        self.writer.write_all(format!("{text}\r\n").as_bytes()).unwrap();
        let (mut status, mut length, mut closes, mut line) =
            (String::new(), 0usize, false, String::new());
        loop {
            line.clear();
            assert!(
                self.reader.read_line(&mut line).unwrap() > 0,
                "Envoy closed the connection at {request:?}"
            );
            let lower = line.trim().to_ascii_lowercase();
            if status.is_empty() {
                status = lower.split(' ').nth(1).unwrap_or_default().to_owned();
            } else if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            } else if lower == "connection: close" {
                closes = true;
            } else if lower.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).unwrap();
        if closes {
            *self = Self::new(self.port);
        }
        if status == "200" { String::from_utf8(body).unwrap() } else { status }
    }
}

/// The same from `weir explain`; its destinations must be those of the route.
fn play(case: &Case, table: &Table, wanted: &Wanted) -> String {
    let domain = wanted.authority.split(':').next().unwrap();
    let own = table
        .configuration
        .name
        .split(':')
        .next()
        .filter(|_| table.configuration.name.contains(':'));
    let url = format!(
        "{} http://{}:{}{}",
        wanted.method,
        own.unwrap_or(domain),
        table.port,
        wanted.target
    );
    let mut headers: Vec<String> =
        wanted.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    headers.push(format!("host: {}", wanted.authority));
    let request = Request::parse(&url, &headers).unwrap();
    let view = ScopeView::new(&case.objects.mesh, &case.scope);
    let answer = explain::explain(&view, &case.snapshot, &TrafficQuery::Http(request));
    assert_eq!(
        answer.route_configuration.as_deref(),
        Some(table.configuration.name.as_str()),
        "{url}"
    );
    if let (None, Outcome::Respond { status, .. }) = (&answer.virtual_host, &answer.outcome) {
        return status.to_string();
    }
    let taken = answer.considered.iter().find(|item| item.not.is_none());
    let (Some(host), Some(index)) = (&answer.virtual_host, taken.and_then(|item| item.index))
    else {
        assert_eq!(answer.outcome, Outcome::NoRoute);
        return "404".to_owned();
    };
    let route = &table
        .configuration
        .virtual_hosts
        .iter()
        .find(|virtual_host| virtual_host.name == *host)
        .unwrap()
        .routes[index];
    assert_eq!(clusters(&answer.outcome), leads_to(route), "{} {host} {index}", case.name);
    format!("{host}|{index}")
}

fn clusters(outcome: &Outcome) -> BTreeSet<String> {
    match outcome {
        Outcome::Forward { destinations, .. } => {
            destinations.iter().map(|to| to.cluster.clone()).collect()
        }
        _ => BTreeSet::new(),
    }
}

fn leads_to(route: &route::Route) -> BTreeSet<String> {
    let json: Value = weir::proto_json::message_to_json(route).unwrap();
    let action = &json["route"];
    let weighted = action["weightedClusters"]["clusters"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|item| &item["name"]);
    weighted
        .chain([&action["cluster"]])
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect()
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }
}
