//! Responses put together from encoded resources: every resource's bytes are shared, none is encoded again.

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{
    DecodeContext, WireType, decode_key, encode_key, encode_varint, encoded_len_varint, key_len, skip_field,
};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::snapshot::{Resource, ResourceType};

/// The longest single field of a request, in bytes.
const MAX_FIELD: usize = 256 << 10;

/// How many fields a request may have: a name is one each, as is a version that a client comes back with.
const MAX_FIELDS: usize = 250_000;

/// An encoded message in parts that stand one behind the other.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    parts: Vec<Bytes>,
}

impl Frame {
    /// The length, in bytes.
    pub fn len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The message in one piece.
    pub fn bytes(&self) -> Vec<u8> {
        self.parts.concat()
    }
}

/// The text form of a version.
pub fn version_text(version: u64) -> String {
    format!("{version:016x}")
}

/// A `DiscoveryResponse` (fields: version_info 1, resources 2, type_url 4, nonce 5).
pub fn sotw_response(kind: ResourceType, version: u64, nonce: &str, resources: &[Arc<Resource>]) -> Frame {
    let mut parts = Vec::with_capacity(resources.len() * 2 + 1);
    let mut head = BytesMut::new();
    put_text(&mut head, 1, &version_text(version));
    put_text(&mut head, 4, kind.type_url());
    put_text(&mut head, 5, nonce);
    for resource in resources {
        put_length(&mut head, 2, any_len(kind, resource));
        put_any(&mut head, &mut parts, kind, resource);
    }
    parts.push(head.freeze());
    Frame { parts }
}

/// A `DeltaDiscoveryResponse` (fields: system_version_info 1, resources 2, type_url 4, nonce 5, removed_resources 6);
/// its `Resource` has the fields version 1, resource 2, name 3. Each resource comes with the version to tell.
pub fn delta_response(
    kind: ResourceType,
    nonce: &str,
    resources: &[(Arc<Resource>, u64)],
    removed: &[Arc<str>],
) -> Frame {
    let mut parts = Vec::with_capacity(resources.len() * 2 + 1);
    let mut head = BytesMut::new();
    put_text(&mut head, 4, kind.type_url());
    put_text(&mut head, 5, nonce);
    for name in removed {
        put_text(&mut head, 6, name);
    }
    for (resource, version) in resources {
        let version = version_text(*version);
        let any = any_len(kind, resource);
        let len = text_len(1, &version) + text_len(3, &resource.name) + length_len(2, any) + any;
        put_length(&mut head, 2, len);
        put_text(&mut head, 1, &version);
        put_text(&mut head, 3, &resource.name);
        put_length(&mut head, 2, any);
        put_any(&mut head, &mut parts, kind, resource);
    }
    parts.push(head.freeze());
    Frame { parts }
}

fn put_any(head: &mut BytesMut, parts: &mut Vec<Bytes>, kind: ResourceType, resource: &Resource) {
    put_text(head, 1, kind.type_url());
    put_length(head, 2, resource.len());
    parts.push(head.split().freeze());
    parts.extend(resource.body.iter().cloned());
}

fn any_len(kind: ResourceType, resource: &Resource) -> usize {
    let body = resource.len();
    text_len(1, kind.type_url()) + length_len(2, body) + body
}

fn put_text(out: &mut BytesMut, field: u32, text: &str) {
    put_length(out, field, text.len());
    out.put_slice(text.as_bytes());
}

fn put_length(out: &mut BytesMut, field: u32, len: usize) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(len as u64, out);
}

fn text_len(field: u32, text: &str) -> usize {
    length_len(field, text.len()) + text.len()
}

fn length_len(field: u32, len: usize) -> usize {
    key_len(field) + encoded_len_varint(len as u64)
}

/// Sends [`Frame`]s and receives messages of type `M`.
#[derive(Debug)]
pub struct FrameCodec<M>(PhantomData<M>);

