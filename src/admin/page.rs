//! The web page: static files in the binary, and the events that tell it to ask again.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG};
use axum::http::header::{IF_NONE_MATCH, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use futures::{Stream, stream};

use super::Admin;

/// The page loads nothing from elsewhere, and nothing that an object or a proxy says can run.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The least time between two events for one page: while thousands of proxies ACK a change, a page need not follow each.
const PAUSE: Duration = Duration::from_millis(500);

/// The files below `/page`, and the page itself on `/`.
pub(super) fn routes() -> Router<Admin> {
    let script = "text/javascript; charset=utf-8";
    Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("page/index.html")))
        .route("/page/style.css", file("text/css; charset=utf-8", include_str!("page/style.css")))
        .route("/page/app.js", file(script, include_str!("page/app.js")))
        .route("/page/views.js", file(script, include_str!("page/views.js")))
        .route("/page/chart.js", file(script, include_str!("page/chart.js")))
        .route("/page/dom.js", file(script, include_str!("page/dom.js")))
}

fn file(kind: &'static str, content: &'static str) -> MethodRouter<Admin> {
    get(async move |headers: HeaderMap| answer(kind, content, &headers))
}

/// A file, or 304 for a browser that has it: after an upgrade of weir it has to ask for the new one.
fn answer(kind: &'static str, content: &'static str, headers: &HeaderMap) -> Response {
    let version = concat!("\"", env!("CARGO_PKG_VERSION"), "-");
    let tag = format!("{version}{:x}\"", xxhash_rust::xxh3::xxh3_64(content.as_bytes()));
    let has = headers.get(IF_NONE_MATCH).is_some_and(|has| has.as_bytes() == tag.as_bytes());
    let (status, body) =
        if has { (StatusCode::NOT_MODIFIED, "") } else { (StatusCode::OK, content) };
    let fixed = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
    ];
    (status, fixed, [(ETAG, tag)], body).into_response()
}

/// An event `changed` now and whenever a proxy or the mesh has changed.
pub(super) async fn events(
    State(admin): State<Admin>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let proxies = admin.connections.changes();
    let states = admin.published.changes();
    let changes = stream::unfold((admin, proxies, states, true), async |state| {
        let (admin, mut proxies, mut states, first) = state;
        if !first {
            let changed = async {
                tokio::select! {
                    changed = proxies.changed() => changed.is_ok(),
                    changed = states.changed() => changed.is_ok(),
                }
            };
            tokio::select! {
                goes_on = changed => goes_on.then_some(())?,
                () = admin.closing.cancelled() => return None,
            }
            tokio::time::sleep(PAUSE).await;
            proxies.mark_unchanged();
            states.mark_unchanged();
        }
        let event = Event::default().event("changed").data("{}");
        Some((Ok(event), (admin, proxies, states, false)))
    });
    Sse::new(changes).keep_alive(KeepAlive::default())
}
