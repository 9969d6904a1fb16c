//! A base backup over the replication protocol: the server sends its files, and they go block by block through the
//! same writer as files that are read.
//!
//! Invariants: the data directory's archive comes last with `pg_control` at its end, else the backup is refused (hard
//! rule 5); every file is held against the server's manifest; a page whose checksum is bad cannot be read again, so
//! that only the backup's WAL excuses it (rule 4), and the server's own complaint fails the run; memory holds one
//! buffer, a bounded queue of what the server sent, and for each file its path, size and checksum. One thread takes
//! from the network, this one compares and stores.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use cluster::replication::{
    BackupPart, BaseBackupCommand, BaseBackupStream, Manifest, ManifestReader, TarEntry, TarKind, TarReader,
};
use cluster::{ReplicationSession, ServerFacts, Session, Tablespace};
use diagnostic::{Error, Result};
use postgres::{
    BLOCK_SIZE, ControlFile, Lsn, Oid, PageVerdict, RelationFile, TimelineId, page_lsn, verify_page,
};
use repository::{
    BlockFacts, BlockFlags, ClusterRepository, ConfigurationFile, EntryKind, FRAME_BYTES, FileEntry,
    FileFormat, FilePart, PackStatistics, PackWriter, RelativePath, Run, blocks_of,
};

use super::excuse::{self, BackupWal};
use super::plan::{Plan, WalSource};
use super::plan_protocol::CONNECT_LIMIT;
use super::sent::Sent;
use super::wait::{self, Needed};
use super::wal_stream::{self, Control, Streamed};
use super::worker::{BadPage, NOTED_PAGES_MAX, problem, store_bytes};
use super::{
    BackupResult, BaseBackupOptions, PROGRESS_EVERY, ProgressState, Stage, Teller, read_catalog, record,
    refuse_other_server, refuse_second_backup, shown,
};

/// Parts of the stream (of up to 64 KiB) that wait for this thread.
const PARTS_WAITING: usize = 64;
/// How long the server may say nothing once it has begun to send.
const SILENCE_LIMIT: Duration = Duration::from_secs(300);
/// `backup_label`, `tablespace_map` and `pg_control` are kept in memory.
const LATE_BYTES_MAX: u64 = 16 << 20;

const CONTROL_FILE: &str = cluster::data_directory::CONTROL_FILE;

/// See [`super::run`].
pub(super) fn run(
    plan: &Plan,
    conninfo: &str,
    repository: &ClusterRepository,
    options: &BaseBackupOptions<'_>,
) -> Result<BackupResult> {
    let control = Control::new();
    std::thread::scope(|scope| {
        let result = attempt(
            plan,
            conninfo,
            repository,
            options,
            &control,
            |prepared, streamed| {
                let control = &control;
                std::thread::Builder::new()
                    .name("backup-wal".into())
                    .spawn_scoped(scope, move || wal_stream::run(prepared, &streamed, control))
                    .map(drop)
                    .map_err(|error| Error::io("thread-start", "cannot start a thread", &error))
            },
        );
        control.abort();
        result
    })
}

