//! Finds Envoy for commands that run it.

use std::path::Path;
use std::time::Duration;

use super::signals::Signals;
use crate::envoy::{EnvoyBinary, Error, Lookup};

/// How long a binary that is being asked for its version is waited for after a signal.
const STOP: Duration = Duration::from_secs(5);

/// Finds or installs Envoy. On a signal, stops and returns the exit status.
///
/// # Errors
/// There is none and it cannot be installed; a usage error if it is not the one that was named.
pub(crate) async fn find(
    named: Option<&Path>,
    signals: &mut Signals,
) -> anyhow::Result<Result<EnvoyBinary, u8>> {
    let lookup = Lookup::from_env(named);
    let stop = lookup.stop.clone();
    let mut finding = tokio::task::spawn_blocking(move || lookup.find());
    tokio::select! {
        found = &mut finding => match found? {
            Err(error @ (Error::NotExecutable { .. } | Error::NotEnvoy { .. })) => {
                Err(super::usage(error.to_string()))
            }
            found => Ok(Ok(found?)),
        },
        status = signals.any() => {
            stop.cancel();
            // Do not wait for a binary that never prints its version.
            let _ = tokio::time::timeout(STOP, finding).await;
            Ok(Err(status))
        }
    }
}
