//! A zero-copy reader of the protobuf wire format for untrusted input.

/// The wire payload of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Payload<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32(u32),
    /// Wire types 3 and 4: groups, which proto3 does not use.
    Group,
}

/// The bytes are not a serialized message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Reads the fields of a message, in order: number and payload.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The number of unread bytes.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    fn read(&mut self) -> Option<(u32, Payload<'a>)> {
        let tag = varint(&mut self.rest)?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number))?;
        let payload = match tag & 7 {
            0 => Payload::Varint(varint(&mut self.rest)?),
            1 => {
                let (bytes, rest) = self.rest.split_first_chunk()?;
                self.rest = rest;
                Payload::Fixed64(u64::from_le_bytes(*bytes))
            }
            2 => {
                let length = usize::try_from(varint(&mut self.rest)?).ok()?;
                let (bytes, rest) = self.rest.split_at_checked(length)?;
                self.rest = rest;
                Payload::Bytes(bytes)
            }
            5 => {
                let (bytes, rest) = self.rest.split_first_chunk()?;
                self.rest = rest;
                Payload::Fixed32(u32::from_le_bytes(*bytes))
            }
            3 | 4 => Payload::Group,
            _ => return None,
        };
        Some((number, payload))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Payload<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_none() {
            self.rest = &[];
        }
        Some(field.ok_or(Malformed))
    }
}

/// Reads a varint from the front.
pub(super) fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// The scalar types of proto3, plus messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    Double,
    Float,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Bool,
    Enum,
    Text,
    Bytes,
    Message,
}

/// A value as rules compare it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Int(i128),
    Float(f64),
    Bool(bool),
    /// A string, bytes or a message.
    Bytes(&'a [u8]),
}

impl Scalar {
    /// Decodes a payload; `None` if its wire type does not match.
    pub(super) fn read(self, payload: Payload<'_>) -> Option<Value<'_>> {
        let value = match (self, payload) {
            // An enum and an int32 are encoded as 64 bits; readers keep the lower half.
            (Self::Int32 | Self::Enum, Payload::Varint(bits)) => Value::Int((bits as i32).into()),
            (Self::Int64, Payload::Varint(bits)) => Value::Int((bits as i64).into()),
            (Self::Uint32, Payload::Varint(bits)) => Value::Int((bits as u32).into()),
            (Self::Uint64, Payload::Varint(bits)) => Value::Int(bits.into()),
            (Self::Sint32, Payload::Varint(bits)) => {
                Value::Int(((bits as u32 >> 1) as i32 ^ -((bits & 1) as i32)).into())
            }
            (Self::Sint64, Payload::Varint(bits)) => {
                Value::Int(((bits >> 1) as i64 ^ -((bits & 1) as i64)).into())
            }
            (Self::Bool, Payload::Varint(bits)) => Value::Bool(bits != 0),
            (Self::Fixed32, Payload::Fixed32(bits)) => Value::Int(bits.into()),
            (Self::Sfixed32, Payload::Fixed32(bits)) => Value::Int((bits as i32).into()),
            (Self::Float, Payload::Fixed32(bits)) => Value::Float(f32::from_bits(bits).into()),
            (Self::Fixed64, Payload::Fixed64(bits)) => Value::Int(bits.into()),
            (Self::Sfixed64, Payload::Fixed64(bits)) => Value::Int((bits as i64).into()),
            (Self::Double, Payload::Fixed64(bits)) => Value::Float(f64::from_bits(bits)),
            (Self::Text | Self::Bytes | Self::Message, Payload::Bytes(bytes)) => {
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        Some(value)
    }

    /// The value of an absent field of this type.
    pub(super) fn zero(self) -> Value<'static> {
        match self {
            Self::Double | Self::Float => Value::Float(0.0),
            Self::Bool => Value::Bool(false),
            Self::Text | Self::Bytes | Self::Message => Value::Bytes(&[]),
            _ => Value::Int(0),
        }
    }

    /// Reads one element of a packed list.
    pub(super) fn unpack<'a>(self, packed: &mut &'a [u8]) -> Option<Payload<'a>> {
        match self {
            Self::Double | Self::Fixed64 | Self::Sfixed64 => {
                let (bytes, rest) = packed.split_first_chunk()?;
                *packed = rest;
                Some(Payload::Fixed64(u64::from_le_bytes(*bytes)))
            }
            Self::Float | Self::Fixed32 | Self::Sfixed32 => {
                let (bytes, rest) = packed.split_first_chunk()?;
                *packed = rest;
                Some(Payload::Fixed32(u32::from_le_bytes(*bytes)))
            }
            Self::Text | Self::Bytes | Self::Message => None,
            _ => varint(packed).map(Payload::Varint),
        }
    }

    /// Whether a list of it may be packed.
    pub(super) fn packs(self) -> bool {
        !matches!(self, Self::Text | Self::Bytes | Self::Message)
    }
}

/// The seconds and nanoseconds of a `google.protobuf.Duration` or `Timestamp`.
pub(super) fn seconds_and_nanos(bytes: &[u8]) -> Result<(i64, i32), Malformed> {
    let (mut seconds, mut nanos) = (0, 0);
    for field in Fields::new(bytes) {
        match field? {
            (1, Payload::Varint(bits)) => seconds = bits as i64,
            (2, Payload::Varint(bits)) => nanos = bits as i32,
            (1 | 2, _) => return Err(Malformed),
            _ => {}
        }
    }
    Ok((seconds, nanos))
}

/// The type URL and the contents of a `google.protobuf.Any`.
pub(super) fn open_any(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (mut url, mut value): (&[u8], &[u8]) = (&[], &[]);
    for field in Fields::new(bytes) {
        match field? {
            (1, Payload::Bytes(bytes)) => url = bytes,
            (2, Payload::Bytes(bytes)) => value = bytes,
            (1 | 2, _) => return Err(Malformed),
            _ => {}
        }
    }
    Ok((url, value))
}
