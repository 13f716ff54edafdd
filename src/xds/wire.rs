//! Assembles responses from encoded resources; the bytes are shared and never encoded again.
//!
//! A response is written in chunks as fast as its client reads, so a waiting response takes almost no memory,
//! regardless of its size and the number of clients.

use std::fmt;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::snapshot::{Pieces, Resource, ResourceType, empty_endpoints};

/// The chunk size in bytes: the default maximum frame size of HTTP/2 (RFC 9113, `SETTINGS_MAX_FRAME_SIZE`).
const CHUNK: usize = 16_384;

/// The usual length of what precedes the body of a resource, in bytes.
const START: usize = 256;

/// The length of a version as a string.
const VERSION: usize = 16;

/// A version as a string.
pub(crate) fn version_text(version: u64) -> String {
    version_digits(version).map(char::from).into_iter().collect()
}

/// The hexadecimal digits of a version.
fn version_digits(version: u64) -> [u8; VERSION] {
    let bytes = version.to_be_bytes();
    std::array::from_fn(|at| {
        let byte = bytes.get(at / 2).copied().unwrap_or_default();
        let four = if at % 2 == 0 { byte >> 4 } else { byte & 0xf };
        if four < 10 { b'0' + four } else { b'a' + four - 10 }
    })
}

/// A response of either variant that has not been written yet. It is not printed, for it may contain a private key.
#[derive(Clone)]
pub(crate) struct Frame {
    /// The type of the resources.
    type_url: &'static str,
    delta: bool,
    /// All fields except the resources.
    head: Bytes,
    items: Vec<Item>,
    len: usize,
}

/// A resource of a response.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// A resource with the version to report.
    Resource(Arc<Resource>, u64),
    /// An empty assignment for a cluster. It is encoded when it is written, because a client may ask for very many.
    NoEndpoints(Arc<str>),
}

impl From<Arc<Resource>> for Item {
    /// With its own version.
    fn from(resource: Arc<Resource>) -> Self {
        let version = resource.version;
        Self::Resource(resource, version)
    }
}

