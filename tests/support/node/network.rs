//! The network of a node: each pod has a network namespace and a pair of interfaces, and the node forwards between them.

use std::net::Ipv4Addr;
use std::process::Stdio;

use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use super::ADDRESS;

/// The network namespace of a pod, which lasts as long as its process.
#[derive(Debug)]
pub(crate) struct Sandbox {
    process: Child,
    pub id: u32,
    pub address: Ipv4Addr,
}

/// Connects the namespace of the process `$1` with the node's `$0` by the interfaces `$2` and eth0, which has the address
/// `$3`. A process may listen on any port, as in the pods of common container runtimes.
const CONNECT: &str = r#"
set -e
node=$0 process=$1 interface=$2 address=$3
ip link add "$interface" type veth peer name eth0 netns "$process"
ip link set "$interface" up
ip route add "$address" dev "$interface" src "$node"
nsenter --target "$process" --net sh -ec '
  ip link set lo up
  ip address add "$1/32" dev eth0
  ip link set eth0 up
  ip route add "$0" dev eth0 scope link
  ip route add default via "$0"
  echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start
' "$node" "$address"
"#;

impl Sandbox {
    /// The network of the pod with this number.
    ///
    /// # Errors
    /// The system does not allow it.
    pub(crate) async fn new(number: u16) -> Result<Self, String> {
        let mut process = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo; exec sleep infinity"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut stdout = process.stdout.take().ok_or("it has no stdout")?;
        // Once it writes, it is in its namespace.
        stdout.read_u8().await.map_err(|error| format!("a network namespace: {error}"))?;
        let id = process.id().ok_or("the process of the namespace has ended")?;
        let [high, low] = number.to_be_bytes();
        let address = Ipv4Addr::new(10, 4, high, low);
        let connected = Command::new("sh")
            .args(["-c", CONNECT, &ADDRESS.to_string(), &id.to_string(), &format!("pod{number}")])
            .arg(address.to_string())
            .output()
            .await
            .map_err(|error| format!("sh: {error}"))?;
        match connected.status.success() {
            true => Ok(Self { process, id, address }),
            false => Err(String::from_utf8_lossy(&connected.stderr).into_owned()),
        }
    }

    /// Ends the namespace, if no other process is in it.
    pub(crate) async fn end(mut self) {
        // It may have ended already.
        let _ = self.process.kill().await;
    }
}
