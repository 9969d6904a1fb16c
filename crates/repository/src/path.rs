//! Names of files inside a data directory, as bytes.
//!
//! PostgreSQL does not promise UTF-8, so a path is bytes. Invariant: a [`RelativePath`] never leaves the
//! directory under which it is joined: it is not absolute and has no empty, `.` or `..` component and no NUL
//! byte.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use diagnostic::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest path that we keep, in bytes (Linux' PATH_MAX).
pub const PATH_BYTES_MAX: usize = 4096;

/// A path relative to a data directory: `base/5/16384`, `pg_tblspc/16390/PG_15_202209061/5/16391`.
///
/// Ordered by bytes. Serialised as bytes in binary formats and as escaped text in JSON.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelativePath(Vec<u8>);

impl RelativePath {
    /// Error: `path-invalid`.
    pub fn new(path: impl Into<Vec<u8>>) -> Result<Self> {
        let path = path.into();
        let reason = if path.is_empty() {
            "it is empty"
        } else if path.len() > PATH_BYTES_MAX {
            "it is longer than 4096 bytes"
        } else if path.contains(&0) {
            "it contains a NUL byte"
        } else if path
            .split(|byte| *byte == b'/')
            .any(|part| matches!(part, b"" | b"." | b".."))
        {
            "it is absolute or has an empty, \".\" or \"..\" component"
        } else {
            return Ok(RelativePath(path));
        };
        Err(Error::new(
            "path-invalid",
            format!("\"{}\" is not a path inside a data directory", escape(&path)),
        )
        .detail(format!("As a relative path, {reason}.")))
    }

    /// The bytes, components separated by `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path below `directory`. Symbolic links are the caller's concern.
    pub fn under(&self, directory: &Path) -> PathBuf {
        directory.join(OsStr::from_bytes(&self.0))
    }

    /// The last component.
    pub fn file_name(&self) -> &[u8] {
        self.0.rsplit(|byte| *byte == b'/').next().unwrap_or(&self.0)
    }

    /// The path without its last component, if it has more than one.
    pub fn parent(&self) -> Option<RelativePath> {
        let end = self.0.iter().rposition(|byte| *byte == b'/')?;
        self.0.get(..end).map(|parent| RelativePath(parent.to_vec()))
    }

    /// Whether the path is `directory` or lies below it.
    pub fn is_within(&self, directory: &[u8]) -> bool {
        self.0
            .strip_prefix(directory)
            .is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
    }
}

/// Printable text: what is not printable ASCII, and the backslash, as `\xNN`.
fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}

/// The inverse of [`escape`].
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        match rest {
            [b'\\', tail @ ..] => {
                bytes.push(b'\\');
                rest = tail;
            }
            [b'x', high, low, tail @ ..] => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                bytes.push((digit(*high)? * 16 + digit(*low)?) as u8);
                rest = tail;
            }
            _ => return None,
        }
    }
    Some(bytes)
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0))
    }
}

impl fmt::Debug for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl AsRef<[u8]> for RelativePath {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for RelativePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&escape(&self.0))
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for RelativePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let bytes = if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            unescape(&text).ok_or_else(|| D::Error::custom("a path with a bad escape"))?
        } else {
            crate::bytes::deserialize(deserializer)?
        };
        RelativePath::new(bytes).map_err(|error| D::Error::custom(error.message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_that_leaves_the_directory_is_refused() {
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "base/../../x",
            "base//5",
            "base/",
            "./x",
            "base/.",
            "a\0b",
        ] {
            assert_eq!(
                RelativePath::new(bad).unwrap_err().code(),
                "path-invalid",
                "{bad:?}"
            );
        }
        assert!(RelativePath::new("base/5/16384_fsm.1").is_ok());
        assert!(RelativePath::new(vec![b'a'; PATH_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn a_path_knows_what_it_lies_within() {
        let path = RelativePath::new("pg_tblspc/16390/PG_15").unwrap();
        assert!(path.is_within(b"pg_tblspc/16390"));
        assert!(!path.is_within(b"pg_tblspc/163"));
        assert_eq!(path.file_name(), b"PG_15");
        assert_eq!(path.parent().unwrap().as_bytes(), b"pg_tblspc/16390");
    }

    proptest! {
        #[test]
        fn every_path_survives_json_and_postcard(bytes in proptest::collection::vec(1u8..=255, 1..40)) {
            if let Ok(path) = RelativePath::new(bytes) {
                let json = serde_json::to_string(&path).unwrap();
                prop_assert_eq!(&serde_json::from_str::<RelativePath>(&json).unwrap(), &path);
                let binary = postcard::to_stdvec(&path).unwrap();
                prop_assert_eq!(&postcard::from_bytes::<RelativePath>(&binary).unwrap(), &path);
            }
        }
    }
}
