//! Converts Envoy's messages and weir's own to canonical proto3 JSON and back, with every `google.protobuf.Any`
//! expanded.
//!
//! The JSON of Envoy's messages is that of Envoy's `/config_dump` and bootstrap files. Output is stable: object keys
//! are sorted, `@type` first. weir's own messages are printed as `proto/weir/admin/v1/admin.proto` specifies: fields in
//! the order of their numbers, and fields without presence always. The descriptors behind it are parsed on first use,
//! so a process that prints nothing does not need them, and one that prints only weir's messages does not need Envoy's.

mod print;

use std::sync::{LazyLock, OnceLock};

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde::de::DeserializeSeed;
use serde_json::Value;

static DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envoy_descriptors.bin"));

/// The message types. Envoy's are parsed on first use.
struct Types(OnceLock<Result<DescriptorPool, String>>);

/// Kept by processes that read or print Envoy's messages repeatedly.
static TYPES: Types = Types(OnceLock::new());

/// The package of weir's own messages.
const OWN_PACKAGE: &str = "weir.admin.v1";

static OWN_POOL: LazyLock<Result<DescriptorPool, String>> = LazyLock::new(|| {
    let descriptors: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weir_descriptors.bin"));
    DescriptorPool::decode(descriptors).map_err(|error| error.to_string())
});

/// Why a message could not be converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The message type is not in [`pool`].
    #[error("{0} is not a known message type")]
    UnknownType(String),
    /// The bytes are not a message of that type.
    #[error("{type_name}: {source}")]
    Decode {
        /// The full name of the expected message.
        type_name: String,
        /// The decoding error.
        source: prost::DecodeError,
    },
    /// The message contains a value without a JSON form, such as a duration of more than 10000 years.
    #[error("{type_name}: {reason}")]
    NoJsonForm {
        /// The full name of the (inner) message without a JSON form.
        type_name: String,
        /// The reason.
        reason: String,
    },
    /// The JSON does not match the message type.
    #[error("{type_name}: {path}: {source}")]
    Json {
        /// The full name of the expected message.
        type_name: String,
        /// The path in the JSON, like `static_resources.clusters[0].name`; `.` is the root.
        path: String,
        /// The JSON error.
        source: serde_json::Error,
    },
    /// The embedded descriptors are broken, which a test rules out.
    #[error("the descriptors of the messages cannot be read: {0}")]
    Descriptors(String),
}

/// Parses a new copy of [`pool`].
pub(crate) fn fresh_pool() -> Result<DescriptorPool, prost_reflect::DescriptorError> {
    DescriptorPool::decode(DESCRIPTORS)
}

/// The descriptors of all of Envoy's messages that weir emits or reads, with their options (`validate.rules` among them).
///
/// # Errors
/// [`Error::Descriptors`] if the embedded descriptors are broken.
#[cfg(test)]
pub(crate) fn pool() -> Result<&'static DescriptorPool, Error> {
    TYPES.envoy()
}

impl Types {
    fn envoy(&self) -> Result<&DescriptorPool, Error> {
        let pool = self.0.get_or_init(|| fresh_pool().map_err(|error| error.to_string()));
        pool.as_ref().map_err(|reason| Error::Descriptors(reason.clone()))
    }

    fn find(&self, full_name: &str) -> Result<MessageDescriptor, Error> {
        let pool = if full_name.starts_with(OWN_PACKAGE) {
            OWN_POOL.as_ref().map_err(|reason| Error::Descriptors(reason.clone()))?
        } else {
            self.envoy()?
        };
        pool.get_message_by_name(full_name).ok_or_else(|| Error::UnknownType(full_name.to_owned()))
    }

    fn print(&self, full_name: &str, bytes: &[u8]) -> Result<Value, Error> {
        let message = DynamicMessage::decode(self.find(full_name)?, bytes)
            .map_err(|source| Error::Decode { type_name: full_name.to_owned(), source })?;
        print::message(self, &message, 0)
    }
}

/// Converts a message to an object without `@type`. An inner `Any` of a type that is neither Envoy's nor weir's becomes
/// `{"@type": …, "value": BASE64}`.
///
/// # Errors
/// [`Error::UnknownType`] if `M` is neither a known Envoy message nor weir's own, [`Error::NoJsonForm`] if a value has no
/// JSON form.
pub fn message_to_json<M: prost::Message + prost::Name>(message: &M) -> Result<Value, Error> {
    bytes_to_json(&M::full_name(), &message.encode_to_vec())
}

/// Converts the encoded message `bytes` of the type `full_name` (like `envoy.config.cluster.v3.Cluster`) to an object
/// without `@type`.
///
/// # Errors
/// Like [`message_to_json`], and [`Error::Decode`] if `bytes` are not such a message.
pub fn bytes_to_json(full_name: &str, bytes: &[u8]) -> Result<Value, Error> {
    TYPES.print(full_name, bytes)
}

/// Prints a message as the text that weir's admin API returns: indented, with a final newline. Keeps no descriptors in
/// memory, because a server is seldom asked for Envoy's messages.
///
/// # Errors
/// Like [`message_to_json`].
pub fn message_to_text<M: prost::Message + prost::Name>(message: &M) -> Result<String, Error> {
    Ok(to_text(&Types(OnceLock::new()).print(&M::full_name(), &message.encode_to_vec())?))
}

/// JSON as text in the form of [`message_to_text`].
pub(crate) fn to_text(json: &Value) -> String {
    format!("{json:#}\n")
}

/// Encodes the JSON of a message of the type `full_name`, as in the `value` of an `Any`.
///
/// Accepts the output of the other functions and also the `snake_case` field names of the proto files. An unknown field
/// is an error, as is an inner `Any` of a type that is not in [`pool`]. A top-level `@type` is not expected.
///
/// # Errors
/// [`Error::UnknownType`] or [`Error::Json`] with the path.
pub fn json_to_any(full_name: &str, json: &Value) -> Result<Vec<u8>, Error> {
    Ok(read(full_name, json)?.encode_to_vec())
}

/// Reads a message from the output of [`message_to_json`], or from any JSON that [`json_to_any`] accepts.
///
/// # Errors
/// As [`json_to_any`].
pub fn message_from_json<M: prost::Message + prost::Name + Default>(
    json: &Value,
) -> Result<M, Error> {
    let type_name = M::full_name();
    read(&type_name, json)?.transcode_to().map_err(|source| Error::Decode { type_name, source })
}

fn read(full_name: &str, json: &Value) -> Result<DynamicMessage, Error> {
    let descriptor = descriptor(full_name)?;
    let mut track = serde_path_to_error::Track::new();
    descriptor.deserialize(serde_path_to_error::Deserializer::new(json, &mut track)).map_err(
        |source| Error::Json {
            type_name: full_name.to_owned(),
            path: track.path().to_string(),
            source,
        },
    )
}

/// The descriptor of one of Envoy's or weir's messages.
///
/// # Errors
/// [`Error::UnknownType`] if it is neither.
pub(crate) fn descriptor(full_name: &str) -> Result<MessageDescriptor, Error> {
    TYPES.find(full_name)
}

#[cfg(test)]
mod tests;