fn attempt<'env>(
    plan: &'env Plan,
    conninfo: &str,
    repository: &'env ClusterRepository,
    options: &'env BaseBackupOptions<'env>,
    wal_control: &Control,
    start_wal: impl FnOnce(wal_stream::Prepared, Streamed<'env>) -> Result<()>,
) -> Result<BackupResult> {
    let Some(protocol) = &plan.protocol else {
        return Err(Error::new(
            "plan-outdated",
            "the plan is not one over the replication protocol",
        ));
    };
    let started_at = (options.clock)();
    let requests_before = repository.repository().store().requests();
    let mut monitor = Session::connect(conninfo)?;
    refuse_second_backup(&mut monitor)?;
    let server = cluster::gather(&mut monitor)?;
    refuse_other_server(plan, &server)?;
    let parent = plan.parent.map(|id| repository.backup(id)).transpose()?;

    options.progress.update(&ProgressState::starting(plan));
    // The slot is there before the backup begins: WAL from before its start is kept.
    let prepared = match plan.wal {
        WalSource::Archived => None,
        WalSource::Streamed => {
            // Hard rule 19, before the server is put to any work.
            let writer = wal_stream::streaming_writer(&protocol.host_id);
            repository.claim(server.system_identifier, server.timeline, &writer, started_at)?;
            Some(wal_stream::prepare(conninfo, started_at)?)
        }
    };
    let name = format!(
        "pgproof backup {}-{}",
        std::process::id(),
        started_at.as_microsecond()
    );
    let replication = ReplicationSession::connect(conninfo, &name, CONNECT_LIMIT)?;
    cluster::control_facts::same_server(&mut monitor, &name, replication.process_id())?;
    let stream = replication.base_backup(&BaseBackupCommand {
        major: server.major,
        label: options.label.clone(),
        fast_checkpoint: options.fast_checkpoint,
        start_limit: checkpoint_limit(&mut monitor)?,
        silence_limit: SILENCE_LIMIT,
    })?;
    let (start_lsn, timeline) = (stream.start, stream.timeline);
    if timeline != server.timeline {
        return Err(
            Error::new("backup-aborted", "the server moved to another timeline")
                .detail(format!(
                    "It was on {}, and the backup is of {timeline}.",
                    server.timeline
                ))
                .hint("Run the backup again."),
        );
    }
    if let Some(prepared) = prepared {
        start_wal(
            prepared,
            Streamed {
                repository,
                system: server.system_identifier,
                timeline,
                wal_segment_size: server.wal_segment_size,
                start: start_lsn,
                host_id: &protocol.host_id,
                clock: options.clock,
            },
        )?;
    }
    let run = repository.start_run(parent.as_ref(), (options.clock)())?;
    run.adopt_unfinished_runs((options.clock)())?;
    run.tree().take_in_any_order(&protocol.spill_folder);
    let tablespaces = tablespaces(&stream, &server)?;
    let mut intake = Intake {
        run: &run,
        writer: run.pack_writer()?,
        server: &server,
        teller: Teller {
            options,
            repository,
            run: &run,
            plan,
            requests_before,
            renewed: Instant::now(),
        },
        wal_control,
        told: Instant::now(),
        sequence: 0,
        files: 0,
        bytes: 0,
        sent: Sent::default(),
        late: Vec::new(),
        bad_pages: Vec::new(),
        bad_pages_count: 0,
        buffer: vec![0; FRAME_BYTES],
    };
    for tablespace in &tablespaces {
        intake.tablespace(tablespace)?;
    }
    let received = intake.receive(stream)?;
    let server = ServerFacts {
        tablespaces,
        ..server.clone()
    };
    // The first session was silent as long as the server sent: something on the way may have dropped it.
    let mut after = Session::connect(conninfo)?;
    refuse_unsent_tablespaces(&mut after, plan, &server)?;

    let late = std::mem::take(&mut intake.late);
    let content = |path: &str| {
        late.iter()
            .find(|late| late.path == path)
            .map(|late| &late.content)
    };
    let missing = |path: &str| {
        Error::new("backup-stream-damaged", format!("the server did not send {path}"))
            .hint("Run the backup again.")
    };
    let control = ControlFile::parse(content(CONTROL_FILE).ok_or_else(|| missing(CONTROL_FILE))?)
        .map_err(|error| error.hint("It was sent while the server wrote it. Run the backup again."))?;
    if control.system_identifier != server.system_identifier {
        return Err(Error::new(
            "backup-aborted",
            "the control file that was sent is another cluster's",
        ));
    }
    let label_content = content("backup_label").ok_or_else(|| missing("backup_label"))?;
    let label = record::read_label(label_content, start_lsn, &server)?;
    if received.timeline != timeline
        || (server.in_recovery && control.min_recovery_timeline.0 > label.timeline.0)
    {
        return Err(Error::new(
            "backup-aborted",
            "the server moved to another timeline during the backup",
        )
        .hint("Run the backup again."));
    }
    let sent = std::mem::take(&mut intake.sent);
    sent.finish(
        &received.manifest,
        server.system_identifier,
        start_lsn,
        received.stop,
    )?;

    intake.tell(Stage::Stopping)?;
    let Intake {
        mut writer,
        mut teller,
        files,
        bytes,
        bad_pages,
        bad_pages_count,
        ..
    } = intake;
    let statistics = store_late(&mut writer, late)?.plus(writer.finish()?);
    let catalog = read_catalog(conninfo, (options.clock)())?;
    let tree = run.tree().finish(&catalog)?;

    teller.tell_numbers(Stage::WaitingForWal, files, bytes)?;
    let needed = Needed {
        system: server.system_identifier,
        timeline: label.timeline,
        wal_segment_size: server.wal_segment_size,
        start: start_lsn,
        stop: received.stop,
    };
    wal_control.until(needed.numbers().1);
    if server.in_recovery {
        wait::ask_primary(plan.primary.as_ref(), &needed)?;
    }
    let segments = wait::wait_for_wal(
        repository,
        &needed,
        &mut after,
        server.in_recovery,
        options.archive_timeout,
        &mut |_, _| {
            wal_control.check()?;
            teller.tell_numbers(Stage::WaitingForWal, files, bytes)
        },
    )?;
    let wal = BackupWal {
        repository,
        pg_wal: None,
        segments: &segments,
        wal_segment_size: server.wal_segment_size,
        timeline: label.timeline,
        start: start_lsn,
        stop: received.stop,
    };
    let judged = excuse::judge(&wal, bad_pages, bad_pages_count);
    let (excused_pages, damaged_pages) = judged.for_the_record();

    teller.tell_numbers(Stage::Publishing, files, bytes)?;
    let finished_at = (options.clock)();
    let backup = record::record(record::Finished {
        plan,
        server: &server,
        control: &control,
        history: &plan.history,
        run: run.id(),
        label: &label,
        label_text: options.label.clone(),
        started_at,
        finished_at,
        start_lsn,
        stop_lsn: received.stop,
        bytes_read: bytes,
        bytes_stored: teller.bytes_stored(),
        bytes_restored: bytes,
        files,
        configuration: missing_configuration(plan, &server),
        excused_pages,
        damaged_pages,
        parent: parent.as_ref().map(|backup| backup.backup),
        unread: None,
        requests: teller.requests(),
        tree,
    });
    run.publish(&backup, finished_at)?;
    Ok(BackupResult {
        reading: plan.reading.clone(),
        bytes_read: bytes,
        bytes_stored: teller.bytes_stored(),
        pages_stored: statistics.blocks_stored,
        pages_reused: statistics.blocks_reused + statistics.blocks_adopted,
        excused: judged.excused.iter().map(|(page, _)| shown(page)).collect(),
        damaged: judged.damaged.iter().map(|(page, _)| shown(page)).collect(),
        findings: judged.findings,
        backup,
    })
}

