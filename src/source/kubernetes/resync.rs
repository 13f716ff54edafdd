//! Lets the changes of all kinds take effect together after a watch was lost. The watches come back one after the other, so a
//! later change may arrive before an earlier one of another kind: pods are gone, and the weight that moved away from them has
//! not arrived yet. Until all are back, nothing takes effect, for a limited time.

use std::time::{Duration, Instant};

use crate::source::SourceEvent;

/// How long a change waits at most for the kinds that are behind.
const LONGEST: Duration = Duration::from_secs(15);

/// How often to look whether they still are.
pub(super) const TICK: Duration = Duration::from_millis(20);

/// Whether changes wait for a kind that is behind.
#[derive(Debug, Default)]
pub(super) enum Resync {
    /// No kind is behind.
    #[default]
    Current,
    /// A kind is behind; `since` is when the first change arrived meanwhile.
    Waiting { since: Option<Instant> },
    /// A kind is behind for so long that the others no longer wait for it.
    GivenUp,
}

impl Resync {
    /// Whether [`Resync::update`] has to be called after each [`TICK`].
    pub(super) fn waits(&self) -> bool {
        matches!(self, Self::Waiting { .. })
    }

    /// `behind` says whether changes of a kind may be missing, `changed` whether a change of an object arrived. Returns what
    /// to send after it.
    pub(super) fn update(
        &mut self,
        behind: bool,
        changed: bool,
        now: Instant,
    ) -> Option<SourceEvent> {
        match self {
            Self::Current if behind => {
                *self = Self::Waiting { since: changed.then_some(now) };
                Some(SourceEvent::Resyncing)
            }
            Self::Current => None,
            Self::Waiting { .. } if !behind => {
                *self = Self::Current;
                Some(SourceEvent::Synced)
            }
            Self::Waiting { since } => {
                let since = match since {
                    None if changed => *since.insert(now),
                    None => return None,
                    Some(since) => *since,
                };
                if now.duration_since(since) < LONGEST {
                    return None;
                }
                *self = Self::GivenUp;
                tracing::warn!(
                    "no longer waiting for the kinds that cannot be read since the API server was away"
                );
                Some(SourceEvent::Synced)
            }
            Self::GivenUp => {
                if !behind {
                    *self = Self::Current;
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(event: Option<SourceEvent>) -> String {
        event.map_or_else(String::new, |event| format!("{event:?}"))
    }

    #[test]
    fn changes_wait_until_no_kind_is_behind() {
        let (mut resync, now) = (Resync::default(), Instant::now());
        assert_eq!(text(resync.update(false, true, now)), "");
        assert_eq!(text(resync.update(true, false, now)), "Resyncing");
        assert!(resync.waits());
        // However long the API is away, the time counts from the first change that arrives.
        let back = now + LONGEST * 10;
        assert_eq!(text(resync.update(true, false, back)), "");
        assert_eq!(text(resync.update(true, true, back)), "");
        assert_eq!(text(resync.update(false, false, back)), "Synced");
        assert_eq!(text(resync.update(false, true, back)), "");
        assert!(!resync.waits());
    }

    #[test]
    fn changes_do_not_wait_forever_and_not_again_for_the_same_kind() {
        let (mut resync, now) = (Resync::default(), Instant::now());
        assert_eq!(text(resync.update(true, true, now)), "Resyncing");
        assert_eq!(text(resync.update(true, true, now + LONGEST / 2)), "");
        assert_eq!(text(resync.update(true, false, now + LONGEST)), "Synced");
        assert_eq!(text(resync.update(true, true, now + LONGEST)), "");
        assert_eq!(text(resync.update(false, true, now + LONGEST)), "");
        assert_eq!(text(resync.update(true, false, now + LONGEST)), "Resyncing");
    }
}
