//! `weir redirect`: sends the traffic of a pod through its proxy.

use std::env;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use crate::redirect::{
    InterfaceName, List, Network, Port, SOURCE_V6, Selection, Settings, iptables, nft,
    source_address,
};

const EXAMPLE: &str = "\
Examples:
  weir redirect --dry-run                            print the rules, change nothing
  weir redirect                                      everything, both ways
  weir redirect --exclude-outbound-ports 3306,6379 --exclude-outbound-ranges 10.9.0.0/16
  weir redirect --inbound-ports '' --outbound-ranges 10.96.0.0/12,fd00:96::/108
  weir redirect --clean-up

What is never redirected: traffic of the proxy's user and group, UDP (and so DNS), traffic of the
application to its own pod, and inbound traffic to ports 15008, 15020, 15021 and 15090.

Look at the rules in a pod's network namespace, from its node:
  nsenter -t PID -n nft list table inet weir         or: iptables-save -t nat; ip6tables-save -t nat";

/// Send the TCP traffic of this network namespace through the proxy, for IPv4 and IPv6
///
/// Runs in an init container of a pod, as root with the capabilities NET_ADMIN and NET_RAW. It needs the program nft, or
/// iptables-restore and ip6tables-restore, which weir's image contains. The rules replace those of an earlier run, and
/// change no others: they are in the table `inet weir`, or in chains whose names begin with WEIR_.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// The user of the proxy, whose own traffic is not redirected
    #[arg(long, short = 'u', value_name = "UID", default_value = "1337")]
    proxy_uid: u32,
    /// The group of the proxy
    #[arg(long, short = 'g', value_name = "GID", default_value = "1337")]
    proxy_gid: u32,
    /// The port of the proxy for outbound traffic
    #[arg(long, short = 'p', value_name = "PORT", default_value = "15001")]
    outbound_port: Port,
    /// The port of the proxy for inbound traffic
    #[arg(long, short = 'z', value_name = "PORT", default_value = "15006")]
    inbound_port: Port,
    /// The ports whose inbound traffic is redirected, separated by commas; * for all
    /// (traffic.sidecar.istio.io/includeInboundPorts)
    #[arg(long, short = 'b', value_name = "PORTS", default_value = "*")]
    inbound_ports: Selection<Port>,
    /// Ports whose inbound traffic is not redirected (…/excludeInboundPorts)
    #[arg(long, short = 'd', value_name = "PORTS", default_value = "")]
    exclude_inbound_ports: List<Port>,
    /// The destinations to which outbound traffic is redirected, as CIDR ranges; * for all
    /// (…/includeOutboundIPRanges)
    #[arg(long, short = 'i', value_name = "RANGES", default_value = "*")]
    outbound_ranges: Selection<Network>,
    /// Destinations to which outbound traffic is not redirected (…/excludeOutboundIPRanges)
    #[arg(long, short = 'x', value_name = "RANGES", default_value = "")]
    exclude_outbound_ranges: List<Network>,
    /// Ports to which outbound traffic is redirected, even if --outbound-ranges does not contain its destination
    /// (…/includeOutboundPorts)
    #[arg(long, short = 'q', value_name = "PORTS", default_value = "")]
    outbound_ports: List<Port>,
    /// Ports to which outbound traffic is not redirected (…/excludeOutboundPorts)
    #[arg(long, short = 'o', value_name = "PORTS", default_value = "")]
    exclude_outbound_ports: List<Port>,
    /// Interfaces whose traffic is not redirected (…/excludeInterfaces)
    #[arg(long, short = 'c', value_name = "NAMES", default_value = "")]
    exclude_interfaces: List<InterfaceName>,
    /// What puts the rules in place
    #[arg(long, value_enum, value_name = "TOOL", default_value = "auto")]
    backend: Backend,
    /// Print what would be applied, and apply nothing
    #[arg(long)]
    dry_run: bool,
    /// Remove the rules; with --backend auto, those of either tool
    #[arg(long)]
    clean_up: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// nftables if nft is installed and the kernel supports it, else iptables
    Auto,
    /// nftables, by the program nft
    Nft,
    /// iptables, by the programs iptables-restore and ip6tables-restore
    Iptables,
}