impl Item {
    /// The version of the resource.
    pub(crate) fn version(&self) -> u64 {
        match self {
            Self::Resource(_, version) => *version,
            Self::NoEndpoints(cluster) => empty_endpoints(cluster).version,
        }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Frame {
    /// A `DiscoveryResponse` (fields: version_info 1, resources 2, type_url 4, nonce 5).
    pub(crate) fn sotw(kind: ResourceType, version: u64, nonce: &str, items: Vec<Item>) -> Self {
        Self::sotw_of(kind.type_url(), version, nonce, items)
    }

    /// The same of a type by its URL.
    pub(crate) fn sotw_of(
        type_url: &'static str,
        version: u64,
        nonce: &str,
        items: Vec<Item>,
    ) -> Self {
        let mut head = BytesMut::new();
        put_text(&mut head, 1, &version_text(version));
        put_text(&mut head, 4, type_url);
        put_text(&mut head, 5, nonce);
        Self::new(type_url, false, head.freeze(), items)
    }

    /// A `DeltaDiscoveryResponse` (fields: resources 2, type_url 4, nonce 5, removed_resources 6); its `Resource` has
    /// the fields version 1, resource 2, name 3.
    pub(crate) fn delta(
        kind: ResourceType,
        nonce: &str,
        items: Vec<Item>,
        removed: &[Arc<str>],
    ) -> Self {
        Self::delta_of(kind.type_url(), nonce, items, removed)
    }

    /// The same of a type by its URL.
    pub(crate) fn delta_of(
        type_url: &'static str,
        nonce: &str,
        items: Vec<Item>,
        removed: &[Arc<str>],
    ) -> Self {
        let mut head = BytesMut::new();
        put_text(&mut head, 4, type_url);
        put_text(&mut head, 5, nonce);
        for name in removed {
            put_text(&mut head, 6, name);
        }
        Self::new(type_url, true, head.freeze(), items)
    }

    fn new(type_url: &'static str, delta: bool, head: Bytes, items: Vec<Item>) -> Self {
        let mut this = Self { type_url, delta, head, items, len: 0 };
        let fields = this.items.iter().map(|item| match item {
            Item::Resource(resource, _) => this.field_len(resource),
            Item::NoEndpoints(cluster) => this.field_len(&empty_endpoints(cluster)),
        });
        this.len = this.head.len() + fields.map(|len| length_len(2, len) + len).sum::<usize>();
        this
    }

    /// A response that is encoded already, and that no other one shares.
    pub(crate) fn encoded(message: Bytes) -> Self {
        Self { type_url: "", delta: false, len: message.len(), head: message, items: Vec::new() }
    }

    /// The length of the message, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The bytes that no other response shares.
    pub(crate) fn own_len(&self) -> usize {
        self.head.len()
    }

    /// The message in chunks, preceded by `prefix`.
    pub(crate) fn chunks(self, prefix: &[u8]) -> Chunks {
        let left = prefix.len() + self.len;
        let mut rest = BytesMut::with_capacity(prefix.len() + self.head.len());
        rest.put_slice(prefix);
        rest.put_slice(&self.head);
        let (rest, buffer) = (rest.freeze(), BytesMut::new());
        Chunks { frame: self, item: 0, pieces: None, rest, buffer, left }
    }

    /// The message as one buffer.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.clone().chunks(&[]).flatten().collect()
    }

    /// The length of one `resources` field.
    fn field_len(&self, resource: &Resource) -> usize {
        let any = any_len(self.type_url, resource);
        if !self.delta {
            return any;
        }
        length_len(1, VERSION) + VERSION + text_len(3, &resource.name) + length_len(2, any) + any
    }

    /// Writes the bytes before a resource's body.
    fn start(&self, resource: &Resource, version: u64, out: &mut BytesMut) {
        put_length(out, 2, self.field_len(resource));
        if self.delta {
            put_length(out, 1, VERSION);
            out.put_slice(&version_digits(version));
            put_text(out, 3, &resource.name);
            put_length(out, 2, any_len(self.type_url, resource));
        }
        put_text(out, 1, self.type_url);
        put_length(out, 2, resource.len());
    }
}

/// The chunks of a [`Frame`]: long parts are shared, short ones are copied together.
#[derive(Debug)]
pub(crate) struct Chunks {
    frame: Frame,
    /// The index of the current item.
    item: usize,
    /// The pieces of its body that are left; `None` until the bytes before the body are written.
    pieces: Option<Pieces>,
    /// The rest of the last piece.
    rest: Bytes,
    /// What was copied and does not fill a chunk yet.
    buffer: BytesMut,
    /// The number of bytes that no chunk has had.
    left: usize,
}

impl Chunks {
    /// Takes the next piece, or writes what precedes it. Returns whether there was any.
    fn advance(&mut self) -> bool {
        if let Some(pieces) = &mut self.pieces {
            match pieces.next() {
                Some(piece) => self.rest = piece,
                None => (self.item, self.pieces) = (self.item + 1, None),
            }
            return true;
        }
        self.reserve();
        let Self { frame, buffer, .. } = self;
        let (resource, version) = match frame.items.get(self.item) {
            Some(Item::Resource(resource, version)) => (resource, *version),
            Some(Item::NoEndpoints(cluster)) => (&empty_endpoints(cluster), 0),
            None => return false,
        };
        frame.start(resource, version, buffer);
        self.pieces = Some(resource.pieces());
        true
    }

    /// Makes room for a chunk, and for the beginning of a resource that does not end in it.
    fn reserve(&mut self) {
        let most = self.left.min(CHUNK + START);
        self.buffer.reserve(most.saturating_sub(self.buffer.len()));
    }

