//! The command line: what may be typed, as values. No choice is made here that a command could make.
//!
//! Words are PostgreSQL's. A command that is not built is not listed.

mod drill;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use drill::{
    DrillAudit, DrillDue, DrillShow, DrillSign, FollowUp, FollowUpAdd, FollowUpClose, FollowUpList,
    ShownFormat, SignerRole, SigningNew,
};

/// PostgreSQL recovery that is proven: backups, WAL archive, restore to any point in time, and drills.
#[derive(Debug, Parser)]
#[command(
    name = "pgproof",
    version,
    disable_help_subcommand = true,
    max_term_width = 110
)]
pub struct CommandLine {
    /// The configuration file [default: ./pgproof.toml, then /etc/pgproof/pgproof.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Print one JSON value instead of text
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look at a server, write the configuration, create the repository and its key
    Init(Init),
    /// Prove the set-up end to end, one line for each check
    Check(Check),
    /// What can be recovered now, and what would be lost
    Status(OfCluster),
    /// The configuration
    #[command(subcommand)]
    Config(Config),
    /// Take a base backup
    Backup(Backup),
    /// Make a backup of what other tools made: pg_basebackup's files or archives, and WAL archives
    Import(Import),
    /// List backups
    List(OfCluster),
    /// Show one backup
    Show(Show),
    /// Protect a backup from ever being expired
    Pin(Pin),
    /// Release a pinned backup
    Unpin(Unpin),
    /// Delete what [retention] no longer keeps, and what nothing refers to
    Expire(Expire),
    /// Read what is kept, and prove it whole
    Verify(Verify),
    /// What was done to a cluster's backups and with them, when and by whom
    AuditLog(AuditLog),
    /// The WAL archive
    #[command(subcommand)]
    Wal(Wal),
    /// Search the archived WAL: what happened, and the recovery target just before it
    Find(Find),
    /// Restore a data directory to a point in time
    Restore(Restore),
    /// Prove by a throw-away copy that recovery works
    #[command(subcommand)]
    Drill(Drill),
    /// Keys of the repositories
    #[command(subcommand)]
    Key(Key),
    /// The whole story on a throw-away cluster
    Demo(Demo),
    /// Asks a server on behalf of root (pgproof starts this itself)
    #[command(hide = true)]
    AskServer,
    /// Runs a program inside a quarantine (pgproof starts this itself)
    #[command(hide = true)]
    SandboxExec(SandboxExec),
}

#[derive(Debug, Args)]
pub struct OfCluster {
    /// The cluster's name in the configuration [default: the only one]
    #[arg(value_name = "CLUSTER")]
    pub cluster: Option<String>,
}

#[derive(Debug, Args)]
pub struct Init {
    /// How to connect, in libpq's words: "host=/var/run/postgresql user=postgres dbname=postgres"
    #[arg(long, value_name = "CONNINFO")]
    pub connection: String,
    /// Where to keep backups and WAL, for example file:///var/lib/pgproof or s3://BUCKET/PREFIX
    #[arg(long, value_name = "URL")]
    pub repository: String,
    /// The server's data directory [default: what the server says]
    #[arg(long, value_name = "DIR")]
    pub data_directory: Option<PathBuf>,
    /// Back up over the replication protocol, also when the data directory is on this host
    #[arg(long, conflicts_with = "data_directory")]
    pub protocol: bool,
    /// A name for the cluster
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub cluster: String,
    /// A name for this copy of the backups [default: local, or s3 for a bucket]
    #[arg(long, value_name = "NAME")]
    pub copy: Option<String>,
    #[command(flatten)]
    pub bucket: Bucket,
    /// Where to write the repository's key [default: COPY.key beside the configuration file]
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Open the repository by the passphrase that this shell command prints, instead of a key file
    #[arg(long, value_name = "COMMAND", conflicts_with = "key_file")]
    pub passphrase_command: Option<String>,
    /// Change the server's settings by ALTER SYSTEM
    #[arg(long)]
    pub apply: bool,
    /// Replace an archive_command or archive_library that belongs to something else
    #[arg(long)]
    pub replace_archive_command: bool,
    /// Show what would be written and changed, and stop
    #[arg(long)]
    pub dry_run: bool,
}

impl Init {
    /// The name of the copy.
    pub fn copy_name(&self) -> &str {
        match &self.copy {
            Some(name) => name,
            None if self.repository.starts_with("s3://") => "s3",
            None => "local",
        }
    }
}

