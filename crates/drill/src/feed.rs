//! WAL for a copy, handed in through its folder: the copy asks for a file, this side answers.
//!
//! The quarantined server has neither the repository nor its keys, nor a network. Its `restore_command` is a
//! small script that writes down which file it wants and waits; a thread of ours fetches the file from the
//! repository, verifies it, and renames it into place. Invariants: a file appears complete under its name or
//! not at all; "absent" (exit 1) is answered only when the repository said so; everything else, a silence of
//! ours included, ends recovery (exit 126); the files that come after the last one asked for are fetched
//! ahead, a few at a time.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diagnostic::{Error, Result};
use postgres::{TimelineId, WalFile};

/// Files fetched ahead of what is asked for.
const AHEAD: u64 = 4;
/// Between two looks for questions.
const POLL: Duration = Duration::from_millis(5);
/// Seconds after which the script gives up on us.
const PATIENCE_SECONDS: u32 = 900;

/// What the feed answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// The file lies at the destination, complete; its bytes.
    Placed(u64),
    /// No copy of the repository has it, and nothing later.
    Absent,
}

/// Fetches one file of WAL by its name to a path that does not exist yet.
pub type Fetch<'a> = dyn Fn(&str, &Path) -> Result<Fetched> + Sync + 'a;

/// What was handed over.
#[derive(Debug, Clone, Default)]
pub struct FeedRecord {
    /// Segments that the server asked for and got, by name.
    pub segments: BTreeSet<String>,
    /// Bytes handed over for questions, counted again when a later start asks again.
    pub bytes: u64,
    /// Names for which the answer was "absent".
    pub absent: BTreeSet<String>,
    /// The first failure, with the name that was asked for.
    pub failure: Option<(String, Error)>,
}

/// The folder's side of a feed.
#[derive(Debug, Clone)]
pub struct Feed {
    folder: PathBuf,
    segment_size: u32,
    owner: Option<(u32, u32)>,
    record: Arc<Mutex<FeedRecord>>,
}

impl Feed {
    /// Makes the feed's folder and script. `owner`: whom they belong to, when this is root.
    pub fn create(folder: &Path, segment_size: u32, owner: Option<(u32, u32)>) -> Result<Feed> {
        let feed = Feed {
            folder: folder.into(),
            segment_size,
            owner,
            record: Arc::default(),
        };
        for part in ["", "wanted", "ready", "absent", "failed", "part"] {
            let path = feed.folder.join(part);
            std::fs::create_dir_all(&path).map_err(|error| io("make the folder", &path, &error))?;
            feed.give(&path, 0o700)?;
        }
        let script = feed.folder.join("fetch.sh");
        std::fs::write(
            &script,
            SCRIPT.replace("@PATIENCE@", &(PATIENCE_SECONDS * 50).to_string()),
        )
        .map_err(|error| io("write", &script, &error))?;
        feed.give(&script, 0o700)?;
        Ok(feed)
    }

    /// The text of `restore_command`. Error: `path-unsupported` for a folder whose name a shell would not
    /// leave alone.
    pub fn restore_command(&self) -> Result<String> {
        let folder = self
            .folder
            .to_str()
            .filter(|text| !text.contains(['\'', '%', '\n']))
            .ok_or_else(|| {
                Error::new(
                    "path-unsupported",
                    format!("{:?} cannot be put into restore_command", self.folder),
                )
                .hint("Choose a folder for the copy whose path has no quotes and no per cent signs.")
            })?;
        Ok(format!("/bin/sh '{folder}/fetch.sh' '{folder}' '%f' '%p'"))
    }

    /// Bytes of a segment.
    pub fn segment_size(&self) -> u32 {
        self.segment_size
    }

    /// What was handed over so far.
    pub fn record(&self) -> FeedRecord {
        self.record
            .lock()
            .map(|record| record.clone())
            .unwrap_or_default()
    }

