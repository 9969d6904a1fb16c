//! A repository, and what it holds of one cluster: where every other file of this room begins.
//! `docs/format.md` section 1.
//!
//! Invariants: `repository.json` is written when the keyring of its maker is in place, so a repository that
//! is there can be opened; whether the store creates a name once only was probed, and is never assumed.

use std::fmt;
use std::sync::Arc;

use diagnostic::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::checked_json;
use crate::container::{self, Kind, Method};
use crate::identity::Identity;
use crate::keys::{self, Keychain, Keyring, RecipientKey, Role};
use crate::names::{ClusterNames, check_cluster_name};
use crate::store::{Put, Store};

const FORMAT_VERSION: u32 = 1;
const REPOSITORY: &str = "repository.json";
/// How often, and by how many at once, the probe creates one name.
const PROBE_ROUNDS: u32 = 3;
const PROBE_CREATORS: u8 = 8;
/// Where creation is not conditional, two that write one name at once find out after this time at the latest
/// which of them the store has kept.
const SETTLE: std::time::Duration = std::time::Duration::from_secs(2);
/// Plain bytes of a record, statement or evidence file, at most.
pub(crate) const SMALL_BYTES_MAX: usize = 256 << 20;

/// A repository, opened with a recipient's key. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    header: RepositoryHeader,
    id: [u8; 16],
    identity: Identity,
    keychain: Keychain,
}

/// `repository.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RepositoryHeader {
    format_version: u32,
    repository_id: String,
    created_at: jiff::Timestamp,
    conditional_creation: bool,
}

impl RepositoryHeader {
    /// Errors: `object-damaged`, `repository-format`.
    pub(crate) fn decode(text: &[u8]) -> Result<Self> {
        let header: RepositoryHeader = checked_json::decode(REPOSITORY, text)?;
        if header.format_version != FORMAT_VERSION {
            return Err(container::newer_format(REPOSITORY, header.format_version));
        }
        Ok(header)
    }

    /// What can be known without it; conditional creation is not assumed. Error: the one given, if no keyring
    /// says more.
    fn from_keyrings(store: &dyn Store, damage: Error) -> Result<Self> {
        for object in store.list("keys/")? {
            if let Some(content) = store.read(&object.name)?
                && let Ok(id) = keys::repository_of(&object.name, &content)
            {
                return Ok(RepositoryHeader {
                    format_version: FORMAT_VERSION,
                    repository_id: crate::hex::encode(&id),
                    created_at: jiff::Timestamp::UNIX_EPOCH,
                    conditional_creation: false,
                });
            }
        }
        Err(damage)
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Repository({}, {:?})", self.inner.store.url(), self.role())
    }
}

impl Repository {
    /// Makes a repository in an empty store; its maker is a reader. Errors: `repository-exists`, and the
    /// store's.
    pub fn create(store: Arc<dyn Store>, key: &RecipientKey, now: jiff::Timestamp) -> Result<Self> {
        let exists = || {
            Error::new(
                "repository-exists",
                format!("there is a repository at {} already", store.url()),
            )
            .hint("Use it, or choose another place.")
        };
        if store.size(REPOSITORY)?.is_some() {
            return Err(exists());
        }
        let conditional_creation = probe_conditional_creation(&*store)?;
        store.set_conditional_creation(conditional_creation);
        let mut id = [0; 16];
        keys::random(&mut id)?;
        let mut identity_key = zeroize::Zeroizing::new([0; 32]);
        keys::random(&mut *identity_key)?;
        let keyring = Keyring::generate(id, 1, *identity_key)?;
        let (object, content) = keyring.seal(key)?;
        if store.put_new(&object, &content)? == Put::Exists {
            // Left by a creation that was interrupted before its repository.json.
            store.delete(&object)?;
            store.put_new(&object, &content)?;
        }
        let header = RepositoryHeader {
            format_version: FORMAT_VERSION,
            repository_id: crate::hex::encode(&id),
            created_at: now,
            conditional_creation,
        };
        let text = checked_json::encode(REPOSITORY, &header)?;
        if store.put_new(REPOSITORY, &text)? == Put::Exists {
            return Err(exists());
        }
        Repository::open(store, key)
    }

    /// Is there a repository in this store? Errors: the store's.
    pub fn exists(store: &dyn Store) -> Result<bool> {
        Ok(store.size(REPOSITORY)?.is_some())
    }

