//! The table of names that Istio's agent answers DNS from (NDS), as a pure state machine beside the stream's: a single
//! resource, which depends on nothing else that the client has.

use std::sync::Arc;

use super::stream::{Request, Variant};
use super::wire::{Frame, Item};
use crate::snapshot::Resource;

/// The type of the resource.
pub(crate) const TYPE_URL: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";

/// What one client has of the table.
pub(crate) struct Names {
    variant: Variant,
    /// Whether the client subscribes.
    wanted: bool,
    /// Whether it asks and has not been answered.
    asked: bool,
    /// The version that was sent last.
    sent: Option<u64>,
    /// Whether it has yet to answer that.
    is_under_way: bool,
    nonce: u64,
}

impl Names {
    /// Of a client that has not asked for it.
    pub(crate) fn new(variant: Variant) -> Self {
        Self { variant, wanted: false, asked: false, sent: None, is_under_way: false, nonce: 0 }
    }

    /// Whether the client subscribes.
    pub(crate) fn are_wanted(&self) -> bool {
        self.wanted
    }

    /// Takes in a request for the table. Returns why the client rejected it, if it did.
    pub(crate) fn on_request(&mut self, request: Request) -> Option<String> {
        let is_answer = self.wanted && !request.nonce.is_empty();
        if is_answer && request.nonce == self.nonce.to_string() {
            self.is_under_way = false;
        } else if is_answer && self.variant == Variant::Sotw {
            // It answers an older response, and the answer to the last one follows.
            return None;
        }
        if request.unsubscribe.iter().any(|name| name.is_empty() || name == "*") {
            (self.wanted, self.asked) = (false, false);
        } else if !is_answer || (self.variant == Variant::Delta && !request.names.is_empty()) {
            (self.wanted, self.asked) = (true, true);
        }
        request.error
    }

    /// The response that is due, if `latest` is the table. While the client has one to answer, none is.
    pub(crate) fn response(&mut self, latest: Option<&Arc<Resource>>) -> Option<Frame> {
        let latest = latest.filter(|_| self.wanted && !self.is_under_way)?;
        if !self.asked && self.sent == Some(latest.version) {
            return None;
        }
        self.nonce += 1;
        (self.asked, self.is_under_way, self.sent) = (false, true, Some(latest.version));
        let (nonce, items) = (self.nonce.to_string(), vec![Item::from(latest.clone())]);
        Some(match self.variant {
            Variant::Sotw => Frame::sotw_of(TYPE_URL, latest.version, &nonce, items),
            Variant::Delta => Frame::delta_of(TYPE_URL, &nonce, items, &[]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::NameTable;

    fn table(names: &[u8]) -> Arc<Resource> {
        let mut table = NameTable::default();
        table.set(&"web".into(), names.to_vec());
        Resource::names(table)
    }

    fn request(nonce: &str) -> Request {
        Request { type_url: TYPE_URL.to_owned(), nonce: nonce.to_owned(), ..Request::default() }
    }

    #[test]
    fn whoever_asks_gets_one_table_and_each_later_one_after_its_answer() {
        for variant in [Variant::Sotw, Variant::Delta] {
            let mut names = Names::new(variant);
            assert!(names.response(Some(&table(b"a"))).is_none(), "nobody has asked");
            assert_eq!(names.on_request(request("")), None);
            assert!(names.response(None).is_none());
            assert!(names.response(Some(&table(b""))).is_some(), "an empty table is one, too");
            assert!(names.response(Some(&table(b"a"))).is_none(), "the first is under way");
            names.on_request(request("1"));
            assert!(names.response(Some(&table(b"a"))).is_some());
            let rejected = Request { error: Some("no".to_owned()), ..request("2") };
            assert_eq!(names.on_request(rejected).as_deref(), Some("no"));
            assert!(names.response(Some(&table(b"a"))).is_none(), "it is the same");
            assert!(names.response(Some(&table(b"b"))).is_some());
            names.on_request(request("2"));
            assert!(names.response(Some(&table(b"c"))).is_none(), "that was an old answer");
            names.on_request(request("3"));
            assert!(names.response(Some(&table(b"b"))).is_none());
            names.on_request(request(""));
            assert!(names.response(Some(&table(b"b"))).is_some(), "it has forgotten it");
        }
    }

    #[test]
    fn over_delta_a_client_can_give_up_the_table() {
        let mut names = Names::new(Variant::Delta);
        names.on_request(request(""));
        names.response(Some(&table(b"a"))).unwrap();
        names.on_request(request("1"));
        names.on_request(Request { unsubscribe: vec!["*".to_owned()], ..request("") });
        assert!(!names.are_wanted());
        assert!(names.response(Some(&table(b"b"))).is_none());
        names.on_request(Request { names: vec!["*".to_owned()], ..request("1") });
        assert!(names.response(Some(&table(b"b"))).is_some());
    }
}
