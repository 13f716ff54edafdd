//! How Envoy reaches weir's TLS port: it verifies weir by the mesh's roots, and presents the token of its service account.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{XdsAddress, XdsHost};

/// The name of the secret with the token.
const TOKEN: &str = "service-account-token";

/// What identifies Envoy to weir, and weir to Envoy. The files are read again when they change.
#[derive(Debug, Clone)]
pub(crate) struct XdsIdentity {
    /// The file with the token of the service account.
    pub token: PathBuf,
    /// The file with the roots to trust, in PEM.
    pub roots: PathBuf,
    /// The file for [`XdsIdentity::token_secret`].
    pub token_secret: PathBuf,
    /// The name of the service account (node metadata SERVICE_ACCOUNT), if known.
    pub service_account: Option<String>,
}

impl XdsIdentity {
    /// The contents of the file that makes Envoy read the token again when it changes: with a static secret, it would
    /// present the first token for ever.
    pub(crate) fn token_secret(&self) -> Value {
        json!({
            "resources": [{
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
                "name": TOKEN,
                "generic_secret": { "secret": watched(&self.token) },
            }],
        })
    }

    /// The filters of the requests to weir.
    pub(super) fn http_filters(&self) -> Value {
        let types = "type.googleapis.com/envoy.extensions";
        let secret = json!({
            "name": TOKEN,
            "sds_config": {
                "path_config_source": { "path": self.token_secret },
                "resource_api_version": "V3",
            },
        });
        json!([
            {
                "name": "envoy.filters.http.credential_injector",
                "typed_config": {
                    "@type": format!("{types}.filters.http.credential_injector.v3.CredentialInjector"),
                    "overwrite": true,
                    "credential": {
                        "name": "envoy.http.injected_credentials.generic",
                        "typed_config": {
                            "@type": format!("{types}.http.injected_credentials.generic.v3.Generic"),
                            "credential": secret,
                            "header_value_prefix": "Bearer ",
                        },
                    },
                },
            },
            {
                "name": "envoy.filters.http.upstream_codec",
                "typed_config": {
                    "@type": format!("{types}.filters.http.upstream_codec.v3.UpstreamCodec"),
                },
            },
        ])
    }

    /// The TLS of connections to weir at an address.
    pub(super) fn transport_socket(&self, address: &XdsAddress) -> Value {
        let (kind, name) = match &address.host {
            XdsHost::Ip(ip) => ("IP_ADDRESS", ip.to_string()),
            XdsHost::Name(name) => ("DNS", name.clone()),
        };
        let mut context = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "validation_context": {
                    "trusted_ca": watched(&self.roots),
                    "match_typed_subject_alt_names": [{ "san_type": kind, "matcher": { "exact": name } }],
                },
            },
        });
        if let XdsHost::Name(_) = address.host {
            context["sni"] = name.into();
        }
        json!({ "name": "envoy.transport_sockets.tls", "typed_config": context })
    }
}

/// A file that is read again when its folder changes, as kubelet replaces the files of a volume.
fn watched(file: &Path) -> Value {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    json!({
        "filename": file,
        "watched_directory": { "path": folder.unwrap_or_else(|| Path::new(".")) },
    })
}
