//! Measures base backup and WAL push on a cluster and a repository that are at hand; prints one line of figures each.
//!
//! `measure backup CONNINFO URL KEY_FILE THREADS [full]` and `measure push URL KEY_FILE DATA_DIRECTORY FILE..`;
//! repository and key file are made when they are missing. `measure demand URL KEY_FILE DATA_DIRECTORY FILE` is an
//! archive_command.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use backup::{BaseBackupOptions, Copy, PlanOptions, PushOptions};
use diagnostic::{Error, Result};
use jiff::Timestamp;
use repository::{ClusterRepository, RecipientKey, Repository, create_store, open_store};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.as_slice() {
        ["backup", conninfo, url, key, threads, rest @ ..] => {
            measure_backup(conninfo, url, key, threads, rest.contains(&"full"))
        }
        ["push", url, key, data_directory, files @ ..] => measure_push(url, key, data_directory, files),
        ["demand", url, key, data_directory, file] => demand(url, key, data_directory, file),
        _ => Err(Error::usage("usage", "see the head of examples/measure.rs")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{}", error.render());
            ExitCode::FAILURE
        }
    }
}

fn cluster_repository(url: &str, key_file: &str) -> Result<ClusterRepository> {
    let key = match std::fs::read_to_string(key_file) {
        Ok(text) => RecipientKey::from_key_file_text(&text)?,
        Err(_) => {
            let key = RecipientKey::generate()?;
            std::fs::write(key_file, key.to_key_file_text()?.as_bytes())
                .map_err(|error| Error::io("key-write", "cannot write the key file", &error))?;
            key
        }
    };
    let folder = url.trim_start_matches("file://");
    let repository = if Path::new(folder).join("repository.json").exists() {
        Repository::open(open_store(url)?, &key)?
    } else {
        Repository::create(create_store(url)?, &key, Timestamp::now())?
    };
    repository.cluster("measured")
}

fn measure_backup(conninfo: &str, url: &str, key: &str, threads: &str, full: bool) -> Result<()> {
    let repository = cluster_repository(url, key)?;
    let began = Instant::now();
    let plan = backup::base::plan(
        conninfo,
        &repository,
        &PlanOptions {
            full,
            ..PlanOptions::default()
        },
        Timestamp::now(),
    )?;
    print!("{plan}");
    let planned = began.elapsed();
    let stages = Stages::default();
    let options = BaseBackupOptions {
        threads: threads.parse().unwrap_or(2),
        label: "measured".into(),
        fast_checkpoint: true,
        archive_timeout: Duration::from_secs(60),
        audit_one_in: backup::base::AUDIT_ONE_IN,
        clock: &Timestamp::now,
        progress: &stages,
    };
    let result = backup::base::run(&plan, conninfo, &repository, &options);
    stages.print(planned);
    let result = result?;
    println!("{:?}", repository.repository().store().requests());
    println!(
        "{}: read {} MB, stored {:.1} MB, pages stored {} reused {}, findings {:?}",
        result.backup.backup,
        result.bytes_read / 1_000_000,
        result.bytes_stored as f64 / 1e6,
        result.pages_stored,
        result.pages_reused,
        result.findings
    );
    println!("wall {:.2} s, {}", began.elapsed().as_secs_f64(), resources());
    Ok(())
}

/// When each stage began.
#[derive(Default)]
struct Stages(std::sync::Mutex<Vec<(backup::Stage, Instant)>>);

impl backup::Progress for Stages {
    fn update(&self, state: &backup::ProgressState) {
        if let Ok(mut stages) = self.0.lock()
            && stages.last().is_none_or(|(stage, _)| *stage != state.stage)
        {
            stages.push((state.stage, Instant::now()));
        }
    }
}

impl Stages {
    fn print(&self, planned: Duration) {
        print!("planning {:.2} s", planned.as_secs_f64());
        if let Ok(stages) = self.0.lock() {
            let ends = stages
                .iter()
                .skip(1)
                .map(|(_, begin)| *begin)
                .chain([Instant::now()]);
            for ((stage, begin), end) in stages.iter().zip(ends) {
                print!(", {stage:?} {:.2} s", (end - *begin).as_secs_f64());
            }
        }
        println!();
    }
}

/// CPU seconds and peak memory of this process, from /proc.
fn resources() -> String {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or(0.0)
            / 100.0
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap_or_default();
    format!(
        "CPU user {:.2} s + system {:.2} s, {}",
        ticks(11),
        ticks(12),
        peak.replace('\t', " ")
    )
}

fn options(data_directory: &str, file: &str) -> PushOptions {
    PushOptions {
        path: PathBuf::from(file),
        data_directory: PathBuf::from(data_directory),
        host_id: "measured".into(),
        acknowledge: 1,
    }
}

fn measure_push(url: &str, key: &str, data_directory: &str, files: &[&str]) -> Result<()> {
    let repository = cluster_repository(url, key)?;
    let copies = [Copy {
        name: "measured",
        repository: &repository,
    }];
    let mut totals = Vec::new();
    let mut stored = 0;
    for file in files {
        let result = backup::push(&copies, &options(data_directory, file), Timestamp::now())?;
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        let phases = result.phases;
        if files.len() < 20 {
            println!(
                "{}: read {:.1} index {:.1} store {:.1} total {:.1} ms",
                result.file,
                ms(phases.read),
                ms(phases.index),
                ms(phases.store),
                ms(phases.total)
            );
        }
        totals.push((
            ms(phases.total),
            ms(phases.read),
            ms(phases.index),
            ms(phases.store),
        ));
        stored += result
            .copies
            .iter()
            .filter_map(|copy| copy.stored.as_ref().ok())
            .map(|put| put.stored_bytes)
            .sum::<u64>();
    }
    totals.sort_by(|one, two| one.0.total_cmp(&two.0));
    if let (Some(middle), Some(late)) = (totals.get(totals.len() / 2), totals.get(totals.len() * 95 / 100)) {
        println!(
            "{} pushes: p50 {:.1} ms (read {:.1}, index {:.1}, store {:.1}), p95 {:.1} ms, stored {} bytes; {}",
            totals.len(),
            middle.0,
            middle.1,
            middle.2,
            middle.3,
            late.0,
            stored,
            resources()
        );
    }
    Ok(())
}

fn demand(url: &str, key: &str, data_directory: &str, file: &str) -> Result<()> {
    let repository = cluster_repository(url, key)?;
    backup::push(
        &[Copy {
            name: "measured",
            repository: &repository,
        }],
        &options(data_directory, file),
        Timestamp::now(),
    )?;
    Ok(())
}
