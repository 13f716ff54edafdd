//! TLS: the transport sockets of clusters, by `trafficPolicy.tls` and `proxyProtocol` or automatic, and of inbound ports.

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::{
    proxy_protocol::v3::ProxyProtocolUpstreamTransport, raw_buffer::v3::RawBuffer, tls::v3 as tls,
};
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;

use envoy_types::pb::google::protobuf::{Struct, Value, value};
use prost::Message as _;

use super::connection_pool::{HttpOptions, is_http2};
use super::{ads, any, bool_value, seconds};
use crate::api::{ClientTlsSettings, ProxyProtocol, ProxyProtocolVersion, TlsMode};
use crate::mesh::{Account, Certificates, MeshConfig, Service, TLS_MODE_ISTIO};

/// The SDS secret with which Istio's agent serves a workload's own certificate.
const WORKLOAD_SECRET: &str = "default";
/// The SDS secret with which Istio's agent serves the mesh's root certificates.
const ROOT_SECRET: &str = "ROOTCA";
/// The cluster of Istio's agent.
const AGENT: &str = "sds-grpc";

/// Where Envoy looks for the metadata of an endpoint that chooses among the transport sockets of its cluster, and the field
/// by which sidecars under Istiod and weir choose.
const SOCKET_MATCH: &str = "envoy.transport_socket_match";
const TLS_MODE_FIELD: &str = "tlsMode";

/// What the clients of the mesh offer as protocols in TLS, by which a server tells mutual TLS of the mesh from TLS of
/// applications: for HTTP, for other bytes, and both. Source: Istio's inbound listeners.
pub(crate) const MESH_HTTP: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
pub(crate) const MESH_BYTES: [&str; 2] = ["istio-peer-exchange", "istio"];
pub(crate) const MESH_ANY: [&str; 5] =
    ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];

/// The cipher suites of mutual TLS before 1.3. Source: Istio's inbound listeners.
const CIPHERS: [&str; 6] = [
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-GCM-SHA256",
];

/// What is known about the servers besides the rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Servers<'a> {
    /// The SNI that mesh workloads use for a service's port and subset.
    pub mesh_sni: &'a str,
    /// The accepted SPIFFE ids of mesh workloads; empty if unknown.
    pub accounts: &'a [matcher::StringMatcher],
    /// The beginning of the SPIFFE ids of the service's namespace.
    pub any_account: &'a str,
    /// The subject alternative names of a ServiceEntry.
    pub subject_alt_names: &'a [String],
    /// Which of them get mutual TLS without a rule.
    pub automatic: Automatic,
}

impl Servers<'_> {
    /// The accepted identities; while none is known, any of the service's namespace.
    fn known_or_of_mesh(&self) -> Vec<matcher::StringMatcher> {
        if self.accounts.is_empty() {
            vec![prefix(self.any_account.to_owned())]
        } else {
            self.accounts.to_vec()
        }
    }
}

/// Which servers get mutual TLS without a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Automatic {
    /// None.
    Never,
    /// Those whose endpoint says that it takes it.
    ByEndpoint,
    /// All.
    Always,
}

/// Sets a cluster's transport socket.
pub(crate) fn apply(
    cluster: &mut pb::Cluster,
    options: &mut HttpOptions,
    settings: Option<&ClientTlsSettings>,
    proxy_protocol: Option<&ProxyProtocol>,
    servers: Servers<'_>,
    certificates: Certificates,
) {
    let context = match settings {
        Some(settings) => context(options, settings, servers, certificates),
        None if servers.automatic == Automatic::Never => None,
        None => Some(tls::UpstreamTlsContext {
            common_tls_context: Some(mesh_client(
                options,
                servers.known_or_of_mesh(),
                certificates,
            )),
            sni: servers.mesh_sni.to_owned(),
            ..Default::default()
        }),
    };
    let socket = context.map(|context| tls_socket(&context));
    if settings.is_none() && servers.automatic == Automatic::ByEndpoint {
        cluster.transport_socket_matches = vec![
            pb::cluster::TransportSocketMatch {
                name: format!("tlsMode-{TLS_MODE_ISTIO}"),
                r#match: Some(takes_mutual_tls()),
                transport_socket: socket,
            },
            pb::cluster::TransportSocketMatch {
                name: "tlsMode-disabled".to_owned(),
                r#match: Some(Struct::default()),
                transport_socket: Some(raw_buffer()),
            },
        ];
        return;
    }
    cluster.transport_socket = match proxy_protocol {
        Some(header) => Some(with_header(socket, header)),
        None => socket,
    };
}

/// The metadata of an endpoint that takes mutual TLS.
pub(crate) fn endpoint_metadata() -> core::Metadata {
    core::Metadata {
        filter_metadata: [(SOCKET_MATCH.to_owned(), takes_mutual_tls())].into(),
        ..Default::default()
    }
}

fn takes_mutual_tls() -> Struct {
    let mode = Value { kind: Some(value::Kind::StringValue(TLS_MODE_ISTIO.to_owned())) };
    Struct { fields: [(TLS_MODE_FIELD.to_owned(), mode)].into() }
}

