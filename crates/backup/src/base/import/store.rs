//! The second reading: what was surveyed goes into a repository, WAL first, the record last.
//!
//! Invariants: a file that is not what the survey found fails the import; pages go through the same writer as those of
//! every backup, and a bad checksum is excused by the same rule; a buffer and a segment are all that memory holds of any
//! file.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::PathBuf;
use std::time::Instant;

use diagnostic::{Error, Result};
use jiff::Timestamp;
use postgres::{BLOCK_SIZE, RelationFile, WalFile, tablespace_map};
use repository::{
    Backup, BackupTablespace, BlockFacts, ClusterRepository, ConfigurationFile, EntryKind, FRAME_BYTES,
    FileEntry, FileFormat, FilePart, HistoryStep, PackWriter, RECORD_VERSION, RecoverySettings, RelativePath,
    Run, WalSegmentObject, blocks_of,
};

use super::super::excuse::{self, BackupWal};
use super::super::parent::geometry;
use super::super::stream::{Late, Pages, store_late};
use super::super::wait::Needed;
use super::super::worker::BadPage;
use super::super::{
    BackupResult, PROGRESS_EVERY, Progress, ProgressState, RENEW_EVERY, Reading, Stage, record, shown,
};
use super::archive::{Kind, Member};
use super::facts::{Origin, WalFacts, kept, wal_bytes, wal_name};
use super::open::{broken, fill};
use super::plan::{BasePlan, ImportPlan, is_wanted};
use super::survey::{Resolved, Survey, is_tablespace, stored_as_is};
use super::walk::{Base, walk_wal};
use crate::wal_push::{Received, push_imported};

const CONTROL_FILE: &str = cluster::data_directory::CONTROL_FILE;
/// Folders that a server expects, although they may be empty and so be missing in an archive.
const FOLDERS: [&str; 16] = [
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_logical/mappings",
    "pg_logical/snapshots",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
];

/// What the caller decides.
pub struct ImportOptions<'a> {
    /// Where a temporary file may lie.
    pub spill_folder: PathBuf,
    pub clock: &'a (dyn Fn() -> Timestamp + Sync),
    pub progress: &'a dyn Progress,
}

/// What an import has done.
#[derive(Debug, Clone)]
pub struct ImportResult {
    /// `None`: there was no base, or it was there already.
    pub backup: Option<BackupResult>,
    /// Segments and other WAL files stored, and those that were there already.
    pub wal_stored: u64,
    pub wal_there: u64,
    pub wal_bytes_stored: u64,
}

/// Stores what `plan` says. Errors besides those of [`super`]: `import-source-changed`, and the store's.
pub fn run(
    survey: &Survey,
    plan: &ImportPlan,
    repository: &ClusterRepository,
    options: &ImportOptions<'_>,
) -> Result<ImportResult> {
    let mut import = Import {
        survey,
        plan,
        repository,
        result: ImportResult {
            backup: None,
            wal_stored: 0,
            wal_there: 0,
            wal_bytes_stored: 0,
        },
    };
    for path in &survey.wal_paths {
        walk_wal(path, &mut |source, name, size, content| match wal_name(name) {
            Some(name) => import.wal(source, &name, size, content, Origin::Archive),
            None => Ok(()),
        })?;
    }
    if let (Some((layout, base)), Some(base_plan)) = (&survey.base, &plan.base) {
        match base_plan.already_there {
            // Its WAL may still be more than what was there.
            Some(_) => layout.walk(&mut |source, member, content| match (
                &member.kind,
                wal_name(&member.path),
            ) {
                (Kind::File { size }, Some(name)) if below_pg_wal(&member.path) => {
                    import.wal(source, &name, *size, content, Origin::Base)
                }
                _ => Ok(()),
            })?,
            None => import.base(layout, base, base_plan, options)?,
        }
    }
    Ok(import.result)
}

fn below_pg_wal(path: &[u8]) -> bool {
    path.rsplit(|byte| *byte == b'/').nth(1) == Some(b"pg_wal")
}