    /// Errors: `repository-missing`, `repository-format`, `key-wrong`, `object-damaged`, and the store's.
    pub fn open(store: Arc<dyn Store>, key: &RecipientKey) -> Result<Self> {
        let text = store.read(REPOSITORY)?.ok_or_else(|| {
            Error::new(
                "repository-missing",
                format!("there is no repository at {}", store.url()),
            )
            .hint("Run `pgproof init` to make one, or correct the URL.")
        })?;
        // Damaged, it is a finding of `verify` and no obstacle: the keyrings say the same, and authenticate it.
        let header = match RepositoryHeader::decode(&text) {
            Err(error) if error.code() == "object-damaged" => {
                RepositoryHeader::from_keyrings(&*store, error)?
            }
            decoded => decoded?,
        };
        store.set_conditional_creation(header.conditional_creation);
        let id: [u8; 16] = crate::hex::decode(&header.repository_id)
            .ok_or_else(|| container::damaged(REPOSITORY, "it has no identifier"))?;
        let mut keyrings = Vec::new();
        for folder in store.list_folders("keys/")? {
            let Some(epoch) = crate::names::parse_counter(&folder) else {
                continue;
            };
            let objects = match keys::candidate(epoch, key) {
                Some(object) => vec![object],
                None => store
                    .list(&format!("keys/{folder}/"))?
                    .into_iter()
                    .map(|object| object.name)
                    .collect(),
            };
            for object in objects {
                if let Some(content) = store.read(&object)?
                    && let Some(keyring) = keys::open_keyring(&object, &content, &id, key)?
                {
                    keyrings.push(keyring);
                    break;
                }
            }
        }
        let keychain = Keychain::new(keyrings).ok_or_else(|| {
            Error::new(
                "key-wrong",
                format!("this key does not open the repository at {}", store.url()),
            )
            .detail("No keyring was sealed for it.")
            .hint("Use the key that the repository was made with, or have that key authorize this one.")
        })?;
        let identity = Identity::new(keychain.current().identity_key);
        Ok(Repository {
            inner: Arc::new(Inner {
                store,
                header,
                id,
                identity,
                keychain,
            }),
        })
    }

    /// The same repository as another store shows it: a clone of its own ([`crate::OverlayStore`]).
    pub fn over(&self, store: Arc<dyn Store>) -> Repository {
        Repository {
            inner: Arc::new(Inner {
                store,
                header: self.inner.header.clone(),
                id: self.inner.id,
                identity: self.inner.identity.clone(),
                keychain: self.inner.keychain.clone(),
            }),
        }
    }

    /// Looks at what stands outside of containers: each object's name, size, and what is wrong with it.
    pub(crate) fn look_at_plain_objects(&self) -> Result<Vec<(String, u64, Result<()>)>> {
        let store = &self.inner.store;
        let mut looked = Vec::new();
        let text = store.read(REPOSITORY)?.unwrap_or_default();
        let header = RepositoryHeader::decode(&text).map(drop);
        looked.push((REPOSITORY.to_string(), text.len() as u64, header));
        for object in store.list("keys/")? {
            let Some(content) = store.read(&object.name)? else {
                continue;
            };
            let belongs =
                keys::repository_of(&object.name, &content).and_then(|id| match id == self.inner.id {
                    true => Ok(()),
                    false => Err(container::damaged(
                        &object.name,
                        "it belongs to another repository",
                    )),
                });
            looked.push((object.name, content.len() as u64, belongs));
        }
        Ok(looked)
    }

    /// Seals the keyrings of all epochs that this key opens for one more recipient.
    /// Errors: `key-role` if a writer wants to make a reader.
    pub fn authorize(&self, key: &RecipientKey, role: Role) -> Result<()> {
        for keyring in self.inner.keychain.all() {
            let (object, content) = keyring.restricted(role)?.seal(key)?;
            if self.inner.store.put_new(&object, &content)? == Put::Exists {
                let there = self.inner.store.read(&object)?.unwrap_or_default();
                let there = keys::open_keyring(&object, &there, &self.inner.id, key)?;
                if there.is_some_and(|there| there.role != role) {
                    return Err(Error::new(
                        "key-exists",
                        "this key was authorized already, with another role",
                    )
                    .hint("Generate another key for this role."));
                }
            }
        }
        Ok(())
    }