/// A spread checkpoint takes up to `checkpoint_timeout`, and may first wait for a running one.
fn checkpoint_limit(session: &mut Session) -> Result<Duration> {
    let row = session.one("SELECT setting FROM pg_settings WHERE name = 'checkpoint_timeout'")?;
    let seconds: u64 = row
        .first()
        .and_then(Option::as_deref)
        .and_then(|text| text.parse().ok())
        .unwrap_or(300);
    Ok(Duration::from_secs(
        seconds.saturating_mul(3).saturating_add(3600),
    ))
}

/// The tablespaces that the server is going to send, with the names that SQL knows.
fn tablespaces(stream: &BaseBackupStream, server: &ServerFacts) -> Result<Vec<Tablespace>> {
    use std::os::unix::ffi::OsStrExt;
    let mut tablespaces = Vec::new();
    for sent in &stream.tablespaces {
        let location = std::path::PathBuf::from(std::ffi::OsStr::from_bytes(&sent.location));
        let in_place = location.is_relative();
        let known = server.tablespaces.iter().find(|known| known.oid == sent.oid);
        tablespaces.push(Tablespace {
            oid: sent.oid,
            name: known.map_or_else(|| sent.oid.to_string(), |known| known.name.clone()),
            location: match in_place {
                true => server.data_directory.join(location),
                false => location,
            },
            in_place,
        });
    }
    Ok(tablespaces)
}

/// A tablespace that was there before the backup and still is must have been sent: some minor versions of 15 leave
/// out those that are in place.
fn refuse_unsent_tablespaces(session: &mut Session, plan: &Plan, server: &ServerFacts) -> Result<()> {
    let now = cluster::facts::tablespaces(session, &server.data_directory)?;
    let unsent = plan
        .tablespaces
        .iter()
        .filter(|before| now.iter().any(|after| after.oid == before.oid))
        .find(|before| !server.tablespaces.iter().any(|sent| sent.oid == before.oid));
    match unsent {
        None => Ok(()),
        Some(tablespace) => Err(Error::new(
            "tablespace-not-sent",
            format!("the server did not send tablespace \"{}\"", tablespace.name),
        )
        .detail("This minor version of PostgreSQL leaves tablespaces that are in place out of a base backup.")
        .hint("Update PostgreSQL, or run pgproof beside the data directory.")),
    }
}

