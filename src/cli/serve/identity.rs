//! The flags of the TLS port and of the certificate authority.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{address, seconds};
use crate::bootstrap::dns_name;
use crate::ca::{self, CaOptions};
use crate::control_plane::SecureOptions;
use crate::mesh::MeshConfig;
use crate::webhook::SERVICE;

/// The namespace and the Service by which proxies know Istiod.
const ISTIO_NAMESPACE: &str = "istio-system";
const ISTIOD: &str = "istiod";

/// The shortest life of a certificate. It must be renewed in time even if the API server is slow.
const SHORTEST_LIFETIME: Duration = Duration::from_secs(10);

/// The longest life of a root: 100 years.
const LONGEST_ROOT_LIFETIME: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Flags of the TLS port and of the certificate authority.
#[derive(Debug, clap::Args)]
pub(super) struct IdentityArgs {
    /// The address of the ADS listener with TLS [default: port 15012]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address)]
    tls_listen: Option<SocketAddr>,
    /// Present the certificate in the files tls.crt and tls.key of this folder on the TLS port, which are read again when
    /// they change, in place of one that weir signs
    #[arg(long, value_name = "DIR")]
    tls_cert_dir: Option<PathBuf>,
    /// Another name or address by which proxies know weir, for the certificate that it signs for its TLS port; may be
    /// repeated
    #[arg(long, value_name = "NAME", value_parser = name_or_address)]
    tls_name: Vec<String>,
    /// How long the certificates of proxies are valid, at most
    #[arg(long, value_name = "SECONDS", default_value = "86400", allow_negative_numbers = true, value_parser = lifetime)]
    certificate_lifetime: Duration,
    /// How long proxies have to learn of a new root of the authority before certificates are signed by it
    #[arg(long, value_name = "SECONDS", default_value = "300", allow_negative_numbers = true, value_parser = seconds)]
    root_delay: Duration,
    /// How long a root that weir makes is valid. It is replaced in the last tenth of that time, and early enough for
    /// --root-delay and the longest certificates
    #[arg(long, value_name = "SECONDS", default_value = "315360000", allow_negative_numbers = true, value_parser = root_lifetime)]
    root_lifetime: Duration,
    /// Overwrite the ConfigMaps istio-ca-root-cert that another controller, such as Istiod, has written with other roots
    #[arg(long)]
    take_over_roots: bool,
}

/// What the flags of others say that identity depends on.
pub(super) struct Surroundings<'a> {
    /// The address to listen on by default.
    pub local: IpAddr,
    /// The namespace of weir; `None` outside a cluster.
    pub namespace: Option<&'a str>,
    /// The mesh-wide settings.
    pub mesh: &'a MeshConfig,
    /// The only namespace that is served.
    pub only: Option<Arc<str>>,
}

impl IdentityArgs {
    /// Where to serve in plain text: as the flag says, else where nobody needs an identity, which is only on loopback if the
    /// others have one.
    pub(super) fn plain(
        flag: Option<Plain>,
        identities: bool,
        local: IpAddr,
    ) -> Option<SocketAddr> {
        match flag {
            Some(Plain::Off) => None,
            Some(Plain::At(address)) => Some(address),
            None if identities => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 15010))),
            None => Some(SocketAddr::new(local, 15010)),
        }
    }

    /// The options; `None` if proxies are served in plain text alone.
    pub(super) fn options(
        self,
        around: &Surroundings<'_>,
    ) -> anyhow::Result<Option<SecureOptions>> {
        if !around.mesh.identities {
            if self.tls_listen.is_some() || self.tls_cert_dir.is_some() {
                return Err(crate::cli::usage(
                    "--tls-listen and --tls-cert-dir need --identity on",
                ));
            }
            return Ok(None);
        }
        if self.root_lifetime < (self.root_delay + self.certificate_lifetime) * 2 {
            return Err(crate::cli::usage(
                "--root-lifetime must be at least twice --root-delay and --certificate-lifetime together, for a root is \
                 replaced before its end",
            ));
        }
        let Some(namespace) = around.namespace else {
            return Err(crate::cli::usage(
                "--identity on needs the Kubernetes API, which checks tokens, and --pod-namespace",
            ));
        };
        let authority = CaOptions {
            namespace: namespace.to_owned(),
            trust_domain: around.mesh.trust_domain.to_string(),
            lifetime: self.certificate_lifetime,
            learn: self.root_delay,
            root_lifetime: self.root_lifetime,
            take_over: self.take_over_roots,
        };
        Ok(Some(SecureOptions {
            listen: self.tls_listen.unwrap_or(SocketAddr::new(around.local, 15012)),
            names: names(namespace, &around.mesh.domain, around.mesh.revision.as_deref())
                .chain(self.tls_name)
                .collect(),
            certificate: self.tls_cert_dir,
            authority,
            only: around.only.clone(),
        }))
    }
}

