//! `BASE_BACKUP`: the server sends its own files. Two grammars and two layouts of the stream.
//!
//! From PostgreSQL 15: options in parentheses, and one COPY whose messages begin with a letter (`n` archive, `d` data,
//! `m` manifest, `p` progress). 13 and 14: words without parentheses, and one COPY for each archive in the
//! order of the list of tablespaces, then one for the manifest. In both: start LSN and timeline, the list of
//! tablespaces, the data, then end LSN and timeline. Source: `basebackup.c`, `basebackup_copy.c`, `repl_gram.y`.
//!
//! Invariants: parts come in the order that the server sends them, each archive announced; the end is only given
//! when the server has said that all went well; an error of the server is an error here.

use std::collections::VecDeque;
use std::time::Duration;

use diagnostic::{Error, Result};
use postgres::{Lsn, Major, Oid, TimelineId};

use super::{ReplicationSession, lost, unexpected};
use crate::wire::{Failure, data_row};

/// What is asked of the server.
#[derive(Debug, Clone)]
pub struct BaseBackupCommand {
    pub major: Major,
    /// One line.
    pub label: String,
    /// Checkpoint at once.
    pub fast_checkpoint: bool,
    /// How long the checkpoint may take.
    pub start_limit: Duration,
    /// How long the server may be silent later on.
    pub silence_limit: Duration,
}

/// One line of the server's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupTablespace {
    pub oid: Oid,
    /// Relative (`pg_tblspc/<oid>`): in place.
    pub location: Vec<u8>,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupPart {
    /// A tar archive begins: that of a tablespace, or (`None`) of the data directory.
    Archive(Option<Oid>),
    /// Bytes of the archive or the manifest: from this offset on.
    Data(Vec<u8>, usize),
    /// The manifest begins.
    Manifest,
    /// All went well.
    End { lsn: Lsn, timeline: TimelineId },
}

/// A base backup that the server is sending.
pub struct BaseBackupStream {
    session: ReplicationSession,
    letters: bool,
    pub start: Lsn,
    pub timeline: TimelineId,
    /// Without the data directory itself.
    pub tablespaces: Vec<BackupTablespace>,
    /// What the server estimates, bytes; 0 if it does not say.
    pub size_bytes: u64,
    /// 13 and 14: what the next COPY holds (`None` inside: the data directory).
    archives: VecDeque<Option<Oid>>,
    waiting: VecDeque<BackupPart>,
    end: Option<(Lsn, TimelineId)>,
}

impl BaseBackupCommand {
    fn text(&self) -> String {
        let label: String = self
            .label
            .chars()
            .map(|character| if character.is_control() { ' ' } else { character })
            .collect::<String>()
            .replace('\'', "''");
        if self.major.0 >= 15 {
            let checkpoint = if self.fast_checkpoint { "fast" } else { "spread" };
            format!(
                "BASE_BACKUP (LABEL '{label}', PROGRESS, CHECKPOINT '{checkpoint}', WAIT 0, TABLESPACE_MAP, \
                 MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')"
            )
        } else {
            let fast = if self.fast_checkpoint { " FAST" } else { "" };
            format!(
                "BASE_BACKUP LABEL '{label}' PROGRESS{fast} NOWAIT TABLESPACE_MAP MANIFEST 'yes' \
                 MANIFEST_CHECKSUMS 'CRC32C'"
            )
        }
    }
}

/// The server's own words, under our code where an operator has to know it.
fn failed(failure: Failure) -> Error {
    let (sqlstate, told) = match &failure {
        Failure::Server(error) => (error.sqlstate.clone(), error.message.clone()),
        _ => (String::new(), String::new()),
    };
    let error = lost(failure, "the server could not send the backup");
    if sqlstate == "XX001" && told.contains("checksum") {
        return error.with_code("backup-server-checksum").hint(
            "The server found damaged pages while it read its own files. Look at its log for their names, at its disk \
             and at the kernel's log. A backup that runs beside the data directory would record the pages and go on.",
        );
    }
    if told.contains("promoted") {
        return error
            .with_code("backup-aborted")
            .hint("The standby was promoted during the backup. Run the backup again.");
    }
    if told.contains("full_page_writes") {
        return error
            .with_code("standby-without-full-page-writes")
            .hint("Set full_page_writes = on on the primary, run CHECKPOINT there, and try again.");
    }
    error.with_code("backup-refused")
}