/// Rule 3: what lies outside the data directory is not sent, and the record says so.
fn missing_configuration(plan: &Plan, server: &ServerFacts) -> Vec<ConfigurationFile> {
    let role = |path: &std::path::Path| {
        let path = Some(path);
        if path == server.config_file.as_deref() {
            "config_file"
        } else if path == server.hba_file.as_deref() {
            "hba_file"
        } else {
            "ident_file"
        }
    };
    plan.missing_configuration
        .iter()
        .map(|path| ConfigurationFile {
            role: role(path).into(),
            original: record::escaped(path),
            path: None,
        })
        .collect()
}

pub(super) struct Late {
    pub(super) path: String,
    pub(super) mode: u32,
    pub(super) content: Vec<u8>,
}

/// The files that are written last, in path order.
pub(super) fn store_late(writer: &mut PackWriter, mut late: Vec<Late>) -> Result<PackStatistics> {
    late.sort_by(|one, two| one.path.cmp(&two.path));
    for file in &late {
        let size = file.content.len() as u64;
        let part = FilePart {
            sequence: None,
            path: RelativePath::new(file.path.as_str())?,
            mode: file.mode,
            size,
            format: FileFormat::Opaque,
            first_block: 0,
            blocks: blocks_of(size),
        };
        store_bytes(writer, part, &file.content)?;
    }
    Ok(PackStatistics::default())
}

/// What the stream ended with.
struct Received {
    stop: Lsn,
    timeline: TimelineId,
    manifest: Manifest,
}

/// Takes what the server sends and stores it.
struct Intake<'a> {
    run: &'a Run,
    writer: PackWriter,
    server: &'a ServerFacts,
    teller: Teller<'a>,
    wal_control: &'a Control,
    told: Instant,
    sequence: u64,
    files: u64,
    bytes: u64,
    sent: Sent,
    late: Vec<Late>,
    bad_pages: Vec<BadPage>,
    bad_pages_count: u64,
    buffer: Vec<u8>,
}