    /// Answers until `stop` is set. Runs in a thread of its own.
    pub fn serve(&self, fetch: &Fetch<'_>, last: Option<(TimelineId, u64)>, stop: &AtomicBool) {
        let mut ahead: Option<(TimelineId, u64, u64)> = None;
        while !stop.load(Ordering::Relaxed) {
            let mut asked = false;
            for name in self.wanted() {
                asked = true;
                self.answer(fetch, &name);
                if let Some(WalFile::Segment { timeline, number }) = WalFile::parse(&name, self.segment_size)
                {
                    ahead = Some((timeline, number + 1, number + AHEAD));
                }
            }
            if asked {
                continue;
            }
            if let Some((timeline, next, until)) = ahead {
                let wanted =
                    last.is_none_or(|(last_timeline, last)| last_timeline == timeline && next <= last);
                ahead = (next < until).then_some((timeline, next + 1, until));
                if wanted {
                    self.fetch_ahead(fetch, timeline, next);
                    continue;
                }
            }
            std::thread::sleep(POLL);
        }
    }

    /// Names that the script waits for.
    fn wanted(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.folder.join("wanted")) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    fn answer(&self, fetch: &Fetch<'_>, name: &str) {
        let ready = self.folder.join("ready").join(name);
        // The question comes from inside the quarantine: only names that PostgreSQL asks for are looked up.
        let known = WalFile::parse(name, self.segment_size).is_some();
        let result = if ready.exists() {
            Ok(Fetched::Placed(
                std::fs::metadata(&ready)
                    .map(|metadata| metadata.len())
                    .unwrap_or(0),
            ))
        } else if known {
            self.place(fetch, name)
        } else {
            Ok(Fetched::Absent)
        };
        let answer = match &result {
            Ok(Fetched::Placed(_)) => None,
            Ok(Fetched::Absent) => Some("absent"),
            Err(_) => Some("failed"),
        };
        if let Ok(mut record) = self.record.lock() {
            match &result {
                Ok(Fetched::Placed(bytes)) => {
                    record.bytes += bytes;
                    if let Some(WalFile::Segment { .. }) = WalFile::parse(name, self.segment_size) {
                        record.segments.insert(name.to_string());
                    }
                }
                Ok(Fetched::Absent) => {
                    record.absent.insert(name.to_string());
                }
                Err(error) => {
                    record
                        .failure
                        .get_or_insert_with(|| (name.to_string(), error.clone()));
                }
            }
        }
        if let Some(answer) = answer {
            let path = self.folder.join(answer).join(name);
            // If even this cannot be written the script gives up by itself, with 126.
            let _ = std::fs::write(&path, b"")
                .and_then(|()| self.give(&path, 0o600).map_err(std::io::Error::other));
        }
        let _ = std::fs::remove_file(self.folder.join("wanted").join(name));
    }

    fn fetch_ahead(&self, fetch: &Fetch<'_>, timeline: TimelineId, number: u64) {
        let name = postgres::segment_name(timeline, number, self.segment_size);
        if !self.folder.join("ready").join(&name).exists() {
            // What cannot be fetched ahead is fetched, and reported, when it is asked for.
            let _ = self.place(fetch, &name);
        }
    }

    /// Fetches under a temporary name, hands the file to the server's account, and renames it into place.
    fn place(&self, fetch: &Fetch<'_>, name: &str) -> Result<Fetched> {
        let part = self.folder.join("part").join(name);
        let _ = std::fs::remove_file(&part);
        let fetched = fetch(name, &part)?;
        if let Fetched::Placed(_) = fetched {
            self.give(&part, 0o600)?;
            let ready = self.folder.join("ready").join(name);
            std::fs::rename(&part, &ready).map_err(|error| io("rename a file to", &ready, &error))?;
        }
        Ok(fetched)
    }

    fn give(&self, path: &Path, mode: u32) -> Result<()> {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
            .map_err(|error| io("change the mode of", path, &error))?;
        if let Some((uid, gid)) = self.owner {
            std::os::unix::fs::chown(path, Some(uid), Some(gid))
                .map_err(|error| io("change the owner of", path, &error))?;
        }
        Ok(())
    }
}

