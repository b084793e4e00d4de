//! A message as named fields, read from its complete text.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{
    WireError,
    scanner::{Scanner, Step},
};

/// The way in which a message that is not JSON is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Not at all, as EMNet does.
    Json,
    /// With the leniency of the seed's chain and repair servers.
    Seed,
}

/// The fields of one message. Of a key that comes twice the last value counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object(BTreeMap<String, Value>);

/// The value of a field, as far as the protocols care.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number, as JavaScript and the seed would hold it.
    Number(f64),
    /// A truth value, null, an array or an object: no message has a use for them.
    Other,
    /// A string.
    Text(String),
}

impl Object {
    /// Reads a text that a [`Scanner`] found to be one message. Invalid UTF-8 becomes U+FFFD.
    pub(super) fn parse(text: &[u8], dialect: Dialect) -> Result<Self, WireError> {
        let text = String::from_utf8_lossy(text);
        match (serde_json::from_str(&text), dialect) {
            (Ok(object), _) => Ok(object),
            (Err(_), Dialect::Seed) => Ok(Self::parse_leniently(&text)),
            (Err(_), Dialect::Json) => Err(WireError::Malformed),
        }
    }

    /// Returns the value under `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// Returns the string under `key`; `None` if there is none or it is not a string.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::Text(text) => Some(text),
            Value::Number(_) | Value::Other => None,
        }
    }

    /// Returns the number under `key`; `None` if there is none or it is not a number.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            Value::Number(number) => Some(*number),
            Value::Other | Value::Text(_) => None,
        }
    }

    /// Parses in the seed's way: fields lie between commas, keys before colons, quotes are
    /// optional.
    fn parse_leniently(text: &str) -> Self {
        let mut fields = BTreeMap::new();
        let mut scanner = Scanner::new();
        let (mut begin, mut key) = (1, None);
        for (at, byte) in text.bytes().enumerate().skip(1) {
            match scanner.step(byte) {
                Step::Colon => key = Some(&text[begin..at]),
                Step::Comma | Step::End => {
                    let part = &text[begin..at];
                    match key.take() {
                        Some(key) => _ = fields.insert(lenient_key(key), Value::leniently(part)),
                        None if part.trim().is_empty() => {} // a trailing comma, or no field at all
                        None => _ = fields.insert(lenient_key(part), Value::Text(String::new())),
                    }
                }
                Step::Restart | Step::TooDeep | Step::Within => continue,
            }
            begin = at + 1;
        }
        Self(fields)
    }
}

impl Value {
    fn leniently(text: &str) -> Self {
        let text = text.trim();
        let enclosed = |by: (char, char)| text.starts_with(by.0) && text.ends_with(by.1);
        if let Some(text) = unquoted(text) {
            Self::Text(text.into_owned())
        } else if let Ok(number) = text.parse() {
            Self::Number(number)
        } else if matches!(text, "null" | "true" | "false")
            || enclosed(('{', '}'))
            || enclosed(('[', ']'))
        {
            Self::Other
        } else {
            Self::Text(text.to_owned())
        }
    }
}

fn lenient_key(text: &str) -> String {
    let text = text.trim();
    unquoted(text).map_or_else(|| text.trim_matches('"').to_owned(), Cow::into_owned)
}

/// Returns the text between the quotes of a string: decoded if it is a JSON string, else literally.
fn unquoted(text: &str) -> Option<Cow<'_, str>> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    Some(serde_json::from_str(text).map_or(Cow::Borrowed(inner), Cow::Owned))
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some((key, value)) = map.next_entry()? {
                    fields.insert(key, value);
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
                Ok(Value::Other)
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Other)
            }

            fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
                Ok(Value::Number(number))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
                Ok(Value::Number(number as f64))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
                Ok(Value::Number(number as f64))
            }

            fn visit_str<E>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Value::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Value::Other)
            }
        }
        deserializer.deserialize_any(Any)
    }
}
