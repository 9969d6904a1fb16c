//! A plan as text: what `--dry-run` prints. Nothing is decided here.

use std::fmt;

use postgres::segment_name;

use crate::destination::DestinationState;
use crate::facts::Purpose;
use crate::plan::{KeptAside, Plan};
use crate::settings;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.purpose {
            Purpose::Server => "Restore",
            Purpose::Copy => "Throw-away copy",
        };
        writeln!(
            f,
            "{what} of cluster \"{}\" into {}",
            self.cluster,
            self.destination.display()
        )?;
        let ended = postgres::Timestamp::from_jiff(self.backup_finished_at);
        writeln!(
            f,
            "  backup       {} (ended {ended} at {})",
            self.backup, self.backup_stop_lsn
        )?;
        writeln!(
            f,
            "  server       PostgreSQL {}, system identifier {}",
            self.postgresql_version, self.system_identifier
        )?;
        writeln!(f, "  timeline     {}", self.timeline)?;
        for (at, stop) in self.stops.iter().enumerate() {
            let target = &stop.target;
            writeln!(f, "  stop {}       {}: {}", at + 1, stop.purpose, target.target)?;
            let side = if target.inclusive && target.stops_at.is_none() && !target.settings.is_empty() {
                "behind"
            } else {
                "before"
            };
            match &target.stops_at {
                Some(point) if !target.inclusive || target.stop == point.lsn => {
                    writeln!(
                        f,
                        "               stops before {}, where transaction {} ends ({})",
                        point.lsn, point.xid, point.time
                    )?;
                }
                Some(point) => {
                    writeln!(
                        f,
                        "               stops behind transaction {} at {} ({})",
                        point.xid, point.lsn, point.time
                    )?;
                }
                None if target.settings.is_empty() => writeln!(f, "               ends at {}", target.stop)?,
                None => writeln!(f, "               stops {side} {}", target.stop)?,
            }
            match &target.last_commit {
                Some(commit) => writeln!(
                    f,
                    "               newest commit there: transaction {} at {} ({})",
                    commit.xid, commit.lsn, commit.time
                )?,
                None => writeln!(f, "               no commit between the backup and this point")?,
            }
            writeln!(f, "               then {}", stop.action.as_str())?;
        }
        for range in &self.wal {
            let first = segment_name(range.timeline, range.first, self.wal_segment_size);
            let last = segment_name(range.timeline, range.last, self.wal_segment_size);
            writeln!(
                f,
                "  WAL          {first} to {last} ({})",
                counted(range.last - range.first + 1, "segment")
            )?;
        }
        for path in &self.wal_carried {
            writeln!(f, "  WAL          not archived: copied from {}", path.display())?;
        }
        writeln!(
            f,
            "  files        {}, {}",
            counted(self.files, "file"),
            size(self.bytes)
        )?;
        if let Some((user, group)) = self.owner {
            writeln!(f, "  owner        {user}:{group}")?;
        }
        match &self.found {
            DestinationState::Missing => writeln!(f, "  destination  is made")?,
            DestinationState::Empty => writeln!(f, "  destination  is there and empty")?,
            DestinationState::HalfRestored(_) => {
                writeln!(f, "  destination  holds an interrupted restore, which is removed")?;
            }
            DestinationState::HalfDelta { .. } if self.delta.is_some() => {
                writeln!(
                    f,
                    "  destination  holds an interrupted delta restore, which is gone on with"
                )?;
            }
            DestinationState::HalfKeptAside(_) => {
                writeln!(f, "  destination  was being kept aside, which is finished")?
            }
            _ => {}
        }
        if let Some(delta) = &self.delta {
            writeln!(
                f,
                "  DELTA        {} is OVERWRITTEN where it differs, and what does not belong is REMOVED",
                self.destination.display()
            )?;
            for (oid, location) in &delta.dropped_tablespaces {
                let folder = location.join(&delta.version_folder);
                writeln!(
                    f,
                    "  removed      tablespace {oid}, not in the backup: {}",
                    folder.display()
                )?;
            }
        }
        for kept in &self.kept_aside {
            let (from, to) = kept.paths();
            let how = match kept {
                KeptAside::Rename { .. } => "renamed",
                KeptAside::Contents { .. } => "a mount point, its contents moved",
                KeptAside::Tablespace { .. } => "a tablespace, its contents moved",
                KeptAside::Wal { .. } => "WAL that no copy has, copied",
            };
            writeln!(f, "  kept aside   {} -> {} ({how})", from.display(), to.display())?;
        }
        for tablespace in &self.tablespaces {
            match &tablespace.location {
                Some(location) => writeln!(
                    f,
                    "  tablespace   {} ({}): {} -> {}",
                    tablespace.name,
                    tablespace.oid,
                    tablespace.original,
                    location.display()
                )?,
                None => writeln!(
                    f,
                    "  tablespace   {} ({}): in pg_tblspc",
                    tablespace.name, tablespace.oid
                )?,
            }
        }
        for created in &self.created_tablespaces {
            writeln!(
                f,
                "  replay       creates tablespace {} at {} ({})",
                created.oid, created.location, created.at
            )?;
        }
        for directory in &self.directories {
            writeln!(f, "  directory    {} is made for it", directory.display())?;
        }
        for file in &self.generated {
            writeln!(f, "  generated    {} ({})", file.name, file.reason)?;
        }
        for original in &self.reference {
            writeln!(f, "  reference    {original} -> {}/", settings::REFERENCE_FOLDER)?;
        }
        if let Some(stop) = self.stops.first() {
            writeln!(f, "  postgresql.auto.conf")?;
            for (name, value) in settings::lines(self, stop) {
                writeln!(f, "    {name} = {}", settings::quote(&value))?;
            }
        }
        for note in &self.notes {
            writeln!(f, "  note         {note}")?;
        }
        Ok(())
    }
}

fn counted(number: u64, unit: &str) -> String {
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

/// Bytes for people, powers of 1024.
fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return counted(bytes, "byte");
    }
    let mut value = bytes as f64;
    let mut unit = "";
    for next in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}