    /// Begins a new epoch: new row and map keys for what is written from now on, sealed for these recipients.
    /// What was written stays readable for those who could read it. Reopen the repository to use the new
    /// keys. Errors: `key-role`, `key-epoch` if another rotation was faster.
    pub fn rotate(&self, recipients: &[(&RecipientKey, Role)]) -> Result<u32> {
        let current = self.inner.keychain.current();
        current.private()?;
        let epoch = current.epoch + 1;
        let keyring = Keyring::generate(self.inner.id, epoch, current.identity_key)?;
        if !self.inner.store.list(&format!("keys/{epoch:08}/"))?.is_empty() {
            return Err(
                Error::new("key-epoch", format!("epoch {epoch} has begun already"))
                    .hint("Run the command again."),
            );
        }
        for (recipient, role) in recipients {
            let (object, content) = keyring.restricted(*role)?.seal(recipient)?;
            if self.inner.store.put_new(&object, &content)? == Put::Exists {
                return Err(Error::new(
                    "key-epoch",
                    format!("epoch {epoch} was begun by somebody else at once"),
                ));
            }
        }
        Ok(epoch)
    }

    /// The repository's identifier: 32 hexadecimal digits.
    pub fn id(&self) -> String {
        self.inner.header.repository_id.clone()
    }

    pub fn created_at(&self) -> jiff::Timestamp {
        self.inner.header.created_at
    }

    /// What this key may do.
    pub fn role(&self) -> Role {
        self.inner.keychain.current().role
    }

    /// The epoch whose keys seal what is written now.
    pub fn epoch(&self) -> u32 {
        self.inner.keychain.current().epoch
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    /// Whether what was opened can be looked at still. A folder whose file system was unmounted meanwhile lists as
    /// empty: whoever is about to say "it is not there" asks this first. Error: `repository-missing`.
    pub fn still_there(&self) -> Result<()> {
        match self.inner.store.size(REPOSITORY)? {
            Some(_) => Ok(()),
            None => Err(Error::new(
                "repository-missing",
                format!(
                    "the repository at {} has gone since it was opened",
                    self.inner.store.url()
                ),
            )
            .hint("See whether its file system is mounted.")),
        }
    }

    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    pub(crate) fn id_bytes(&self) -> &[u8; 16] {
        &self.inner.id
    }

    pub(crate) fn keychain(&self) -> &Keychain {
        &self.inner.keychain
    }

    /// What the probe found when the repository was made: a name can be created once only. Without it,
    /// conflicts between several writers are detected after the fact, not prevented.
    pub fn conditional_creation(&self) -> bool {
        self.inner.header.conditional_creation
    }

    /// Error: `cluster-name`.
    pub fn cluster(&self, name: &str) -> Result<ClusterRepository> {
        check_cluster_name(name)?;
        Ok(ClusterRepository {
            inner: Arc::new(ClusterInner {
                repository: self.clone(),
                name: name.to_string(),
                names: ClusterNames::new(name),
            }),
        })
    }

    /// The clusters that have any object, sorted.
    pub fn clusters(&self) -> Result<Vec<String>> {
        let mut names = self.inner.store.list_folders("clusters/")?;
        names.retain(|name| check_cluster_name(name).is_ok());
        Ok(names)
    }
}

/// Creates a name twice, then names by several creators at once. A store that ignores the condition says
/// "created" both times; one that looks and then writes says so to several of those that come at once.
fn probe_conditional_creation(store: &dyn Store) -> Result<bool> {
    let mut random = [0; 8];
    keys::random(&mut random)?;
    let name = format!("probe/{}", crate::hex::encode(&random));
    store.put_new(&name, b"first")?;
    let second = store.put_new(&name, b"second")?;
    let content = store.read(&name)?;
    store.delete(&name)?;
    if second != Put::Exists || content.as_deref() != Some(b"first") {
        return Ok(false);
    }
    for round in 0..PROBE_ROUNDS {
        let name = format!("{name}-{round}");
        let puts: Result<Vec<Put>> = std::thread::scope(|scope| {
            let creators: Vec<_> = (0..PROBE_CREATORS)
                .map(|creator| {
                    let name = &name;
                    scope.spawn(move || store.put_new(name, &[creator; 64]))
                })
                .collect();
            let ended = creators.into_iter().map(|creator| {
                let panicked = |_| Error::new("internal", "a thread of the probe ended by a panic");
                creator.join().map_err(panicked)?
            });
            ended.collect()
        });
        store.delete(&name)?;
        if puts?.iter().filter(|put| **put == Put::Created).count() != 1 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a repository holds of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct ClusterRepository {
    inner: Arc<ClusterInner>,
}

struct ClusterInner {
    repository: Repository,
    name: String,
    names: ClusterNames,
}

impl fmt::Debug for ClusterRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ClusterRepository({}, {})",
            self.inner.repository.store().url(),
            self.inner.name
        )
    }
}

