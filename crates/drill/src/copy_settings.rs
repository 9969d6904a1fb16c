//! The settings of a throw-away copy: generated, never inherited, the dangerous ones on the command line as
//! well, where nothing overrides them.
//!
//! Invariants (hard rules 28 to 30): nothing archives, sends, receives, listens or executes a command of
//! production's; what recovery compares with the primary is at least the maximum that the WAL announces; only
//! libraries that the caller names are preloaded; every value here is ours. Durability is off: such a
//! directory is never kept. Pure.

use std::path::Path;

use history::Maxima;
use postgres::Major;

use crate::facts::{Neutralised, Substitution};
use crate::log;
use crate::options::Fault;

/// What the settings depend on.
#[derive(Debug, Clone)]
pub struct CopySettings<'a> {
    /// The server's major version.
    pub major: Major,
    /// In bytes.
    pub wal_segment_size: u32,
    /// What recovery demands at least.
    pub maxima: Maxima,
    /// Asks the feed.
    pub restore_command: &'a str,
    /// The copy's folder.
    pub folder: &'a Path,
    /// Memory that the copy may use, in bytes.
    pub memory_bytes: u64,
    /// Libraries that replay needs, named by the caller.
    pub preload: &'a [String],
    /// Faults to plant.
    pub faults: &'a [Fault],
}

/// Settings that would reach outside; each is made harmless on the command line.
const DANGEROUS: [(&str, &str, &str); 17] = [
    ("archive_mode", "off", "nothing is archived"),
    ("archive_command", "", "no command is inherited"),
    ("primary_conninfo", "", "no connection to a primary"),
    ("primary_slot_name", "", "no slot of production's is used"),
    ("synchronous_standby_names", "", "no commit waits for a standby"),
    ("listen_addresses", "", "no TCP"),
    ("archive_cleanup_command", "", "no command is inherited"),
    ("recovery_end_command", "", "no command is inherited"),
    ("session_preload_libraries", "", "no library acts in a session"),
    ("local_preload_libraries", "", "no library acts in a session"),
    (
        "max_logical_replication_workers",
        "0",
        "inherited subscriptions stay silent",
    ),
    ("autovacuum", "off", "nothing changes pages but replay"),
    ("hot_standby_feedback", "off", "nothing is told to a primary"),
    ("ssl", "off", "no key file is read"),
    ("external_pid_file", "", "no file outside is written"),
    ("logging_collector", "off", "the log stays in the copy's folder"),
    ("log_destination", "stderr", "the log stays in the copy's folder"),
];

