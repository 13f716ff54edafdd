//! Probes and hooks of containers, as a kubelet performs them.

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

use super::container::Running;

/// Performs a probe once.
///
/// # Errors
/// It fails.
pub(crate) async fn once(
    probe: &Probe,
    container: &Container,
    running: &Running,
    address: Ipv4Addr,
) -> Result<(), String> {
    let limit = seconds(probe.timeout_seconds, 1);
    let attempt = async {
        if let Some(get) = &probe.http_get {
            return http_get(get, container, address).await;
        }
        if let Some(exec) = &probe.exec {
            return running.exec(exec.command.as_deref().unwrap_or_default()).await.map(|_| ());
        }
        if let Some(tcp) = &probe.tcp_socket {
            let to = (address, port(&tcp.port, container)?);
            return TcpStream::connect(to).await.map(|_| ()).map_err(|error| error.to_string());
        }
        Err("this kind of probe is not known here".to_owned())
    };
    tokio::time::timeout(limit, attempt).await.unwrap_or_else(|_| Err("it times out".to_owned()))
}

/// Performs a hook.
///
/// # Errors
/// It fails.
pub(crate) async fn hook(
    hook: &LifecycleHandler,
    container: &Container,
    running: &Running,
    address: Ipv4Addr,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        return running.exec(exec.command.as_deref().unwrap_or_default()).await.map(|_| ());
    }
    if let Some(get) = &hook.http_get {
        return http_get(get, container, address).await;
    }
    match &hook.sleep {
        Some(sleep) => {
            tokio::time::sleep(Duration::from_secs(sleep.seconds.try_into().unwrap_or(0))).await;
            Ok(())
        }
        None => Err("this kind of hook is not known here".to_owned()),
    }
}

/// A number of seconds of a probe.
pub(crate) fn seconds(given: Option<i32>, usual: u64) -> Duration {
    Duration::from_secs(given.and_then(|given| u64::try_from(given).ok()).unwrap_or(usual))
}

async fn http_get(
    get: &HTTPGetAction,
    container: &Container,
    address: Ipv4Addr,
) -> Result<(), String> {
    let host = get.host.clone().unwrap_or_else(|| address.to_string());
    let port = port(&get.port, container)?;
    let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|e| e.to_string())?;
    let io = TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
    let mut request = http::Request::get(get.path.as_deref().unwrap_or("/"))
        .header("host", format!("{host}:{port}"))
        .header("user-agent", "kube-probe/1.37")
        .header("connection", "close");
    for header in get.http_headers.iter().flatten() {
        request = request.header(&header.name, &header.value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    // The connection ends when the sender and the response are dropped.
    let exchange =
        async move { sender.send_request(request).await.map(|response| response.status()) };
    let (status, _) = tokio::join!(exchange, connection);
    let status = status.map_err(|error| error.to_string())?;
    match status.is_success() || status.is_redirection() {
        true => Ok(()),
        false => Err(format!("{status}")),
    }
}

fn port(given: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match given {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_ref() == Some(name))
            .map(|port| port.container_port),
    };
    number.and_then(|number| u16::try_from(number).ok()).ok_or(format!("{given:?} is no port"))
}