fn changed(what: &str) -> Error {
    Error::new(
        "import-source-changed",
        format!("\"{what}\" changed while it was read"),
    )
    .detail("It was read twice, and was not the same.")
    .hint("Run the import again when nothing writes there any more.")
}

struct Import<'a> {
    survey: &'a Survey,
    plan: &'a ImportPlan,
    repository: &'a ClusterRepository,
    result: ImportResult,
}

impl Import<'_> {
    /// Stores a WAL file, if it is the one that was chosen.
    fn wal(
        &mut self,
        source: &str,
        name: &str,
        stated: u64,
        content: &mut (dyn Read + Send),
        origin: Origin,
    ) -> Result<()> {
        let wal: &WalFacts = &self.survey.wal;
        let shown = format!("{source}: {name}");
        let segment_size = self.segment_size();
        let Some(file) = WalFile::parse(name, segment_size) else {
            return Ok(());
        };
        if let WalFile::Segment { timeline, number } = file {
            let chosen = wal
                .segments
                .get(&(timeline, number))
                .filter(|facts| facts.origin == origin && is_wanted(self.survey, (timeline, number), facts));
            let Some(chosen) = chosen else { return Ok(()) };
            let bytes = wal_bytes(&shown, stated, content)?;
            if crc32c::crc32c(&bytes) != chosen.crc32c {
                return Err(changed(&shown));
            }
            return self.push(name, bytes);
        }
        let bytes = wal_bytes(&shown, stated, content)?;
        match wal.others.get(name) {
            Some(surveyed) if *surveyed == kept(&file, bytes.clone()) => self.push(name, bytes),
            Some(_) => Err(changed(&shown)),
            // The survey passed it over.
            None => Ok(()),
        }
    }

    fn segment_size(&self) -> u32 {
        super::plan::control(self.survey)
            .map(|control| control.wal_segment_size)
            .or_else(|| {
                self.survey
                    .wal
                    .segments
                    .values()
                    .next()
                    .map(|segment| segment.segment_size)
            })
            .unwrap_or(16 << 20)
    }

    fn push(&mut self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let put = push_imported(
            self.repository,
            Received {
                system: self.plan.system_identifier,
                name: name.to_owned(),
                bytes,
                wal_segment_size: self.segment_size(),
            },
        )?;
        match put.created {
            true => self.result.wal_stored += 1,
            false => self.result.wal_there += 1,
        }
        self.result.wal_bytes_stored += put.stored_bytes;
        Ok(())
    }

    fn base(
        &mut self,
        layout: &Base,
        base: &Resolved,
        plan: &BasePlan,
        options: &ImportOptions<'_>,
    ) -> Result<()> {
        let repository = self.repository;
        let requests_before = repository.repository().store().requests();
        let parent = plan.parent.map(|id| repository.backup(id)).transpose()?;
        let run = repository.start_run(parent.as_ref(), (options.clock)())?;
        run.adopt_unfinished_runs((options.clock)())?;
        run.tree().take_in_any_order(&options.spill_folder);
        let mut intake = Intake {
            base,
            options,
            run: &run,
            writer: run.pack_writer()?,
            told: Instant::now(),
            renewed: Instant::now(),
            sequence: 0,
            directories: BTreeSet::new(),
            files: 0,
            bytes: 0,
            bad_pages: Vec::new(),
            bad_pages_count: 0,
            buffer: vec![0; FRAME_BYTES],
        };
        layout.walk(&mut |source, member, content| {
            let below_pg_wal = below_pg_wal(&member.path);
            match (&member.kind, wal_name(&member.path)) {
                (Kind::File { size }, Some(name)) if below_pg_wal => {
                    self.wal(source, &name, *size, content, Origin::Base)
                }
                _ => intake.member(source, member, content),
            }
        })?;
        intake.missing_folders()?;
        intake.tablespaces()?;
        let late = intake.late()?;
        intake.tell(Stage::Stopping)?;
        let late_files = late.len() as u64;
        let late_bytes: u64 = late.iter().map(|late| late.content.len() as u64).sum();
        let Intake {
            mut writer,
            files,
            bytes,
            bad_pages,
            bad_pages_count,
            ..
        } = intake;
        let statistics = store_late(&mut writer, late)?.plus(writer.finish()?);
        // Nobody can be asked for the tables' names.
        let catalog = postgres::Catalog {
            taken_at: base.finished_at,
            databases: Vec::new(),
        };
        let catalog = serde_json::to_vec(&catalog)
            .map_err(|error| Error::new("catalog-encode", "cannot encode the catalog").caused_by(&error))?;
        let tree = run.tree().finish(&catalog)?;

        let segments = self.window(base)?;
        let wal = BackupWal {
            repository,
            pg_wal: None,
            segments: &segments,
            wal_segment_size: base.control.wal_segment_size,
            timeline: base.label.timeline,
            start: base.label.start,
            stop: base.stop,
        };
        let judged = excuse::judge(&wal, bad_pages, bad_pages_count);
        let (excused_pages, damaged_pages) = judged.for_the_record();
        let requests = repository.repository().store().requests().since(&requests_before);
        let bytes_stored = requests.bytes_written;
        let control = &base.control;
        let unsigned = |value: i32| u32::try_from(value).unwrap_or(0);
        let backup = Backup {
            version: RECORD_VERSION,
            backup: run.id(),
            cluster: self.plan.cluster.clone(),
            label: base.label.label.clone(),
            started_at: base.started_at,
            finished_at: last_moment(repository, &segments, base)?,
            start_lsn: base.label.start,
            stop_lsn: base.stop,
            redo_lsn: base.label.start,
            bytes_read: base.facts.bytes,
            bytes_stored,
            bytes_restored: bytes + late_bytes,
            files: files + late_files,
            system_identifier: control.system_identifier,
            timeline: base.label.timeline,
            history: plan
                .history
                .steps
                .iter()
                .map(|step| HistoryStep {
                    parent: step.parent,
                    switch_lsn: step.switch,
                })
                .collect(),
            postgresql_version: control.major.to_string(),
            postgresql_version_num: u32::from(control.major.0) * 10_000,
            pg_control_version: control.pg_control_version,
            catalog_version: control.catalog_version,
            geometry: geometry(control),
            data_checksum_version: control.data_checksum_version,
            from_standby: plan.from_standby,
            tablespaces: base
                .tablespaces
                .iter()
                .map(|space| BackupTablespace {
                    oid: space.oid,
                    name: space.oid.to_string(),
                    location: match &space.location {
                        Some(location) => record::escaped(std::path::Path::new(
                            <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(location),
                        )),
                        None => format!("pg_tblspc/{}", space.oid),
                    },
                    in_place: space.location.is_none(),
                })
                .collect(),
            settings: RecoverySettings {
                max_connections: unsigned(control.max_connections),
                max_worker_processes: unsigned(control.max_worker_processes),
                max_wal_senders: unsigned(control.max_wal_senders),
                max_prepared_transactions: unsigned(control.max_prepared_transactions),
                max_locks_per_transaction: unsigned(control.max_locks_per_transaction),
            },
            configuration: missing_configuration(base),
            excused_pages,
            damaged_pages,
            collations: Vec::new(),
            parent: plan.parent,
            unread: None,
            requests: Some(requests),
            tree,
        };
        run.publish(&backup, (options.clock)())?;
        self.result.backup = Some(BackupResult {
            reading: Reading::Everything {
                why: "it was imported".into(),
            },
            bytes_read: base.facts.bytes,
            bytes_stored,
            pages_stored: statistics.blocks_stored,
            pages_reused: statistics.blocks_reused + statistics.blocks_adopted,
            excused: judged.excused.iter().map(|(page, _)| shown(page)).collect(),
            damaged: judged.damaged.iter().map(|(page, _)| shown(page)).collect(),
            findings: judged.findings,
            backup,
        });
        Ok(())
    }

    /// The segments of the backup, which are all there by now.
    fn window(&self, base: &Resolved) -> Result<Vec<WalSegmentObject>> {
        let needed = Needed {
            system: base.control.system_identifier,
            timeline: base.label.timeline,
            wal_segment_size: base.control.wal_segment_size,
            start: base.label.start,
            stop: base.stop,
        };
        let (first, last) = needed.numbers();
        (first..=last)
            .map(|number| {
                self.repository
                    .get_segment(needed.system, needed.timeline, number, needed.wal_segment_size)?
                    .ok_or_else(|| {
                        let name = postgres::segment_name(needed.timeline, number, needed.wal_segment_size);
                        changed(&name)
                    })
            })
            .collect()
    }
}