/// How a bucket is reached.
#[derive(Debug, Args)]
pub struct Bucket {
    /// The store's address, if it is not Amazon's: https://HOST[:PORT]
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// The bucket's region [default: AWS_REGION]
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,
    /// Whether the bucket stands in the path of requests, not in the host's name [default: true with --endpoint]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub path_style: Option<bool>,
    /// Allow an endpoint that begins with http://
    #[arg(long)]
    pub allow_http: bool,
    /// The certificate (PEM) of the authority that issued the store's, where this host does not trust it anyway
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// A file in the form of ~/.aws/credentials, readable for the server's account
    #[arg(long, value_name = "FILE")]
    pub credentials_file: Option<PathBuf>,
    /// The profile in that file [default: default]
    #[arg(long, value_name = "NAME", requires = "credentials_file")]
    pub credentials_profile: Option<String>,
    /// A shell command that prints credentials as AWS's credential_process does
    #[arg(long, value_name = "COMMAND", conflicts_with = "credentials_file")]
    pub credentials_command: Option<String>,
}

impl Bucket {
    /// Nothing was given.
    pub fn is_empty(&self) -> bool {
        self.endpoint.is_none()
            && self.region.is_none()
            && self.path_style.is_none()
            && !self.allow_http
            && self.ca_file.is_none()
            && self.credentials_file.is_none()
            && self.credentials_command.is_none()
    }
}

#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    pub of: OfCluster,
    /// How long to wait for a WAL segment to arrive in every copy
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub wait: u64,
    /// Do not force a WAL switch on the server
    #[arg(long)]
    pub no_switch: bool,
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Print each value with where it came from
    Show,
}

