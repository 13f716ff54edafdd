//! Reads what the bench needs of an xDS response and skips the rest, and writes requests.
//!
//! A mesh's configuration has megabytes for each proxy. Decoding all of it would cost the client more than it costs the
//! server to send it, on the same machine.

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

/// A response is not valid protobuf.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a response is not valid protobuf: {0}")]
pub(crate) struct Malformed(pub String);

impl From<prost::DecodeError> for Malformed {
    fn from(error: prost::DecodeError) -> Self {
        Self(error.to_string())
    }
}

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    /// An integer, enum or boolean.
    Number(u64),
    /// A double.
    Double(f64),
    /// A string, a message or bytes.
    Bytes(&'a [u8]),
    /// Of a type that nothing here needs.
    Other,
}

/// The fields of a message in order.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

/// The fields of this message.
pub(crate) fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message }
}

impl<'a> Fields<'a> {
    fn take(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some((taken, rest)) = self.rest.split_at_checked(length) else {
            return Err(Malformed(format!(
                "a field of {length} bytes where {} are left",
                self.rest.len()
            )));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u32, Value<'a>), Malformed> {
        let (tag, kind) = decode_key(&mut self.rest)?;
        let value = match kind {
            WireType::Varint => Value::Number(decode_varint(&mut self.rest)?),
            WireType::LengthDelimited => {
                let length = decode_varint(&mut self.rest)?;
                Value::Bytes(self.take(length)?)
            }
            WireType::SixtyFourBit => match <[u8; 8]>::try_from(self.take(8)?) {
                Ok(bytes) => Value::Double(f64::from_le_bytes(bytes)),
                Err(_) => Value::Other,
            },
            WireType::ThirtyTwoBit => {
                self.take(4)?;
                Value::Other
            }
            WireType::StartGroup | WireType::EndGroup => {
                return Err(Malformed("a group, which proto3 does not have".to_owned()));
            }
        };
        Ok((tag, value))
    }

    /// The rest of the fields with this tag that are strings, messages or bytes.
    pub(crate) fn all(self, tag: u32) -> impl Iterator<Item = Result<&'a [u8], Malformed>> {
        self.filter_map(move |field| match field {
            Ok((found, Value::Bytes(bytes))) if found == tag => Some(Ok(bytes)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        })
    }

    /// The first of them, or nothing.
    pub(crate) fn first(self, tag: u32) -> Result<&'a [u8], Malformed> {
        self.all(tag).next().unwrap_or(Ok(&[]))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// A response of either variant, without its resources.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Head<'a> {
    /// The version (SotW).
    pub version: &'a [u8],
    /// The type.
    pub type_url: &'a [u8],
    /// The nonce.
    pub nonce: &'a [u8],
}

/// The head of a response.
pub(crate) fn head(response: &[u8], delta: bool) -> Result<Head<'_>, Malformed> {
    let mut head = Head::default();
    for field in fields(response) {
        match field? {
            (1, Value::Bytes(text)) if !delta => head.version = text,
            (4, Value::Bytes(text)) => head.type_url = text,
            (5, Value::Bytes(text)) => head.nonce = text,
            _ => {}
        }
    }
    Ok(head)
}

/// A resource of a response.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Resource<'a> {
    /// Its name (delta).
    pub name: &'a [u8],
    /// Its version (delta).
    pub version: &'a [u8],
    /// Its encoded message.
    pub body: &'a [u8],
}

/// The resources of a response.
pub(crate) fn resources(
    response: &[u8],
    delta: bool,
) -> impl Iterator<Item = Result<Resource<'_>, Malformed>> {
    fields(response).all(2).map(move |item| {
        let mut resource = Resource::default();
        let item = item?;
        let mut any = item;
        if delta {
            any = &[];
            for field in fields(item) {
                match field? {
                    (1, Value::Bytes(text)) => resource.version = text,
                    (2, Value::Bytes(inner)) => any = inner,
                    (3, Value::Bytes(text)) => resource.name = text,
                    _ => {}
                }
            }
        }
        resource.body = fields(any).first(2)?;
        Ok(resource)
    })
}

/// The name under which a cluster asks for endpoints over xDS; `None` if it does not.
pub(crate) fn endpoints_name(cluster: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let (mut name, mut service) = (&[][..], None);
    for field in fields(cluster) {
        match field? {
            (1, Value::Bytes(text)) => name = text,
            (3, Value::Bytes(config)) => service = Some(fields(config).first(2)?),
            _ => {}
        }
    }
    Ok(service.map(|service| if service.is_empty() { name } else { service }))
}