/// A backend that has been chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Nft,
    Iptables,
}

/// A program and what it reads.
#[derive(Debug)]
struct Step {
    program: &'static str,
    args: &'static [&'static str],
    input: String,
}

/// Applies, prints or removes the rules.
///
/// # Errors
/// There is no tool, or it fails.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (backend, clean, dry_run) = (args.backend, args.clean_up, args.dry_run);
    let settings = args.settings();
    let tools = if clean { all(backend)? } else { vec![choose(backend, dry_run)?] };
    for tool in tools {
        let steps = match (tool, clean) {
            (Tool::Nft, false) => vec![nft_step(nft::apply(&settings))],
            (Tool::Nft, true) => vec![nft_step(nft::clean_up())],
            (Tool::Iptables, clean) => iptables_steps((!clean).then_some(&settings), dry_run)?,
        };
        for step in steps {
            if dry_run {
                let Step { program, args, input } = step;
                super::print(&format!("# {program} {}\n{input}", args.join(" ")))?;
            } else {
                step.run()?;
            }
        }
    }
    if !dry_run {
        set_source_address(!clean);
        let done = if clean { "redirection is removed" } else { "redirection is in place" };
        super::print(&format!("weir redirect: {done}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn settings(self) -> Settings {
        Settings {
            proxy_uid: self.proxy_uid,
            proxy_gid: self.proxy_gid,
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            inbound_ports: self.inbound_ports,
            exclude_inbound_ports: self.exclude_inbound_ports,
            outbound_ranges: self.outbound_ranges,
            exclude_outbound_ranges: self.exclude_outbound_ranges,
            outbound_ports: self.outbound_ports,
            exclude_outbound_ports: self.exclude_outbound_ports,
            exclude_interfaces: self.exclude_interfaces,
        }
    }
}

/// The tool to apply rules with.
fn choose(backend: Backend, dry_run: bool) -> anyhow::Result<Tool> {
    match backend {
        Backend::Nft => return Ok(Tool::Nft),
        Backend::Iptables => return Ok(Tool::Iptables),
        Backend::Auto => {}
    }
    let (nft, iptables) = (is_installed("nft"), is_installed("iptables-restore"));
    match (nft, iptables) {
        (true, false) => Ok(Tool::Nft),
        // The kernel may be too old for one of them.
        (true, true) if dry_run || output("nft", &["list", "tables"]).is_ok() => Ok(Tool::Nft),
        (_, true) => Ok(Tool::Iptables),
        (false, false) if dry_run => Ok(Tool::Nft),
        (false, false) => bail!(
            "neither nft nor iptables-restore is on the PATH; weir's image contains nft: build it with deploy/Dockerfile"
        ),
    }
}

/// The tools whose rules are to be removed.
fn all(backend: Backend) -> anyhow::Result<Vec<Tool>> {
    let tools = match backend {
        Backend::Nft => return Ok(vec![Tool::Nft]),
        Backend::Iptables => return Ok(vec![Tool::Iptables]),
        Backend::Auto => [("nft", Tool::Nft), ("iptables-restore", Tool::Iptables)],
    };
    let found: Vec<Tool> =
        tools.into_iter().filter(|(name, _)| is_installed(name)).map(|(_, tool)| tool).collect();
    if found.is_empty() {
        bail!("neither nft nor iptables-restore is on the PATH");
    }
    Ok(found)
}

fn nft_step(input: String) -> Step {
    Step { program: "nft", args: &["-f", "-"], input }
}

/// The steps for both families; to remove the rules without settings.
fn iptables_steps(settings: Option<&Settings>, dry_run: bool) -> anyhow::Result<Vec<Step>> {
    const RESTORE: &[&str] = &["--noflush", "--wait", "30"];
    let mut steps = Vec::new();
    for (v6, save, restore) in [
        (false, "iptables-save", "iptables-restore"),
        (true, "ip6tables-save", "ip6tables-restore"),
    ] {
        if v6 && !has_ipv6() {
            continue;
        }
        let saved = match output(save, &["-t", "nat"]) {
            Ok(saved) => saved,
            // Whoever may not read the rules sees those for a new pod.
            Err(_) if dry_run => String::new(),
            Err(error) => return Err(error),
        };
        let input = match settings {
            Some(settings) => Some(iptables::apply(settings, v6, &saved)),
            None => iptables::clean_up(&saved),
        };
        steps.extend(input.map(|input| Step { program: restore, args: RESTORE, input }));
    }
    Ok(steps)
}

/// Whether the kernel has IPv6, and this namespace does not disable it.
fn has_ipv6() -> bool {
    std::fs::read_to_string("/proc/net/if_inet6").is_ok_and(|addresses| !addresses.is_empty())
}

/// Gives the loopback interface the address from which the proxy calls the application over IPv6, or takes it away.
fn set_source_address(present: bool) {
    if !has_ipv6() {
        return;
    }
    let done = if present { source_address::add() } else { source_address::remove() };
    if let Err(error) = done {
        tracing::warn!(
            address = %SOURCE_V6, %error,
            "the loopback interface's address, from which the proxy calls the application over IPv6, cannot be changed"
        );
    }
}

fn is_installed(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| is_file(&folder.join(name)))
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file())
}

