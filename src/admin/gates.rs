//! The gates of rollout tools: whether the weights that were written last are live on all proxies of all replicas.
//!
//! `POST /gates/flagger` answers a webhook of Flagger: 200, or 409 with what is missing. `GET /gates/live` answers the
//! same as JSON for a metric of Argo Rollouts, with the effective weights. Both wait a limited time for the object to be live.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::Admin;
use super::api::v1::GetObjectRequest;
use super::grpc::{invalid, not_found, object_key};
use super::http::{http_status, json_response, refuse};
use crate::api::ObjectKey;
use crate::proto_json;
use crate::replicas::{PeerAnswer, answers};
use crate::source::freshness::Freshness;
use crate::status::{self, DestinationShare, Liveness, MissingProxy, ObjectState, WeightedRoute};

/// How long a gate waits if the request does not say so. Flagger gives up after 10 s by default.
const WAIT: Duration = Duration::from_secs(5);

/// The longest time that a gate waits. The admin port gives a response 30 s.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// How long the source may take to say which version of the object is the newest, whatever the request says.
const SOURCE: Duration = Duration::from_secs(5);

/// The time between two evaluations. What happens meanwhile is evaluated together.
const PACE: Duration = Duration::from_millis(20);

/// The longest request of Flagger, in bytes.
const BODY: usize = 64 << 10;

/// The paths below `/gates`.
pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/flagger", post(flagger))
        .route("/live", get(live))
        .layer(DefaultBodyLimit::max(BODY))
        .fallback(no_such_page)
        .method_not_allowed_fallback(async || {
            (StatusCode::METHOD_NOT_ALLOWED, "expected POST /gates/flagger or GET /gates/live\n")
        })
}

/// The answer to a path that does not exist.
pub(super) async fn no_such_page() -> Response {
    let text = "no such page; there are POST /gates/flagger and GET /gates/live\n";
    (StatusCode::NOT_FOUND, text).into_response()
}

/// What Flagger sends to a webhook, as far as a gate reads it.
#[derive(Debug, Deserialize)]
struct Webhook {
    /// The Canary.
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    metadata: Option<BTreeMap<String, String>>,
}

impl Webhook {
    fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.as_ref()?.get(name).map(String::as_str)
    }
}

/// What a gate is asked.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    key: ObjectKey,
    wait: Duration,
}

impl Question {
    fn new(kind: &str, namespace: &str, name: &str, wait: Option<&str>) -> Result<Self, Status> {
        let key = object_key(&GetObjectRequest {
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })?;
        let wait = match wait {
            Some(text) => crate::api::Duration::parse(text)
                .map_err(|why| invalid("timeout", why))?
                .0
                .min(LONGEST_WAIT),
            None => WAIT,
        };
        Ok(Self { key, wait })
    }

    /// The metadata of the webhook may name the VirtualService, as NAME or NAMESPACE/NAME; by default it is that of the
    /// Canary.
    fn of_webhook(body: &[u8]) -> Result<Self, Status> {
        let webhook: Webhook = serde_json::from_slice(body).map_err(|error| {
            let expected = "expected the JSON of a Flagger webhook, with `name` and `namespace`";
            Status::invalid_argument(format!("the body is not valid: {error}; {expected}"))
        })?;
        let named = webhook.metadata("virtualService").unwrap_or(&webhook.name);
        let (namespace, name) = named.split_once('/').unwrap_or((&webhook.namespace, named));
        Self::new("virtualservice", namespace, name, webhook.metadata("timeout"))
    }

    fn of_query(fields: Vec<(String, String)>) -> Result<Self, Status> {
        let mut found = BTreeMap::new();
        for (name, value) in fields {
            if !matches!(name.as_str(), "kind" | "namespace" | "name" | "timeout") {
                return Err(Status::invalid_argument(format!(
                    "parameter `{name}`: is unknown; expected `kind`, `namespace`, `name` or `timeout`"
                )));
            }
            if found.insert(name.clone(), value).is_some() {
                return Err(Status::invalid_argument(format!(
                    "parameter `{name}`: is given twice"
                )));
            }
        }
        let kind = found.get("kind").map_or("virtualservice", String::as_str);
        let namespace = found.get("namespace").map_or("", String::as_str);
        let name = found.get("name").map_or("", String::as_str);
        Self::new(kind, namespace, name, found.get("timeout").map(String::as_str))
    }
}

async fn flagger(State(admin): State<Admin>, body: Bytes) -> Response {
    let answer = match Question::of_webhook(&body) {
        Ok(question) => ask(&admin, &question).await.map(|answer| (question, answer)),
        Err(status) => Err(status),
    };
    match answer {
        Ok((question, Answer { live: true, message, .. })) => {
            format!("{} is live: {message}\n", question.key).into_response()
        }
        Ok((question, Answer { message, .. })) => {
            let text = format!("{} is not live: {message}\n", question.key);
            (StatusCode::CONFLICT, text).into_response()
        }
        Err(status) => (http_status(&status), format!("{}\n", status.message())).into_response(),
    }
}