/// Whether an endpoint of this address is in a message, wherever it is: its field `address`.
pub(crate) fn has_address(message: &[u8], address: &[u8]) -> bool {
    let Ok(length) = u8::try_from(address.len()) else {
        return false;
    };
    let starts = message.windows(2).enumerate().filter(|(_, two)| *two == [0x12, length]);
    starts
        .map(|(at, _)| message.get(at + 2..at + 2 + address.len()))
        .any(|found| found == Some(address))
}

/// A request that is being written.
#[derive(Debug, Default)]
pub(crate) struct Request(BytesMut);

impl Request {
    /// Adds a field that is a string, message or bytes; an empty one is left out.
    pub(crate) fn field(mut self, tag: u32, value: &[u8]) -> Self {
        if !value.is_empty() {
            self.repeated(tag, value);
        }
        self
    }

    /// Adds an element of a repeated field.
    pub(crate) fn repeated(&mut self, tag: u32, value: &[u8]) {
        encode_key(tag, WireType::LengthDelimited, &mut self.0);
        encode_varint(value.len() as u64, &mut self.0);
        self.0.put_slice(value);
    }

    /// What was written.
    pub(crate) fn done(self) -> Bytes {
        self.0.freeze()
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use envoy_types::pb::envoy::config::cluster::v3::cluster::{
        ClusterDiscoveryType, EdsClusterConfig,
    };
    use envoy_types::pb::envoy::service::discovery::v3 as pb;
    use envoy_types::pb::google::protobuf::Any;
    use prost::Message as _;

    use super::*;

    fn any(body: &[u8]) -> Any {
        Any { type_url: "type.googleapis.com/x".to_owned(), value: body.to_vec() }
    }

    #[test]
    fn both_variants_are_read() {
        let sotw = pb::DiscoveryResponse {
            version_info: "v".into(),
            type_url: "t".into(),
            nonce: "n".into(),
            resources: vec![any(b"one"), any(b"two")],
            ..Default::default()
        };
        let bytes = sotw.encode_to_vec();
        let expected = Head { version: b"v", type_url: b"t", nonce: b"n" };
        assert_eq!(head(&bytes, false).unwrap(), expected);
        let bodies: Vec<_> = resources(&bytes, false).map(|item| item.unwrap().body).collect();
        assert_eq!(bodies, [b"one", b"two"]);

        let resource = pb::Resource {
            name: "a".into(),
            version: "1".into(),
            resource: Some(any(b"one")),
            ..Default::default()
        };
        let delta = pb::DeltaDiscoveryResponse {
            type_url: "t".into(),
            nonce: "n".into(),
            resources: vec![resource],
            system_version_info: "s".into(),
            ..Default::default()
        };
        let bytes = delta.encode_to_vec();
        assert_eq!(head(&bytes, true).unwrap(), Head { version: b"", ..expected });
        let found: Vec<_> = resources(&bytes, true).map(Result::unwrap).collect();
        assert_eq!(found, [Resource { name: b"a", version: b"1", body: b"one" }]);
    }

    #[test]
    fn only_eds_clusters_ask_for_endpoints() {
        let mut cluster = Cluster { name: "web".into(), ..Default::default() };
        cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(2));
        assert_eq!(endpoints_name(&cluster.encode_to_vec()).unwrap(), None);
        cluster.eds_cluster_config = Some(EdsClusterConfig::default());
        assert_eq!(endpoints_name(&cluster.encode_to_vec()).unwrap(), Some(&b"web"[..]));
        cluster.eds_cluster_config =
            Some(EdsClusterConfig { service_name: "s".into(), ..Default::default() });
        assert_eq!(endpoints_name(&cluster.encode_to_vec()).unwrap(), Some(&b"s"[..]));
    }

    fn endpoint_at(address: &str) -> Bytes {
        Request::default().field(2, address.as_bytes()).done()
    }

    #[test]
    fn an_address_is_not_found_within_a_longer_one() {
        assert!(has_address(&endpoint_at("10.0.0.1"), b"10.0.0.1"));
        assert!(!has_address(&endpoint_at("10.0.0.11"), b"10.0.0.1"));
        assert!(!has_address(b"", b"10.0.0.1"));
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let whole = Request::default().field(2, b"abc").done();
        for end in 1..whole.len() {
            assert!(fields(&whole[..end]).any(|field| field.is_err()), "{end}");
        }
    }
}