/// The names by which proxies know weir, and those by which they know the Istiod that it replaces.
fn names(namespace: &str, domain: &str, revision: Option<&str>) -> impl Iterator<Item = String> {
    let istiod = revision.map(|revision| format!("{ISTIOD}-{revision}.{ISTIO_NAMESPACE}.svc"));
    let own = format!("{SERVICE}.{namespace}.svc");
    [format!("{own}.{domain}"), own, format!("{SERVICE}.{namespace}")]
        .into_iter()
        .chain([format!("{ISTIOD}.{ISTIO_NAMESPACE}.svc")])
        .chain(istiod)
}

fn name_or_address(text: &str) -> Result<String, String> {
    match text.parse::<IpAddr>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => dns_name(text),
    }
}

fn root_lifetime(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text).parse().ok().map(Duration::from_secs);
    number.filter(|time| *time <= LONGEST_ROOT_LIFETIME).ok_or_else(|| {
        let most = LONGEST_ROOT_LIFETIME.as_secs();
        format!("expected a number of seconds up to {most}, such as 315360000")
    })
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text).parse().ok().map(Duration::from_secs);
    number.filter(|time| (SHORTEST_LIFETIME..=ca::LONGEST_LIFETIME).contains(time)).ok_or_else(
        || {
            format!(
                "expected a number of seconds from {} to {}, such as 86400 or 3600s",
                SHORTEST_LIFETIME.as_secs(),
                ca::LONGEST_LIFETIME.as_secs()
            )
        },
    )
}

/// Reads where to serve ADS in plain text: an address, or `off`.
pub(super) fn plain(text: &str) -> Result<Plain, String> {
    match text {
        "off" => Ok(Plain::Off),
        _ => address(text).map(Plain::At).map_err(|wrong| format!("{wrong}, or off")),
    }
}

/// Where ADS is served in plain text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plain {
    /// Nowhere.
    Off,
    /// At this address.
    At(SocketAddr),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_names_weir_and_the_istiod_it_replaces() {
        let names: Vec<_> = names("weir-system", "cluster.local", Some("canary")).collect();
        assert_eq!(
            names,
            [
                "weir.weir-system.svc.cluster.local",
                "weir.weir-system.svc",
                "weir.weir-system",
                "istiod.istio-system.svc",
                "istiod-canary.istio-system.svc"
            ]
        );
    }

    #[test]
    fn the_port_in_plain_text_can_be_off() {
        assert_eq!(plain("off"), Ok(Plain::Off));
        assert_eq!(plain("[::]:1"), Ok(Plain::At("[::]:1".parse().unwrap())));
        assert!(plain("on").unwrap_err().ends_with(", or off"));
    }

    #[test]
    fn a_lifetime_is_10_s_to_90_days() {
        assert_eq!(lifetime("60s"), Ok(Duration::from_secs(60)));
        for wrong in ["9", "7776001", "-1", "", "1d", "1.5"] {
            assert!(lifetime(wrong).unwrap_err().contains("from 10 to 7776000"), "{wrong}");
        }
    }
}
