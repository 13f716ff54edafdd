//! The Secret with the webhook's certificate, which every replica follows, and the elected one writes. That one also
//! writes the authorities to trust into the webhook configurations.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::configuration::{self, Configuration, ConfigurationKind, SERVICE};
use super::rotation::{Contents, Step, Trust, Wanted};
use super::{Reporter, Webhook};
use crate::source::kubernetes::object_watch::{ObjectWatch, Seen};
use crate::source::kubernetes::reason;
use crate::tls::{KeyedCertificate, ServedCertificate};

/// The name of the Secret.
pub(crate) const SECRET: &str = "weir-webhook-cert";
/// The field manager of the authorities in the configuration.
const MANAGER: &str = "weir";

/// The keys of the Secret. The first three have the names that others use.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const AUTHORITIES: &str = "ca.crt";
const NEXT_CERTIFICATE: &str = "next-tls.crt";
const NEXT_KEY: &str = "next-tls.key";

/// How long a write may take.
const WRITE: Duration = Duration::from_secs(10);
/// The delay before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The longest time between two looks at the clock.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What is known about the Secret.
#[derive(Clone, Debug, Default)]
pub(crate) enum SecretState {
    /// Nothing yet.
    #[default]
    Unknown,
    /// It does not exist.
    Absent,
    /// It exists.
    Present(Box<StoredSecret>),
}

/// The Secret in the API.
#[derive(Clone, Debug)]
pub(crate) struct StoredSecret {
    metadata: ObjectMeta,
    r#type: Option<String>,
    contents: Contents,
}

