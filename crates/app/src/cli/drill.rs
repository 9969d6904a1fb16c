//! What may be typed after `pgproof drill` and `pgproof key` about evidence: audits, signatures, lists, what is due.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub struct DrillAudit {
    /// The drill's name, as `pgproof drill list` prints it [default: the latest]
    #[arg(value_name = "DRILL", default_value = "latest", hide_default_value = true)]
    pub drill: String,
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Read the evidence from this copy of the backups [default: the first that has it]
    #[arg(long, value_name = "NAME", conflicts_with = "bundle")]
    pub copy: Option<String>,
    /// Read the evidence from this folder, without a key or a repository
    #[arg(long, value_name = "DIR", conflicts_with = "cluster")]
    pub bundle: Option<PathBuf>,
}

/// As what somebody signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SignerRole {
    /// Ran the drill
    Operator,
    /// Looked at it, and is another person
    Reviewer,
}

#[derive(Debug, Args)]
pub struct DrillSign {
    /// The drill's name, as `pgproof drill list` prints it; or `latest`
    pub drill: String,
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    #[arg(long, value_enum)]
    pub role: SignerRole,
    /// The file of your signing key; `-`: standard input
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// A sentence that is signed with it
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<String>,
}

#[derive(Debug, Args)]
pub struct SigningNew {
    /// The person's name, as it stands in reports
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Where to write the private key [default: NAME.signing-key in the working directory]
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// What `drill show` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ShownFormat {
    /// The report
    Markdown,
    /// The report for print
    Html,
    /// The checks as test results
    Junit,
    /// The result as an in-toto statement
    InToto,
}

#[derive(Debug, Args)]
pub struct DrillShow {
    /// The drill's name, as `pgproof drill list` prints it; or `latest`
    pub drill: String,
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// With the signatures and follow-ups of now
    #[arg(long, value_enum, default_value = "markdown")]
    pub format: ShownFormat,
    /// Write the whole evidence, with its chain, into a folder of the drill's name below this one, for an auditor
    #[arg(long, value_name = "DIR")]
    pub into: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DrillDue {
    /// Only this profile
    #[arg(value_name = "PROFILE")]
    pub profile: Option<String>,
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Write the next four dates of each profile as iCalendar, with reminders a week and a day before
    #[arg(long, value_name = "FILE")]
    pub ics: Option<PathBuf>,
    /// The time zone of the team, as in Europe/Berlin [default: the machine's]
    #[arg(long, value_name = "NAME")]
    pub time_zone: Option<String>,
    /// Where the procedure is described, for the calendar
    #[arg(long, value_name = "URL", default_value = "docs/operations.md")]
    pub runbook: String,
    /// End with 3 when a drill is overdue
    #[arg(long)]
    pub check: bool,
}

#[derive(Debug, Subcommand)]
pub enum FollowUp {
    /// Enter what has to be done, by whom, and until when
    Add(FollowUpAdd),
    /// What is open; with --all, what was closed too
    List(FollowUpList),
    /// Close an entry by naming a later drill that passed
    Close(FollowUpClose),
}

#[derive(Debug, Args)]
pub struct FollowUpAdd {
    /// The drill that it follows from; or `latest`
    pub drill: String,
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    #[arg(long, value_name = "TEXT")]
    pub action: String,
    #[arg(long, value_name = "NAME")]
    pub owner: String,
    /// A day, as in 2026-02-15
    #[arg(long, value_name = "DAY")]
    pub due: jiff::civil::Date,
}

#[derive(Debug, Args)]
pub struct FollowUpList {
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Those that are closed, too
    #[arg(long)]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct FollowUpClose {
    /// DRILL/NUMBER, as `pgproof drill follow-up list` prints it
    #[arg(value_name = "ENTRY")]
    pub entry: String,
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// The later drill that passed; or `latest`
    #[arg(long, value_name = "DRILL")]
    pub by: String,
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
}
