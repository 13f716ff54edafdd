//! Asks the API server whose a token is, and remembers its answers for a short time.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo,
};
use kube::Client;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::Identity;
use crate::metrics::IdentityMetrics;
use crate::source::kubernetes::reason;

/// How long the answer for a valid token is used, and so how long the token of a deleted pod is still accepted.
const REMEMBERED: Duration = Duration::from_secs(60);

/// How many answers are remembered.
const REMEMBERED_TOKENS: usize = 16_384;

/// How many questions the API server is asked at a time.
const CONCURRENT: usize = 16;

/// How long an answer may take, with the wait for the questions before it.
const ANSWER: Duration = Duration::from_secs(10);

/// The extra field of a user that names the pod of its token. Source: Kubernetes, "Managing Service Accounts".
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";

/// Why a token identifies nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// There is none.
    #[error("a service account token is needed: the header authorization with \"Bearer TOKEN\"")]
    Missing,
    /// The API server rejects it.
    #[error("the token is not valid: {0}")]
    Rejected(String),
    /// It belongs to somebody else than a service account.
    #[error("the token belongs to {0:?}, which is not a service account")]
    NotServiceAccount(String),
    /// The API server did not answer.
    #[error("the token cannot be checked now: {0}")]
    Unavailable(String),
}

/// Whom the API server names, as long as its answer is used.
#[derive(Clone, Debug)]
struct Answer {
    identity: Identity,
    until: Instant,
}

/// Identifies clients by their tokens.
#[derive(Debug)]
pub(crate) struct TokenReviewer {
    api: Api<TokenReview>,
    audience: String,
    /// The valid tokens of late, by their SHA-256.
    answers: Mutex<HashMap<[u8; 32], Answer>>,
    questions: Semaphore,
    metrics: IdentityMetrics,
}

impl TokenReviewer {
    /// Accepts tokens for this audience.
    pub(crate) fn new(client: Client, audience: String, metrics: IdentityMetrics) -> Self {
        Self {
            api: Api::all(client),
            audience,
            answers: Mutex::default(),
            questions: Semaphore::new(CONCURRENT),
            metrics,
        }
    }

    /// Who has sent a request with these headers. Answers within 10 s.
    ///
    /// # Errors
    /// There is no token, it is not valid for the audience, or the API server does not answer.
    pub(crate) async fn identify(&self, headers: &HeaderMap) -> Result<Identity, TokenError> {
        let identified = self.check(headers).await;
        self.metrics.identified(match &identified {
            Ok(_) => "accepted",
            Err(TokenError::Unavailable(_)) => "unavailable",
            Err(_) => "refused",
        });
        identified
    }

    async fn check(&self, headers: &HeaderMap) -> Result<Identity, TokenError> {
        let token = bearer(headers).ok_or(TokenError::Missing)?;
        let key = sha256(token);
        if let Some(identity) = self.remembered(&key) {
            return Ok(identity);
        }
        let status = timeout(ANSWER, self.review(token)).await.unwrap_or_else(|_| {
            Err(TokenError::Unavailable("the API server does not answer".to_owned()))
        })?;
        let identity = identity(status, &self.audience, expiry(token))?;
        if identity.expires.is_some_and(|at| at <= SystemTime::now()) {
            return Err(TokenError::Rejected("it has expired".to_owned()));
        }
        self.remember(key, &identity);
        Ok(identity)
    }

    async fn review(&self, token: &str) -> Result<TokenReviewStatus, TokenError> {
        let Ok(_turn) = self.questions.acquire().await else {
            return Err(TokenError::Unavailable("weir is shutting down".to_owned()));
        };
        let spec = TokenReviewSpec {
            token: token.to_owned(),
            audiences: Some(vec![self.audience.clone()]),
        };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviewed = self.api.create(&PostParams::default(), &review).await;
        let reviewed = reviewed.map_err(|error| TokenError::Unavailable(reason(&error)))?;
        Ok(reviewed.status.unwrap_or_default())
    }

    fn remembered(&self, key: &[u8; 32]) -> Option<Identity> {
        let answers = self.answers.lock();
        let answer = answers.get(key).filter(|answer| answer.until > Instant::now())?;
        let expires = answer.identity.expires;
        expires.is_none_or(|at| at > SystemTime::now()).then(|| answer.identity.clone())
    }

    /// Remembers an answer. Only valid tokens take a place, so nobody can fill the table without having many.
    fn remember(&self, key: [u8; 32], identity: &Identity) {
        let now = Instant::now();
        let mut answers = self.answers.lock();
        if answers.len() >= REMEMBERED_TOKENS {
            answers.retain(|_, answer| answer.until > now);
        }
        if answers.len() < REMEMBERED_TOKENS {
            answers.insert(key, Answer { identity: identity.clone(), until: now + REMEMBERED });
        }
    }
}