impl Intake<'_> {
    fn tell(&mut self, stage: Stage) -> Result<()> {
        self.told = Instant::now();
        self.wal_control.check()?;
        self.teller.tell_numbers(stage, self.files, self.bytes)
    }

    fn tell_now_and_then(&mut self) -> Result<()> {
        match self.told.elapsed() >= PROGRESS_EVERY {
            true => self.tell(Stage::Reading),
            false => Ok(()),
        }
    }

    fn entry(&mut self, path: RelativePath, mode: u32, kind: EntryKind) -> Result<()> {
        self.sequence += 1;
        self.run.tree().add(
            self.sequence,
            FileEntry {
                path,
                mode,
                size: 0,
                kind,
            },
        )
    }

    /// The link in `pg_tblspc`, which the server leaves to its tablespace map.
    fn tablespace(&mut self, tablespace: &Tablespace) -> Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let path = RelativePath::new(format!("pg_tblspc/{}", tablespace.oid))?;
        match tablespace.in_place {
            true => self.entry(path, 0o700, EntryKind::Directory),
            false => {
                let target = tablespace.location.as_os_str().as_bytes().to_vec();
                self.entry(path, 0o777, EntryKind::Symlink(target))
            }
        }
    }

    /// Everything, to the end that the server confirms.
    fn receive(&mut self, stream: BaseBackupStream) -> Result<Received> {
        let (parts, inbox) = sync_channel(PARTS_WAITING);
        // Left behind when this thread gives up: it ends with the next part, or with the server's silence.
        std::thread::Builder::new()
            .name("backup-stream".into())
            .spawn(move || take(stream, &parts))
            .map_err(|error| Error::io("thread-start", "cannot start a thread", &error))?;
        let mut source = Source {
            inbox,
            next: None,
            data: Vec::new(),
            taken: 0,
        };
        let mut manifest = None;
        let mut base_seen = false;
        loop {
            match source.part()? {
                BackupPart::Archive(archive) => {
                    if base_seen {
                        return Err(out_of_order("an archive came behind the data directory's"));
                    }
                    base_seen = archive.is_none();
                    self.archive(&mut source, archive)?;
                }
                BackupPart::Manifest => {
                    let mut reader = ManifestReader::default();
                    let mut piece = vec![0; 64 << 10];
                    loop {
                        let count = source.read(&mut piece).map_err(stream_error)?;
                        if count == 0 {
                            break;
                        }
                        let sent = &mut self.sent;
                        let bytes = piece.get(..count).unwrap_or_default();
                        reader.add(bytes, &mut |file| sent.listed(&file))?;
                        self.tell_now_and_then()?;
                    }
                    manifest = Some(reader.finish()?);
                }
                BackupPart::End { lsn, timeline } => {
                    let manifest = manifest
                        .filter(|_| base_seen)
                        .ok_or_else(|| out_of_order("the backup ended before it was whole"))?;
                    return Ok(Received {
                        stop: lsn,
                        timeline,
                        manifest,
                    });
                }
                BackupPart::Data(..) => return Err(out_of_order("data came before an archive")),
            }
        }
    }

    fn archive(&mut self, source: &mut Source, archive: Option<Oid>) -> Result<()> {
        let prefix = archive.map(|oid| format!("pg_tblspc/{oid}/")).unwrap_or_default();
        let mut tar = TarReader::new(source);
        let mut control_seen = false;
        while let Some(TarEntry { path, mode, kind }) = tar.next_entry()? {
            if control_seen {
                return Err(out_of_order("pg_control did not come last"));
            }
            let path = RelativePath::new([prefix.as_bytes(), &path].concat())?;
            match kind {
                TarKind::Directory => self.entry(path, mode, EntryKind::Directory)?,
                TarKind::Symlink { target } => self.entry(path, 0o777, EntryKind::Symlink(target))?,
                TarKind::File { size } => {
                    let late = [CONTROL_FILE, "backup_label", "tablespace_map"];
                    match late.into_iter().find(|late| late.as_bytes() == path.as_bytes()) {
                        Some(name) => {
                            control_seen = name == CONTROL_FILE;
                            let content = tar.read_whole(LATE_BYTES_MAX)?;
                            self.sent
                                .arrived(path.as_bytes(), size, crc32c::crc32c(&content))?;
                            // An empty map is as good as none.
                            if !(content.is_empty() && name == "tablespace_map") {
                                self.late.push(Late {
                                    path: name.to_owned(),
                                    mode,
                                    content,
                                });
                                self.files += 1;
                                self.bytes += size;
                            }
                        }
                        None => self.file(&mut tar, path, mode, size)?,
                    }
                }
            }
            self.tell_now_and_then()?;
        }
        match (archive, control_seen) {
            (None, false) => Err(out_of_order("pg_control did not come last")),
            _ => Ok(()),
        }
    }

    fn file(
        &mut self,
        tar: &mut TarReader<&mut Source>,
        path: RelativePath,
        mode: u32,
        size: u64,
    ) -> Result<()> {
        let relation = RelationFile::parse(path.as_bytes());
        self.sequence += 1;
        let part = FilePart {
            sequence: Some(self.sequence),
            path: path.clone(),
            mode,
            size,
            format: match relation {
                Some(_) => FileFormat::Pages,
                None => FileFormat::Opaque,
            },
            first_block: 0,
            blocks: blocks_of(size),
        };
        let mut facts = [BlockFacts::default(); FRAME_BYTES / BLOCK_SIZE];
        let mut pages = Pages {
            path: &path,
            checksums: self.server.data_checksums,
            relation_segment_size: self.server.relation_segment_size,
            bad_pages: &mut self.bad_pages,
            bad_pages_count: &mut self.bad_pages_count,
        };
        let mut output = self.writer.file(part)?;
        let (mut offset, mut crc) = (0, 0);
        while offset < size {
            let count = tar.read_content(&mut self.buffer)?;
            let chunk = self.buffer.get(..count).unwrap_or_default();
            crc = crc32c::crc32c_append(crc, chunk);
            facts.fill(BlockFacts::default());
            if let Some(relation) = &relation {
                pages.judge(relation, (offset / BLOCK_SIZE as u64) as u32, chunk, &mut facts);
            }
            let blocks = count.div_ceil(BLOCK_SIZE);
            output.add(chunk, facts.get(..blocks).unwrap_or_default())?;
            offset += count as u64;
            self.bytes += count as u64;
            if self.told.elapsed() >= PROGRESS_EVERY {
                self.told = Instant::now();
                self.wal_control.check()?;
                self.teller.tell_numbers(Stage::Reading, self.files, self.bytes)?;
            }
        }
        output.finish()?;
        self.files += 1;
        self.sent.arrived(path.as_bytes(), size, crc)
    }
}

