//! Who a client is: the service account and the pod that its token names.

mod tokens;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use crate::mesh::Proxy;

pub(crate) use tokens::{TokenError, TokenReviewer};

/// Who has presented a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name of the service account.
    pub service_account: Arc<str>,
    /// The name of the pod that the token is bound to, if it is bound to one.
    pub pod: Option<Arc<str>>,
    /// When its token expires, if it does.
    pub expires: Option<SystemTime>,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service account {}/{}", self.namespace, self.service_account)?;
        self.pod.iter().try_for_each(|pod| write!(f, " of pod {pod}"))
    }
}

impl Identity {
    /// Checks that this identity may ask for the configuration of a proxy: the proxy's namespace, service account and pod
    /// are its own. As in Istio, a proxy need not name its service account. A token that is not bound to a pod speaks for all
    /// pods of its service account.
    ///
    /// # Errors
    /// What differs, in words for the client.
    pub(crate) fn permits(&self, proxy: &Proxy) -> Result<(), String> {
        if self.namespace != proxy.namespace {
            return Err(format!(
                "the node is in namespace {:?}, and its token belongs to {self}",
                &*proxy.namespace
            ));
        }
        // Its streams and those of others are told apart by the id.
        let in_id = proxy.id.split('~').nth(2).and_then(|name| name.rsplit_once('.'));
        if let Some((_, namespace)) = in_id
            && *namespace != *self.namespace
        {
            return Err(format!(
                "the node's id is of namespace {namespace:?}, and its token belongs to {self}"
            ));
        }
        if let Some(account) = &proxy.service_account
            && *account != self.service_account
        {
            return Err(format!(
                "the node's SERVICE_ACCOUNT is {:?}, and its token belongs to {self}",
                &**account
            ));
        }
        if let Some(pod) = &self.pod
            && *pod != proxy.name
        {
            return Err(format!(
                "the node is pod {:?}, and its token belongs to {self}",
                &*proxy.name
            ));
        }
        Ok(())
    }

    /// The SPIFFE ID in a trust domain, as Istio writes it.
    pub(crate) fn spiffe_id(&self, trust_domain: &str) -> String {
        format!("spiffe://{trust_domain}/ns/{}/sa/{}", self.namespace, self.service_account)
    }
}
