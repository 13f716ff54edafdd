//! The TLS port of proxies, and the certificate authority behind it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::Services;
use crate::ca::{self, CaOptions, CertificateAuthority, Current, Keeper};
use crate::identity::TokenReviewer;
use crate::tls::{self, Presenter, ServedCertificate, follow_folder};
use crate::xds::server::SecurePort;

/// The audience of the tokens that proxies present, as in Istio.
const AUDIENCE: &str = "istio-ca";

/// Options of the TLS port.
#[derive(Clone, Debug)]
pub struct SecureOptions {
    /// Its address; port 0 picks a free port.
    pub listen: std::net::SocketAddr,
    /// The names in the certificate that weir makes for it.
    pub names: Vec<String>,
    /// A folder with a certificate, `tls.crt` and `tls.key`, to present instead.
    pub certificate: Option<PathBuf>,
    /// The certificate authority.
    pub authority: CaOptions,
    /// The only namespace that weir serves; `None` if it serves more than one.
    pub only: Option<Arc<str>>,
}

impl Services {
    /// Starts the certificate authority and what presents the certificate of the TLS port. Returns the port, and what keeps
    /// the authority while this replica is elected.
    pub(super) fn secure(
        &mut self,
        secured: Option<(TcpListener, SecureOptions)>,
        current_sender: watch::Sender<Option<Arc<Current>>>,
    ) -> anyhow::Result<Option<(SecurePort, Keeper)>> {
        let Some((listener, options)) = secured else {
            return Ok(None);
        };
        let client = self.client.clone();
        let client = client.context("the TLS port needs a Kubernetes API, which checks tokens")?;
        let (current, metrics) = (current_sender.subscribe(), self.admin.metrics.identity());
        let (stored_sender, stored) = watch::channel(ca::Stored::default());
        let authority =
            CertificateAuthority::new(&options.authority, current.clone(), metrics.clone());
        let presenter = Arc::<Presenter>::default();

        let follow = ca::follow(
            client.clone(),
            options.authority.clone(),
            current_sender,
            stored_sender,
            metrics.clone(),
        );
        self.spawn_until_closing(follow);
        match options.certificate {
            Some(folder) => {
                let presenter = presenter.clone();
                let present = async move {
                    follow_folder(&folder, |read| present(&presenter, read)).await;
                };
                self.spawn_until_closing(present);
            }
            None => {
                let names = options.names;
                self.spawn_until_closing(ca::present(authority.clone(), names, presenter.clone()));
            }
        }
        let tokens = Arc::new(TokenReviewer::new(client.clone(), AUDIENCE.to_owned(), metrics));
        let tls = tls::server_config(presenter)?;
        let port = SecurePort { listener, tls, tokens, authority };
        let keeper = Keeper::new(client, options.authority, options.only, current, stored);
        Ok(Some((port, keeper)))
    }

    /// Runs something that never ends until weir shuts down.
    fn spawn_until_closing(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.admin.closing.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
            Ok(())
        });
    }
}

/// Presents the certificate of a folder; one that cannot be used leaves the one before it.
fn present(presenter: &Presenter, read: Result<ServedCertificate, String>) {
    match read {
        Ok(certificate) => {
            presenter.present(certificate);
        }
        Err(error) => tracing::error!(error, "the certificate of the TLS port cannot be used"),
    }
}
