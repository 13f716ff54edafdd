//! The Secret with the webhook's certificate, which every replica follows, and the elected one writes. That one also
//! writes the authorities to trust into the webhook configuration.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::rotation::{Contents, Step, Trust, Wanted};
use super::{Reporter, Webhook};
use crate::source::kubernetes::object_watch::{ObjectWatch, Seen};
use crate::source::kubernetes::reason;
use crate::tls::{KeyedCertificate, ServedCertificate};

/// The name of the Secret.
pub(crate) const SECRET: &str = "weir-webhook-cert";
/// The name of the ValidatingWebhookConfiguration.
pub(crate) const CONFIGURATION: &str = "weir";
/// The name of the Service that the API server calls.
const SERVICE: &str = "weir";
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

/// What is known about the webhook configuration.
#[derive(Debug, Default)]
enum Configuration {
    /// Nothing yet.
    #[default]
    Unknown,
    /// There is none, or not for this weir.
    NotForUs,
    /// It exists: its UID, and its webhooks for this weir with their authorities.
    Present { uid: Option<String>, webhooks: Vec<(String, String)> },
}

impl Configuration {
    fn of(configuration: ValidatingWebhookConfiguration, namespace: &str) -> Self {
        let webhooks = configuration.webhooks.unwrap_or_default().into_iter();
        let ours = webhooks.filter(|webhook| {
            let service = webhook.client_config.service.as_ref();
            service.is_some_and(|at| at.name == SERVICE && at.namespace == namespace)
        });
        let webhooks: Vec<_> = ours
            .map(|webhook| {
                let trusted = webhook.client_config.ca_bundle.unwrap_or_default().0;
                (webhook.name, String::from_utf8(trusted).unwrap_or_default())
            })
            .collect();
        match webhooks.is_empty() {
            true => Self::NotForUs,
            false => Self::Present { uid: configuration.metadata.uid, webhooks },
        }
    }

    /// Whether every webhook trusts exactly these authorities.
    fn trusts(&self, authorities: &str) -> bool {
        match self {
            Self::Present { webhooks, .. } => {
                webhooks.iter().all(|(_, trusted)| trusted == authorities)
            }
            Self::Unknown | Self::NotForUs => false,
        }
    }
}

/// Writes the Secret and the authorities in the configuration while this replica is elected.
pub(crate) struct Issuer {
    client: Client,
    namespace: String,
    wanted: Wanted,
    webhook: Arc<Webhook>,
    secret: watch::Receiver<SecretState>,
}

impl Issuer {
    /// An issuer for the Service of weir in a namespace.
    pub(crate) fn new(
        client: Client,
        namespace: &str,
        domain: &str,
        lifetime: Duration,
        webhook: Arc<Webhook>,
        secret: watch::Receiver<SecretState>,
    ) -> Self {
        let name = format!("{SERVICE}.{namespace}.svc");
        let names = vec![format!("{name}.{domain}"), name];
        let wanted = Wanted { names, lifetime };
        Self { client, namespace: namespace.to_owned(), wanted, webhook, secret }
    }

    /// Keeps the Secret and the configuration until this replica is no longer elected, as `valid` says.
    pub(crate) async fn run(&self, valid: watch::Receiver<Instant>) {
        let mut keeper = Keeper {
            issuer: self,
            valid,
            secret: self.secret.clone(),
            configuration: Configuration::default(),
            trusted_since: None,
        };
        let api = Api::<ValidatingWebhookConfiguration>::all(self.client.clone());
        let mut seen = ObjectWatch::new(api, CONFIGURATION);
        keeper.secret.mark_changed();
        loop {
            let again_at = keeper.act().await;
            tokio::select! {
                changed = keeper.secret.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                seen = seen.next() => keeper.observe(seen),
                () = tokio::time::sleep_until(again_at) => {}
            }
        }
    }

    /// Forgets what only an elected replica knows.
    pub(crate) fn resign(&self) {
        self.webhook.not_elected();
    }
}

/// Keeps the Secret and the configuration while this replica is elected.
struct Keeper<'a> {
    issuer: &'a Issuer,
    valid: watch::Receiver<Instant>,
    secret: watch::Receiver<SecretState>,
    configuration: Configuration,
    /// Which authorities the configuration has, and since when as far as is known.
    trusted_since: Option<(String, SystemTime)>,
}

impl Keeper<'_> {
    fn observe(&mut self, seen: Seen<ValidatingWebhookConfiguration>) {
        let webhook = &self.issuer.webhook;
        match seen {
            Seen::Object(found) => {
                self.configuration = Configuration::of(found, &self.issuer.namespace);
            }
            Seen::Absent => {
                self.configuration = Configuration::NotForUs;
                webhook.resolve(Reporter::Configuration);
            }
            Seen::Works => webhook.resolve(Reporter::ConfigurationWatch),
            Seen::Failed(why) => webhook.report(
                Reporter::ConfigurationWatch,
                format!("ValidatingWebhookConfiguration {CONFIGURATION} cannot be watched: {why}"),
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
        let written = self.write_authorities(&contents.authorities).await;
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
        if matches!(self.configuration, Configuration::NotForUs) {
            return Trust::NotAsked;
        }
        if !self.configuration.trusts(authorities) {
            self.trusted_since = None;
            return Trust::Outdated;
        }
        self.issuer.webhook.resolve(Reporter::Configuration);
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

    /// Writes the authorities into the configuration if it has others. Returns whether nothing is left to be tried.
    async fn write_authorities(&self, authorities: &str) -> bool {
        let Configuration::Present { uid, webhooks } = &self.configuration else {
            return true;
        };
        if authorities.is_empty() || self.configuration.trusts(authorities) || !self.is_elected() {
            return true;
        }
        let bundle = ByteString(authorities.as_bytes().to_vec());
        let webhooks = webhooks
            .iter()
            .map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": bundle}}));
        let patch = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            // With its UID, one that was deleted meanwhile is not created.
            "metadata": {"name": CONFIGURATION, "uid": uid},
            "webhooks": webhooks.collect::<Vec<_>>(),
        });
        let api = Api::<ValidatingWebhookConfiguration>::all(self.issuer.client.clone());
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(patch);
        let written = timeout_at(self.deadline(), api.patch(CONFIGURATION, &params, &patch)).await;
        let what = format!("the authorities in ValidatingWebhookConfiguration {CONFIGURATION}");
        self.report(Reporter::Configuration, &what, written.map(|done| done.map(drop)))
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

    fn configuration(
        service: &str,
        namespace: &str,
        bundle: &str,
    ) -> ValidatingWebhookConfiguration {
        let bundle = ByteString(bundle.as_bytes().to_vec());
        let value = json!({
            "metadata": {"name": CONFIGURATION, "uid": "1"},
            "webhooks": [{
                "name": "validation.weir.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {"service": {"name": service, "namespace": namespace}, "caBundle": bundle},
            }],
        });
        serde_json::from_value(value).unwrap()
    }

    fn configuration_of(service: &str, namespace: &str) -> Configuration {
        Configuration::of(configuration(service, namespace, "a"), "weir-system")
    }

    #[test]
    fn a_configuration_of_another_weir_is_left_alone() {
        assert!(matches!(configuration_of("weir", "other"), Configuration::NotForUs));
        assert!(matches!(configuration_of("istiod", "weir-system"), Configuration::NotForUs));
        let ours = configuration_of("weir", "weir-system");
        assert!(ours.trusts("a") && !ours.trusts("a\nb"));
    }

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