/// What a program prints.
fn output(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!(failure(program, args, &output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Step {
    fn run(&self) -> anyhow::Result<()> {
        let output = self.output().with_context(|| format!("running {}", self.program))?;
        if !output.status.success() {
            tracing::info!(program = self.program, input = self.input, "a program failed");
            bail!(
                "{}; the rules are those of --dry-run",
                failure(self.program, self.args, &output)
            );
        }
        Ok(())
    }

    fn output(&self) -> std::io::Result<Output> {
        let mut child = Command::new(self.program)
            .args(self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // The input is closed by dropping it. A program that does not read it says why on stderr.
        if let Some(mut input) = child.stdin.take() {
            _ = input.write_all(self.input.as_bytes());
        }
        child.wait_with_output()
    }
}

fn failure(program: &str, args: &[&str], output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    let denied = ["permitted", "ermission denied", "must be root"].iter().any(|w| said.contains(w));
    let advice = if denied {
        "\nIt needs user 0 and the capabilities NET_ADMIN and NET_RAW (securityContext of the init container)."
    } else {
        ""
    };
    format!("{program} {} ended with {}: {said}{advice}", args.join(" "), output.status)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn errors_name_the_flag_and_the_value() {
        for (flag, value, part) in [
            ("--exclude-inbound-ports", "80,x", "\"x\" is not a port"),
            ("--inbound-ports", "70000", "\"70000\" is not a port"),
            ("--outbound-ranges", "10.0.0.0/40", "longer than 32 bits"),
            ("--exclude-outbound-ranges", "web", "\"web\" is not a CIDR range"),
            ("--exclude-interfaces", "a b", "\"a b\" is not the name"),
            ("--outbound-port", "0", "\"0\" is not a port"),
            ("--proxy-uid", "root", "invalid digit"),
        ] {
            let error = Command::try_parse_from(["redirect", flag, value]).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(
                text.contains(&format!("'{value}' for '{flag}")) && text.contains(part),
                "{text}"
            );
        }
    }

    #[test]
    fn values_may_be_empty() {
        let flags = ["redirect", "--inbound-ports=", "-i", "", "--exclude-inbound-ports="];
        let settings = Command::try_parse_from(flags).unwrap().args.settings();
        assert_eq!(settings.inbound_ports, Selection::Only(Default::default()));
        assert_eq!(settings.outbound_ranges, Selection::Only(Default::default()));
    }
}