impl ClusterRepository {
    pub fn repository(&self) -> &Repository {
        &self.inner.repository
    }

    pub fn name(&self) -> &str {
        &self.inner.name
    }

    pub fn identity(&self) -> &Identity {
        self.inner.repository.identity()
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        self.inner.repository.store()
    }

    pub(crate) fn names(&self) -> &ClusterNames {
        &self.inner.names
    }

    pub(crate) fn keychain(&self) -> &Keychain {
        self.inner.repository.keychain()
    }

    /// Writes a record, statement or evidence file: one sealed frame, one request.
    pub(crate) fn put_small(&self, kind: Kind, name: &str, plain: &[u8]) -> Result<Put> {
        if plain.len() > SMALL_BYTES_MAX {
            return Err(Error::new(
                "object-too-large",
                format!("object \"{name}\" would be too large"),
            )
            .detail(format!(
                "It would have {} bytes; at most {SMALL_BYTES_MAX} are kept.",
                plain.len()
            )));
        }
        let object = container::seal_small(self.keychain(), kind, Method::MapKey, name, plain)?;
        let put = self.store().put_new(name, &object)?;
        if put == Put::Exists || kind != Kind::Statement || self.repository().conditional_creation() {
            return Ok(put);
        }
        // Names of statements are what several may want at once. Sealed bytes are never the same twice, so what
        // stands there after the others have had their time tells who is first.
        std::thread::sleep(SETTLE);
        Ok(match self.store().read(name)? {
            Some(there) if there == object => Put::Created,
            _ => Put::Exists,
        })
    }

    /// Reads one of those; `None` if there is none.
    pub(crate) fn get_small(&self, kind: Kind, name: &str) -> Result<Option<Vec<u8>>> {
        match self.store().read(name)? {
            Some(object) => {
                container::open_small(self.keychain(), kind, name, object, SMALL_BYTES_MAX).map(Some)
            }
            None => Ok(None),
        }
    }

    /// A JSON statement.
    pub(crate) fn put_statement<T: Serialize>(&self, kind: Kind, name: &str, statement: &T) -> Result<Put> {
        let text = serde_json::to_vec(statement).map_err(|error| {
            Error::new("statement-encode", format!("cannot encode object \"{name}\"")).caused_by(&error)
        })?;
        self.put_small(kind, name, &text)
    }

