//! The rules for nftables: one transaction that replaces a table of weir's own for both families.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::{Match, Rule, Settings, Verdict};

/// The priority of both chains: that of destination NAT.
const PRIORITY: i32 = -100;

/// A transaction for `nft -f -` that puts the table in place, whether or not it exists.
pub(crate) fn apply(settings: &Settings) -> String {
    let mut script = clean_up();
    script.push_str("table inet weir {\n");
    for (name, hook, rules) in
        [("inbound", "prerouting", settings.inbound()), ("outbound", "output", settings.outbound())]
    {
        // Writing to a String cannot fail.
        _ = writeln!(script, "\tchain {name} {{");
        _ = writeln!(script, "\t\ttype nat hook {hook} priority {PRIORITY}; policy accept;");
        for rule in &rules {
            _ = writeln!(script, "\t\t{}", written(rule));
        }
        script.push_str("\t}\n");
    }
    script.push_str("}\n");
    script
}

/// A transaction that removes the table, whether or not it exists.
pub(crate) fn clean_up() -> String {
    // Only a table that exists can be deleted.
    "add table inet weir\ndelete table inet weir\n".to_owned()
}

fn written(rule: &Rule) -> String {
    let mut parts: Vec<String> = rule.matches.iter().map(condition).collect();
    match rule.verdict {
        Verdict::Leave => parts.push("return".to_owned()),
        Verdict::Redirect(port) => {
            let mut matches = rule.matches.iter();
            if !matches.any(|part| matches!(part, Match::Ports(_) | Match::NotPort(_))) {
                parts.insert(0, "meta l4proto tcp".to_owned());
            }
            parts.push(format!("redirect to :{port}"));
        }
    }
    parts.join(" ")
}

fn condition(part: &Match) -> String {
    match part {
        Match::In(interface) => format!("iifname \"{interface}\""),
        Match::Out(interface) => format!("oifname \"{interface}\""),
        Match::Loopback => "oifname \"lo\"".to_owned(),
        Match::Source(ip) => format!("{} saddr {ip}", family(ip.is_ipv6())),
        Match::To(network) => format!("{} daddr {network}", family(network.is_ipv6())),
        Match::NotTo(ip @ IpAddr::V4(_)) => format!("ip daddr != {ip}"),
        Match::NotTo(ip @ IpAddr::V6(_)) => format!("ip6 daddr != {ip}"),
        Match::Ports(ports) => {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            format!("tcp dport {{ {} }}", ports.join(", "))
        }
        Match::NotPort(port) => format!("tcp dport != {port}"),
        Match::Uid(id) => format!("meta skuid {id}"),
        Match::Gid(id) => format!("meta skgid {id}"),
    }
}

fn family(v6: bool) -> &'static str {
    if v6 { "ip6" } else { "ip" }
}