    /// The next chunk, which has `length` bytes of the buffer.
    fn chunk(&mut self, length: usize) -> Option<Bytes> {
        self.left = self.left.saturating_sub(length);
        (length > 0).then(|| self.buffer.split_to(length).freeze())
    }
}

impl Iterator for Chunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.buffer.len() >= CHUNK {
                return self.chunk(CHUNK);
            }
            if self.buffer.is_empty() && self.rest.len() >= CHUNK {
                self.left = self.left.saturating_sub(self.rest.len());
                return Some(std::mem::take(&mut self.rest));
            }
            if !self.rest.is_empty() {
                self.reserve();
                let room = CHUNK - self.buffer.len();
                self.buffer.put(self.rest.split_to(self.rest.len().min(room)));
            } else if !self.advance() {
                return self.chunk(self.buffer.len());
            }
        }
    }
}

fn any_len(type_url: &str, resource: &Resource) -> usize {
    let body = resource.len();
    text_len(1, type_url) + length_len(2, body) + body
}

/// Writes a string field.
pub(super) fn put_text(out: &mut BytesMut, field: u32, text: &str) {
    put_length(out, field, text.len());
    out.put_slice(text.as_bytes());
}

/// Writes the key and the length of a field of bytes.
pub(super) fn put_length(out: &mut BytesMut, field: u32, len: usize) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(len as u64, out);
}

/// The length of a string field.
pub(super) fn text_len(field: u32, text: &str) -> usize {
    length_len(field, text.len()) + text.len()
}