/// The pages of one file, judged as they pass.
pub(super) struct Pages<'a> {
    pub(super) path: &'a RelativePath,
    pub(super) checksums: bool,
    pub(super) relation_segment_size: u32,
    pub(super) bad_pages: &'a mut Vec<BadPage>,
    pub(super) bad_pages_count: &'a mut u64,
}

impl Pages<'_> {
    /// Writes a fact for each whole page of `chunk`.
    pub(super) fn judge(
        &mut self,
        relation: &RelationFile,
        first_block: u32,
        chunk: &[u8],
        facts: &mut [BlockFacts],
    ) {
        for (index, (page, fact)) in chunk.chunks_exact(BLOCK_SIZE).zip(facts).enumerate() {
            let block = first_block + index as u32;
            let relation_block = relation
                .segment
                .wrapping_mul(self.relation_segment_size)
                .wrapping_add(block);
            fact.lsn = page_lsn(page);
            match verify_page(page, relation_block, self.checksums) {
                PageVerdict::Good => {}
                PageVerdict::New => fact.flags = BlockFlags::NEW,
                bad => {
                    fact.flags = BlockFlags::EXCUSED;
                    if matches!(page.get(14..16), Some([0, 0])) {
                        fact.flags = fact.flags | BlockFlags::NEW;
                    }
                    *self.bad_pages_count += 1;
                    if self.bad_pages.len() < NOTED_PAGES_MAX {
                        self.bad_pages.push(BadPage {
                            path: self.path.clone(),
                            relation: *relation,
                            block,
                            relation_block,
                            lsn: fact.lsn,
                            problem: problem(bad),
                        });
                    }
                }
            }
        }
    }
}

fn out_of_order(what: &str) -> Error {
    Error::new(
        "backup-stream-damaged",
        "the server's backup stream is out of order",
    )
    .detail(format!("{what}."))
}

/// Takes parts from the network until the end, an error, or until nobody wants them.
fn take(mut stream: BaseBackupStream, parts: &SyncSender<Result<BackupPart>>) {
    loop {
        let part = stream.next_part();
        let last = !matches!(
            part,
            Ok(BackupPart::Archive(_) | BackupPart::Data(..) | BackupPart::Manifest)
        );
        if parts.send(part).is_err() || last {
            return;
        }
    }
}

/// The parts as a source of bytes: reads end where the next archive, or the manifest, begins.
struct Source {
    inbox: Receiver<Result<BackupPart>>,
    next: Option<BackupPart>,
    data: Vec<u8>,
    taken: usize,
}

impl Source {
    /// The next part; there is no unread data.
    fn part(&mut self) -> Result<BackupPart> {
        if let Some(part) = self.next.take() {
            return Ok(part);
        }
        // The thread behind it has a limit of its own.
        match self.inbox.recv_timeout(SILENCE_LIMIT * 2) {
            Ok(part) => part,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(Error::new("replication-lost", "the backup stream broke off"))
            }
        }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let waiting = self.data.get(self.taken..).unwrap_or_default();
            if !waiting.is_empty() {
                let count = waiting.len().min(buffer.len());
                if let (Some(to), Some(from)) = (buffer.get_mut(..count), waiting.get(..count)) {
                    to.copy_from_slice(from);
                }
                self.taken += count;
                return Ok(count);
            }
            match self.part() {
                Ok(BackupPart::Data(data, from)) => {
                    self.data = data;
                    self.taken = from;
                }
                Ok(other) => {
                    self.next = Some(other);
                    return Ok(0);
                }
                Err(error) => {
                    return Err(io::Error::other(cluster::replication::StreamFailure(error)));
                }
            }
        }
    }
}

/// An error of ours that came by way of `io::Read`.
fn stream_error(error: io::Error) -> Error {
    match error.downcast::<cluster::replication::StreamFailure>() {
        Ok(failure) => failure.0,
        Err(error) => Error::io("replication-lost", "the backup stream broke off", &error),
    }
}
