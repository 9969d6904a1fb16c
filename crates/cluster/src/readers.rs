//! Everything here that reads bytes of a server, of its files and of its operators, by name: what the fuzzer feeds with
//! arbitrary ones.
//!
//! Invariant: a reader gives a value or an error, whatever it is given, and needs memory in proportion to its input.
//! What a server says is a transcript ([`crate::wire`]): the code that talks to a live server is the code that reads it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use postgres::{Lsn, Major, TimelineHistory, TimelineId};

use crate::conninfo::Conninfo;
use crate::replication::{
    BackupPart, BaseBackupCommand, ManifestReader, ReplicationSession, TarReader, WalData,
};
use crate::session::Session;
use crate::wire::{self, Wire};

/// A name, and the reader.
pub type Reader = (&'static str, fn(&[u8]));

/// All of them.
pub const READERS: [Reader; 8] = [
    ("conninfo", conninfo),
    ("server-login", login),
    ("server-answers", answers),
    ("server-base-backup", base_backup),
    ("server-wal", wal),
    ("server-certificate", certificate),
    ("configuration-files", configuration_files),
    ("password-file", password_file),
];

/// A connection string, and what is to be done; a file of passwords that it names is not opened.
fn conninfo(bytes: &[u8]) {
    let Ok(conninfo) = Conninfo::parse(&String::from_utf8_lossy(bytes)) else {
        return;
    };
    black_box((conninfo.redacted(), conninfo.get("host")));
    if let Ok(parameters) = conninfo.with("passfile", "").parameters() {
        let limit = parameters.connect_timeout.unwrap_or_default();
        assert!(
            Instant::now().checked_add(limit).is_some(),
            "a limit can be added to a time"
        );
    }
}

/// Start-up, authentication by any method, one statement.
fn login(said: &[u8]) {
    let mut wire = match wire::log_in(said) {
        Ok(wire) => wire,
        Err(failure) => {
            black_box(
                failure
                    .into_error("server-unreachable", "cannot connect")
                    .render(),
            );
            return;
        }
    };
    black_box(wire.query("SELECT 1").is_ok());
    wire.close();
}

/// What SQL tells of a server, and what the replication protocol does, each as if these were the answers.
fn answers(said: &[u8]) {
    for version_num in [130_001, 180_001] {
        let mut session = Session::replayed(said, version_num);
        black_box(crate::gather(&mut session)).ok();
        black_box(crate::archiver_status(&mut session)).ok();
        black_box(crate::control_facts(&mut session)).ok();
        black_box(crate::catalog::relations(&mut session)).ok();
    }
    let mut session = ReplicationSession::over(Wire::replayed(said));
    black_box(session.identify_system()).ok();
    if let Ok(content) = session.timeline_history(TimelineId(2)) {
        black_box(TimelineHistory::parse(TimelineId(2), &content)).ok();
    }
}

/// A base backup of both grammars, with the archives and the manifest in it.
fn base_backup(said: &[u8]) {
    for major in [13, 18] {
        let session = ReplicationSession::over(Wire::replayed(said));
        let Ok(mut stream) = session.base_backup(&base_backup_command(major)) else {
            continue;
        };
        black_box((&stream.tablespaces, stream.size_bytes));
        let mut manifest: Option<ManifestReader> = None;
        let mut archive = Vec::new();
        while let Ok(part) = stream.next_part() {
            match part {
                BackupPart::Archive(_) => read_archive(&std::mem::take(&mut archive)),
                BackupPart::Manifest => manifest = Some(ManifestReader::default()),
                BackupPart::Data(bytes, from) => {
                    let bytes = bytes.get(from..).unwrap_or_default();
                    match &mut manifest {
                        None => archive.extend_from_slice(bytes),
                        Some(manifest) => {
                            if manifest.add(bytes, &mut |_| Ok(())).is_err() {
                                break;
                            }
                        }
                    }
                }
                BackupPart::End { .. } => break,
            }
        }
        read_archive(&archive);
        if let Some(manifest) = manifest {
            black_box(manifest.finish()).ok();
        }
    }
}

fn base_backup_command(major: u16) -> BaseBackupCommand {
    BaseBackupCommand {
        major: Major(major),
        label: "pgproof".into(),
        fast_checkpoint: true,
        start_limit: Duration::from_secs(1),
        silence_limit: Duration::from_secs(1),
    }
}

fn read_archive(bytes: &[u8]) {
    let mut tar = TarReader::new(bytes);
    let mut buffer = [0; 1000];
    while let Ok(Some(entry)) = tar.next_entry() {
        black_box(&entry);
        black_box(tar.read_content(&mut buffer)).ok();
    }
}

/// Eight bytes that say where the stream begins, then what the server says: WAL, and the timeline that follows.
fn wal(bytes: &[u8]) {
    let Some((start, said)) = bytes.split_first_chunk() else {
        return;
    };
    let start = Lsn(u64::from_be_bytes(*start));
    let session = ReplicationSession::over(Wire::replayed(said));
    let Ok(mut stream) = session.start_wal(Some("slot"), start, TimelineId(1)) else {
        return;
    };
    loop {
        match stream.receive(Duration::from_secs(1)) {
            Ok(WalData::Bytes(at, bytes)) => {
                stream.durable_up_to(Lsn(at.0.saturating_add(bytes.len() as u64)))
            }
            Ok(WalData::Nothing) => {}
            Ok(WalData::EndOfTimeline) => {
                if let Ok((mut session, next)) = stream.next_timeline() {
                    black_box((next, session.identify_system().is_ok()));
                }
                return;
            }
            Err(error) => {
                black_box(error.render());
                return;
            }
        }
    }
}

fn certificate(bytes: &[u8]) {
    black_box(wire::certificate_facts(bytes));
}

/// `postgresql.conf`, `pg_hba.conf`, `pg_ident.conf`: the files that they include.
fn configuration_files(bytes: &[u8]) {
    black_box(crate::configuration::included(&String::from_utf8_lossy(bytes)));
}

fn password_file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for wanted in [
        ["localhost", "5432", "postgres", "postgres"],
        ["a:b", "1", "replication", "\\"],
    ] {
        black_box(crate::conninfo::password_in(&text, &wanted));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What servers of PostgreSQL 13 to 18 said, from the fuzzer's corpus.
    fn transcripts(reader: &str) -> Vec<Vec<u8>> {
        let folder = format!("{}/../../fuzz/corpus/{reader}", env!("CARGO_MANIFEST_DIR"));
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("real-"))
            .map(|entry| std::fs::read(entry.path()).unwrap())
            .collect()
    }

    #[test]
    fn base_backups_of_all_majors_are_followed_to_their_end() {
        let mut ends = [0, 0];
        for said in transcripts("server-base-backup") {
            let letters = said.windows(10).any(|window| window == b"nbase.tar\0");
            let command = base_backup_command(if letters { 18 } else { 13 });
            let mut stream = ReplicationSession::over(Wire::replayed(&said))
                .base_backup(&command)
                .unwrap();
            assert_eq!(stream.tablespaces.len(), 1);
            let mut archives = 0;
            loop {
                match stream.next_part().unwrap() {
                    BackupPart::End { lsn, .. } if lsn > stream.start => break,
                    BackupPart::Archive(_) => archives += 1,
                    _ => {}
                }
            }
            assert_eq!(archives, 2);
            ends[usize::from(letters)] += 1;
        }
        assert!(
            ends[0] >= 2 && ends[1] >= 4,
            "13 and 14, and those from 15 on: {ends:?}"
        );
    }

    #[test]
    fn what_servers_tell_of_themselves_is_understood() {
        let told = transcripts("server-answers");
        let count = |read: &dyn Fn(&[u8]) -> bool| told.iter().filter(|said| read(said)).count();
        let whole = count(&|said| {
            let mut session = Session::replayed(said, 150_001);
            crate::gather(&mut session).is_ok()
                && crate::archiver_status(&mut session).is_ok()
                && crate::control_facts(&mut session).is_ok()
        });
        assert!(whole >= 6, "each major");
        let relations = |said: &[u8]| {
            crate::catalog::relations(&mut Session::replayed(said, 150_001))
                .is_ok_and(|rows| rows.len() == 12)
        };
        assert!(count(&relations) >= 4);
        let identities = |said: &[u8]| {
            ReplicationSession::over(Wire::replayed(said))
                .identify_system()
                .is_ok()
        };
        assert!(count(&identities) >= 6);
    }

    #[test]
    fn logins_by_each_method_succeed_or_are_refused_as_they_were() {
        let (mut good, mut codes) = (0, Vec::new());
        for said in transcripts("server-login") {
            match wire::log_in(&said) {
                Ok(_) => good += 1,
                Err(failure) => codes.push(failure.into_error("server-unreachable", "cannot connect").code()),
            }
        }
        codes.sort_unstable();
        codes.dedup();
        // Trust, MD5 and a password in the clear; SCRAM up to the server's proof; and what pg_hba.conf rejects.
        assert_eq!(codes, ["server-error", "server-refused"]);
        assert!(good >= 8);
    }

    #[test]
    fn a_stream_of_wal_ends_with_the_timeline_that_follows() {
        let mut ended = 0;
        for bytes in transcripts("server-wal") {
            let (start, said) = bytes.split_first_chunk().unwrap();
            let session = ReplicationSession::over(Wire::replayed(said));
            let start = Lsn(u64::from_be_bytes(*start));
            let mut stream = session.start_wal(None, start, TimelineId(1)).unwrap();
            assert!(
                matches!(stream.receive(Duration::from_secs(1)), Ok(WalData::Bytes(at, _)) if at == start)
            );
            let end = loop {
                match stream.receive(Duration::from_secs(1)) {
                    Ok(WalData::Bytes(..)) => {}
                    other => break other,
                }
            };
            match end {
                Ok(WalData::EndOfTimeline) => {
                    let (_, next) = stream.next_timeline().unwrap();
                    assert_eq!(next.map(|(timeline, _)| timeline), Some(TimelineId(2)));
                    ended += 1;
                }
                Ok(_) => panic!("nothing is waited for"),
                Err(error) => assert_eq!(error.code(), "replication-lost"),
            }
        }
        assert!(ended >= 1);
    }
}