    pub(crate) fn get_statement<T: for<'de> Deserialize<'de>>(
        &self,
        kind: Kind,
        name: &str,
    ) -> Result<Option<T>> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Some(text) = self.get_small(kind, name)? else {
            return Ok(None);
        };
        match serde_json::from_slice(&text) {
            Ok(statement) => Ok(Some(statement)),
            Err(error) => match serde_json::from_slice::<Versioned>(&text) {
                Ok(Versioned { version }) if version > 1 => Err(container::newer_format(name, version)),
                _ => Err(container::damaged(
                    name,
                    &format!("it says nothing that can be understood: {error}"),
                )),
            },
        }
    }

    /// The number and name of the newest of the numbered statements below `prefix`.
    pub(crate) fn newest_numbered(&self, prefix: &str) -> Result<Option<(u32, String)>> {
        let objects = self.store().list(prefix)?;
        let numbered = objects.into_iter().filter_map(|object| {
            let number = crate::names::parse_counter(object.name.strip_prefix(prefix)?)?;
            Some((number, object.name))
        });
        Ok(numbered.max())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::LocalFolder;

    pub(crate) fn now() -> jiff::Timestamp {
        "2026-08-15T02:00:03Z".parse().unwrap()
    }

    /// A repository in a temporary folder, its key, and the folder.
    pub(crate) fn repository() -> (tempfile::TempDir, RecipientKey, Repository) {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalFolder::create(directory.path()).unwrap());
        let key = RecipientKey::generate().unwrap();
        let repository = Repository::create(store, &key, now()).unwrap();
        (directory, key, repository)
    }

    fn reopen(repository: &Repository, key: &RecipientKey) -> Result<Repository> {
        Repository::open(repository.store().clone(), key)
    }

    /// A store that says "created" and overwrites, as some that speak S3 do.
    struct Overwriting {
        folder: LocalFolder,
        /// It looks first, so that only those that come at once overwrite each other.
        looks: bool,
    }

    impl Store for Overwriting {
        fn url(&self) -> String {
            self.folder.url()
        }
        fn put_new(&self, name: &str, content: &[u8]) -> Result<Put> {
            if self.looks && self.folder.size(name)?.is_some() {
                return Ok(Put::Exists);
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
            // What stands there goes, however many come at once.
            while self.folder.put_new(name, content)? == Put::Exists {
                self.folder.delete(name)?;
            }
            Ok(Put::Created)
        }
        fn writer(&self, name: &str) -> Result<Box<dyn crate::store::ObjectWriter>> {
            self.folder.writer(name)
        }
        fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
            self.folder.read(name)
        }
        fn read_range_into(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
            self.folder.read_range_into(name, offset, buffer)
        }
        fn size(&self, name: &str) -> Result<Option<u64>> {
            self.folder.size(name)
        }
        fn list(&self, prefix: &str) -> Result<Vec<crate::store::ObjectInfo>> {
            self.folder.list(prefix)
        }
        fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
            self.folder.list_folders(prefix)
        }
        fn delete(&self, name: &str) -> Result<()> {
            self.folder.delete(name)
        }
        fn requests(&self) -> crate::store::RequestCounts {
            self.folder.requests()
        }
    }

    #[test]
    fn a_store_that_overwrites_is_found_out_and_of_many_writers_at_once_one_still_gets_the_timeline() {
        for looks in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let folder = LocalFolder::create(directory.path()).unwrap();
            let key = RecipientKey::generate().unwrap();
            let repository =
                Repository::create(Arc::new(Overwriting { folder, looks }), &key, now()).unwrap();
            assert!(!repository.conditional_creation(), "looks: {looks}");
            if !looks {
                // It needs a store that looks, as ours does when it is told of the probe's result.
                continue;
            }
            let cluster = repository.cluster("main").unwrap();
            let claim = |host: u32| {
                let writer = crate::Writer {
                    host_id: host.to_string(),
                    data_directory: "/srv".into(),
                };
                cluster.claim(
                    postgres::SystemIdentifier(7),
                    postgres::TimelineId(1),
                    &writer,
                    now(),
                )
            };
            let claim = &claim;
            let winners = std::thread::scope(|scope| {
                let writers: Vec<_> = (0..4)
                    .map(|host| scope.spawn(move || claim(host).is_ok()))
                    .collect();
                let ended = writers.into_iter().map(|writer| writer.join().unwrap());
                ended.filter(|won| *won).count()
            });
            assert_eq!(winners, 1);
        }
    }

    #[test]
    fn a_repository_opens_with_its_key_only() {
        let (_directory, key, repository) = repository();
        assert!(repository.conditional_creation());
        let again = reopen(&repository, &key).unwrap();
        assert_eq!((again.id(), again.role()), (repository.id(), Role::Reader));
        let other = RecipientKey::generate().unwrap();
        assert_eq!(reopen(&repository, &other).unwrap_err().code(), "key-wrong");
        let error = Repository::create(repository.store().clone(), &other, now()).unwrap_err();
        assert_eq!(error.code(), "repository-exists");
        assert_eq!(repository.store().list("probe/").unwrap(), []);
    }

    #[test]
    fn no_repository_and_a_newer_one_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(LocalFolder::create(directory.path()).unwrap());
        let key = RecipientKey::generate().unwrap();
        assert_eq!(
            Repository::open(store.clone(), &key).unwrap_err().code(),
            "repository-missing"
        );
        let newer = checked_json::encode(
            REPOSITORY,
            &serde_json::json!({
                "format_version": 2, "repository_id": "", "created_at": "2026-08-15T02:00:03Z",
                "conditional_creation": true,
            }),
        )
        .unwrap();
        store.put_new("repository.json", &newer).unwrap();
        assert_eq!(
            Repository::open(store, &key).unwrap_err().code(),
            "repository-format"
        );
    }

    #[test]
    fn a_creation_that_was_interrupted_can_be_repeated() {
        let (_directory, key, repository) = repository();
        repository.store().delete("repository.json").unwrap();
        let again = Repository::create(repository.store().clone(), &key, now()).unwrap();
        assert_ne!(again.id(), repository.id());
        assert!(reopen(&again, &key).is_ok());
    }

    #[test]
    fn an_authorized_writer_opens_and_a_rotation_keeps_what_was_written_readable() {
        let (_directory, key, repository) = repository();
        let writer = RecipientKey::generate().unwrap();
        repository.authorize(&writer, Role::Writer).unwrap();
        repository.authorize(&writer, Role::Writer).unwrap();
        assert_eq!(
            repository.authorize(&writer, Role::Reader).unwrap_err().code(),
            "key-exists"
        );
        assert_eq!(reopen(&repository, &writer).unwrap().role(), Role::Writer);
        let cluster = repository.cluster("main").unwrap();
        cluster
            .put_small(Kind::Statement, "clusters/main/pins/x/00000001", b"old")
            .unwrap();

        repository.rotate(&[(&key, Role::Reader)]).unwrap();
        let after = reopen(&repository, &key).unwrap();
        assert_eq!(after.epoch(), 2);
        let cluster = after.cluster("main").unwrap();
        let read = |cluster: &ClusterRepository, name: &str| cluster.get_small(Kind::Statement, name);
        assert_eq!(
            read(&cluster, "clusters/main/pins/x/00000001").unwrap().unwrap(),
            b"old"
        );
        cluster
            .put_small(Kind::Statement, "clusters/main/pins/x/00000002", b"new")
            .unwrap();
        assert_eq!(
            read(&cluster, "clusters/main/pins/x/00000002").unwrap().unwrap(),
            b"new"
        );
        // The writer was not given the new epoch: it can tell why it cannot read.
        let writer = reopen(&repository, &writer).unwrap().cluster("main").unwrap();
        assert_eq!(
            read(&writer, "clusters/main/pins/x/00000002").unwrap_err().code(),
            "key-epoch"
        );
    }

    #[test]
    fn every_flipped_byte_and_every_cut_of_a_small_object_is_noticed() {
        let (_directory, _key, repository) = repository();
        let cluster = repository.cluster("main").unwrap();
        let name = "clusters/main/pins/20260815T020003Z/00000001";
        cluster
            .put_small(
                Kind::Statement,
                name,
                b"{\"a statement\": \"with a little text, a little text\"}",
            )
            .unwrap();
        let whole = cluster.store().read(name).unwrap().unwrap();
        let open = |bytes: Vec<u8>| {
            container::open_small(
                repository.keychain(),
                Kind::Statement,
                name,
                bytes,
                SMALL_BYTES_MAX,
            )
        };
        assert!(open(whole.clone()).is_ok());
        for at in 0..whole.len() {
            for bit in [0, 7] {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                let error = open(bytes).expect_err("a flipped bit was not noticed");
                assert!(
                    matches!(error.code(), "object-damaged" | "repository-format"),
                    "{at}: {}",
                    error.code()
                );
            }
            let error = open(whole[..at].to_vec()).expect_err("a cut was not noticed");
            assert_eq!(error.code(), "object-damaged");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert_eq!(open(longer).unwrap_err().code(), "object-damaged");
    }

    #[test]
    fn an_object_under_a_foreign_name_or_kind_or_from_another_repository_is_refused() {
        let (_directory, _key, ours) = repository();
        let (_directory, _key, theirs) = repository();
        let name = "clusters/main/pins/20260815T020003Z/00000001";
        let other_name = "clusters/main/pins/20260815T020003Z/00000002";
        let seal = |repository: &Repository, kind| {
            container::seal_small(repository.keychain(), kind, Method::MapKey, name, b"text").unwrap()
        };
        let open = |kind, name: &str, bytes| container::open_small(ours.keychain(), kind, name, bytes, 100);
        assert_eq!(
            open(Kind::Statement, name, seal(&ours, Kind::Statement)).unwrap(),
            b"text"
        );
        for (kind, name, bytes) in [
            (Kind::Statement, other_name, seal(&ours, Kind::Statement)),
            (Kind::Record, name, seal(&ours, Kind::Statement)),
            (Kind::Statement, name, seal(&theirs, Kind::Statement)),
        ] {
            assert_eq!(open(kind, name, bytes).unwrap_err().code(), "object-damaged");
        }
        // A header that was made to say another kind, with a right CRC.
        let mut relabelled = seal(&ours, Kind::Statement);
        relabelled[10] = Kind::Record as u8;
        let crc = crc32c::crc32c(&relabelled[..124]);
        relabelled[124..128].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(
            open(Kind::Record, name, relabelled).unwrap_err().code(),
            "object-damaged"
        );
        // More than the caller is ready to hold.
        let bytes = seal(&ours, Kind::Statement);
        let error = container::open_small(ours.keychain(), Kind::Statement, name, bytes, 3).unwrap_err();
        assert_eq!(error.code(), "object-damaged");
    }
}