async fn live(State(admin): State<Admin>, Query(fields): Query<Vec<(String, String)>>) -> Response {
    let answer = match Question::of_query(fields) {
        Ok(question) => ask(&admin, &question).await,
        Err(status) => Err(status),
    };
    match answer.map(|answer| serde_json::to_value(&answer)) {
        Ok(Ok(json)) => json_response(StatusCode::OK, proto_json::to_text(&json)),
        Ok(Err(error)) => refuse(&Status::internal(error.to_string())),
        Err(status) => refuse(&status),
    }
}

/// Whether an object is live, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    live: bool,
    kind: &'static str,
    namespace: String,
    name: String,
    /// The newest `metadata.generation` that the asked replica has received; 0 for objects in files.
    generation: i64,
    /// How many proxies see the object.
    proxies: usize,
    live_proxies: usize,
    /// Some of the others.
    missing: Vec<Missing>,
    /// Replicas that have an older version or cannot be asked.
    missing_replicas: Vec<String>,
    reason: &'static str,
    message: String,
    /// The weighted routes, with their effective weights.
    routes: Vec<Route>,
}

/// A proxy that does not have an object.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Missing {
    proxy: String,
    state: &'static str,
    reason: String,
}

/// A weighted route.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Route {
    /// Where in the object, like `spec.http[0]`.
    field: String,
    name: String,
    destinations: Vec<Destination>,
}

/// A destination and its share in percent.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Destination {
    host: String,
    subset: String,
    port: u32,
    weight: f64,
}

impl From<MissingProxy> for Missing {
    fn from(missing: MissingProxy) -> Self {
        let state = match missing.state {
            ObjectState::Live => "live",
            ObjectState::Lagging => "lagging",
            ObjectState::Held => "held",
            ObjectState::Rejected => "rejected",
        };
        Self { proxy: missing.proxy, state, reason: missing.reason }
    }
}

impl From<DestinationShare> for Destination {
    fn from(share: DestinationShare) -> Self {
        Self { host: share.host, subset: share.subset, port: share.port, weight: share.effective }
    }
}

impl From<WeightedRoute> for Route {
    fn from(route: WeightedRoute) -> Self {
        let destinations = route.shares.into_iter().map(Destination::from).collect();
        Self { field: route.field, name: route.name, destinations }
    }
}

impl Answer {
    fn new(key: &ObjectKey, found: Liveness, routes: Vec<Route>) -> Self {
        Self {
            live: found.live,
            kind: key.kind.as_str(),
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            generation: found.generation,
            proxies: found.proxies,
            live_proxies: found.live_proxies,
            missing: found.missing.into_iter().map(Into::into).collect(),
            missing_replicas: found.missing_replicas,
            reason: found.reason,
            message: found.message,
            routes,
        }
    }

    /// The answer for a version that is not known yet.
    fn unknown(key: &ObjectKey, message: String) -> Self {
        let found = Liveness {
            live: false,
            generation: 0,
            reason: "Pending",
            message,
            proxies: 0,
            live_proxies: 0,
            missing: Vec::new(),
            missing_replicas: Vec::new(),
        };
        Self::new(key, found, Vec::new())
    }
}

/// Waits until the object is live everywhere, as long as the question allows, and says what is missing otherwise.
async fn ask(admin: &Admin, question: &Question) -> Result<Answer, Status> {
    admin.ensure_ready()?;
    let Question { key, wait } = question;
    let deadline = Instant::now() + *wait;
    let newest = tokio::time::timeout(SOURCE, admin.newest(key)).await.map_err(|_| {
        let seconds = SOURCE.as_secs();
        Status::unavailable(format!("the source of {key} has not answered within {seconds} s"))
    })??;
    let generation = match newest {
        Freshness::Generation(generation) => Some(generation),
        Freshness::Barrier(_) => None,
        Freshness::Absent => return Err(not_found(key)),
    };
    let (mut proxies, mut states) = (admin.connections.changes(), admin.published.changes());
    let mut peers = admin.peers.read();
    loop {
        proxies.mark_unchanged();
        states.mark_unchanged();
        let now = Instant::now();
        let (answer, again_at) = match peers.answers(now) {
            Ok(others) => {
                let answer = evaluate(admin, peers.pod(), others, key, generation).await?;
                (answer, peers.next_change(now))
            }
            Err(at) => {
                let message = "the other replicas have not answered yet".to_owned();
                (Answer::unknown(key, message), Some(at))
            }
        };
        if answer.live || now >= deadline {
            return Ok(answer);
        }
        let until = again_at.map_or(deadline, |at| at.min(deadline));
        // At most a fifth of the time.
        let paced = Instant::now() + PACE.max(now.elapsed() * 4);
        let ended = tokio::select! {
            changed = proxies.changed() => changed.is_err(),
            changed = states.changed() => changed.is_err(),
            () = peers.changed() => false,
            () = tokio::time::sleep_until(until.into()) => false,
            () = admin.closing.cancelled() => true,
        };
        if ended {
            return Err(Status::unavailable("weir is shutting down"));
        }
        tokio::time::sleep_until(paced.min(deadline).into()).await;
    }
}

