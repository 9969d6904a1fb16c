//! Stores: a flat name space of immutable objects.
//!
//! Every store keeps, and [`conformance`] checks: an object under its name is complete and never changes;
//! creating a name that exists changes nothing and says so; what was created is durable when the call
//! returns; a listing shows every object created before it began. Names: at most 400 bytes of
//! `[A-Za-z0-9._/-]`, without empty, `.` or `..` components.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use diagnostic::{Error, Result};
use serde::{Deserialize, Serialize};

mod conformance;
mod local_folder;
mod overlay;
mod s3;

pub use conformance::{conformance, conformance_but_races};
pub use local_folder::LocalFolder;
pub use overlay::OverlayStore;
pub(crate) use s3::read_answers;
pub use s3::{PART_BYTES, S3Credentials, S3Keys, S3Options, S3Store, SINGLE_PUT_BYTES_MAX};

/// The longest name of an object, in bytes.
pub const NAME_BYTES_MAX: usize = 400;

/// What a creation found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    Created,
    /// The name was taken; nothing has changed.
    Exists,
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// By the store's clock.
    pub modified: jiff::Timestamp,
}

/// Where objects are kept. Errors: `store-unreachable`, `store-denied`, `store-full`, `object-missing`,
/// `object-name`, `object-damaged` (shorter than the range that was asked for); of a store behind a network also
/// `store-throttled`, `store-failing`, `store-credentials`, `store-bucket-missing`, `store-region`,
/// `store-refused`. Each of these but `object-missing` means: could not look.
pub trait Store: Send + Sync {
    /// For people: `file:///var/lib/pgproof`.
    fn url(&self) -> String;

    /// Creates an object in one request; durable when it returns.
    fn put_new(&self, name: &str, content: &[u8]) -> Result<Put>;

    /// Creates an object piece by piece; it appears, whole and durable, with [`ObjectWriter::finish`].
    fn writer(&self, name: &str) -> Result<Box<dyn ObjectWriter>>;

    /// A whole object of at most 1 GiB, or `None` if there is none.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>>;

    /// Exactly these bytes. Errors: `object-missing`, and `object-damaged` if the object ends before.
    fn read_range(&self, name: &str, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read_range_into(name, offset, &mut bytes)?;
        Ok(bytes)
    }

    /// The same into a buffer of the caller's.
    fn read_range_into(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Makes sure that an object which was found here is durable, with everything beside it: whoever created
    /// it may have died after its name appeared and before it was durable. Nothing to a store that shows
    /// durable objects only.
    fn make_durable(&self, _name: &str) -> Result<()> {
        Ok(())
    }

    /// Bytes of an object, or `None` if there is none.
    fn size(&self, name: &str) -> Result<Option<u64>>;

    /// All objects whose names begin with `prefix`, sorted by name.
    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>>;

    /// The different components that follow `prefix` (empty, or ending in `/`) and are followed by `/`,
    /// sorted.
    fn list_folders(&self, prefix: &str) -> Result<Vec<String>>;

    /// Removes an object; one that is not there is no error.
    fn delete(&self, name: &str) -> Result<()>;

    /// What was asked of this store so far.
    fn requests(&self) -> RequestCounts;

    /// Removes what interrupted creations left before this moment (by the store's clock); how many there
    /// were.
    fn sweep(&self, _before: jiff::Timestamp) -> Result<u64> {
        Ok(0)
    }

    /// Puts a little room by, where that is not done yet: for the small objects without which nothing may be deleted.
    /// Nothing to a store that does not fill up.
    fn keep_reserve(&self) -> Result<()> {
        Ok(())
    }

    /// Gives that room up; whether there was any.
    fn release_reserve(&self) -> Result<bool> {
        Ok(false)
    }

    /// Says what the repository's probe found: a store that ignores the condition of a creation is asked before
    /// each one whether the name is taken. Nothing to a store that cannot ignore it.
    fn set_conditional_creation(&self, _works: bool) {}

    /// Requests cross a network: each costs a round trip, and perhaps money.
    fn is_remote(&self) -> bool {
        false
    }

    /// How many bytes one range request should fetch when neighbours are wanted too.
    fn range_bytes(&self) -> usize {
        4 << 20
    }
}

impl fmt::Debug for dyn Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.url())
    }
}