impl From<Secret> for StoredSecret {
    fn from(secret: Secret) -> Self {
        let data = secret.data.unwrap_or_default();
        let contents = Contents {
            current: pair(&data, CERTIFICATE, KEY),
            next: pair(&data, NEXT_CERTIFICATE, NEXT_KEY),
            authorities: text(&data, AUTHORITIES),
        };
        Self { metadata: secret.metadata, r#type: secret.type_, contents }
    }
}

/// The text of a key; empty if there is none.
fn text(data: &BTreeMap<String, ByteString>, key: &str) -> String {
    let bytes = data.get(key).map(|bytes| bytes.0.clone()).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

fn pair(
    data: &BTreeMap<String, ByteString>,
    certificate: &str,
    key: &str,
) -> Option<KeyedCertificate> {
    let pair = KeyedCertificate { certificate: text(data, certificate), key: text(data, key) };
    (!pair.certificate.is_empty()).then_some(pair)
}

/// The Secret with these contents, in place of the one that was read, if any.
fn secret(contents: &Contents, old: Option<&StoredSecret>) -> Secret {
    let mut texts = vec![(AUTHORITIES, &contents.authorities)];
    if let Some(pair) = &contents.current {
        texts.extend([(CERTIFICATE, &pair.certificate), (KEY, &pair.key)]);
    }
    if let Some(pair) = &contents.next {
        texts.extend([(NEXT_CERTIFICATE, &pair.certificate), (NEXT_KEY, &pair.key)]);
    }
    let data = texts
        .into_iter()
        .map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec())))
        .collect();
    let (metadata, r#type) = match old {
        Some(old) => (old.metadata.clone(), old.r#type.clone()),
        None => {
            let labels = [("app.kubernetes.io/name".to_owned(), "weir".to_owned())];
            let metadata = ObjectMeta {
                name: Some(SECRET.to_owned()),
                labels: Some(labels.into()),
                ..Default::default()
            };
            (metadata, Some("kubernetes.io/tls".to_owned()))
        }
    };
    Secret { data: Some(data), metadata, type_: r#type, ..Default::default() }
}

/// Serves the certificate in the Secret, and tells `state` what the Secret is. Runs until it is dropped.
pub(crate) async fn follow(
    client: Client,
    namespace: &str,
    webhook: &Webhook,
    state: watch::Sender<SecretState>,
) {
    let mut seen = ObjectWatch::new(Api::<Secret>::namespaced(client, namespace), SECRET);
    loop {
        match seen.next().await {
            Seen::Object(secret) => {
                let stored = StoredSecret::from(secret);
                match stored.contents.current.as_ref().map(ServedCertificate::of) {
                    Some(Ok(certificate)) => webhook.serve(certificate),
                    Some(Err(error)) => webhook.report(
                        Reporter::Certificate,
                        format!("Secret {namespace}/{SECRET} cannot be used: {error}"),
                    ),
                    None => {}
                }
                state.send_replace(SecretState::Present(Box::new(stored)));
            }
            Seen::Absent => {
                state.send_replace(SecretState::Absent);
            }
            Seen::Works => webhook.resolve(Reporter::Watch),
            Seen::Failed(why) => webhook.report(
                Reporter::Watch,
                format!("Secret {namespace}/{SECRET} cannot be watched: {why}"),
            ),
        }
    }
}

/// Writes the Secret and the authorities in the configurations while this replica is elected.
pub(crate) struct Issuer {
    client: Client,
    namespace: String,
    configurations: Vec<&'static ConfigurationKind>,
    wanted: Wanted,
    webhook: Arc<Webhook>,
    secret: watch::Receiver<SecretState>,
}

impl Issuer {
    /// An issuer for the Service of weir in a namespace, and the API server's configurations of these kinds.
    pub(crate) fn new(
        client: Client,
        (namespace, domain): (&str, &str),
        lifetime: Duration,
        configurations: Vec<&'static ConfigurationKind>,
        webhook: Arc<Webhook>,
        secret: watch::Receiver<SecretState>,
    ) -> Self {
        let name = format!("{SERVICE}.{namespace}.svc");
        let names = vec![format!("{name}.{domain}"), name];
        let wanted = Wanted { names, lifetime };
        Self { client, namespace: namespace.to_owned(), configurations, wanted, webhook, secret }
    }

    /// Keeps the Secret and the configurations until this replica is no longer elected, as `valid` says.
    pub(crate) async fn run(&self, valid: watch::Receiver<Instant>) {
        let mut keeper = Keeper {
            issuer: self,
            valid,
            secret: self.secret.clone(),
            configurations: self
                .configurations
                .iter()
                .map(|kind| (*kind, Configuration::default()))
                .collect(),
            trusted_since: None,
        };
        let mut watches = configuration::watches(&self.client, &self.configurations);
        keeper.secret.mark_changed();
        loop {
            let again_at = keeper.act().await;
            tokio::select! {
                changed = keeper.secret.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                (which, seen) = configuration::next(&mut watches) => {
                    keeper.observe(which, seen);
                }
                () = tokio::time::sleep_until(again_at) => {}
            }
        }
    }

    /// Forgets what only an elected replica knows.
    pub(crate) fn resign(&self) {
        self.webhook.not_elected();
    }
}

/// Keeps the Secret and the configurations while this replica is elected.
struct Keeper<'a> {
    issuer: &'a Issuer,
    valid: watch::Receiver<Instant>,
    secret: watch::Receiver<SecretState>,
    configurations: Vec<(&'static ConfigurationKind, Configuration)>,
    /// Which authorities the configurations have, and since when as far as is known.
    trusted_since: Option<(String, SystemTime)>,
}

impl Keeper<'_> {
    fn observe(&mut self, which: usize, seen: Seen<DynamicObject>) {
        let webhook = &self.issuer.webhook;
        let Some((kind, state)) = self.configurations.get_mut(which) else { return };
        let ConfigurationKind { kind, name, .. } = kind;
        match seen {
            Seen::Object(found) => *state = Configuration::of(&found, &self.issuer.namespace),
            Seen::Absent => {
                *state = Configuration::NotForUs;
                webhook.resolve(Reporter::Configuration(kind));
            }
            Seen::Works => webhook.resolve(Reporter::ConfigurationWatch(kind)),
            Seen::Failed(why) => webhook.report(
                Reporter::ConfigurationWatch(kind),
                format!("{kind} {name} cannot be watched: {why}"),
            ),
        }
    }

    /// Does what is due, and returns when to look again if nothing changes.
    async fn act(&mut self) -> Instant {
        let retry = Instant::now() + RETRY;
        let state = self.secret.borrow_and_update().clone();
        let old = match &state {
            SecretState::Unknown => return Instant::now() + LONGEST_WAIT,
            SecretState::Absent => None,
            SecretState::Present(stored) => Some(&**stored),
        };
        let contents = old.map(|stored| stored.contents.clone()).unwrap_or_default();
        let mut written = true;
        for (kind, state) in &self.configurations {
            if let Some(patch) = state.patch(kind, &contents.authorities) {
                written &= self.write_authorities(kind, patch).await;
            }
        }
        let trust = self.trust(&contents.authorities);
        match self.issuer.wanted.step(&contents, trust, SystemTime::now()) {
            Ok(Step::Write(new)) => {
                self.write(&new, old).await;
                retry
            }
            Ok(Step::WaitUntil(at)) => {
                let wait = at.duration_since(SystemTime::now()).unwrap_or_default();
                // The clock may be set meanwhile.
                Instant::now() + wait.min(if written { LONGEST_WAIT } else { RETRY })
            }
            Err(error) => {
                self.issuer.webhook.report(Reporter::Secret, error.to_string());
                retry
            }
        }
    }

    /// How the API server checks the certificate, given the authorities in the Secret.
    fn trust(&mut self, authorities: &str) -> Trust {
        let asked = self.configurations.iter();
        let mut asked =
            asked.filter(|(_, state)| !matches!(state, Configuration::NotForUs)).peekable();
        if asked.peek().is_none() {
            return Trust::NotAsked;
        }
        let mut all = true;
        for (kind, state) in asked {
            if state.trusts(authorities) {
                self.issuer.webhook.resolve(Reporter::Configuration(kind.kind));
            } else {
                all = false;
            }
        }
        if !all {
            self.trusted_since = None;
            return Trust::Outdated;
        }
        let known = self.trusted_since.as_ref().filter(|(known, _)| known == authorities);
        let since = known.map_or_else(SystemTime::now, |(_, since)| *since);
        self.trusted_since = Some((authorities.to_owned(), since));
        Trust::Since(since)
    }

    fn is_elected(&self) -> bool {
        Instant::now() < *self.valid.borrow()
    }

    fn deadline(&self) -> Instant {
        (Instant::now() + WRITE).min(*self.valid.borrow())
    }

    /// Writes the authorities into a configuration. Returns whether nothing is left to be tried.
    async fn write_authorities(&self, kind: &ConfigurationKind, patch: Value) -> bool {
        if !self.is_elected() {
            return true;
        }
        let api = kind.api(&self.issuer.client);
        let (params, patch) = (PatchParams::apply(MANAGER).force(), Patch::Apply(patch));
        let written = timeout_at(self.deadline(), api.patch(kind.name, &params, &patch)).await;
        let what = format!("the authorities in {} {}", kind.kind, kind.name);
        self.report(Reporter::Configuration(kind.kind), &what, written.map(|done| done.map(drop)))
    }

    /// Writes the Secret. Another one's write in the meantime wins.
    async fn write(&self, contents: &Contents, old: Option<&StoredSecret>) {
        if !self.is_elected() {
            return;
        }
        let api = Api::<Secret>::namespaced(self.issuer.client.clone(), &self.issuer.namespace);
        let (secret, params) = (secret(contents, old), PostParams::default());
        let written = match old {
            Some(_) => timeout_at(self.deadline(), api.replace(SECRET, &params, &secret)).await,
            None => timeout_at(self.deadline(), api.create(&params, &secret)).await,
        };
        let what = format!("Secret {}/{SECRET}", self.issuer.namespace);
        self.report(Reporter::Secret, &what, written.map(|done| done.map(drop)));
    }

    /// Reports a failed write. Returns whether it succeeded. After a conflict the watch delivers what is there.
    fn report(
        &self,
        reporter: Reporter,
        what: &str,
        written: Result<Result<(), kube::Error>, tokio::time::error::Elapsed>,
    ) -> bool {
        let webhook = &self.issuer.webhook;
        let why = match written {
            Ok(Ok(())) => {
                webhook.resolve(reporter);
                return true;
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => return false,
            Ok(Err(error)) => reason(&error),
            Err(_) => "the API server does not answer".to_owned(),
        };
        webhook.report(reporter, format!("{what} cannot be written: {why}"));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(text: &str) -> Option<KeyedCertificate> {
        Some(KeyedCertificate { certificate: format!("{text}.crt"), key: format!("{text}.key") })
    }

    #[test]
    fn what_is_written_into_the_secret_is_what_is_read_from_it() {
        let mut contents =
            Contents { current: pair("a"), next: pair("b"), authorities: "c".to_owned() };
        let written = secret(&contents, None);
        assert_eq!(written.type_.as_deref(), Some("kubernetes.io/tls"));
        let stored = StoredSecret::from(written);
        assert_eq!(stored.contents, contents);
        contents.next = None;
        let again = secret(&contents, Some(&stored));
        assert_eq!(again.metadata, stored.metadata);
        assert_eq!(StoredSecret::from(again).contents, contents);
    }
}
