//! Holds the table of fields in `src/translate/fields.md` against the types: what they know must stand in it, and nothing
//! else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde::de::value::{StrDeserializer, StringDeserializer};
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use super::{DestinationRule, ServiceEntry, Sidecar, VirtualService, WorkloadEntry};

const TABLE: &str = include_str!("../translate/fields.md");

/// Fields by message, and values by enum.
type Known = BTreeMap<String, BTreeSet<String>>;

/// Has a type read one of everything, and notes what it asks for.
struct Walk<'a>(&'a mut Known);

#[derive(Debug)]
struct Odd(String);

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Odd {}

impl de::Error for Odd {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

impl<'de> Deserializer<'de> for Walk<'_> {
    type Error = Odd;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Odd> {
        visitor.visit_unit()
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Odd> {
        visitor.visit_bool(true)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Odd> {
        visitor.visit_i32(1)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Odd> {
        visitor.visit_u32(1)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Odd> {
        visitor.visit_u64(1)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Odd> {
        visitor.visit_f64(1.0)
    }

    /// A text that is a duration as well.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Odd> {
        visitor.visit_str("1s")
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Odd> {
        visitor.visit_str("1s")
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Odd> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Odd> {
        visitor.visit_seq(Each { known: self.0, left: vec!["0"] })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Odd> {
        visitor.visit_map(Each { known: self.0, left: vec!["name"] })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Odd> {
        // Names of Protobuf's are other names of fields that stand here already.
        let fields: Vec<&str> = fields.iter().copied().filter(|field| !field.contains('_')).collect();
        self.0.insert(name.to_owned(), fields.iter().map(|field| (*field).to_owned()).collect());
        visitor.visit_map(Each { known: self.0, left: fields })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Odd> {
        self.0.insert(name.to_owned(), variants.iter().map(|variant| (*variant).to_owned()).collect());
        let first: StrDeserializer<'_, Odd> = variants.first().copied().unwrap_or_default().into_deserializer();
        visitor.visit_enum(first)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i64 i128 u8 u16 u128 f32 char bytes byte_buf unit unit_struct newtype_struct tuple tuple_struct identifier
        ignored_any
    }
}

struct Each<'a> {
    known: &'a mut Known,
    left: Vec<&'static str>,
}

impl<'de> SeqAccess<'de> for Each<'_> {
    type Error = Odd;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Odd> {
        self.left.pop().map(|_| seed.deserialize(Walk(self.known))).transpose()
    }
}

impl<'de> MapAccess<'de> for Each<'_> {
    type Error = Odd;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Odd> {
        let key = |name: &str| StringDeserializer::<Odd>::new(name.to_owned());
        self.left.last().map(|name| seed.deserialize(key(name))).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Odd> {
        self.left.pop();
        seed.deserialize(Walk(self.known))
    }
}

fn walk<T: for<'de> Deserialize<'de>>(known: &mut Known) {
    T::deserialize(Walk(known)).map(drop).unwrap();
}

fn of_types() -> Known {
    let mut known = Known::new();
    walk::<VirtualService>(&mut known);
    walk::<DestinationRule>(&mut known);
    walk::<ServiceEntry>(&mut known);
    walk::<WorkloadEntry>(&mut known);
    walk::<Sidecar>(&mut known);
    known
}

/// The rows of the table by the message above them: field, verdict and remark.
fn of_table() -> BTreeMap<&'static str, Vec<(&'static str, &'static str, &'static str)>> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let mut message: Option<&'static str> = None;
    for line in TABLE.lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            message = heading.split(' ').next();
        } else if let (Some(message), Some(row)) = (message, line.strip_prefix("| `")) {
            let cells: Vec<&'static str> = row.trim_end_matches('|').split('|').map(str::trim).collect();
            let &[field, verdict, remark] = cells.as_slice() else { panic!("{line} has not three cells") };
            found.entry(message).or_default().push((field.trim_end_matches('`'), verdict, remark));
        }
    }
    found
}

#[test]
fn every_field_stands_in_the_table_and_nothing_else() {
    let (types, table) = (of_types(), of_table());
    assert!(types.len() > 60, "only {} types were walked through", types.len());
    let names: BTreeSet<&str> = types.keys().map(String::as_str).chain(table.keys().copied()).collect();
    for name in names {
        let known = types.get(name).cloned().unwrap_or_default();
        let rows = table.get(name).map(Vec::as_slice).unwrap_or_default();
        let listed: BTreeSet<String> = rows.iter().map(|(field, ..)| (*field).to_owned()).collect();
        assert_eq!(known, listed, "{name}: the type's fields, and the table's");
        assert_eq!(listed.len(), rows.len(), "{name} has a field twice");
    }
}

#[test]
fn every_row_has_a_verdict_and_says_what_is_not_as_in_istio() {
    for (message, rows) in of_table() {
        for (field, verdict, remark) in rows {
            assert!(matches!(verdict, "works" | "differs" | "refused"), "{message}.{field} is `{verdict}`");
            assert!(verdict == "works" || !remark.is_empty(), "{message}.{field} {verdict}, and nothing says how");
        }
    }
}