/// The length of what precedes `len` bytes in a field.
pub(super) fn length_len(field: u32, len: usize) -> usize {
    key_len(field) + encoded_len_varint(len as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{EncodedVirtualHost, RouteTable};
    use envoy_types::pb::envoy::config::route::v3 as route;
    use envoy_types::pb::envoy::service::discovery::v3 as pb;
    use prost::Message;

    /// A route configuration of virtual hosts that are as long as `bodies`.
    fn table(name: &str, bodies: &[Vec<u8>]) -> Arc<Resource> {
        let mut table = RouteTable::new(Bytes::new());
        for (n, body) in bodies.iter().enumerate() {
            let domain = String::from_utf8(vec![b'a'; body.len()]).unwrap();
            let host = route::VirtualHost {
                name: n.to_string(),
                domains: vec![domain],
                ..Default::default()
            };
            let host = Arc::new(EncodedVirtualHost::new(host, Arc::default()));
            table.set(&host.name.clone(), Some(host));
        }
        Resource::routes(name, table)
    }

    fn items(resources: Vec<Arc<Resource>>) -> Vec<Item> {
        resources.into_iter().map(Item::from).collect()
    }

    fn resources() -> Vec<Arc<Resource>> {
        vec![
            Resource::new("a", Bytes::from_static(b"onetwo"), Arc::default()),
            Resource::new("b", Bytes::new(), Arc::default()),
            table("c", &[vec![7; CHUNK * 3], vec![8; CHUNK - 1], vec![9; 100]]),
        ]
    }

    #[test]
    fn a_version_is_written_in_hexadecimal() {
        for version in [0, 0x0123_4567_89ab_cdef, u64::MAX, 1 << 63] {
            assert_eq!(version_text(version), format!("{version:016x}"));
        }
    }

    #[test]
    fn an_assembled_sotw_response_decodes_like_an_encoded_one() {
        let frame = Frame::sotw(ResourceType::Cluster, 7, "n1", items(resources()));
        assert_eq!(frame.bytes().len(), frame.len());
        let decoded = pb::DiscoveryResponse::decode(Bytes::from(frame.bytes())).unwrap();
        assert_eq!(
            (decoded.version_info.as_str(), decoded.nonce.as_str()),
            ("0000000000000007", "n1")
        );
        assert_eq!(decoded.type_url, ResourceType::Cluster.type_url());
        let bodies: Vec<_> = decoded
            .resources
            .iter()
            .map(|any| (any.type_url.as_str(), any.value.clone()))
            .collect();
        let wanted: Vec<_> = resources()
            .iter()
            .map(|resource| (ResourceType::Cluster.type_url(), resource.bytes()))
            .collect();
        assert_eq!(bodies, wanted);
    }

    #[test]
    fn a_cluster_without_endpoints_is_sent_as_an_empty_assignment() {
        let some = Resource::new("b", Bytes::from_static(b"b"), Arc::default());
        let sent = vec![
            Item::NoEndpoints("a".into()),
            Item::Resource(some, 1),
            Item::NoEndpoints("c".into()),
        ];
        let frame = Frame::sotw(ResourceType::Endpoints, 7, "n", sent);
        assert_eq!(frame.bytes().len(), frame.len());
        let decoded = pb::DiscoveryResponse::decode(Bytes::from(frame.bytes())).unwrap();
        let bodies: Vec<_> = decoded.resources.into_iter().map(|any| any.value).collect();
        assert_eq!(
            bodies,
            [empty_endpoints("a").bytes(), b"b".to_vec(), empty_endpoints("c").bytes()]
        );
    }

    #[test]
    fn an_assembled_delta_response_decodes_like_an_encoded_one() {
        let frame = Frame::delta(ResourceType::Route, "n2", items(resources()), &["gone".into()]);
        assert_eq!(frame.bytes().len(), frame.len());
        let decoded = pb::DeltaDiscoveryResponse::decode(Bytes::from(frame.bytes())).unwrap();
        assert_eq!(
            (decoded.nonce.as_str(), decoded.removed_resources.as_slice()),
            ("n2", &["gone".to_owned()][..])
        );
        for (got, made) in decoded.resources.iter().zip(resources()) {
            assert_eq!((&*got.name, &*got.version), (&*made.name, &*version_text(made.version)));
            assert_eq!(got.resource.as_ref().unwrap().value, made.bytes());
        }
        assert_eq!(decoded.resources.len(), 3);
    }

    #[test]
    fn long_pieces_are_shared_and_short_ones_are_copied_together() {
        let long = Bytes::from(vec![1; CHUNK]);
        let short: Vec<Vec<u8>> = (0..100).map(|_| vec![2; 600]).collect();
        let all = vec![Resource::new("long", long.clone(), Arc::default()), table("short", &short)];
        let pieces: Vec<_> =
            Frame::sotw(ResourceType::Route, 1, "n", items(all)).chunks(b"12345").collect();
        assert_eq!(pieces.first().map(|item| &item[..5]), Some(&b"12345"[..]));
        assert!(
            pieces.iter().rev().skip(1).all(|piece| piece.len() == CHUNK || piece.len() < 300),
            "{pieces:?}"
        );
        assert!(pieces.len() < 8, "{}", pieces.len());
    }

    #[test]
    fn a_chunk_of_many_resources_is_one_allocation() {
        let small = (0..1000)
            .map(|n| Resource::new(format!("name-{n}"), vec![1; 100].into(), Arc::default()));
        let frame = Frame::delta(ResourceType::Cluster, "n", items(small.collect()), &[]);
        // Bytes allocate the count of their owners when they get a second one, once.
        frame.clone().chunks(&[]).for_each(drop);
        let mut chunks = 0;
        let measured =
            allocation_counter::measure(|| chunks = frame.chunks(b"12345").map(drop).count());
        assert!(chunks > 10 && measured.count_total <= 3 * chunks as u64, "{chunks} {measured:?}");
    }

    #[test]
    fn waiting_responses_share_long_parts() {
        let long = Bytes::from(vec![1; CHUNK * 2]);
        let item = Resource::new("long", long.clone(), Arc::default());
        let mut pieces = Frame::sotw(ResourceType::Route, 1, "n", items(vec![item])).chunks(&[]);
        let shared = pieces
            .find_map(|piece| (piece.as_ptr_range().end == long.as_ptr_range().end).then_some(()));
        assert!(shared.is_some());
    }
}
