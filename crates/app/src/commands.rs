//! One room for each command: gather, call, show.

mod audit_log;
mod backup;
mod check;
mod config;
mod drill;
mod drill_abort;
mod drill_audit;
mod drill_confirm;
mod drill_due;
mod drill_follow_up;
mod drill_list;
mod drill_plan;
mod drill_resume;
mod drill_selftest;
mod drill_setup;
mod drill_show;
mod drill_sign;
mod drill_stored;
mod drill_verify;
mod expire;
mod find;
mod import;
mod init;
mod key;
mod key_signing;
mod list;
mod restore;
mod sandbox;
mod status;
mod verify;
mod wal;
mod wal_ahead;
mod wal_prefetch;
mod wal_receive;

use diagnostic::Result;

use crate::cli::{self, Command};
use crate::context::Context;
use crate::{account, demo};

pub use wal::host_name;

/// Runs the command; the value is the exit code.
pub fn run(context: &Context, command: Command) -> Result<u8> {
    match command {
        Command::Init(arguments) => init::run(context, &arguments),
        Command::Check(arguments) => check::run(context, &arguments),
        Command::Status(arguments) => status::run(context, &arguments),
        Command::Config(cli::Config::Show) => config::show(context),
        Command::Backup(arguments) => backup::run(context, &arguments),
        Command::Import(arguments) => import::run(context, &arguments),
        Command::List(arguments) => list::list(context, &arguments),
        Command::Show(arguments) => list::show(context, &arguments),
        Command::Pin(arguments) => list::pin(context, &arguments),
        Command::Unpin(arguments) => list::unpin(context, &arguments),
        Command::Expire(arguments) => expire::run(context, &arguments),
        Command::Verify(arguments) => verify::run(context, &arguments),
        Command::AuditLog(arguments) => audit_log::run(context, &arguments),
        Command::Wal(cli::Wal::Push(arguments)) => wal::push(context, &arguments),
        Command::Wal(cli::Wal::Get(arguments)) => wal::get(context, &arguments),
        Command::Wal(cli::Wal::Receive(arguments)) => wal_receive::run(context, &arguments),
        Command::Wal(cli::Wal::TakeOver(arguments)) => wal::take_over(context, &arguments),
        Command::Wal(cli::Wal::Status(arguments)) => wal::status(context, &arguments),
        Command::Wal(cli::Wal::Gaps(arguments)) => wal::gaps(context, &arguments),
        Command::Wal(cli::Wal::PushAhead(arguments)) => wal_ahead::push_ahead(context, &arguments),
        Command::Wal(cli::Wal::FetchAhead(arguments)) => wal_prefetch::fetch_ahead(context, &arguments),
        Command::Key(cli::Key::Export(arguments)) => key::export(context, &arguments),
        Command::Key(cli::Key::Show(arguments)) => key::show(context, &arguments),
        Command::Key(cli::Key::SigningNew(arguments)) => key_signing::new(context, &arguments),
        Command::Demo(arguments) => demo::run(context, &arguments),
        Command::AskServer => account::serve_errand(),
        Command::Find(arguments) => find::run(context, &arguments),
        Command::SandboxExec(arguments) => sandbox::run(&arguments),
        Command::Restore(arguments) => restore::run(context, &arguments),
        Command::Drill(cli::Drill::Run(arguments)) => drill::run(context, &arguments),
        Command::Drill(cli::Drill::Resume(arguments)) => drill_resume::run(context, &arguments),
        Command::Drill(cli::Drill::Abort(arguments)) => drill_abort::run(&arguments),
        Command::Drill(cli::Drill::Confirm(arguments)) => drill_confirm::run(context, &arguments),
        Command::Drill(cli::Drill::Selftest(arguments)) => drill_selftest::run(context, &arguments),
        Command::Drill(cli::Drill::Plan(arguments)) => drill_plan::plan(context, &arguments),
        Command::Drill(cli::Drill::Preflight(arguments)) => drill_plan::preflight(context, &arguments),
        Command::Drill(cli::Drill::Verify(arguments)) => drill_verify::run(context, &arguments),
        Command::Drill(cli::Drill::Mark(arguments)) => drill_plan::mark(context, &arguments),
        Command::Drill(cli::Drill::List(arguments)) => drill_list::run(context, &arguments),
        Command::Drill(cli::Drill::Show(arguments)) => drill_show::run(context, &arguments),
        Command::Drill(cli::Drill::Audit(arguments)) => drill_audit::run(context, &arguments),
        Command::Drill(cli::Drill::Sign(arguments)) => drill_sign::run(context, &arguments),
        Command::Drill(cli::Drill::Due(arguments)) => drill_due::run(context, &arguments),
        Command::Drill(cli::Drill::FollowUp(cli::FollowUp::Add(arguments))) => {
            drill_follow_up::add(context, &arguments)
        }
        Command::Drill(cli::Drill::FollowUp(cli::FollowUp::List(arguments))) => {
            drill_follow_up::list(context, &arguments)
        }
        Command::Drill(cli::Drill::FollowUp(cli::FollowUp::Close(arguments))) => {
            drill_follow_up::close(context, &arguments)
        }
    }
}
