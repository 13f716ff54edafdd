//! A client for Envoy's admin interface: plain HTTP on a local address.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::Error;

/// The maximum response size in bytes; the configuration of a large mesh has a few hundred megabytes.
const MAX_ANSWER: usize = 1 << 30;

/// The request timeout. Envoy responds on its main thread, which a large update keeps busy.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The admin interface of one Envoy. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Admin {
    address: SocketAddr,
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl Admin {
    /// A client for `address`; does not connect yet.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, client: Client::builder(TokioExecutor::new()).build_http() }
    }

    /// The response body of `GET path`, where `path` starts with `/` and may have a query.
    ///
    /// # Errors
    /// [`Error::Admin`] if there is no response, or one with a status other than 200.
    pub async fn get(&self, path: &str) -> Result<Bytes, Error> {
        expect_ok(path, self.exchange(Method::GET, path).await?)
    }

    /// Whether Envoy is ready, and its state: `LIVE`, or for example `PRE_INITIALIZING` while it waits for its first
    /// configuration.
    ///
    /// # Errors
    /// [`Error::Admin`] if there is no response.
    pub async fn ready(&self) -> Result<(bool, String), Error> {
        let (status, body) = self.exchange(Method::GET, "/ready").await?;
        let state = String::from_utf8_lossy(&body).trim().to_owned();
        Ok((status == StatusCode::OK, state))
    }

    /// The counters and gauges whose names match the regular expression `filter` (all for the empty one), by name.
    ///
    /// # Errors
    /// [`Error::Admin`].
    pub async fn stats(&self, filter: &str) -> Result<BTreeMap<String, u64>, Error> {
        let body = self.get(&format!("/stats?filter={}", percent_encoded(filter))).await?;
        Ok(String::from_utf8_lossy(&body)
            .lines()
            .filter_map(|line| line.rsplit_once(": "))
            // Values that are not numbers are strings or histograms.
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect())
    }

    /// `/config_dump` with the endpoints, as JSON.
    ///
    /// # Errors
    /// [`Error::Admin`].
    pub async fn config_dump(&self) -> Result<serde_json::Value, Error> {
        let path = "/config_dump?include_eds";
        let body = self.get(path).await?;
        serde_json::from_slice(&body).map_err(|error| failed(path, error))
    }

    /// The response body of `POST path`, for the pages that change Envoy.
    ///
    /// # Errors
    /// Like [`Admin::get`].
    pub(crate) async fn post(&self, path: &str) -> Result<Bytes, Error> {
        expect_ok(path, self.exchange(Method::POST, path).await?)
    }

    /// The response of `GET path` with its body still to be read, for a body that need not be in memory as a whole.
    ///
    /// # Errors
    /// [`Error::Admin`] if there is no response.
    pub(crate) async fn open(&self, path: &str) -> Result<Response<Incoming>, Error> {
        tokio::time::timeout(TIMEOUT, self.send(Method::GET, path))
            .await
            .unwrap_or_else(|_| Err(too_late(path)))
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), Error> {
        let exchange = async {
            let answer = self.send(method, path).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| failed(path, with_causes(error.as_ref())))?;
            Ok((status, body.to_bytes()))
        };
        tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err(too_late(path)))
    }

    async fn send(&self, method: Method, path: &str) -> Result<Response<Incoming>, Error> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .body(Empty::new())
            .map_err(|error| failed(path, error))?;
        self.client.request(request).await.map_err(|error| failed(path, with_causes(&error)))
    }
}

fn expect_ok(path: &str, (status, body): (StatusCode, Bytes)) -> Result<Bytes, Error> {
    match status {
        StatusCode::OK => Ok(body),
        status => Err(failed(path, format!("{status}: {}", String::from_utf8_lossy(&body).trim()))),
    }
}

fn too_late(path: &str) -> Error {
    failed(path, format!("no response within {TIMEOUT:?}"))
}

fn failed(path: &str, reason: impl ToString) -> Error {
    Error::Admin { path: path.to_owned(), reason: reason.to_string() }
}

/// The error with its chain of causes; hyper's own message ("client error") is not helpful.
pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Percent-encodes a query parameter value.
fn percent_encoded(text: &str) -> String {
    use std::fmt::Write as _;

    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::percent_encoded;

    #[test]
    fn filter_survives_as_a_query_value() {
        assert_eq!(
            percent_encoded(r"^cluster\.a|b&c=d+e.*$"),
            "%5Ecluster%5C.a%7Cb%26c%3Dd%2Be.%2A%24"
        );
    }
}