/// The last commit before the end: a target in time behind it is one that recovery can stop at.
fn last_moment(
    repository: &ClusterRepository,
    segments: &[WalSegmentObject],
    base: &Resolved,
) -> Result<Timestamp> {
    let mut last = base.finished_at;
    for segment in segments {
        let index = repository.read_index(segment)?;
        for transaction in index.transactions.iter().filter(|end| end.end <= base.stop) {
            last = last.max(transaction.time.to_jiff());
        }
    }
    Ok(last)
}

/// Rule 3: what lay outside the data directory was not brought, and the record says so.
fn missing_configuration(base: &Resolved) -> Vec<ConfigurationFile> {
    let roles = [
        ("config_file", "postgresql.conf"),
        ("hba_file", "pg_hba.conf"),
        ("ident_file", "pg_ident.conf"),
    ];
    roles
        .into_iter()
        .filter(|(_, name)| {
            !base
                .facts
                .files
                .contains_key(&[&base.prefix, name.as_bytes()].concat())
        })
        .map(|(role, name)| ConfigurationFile {
            role: role.into(),
            original: name.into(),
            path: None,
        })
        .collect()
}

/// Takes the members of a base and stores them.
struct Intake<'a> {
    base: &'a Resolved,
    options: &'a ImportOptions<'a>,
    run: &'a Run,
    writer: PackWriter,
    told: Instant,
    renewed: Instant,
    sequence: u64,
    directories: BTreeSet<Vec<u8>>,
    files: u64,
    bytes: u64,
    bad_pages: Vec<BadPage>,
    bad_pages_count: u64,
    buffer: Vec<u8>,
}