impl<M> Default for FrameCodec<M> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M: Message + Default + Send + 'static> Codec for FrameCodec<M> {
    type Encode = Frame;
    type Decode = M;
    type Encoder = FrameEncoder;
    type Decoder = MessageDecoder<M>;

    fn encoder(&mut self) -> FrameEncoder {
        FrameEncoder
    }

    fn decoder(&mut self) -> MessageDecoder<M> {
        MessageDecoder(PhantomData)
    }
}

/// The sending half of [`FrameCodec`].
#[derive(Debug)]
pub struct FrameEncoder;

impl Encoder for FrameEncoder {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(frame.len());
        frame.parts.into_iter().for_each(|part| out.put(part));
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

/// The receiving half of [`FrameCodec`].
#[derive(Debug)]
pub struct MessageDecoder<M>(PhantomData<M>);

impl<M: Message + Default> Decoder for MessageDecoder<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let bytes = buf.copy_to_bytes(buf.remaining());
        check_size(&bytes)?;
        M::decode(bytes).map(Some).map_err(|error| Status::invalid_argument(format!("the request is no {error}")))
    }
}

/// Refuses what would take much more memory than its bytes once it is decoded: very many fields, or a single one (the
/// node, the text of an error) that is itself made of very many.
fn check_size(message: &Bytes) -> Result<(), Status> {
    let mut rest = message.clone();
    let mut fields = 0usize;
    while rest.has_remaining() {
        let before = rest.remaining();
        let Ok((field, kind)) = decode_key(&mut rest) else { return Ok(()) };
        if skip_field(kind, field, &mut rest, DecodeContext::default()).is_err() {
            // Decoding says better what is wrong with it.
            return Ok(());
        }
        fields += 1;
        if before - rest.remaining() > MAX_FIELD {
            return Err(Status::resource_exhausted(format!(
                "field {field} of the request is longer than {MAX_FIELD} bytes, which is the limit"
            )));
        }
        if fields > MAX_FIELDS {
            return Err(Status::resource_exhausted(format!(
                "the request has more than {MAX_FIELDS} names, which is the limit"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::service::discovery::v3 as pb;

    fn resources() -> Vec<Arc<Resource>> {
        vec![
            Resource::new("a", vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")]),
            Resource::new("b", vec![Bytes::new()]),
        ]
    }

    #[test]
    fn a_response_put_together_decodes_as_one_that_was_encoded() {
        let frame = sotw_response(ResourceType::Cluster, 7, "n1", &resources());
        let decoded = pb::DiscoveryResponse::decode(Bytes::from(frame.bytes())).unwrap();
        assert_eq!((decoded.version_info.as_str(), decoded.nonce.as_str()), ("0000000000000007", "n1"));
        assert_eq!(decoded.type_url, ResourceType::Cluster.type_url());
        let bodies: Vec<_> =
            decoded.resources.iter().map(|any| (any.type_url.as_str(), any.value.as_slice())).collect();
        assert_eq!(bodies, [(decoded.type_url.as_str(), b"onetwo".as_slice()), (decoded.type_url.as_str(), b"")]);
    }

    #[test]
    fn a_delta_response_put_together_decodes_as_one_that_was_encoded() {
        let versions: Vec<_> = resources().into_iter().map(|one| (one.clone(), one.version)).collect();
        let frame = delta_response(ResourceType::Route, "n2", &versions, &["gone".into()]);
        let decoded = pb::DeltaDiscoveryResponse::decode(Bytes::from(frame.bytes())).unwrap();
        assert_eq!((decoded.nonce.as_str(), decoded.removed_resources.as_slice()), ("n2", &["gone".to_owned()][..]));
        let names: Vec<_> = decoded.resources.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(decoded.resources[0].version, version_text(resources()[0].version));
        assert_eq!(decoded.resources[0].resource.as_ref().unwrap().value, b"onetwo");
    }
}