impl ReplicationSession {
    /// Begins a base backup: the server makes its checkpoint, which may take as long as the command allows.
    pub fn base_backup(mut self, command: &BaseBackupCommand) -> Result<BaseBackupStream> {
        self.limit_reads(Some(command.start_limit))?;
        self.wire.send_query(&command.text()).map_err(failed)?;
        let (lsn, timeline) = position(&self.result_set()?)?;
        let mut stream = BaseBackupStream {
            letters: command.major.0 >= 15,
            start: lsn,
            timeline,
            tablespaces: Vec::new(),
            size_bytes: 0,
            archives: VecDeque::new(),
            waiting: VecDeque::new(),
            end: None,
            session: self,
        };
        for row in stream.session.result_set()? {
            let kilobytes: u64 = text(&row, 2).parse().unwrap_or(0);
            stream.size_bytes += kilobytes << 10;
            let oid = match row.first() {
                Some(Some(oid)) => {
                    let oid = std::str::from_utf8(oid).ok().and_then(|oid| oid.parse().ok());
                    Some(oid.ok_or_else(|| unexpected("BASE_BACKUP"))?)
                }
                _ => None,
            };
            stream.archives.push_back(oid);
            if let Some(oid) = oid {
                stream.tablespaces.push(BackupTablespace {
                    oid,
                    location: row.into_iter().nth(1).flatten().unwrap_or_default(),
                });
            }
        }
        // The data directory's own line is the last; without one nobody would know what comes.
        if stream.archives.back() != Some(&None)
            || stream.archives.iter().filter(|a| a.is_none()).count() != 1
        {
            return Err(unexpected("BASE_BACKUP"));
        }
        stream.session.limit_reads(Some(command.silence_limit))?;
        Ok(stream)
    }

    /// The rows up to the next CommandComplete.
    fn result_set(&mut self) -> Result<Vec<Vec<Option<Vec<u8>>>>> {
        let mut rows = Vec::new();
        loop {
            let frame = self.wire.expect().map_err(failed)?;
            match frame.tag {
                b'T' => {}
                b'D' => rows.push(data_row(&frame.body).map_err(failed)?),
                b'C' => return Ok(rows),
                _ => return Err(unexpected("BASE_BACKUP")),
            }
        }
    }
}

fn text(row: &[Option<Vec<u8>>], index: usize) -> &str {
    row.get(index)
        .and_then(Option::as_deref)
        .and_then(|value| std::str::from_utf8(value).ok())
        .unwrap_or_default()
}

fn position(rows: &[Vec<Option<Vec<u8>>>]) -> Result<(Lsn, TimelineId)> {
    let row = rows.first().ok_or_else(|| unexpected("BASE_BACKUP"))?;
    match (text(row, 0).parse(), text(row, 1).parse()) {
        (Ok(lsn), Ok(timeline)) => Ok((lsn, TimelineId(timeline))),
        _ => Err(unexpected("BASE_BACKUP")),
    }
}

impl BaseBackupStream {
    /// The next part; after [`BackupPart::End`] there is none.
    pub fn next_part(&mut self) -> Result<BackupPart> {
        loop {
            if let Some(part) = self.waiting.pop_front() {
                return Ok(part);
            }
            let frame = self.session.wire.expect().map_err(failed)?;
            match frame.tag {
                b'H' if !self.letters => {
                    let part = match self.archives.pop_front() {
                        Some(archive) => BackupPart::Archive(archive),
                        None => BackupPart::Manifest,
                    };
                    return Ok(part);
                }
                b'd' if !self.letters => return Ok(BackupPart::Data(frame.body, 0)),
                b'd' => {
                    let Some((letter, rest)) = frame.body.split_first() else {
                        return Err(unexpected("BASE_BACKUP"));
                    };
                    match letter {
                        b'd' => return Ok(BackupPart::Data(frame.body, 1)),
                        b'n' => return self.archive(rest),
                        b'm' => return Ok(BackupPart::Manifest),
                        b'p' => {}
                        _ => return Err(unexpected("BASE_BACKUP")),
                    }
                }
                b'H' | b'c' | b'T' | b'C' => {}
                b'D' => {
                    let row = data_row(&frame.body).map_err(failed)?;
                    self.end = Some(position(&[row])?);
                }
                b'Z' => {
                    let (lsn, timeline) = self.end.take().ok_or_else(|| unexpected("BASE_BACKUP"))?;
                    return Ok(BackupPart::End { lsn, timeline });
                }
                _ => return Err(unexpected("BASE_BACKUP")),
            }
        }
    }

    /// `base.tar` or `<oid>.tar`.
    fn archive(&mut self, names: &[u8]) -> Result<BackupPart> {
        let name = names.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = std::str::from_utf8(name).unwrap_or_default();
        let oid = match name.strip_suffix(".tar") {
            Some("base") => None,
            Some(oid) => Some(oid.parse().map_err(|_| unexpected("BASE_BACKUP"))?),
            None => return Err(unexpected("BASE_BACKUP")),
        };
        if self.archives.pop_front() != Some(oid) {
            return Err(Error::new(
                "backup-stream-damaged",
                "the server's archives do not come in the order of its list",
            ));
        }
        Ok(BackupPart::Archive(oid))
    }
}
