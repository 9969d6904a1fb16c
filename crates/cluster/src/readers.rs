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
        let command = BaseBackupCommand {
            major: Major(major),
            label: "pgproof".into(),
            fast_checkpoint: true,
            start_limit: Duration::from_secs(1),
            silence_limit: Duration::from_secs(1),
        };
        let Ok(mut stream) = ReplicationSession::over(Wire::replayed(said)).base_backup(&command) else {
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
