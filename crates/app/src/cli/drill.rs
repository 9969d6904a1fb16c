//! What may be typed after `pgproof drill` and `pgproof key` about evidence: audits, signatures, lists, what is due.

use std::path::PathBuf;

use clap::Args;

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
