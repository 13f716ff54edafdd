//! A client that records when the API server answers the list or the watch of one kind. The watcher does not tell of
//! bookmarks, which are the only sign of life of a watch on which nothing changes.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use kube::Client;
use kube::client::Body;
use tower_service::Service;

use super::super::sync::LastAnswer;
use crate::api::Kind;

/// A client with which only `kind` is listed and watched.
pub(crate) fn client(client: &Client, kind: Kind, answered: LastAnswer) -> Client {
    let namespace = client.default_namespace().to_owned();
    Client::new(Observed { client: client.clone(), kind, answered }, namespace)
}

struct Observed {
    client: Client,
    kind: Kind,
    answered: LastAnswer,
}

impl Service<Request<Body>> for Observed {
    type Response = Response<ObservedBody>;
    type Error = kube::Error;
    type Future = BoxFuture<'static, Result<Self::Response, kube::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), kube::Error>> {
        // The client waits by itself.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // Not what asks for the versions that the API serves.
        let of_objects = is_of_objects(request.uri().path(), self.kind);
        let (client, answered) = (self.client.clone(), self.answered.clone());
        let answer = async move {
            let response = client.send(request).await?;
            let of_objects = of_objects && response.status().is_success();
            let answered = of_objects.then_some(answered);
            if let Some(answered) = &answered {
                answered.arrived();
            }
            Ok(response.map(|body| ObservedBody { body, answered }))
        };
        answer.boxed()
    }
}

/// Whether a path is that of the objects of a kind.
fn is_of_objects(path: &str, kind: Kind) -> bool {
    path.rsplit('/').next() == Some(kind.plural())
}

/// A body whose every piece is recorded: each is an event, a bookmark, or a part of a page.
struct ObservedBody {
    body: Body,
    answered: Option<LastAnswer>,
}

impl http_body::Body for ObservedBody {
    type Data = Bytes;
    type Error = kube::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, kube::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let (Poll::Ready(Some(Ok(_))), Some(answered)) = (&frame, &self.answered) {
            answered.arrived();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lists_or_watches_the_kind_counts() {
        for (path, counts) in [
            ("/api/v1/services", true),
            ("/api/v1/namespaces/shop/services", true),
            ("/api/v1", false),
            ("/api/v1/namespaces/services/pods", false),
        ] {
            assert_eq!(is_of_objects(path, Kind::Service), counts, "{path}");
        }
        assert!(is_of_objects("/api/v1/namespaces", Kind::Namespace));
    }
}
