//! The JSON objects that stand outside of containers: `repository.json` and `keys/`. `docs/format.md`
//! section 1.
//!
//! Invariant: each carries the CRC-32C of what it says, so that a changed byte is damage and never another
//! value.

use std::collections::BTreeMap;

use diagnostic::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::container::damaged;

const CHECK: &str = "crc32c";

/// CRC-32C of the compact JSON of the members, sorted by name at every depth.
fn check(members: &Map<String, Value>) -> String {
    let mut text = String::new();
    write_object(members, &mut text);
    format!("{:08x}", crc32c::crc32c(text.as_bytes()))
}

fn write_object(members: &Map<String, Value>, text: &mut String) {
    let sorted: BTreeMap<&String, &Value> = members.iter().collect();
    text.push('{');
    for (at, (name, value)) in sorted.into_iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push_str(&Value::from(name.as_str()).to_string());
        text.push(':');
        match value {
            Value::Object(members) => write_object(members, text),
            other => text.push_str(&other.to_string()),
        }
    }
    text.push('}');
}

/// An object's bytes: indented, for people who look.
pub(crate) fn encode<T: Serialize>(object: &str, value: &T) -> Result<Vec<u8>> {
    let failed = |why: &dyn std::error::Error| {
        Error::new("repository-format", format!("cannot encode object \"{object}\"")).detail(why.to_string())
    };
    let mut value = serde_json::to_value(value).map_err(|error| failed(&error))?;
    if let Value::Object(members) = &mut value {
        let check = check(members);
        members.insert(CHECK.to_string(), Value::String(check));
    }
    serde_json::to_vec_pretty(&value).map_err(|error| failed(&error))
}

/// Reads an object. Error: `object-damaged`.
pub(crate) fn decode<T: DeserializeOwned>(object: &str, bytes: &[u8]) -> Result<T> {
    let mut members: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|error| damaged(object, &format!("it is no JSON: {error}")))?;
    match members.remove(CHECK) {
        Some(Value::String(stored)) if stored == check(&members) => {}
        _ => return Err(damaged(object, "it does not match its checksum")),
    }
    serde_json::from_value(Value::Object(members))
        .map_err(|error| damaged(object, &format!("it says nothing: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Said {
        version: u32,
        name: String,
    }

    #[test]
    fn any_changed_byte_is_damage_or_says_the_same() {
        let said = Said {
            version: 1,
            name: "main".into(),
        };
        let bytes = encode("x", &said).unwrap();
        assert_eq!(decode::<Said>("x", &bytes).unwrap(), said);
        for at in 0..bytes.len() {
            for flip in [1, 0x10, 0x80] {
                let mut changed = bytes.clone();
                changed[at] ^= flip;
                match decode::<Said>("x", &changed) {
                    // White space for white space.
                    Ok(read) => assert_eq!(read, said),
                    Err(error) => assert_eq!(error.code(), "object-damaged"),
                }
            }
        }
        assert_eq!(decode::<Said>("x", b"[]").unwrap_err().code(), "object-damaged");
    }
}
