//! Asks the API server whose a token is, and remembers its answers for a short time.

use std::collections::HashMap;
use std::sync::Arc;
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
use crate::admission::Peer;
use crate::metrics::IdentityMetrics;
use crate::source::kubernetes::reason;

/// How long the answer for a valid token is used, and so how long the token of a deleted pod is still accepted.
const REMEMBERED: Duration = Duration::from_secs(60);

/// How many answers are remembered.
const REMEMBERED_TOKENS: usize = 16_384;

/// How long it is remembered that the API server has refused a token. A client that tries again and again does not have it
/// asked each time; one whose pod the API server has just learned of waits no longer than that.
const REFUSED: Duration = Duration::from_secs(5);

/// How many refused tokens are remembered. What they are takes no place of valid ones.
const REFUSED_TOKENS: usize = 4096;

/// How many questions the API server is asked at a time, in all and for one peer. So a peer without valid tokens cannot
/// keep others out.
const CONCURRENT: usize = 16;
const CONCURRENT_FOR_PEER: usize = 4;

/// How long an answer may take, with the wait for the questions before it.
const ANSWER: Duration = Duration::from_secs(10);

/// The extra field of a user that names the pod of its token. Source: Kubernetes, "Managing Service Accounts".
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";

/// The group of all service accounts.
const ACCOUNTS: &str = "system:serviceaccounts";

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

type TokenHash = [u8; 32];

/// What the API server has answered about some tokens, by their SHA-256, and until when that is used. Bounded.
#[derive(Debug)]
struct Answers<T> {
    known: HashMap<TokenHash, (T, Instant)>,
    most: usize,
    lasts: Duration,
}

impl<T: Clone> Answers<T> {
    fn new(most: usize, lasts: Duration) -> Self {
        Self { known: HashMap::new(), most, lasts }
    }

    fn get(&self, key: &TokenHash, now: Instant) -> Option<T> {
        let (answer, _) = self.known.get(key).filter(|(_, until)| *until > now)?;
        Some(answer.clone())
    }

    /// Remembers an answer, if there is room.
    fn insert(&mut self, key: TokenHash, answer: T, now: Instant) {
        if self.known.len() >= self.most {
            self.known.retain(|_, (_, until)| *until > now);
        }
        if self.known.len() < self.most {
            self.known.insert(key, (answer, now + self.lasts));
        }
    }
}

/// Identifies clients by their tokens.
#[derive(Debug)]
pub(crate) struct TokenReviewer {
    api: Api<TokenReview>,
    audience: String,
    /// The valid tokens of late.
    accepted: Mutex<Answers<Identity>>,
    /// The tokens that the API server has refused of late, and why.
    refused: Mutex<Answers<TokenError>>,
    questions: Semaphore,
    /// The questions for each peer that has any.
    peers: Mutex<HashMap<Peer, Arc<Semaphore>>>,
    metrics: IdentityMetrics,
}

impl TokenReviewer {
    /// Accepts tokens for this audience.
    pub(crate) fn new(client: Client, audience: String, metrics: IdentityMetrics) -> Self {
        Self {
            api: Api::all(client),
            audience,
            accepted: Mutex::new(Answers::new(REMEMBERED_TOKENS, REMEMBERED)),
            refused: Mutex::new(Answers::new(REFUSED_TOKENS, REFUSED)),
            questions: Semaphore::new(CONCURRENT),
            peers: Mutex::default(),
            metrics,
        }
    }

    /// Identifies the sender of a request with these headers, within 10 s.
    ///
    /// # Errors
    /// There is no token, it is not valid for the audience, or the API server does not answer.
    pub(crate) async fn identify(
        &self,
        headers: &HeaderMap,
        peer: Peer,
    ) -> Result<Identity, TokenError> {
        let identified = self.check(headers, peer).await;
        self.metrics.identified(match &identified {
            Ok(_) => "accepted",
            Err(TokenError::Unavailable(_)) => "unavailable",
            Err(_) => "refused",
        });
        identified
    }

