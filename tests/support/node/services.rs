//! The cluster's Services: the addresses of Services lead to their ready endpoints, as by kube-proxy, and their names are
//! answered over DNS.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client, ResourceExt as _};
use parking_lot::Mutex;
use tokio::net::UdpSocket;

/// Addresses by fully qualified names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names(Arc<Mutex<BTreeMap<String, Vec<Ipv4Addr>>>>);

/// Keeps the rules and the names as the API says.
pub(crate) async fn follow(client: Client, names: Names) {
    let (services, service_writer) = reflector::store::<Service>();
    let (slices, slice_writer) = reflector::store::<EndpointSlice>();
    let of_services = watcher(Api::<Service>::all(client.clone()), watcher::Config::default());
    let of_slices = watcher(Api::<EndpointSlice>::all(client), watcher::Config::default());
    let of_services = of_services.default_backoff().reflect(service_writer).map(|_| ());
    let of_slices = of_slices.default_backoff().reflect(slice_writer).map(|_| ());
    let mut changes = futures::stream::select(of_services.boxed(), of_slices.boxed());
    let mut rules = String::new();
    while changes.next().await.is_some() {
        let (services, slices) = (services.state(), slices.state());
        *names.0.lock() = services.iter().map(|service| named(service, &slices)).collect();
        let new = rules_of(&services, &slices);
        if new != rules {
            apply(&new);
            rules = new;
        }
    }
}

/// The name of a Service and its addresses; those of a headless one are its endpoints'.
fn named(service: &Service, slices: &[Arc<EndpointSlice>]) -> (String, Vec<Ipv4Addr>) {
    let namespace = service.namespace().unwrap_or_default();
    let name = format!("{}.{namespace}.svc.cluster.local", service.name_any());
    let addresses = match cluster_ip(service) {
        Some(address) => vec![address],
        None => slices_of(service, slices).flat_map(ready).collect(),
    };
    (name, addresses)
}

fn cluster_ip(service: &Service) -> Option<Ipv4Addr> {
    service.spec.as_ref()?.cluster_ip.as_ref()?.parse().ok()
}

fn slices_of<'a>(
    service: &Service,
    slices: &'a [Arc<EndpointSlice>],
) -> impl Iterator<Item = &'a EndpointSlice> {
    let (namespace, name) = (service.namespace(), service.name_any());
    slices.iter().map(AsRef::as_ref).filter(move |slice: &&EndpointSlice| {
        slice.namespace() == namespace
            && slice.labels().get("kubernetes.io/service-name") == Some(&name)
    })
}

fn ready(slice: &EndpointSlice) -> impl Iterator<Item = Ipv4Addr> {
    let endpoints = slice.endpoints.iter().flatten().filter(|endpoint| {
        endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready != Some(false))
    });
    endpoints.flat_map(|endpoint| &endpoint.addresses).filter_map(|address| address.parse().ok())
}

/// A table of nft that sends each connection to the port of a Service to one of its endpoints.
fn rules_of(services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> String {
    let mut lines = Vec::new();
    for service in services {
        let Some(address) = cluster_ip(service) else { continue };
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref());
        for port in ports.unwrap_or_default() {
            let mut to = Vec::new();
            for slice in slices_of(service, slices) {
                let target = slice.ports.iter().flatten().find(|of| of.name == port.name);
                if let Some(target) = target.and_then(|target| target.port) {
                    to.extend(ready(slice).map(|address| format!("{address} . {target}")));
                }
            }
            to.sort();
            let entries: Vec<String> =
                to.iter().enumerate().map(|(n, to)| format!("{n} : {to}")).collect();
            if !entries.is_empty() {
                lines.push(format!(
                    "ip daddr {address} tcp dport {} dnat ip to numgen random mod {} map {{ {} }}\n",
                    port.port,
                    entries.len(),
                    entries.join(", ")
                ));
            }
        }
    }
    lines.sort();
    format!(
        "table ip services {{}}\ndelete table ip services\ntable ip services {{ chain prerouting {{\n\
         type nat hook prerouting priority dstnat\n{}}}\n}}\n",
        lines.concat()
    )
}

fn apply(rules: &str) {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nft runs");
    nft.stdin.take().expect("it has one").write_all(rules.as_bytes()).expect("nft reads");
    let output = nft.wait_with_output().expect("nft ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\n{rules}");
}

/// Answers questions for these names: addresses of IPv4, and nothing for other types.
pub(crate) async fn answer(socket: UdpSocket, names: Names) {
    let mut question = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut question).await {
        if let Some(response) = response(&question[..length], &names) {
            // Whoever asked asks again.
            let _ = socket.send_to(&response, from).await;
        }
    }
}

/// The response to a message with one question, after RFC 1035.
fn response(message: &[u8], names: &Names) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    const A: u16 = 1;
    let mut at = HEADER;
    let mut labels = Vec::new();
    while let length @ 1.. = usize::from(*message.get(at)?) {
        let label = message.get(at + 1..at + 1 + length)?;
        labels.push(String::from_utf8_lossy(label).to_lowercase());
        at += 1 + length;
    }
    // The length 0, the type and the class end the question.
    let question = message.get(HEADER..at + 5)?;
    let kind = u16::from_be_bytes([*message.get(at + 1)?, *message.get(at + 2)?]);
    let known = names.0.lock().get(&labels.join(".")).cloned();
    let addresses = match kind {
        A => known.clone().unwrap_or_default(),
        _ => Vec::new(),
    };
    // A recursive server's answer, with authority: no such name, or no error.
    let code = if known.is_some() { 0x80 } else { 0x83 };
    let mut out = message.get(..2)?.to_vec();
    out.extend([0x85, code, 0, 1, 0, u8::try_from(addresses.len()).ok()?, 0, 0, 0, 0]);
    out.extend(question);
    for address in addresses {
        // The name of the question, IN, and a life of 5 s.
        out.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        out.extend(address.octets());
    }
    Some(out)
}
