//! The secrets of one client: its certificate and the roots to trust (SDS), as a pure state machine beside the stream's.
//! They depend on nothing else that the client has, and each client has its own.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::envoy::service::discovery::v3 as pb;
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use xxhash_rust::xxh3::xxh3_64;

use super::stream::{Request, Variant};
use super::wire::version_text;

/// The type of the resources.
pub(crate) const TYPE_URL: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// The names of the certificate of the client and of the roots, as in Istio.
const CERTIFICATE: &str = "default";
const ROOTS: &str = "ROOTCA";

/// How many names a client may subscribe to, and how long each may be, in bytes. There are two.
const NAMES: usize = 16;
const NAME: usize = 253;

/// The secrets of one client.
pub(crate) struct Secrets {
    variant: Variant,
    /// The names to which the client subscribes.
    names: BTreeSet<String>,
    /// Those that it asks for and has not been answered.
    asked: BTreeSet<String>,
    /// The resources, by name, with their versions.
    resources: BTreeMap<&'static str, (u64, Any)>,
    /// The versions that were sent.
    sent: BTreeMap<String, u64>,
    nonce: u64,
}

/// A client subscribes to too many secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream exceeds the limit of {NAMES} secrets with names of at most {NAME} bytes")]
pub(crate) struct TooManySecrets;

impl Secrets {
    /// Of a client that has asked for none.
    pub(crate) fn new(variant: Variant) -> Self {
        Self {
            variant,
            names: BTreeSet::new(),
            asked: BTreeSet::new(),
            resources: BTreeMap::new(),
            sent: BTreeMap::new(),
            nonce: 0,
        }
    }

    /// Whether the client asks for secrets.
    pub(crate) fn are_wanted(&self) -> bool {
        !self.names.is_empty()
    }

    /// Takes in a request for secrets. Returns why the client rejected the last response, if it did.
    ///
    /// # Errors
    /// Too many names.
    pub(crate) fn on_request(
        &mut self,
        request: Request,
    ) -> Result<Option<String>, TooManySecrets> {
        if request.names.len() > NAMES || request.names.iter().any(|name| name.len() > NAME) {
            return Err(TooManySecrets);
        }
        let answers_last = request.nonce == self.nonce.to_string();
        // An answer to an older response says nothing about the names over SotW: a newer one follows.
        if self.variant == Variant::Sotw && !request.nonce.is_empty() && !answers_last {
            return Ok(None);
        }
        match self.variant {
            Variant::Sotw => {
                let names: BTreeSet<_> = request.names.into_iter().collect();
                self.asked.extend(names.difference(&self.names).cloned());
                self.asked.retain(|name| names.contains(name));
                self.names = names;
            }
            Variant::Delta => {
                for name in &request.unsubscribe {
                    self.names.remove(name);
                    self.asked.remove(name);
                    self.sent.remove(name);
                }
                self.asked.extend(request.names.iter().cloned());
                self.names.extend(request.names);
            }
        }
        if self.names.len() > NAMES {
            return Err(TooManySecrets);
        }
        Ok(request.error)
    }