impl CopySettings<'_> {
    /// What stands on the server's command line, in order.
    pub fn command_line(&self) -> Vec<(String, String)> {
        let mut settings: Vec<(String, String)> = DANGEROUS
            .iter()
            .map(|(name, value, _)| ((*name).into(), (*value).into()))
            .collect();
        let mut set = |name: &str, value: &str| settings.push((name.into(), value.into()));
        if self.major.0 >= 15 {
            set("archive_library", "");
            set("recovery_prefetch", "off");
        }
        if self.major.0 >= 17 {
            set("event_triggers", "off");
            set("sync_replication_slots", "off");
        }
        set("shared_preload_libraries", &self.preload.join(","));
        set("restore_command", self.restore_command);
        set("hot_standby", "on");
        set("recovery_min_apply_delay", "0");
        // A conflict with replay would cancel our own looks; nobody waits for this replay.
        set("max_standby_archive_delay", "-1");
        set("max_standby_streaming_delay", "-1");
        for (name, value) in self.maxima.settings() {
            // Zero stands for "not announced": the server's own default is right then.
            if value != "0" {
                set(&name, &value);
            }
        }
        set("fsync", "off");
        set("full_page_writes", "off");
        set("synchronous_commit", "off");
        set("wal_compression", "off");
        set("max_wal_size", "32GB");
        // The server refuses to start with less than two segments.
        let min_wal_size_mb = (self.wal_segment_size >> 19).max(80);
        set("min_wal_size", &format!("{min_wal_size_mb}MB"));
        set("checkpoint_timeout", "1h");
        set("huge_pages", "off");
        let shared_buffers_mb = (self.memory_bytes / 2 / (1 << 20)).clamp(32, 8192);
        set("shared_buffers", &format!("{shared_buffers_mb}MB"));
        set("jit", "off");
        set("wal_sync_method", "fdatasync");
        set("log_line_prefix", log::LINE_PREFIX);
        set("log_timezone", "UTC");
        set("lc_messages", "C");
        set("log_min_messages", "warning");
        set("log_statement", "none");
        set("log_min_duration_statement", "-1");
        set("log_min_error_statement", "panic");
        set("log_error_verbosity", "default");
        set("log_connections", "off");
        set("log_checkpoints", "off");
        set("log_startup_progress_interval", "0");
        if self.major.0 < 15 {
            settings.retain(|(name, _)| name != "log_startup_progress_interval");
        }
        if self.faults.contains(&Fault::ArchiveCommandInherited) {
            settings.retain(|(name, _)| name != "archive_mode" && name != "archive_command");
            let folder = self.folder.display();
            settings.push(("archive_mode".into(), "on".into()));
            settings.push((
                "archive_command".into(),
                format!("cp '%p' '{folder}/archived/%f'"),
            ));
        }
        settings
    }

    /// `postgresql.conf`: only what says whose it is, since everything stands on the command line and in
    /// `postgresql.auto.conf`.
    pub fn postgresql_conf(&self) -> String {
        "# Generated by pgproof for a throw-away copy; production's configuration is not used.\n\
         # What matters stands on the server's command line.\n\
         listen_addresses = ''\narchive_mode = off\n"
            .into()
    }

    /// `pg_hba.conf`: the copy's own socket folder, which only its owner can enter, is the lock.
    pub fn pg_hba_conf(&self) -> String {
        "# Generated by pgproof for a throw-away copy: reachable over its private socket folder alone.\n\
         local all all trust\n"
            .into()
    }

    /// `pg_ident.conf`: nobody.
    pub fn pg_ident_conf(&self) -> String {
        "# Generated by pgproof: empty.\n".into()
    }

    /// What the copy does not have, for the evidence.
    pub fn neutralised(&self, production_preload: &[String]) -> Vec<Neutralised> {
        let mut all: Vec<Neutralised> = DANGEROUS
            .iter()
            .map(|(name, value, why)| Neutralised {
                kind: "setting".into(),
                name: (*name).into(),
                how: format!("'{value}' on the command line: {why}"),
            })
            .collect();
        for file in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            let how = "generated; production's is not used".to_string();
            all.push(Neutralised {
                kind: "file".into(),
                name: file.into(),
                how,
            });
        }
        let how = "rewritten; production's lines are comments".to_string();
        all.push(Neutralised {
            kind: "file".into(),
            name: "postgresql.auto.conf".into(),
            how,
        });
        for library in production_preload
            .iter()
            .filter(|library| !self.preload.contains(library))
        {
            let how = "not preloaded".to_string();
            all.push(Neutralised {
                kind: "library".into(),
                name: library.clone(),
                how,
            });
        }
        all
    }

    /// Where the copy's settings differ from those of a restore, for the evidence.
    pub fn substitutions(&self) -> Vec<Substitution> {
        let substitution = |name: &str, restore: &str, drill: &str, why: &str| Substitution {
            name: name.into(),
            restore: restore.into(),
            drill: drill.into(),
            why: why.into(),
        };
        let mut all = vec![
            substitution(
                "restore_command",
                "pgproof wal get, run by the server",
                "the same fetch, run by pgproof outside the quarantine and handed in as a file",
                "the quarantined server has neither the repository, nor its key, nor a network",
            ),
            substitution(
                "configuration files",
                "those of the backup",
                "generated",
                "a restored configuration is data: it may hold commands, paths and addresses of production",
            ),
            substitution(
                "recovery_target_action",
                "as asked for",
                "pause",
                "the copy is looked at where it stands, and goes on to the next stop",
            ),
            substitution(
                "fsync, full_page_writes",
                "on",
                "off",
                "the copy is thrown away; a restore of the same backup is slower by what its storage needs",
            ),
            substitution(
                "shared_buffers",
                "as in production",
                "sized by this host's free memory",
                "the copy is the only server that needs it",
            ),
            substitution(
                "shared_preload_libraries",
                "as in production",
                &listed(self.preload),
                "libraries act by themselves",
            ),
        ];
        if self.faults.contains(&Fault::ArchiveCommandInherited) {
            let why = "a planted fault: the drill must notice it";
            all.push(substitution("archive_mode", "off", "on, with a command", why));
        }
        all
    }
}

