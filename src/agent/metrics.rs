//! Envoy's metrics, followed by the application's.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::Deserialize;
use tokio_stream::StreamExt as _;

use super::probe::get;
use crate::envoy::Admin;

/// How long the application may take to begin its answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How long either may be silent within its answer.
const SILENCE: Duration = Duration::from_secs(10);

/// Where the application's metrics are: `ISTIO_PROMETHEUS_ANNOTATIONS`, which an injector makes from annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApplicationMetrics {
    port: u16,
    path: String,
}

impl ApplicationMetrics {
    /// Reads `{"scrape": "true", "path": "/metrics", "port": "9090"}`. `None` if they are not to be read.
    ///
    /// # Errors
    /// A description of what is wrong.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, String> {
        #[derive(Deserialize)]
        #[serde(default)]
        #[derive(Default)]
        struct Annotations {
            scrape: String,
            path: String,
            port: String,
        }
        let Annotations { scrape, path, port } =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        if scrape == "false" {
            return Ok(None);
        }
        let port = if port.is_empty() { "80" } else { &port };
        let port = match port.parse() {
            Ok(port) if port > 0 => port,
            _ => return Err(format!("port: {port:?} is not a port (1 to 65535)")),
        };
        let path = match path.as_str() {
            "" => "/metrics".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        Ok(Some(Self { port, path }))
    }

    /// The body of the application's answer, if there is one.
    async fn read(&self, application: IpAddr) -> Result<Incoming, String> {
        let address = SocketAddr::new(application, self.port);
        // Other formats cannot follow Envoy's.
        let accept = HeaderValue::from_static("text/plain;version=0.0.4");
        let headers = [(header::ACCEPT, accept)].into_iter().collect();
        let answer = tokio::time::timeout(ANSWER, get(address, &self.path, headers))
            .await
            .map_err(|_| format!("no answer within {ANSWER:?}"))??;
        match answer.status() {
            StatusCode::OK => Ok(answer.into_body()),
            status => Err(format!("{status}")),
        }
    }
}

/// The page for Prometheus. The application's metrics are left out if it does not answer.
pub(crate) async fn page(
    admin: &Admin,
    query: Option<&str>,
    of_application: Option<(&ApplicationMetrics, IpAddr)>,
) -> Response {
    let path = match query {
        Some(query) => format!("/stats/prometheus?{query}"),
        None => "/stats/prometheus".to_owned(),
    };
    let (envoy, application) = tokio::join!(admin.open(&path), async {
        let (metrics, address) = of_application?;
        metrics
            .read(address)
            .await
            .map_err(|error| {
                tracing::warn!(
                    port = metrics.port,
                    error,
                    "the application does not serve its metrics"
                )
            })
            .ok()
    });
    match envoy {
        Ok(envoy) => {
            let status = envoy.status();
            let bodies = std::iter::once(envoy.into_body()).chain(application);
            let parts = bodies.map(|body| body.into_data_stream().timeout(SILENCE));
            let chunks = tokio_stream::iter(parts.collect::<Vec<_>>());
            let whole = futures::StreamExt::flatten(chunks).map(|chunk| match chunk {
                Ok(chunk) => chunk.map_err(std::io::Error::other),
                Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
            });
            let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
            (status, kind, Body::from_stream(whole)).into_response()
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_have_the_defaults_of_prometheus() {
        let parse = |text: &str| ApplicationMetrics::parse(text);
        let at = |port, path: &str| Ok(Some(ApplicationMetrics { port, path: path.to_owned() }));
        assert_eq!(parse(r#"{"scrape":"true","path":"","port":""}"#), at(80, "/metrics"));
        assert_eq!(parse(r#"{"path":"m","port":"9090"}"#), at(9090, "/m"));
        assert_eq!(parse(r#"{"scrape":"false","port":"9090"}"#), Ok(None));
        assert_eq!(
            parse(r#"{"port":"http"}"#).unwrap_err(),
            "port: \"http\" is not a port (1 to 65535)"
        );
    }
}
