//! What a stream serves beside the resources of its state machine: the client's secrets and the table of names. Neither
//! affects the other types or waits for them.

use super::credentials::Credentials;
use super::names::{self, Names};
use super::secrets::{self, TooManySecrets};
use super::stream::{Request, Variant};
use super::wire::Frame;
use crate::snapshot::Snapshot;

/// The short names of the types, for the log and metrics.
const SECRETS: &str = "sds";
const NAMES: &str = "nds";

/// The secrets and names of one client.
pub(super) struct Beside {
    /// Its secrets, if it has an identity.
    credentials: Option<Credentials>,
    names: Names,
}

/// What came of a request.
pub(super) enum Taken {
    /// It is for another type.
    Other(Request),
    /// It was taken in.
    Accepted,
    /// It was taken in; the client rejected a response of the type with this short name, and said why.
    Rejected(&'static str, String),
}

impl Beside {
    pub(super) fn new(variant: Variant, credentials: Option<Credentials>) -> Self {
        Self { credentials, names: Names::new(variant) }
    }

    /// Takes in a request.
    ///
    /// # Errors
    /// Too many names of secrets.
    pub(super) fn on_request(&mut self, request: Request) -> Result<Taken, TooManySecrets> {
        let (kind, rejected) = match (request.type_url.as_str(), &mut self.credentials) {
            (secrets::TYPE_URL, Some(credentials)) => (SECRETS, credentials.on_request(request)?),
            (names::TYPE_URL, _) => (NAMES, self.names.on_request(request)),
            _ => return Ok(Taken::Other(request)),
        };
        Ok(rejected.map_or(Taken::Accepted, |reason| Taken::Rejected(kind, reason)))
    }

    /// Whether the client wants the table of names.
    pub(super) fn wants_names(&self) -> bool {
        self.names.are_wanted()
    }

    /// The responses that are due, with the short names of their types.
    pub(super) fn responses(
        &mut self,
        latest: Option<&Snapshot>,
    ) -> impl Iterator<Item = (&'static str, Frame)> {
        let secrets = self.credentials.as_mut().and_then(Credentials::response);
        let secrets = secrets.map(|message| (SECRETS, Frame::encoded(message)));
        let table = latest.and_then(|snapshot| snapshot.names.as_ref());
        let names = self.names.response(table).map(|frame| (NAMES, frame));
        secrets.into_iter().chain(names)
    }

    /// Waits until another response may be due for another reason than a request or a snapshot. Cancel safe.
    pub(super) async fn changed(&mut self) {
        match &mut self.credentials {
            Some(credentials) => credentials.changed().await,
            None => std::future::pending().await,
        }
    }

    /// The bytes that it holds for this client alone.
    pub(super) fn held_bytes(&self) -> usize {
        self.credentials.as_ref().map_or(0, Credentials::held_bytes)
    }
}
