//! A stand-in for Istio's agent: serves the secrets `default` (the workload's own certificate) and `ROOTCA` over SDS.

use std::net::{Ipv4Addr, SocketAddr};

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server as service;
use envoy_types::pb::google::protobuf::Any;
use futures::StreamExt;
use futures::stream::BoxStream;
use prost::Name as _;
use serde_json::{Value, json};
use tonic::{Request, Response, Status, Streaming};

use super::certs::Certificates;

/// The server's port; it runs as long as this process.
pub(crate) fn start(certificates: &Certificates) -> u16 {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let secrets = Secrets {
        chain: certificates.text("workload.pem"),
        key: certificates.text("workload-key.pem"),
        roots: certificates.text("ca.pem"),
    };
    // Not on a test's runtime, because the shared Envoys outlive it.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let connections = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let service = service::SecretDiscoveryServiceServer::new(secrets);
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(connections)
                .await
                .unwrap();
        });
    });
    port
}

/// The bootstrap cluster for this server.
pub(crate) fn cluster(port: u16) -> Value {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let address =
        json!({"socket_address": {"address": address.ip().to_string(), "port_value": port}});
    json!({
        "name": "sds-grpc",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "sds-grpc",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        },
    })
}

#[derive(Debug, Clone)]
struct Secrets {
    chain: String,
    key: String,
    roots: String,
}

impl Secrets {
    fn named(&self, name: &str) -> Option<tls::Secret> {
        use tls::secret::Type;
        let data = |text: &str| {
            Some(DataSource {
                specifier: Some(Specifier::InlineString(text.to_owned())),
                ..Default::default()
            })
        };
        let value = match name {
            "default" => Type::TlsCertificate(tls::TlsCertificate {
                certificate_chain: data(&self.chain),
                private_key: data(&self.key),
                ..Default::default()
            }),
            "ROOTCA" => Type::ValidationContext(tls::CertificateValidationContext {
                trusted_ca: data(&self.roots),
                ..Default::default()
            }),
            _ => return None,
        };
        Some(tls::Secret { name: name.to_owned(), r#type: Some(value) })
    }

    fn answer(&self, request: &discovery::DiscoveryRequest) -> discovery::DiscoveryResponse {
        let secrets = request.resource_names.iter().filter_map(|name| self.named(name));
        let type_url = tls::Secret::type_url();
        discovery::DiscoveryResponse {
            version_info: "1".to_owned(),
            resources: secrets
                .map(|secret| Any {
                    type_url: type_url.clone(),
                    value: prost::Message::encode_to_vec(&secret),
                })
                .collect(),
            type_url: type_url.clone(),
            nonce: "1".to_owned(),
            ..Default::default()
        }
    }
}

#[tonic::async_trait]
impl service::SecretDiscoveryService for Secrets {
    type StreamSecretsStream = BoxStream<'static, Result<discovery::DiscoveryResponse, Status>>;
    type DeltaSecretsStream = BoxStream<'static, Result<discovery::DeltaDiscoveryResponse, Status>>;

    async fn stream_secrets(
        &self,
        requests: Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let this = self.clone();
        let answers = requests.into_inner().filter_map(move |request| {
            // A request with a nonce is an ACK; the secrets never change.
            let answer = request
                .map(|request| request.response_nonce.is_empty().then(|| this.answer(&request)));
            std::future::ready(answer.transpose())
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn fetch_secrets(
        &self,
        request: Request<discovery::DiscoveryRequest>,
    ) -> Result<Response<discovery::DiscoveryResponse>, Status> {
        Ok(Response::new(self.answer(request.get_ref())))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented(
            "the clusters of ISTIO_MUTUAL ask in the state-of-the-world form",
        ))
    }
}
