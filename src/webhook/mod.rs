//! The admission webhooks. The validating one is asked about each Istio object before it is stored, so an object that weir
//! would not accept is refused, and one that is probably not what its author meant comes with warnings. Nothing depends on
//! it: weir checks every object again when it reads it. The mutating one adds sidecars to pods.
//!
//! Both are served over HTTPS on one port, with a certificate that the elected replica makes and renews, or with one from
//! a folder.

mod configuration;
mod injection;
mod request;
mod review;
mod rotation;
mod secret;
mod server;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;

use crate::admission::Limits;
use crate::inject;
use crate::metrics::WebhookMetrics;
use crate::tls::{self, CertificateError, Presenter, ServedCertificate};

pub(crate) use configuration::{ConfigurationKind, SERVICE};
pub(crate) use injection::Injector;

pub(crate) use secret::{Issuer, SecretState, follow as follow_secret};
pub(crate) use server::Reviewer;
pub(crate) use server::router;

/// How long a certificate that weir makes is valid. It is renewed halfway.
pub(crate) const LIFETIME: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// Options of the webhooks.
#[derive(Clone, Debug)]
pub struct WebhookOptions {
    /// Whether Istio objects are validated.
    pub validation: bool,
    /// How sidecars are injected; `None` if they are not.
    pub(crate) injection: Option<inject::Options>,
    /// The address of the listener; port 0 picks a free port.
    pub listen: SocketAddr,
    /// Where its certificate comes from.
    pub certificate: CertificateSource,
    /// The limits of its port.
    pub limits: Limits,
}

/// Where the webhook's certificate comes from.
#[derive(Clone, Debug)]
pub enum CertificateSource {
    /// The files `tls.crt` and `tls.key` of a folder.
    Folder(PathBuf),
    /// The Secret `weir-webhook-cert`, which the elected replica writes.
    Secret {
        /// The namespace that weir runs in.
        namespace: String,
        /// How long a certificate is valid.
        lifetime: Duration,
    },
}

/// What there is to tell about the webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    /// Until when the served certificate is valid; `None` if there is none.
    pub valid_until: Option<Timestamp>,
    /// What is wrong; may be empty.
    pub problems: Vec<String>,
}

impl WebhookOptions {
    /// The kinds of configurations by which the API server knows of the webhooks that are served.
    pub(crate) fn configurations(&self) -> Vec<&'static ConfigurationKind> {
        let validating = self.validation.then_some(&configuration::VALIDATING);
        let mutating = self.injection.is_some().then_some(&configuration::MUTATING);
        validating.into_iter().chain(mutating).collect()
    }
}

impl Health {
    /// Whether the API server can use the webhook, as far as this replica knows.
    pub(crate) fn works(&self) -> bool {
        self.problems.is_empty() && self.valid_until.is_some_and(|until| until > Timestamp::now())
    }
}

impl std::fmt::Display for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.valid_until {
            Some(until) if until > Timestamp::now() => {
                write!(f, "certificate valid until {until}")?
            }
            Some(until) => write!(f, "certificate expired at {until}")?,
            None => f.write_str("no certificate yet")?,
        }
        self.problems.iter().try_for_each(|problem| write!(f, "; {problem}"))
    }
}

/// Who reports a problem of the webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reporter {
    /// The reader of the certificate.
    Certificate,
    /// The watch of the Secret.
    Watch,
    /// The writer of the Secret.
    Secret,
    /// The writer of a webhook configuration of this kind.
    Configuration(&'static str),
    /// The watch of a webhook configuration of this kind.
    ConfigurationWatch(&'static str),
}

/// The state that the parts of the webhook share: the certificate that is served, and what is wrong.
#[derive(Debug)]
pub(crate) struct Webhook {
    presented: Arc<Presenter>,
    problems: Mutex<BTreeMap<Reporter, String>>,
    health: watch::Sender<Health>,
    metrics: WebhookMetrics,
}

impl Webhook {
    /// A webhook without a certificate.
    pub(crate) fn new(metrics: WebhookMetrics) -> Self {
        Self {
            presented: Arc::default(),
            problems: Mutex::default(),
            health: watch::Sender::default(),
            metrics,
        }
    }

    /// The TLS of its listener.
    ///
    /// # Errors
    /// The cryptography offers no version of TLS, which cannot happen.
    pub(crate) fn tls(&self) -> Result<Arc<ServerConfig>, CertificateError> {
        tls::server_config(self.presented.clone())
    }

    /// What there is to tell about it.
    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Serves a certificate that was read, or reports why it cannot be used. The last good one stays.
    pub(crate) fn read(&self, certificate: Result<ServedCertificate, String>) {
        match certificate {
            Ok(certificate) => self.serve(certificate),
            Err(problem) => self.report(Reporter::Certificate, problem),
        }
    }

    /// Serves a certificate from the next handshake on. Open connections continue.
    fn serve(&self, certificate: ServedCertificate) {
        let until = certificate.valid_until;
        if self.presented.present(certificate) {
            tracing::info!(valid_until = %until, "serving a new certificate");
        }
        self.metrics.expiry.set(until.as_second());
        self.resolve(Reporter::Certificate);
        self.health.send_modify(|health| health.valid_until = Some(until));
    }

    /// Records a problem, and logs it if it is new.
    fn report(&self, reporter: Reporter, problem: String) {
        let mut problems = self.problems.lock();
        if problems.get(&reporter) != Some(&problem) {
            tracing::warn!(?reporter, reason = problem, "the webhook has a problem");
            problems.insert(reporter, problem);
            self.publish(&problems);
        }
    }

    /// Records that a reporter no longer has a problem.
    fn resolve(&self, reporter: Reporter) {
        let mut problems = self.problems.lock();
        if problems.remove(&reporter).is_some() {
            self.publish(&problems);
        }
    }

    fn publish(&self, problems: &BTreeMap<Reporter, String>) {
        let all = problems.values().cloned().collect();
        self.health.send_modify(|health| health.problems = all);
    }

    /// Forgets what the elected replica alone can know.
    fn not_elected(&self) {
        self.resolve(Reporter::Secret);
        for ConfigurationKind { kind, .. } in configuration::ALL {
            self.resolve(Reporter::Configuration(kind));
            self.resolve(Reporter::ConfigurationWatch(kind));
        }
    }
}