    /// Has this certificate with its intermediates, its key, and these roots from now on, all in PEM.
    pub(crate) fn set(&mut self, chain: &str, key: &str, roots: &str) {
        let certificate = tls::secret::Type::TlsCertificate(tls::TlsCertificate {
            certificate_chain: inline(chain),
            private_key: inline(key),
            ..Default::default()
        });
        let roots = tls::secret::Type::ValidationContext(tls::CertificateValidationContext {
            trusted_ca: inline(roots),
            ..Default::default()
        });
        self.resources = [(CERTIFICATE, certificate), (ROOTS, roots)]
            .map(|(name, secret)| {
                let secret = tls::Secret { name: name.to_owned(), r#type: Some(secret) };
                let value = secret.encode_to_vec();
                (name, (xxh3_64(&value), Any { type_url: TYPE_URL.to_owned(), value }))
            })
            .into();
    }

    /// The bytes of the resources.
    pub(crate) fn held_bytes(&self) -> usize {
        self.resources.values().map(|(_, any)| any.value.len()).sum()
    }

    /// The response that is due, encoded.
    pub(crate) fn response(&mut self) -> Option<Bytes> {
        if self.resources.is_empty() {
            return None;
        }
        let mut due: BTreeSet<String> = std::mem::take(&mut self.asked);
        due.extend(self.names.iter().filter(|name| self.is_outdated(name)).cloned());
        if due.is_empty() {
            return None;
        }
        self.nonce += 1;
        let (nonce, type_url) = (self.nonce.to_string(), TYPE_URL.to_owned());
        let message = match self.variant {
            Variant::Sotw => {
                let names = self.names.clone();
                let resources = names.iter().filter_map(|name| self.send(name)).map(|(_, any)| any);
                let resources: Vec<_> = resources.collect();
                let version =
                    self.sent.values().fold(0, |sum: u64, version| sum.wrapping_add(*version));
                let version_info = version_text(version);
                pb::DiscoveryResponse {
                    version_info,
                    resources,
                    type_url,
                    nonce,
                    ..Default::default()
                }
                .encode_to_vec()
            }
            Variant::Delta => {
                let (mut resources, mut removed_resources) = (Vec::new(), Vec::new());
                for name in due {
                    match self.send(&name) {
                        Some((version, any)) => resources.push(pb::Resource {
                            name,
                            version: version_text(version),
                            resource: Some(any),
                            ..Default::default()
                        }),
                        // So that the client does not wait for it.
                        None => removed_resources.push(name),
                    }
                }
                pb::DeltaDiscoveryResponse {
                    resources,
                    type_url,
                    removed_resources,
                    nonce,
                    ..Default::default()
                }
                .encode_to_vec()
            }
        };
        Some(message.into())
    }

    /// Whether the client has another version of a secret.
    fn is_outdated(&self, name: &str) -> bool {
        let version = self.resources.get(name).map(|(version, _)| version);
        version.is_some() && self.sent.get(name) != version
    }

    /// The secret with this name, which counts as sent.
    fn send(&mut self, name: &str) -> Option<(u64, Any)> {
        let (version, any) = self.resources.get(name)?.clone();
        self.sent.insert(name.to_owned(), version);
        Some((version, any))
    }
}

fn inline(pem: &str) -> Option<core::DataSource> {
    let bytes = core::data_source::Specifier::InlineBytes(pem.as_bytes().to_vec());
    Some(core::DataSource { specifier: Some(bytes), ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(secrets: &mut Secrets, number: u8) {
        secrets.set(&format!("chain {number}"), &format!("key {number}"), "roots");
    }

    fn request(nonce: &str, names: &[&str]) -> Request {
        Request {
            type_url: TYPE_URL.to_owned(),
            nonce: nonce.to_owned(),
            names: names.iter().map(ToString::to_string).collect(),
            ..Request::default()
        }
    }

    fn delta(secrets: &mut Secrets) -> Option<pb::DeltaDiscoveryResponse> {
        secrets.response().map(|bytes| pb::DeltaDiscoveryResponse::decode(bytes).unwrap())
    }

    fn sotw(secrets: &mut Secrets) -> Option<pb::DiscoveryResponse> {
        secrets.response().map(|bytes| pb::DiscoveryResponse::decode(bytes).unwrap())
    }

    fn named(response: &pb::DeltaDiscoveryResponse) -> Vec<&str> {
        response.resources.iter().map(|resource| resource.name.as_str()).collect()
    }

    #[test]
    fn over_delta_what_changes_is_sent_and_what_does_not_exist_is_said() {
        let mut secrets = Secrets::new(Variant::Delta);
        assert!(!secrets.are_wanted());
        secrets.on_request(request("", &["default", "other"])).unwrap();
        assert!(secrets.are_wanted());
        assert!(secrets.response().is_none(), "there is no certificate yet");
        set(&mut secrets, 1);
        let first = delta(&mut secrets).unwrap();
        assert_eq!(named(&first), ["default"]);
        assert_eq!(first.removed_resources, ["other"]);
        secrets.on_request(request(&first.nonce, &[])).unwrap();
        assert!(secrets.response().is_none());

        secrets.on_request(request("", &["ROOTCA"])).unwrap();
        assert_eq!(named(&delta(&mut secrets).unwrap()), ["ROOTCA"]);
        set(&mut secrets, 2);
        assert_eq!(named(&delta(&mut secrets).unwrap()), ["default"], "the roots are the same");
        let unsubscribe = Request { unsubscribe: vec!["default".to_owned()], ..request("", &[]) };
        secrets.on_request(unsubscribe).unwrap();
        set(&mut secrets, 3);
        assert!(secrets.response().is_none());
        // A client that subscribes again has forgotten what it had.
        secrets.on_request(request("", &["ROOTCA"])).unwrap();
        assert_eq!(named(&delta(&mut secrets).unwrap()), ["ROOTCA"]);
    }

    #[test]
    fn over_sotw_each_response_has_all_secrets_and_old_answers_change_nothing() {
        let mut secrets = Secrets::new(Variant::Sotw);
        set(&mut secrets, 1);
        secrets.on_request(request("", &["default"])).unwrap();
        let first = sotw(&mut secrets).unwrap();
        assert_eq!(first.resources.len(), 1);
        secrets.on_request(request(&first.nonce, &["default", "ROOTCA"])).unwrap();
        let second = sotw(&mut secrets).unwrap();
        assert_eq!(second.resources.len(), 2);
        secrets.on_request(request(&first.nonce, &["default"])).unwrap();
        secrets.on_request(request(&second.nonce, &["default", "ROOTCA"])).unwrap();
        assert!(secrets.response().is_none());
        set(&mut secrets, 2);
        let third = sotw(&mut secrets).unwrap();
        assert_ne!(third.version_info, second.version_info);
        let secret = tls::Secret::decode(&*third.resources[1].value).unwrap();
        assert_eq!(secret.name, CERTIFICATE);
    }

    #[test]
    fn a_rejection_is_reported_and_not_answered_with_the_same() {
        for variant in [Variant::Sotw, Variant::Delta] {
            let mut secrets = Secrets::new(variant);
            set(&mut secrets, 1);
            secrets.on_request(request("", &["default"])).unwrap();
            secrets.response().unwrap();
            let names: &[&str] = if variant == Variant::Sotw { &["default"] } else { &[] };
            let rejected = Request { error: Some("no".to_owned()), ..request("1", names) };
            assert_eq!(secrets.on_request(rejected), Ok(Some("no".to_owned())));
            assert!(secrets.response().is_none());
            let names: Vec<_> = (0..17).map(|n| n.to_string()).collect();
            let many = Request { names, ..request("1", &[]) };
            assert_eq!(secrets.on_request(many), Err(TooManySecrets));
        }
    }
}