impl Intake<'_> {
    fn tell(&mut self, stage: Stage) -> Result<()> {
        self.told = Instant::now();
        self.options.progress.update(&ProgressState {
            stage,
            files_done: self.files,
            files_total: self.base.facts.files.len() as u64,
            bytes_done: self.bytes,
            bytes_total: self.base.facts.bytes,
            bytes_stored: 0,
        });
        if self.renewed.elapsed() >= RENEW_EVERY {
            self.renewed = Instant::now();
            self.run.renew((self.options.clock)())?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &[u8], mode: u32, kind: EntryKind) -> Result<()> {
        self.sequence += 1;
        let path = RelativePath::new(path)?;
        let size = 0;
        self.run.tree().add(
            self.sequence,
            FileEntry {
                path,
                mode,
                size,
                kind,
            },
        )
    }

    fn directory(&mut self, path: &[u8], mode: u32) -> Result<()> {
        match self.directories.insert(path.to_vec()) {
            true => self.entry(path, mode, EntryKind::Directory),
            false => Ok(()),
        }
    }

    fn member(&mut self, source: &str, member: Member, content: &mut dyn Read) -> Result<()> {
        if self.told.elapsed() >= PROGRESS_EVERY {
            self.tell(Stage::Reading)?;
        }
        // What lies beside the data directory in the same archive is none of its files.
        let Some(within) = member.path.strip_prefix(&self.base.prefix[..]) else {
            return Ok(());
        };
        match member.kind {
            // Tablespaces and the folders of pg_wal come on their own.
            Kind::Directory if is_tablespace(within) || within.starts_with(b"pg_wal/") => Ok(()),
            Kind::Directory if cluster::data_directory::left_out(within) => Ok(()),
            Kind::Directory => self.directory(within, member.mode),
            Kind::Symlink { .. } => Ok(()),
            Kind::File { size } if stored_as_is(within) => {
                self.file(source, within, &member.path, member.mode, size, content)
            }
            Kind::File { .. } => Ok(()),
        }
    }

    fn file(
        &mut self,
        source: &str,
        within: &[u8],
        whole_path: &[u8],
        mode: u32,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<()> {
        let path = RelativePath::new(within)?;
        let relation = RelationFile::parse(within);
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
            checksums: self.base.control.data_checksum_version != 0,
            relation_segment_size: self.base.control.relation_segment_size,
            bad_pages: &mut self.bad_pages,
            bad_pages_count: &mut self.bad_pages_count,
        };
        let mut output = self.writer.file(part)?;
        let (mut offset, mut crc) = (0_u64, 0);
        loop {
            let count = fill(content, &mut self.buffer).map_err(|error| broken(source, &error))?;
            let chunk = self.buffer.get(..count).unwrap_or_default();
            if chunk.is_empty() {
                break;
            }
            if offset + count as u64 > size {
                return Err(changed(&format!("{source}: {path}")));
            }
            crc = crc32c::crc32c_append(crc, chunk);
            facts.fill(BlockFacts::default());
            if let Some(relation) = &relation {
                pages.judge(relation, (offset / BLOCK_SIZE as u64) as u32, chunk, &mut facts);
            }
            let blocks = count.div_ceil(BLOCK_SIZE);
            output.add(chunk, facts.get(..blocks).unwrap_or_default())?;
            offset += count as u64;
        }
        let surveyed = self.base.facts.files.get(whole_path);
        if offset != size || surveyed.is_none_or(|found| (found.size, found.crc32c) != (size, crc)) {
            return Err(changed(&format!("{source}: {path}")));
        }
        output.finish()?;
        self.files += 1;
        self.bytes += size;
        Ok(())
    }

    /// What an archive may lack, because nothing was in it.
    fn missing_folders(&mut self) -> Result<()> {
        for folder in FOLDERS {
            self.directory(folder.as_bytes(), 0o700)?;
        }
        self.directory(b"pg_wal/archive_status", 0o700)?;
        if self.base.control.major.0 >= 17 {
            self.directory(b"pg_wal/summaries", 0o700)?;
        }
        Ok(())
    }

    fn tablespaces(&mut self) -> Result<()> {
        for space in &self.base.tablespaces {
            let path = format!("pg_tblspc/{}", space.oid);
            match &space.location {
                Some(target) => self.entry(path.as_bytes(), 0o777, EntryKind::Symlink(target.clone()))?,
                None => self.directory(path.as_bytes(), 0o700)?,
            }
        }
        Ok(())
    }

    /// What is written last: `pg_control`, the label, and the map of the tablespaces, made where there was none.
    fn late(&mut self) -> Result<Vec<Late>> {
        let mut late = Vec::new();
        for name in [CONTROL_FILE, "backup_label"] {
            let path = [&self.base.prefix, name.as_bytes()].concat();
            let content = self.base.facts.telling.get(&path).cloned().unwrap_or_default();
            late.push(Late {
                path: name.to_owned(),
                mode: 0o600,
                content,
            });
        }
        let entries: Vec<(postgres::Oid, &[u8])> = self
            .base
            .tablespaces
            .iter()
            .filter_map(|space| Some((space.oid, space.location.as_deref()?)))
            .collect();
        if !entries.is_empty() {
            late.push(Late {
                path: "tablespace_map".to_owned(),
                mode: 0o600,
                content: tablespace_map::format(&entries),
            });
        }
        Ok(late)
    }
}
