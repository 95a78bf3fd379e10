//! Reads a JSON object of plain values, without a copy of long texts.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// A plain value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    /// Above 2^63.
    Large(u64),
    Float(f64),
    Text(Cow<'a, str>),
}

/// The members of an object, in their order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Object<'a>(pub(crate) Vec<(String, Value<'a>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Value<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Plain;
        impl<'de> Visitor<'de> for Plain {
            type Value = Value<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number, a boolean or null")
            }
            fn visit_unit<E: Error>(self) -> Result<Value<'de>, E> {
                Ok(Value::Null)
            }
            fn visit_bool<E: Error>(self, v: bool) -> Result<Value<'de>, E> {
                Ok(Value::Bool(v))
            }
            fn visit_i64<E: Error>(self, v: i64) -> Result<Value<'de>, E> {
                Ok(Value::Int(v))
            }
            fn visit_u64<E: Error>(self, v: u64) -> Result<Value<'de>, E> {
                Ok(i64::try_from(v).map_or(Value::Large(v), Value::Int))
            }
            fn visit_f64<E: Error>(self, v: f64) -> Result<Value<'de>, E> {
                Ok(Value::Float(v))
            }
            fn visit_borrowed_str<E: Error>(self, v: &'de str) -> Result<Value<'de>, E> {
                Ok(Value::Text(Cow::Borrowed(v)))
            }
            fn visit_str<E: Error>(self, v: &str) -> Result<Value<'de>, E> {
                Ok(Value::Text(Cow::Owned(v.to_owned())))
            }
        }
        deserializer.deserialize_any(Plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_members_are_read_and_others_refused() {
        let text = r#"{"a": null, "b": true, "c": -1, "d": 18446744073709551615, "e": 1.5, "f": "x", "f": "\u00e9"}"#;
        let Object(members) = serde_json::from_str(text).unwrap();
        let values: Vec<_> = members.into_iter().map(|(_, value)| value).collect();
        let text = |text: &'static str| Value::Text(Cow::Borrowed(text));
        let large = Value::Large(u64::MAX);
        let wanted =
            [Value::Null, Value::Bool(true), Value::Int(-1), large, Value::Float(1.5), text("x"), text("é")];
        assert_eq!(values, wanted);
        assert!(matches!(&values[5], Value::Text(Cow::Borrowed(_))), "no copy");
        for wrong in [
            "[]",
            "1",
            "{\"a\": []}",
            "{\"a\": {}}",
            "{\"a\": 1",
            "{\"a\": 1} x",
            "{\"a\": \"\u{1}\"}",
            "{a: 1}",
        ] {
            assert!(serde_json::from_str::<Object<'_>>(wrong).is_err(), "{wrong}");
        }
    }
}