/// An object that is being written. Dropped without [`finish`](ObjectWriter::finish), it never existed.
pub trait ObjectWriter: Write + Send {
    /// Bytes written so far.
    fn position(&self) -> u64;

    /// Makes the object durable and visible.
    fn finish(self: Box<Self>) -> Result<Put>;
}

/// Requests made of a store, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RequestCounts {
    pub put: u64,
    pub get: u64,
    pub head: u64,
    pub list: u64,
    pub delete: u64,
    pub bytes_written: u64,
    pub bytes_read: u64,
}

impl RequestCounts {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.put + self.get + self.head + self.list + self.delete
    }

    /// What was asked since `earlier`.
    pub fn since(&self, earlier: &RequestCounts) -> RequestCounts {
        RequestCounts {
            put: self.put.saturating_sub(earlier.put),
            get: self.get.saturating_sub(earlier.get),
            head: self.head.saturating_sub(earlier.head),
            list: self.list.saturating_sub(earlier.list),
            delete: self.delete.saturating_sub(earlier.delete),
            bytes_written: self.bytes_written.saturating_sub(earlier.bytes_written),
            bytes_read: self.bytes_read.saturating_sub(earlier.bytes_read),
        }
    }
}

/// The counters behind [`RequestCounts`].
#[derive(Debug, Default)]
pub(crate) struct Requests {
    pub(crate) put: AtomicU64,
    pub(crate) get: AtomicU64,
    pub(crate) head: AtomicU64,
    pub(crate) list: AtomicU64,
    pub(crate) delete: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
}

impl Requests {
    pub(crate) fn count(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> RequestCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RequestCounts {
            put: get(&self.put),
            get: get(&self.get),
            head: get(&self.head),
            list: get(&self.list),
            delete: get(&self.delete),
            bytes_written: get(&self.bytes_written),
            bytes_read: get(&self.bytes_read),
        }
    }
}

/// Refuses what cannot be an object's name. Error: `object-name`.
pub fn check_name(name: &str) -> Result<()> {
    let component = |part: &str| !matches!(part, "" | "." | "..");
    let byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'/' | b'-');
    if name.len() <= NAME_BYTES_MAX && name.bytes().all(byte) && name.split('/').all(component) {
        return Ok(());
    }
    Err(Error::new(
        "object-name",
        format!("\"{}\" cannot be an object's name", name.escape_default()),
    ))
}

/// Refuses what cannot begin an object's name. Error: `object-name`.
pub(crate) fn check_prefix(prefix: &str) -> Result<()> {
    check_name(&format!("{prefix}x"))
}

fn missing(name: &str) -> Error {
    Error::new(
        "object-missing",
        format!("object \"{name}\" is not in the repository"),
    )
}

/// Opens the local folder behind a URL: `file://` or a plain absolute path ([`S3Store`] has options beside its
/// URL). Errors: `store-url`, `store-unreachable`.
pub fn open_store(url: &str) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(LocalFolder::open(local_path(url)?)?))
}

/// Makes an empty local folder behind a URL, if there is none. Errors as [`open_store`].
pub fn create_store(url: &str) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(LocalFolder::create(local_path(url)?)?))
}

fn local_path(url: &str) -> Result<&Path> {
    let path = match url.strip_prefix("file://") {
        Some(path) => path,
        None if url.starts_with('/') => url,
        None => "",
    };
    if path.starts_with('/') {
        return Ok(Path::new(path));
    }
    Err(Error::usage(
        "store-url",
        format!("\"{}\" is not a repository's URL", url.escape_debug()),
    )
    .detail("A URL of a local folder is file:// followed by an absolute path.")
    .hint("Write it as file:///var/lib/pgproof."))
}