/// The transport socket of an inbound port for clients of the mesh, any of its identities.
pub(crate) fn inbound(trust_domain: &str, certificates: Certificates) -> core::TransportSocket {
    let common = mesh(vec![prefix(format!("spiffe://{trust_domain}/"))], certificates);
    let parameters = common.tls_params.clone().map(|parameters| tls::TlsParameters {
        cipher_suites: CIPHERS.map(str::to_owned).to_vec(),
        ..parameters
    });
    tls_socket(&tls::DownstreamTlsContext {
        common_tls_context: Some(tls::CommonTlsContext {
            // What the client offers for the mesh is not among them: it must not be chosen as the protocol.
            alpn_protocols: alpn(&["h2", "http/1.1"]),
            tls_params: parameters,
            ..common
        }),
        require_client_certificate: bool_value(true),
        ..Default::default()
    })
}

/// Whether a transport socket encrypts, behind a PROXY header or not.
pub(crate) fn is_tls(socket: &core::TransportSocket) -> bool {
    let Some(core::transport_socket::ConfigType::TypedConfig(config)) = &socket.config_type else {
        return false;
    };
    if config.type_url.ends_with(".ProxyProtocolUpstreamTransport") {
        let inner = ProxyProtocolUpstreamTransport::decode(config.value.as_slice());
        return inner.is_ok_and(|inner| inner.transport_socket.as_ref().is_some_and(is_tls));
    }
    config.type_url.ends_with(".UpstreamTlsContext")
}

fn tls_socket<M: prost::Name>(context: &M) -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(context))),
    }
}

fn with_header(
    socket: Option<core::TransportSocket>,
    header: &ProxyProtocol,
) -> core::TransportSocket {
    let version = match header.version {
        ProxyProtocolVersion::V1 => core::proxy_protocol_config::Version::V1,
        ProxyProtocolVersion::V2 => core::proxy_protocol_config::Version::V2,
    };
    let transport = ProxyProtocolUpstreamTransport {
        config: Some(core::ProxyProtocolConfig { version: version as i32, ..Default::default() }),
        transport_socket: Some(socket.unwrap_or_else(raw_buffer)),
        ..Default::default()
    };
    core::TransportSocket {
        name: "envoy.transport_sockets.upstream_proxy_protocol".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(&transport))),
    }
}

fn raw_buffer() -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(&RawBuffer {}))),
    }
}

/// `None` if the mode sends plain text.
fn context(
    options: &mut HttpOptions,
    settings: &ClientTlsSettings,
    servers: Servers<'_>,
    certificates: Certificates,
) -> Option<tls::UpstreamTlsContext> {
    let http2 = is_http2(options);
    let (common, sni) = match settings.mode {
        TlsMode::Disable => return None,
        // Sidecars cannot use Secrets, because each would need permission to read them. Istio omits TLS here too.
        TlsMode::Simple | TlsMode::Mutual if !settings.credential_name.is_empty() => return None,
        TlsMode::IstioMutual => {
            let sni = if settings.sni.is_empty() { servers.mesh_sni } else { &settings.sni };
            let identities = if settings.subject_alt_names.is_empty() {
                servers.accounts.to_vec()
            } else {
                exact(&settings.subject_alt_names)
            };
            (mesh_client(options, identities, certificates), sni.to_owned())
        }
        TlsMode::Simple | TlsMode::Mutual => {
            if settings.sni.is_empty() {
                set_auto_sni(options, settings);
            }
            (with_files(http2, settings, servers), settings.sni.clone())
        }
    };
    Some(tls::UpstreamTlsContext { common_tls_context: Some(common), sni, ..Default::default() })
}

/// A client's TLS with the certificates of the mesh, to servers with one of these identities.
fn mesh_client(
    options: &HttpOptions,
    identities: Vec<matcher::StringMatcher>,
    certificates: Certificates,
) -> tls::CommonTlsContext {
    tls::CommonTlsContext {
        alpn_protocols: alpn(if is_http2(options) { &["istio", "h2"] } else { &["istio"] }),
        ..mesh(identities, certificates)
    }
}

