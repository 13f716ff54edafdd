//! The rules for `iptables-restore --noflush` and `ip6tables-restore --noflush`: chains of weir's own in the table `nat`, and
//! one jump to each from a built-in chain.
//!
//! What is already there is read from the output of `iptables-save -t nat`, so that no jump is added twice, and none is
//! deleted that is not there, which would fail.

use std::fmt::Write as _;

use super::{Match, Rule, Settings, Verdict};

const CHAINS: [(&str, &str); 2] = [("WEIR_INBOUND", "PREROUTING"), ("WEIR_OUTBOUND", "OUTPUT")];

/// Puts the chains in place, whether or not they exist. `saved` is what `iptables-save -t nat` prints.
pub(crate) fn apply(settings: &Settings, v6: bool, saved: &str) -> String {
    let mut script = "*nat\n".to_owned();
    for (chain, _) in CHAINS {
        // An existing chain is flushed.
        _ = writeln!(script, ":{chain} - [0:0]");
    }
    for ((chain, from), rules) in CHAINS.into_iter().zip([settings.inbound(), settings.outbound()])
    {
        for rule in rules.iter().filter(|rule| rule.matches.iter().all(|m| m.applies_to(v6))) {
            for line in written(rule) {
                _ = writeln!(script, "-A {chain} -p tcp{line}");
            }
        }
        let jump = jump(from, chain);
        if !saved.lines().any(|line| line == jump) {
            _ = writeln!(script, "{jump}");
        }
    }
    script.push_str("COMMIT\n");
    script
}

/// Removes the chains and the jumps to them; `None` if there is none.
pub(crate) fn clean_up(saved: &str) -> Option<String> {
    let mut script = "*nat\n".to_owned();
    let chains: Vec<_> = CHAINS.into_iter().filter(|(chain, _)| declares(saved, chain)).collect();
    if chains.is_empty() {
        return None;
    }
    for (chain, _) in &chains {
        _ = writeln!(script, ":{chain} - [0:0]");
    }
    for (chain, from) in &chains {
        let jump = jump(from, chain);
        for _ in saved.lines().filter(|line| *line == jump) {
            _ = writeln!(script, "{}", jump.replacen("-A", "-D", 1));
        }
        _ = writeln!(script, "-X {chain}");
    }
    script.push_str("COMMIT\n");
    Some(script)
}

fn declares(saved: &str, chain: &str) -> bool {
    saved.lines().any(|line| line.starts_with(&format!(":{chain} ")))
}

/// As `iptables-save` prints it.
fn jump(from: &str, chain: &str) -> String {
    format!("-A {from} -p tcp -j {chain}")
}

/// The conditions and the target of a rule, once for each of its ports.
fn written(rule: &Rule) -> Vec<String> {
    let target = match rule.verdict {
        Verdict::Leave => " -j RETURN".to_owned(),
        Verdict::Redirect(port) => format!(" -j REDIRECT --to-ports {port}"),
    };
    let mut lines = vec![String::new()];
    for part in &rule.matches {
        let ways = conditions(part);
        lines = lines
            .iter()
            .flat_map(|line| ways.iter().map(move |way| format!("{line}{way}")))
            .collect();
    }
    lines.into_iter().map(|line| line + &target).collect()
}

fn conditions(part: &Match) -> Vec<String> {
    match part {
        Match::In(interface) => vec![format!(" -i {interface}")],
        Match::Out(interface) => vec![format!(" -o {interface}")],
        Match::Loopback => vec![" -o lo".to_owned()],
        Match::Source(ip) => vec![format!(" -s {ip}")],
        Match::To(network) => vec![format!(" -d {network}")],
        Match::NotTo(ip) => vec![format!(" ! -d {ip}")],
        Match::Ports(ports) => ports.iter().map(|port| format!(" --dport {port}")).collect(),
        Match::NotPort(port) => vec![format!(" ! --dport {port}")],
        Match::Uid(id) => vec![format!(" -m owner --uid-owner {id}")],
        Match::Gid(id) => vec![format!(" -m owner --gid-owner {id}")],
    }
}