    async fn check(&self, headers: &HeaderMap, peer: Peer) -> Result<Identity, TokenError> {
        let token = bearer(headers).ok_or(TokenError::Missing)?;
        let key = sha256(token);
        if let Some(identity) = self.remembered(&key) {
            return Ok(identity);
        }
        if let Some(error) = self.refused.lock().get(&key, Instant::now()) {
            return Err(error);
        }
        let expires = Claims::read(token)?.check(&self.audience, SystemTime::now())?;
        let status = timeout(ANSWER, self.review(token, peer)).await.unwrap_or_else(|_| {
            Err(TokenError::Unavailable("the API server does not answer".to_owned()))
        })?;
        let identity = identity(status, &self.audience, expires);
        match &identity {
            Ok(known) => self.accepted.lock().insert(key, known.clone(), Instant::now()),
            Err(error) => self.refused.lock().insert(key, error.clone(), Instant::now()),
        }
        identity
    }

    async fn review(&self, token: &str, peer: Peer) -> Result<TokenReviewStatus, TokenError> {
        let for_peer = Questions::of(&self.peers, peer);
        // The semaphores are never closed.
        let (_turn_of_peer, _turn) =
            (for_peer.semaphore.acquire().await, self.questions.acquire().await);
        let spec = TokenReviewSpec {
            token: token.to_owned(),
            audiences: Some(vec![self.audience.clone()]),
        };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviewed = self.api.create(&PostParams::default(), &review).await;
        let reviewed = reviewed.map_err(|error| TokenError::Unavailable(reason(&error)))?;
        Ok(reviewed.status.unwrap_or_default())
    }

    fn remembered(&self, key: &TokenHash) -> Option<Identity> {
        let identity = self.accepted.lock().get(key, Instant::now())?;
        identity.expires.is_none_or(|at| at > SystemTime::now()).then_some(identity)
    }
}

/// The questions for a peer, which are forgotten when there are none.
struct Questions<'a> {
    semaphore: Arc<Semaphore>,
    peer: Peer,
    all: &'a Mutex<HashMap<Peer, Arc<Semaphore>>>,
}

impl<'a> Questions<'a> {
    fn of(all: &'a Mutex<HashMap<Peer, Arc<Semaphore>>>, peer: Peer) -> Self {
        let mut peers = all.lock();
        let semaphore =
            peers.entry(peer).or_insert_with(|| Arc::new(Semaphore::new(CONCURRENT_FOR_PEER)));
        Self { semaphore: semaphore.clone(), peer, all }
    }
}

impl Drop for Questions<'_> {
    fn drop(&mut self) {
        let mut peers = self.all.lock();
        // The table's and this one.
        if Arc::strong_count(&self.semaphore) <= 2 {
            peers.remove(&self.peer);
        }
    }
}