/// TLS with the certificates of the mesh, with a peer that has one of these identities.
#[allow(deprecated)] // See `named`.
fn mesh(
    identities: Vec<matcher::StringMatcher>,
    certificates: Certificates,
) -> tls::CommonTlsContext {
    let validation = tls::common_tls_context::CombinedCertificateValidationContext {
        default_validation_context: Some(tls::CertificateValidationContext {
            match_subject_alt_names: identities,
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(mesh_secret(ROOT_SECRET, certificates)),
        ..Default::default()
    };
    tls::CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![mesh_secret(WORKLOAD_SECRET, certificates)],
        validation_context_type: Some(
            tls::common_tls_context::ValidationContextType::CombinedValidationContext(validation),
        ),
        ..versions()
    }
}

/// TLS with certificates from files of the proxy.
fn with_files(
    http2: bool,
    settings: &ClientTlsSettings,
    servers: Servers<'_>,
) -> tls::CommonTlsContext {
    let names = if settings.subject_alt_names.is_empty() {
        servers.subject_alt_names
    } else {
        &settings.subject_alt_names
    };
    let validation = if settings.insecure_skip_verify == Some(true) {
        tls::CertificateValidationContext::default()
    } else {
        verified(settings, names)
    };
    let own = (settings.mode == TlsMode::Mutual).then(|| tls::TlsCertificate {
        certificate_chain: file(&settings.client_certificate),
        private_key: file(&settings.private_key),
        ..Default::default()
    });
    tls::CommonTlsContext {
        alpn_protocols: alpn(if http2 { &["h2"] } else { &[] }),
        tls_certificates: own.into_iter().collect(),
        validation_context_type: Some(
            tls::common_tls_context::ValidationContextType::ValidationContext(validation),
        ),
        ..versions()
    }
}

/// Sends the request's host as SNI and, unless the rule names other names, verifies it.
fn set_auto_sni(options: &mut HttpOptions, settings: &ClientTlsSettings) {
    let unverified = settings.insecure_skip_verify == Some(true);
    options.get_or_insert_default().upstream_http_protocol_options =
        Some(core::UpstreamHttpProtocolOptions {
            auto_sni: true,
            auto_san_validation: settings.subject_alt_names.is_empty() && !unverified,
            ..Default::default()
        });
}

fn versions() -> tls::CommonTlsContext {
    use tls::tls_parameters::TlsProtocol;
    tls::CommonTlsContext {
        tls_params: Some(tls::TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv12 as i32,
            tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn alpn(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[allow(deprecated)] // The form that replaces `match_subject_alt_names` asks for the kind of each name, which no rule says.
fn named(names: &[String]) -> tls::CertificateValidationContext {
    tls::CertificateValidationContext {
        match_subject_alt_names: exact(names),
        ..Default::default()
    }
}

fn exact(names: &[String]) -> Vec<matcher::StringMatcher> {
    let exact = names.iter().map(|name| matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Exact(name.clone())),
        ..Default::default()
    });
    exact.collect()
}

fn prefix(text: String) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Prefix(text)),
        ..Default::default()
    }
}

/// The identities of the servers of a service with these accounts: of those without a name only the namespace is known. What a
/// ServiceEntry says of its servers counts as well, and is enough for those whose account it does not say.
pub(crate) fn identities(
    service: &Service,
    accounts: &[Account],
    config: &MeshConfig,
) -> Vec<matcher::StringMatcher> {
    let trust_domain = &config.trust_domain;
    let (named, unnamed): (Vec<_>, Vec<_>) =
        accounts.iter().partition(|account| !account.name.is_empty());
    let named = named.iter().map(|Account { namespace, name }| {
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{name}")
    });
    let named: Vec<String> = named.chain(service.subject_alt_names.iter().cloned()).collect();
    let mut ids = exact(&named);
    if service.subject_alt_names.is_empty() {
        let namespaces = unnamed.iter().map(|Account { namespace, .. }| {
            prefix(format!("spiffe://{trust_domain}/ns/{namespace}/sa/"))
        });
        ids.extend(namespaces);
    }
    ids
}

/// Verifies against the given file, else against the system trust store.
fn verified(settings: &ClientTlsSettings, names: &[String]) -> tls::CertificateValidationContext {
    let mut context = named(names);
    if settings.ca_certificates.is_empty() || settings.ca_certificates == "system" {
        context.system_root_certs = Some(tls::certificate_validation_context::SystemRootCerts {});
    } else {
        context.trusted_ca = file(&settings.ca_certificates);
    }
    if !settings.ca_crl.is_empty() {
        context.crl = file(&settings.ca_crl);
    }
    context
}

fn file(path: &str) -> Option<core::DataSource> {
    let specifier = Some(core::data_source::Specifier::Filename(path.to_owned()));
    Some(core::DataSource { specifier, ..Default::default() })
}

/// A secret from where the proxy gets its certificates. A proxy that gets none is taken to have Istio's agent, because a rule
/// asks for the mesh's certificates.
fn mesh_secret(name: &str, certificates: Certificates) -> tls::SdsSecretConfig {
    let source = match certificates {
        Certificates::Ads => ads(),
        Certificates::Agent | Certificates::None => agent(),
    };
    tls::SdsSecretConfig { name: name.to_owned(), sds_config: source }
}

fn agent() -> Option<core::ConfigSource> {
    let service = core::GrpcService {
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
            core::grpc_service::EnvoyGrpc { cluster_name: AGENT.to_owned(), ..Default::default() },
        )),
        ..Default::default()
    };
    Some(core::ConfigSource {
        initial_fetch_timeout: seconds(0),
        resource_api_version: core::ApiVersion::V3 as i32,
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::ApiConfigSource(
            core::ApiConfigSource {
                api_type: core::api_config_source::ApiType::Grpc as i32,
                transport_api_version: core::ApiVersion::V3 as i32,
                grpc_services: vec![service],
                set_node_on_first_message_only: true,
                ..Default::default()
            },
        )),
        ..Default::default()
    })
}