#[derive(Debug, Args)]
pub struct Backup {
    #[command(flatten)]
    pub of: OfCluster,
    /// Wait for the server's next regular checkpoint instead of asking for one now
    #[arg(long)]
    pub spread_checkpoint: bool,
    /// Only into this copy [default: into every copy, one after the other]
    #[arg(long, value_name = "NAME")]
    pub copy: Option<String>,
    /// Store every page again, whatever the repository already holds
    #[arg(long)]
    pub full: bool,
    /// Read and verify every page, also those that the WAL says have not changed (every 32nd backup at the latest does)
    #[arg(long)]
    pub read_all: bool,
    /// The label that PostgreSQL keeps in backup_label
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// How long to wait for the backup's WAL to be archived
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub archive_timeout: u64,
    /// Worker threads [default: one for each core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Show what would be backed up, and stop
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct Import {
    #[command(flatten)]
    pub of: OfCluster,
    /// The base backup: a data directory, an archive of one, or the folder that `pg_basebackup -Ft` made
    #[arg(long, value_name = "PATH")]
    pub base: Option<PathBuf>,
    /// WAL: a folder, an archive, or one segment; may be given several times
    #[arg(long, value_name = "PATH")]
    pub wal: Vec<PathBuf>,
    /// Only into this copy [default: into every copy, one after the other]
    #[arg(long, value_name = "NAME")]
    pub copy: Option<String>,
    /// Read and check everything, show what would be stored, and stop
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct Show {
    /// The backup's name, as `pgproof list` prints it; or `latest`
    pub backup: String,
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// List its files
    #[arg(long)]
    pub files: bool,
    /// Count the objects and bytes that it shares and that it alone keeps alive
    #[arg(long)]
    pub cost: bool,
}

#[derive(Debug, Args)]
pub struct Pin {
    /// The backup's name, as `pgproof list` prints it; or `latest`
    pub backup: String,
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Why; shown by `pgproof list`
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// The pin ends by itself then: a time, such as "2027-01-01 00:00 UTC" [default: never]
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Show what would be changed, and stop
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct Unpin {
    /// The backup's name, as `pgproof list` prints it; or `latest`
    pub backup: String,
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Why
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// Show what would be changed, and stop
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct Expire {
    #[command(flatten)]
    pub of: OfCluster,
    /// Only this copy
    #[arg(long, value_name = "NAME")]
    pub copy: Option<String>,
    /// Wait until what nothing refers to may be deleted (about 70 minutes), and delete it in the same run
    #[arg(long)]
    pub wait: bool,
    /// Print the plan, and stop
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    pub of: OfCluster,
    /// Only this copy
    #[arg(long, value_name = "NAME")]
    pub copy: Option<String>,
    /// Check stored bytes against their checksums without decrypting and decoding them
    #[arg(long)]
    pub no_decode: bool,
    /// Worker threads [default: one for each core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

#[derive(Debug, Args)]
pub struct AuditLog {
    #[command(flatten)]
    pub of: OfCluster,
    /// Not before this time
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only this copy
    #[arg(long, value_name = "NAME")]
    pub copy: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Wal {
    /// For archive_command: keep one finished WAL file
    Push(WalPush),
    /// For restore_command: place one WAL file (0 placed, 1 absent, 126 anything else)
    Get(WalGet),
    /// Keep a server's WAL without its archiver: stream it, until told to end
    Receive(WalReceive),
    /// Make this server the one that archives its timeline, when it has replaced another for good
    TakeOver(WalTakeOver),
    /// What the archive holds, by timeline
    Status(OfCluster),
    /// WAL that is missing; exit code 3 when there is any
    Gaps(OfCluster),
    /// Pushes what waits behind a segment (`wal push` starts this itself)
    #[command(hide = true)]
    PushAhead(WalPush),
    /// Fetches what recovery will ask for (`wal get` starts this itself)
    #[command(hide = true)]
    FetchAhead(WalFetchAhead),
}

#[derive(Debug, Args)]
pub struct WalPush {
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// The file (%p), relative to the data directory
    pub path: PathBuf,
}

#[derive(Debug, Args)]
pub struct WalReceive {
    #[command(flatten)]
    pub of: OfCluster,
    /// The physical replication slot that keeps WAL until it is safe; made when it is missing [default:
    /// pgproof_CLUSTER]
    #[arg(long, value_name = "NAME")]
    pub slot: Option<String>,
}

#[derive(Debug, Args)]
pub struct WalTakeOver {
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Why; kept with the claim
    #[arg(long, value_name = "TEXT", default_value = "by hand")]
    pub reason: String,
    /// Show what would be changed, and stop
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct WalGet {
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// The file's name (%f)
    pub file: String,
    /// Where to put it (%p)
    pub path: PathBuf,
}

#[derive(Debug, Args)]
pub struct WalFetchAhead {
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// The data directory that recovers
    pub data_directory: PathBuf,
}

#[derive(Debug, Args)]
pub struct Find {
    /// Only this table: NAME, SCHEMA.NAME or DATABASE.SCHEMA.NAME
    #[arg(long, value_name = "NAME")]
    pub table: Option<String>,
    /// Only these events: drop, truncate, delete, update, rewrite, drop-database [default: all but rewrites of unnamed tables]
    #[arg(long, value_name = "EVENT", value_delimiter = ',')]
    pub event: Vec<String>,
    /// What happened around this time (five minutes before and after)
    #[arg(long, value_name = "TIME", conflicts_with_all = ["from", "until"])]
    pub at: Option<String>,
    /// Not before this time
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Not after this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// A delete or an update counts when it removed or changed at least this share of the table
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    pub minimum_share: f64,
    /// ... and at least this many rows
    #[arg(long, value_name = "ROWS", default_value_t = 100)]
    pub minimum_rows: u64,
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
}

#[derive(Debug, Args)]
pub struct Restore {
    #[command(flatten)]
    pub of: OfCluster,
    #[command(flatten)]
    pub target: RestoreTarget,
    /// The timeline to recover along: its number; `current`, the newest backup's; or `latest`, the newest one that a known
    /// server wrote [default: current]
    #[arg(long, value_name = "N|latest|current")]
    pub timeline: Option<String>,
    /// Restore from this backup instead of the best one
    #[arg(long, value_name = "BACKUP")]
    pub backup: Option<String>,
    /// The directory to restore into; an existing one is kept aside
    #[arg(long, value_name = "DIR", required_unless_present = "adopt")]
    pub into: Option<PathBuf>,
    /// Only from this copy [default: the first that has the backup]
    #[arg(long, value_name = "NAME")]
    pub copy: Option<String>,
    /// Put a tablespace elsewhere; may be given several times
    #[arg(long, visible_alias = "tablespace-mapping", value_name = "NAME|OLD=DIR")]
    pub tablespace: Vec<String>,
    /// Put every tablespace that is not named otherwise below this directory
    #[arg(long, value_name = "DIR")]
    pub tablespaces_into: Option<PathBuf>,
    /// Let replay create tablespaces at their own paths although a server runs on this host
    #[arg(long)]
    pub allow_created_tablespaces: bool,
    /// Overwrite DIR where it differs from the backup, instead of keeping it aside; what it holds is lost
    #[arg(long, conflicts_with = "adopt")]
    pub delta: bool,
    /// The cluster's name, typed again: consent to --delta
    #[arg(long, value_name = "NAME", requires = "delta")]
    pub confirm: Option<String>,
    /// What the server does at the target: pause, promote or shutdown [default: pause at a time, a transaction or a name;
    /// promote just before a transaction, at an LSN, and at the end of the WAL]
    #[arg(long, value_name = "ACTION")]
    pub action: Option<String>,
    /// Worker threads [default: one for each core; with --delta at least 4]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Let the server restored in DIR archive again: it becomes production
    #[arg(long, value_name = "DIR", conflicts_with_all = ["into", "to", "to_xid", "before_xid", "to_name"])]
    pub adopt: Option<PathBuf>,
    /// Print the plan, and stop
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct RestoreTarget {
    /// A time, an LSN, `latest` or `immediate`
    #[arg(long, value_name = "TIME|LSN|latest|immediate")]
    pub to: Option<String>,
    /// Up to and including this transaction
    #[arg(long, value_name = "XID")]
    pub to_xid: Option<u32>,
    /// Up to the moment before this transaction committed
    #[arg(long, value_name = "XID")]
    pub before_xid: Option<u32>,
    /// A named restore point
    #[arg(long, value_name = "NAME")]
    pub to_name: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Drill {
    /// Restore a throw-away copy for real, prove it equal to production, write the report
    Run(DrillRun),
    /// Print what a drill would do, with expected times; touches nothing
    Plan(DrillPlan),
    /// Go or no-go: look through the gates, days before a drill and minutes before it
    Preflight(DrillOf),
    /// Take up a drill that was killed, from its last whole step
    Resume(DrillResume),
    /// End a drill that runs, in an orderly way: its copy is removed, and it is recorded as ABORTED
    Abort(DrillAbort),
    /// Say that a step which people make was made, to the drill that waits for it
    Confirm(DrillConfirm),
    /// Drill the drill: plant faults in clones of the backups, and see each caught
    Selftest(DrillSelftest),
    /// Look through a server that stands already, after a restore or a failover, with the checks of a profile; changes nothing
    Verify(DrillVerify),
    /// Commit a standing marker in production, by which points of the past are proved later; run it from a timer
    Mark(OfCluster),
    /// List drills with their quarter, recovery time and status, what is scheduled, and the trend
    List(OfCluster),
    /// Show one drill's report
    Show(DrillShow),
    /// Judge a recorded drill again: every hash, the chain, the signatures, and the verdict from the facts
    Audit(DrillAudit),
    /// Sign a recorded drill
    Sign(DrillSign),
    /// When the next drills are due, also as a calendar
    Due(DrillDue),
    /// What drills ask people to do
    #[command(subcommand)]
    FollowUp(FollowUp),
}

#[derive(Debug, Args)]
pub struct DrillVerify {
    /// Whose checks are made: a drill's name in the configuration, or a built-in profile [default: the only one, else `default`]
    #[arg(value_name = "PROFILE")]
    pub profile: Option<String>,
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// How to reach the server, as libpq writes it
    #[arg(long, value_name = "CONNINFO", required_unless_present = "data_directory")]
    pub connection: Option<String>,
    /// The directory in which it runs on this host, instead
    #[arg(long, value_name = "DIR", conflicts_with = "connection")]
    pub data_directory: Option<PathBuf>,
    /// The time that the age of data is told against [default: the newest commit that recovery replayed, else now]
    #[arg(long, value_name = "TIME")]
    pub target: Option<String>,
}

/// Which drill is meant.
#[derive(Debug, Args)]
pub struct DrillOf {
    /// The drill's name in the configuration, or a built-in profile [default: the only one, else `default`; with
    /// TARGET_ENV=staging `quarterly-pitr`]
    #[arg(value_name = "PROFILE")]
    pub profile: Option<String>,
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Judge the objectives of this profile as well
    #[arg(long, value_name = "PROFILE")]
    pub also: Vec<String>,
    /// `bracket` (a point that the drill makes itself), what `restore --to` takes, `random` (a moment of the past), or
    /// `worst` (the one whose recovery is predicted to take longest)
    #[arg(long, value_name = "TARGET")]
    pub target: Option<String>,
    /// Draw the random point by this seed again
    #[arg(long, value_name = "TEXT")]
    pub seed: Option<String>,
    /// Where to put the throw-away copy [default: below /var/tmp]
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Restore from this copy of the backups [default: the first that has one]
    #[arg(long, value_name = "NAME")]
    pub copy: Option<String>,
    /// Who runs it [default: the profile's, else the account's name]
    #[arg(long, value_name = "NAME")]
    pub operator: Option<String>,
    /// Who reviews it [default: the profile's]
    #[arg(long, value_name = "NAME")]
    pub reviewer: Option<String>,
}

#[derive(Debug, Args)]
pub struct DrillPlan {
    #[command(flatten)]
    pub of: DrillOf,
    /// Keep the plan and its criteria as evidence, before the drill is run
    #[arg(long)]
    pub register: bool,
    /// When the drill is to be run
    #[arg(long, value_name = "TIME", requires = "register")]
    pub due: Option<String>,
}

#[derive(Debug, Args)]
pub struct DrillRun {
    #[command(flatten)]
    pub of: DrillOf,
    /// Keep the copy when the drill has ended
    #[arg(long)]
    pub keep: bool,
    /// Why it is run
    #[arg(long, value_name = "TEXT", default_value = "by hand")]
    pub trigger: String,
    /// Plant a fault in the throw-away copy, which the drill must then find: to drill the drill
    #[arg(long, value_name = "FAULT")]
    pub plant: Vec<PlantedFault>,
    /// Worker threads [default: one for each core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Sign the result as operator with the key in this file; `-`: standard input
    #[arg(long, value_name = "FILE")]
    pub sign_key: Option<PathBuf>,
    /// Confirm a step which people make beforehand: its id, and by whom
    #[arg(long, value_name = "ID=NAME", value_parser = confirmation)]
    pub confirm: Vec<(String, String)>,
}

fn confirmation(text: &str) -> Result<(String, String), String> {
    let (id, name) = text.split_once('=').ok_or("it is written ID=NAME")?;
    Ok((id.to_owned(), name.to_owned()))
}

#[derive(Debug, Args)]
pub struct DrillAbort {
    /// The drill's name [default: the only one that runs there]
    #[arg(value_name = "DRILL")]
    pub drill: Option<String>,
    /// Where its throw-away copy is [default: below /var/tmp]
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DrillConfirm {
    /// The step's id, as the drill prints it
    #[arg(value_name = "ID")]
    pub id: String,
    /// Who confirms it
    #[arg(long, value_name = "NAME")]
    pub by: String,
    /// The drill's name [default: the only one that runs there]
    #[arg(long, value_name = "DRILL")]
    pub drill: Option<String>,
    /// Where its throw-away copy is [default: below /var/tmp]
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// The step is not made, for this reason
    #[arg(long, value_name = "REASON")]
    pub skip: Option<String>,
}

#[derive(Debug, Args)]
pub struct DrillResume {
    /// The drill's name [default: the only one that was interrupted there]
    #[arg(value_name = "DRILL")]
    pub drill: Option<String>,
    /// Where its throw-away copy is [default: below /var/tmp]
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Worker threads [default: one for each core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

#[derive(Debug, Args)]
pub struct DrillSelftest {
    #[command(flatten)]
    pub of: DrillOf,
    /// Plant only this fault, by its word in the matrix
    #[arg(long, value_name = "FAULT")]
    pub fault: Vec<String>,
    /// Worker threads [default: one for each core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// A fault in the throw-away copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PlantedFault {
    /// One row is changed on disk, under a valid page checksum
    RowChanged,
    /// The copy starts with archive_mode=on and an archive_command
    ArchiveCommand,
}

#[derive(Debug, Subcommand)]
pub enum Key {
    /// Print the key itself, to keep it elsewhere: without it nothing can be restored
    Export(KeyOf),
    /// Say which key opens which repository, without showing it
    Show(KeyOf),
    /// Make a key with which a person signs drills, and put its public half into the configuration
    SigningNew(SigningNew),
}

#[derive(Debug, Args)]
pub struct KeyOf {
    /// The copy's name in the configuration [default: the only one]
    #[arg(value_name = "COPY")]
    pub copy: Option<String>,
}

#[derive(Debug, Args)]
pub struct Demo {
    /// Where to build the throw-away cluster [default: a new directory under the system's temporary one]
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Keep everything when the demonstration has ended
    #[arg(long)]
    pub keep: bool,
}

#[derive(Debug, Args)]
pub struct SandboxExec {
    /// What the quarantine looks like, as JSON
    #[arg(long, value_name = "FILE")]
    pub spec: PathBuf,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub program: Vec<std::ffi::OsString>,
}