fn sha256(token: &str) -> TokenHash {
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
    let UserInfo { username, groups, mut extra, .. } = status.user.unwrap_or_default();
    let username = username.unwrap_or_default();
    // Another authenticator may know somebody by such a name.
    if !groups.iter().flatten().any(|group| group == ACCOUNTS) {
        return Err(TokenError::NotServiceAccount(username));
    }
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

/// What a JSON Web Token says of itself (RFC 7519, section 4.1). Only the API server can check whether it is true, but what
/// is refused by it need not be asked.
#[derive(Debug, Deserialize)]
struct Claims {
    exp: Option<u64>,
    #[serde(default)]
    aud: Audiences,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Claims {
    fn read(token: &str) -> Result<Self, TokenError> {
        let claims = token.split('.').nth(1).unwrap_or_default();
        let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok();
        claims
            .and_then(|claims| serde_json::from_slice(&claims).ok())
            .ok_or_else(|| TokenError::Rejected("it is not a JSON Web Token".to_owned()))
    }

    /// Returns when the token expires.
    fn check(self, audience: &str, now: SystemTime) -> Result<Option<SystemTime>, TokenError> {
        let is_for_us = match &self.aud {
            Audiences::One(name) => name == audience,
            Audiences::Many(names) => names.iter().any(|name| name == audience),
        };
        if !is_for_us {
            return Err(TokenError::Rejected(format!("its audience is not {audience:?}")));
        }
        let expires = self.exp.map(Duration::from_secs);
        let expires = expires.and_then(|at| SystemTime::UNIX_EPOCH.checked_add(at));
        if expires.is_some_and(|at| at <= now) {
            return Err(TokenError::Rejected("it has expired".to_owned()));
        }
        Ok(expires)
    }
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
                groups: Some(vec![ACCOUNTS.to_owned()]),
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
    fn what_a_token_says_of_itself_can_refuse_it() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(500);
        let check = |claims: &str| {
            let token = format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims));
            Claims::read(&token).and_then(|claims| claims.check("istio-ca", now))
        };
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(check(r#"{"exp":1000,"aud":["a","istio-ca"]}"#), Ok(Some(at)));
        assert_eq!(check(r#"{"aud":"istio-ca"}"#), Ok(None));
        for (claims, why) in [
            (r#"{"exp":1000,"aud":["a"]}"#, "its audience is not \"istio-ca\""),
            (r#"{"exp":1000}"#, "its audience is not \"istio-ca\""),
            (r#"{"exp":500,"aud":"istio-ca"}"#, "it has expired"),
            (r#"{"exp":-1,"aud":"istio-ca"}"#, "it is not a JSON Web Token"),
            ("[]", "it is not a JSON Web Token"),
        ] {
            assert_eq!(check(claims), Err(TokenError::Rejected(why.to_owned())), "{claims}");
        }
        for token in ["", "a", "a.b", "a.!.c", "..", "a.e30"] {
            let refused = Claims::read(token).and_then(|claims| claims.check("istio-ca", now));
            assert!(matches!(refused, Err(TokenError::Rejected(_))), "{token}");
        }
    }

    #[test]
    fn a_user_by_the_name_of_a_service_account_is_none_without_its_group() {
        let web = "system:serviceaccount:shop:web";
        let mut status = status(web, &["istio-ca"]);
        status.user.as_mut().unwrap().groups = Some(vec!["people".to_owned()]);
        let refused = identity(status, "istio-ca", None);
        assert_eq!(refused, Err(TokenError::NotServiceAccount(web.to_owned())));
    }

    #[test]
    fn answers_are_remembered_for_a_time_and_only_so_many() {
        let (mut answers, now) = (Answers::new(2, REFUSED), Instant::now());
        answers.insert([1; 32], "no", now);
        answers.insert([2; 32], "no", now + REFUSED / 2);
        answers.insert([3; 32], "no", now + REFUSED / 2);
        assert_eq!(answers.get(&[1; 32], now + REFUSED / 2), Some("no"));
        assert_eq!(answers.get(&[3; 32], now + REFUSED / 2), None, "there was no room");
        assert_eq!(answers.get(&[1; 32], now + REFUSED), None);
        answers.insert([3; 32], "no", now + REFUSED);
        assert_eq!(answers.get(&[3; 32], now + REFUSED), Some("no"));
        assert_eq!(answers.known.len(), 2);
    }

    #[test]
    fn the_questions_of_a_peer_are_forgotten_when_there_are_none() {
        let (all, peer) = (Mutex::default(), Peer::from(std::net::IpAddr::from([127, 0, 0, 1])));
        let (first, second) = (Questions::of(&all, peer), Questions::of(&all, peer));
        assert!(Arc::ptr_eq(&first.semaphore, &second.semaphore));
        drop(first);
        assert_eq!(all.lock().len(), 1);
        drop(second);
        assert!(all.lock().is_empty());
    }
}
