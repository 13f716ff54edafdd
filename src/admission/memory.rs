//! The default memory limit for clients.

use std::path::Path;

/// The maximum default in bytes.
const MOST: usize = 1 << 30;

/// The default if the available memory is unknown.
const UNKNOWN: usize = 256 << 20;

/// Half of the memory of the container or machine.
pub(crate) fn default_for_clients() -> usize {
    let limits = cgroup_limits().into_iter().chain(machine());
    limits.min().map_or(UNKNOWN, |limit| (limit / 2).min(MOST))
}

/// The limits of the process's control groups.
///
/// Source: the kernel's documentation, "Control Group v2" (`memory.max`) and "Memory Resource Controller" of v1
/// (`memory.limit_in_bytes`).
fn cgroup_limits() -> Vec<usize> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        // In a container the path may be the host's; the container's own group is then at the root.
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            limits.extend(number(&Path::new(root).join(group).join(file)));
        }
    }
    limits
}

fn number(file: &Path) -> Option<usize> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The memory of the machine.
fn machine() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok())?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_half_of_the_available_memory() {
        let default = default_for_clients();
        assert!(default > 0 && default <= MOST, "{default}");
        assert!(machine().is_none_or(|all| default <= all / 2));
    }
}
