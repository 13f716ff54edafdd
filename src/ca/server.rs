//! The certificate of weir's own TLS port, signed by the mesh's authority.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::signing::CertificateAuthority;
use crate::tls::{Presenter, ServedCertificate};

/// The delay before a failed attempt is repeated.
const RETRY: Duration = Duration::from_secs(5);

/// The longest time between two looks at the clock, which may be set.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Presents a certificate for a server with these names: another one whenever the authority changes, and halfway through
/// its life. Runs until it is dropped.
pub(crate) async fn present(
    authority: CertificateAuthority,
    names: Vec<String>,
    presenter: Arc<Presenter>,
) {
    let mut current = authority.watch();
    loop {
        if current.wait_for(Option::is_some).await.is_err() {
            return std::future::pending().await;
        }
        current.mark_unchanged();
        let renew_at = match make(&authority, &names, &presenter) {
            Ok(renew_at) => renew_at,
            Err(error) => {
                tracing::error!(%error, "cannot make the certificate of the TLS port; retrying");
                SystemTime::now() + RETRY
            }
        };
        let due = async {
            while let Ok(left) = renew_at.duration_since(SystemTime::now()) {
                tokio::time::sleep(left.min(LONGEST_WAIT)).await;
            }
        };
        tokio::select! {
            () = due => {}
            _ = current.changed() => {}
        }
    }
}

/// Presents a new certificate, and returns when to renew it.
fn make(
    authority: &CertificateAuthority,
    names: &[String],
    presenter: &Presenter,
) -> Result<SystemTime, Box<dyn std::error::Error>> {
    let made = authority.make_server(names)?;
    let served = ServedCertificate::read(made.chain.as_bytes(), made.key.as_bytes())?;
    presenter.present(served);
    let now = SystemTime::now();
    Ok(now + made.valid_until.duration_since(now)? / 2)
}
