//! Checks the table of fields in `src/translate/fields.md` against the types: it must list exactly the fields that the
//! types have.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde::de::value::{StrDeserializer, StringDeserializer};
use serde::de::{
    self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};

use super::{
    DestinationRule, PeerAuthentication, ServiceEntry, Sidecar, VirtualService, WorkloadEntry,
};

const TABLE: &str = include_str!("../translate/fields.md");

/// Fields by message, and values by enum.
type FieldTable = BTreeMap<String, BTreeSet<String>>;

/// A deserializer that supplies one value for everything and records the fields that a type requests.
struct Walk<'a>(&'a mut FieldTable);

#[derive(Debug)]
struct WalkError(String);

impl fmt::Display for WalkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WalkError {}

impl de::Error for WalkError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

impl<'de> Deserializer<'de> for Walk<'_> {
    type Error = WalkError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WalkError> {
        visitor.visit_unit()
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WalkError> {
        visitor.visit_bool(true)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WalkError> {
        visitor.visit_i32(1)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WalkError> {
        visitor.visit_u32(1)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WalkError> {
        visitor.visit_u64(1)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WalkError> {
        visitor.visit_f64(1.0)
    }

    /// A string that is also a valid duration.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WalkError> {
        visitor.visit_str("1s")
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WalkError> {
        visitor.visit_str("1s")
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WalkError> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WalkError> {
        visitor.visit_seq(Entries { known: self.0, left: vec!["0"] })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WalkError> {
        visitor.visit_map(Entries { known: self.0, left: vec!["name"] })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, WalkError> {
        // Protobuf names are aliases of fields that are already listed.
        let fields: Vec<&str> =
            fields.iter().copied().filter(|field| !field.contains('_')).collect();
        self.0.insert(name.to_owned(), fields.iter().map(|field| (*field).to_owned()).collect());
        visitor.visit_map(Entries { known: self.0, left: fields })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, WalkError> {
        self.0.insert(
            name.to_owned(),
            variants.iter().map(|variant| (*variant).to_owned()).collect(),
        );
        let first: StrDeserializer<'_, WalkError> =
            variants.first().copied().unwrap_or_default().into_deserializer();
        visitor.visit_enum(first)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i64 i128 u8 u16 u128 f32 char bytes byte_buf unit unit_struct newtype_struct tuple tuple_struct identifier
        ignored_any
    }
}

struct Entries<'a> {
    known: &'a mut FieldTable,
    left: Vec<&'static str>,
}

impl<'de> SeqAccess<'de> for Entries<'_> {
    type Error = WalkError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, WalkError> {
        self.left.pop().map(|_| seed.deserialize(Walk(self.known))).transpose()
    }
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = WalkError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, WalkError> {
        let Some(name) = self.left.last() else {
            return Ok(None);
        };
        seed.deserialize(StringDeserializer::<WalkError>::new((*name).to_owned())).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, WalkError> {
        self.left.pop();
        seed.deserialize(Walk(self.known))
    }
}

fn walk<T: for<'de> Deserialize<'de>>(known: &mut FieldTable) {
    T::deserialize(Walk(known)).map(drop).unwrap();
}

fn of_types() -> FieldTable {
    let mut known = FieldTable::new();
    walk::<VirtualService>(&mut known);
    walk::<DestinationRule>(&mut known);
    walk::<ServiceEntry>(&mut known);
    walk::<WorkloadEntry>(&mut known);
    walk::<Sidecar>(&mut known);
    walk::<PeerAuthentication>(&mut known);
    known
}

/// The table rows by message: field, status and remark.
fn of_table() -> BTreeMap<&'static str, Vec<(&'static str, &'static str, &'static str)>> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let mut message: Option<&'static str> = None;
    for line in TABLE.lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            message = heading.split(' ').next();
        } else if let (Some(message), Some(row)) = (message, line.strip_prefix("| `")) {
            let cells: Vec<&'static str> =
                row.trim_end_matches('|').split('|').map(str::trim).collect();
            let &[field, verdict, remark] = cells.as_slice() else {
                panic!("{line} does not have three cells")
            };
            found.entry(message).or_default().push((field.trim_end_matches('`'), verdict, remark));
        }
    }
    found
}

#[test]
fn the_table_lists_exactly_the_fields() {
    let (types, table) = (of_types(), of_table());
    assert!(types.len() > 60, "only {} types were walked through", types.len());
    let names: BTreeSet<&str> =
        types.keys().map(String::as_str).chain(table.keys().copied()).collect();
    for name in names {
        let known = types.get(name).cloned().unwrap_or_default();
        let rows = table.get(name).map(Vec::as_slice).unwrap_or_default();
        let listed: BTreeSet<String> = rows.iter().map(|(field, ..)| (*field).to_owned()).collect();
        assert_eq!(known, listed, "{name}: the type's fields, and the table's");
        assert_eq!(listed.len(), rows.len(), "{name} has a field twice");
    }
}

#[test]
fn every_row_has_a_status_and_explains_differences() {
    for (message, rows) in of_table() {
        for (field, verdict, remark) in rows {
            assert!(
                matches!(verdict, "works" | "differs" | "rejected"),
                "{message}.{field} is `{verdict}`"
            );
            assert!(
                verdict == "works" || !remark.is_empty(),
                "{message}.{field} {verdict}, but the remark is empty"
            );
        }
    }
}