fn sha256(token: &str) -> [u8; 32] {
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    key
}

/// The bearer token in these headers. Source: RFC 6750, section 2.1.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Whom the API server says a token belongs to.
fn identity(
    status: TokenReviewStatus,
    audience: &str,
    expires: Option<SystemTime>,
) -> Result<Identity, TokenError> {
    if status.authenticated != Some(true) {
        let error = status.error.filter(|error| !error.is_empty());
        let error = error.unwrap_or_else(|| "the API server does not know it".to_owned());
        return Err(TokenError::Rejected(error));
    }
    // An API server that knows no audiences names none.
    if !status.audiences.iter().flatten().any(|accepted| accepted == audience) {
        return Err(TokenError::Rejected(format!("its audience is not {audience:?}")));
    }
    let UserInfo { username, mut extra, .. } = status.user.unwrap_or_default();
    let username = username.unwrap_or_default();
    let account = username
        .strip_prefix("system:serviceaccount:")
        .and_then(|account| account.split_once(':'))
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    let Some((namespace, name)) = account else {
        return Err(TokenError::NotServiceAccount(username));
    };
    let pod = extra.as_mut().and_then(|extra| extra.remove(POD_NAME)?.pop());
    Ok(Identity {
        namespace: namespace.into(),
        service_account: name.into(),
        pod: pod.map(Into::into),
        expires,
    })
}

/// When a JSON Web Token expires (RFC 7519, section 4.1.4). The API server has checked its signature.
fn expiry(token: &str) -> Option<SystemTime> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let claims = token.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let Claims { exp } = serde_json::from_slice(&claims).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(exp))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn status(username: &str, audiences: &[&str]) -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(audiences.iter().map(ToString::to_string).collect()),
            user: Some(UserInfo {
                username: Some(username.to_owned()),
                extra: Some(BTreeMap::from([(POD_NAME.to_owned(), vec!["web-0".to_owned()])])),
                ..UserInfo::default()
            }),
            error: None,
        }
    }

    #[test]
    fn a_token_names_its_service_account_and_pod() {
        let found =
            identity(status("system:serviceaccount:shop:web", &["istio-ca"]), "istio-ca", None);
        let found = found.unwrap();
        assert_eq!(found.to_string(), "service account shop/web of pod web-0");
        assert_eq!(found.spiffe_id("cluster.local"), "spiffe://cluster.local/ns/shop/sa/web");
    }

    #[test]
    fn a_token_of_another_audience_or_of_a_person_identifies_nobody() {
        let refused = |status: TokenReviewStatus| identity(status, "istio-ca", None).unwrap_err();
        let web = "system:serviceaccount:shop:web";
        assert_eq!(
            refused(status(web, &["https://kubernetes.default.svc"])).to_string(),
            "the token is not valid: its audience is not \"istio-ca\""
        );
        let none = TokenReviewStatus { audiences: None, ..status(web, &[]) };
        assert!(matches!(refused(none), TokenError::Rejected(_)));
        for user in ["jane", "", "system:serviceaccount:shop", "system:serviceaccount::web"] {
            assert_eq!(
                refused(status(user, &["istio-ca"])),
                TokenError::NotServiceAccount(user.to_owned())
            );
        }
        let rejected = TokenReviewStatus {
            authenticated: Some(false),
            error: Some("it is too old".to_owned()),
            ..status(web, &["istio-ca"])
        };
        assert_eq!(refused(rejected), TokenError::Rejected("it is too old".to_owned()));
        assert!(matches!(refused(TokenReviewStatus::default()), TokenError::Rejected(_)));
    }

    #[test]
    fn a_bearer_token_is_read_from_its_header_alone() {
        let read = |value: &str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(read("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(read("bearer  abc ").as_deref(), Some("abc"));
        for wrong in ["", "abc", "Bearer", "Bearer ", "Basic abc"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[test]
    fn the_expiry_of_anything_but_a_json_web_token_is_unknown() {
        let token = |claims: &str| format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims));
        let at = expiry(&token(r#"{"exp":1000,"aud":["istio-ca"]}"#)).unwrap();
        assert_eq!(at, SystemTime::UNIX_EPOCH + Duration::from_secs(1000));
        for wrong in
            ["", "a.b", "a.!.c", &token("[]"), &token(r#"{"exp":-1}"#), &token(r#"{"exp":1e300}"#)]
        {
            assert_eq!(expiry(wrong), None, "{wrong}");
        }
    }
}