fn io(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::io("copy-folder", format!("cannot {what} {}", path.display()), error)
}

/// `$1` the feed's folder, `$2` the file's name, `$3` where the server wants it (below its data directory).
const SCRIPT: &str = r#"#!/bin/sh
# Asks pgproof for one file of WAL and waits. Exit codes: 0 placed, 1 absent everywhere, 126 anything else.
feed=$1
name=$2
ready=$feed/ready/$name
if [ ! -e "$ready" ]; then
    rm -f "$feed/absent/$name" "$feed/failed/$name"
    # Not a redirection: a failing one would end the shell with 2, which means "absent" to the server.
    touch "$feed/wanted/$name" || exit 126
fi
waited=0
while [ "$waited" -lt @PATIENCE@ ]; do
    if [ -e "$ready" ]; then
        mv -f "$ready" "$3" || exit 126
        exit 0
    fi
    if [ -e "$feed/failed/$name" ]; then
        exit 126
    fi
    if [ -e "$feed/absent/$name" ]; then
        exit 1
    fi
    sleep 0.02 || exit 126
    waited=$((waited + 1))
done
exit 126
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const SEGMENT: u32 = 1 << 20;

    fn ask(feed: &Feed, name: &str, to: &Path) -> Option<i32> {
        let command = feed
            .restore_command()
            .expect("a command")
            .replace("%f", name)
            .replace("%p", to.to_str().expect("a path in UTF-8"));
        Command::new("/bin/sh")
            .arg("-c")
            .arg(command)
            .status()
            .expect("a shell")
            .code()
    }

    #[test]
    fn the_script_tells_absent_from_could_not_look() {
        let folder = tempfile::tempdir().expect("a folder");
        let feed = Feed::create(&folder.path().join("feed"), SEGMENT, None).expect("a feed");
        let stop = AtomicBool::new(false);
        let fetch = |name: &str, to: &Path| {
            if name == "000000010000000000000003" {
                return Err(Error::new("object-damaged", "damaged"));
            }
            if name == "000000010000000000000001" || name == "000000010000000000000002" {
                std::fs::write(to, name).expect("writes");
                return Ok(Fetched::Placed(name.len() as u64));
            }
            Ok(Fetched::Absent)
        };
        std::thread::scope(|scope| {
            scope.spawn(|| feed.serve(&fetch, None, &stop));
            let to = folder.path().join("RECOVERYXLOG");
            let first = ask(&feed, "000000010000000000000001", &to);
            let placed = std::fs::read_to_string(&to);
            // The same file again, as a second start asks.
            let again = ask(&feed, "000000010000000000000001", &to);
            let absent = ask(&feed, "00000002.history", &to);
            let damaged = ask(&feed, "000000010000000000000003", &to);
            let outside = ask(&feed, "../../etc/passwd", &to);
            // Before anything is judged: a thread that goes on would keep a failure from being told.
            stop.store(true, Ordering::Relaxed);
            assert_eq!(
                (first, again, absent, damaged),
                (Some(0), Some(0), Some(1), Some(126))
            );
            assert_eq!(placed.expect("placed"), "000000010000000000000001");
            assert_eq!(outside, Some(126), "no such folder for a question");
        });
        let record = feed.record();
        assert_eq!(record.segments.len(), 1);
        assert_eq!(
            record.failure.map(|(name, error)| (name, error.code())),
            Some(("000000010000000000000003".into(), "object-damaged"))
        );
        assert!(record.absent.contains("00000002.history"));
    }

    #[test]
    fn a_failed_rename_is_never_absent() {
        let folder = tempfile::tempdir().expect("a folder");
        let feed = Feed::create(&folder.path().join("feed"), SEGMENT, None).expect("a feed");
        std::fs::write(folder.path().join("feed/ready/000000010000000000000001"), b"x").expect("writes");
        let nowhere = folder.path().join("missing/RECOVERYXLOG");
        assert_eq!(ask(&feed, "000000010000000000000001", &nowhere), Some(126));
    }
}