fn listed(libraries: &[String]) -> String {
    if libraries.is_empty() {
        "none".into()
    } else {
        libraries.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(faults: &[Fault]) -> Vec<(String, String)> {
        of(16 << 20, faults)
    }

    fn of(wal_segment_size: u32, faults: &[Fault]) -> Vec<(String, String)> {
        CopySettings {
            major: Major(15),
            wal_segment_size,
            maxima: Maxima {
                max_connections: 300,
                ..Maxima::default()
            },
            restore_command: "/bin/sh fetch.sh",
            folder: Path::new("/copy"),
            memory_bytes: 1 << 30,
            preload: &[],
            faults,
        }
        .command_line()
    }

    fn value<'a>(settings: &'a [(String, String)], name: &str) -> Option<&'a str> {
        settings
            .iter()
            .rfind(|(each, _)| each == name)
            .map(|(_, value)| value.as_str())
    }

    #[test]
    fn a_copy_neither_archives_nor_connects_nor_listens() {
        let settings = settings(&[]);
        for name in [
            "archive_command",
            "primary_conninfo",
            "synchronous_standby_names",
            "listen_addresses",
        ] {
            assert_eq!(value(&settings, name), Some(""), "{name}");
        }
        assert_eq!(value(&settings, "archive_mode"), Some("off"));
        assert_eq!(value(&settings, "shared_preload_libraries"), Some(""));
        assert_eq!(value(&settings, "archive_library"), Some(""));
    }

    #[test]
    fn the_libraries_that_replay_needs_are_preloaded_and_no_others() {
        let preload = ["pg_tle".to_string(), "my_manager".to_string()];
        let copy = CopySettings {
            major: Major(15),
            wal_segment_size: 16 << 20,
            maxima: Maxima::default(),
            restore_command: "/bin/sh fetch.sh",
            folder: Path::new("/copy"),
            memory_bytes: 1 << 30,
            preload: &preload,
            faults: &[],
        };
        assert_eq!(
            value(&copy.command_line(), "shared_preload_libraries"),
            Some("pg_tle,my_manager")
        );
        let production = ["my_manager".to_string(), "acts_by_itself".to_string()];
        let left_out: Vec<String> = copy
            .neutralised(&production)
            .into_iter()
            .filter(|each| each.kind == "library")
            .map(|each| each.name)
            .collect();
        assert_eq!(left_out, ["acts_by_itself"]);
    }

    #[test]
    fn wal_segments_of_any_size_leave_room_for_two() {
        for (size_mb, expected) in [(1, "80MB"), (16, "80MB"), (64, "128MB"), (1024, "2048MB")] {
            let settings = of(size_mb << 20, &[]);
            assert_eq!(value(&settings, "min_wal_size"), Some(expected));
        }
    }

    #[test]
    fn what_recovery_compares_is_at_least_what_the_wal_announces() {
        let settings = settings(&[]);
        assert_eq!(value(&settings, "max_connections"), Some("300"));
        assert_eq!(
            value(&settings, "max_wal_senders"),
            None,
            "the server's default where nothing was announced"
        );
        assert_eq!(value(&settings, "shared_buffers"), Some("512MB"));
        assert_eq!(value(&settings, "huge_pages"), Some("off"));
    }

    #[test]
    fn the_planted_archive_command_is_really_set_and_stays_in_the_copy() {
        let settings = settings(&[Fault::ArchiveCommandInherited]);
        assert_eq!(value(&settings, "archive_mode"), Some("on"));
        assert_eq!(
            value(&settings, "archive_command"),
            Some("cp '%p' '/copy/archived/%f'")
        );
        assert_eq!(
            settings.iter().filter(|(name, _)| name == "archive_mode").count(),
            1
        );
    }
}
