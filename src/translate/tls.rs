//! `trafficPolicy.tls` and `proxyProtocol`: the transport socket of a cluster.

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::{
    proxy_protocol::v3::ProxyProtocolUpstreamTransport, raw_buffer::v3::RawBuffer, tls::v3 as tls,
};
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;

use super::connection_pool::{HttpOptions, is_http2};
use super::{any, seconds};
use crate::api::{ClientTlsSettings, ProxyProtocol, ProxyProtocolVersion, TlsMode};

/// The SDS secret with which Istio's agent serves a workload's own certificate.
const WORKLOAD_SECRET: &str = "default";
/// The SDS secret with which Istio's agent serves the mesh's root certificates.
const ROOT_SECRET: &str = "ROOTCA";
/// The cluster of Istio's agent.
const AGENT: &str = "sds-grpc";

/// What is known about the servers besides the rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Servers<'a> {
    /// The SNI that mesh workloads use for a service's port and subset.
    pub mesh_sni: &'a str,
    /// The accepted SPIFFE ids of mesh workloads; empty if unknown.
    pub accounts: &'a [String],
    /// The subject alternative names of a ServiceEntry.
    pub subject_alt_names: &'a [String],
}

/// Sets a cluster's transport socket.
pub(crate) fn apply(
    cluster: &mut pb::Cluster,
    options: &mut HttpOptions,
    settings: Option<&ClientTlsSettings>,
    proxy_protocol: Option<&ProxyProtocol>,
    servers: Servers<'_>,
) {
    let context = settings.and_then(|settings| context(options, settings, servers));
    let socket = context.map(|context| core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(&context))),
    });
    cluster.transport_socket = match proxy_protocol {
        Some(header) => Some(with_header(socket, header)),
        None => socket,
    };
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
) -> Option<tls::UpstreamTlsContext> {
    let http2 = is_http2(options);
    let (common, sni) = match settings.mode {
        TlsMode::Disable => return None,
        // Sidecars cannot use Secrets, because each would need permission to read them. Istio omits TLS here too.
        TlsMode::Simple | TlsMode::Mutual if !settings.credential_name.is_empty() => return None,
        TlsMode::IstioMutual => {
            let sni = if settings.sni.is_empty() { servers.mesh_sni } else { &settings.sni };
            (istio_mutual(http2, settings, servers), sni.to_owned())
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

/// TLS with the certificates of Istio's agent.
fn istio_mutual(
    http2: bool,
    settings: &ClientTlsSettings,
    servers: Servers<'_>,
) -> tls::CommonTlsContext {
    let names = if settings.subject_alt_names.is_empty() {
        servers.accounts
    } else {
        &settings.subject_alt_names
    };
    let validation = tls::common_tls_context::CombinedCertificateValidationContext {
        default_validation_context: Some(named(names)),
        validation_context_sds_secret_config: Some(agent_secret(ROOT_SECRET)),
        ..Default::default()
    };
    tls::CommonTlsContext {
        alpn_protocols: alpn(if http2 { &["istio", "h2"] } else { &["istio"] }),
        tls_certificate_sds_secret_configs: vec![agent_secret(WORKLOAD_SECRET)],
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
    let exact = names.iter().map(|name| matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Exact(name.clone())),
        ..Default::default()
    });
    tls::CertificateValidationContext {
        match_subject_alt_names: exact.collect(),
        ..Default::default()
    }
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

fn agent_secret(name: &str) -> tls::SdsSecretConfig {
    let service = core::GrpcService {
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
            core::grpc_service::EnvoyGrpc { cluster_name: AGENT.to_owned(), ..Default::default() },
        )),
        ..Default::default()
    };
    tls::SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(core::ConfigSource {
            initial_fetch_timeout: seconds(0),
            resource_api_version: core::ApiVersion::V3 as i32,
            config_source_specifier: Some(
                core::config_source::ConfigSourceSpecifier::ApiConfigSource(
                    core::ApiConfigSource {
                        api_type: core::api_config_source::ApiType::Grpc as i32,
                        transport_api_version: core::ApiVersion::V3 as i32,
                        grpc_services: vec![service],
                        set_node_on_first_message_only: true,
                        ..Default::default()
                    },
                ),
            ),
            ..Default::default()
        }),
    }
}