/// The answer now, with what the other replicas say. The generation is the newest at the source, where that has any.
async fn evaluate(
    admin: &Admin,
    pod: &str,
    others: Vec<PeerAnswer>,
    key: &ObjectKey,
    newest: Option<i64>,
) -> Result<Answer, Status> {
    let (state, connected) = (admin.published.state(), admin.connections.list());
    let (pod, key) = (pod.to_owned(), key.clone());
    // With many proxies that keeps a thread busy.
    let found = tokio::task::spawn_blocking(move || {
        let own = status::summary(&state, &connected, &key);
        let answers = answers(&pod, own.as_ref(), &others, &key);
        match (status::liveness(&state, &key, &answers), newest) {
            (Some(mut found), newest) => {
                if let Some(newest) = newest.filter(|newest| found.generation < *newest) {
                    found.live = false;
                    let behind = format!("replica {pod} has not received generation {newest} yet");
                    found.message = format!("{behind}; {}", found.message);
                    found.missing_replicas.push(behind);
                }
                let routes = status::weighted(&state, &key).into_iter().map(Into::into);
                Ok(Answer::new(&key, found, routes.collect()))
            }
            (None, Some(_)) => {
                Ok(Answer::unknown(&key, format!("replica {pod} does not have it yet")))
            }
            (None, None) => Err(not_found(&key)),
        }
    });
    found.await.map_err(|error| Status::internal(error.to_string()))?
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::api::Kind;

    fn vs(namespace: &str, name: &str) -> ObjectKey {
        ObjectKey::new(Kind::VirtualService, namespace, name)
    }

    #[test]
    fn a_webhook_is_about_the_virtual_service_of_the_canary_or_the_one_that_its_metadata_name() {
        let canary =
            r#""name": "web", "namespace": "shop", "phase": "Progressing", "checksum": "1""#;
        for (metadata, key, wait) in [
            ("", vs("shop", "web"), WAIT),
            (r#", "metadata": null"#, vs("shop", "web"), WAIT),
            (r#", "metadata": {"cmd": "x"}"#, vs("shop", "web"), WAIT),
            (r#", "metadata": {"virtualService": "api"}"#, vs("shop", "api"), WAIT),
            (
                r#", "metadata": {"virtualService": "edge/api", "timeout": "1500ms"}"#,
                vs("edge", "api"),
                Duration::from_millis(1500),
            ),
            (r#", "metadata": {"timeout": "1h"}"#, vs("shop", "web"), LONGEST_WAIT),
        ] {
            let question = Question::of_webhook(format!("{{{canary}{metadata}}}").as_bytes());
            assert_eq!(question.unwrap(), Question { key, wait }, "{metadata}");
        }
    }

    fn query(pairs: &[(&str, &str)]) -> Result<Question, Status> {
        let owned = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Question::of_query(owned.collect())
    }

    #[test]
    fn a_request_that_does_not_say_which_object_is_refused_with_what_is_wrong() {
        for (body, expected) in [
            ("", "the body is not valid"),
            ("[]", "the body is not valid"),
            (r#"{"name": 1}"#, "the body is not valid"),
            ("{}", "namespace: "),
            (r#"{"namespace": "shop"}"#, "name: is empty"),
            (
                r#"{"name": "web", "namespace": "shop", "metadata": {"timeout": "soon"}}"#,
                "timeout: `soon`",
            ),
            (
                r#"{"name": "web", "namespace": "shop", "metadata": {"virtualService": "shop/"}}"#,
                "name: is empty",
            ),
        ] {
            let status = Question::of_webhook(body.as_bytes()).unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{body}");
            assert!(status.message().starts_with(expected), "{body}: {}", status.message());
        }
        let right = [("namespace", "shop"), ("name", "web"), ("timeout", "0s")];
        assert_eq!(
            query(&right).unwrap(),
            Question { key: vs("shop", "web"), wait: Duration::ZERO }
        );
        for (pairs, expected) in [
            (&[("name", "web")][..], "namespace: "),
            (&[("namespace", "shop"), ("name", "web"), ("kind", "pod")], "kind: is `pod`"),
            (&[("namespace", "a"), ("namespace", "b")], "parameter `namespace`: is given twice"),
            (&[("wait", "1s")], "parameter `wait`: is unknown"),
        ] {
            let status = query(pairs).unwrap_err();
            assert!(status.message().starts_with(expected), "{}", status.message());
        }
    }
}
