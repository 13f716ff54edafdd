//! Which endpoints a real Envoy reaches: pods with two addresses, and services of the client's node alone.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

use crate::support::Skip;
use crate::support::sidecar::Options;
use crate::support::traffic::{Mesh, greeting};

const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn v4(n: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 7, n).into()
}

/// Listeners at all of these addresses on one port, each with the number by which its backend answers: the last of an
/// IPv4 address, and 6 for IPv6.
fn listen(addresses: &[IpAddr]) -> (u16, Vec<(u8, TcpListener)>) {
    for _ in 0..50 {
        let first = TcpListener::bind((addresses[0], 0)).unwrap();
        let port = first.local_addr().unwrap().port();
        let others: Vec<_> = addresses[1..]
            .iter()
            .map_while(|other| TcpListener::bind((*other, port)).ok())
            .collect();
        if others.len() + 1 == addresses.len() {
            let number = |address: &IpAddr| match address {
                IpAddr::V4(ip) => ip.octets()[3],
                IpAddr::V6(_) => 6,
            };
            return (
                port,
                addresses.iter().map(number).zip(std::iter::once(first).chain(others)).collect(),
            );
        }
    }
    panic!("no port is free at all of {addresses:?}");
}

/// Has a listener do this with every connection, for as long as this process runs.
fn serve(listeners: Vec<(u8, TcpListener)>, answer: fn(u8, TcpStream) -> std::io::Result<()>) {
    for (number, listener) in listeners {
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                std::thread::spawn(move || answer(number, connection));
            }
        });
    }
}

/// Says the number, and keeps the connection until the client ends it.
fn greet(number: u8, mut connection: TcpStream) -> std::io::Result<()> {
    writeln!(connection, "{number}")?;
    std::io::copy(&mut connection, &mut std::io::sink()).map(drop)
}

/// Answers requests with the number.
fn respond(number: u8, mut connection: TcpStream) -> std::io::Result<()> {
    let lines = BufReader::new(connection.try_clone()?).lines();
    for line in lines {
        if line?.is_empty() {
            write!(connection, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}")?;
        }
    }
    Ok(())
}

fn service(name: &str, protocol: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{clusterIP: 10.96.7.1, ports: [{{name: {protocol}, port: ${name}}}], {more}}}\n---\n"
    )
}

/// The slice of one family, with these addresses, each the pod of that name and on that node.
fn slice(
    service: &str,
    protocol: &str,
    family: &str,
    port: u16,
    endpoints: &[(IpAddr, &str, &str)],
) -> String {
    let endpoint = |(address, pod, node): &(IpAddr, &str, &str)| {
        format!(
            "{{addresses: ['{address}'], nodeName: {node}, targetRef: {{kind: Pod, name: {pod}}}}}"
        )
    };
    let endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
    let label = format!("labels: {{kubernetes.io/service-name: {service}}}");
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {service}-{}, namespace: shop, {label}}}\n\
         addressType: {family}\nports: [{{name: {protocol}, port: {port}}}]\nendpoints: [{}]\n---\n",
        family.to_ascii_lowercase(),
        endpoints.join(", ")
    )
}

const IN_TURN: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: all, namespace: shop}
spec: {host: '*.shop.svc.cluster.local', trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
";

#[tokio::test]
async fn a_pod_with_two_addresses_gets_the_share_of_one() {
    if let Err(error) = TcpListener::bind((V6, 0)) {
        Skip { why: format!("there is no IPv6: {error}") }
            .report("a_pod_with_two_addresses_gets_the_share_of_one");
        return;
    }
    let (tcp, listeners) = listen(&[v4(1), v4(2), V6]);
    serve(listeners, greet);
    let (http, listeners) = listen(&[v4(1), V6]);
    serve(listeners, respond);
    // Nobody listens at 127.0.7.3.
    let both = [(v4(1), "a", "n1"), (v4(2), "b", "n1")];
    let objects = [
        service("both", "tcp", ""),
        slice("both", "tcp", "IPv4", tcp, &both),
        slice("both", "tcp", "IPv6", tcp, &[(V6, "a", "n1")]),
        service("half", "tcp", ""),
        slice("half", "tcp", "IPv4", tcp, &[(v4(3), "a", "n1")]),
        slice("half", "tcp", "IPv6", tcp, &[(V6, "a", "n1")]),
        service("pages", "http", ""),
        slice("pages", "http", "IPv4", http, &[(v4(3), "a", "n1"), (v4(1), "b", "n1")]),
        slice("pages", "http", "IPv6", http, &[(V6, "a", "n1")]),
        IN_TURN.to_owned(),
    ];
    let dual = ["--ip", "10.9.0.1", "--ip", "fd00:9::1"];
    let mesh = Mesh::start(&objects, Options { bootstrap: &dual, ..Options::default() }).await;
    let member = async |service: &str| {
        mesh.cluster_stat(
            service,
            "",
            &format!("{service}.shop.svc.cluster.local"),
            "membership_total",
        )
        .await
    };
    assert_eq!((member("both").await, member("half").await, member("pages").await), (2, 1, 2));

    let greeted = async |port: &str| {
        greeting(mesh.connect(port, Ipv4Addr::LOCALHOST).await).await.map(|(number, _)| number)
    };
    let mut answers = std::collections::BTreeMap::new();
    for _ in 0..20 {
        *answers.entry(greeted("both").await).or_insert(0) += 1;
    }
    assert_eq!(answers, [(Some(1), 10), (Some(2), 10)].into());
    // The address that does not answer costs no connection, and no request.
    for _ in 0..4 {
        assert_eq!(greeted("half").await, Some(6));
    }
    let mut pages = Vec::new();
    for _ in 0..4 {
        pages.push(mesh.request("GET", "pages", "pages.shop", "/").send().await.backend());
    }
    pages.sort_unstable();
    assert_eq!(pages, [1, 1, 6, 6]);
}

#[tokio::test]
async fn a_node_local_service_is_reached_on_the_clients_node_alone() {
    let (http, listeners) = listen(&[v4(1), v4(2)]);
    serve(listeners, respond);
    let local = "internalTrafficPolicy: Local";
    let (near, far) = ((v4(1), "a", "n1"), (v4(2), "b", "n2"));
    let objects = [
        service("near", "http", local),
        slice("near", "http", "IPv4", http, &[near, far]),
        service("far", "http", local),
        slice("far", "http", "IPv4", http, &[far]),
        service("any", "http", ""),
        slice("any", "http", "IPv4", http, &[near, far]),
        IN_TURN.to_owned(),
    ];
    let mesh =
        Mesh::start(&objects, Options { bootstrap: &["--node-name", "n1"], ..Options::default() })
            .await;
    let ask = async |service: &str| {
        mesh.request("GET", service, &format!("{service}.shop"), "/").send().await
    };
    for _ in 0..4 {
        assert_eq!(ask("near").await.backend(), 1);
        assert_eq!(ask("far").await.status, 503);
    }
    let any = [ask("any").await.backend(), ask("any").await.backend()];
    assert!(any == [1, 2] || any == [2, 1], "{any:?}");
}
