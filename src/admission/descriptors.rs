//! Divides the available file descriptors.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Reserved for the source (files, watches, connections to the Kubernetes API), the listeners, the runtime and the log.
const OWN: usize = 128;

/// The maximum reserved for connections to the admin port.
pub(crate) const ADMIN: usize = 256;

/// The maximum reserved for connections to the webhook's port, if it is served.
pub(crate) const WEBHOOK: usize = 64;

/// The file descriptor limits of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// The current limit.
    pub limit: usize,
    /// The limit before it was raised.
    pub before: usize,
}

impl Descriptors {
    /// The number available for proxy connections, after weir's own needs.
    pub(crate) fn for_proxies(self) -> usize {
        self.limit.saturating_sub(OWN.min(self.limit / 4)).saturating_sub(self.for_admin()).max(1)
    }

    /// The number reserved for connections to the admin port.
    pub(crate) fn for_admin(self) -> usize {
        (self.limit / 8).clamp(1, ADMIN)
    }

    /// The number taken from the proxies for connections to the webhook's port, if it is served.
    pub(crate) fn for_webhook(self) -> usize {
        (self.for_proxies() / 8).clamp(1, WEBHOOK)
    }
}

/// Raises the soft limit to the hard limit. If it cannot be read or raised, it stays unchanged.
pub fn raise() -> Descriptors {
    // If the limit is unknown, only POSIX's minimum is guaranteed.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((20, 20));
    let raised = soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    Descriptors { limit: count(if raised { hard } else { soft }), before: count(soft) }
}

fn count(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_always_reserved_for_the_source_and_the_admin_port() {
        for limit in [8, 20, 64, 256, 1024, 20_000, usize::MAX] {
            let descriptors = Descriptors { limit, before: limit };
            let (proxies, admin) = (descriptors.for_proxies(), descriptors.for_admin());
            assert!(proxies >= 1 && admin >= 1, "{limit}");
            let own = limit - proxies - admin;
            assert!(own >= (limit / 4).min(OWN) && own >= 2, "{limit}: {own}");
        }
        assert_eq!(Descriptors { limit: 1024, before: 1024 }.for_proxies(), 768);
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let descriptors = raise();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((soft, soft), (hard, descriptors.limit as u64));
    }
}
