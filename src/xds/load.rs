//! The service that takes load reports: `envoy.service.load_stats.v3.LoadReportingService`, on the ports of ADS and for the
//! same clients. What they report goes to [`Loads`].

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use envoy_types::pb::envoy::config::core::v3::Node;
use futures::future::{Ready, ready};
use prost::Message as _;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;

use super::client::{Access, Caller, Client, Gate, not_served, shutting_down};
use super::grpc::Requests;
use super::node::read_node;
use super::wire::Frame;
use crate::admission::{Exchange, Start};
use crate::load::{LoadStatsRequest, Loads, Refused};
use crate::timer::at;

/// The only method.
const METHOD: &str = "StreamLoadStats";

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct LoadReporting {
    /// Where reports go.
    pub loads: Arc<Loads>,
    /// What all streams share.
    pub gate: Arc<Gate>,
    /// How clients identify themselves; `None` if they need not.
    pub access: Option<Access>,
}

impl NamedService for LoadReporting {
    const NAME: &'static str = "envoy.service.load_stats.v3.LoadReportingService";
}

impl<B> tower_service::Service<http::Request<B>> for LoadReporting
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let is_known = request.uri().path().rsplit('/').next() == Some(METHOD);
        let response = if is_known {
            self.clone().open(request.map(Body::new))
        } else {
            let text = format!("{} has the method {METHOD}", Self::NAME);
            Status::unimplemented(text).into_http()
        };
        ready(Ok(response))
    }
}

impl LoadReporting {
    /// Starts a stream.
    fn open(self, request: http::Request<Body>) -> http::Response<Body> {
        let (mut head, body) = request.into_parts();
        let Some(exchange) = head.extensions.remove::<Arc<Exchange>>() else {
            return Status::internal("the request came past admission").into_http();
        };
        let Self { loads, gate, access } = self;
        let caller = Caller::new(access, head.headers);
        let span = tracing::info_span!("load", proxy = tracing::field::Empty);
        let (shared, own) = (gate.clone(), exchange.clone());
        gate.open(
            exchange,
            span,
            |sender| async move {
                let requests = Requests::new(body, own.clone());
                let client = Client { gate: &shared, exchange: &own, caller, sender: &sender };
                serve(&client, &loads, requests).await
            },
            || {},
        )
    }
}

/// Takes reports until the stream ends.
async fn serve(
    client: &Client<'_>,
    loads: &Arc<Loads>,
    mut requests: Requests<LoadStatsRequest>,
) -> Result<(), Status> {
    // Reports are short, so their streams need no place.
    let start = async { Start::default() };
    let Some((first, _)) = client.first(&mut requests, start).await? else {
        return Ok(());
    };
    let node = Node::decode(first.node.clone())
        .map_err(|error| Status::invalid_argument(format!("`node` cannot be decoded: {error}")))?;
    let proxy = read_node(&node).map_err(|error| not_served(&error))?;
    let identity = client.identify(&proxy).await?;
    let expires = identity.and_then(|(identity, _)| identity.expires);
    client.exchange.makes_sense();
    tracing::Span::current().record("proxy", tracing::field::display(&proxy));
    // Envoy opens this stream and that of its configuration at the same time.
    let within = client.exchange.limits().first_request;
    let served = async { Ok(tokio::time::timeout(within, loads.served(&proxy.id)).await.is_ok()) };
    client.before_the_end(served).await?;
    let mut reporter = loads.open(&proxy.id).map_err(refused)?;
    // It belongs to a stream of configuration, which counts already.
    client.exchange.is_beside();
    tracing::debug!("proxy reports its load");
    let mut request = Some(first);
    let mut leave_at = None;
    let mut token_lost = pin!(client.token_lost(expires));
    loop {
        if let Some(request) = request.take() {
            reporter.take(&request).map_err(refused)?;
        }
        if let Some(answer) = reporter.answer()
            && !client.send(Frame::encoded(answer)).await?
        {
            return Ok(());
        }
        requests.settle(reporter.held_bytes())?;
        tokio::select! {
            message = requests.next() => match message? {
                Some(message) => request = Some(message),
                None => return Ok(()),
            },
            () = reporter.waited() => {}
            () = client.sender.closed() => return Ok(()),
            () = client.exchange.over() => return Err(client.revoked()),
            () = client.gate.closing.cancelled(), if leave_at.is_none() => {
                leave_at = Some(client.leave_at());
            }
            () = at(leave_at) => return Err(shutting_down()),
            status = &mut token_lost => return Err(status),
        }
    }
}

/// The status that tells a client why its stream cannot go on. Envoy tries again after 5 s.
fn refused(why: Refused) -> Status {
    match why {
        Refused::Elsewhere => Status::unavailable(why.to_string()),
        Refused::TooMany => Status::resource_exhausted(why.to_string()),
        Refused::Malformed => Status::invalid_argument(why.to_string()),
    }
}
