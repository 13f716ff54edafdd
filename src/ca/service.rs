//! Istio's certificate API, `istio.v1.auth.IstioCertificateService`: the agent in a pod sends a certificate signing request
//! with its token, and gets a certificate for the service account of the token.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::authority::LONGEST_LIFETIME;
use super::signing::{CertificateAuthority, SignError};
use crate::admission::{Exchange, Exhausted};
use crate::identity::{Identity, TokenError, TokenReviewer};

/// The largest request in bytes, with metadata that is not read.
const LONGEST: usize = 16 << 10;

/// How long a request may take to be complete.
const BODY: Duration = Duration::from_secs(10);

/// A request for a certificate. Field numbers as in Istio's API; fields that are not read are left out.
#[derive(Clone, PartialEq, prost::Message)]
struct CertificateRequest {
    /// The certificate signing request in PEM.
    #[prost(string, tag = "1")]
    csr: String,
    /// How long the certificate shall be valid, in seconds; 0 leaves it to the authority.
    #[prost(int64, tag = "3")]
    validity_duration: i64,
}

/// The certificate.
#[derive(Clone, PartialEq, prost::Message)]
struct CertificateResponse {
    /// The certificate, its intermediates, and the root last, each in PEM.
    #[prost(string, repeated, tag = "1")]
    cert_chain: Vec<String>,
}

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct CertificateService {
    authority: CertificateAuthority,
    tokens: Arc<TokenReviewer>,
}

impl CertificateService {
    /// Signs for those whom `tokens` identifies.
    pub(crate) fn new(authority: CertificateAuthority, tokens: Arc<TokenReviewer>) -> Self {
        Self { authority, tokens }
    }

    /// Answers a request whose headers identify its sender. Its body is read only then.
    async fn answer(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let exchange = request.extensions().get::<Arc<Exchange>>().cloned();
        let exchange =
            exchange.ok_or_else(|| Status::internal("the request came past admission"))?;
        let identity = self.tokens.identify(request.headers(), exchange.peer()).await?;
        exchange.is_in_use();
        let exhausted = |why: Exhausted| Status::resource_exhausted(why.to_string());
        let _hold = exchange.hold(LONGEST).map_err(exhausted)?;
        let signing = Signing { authority: self.authority.clone(), identity, exchange };
        let mut grpc = Grpc::new(ProstCodec::default()).max_decoding_message_size(LONGEST);
        timeout(BODY, grpc.unary(signing, request)).await.map_err(|_| {
            Status::deadline_exceeded(format!(
                "the request was not complete within {} s",
                BODY.as_secs()
            ))
        })
    }
}

/// Signs for a client that is identified.
struct Signing {
    authority: CertificateAuthority,
    identity: Identity,
    exchange: Arc<Exchange>,
}

impl Signing {
    fn sign(&self, request: CertificateRequest) -> Result<CertificateResponse, Status> {
        let CertificateRequest { csr, validity_duration } = request;
        let lifetime = lifetime(validity_duration)?;
        let cert_chain = self.authority.sign_request(&self.identity, &csr, lifetime)?;
        self.exchange.makes_sense();
        tracing::debug!(identity = %self.identity, "signed a certificate");
        Ok(CertificateResponse { cert_chain })
    }
}

/// The lifetime that a client asks for; `None` leaves it to the authority.
fn lifetime(seconds: i64) -> Result<Option<Duration>, Status> {
    let wrong = || {
        Status::invalid_argument(format!(
            "validity_duration is {seconds} s; expected 1 to {} s, or 0 for the default",
            LONGEST_LIFETIME.as_secs()
        ))
    };
    let lifetime = Duration::from_secs(seconds.try_into().map_err(|_| wrong())?);
    if lifetime > LONGEST_LIFETIME {
        return Err(wrong());
    }
    Ok(Some(lifetime).filter(|lifetime| !lifetime.is_zero()))
}

impl From<TokenError> for Status {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Unavailable(_) => Self::unavailable(error.to_string()),
            TokenError::Missing | TokenError::Rejected(_) | TokenError::NotServiceAccount(_) => {
                Self::permission_denied(error.to_string())
            }
        }
    }
}

impl From<SignError> for Status {
    fn from(error: SignError) -> Self {
        match error {
            SignError::NotReady => Self::unavailable(error.to_string()),
            SignError::Request(_) => Self::invalid_argument(error.to_string()),
            SignError::Authority(_) => {
                tracing::error!(%error, "cannot sign a certificate");
                Self::internal(error.to_string())
            }
        }
    }
}

impl NamedService for CertificateService {
    const NAME: &'static str = "istio.v1.auth.IstioCertificateService";
}

type BoxFuture<T, E> = std::pin::Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl UnaryService<CertificateRequest> for Signing {
    type Response = CertificateResponse;
    type Future = std::future::Ready<Result<Response<CertificateResponse>, Status>>;

    fn call(&mut self, request: Request<CertificateRequest>) -> Self::Future {
        std::future::ready(self.sign(request.into_inner()).map(Response::new))
    }
}

impl<B> tower_service::Service<http::Request<B>> for CertificateService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path().rsplit('/').next() != Some("CreateCertificate") {
                let known = format!("{} has the method CreateCertificate", Self::NAME);
                return Ok(Status::unimplemented(known).into_http());
            }
            let answer = service.answer(request.map(Body::new)).await;
            Ok(answer.unwrap_or_else(Status::into_http))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_positive_and_at_most_90_days() {
        assert_eq!(lifetime(0).unwrap(), None);
        assert_eq!(lifetime(60).unwrap(), Some(Duration::from_secs(60)));
        let days = 90 * 24 * 60 * 60;
        assert_eq!(lifetime(days).unwrap(), Some(LONGEST_LIFETIME));
        for wrong in [-1, days + 1, i64::MAX, i64::MIN] {
            let error = lifetime(wrong).unwrap_err();
            assert!(error.message().starts_with(&format!("validity_duration is {wrong} s;")));
        }
    }
}
