//! `pgproof wal receive`: keeps a server's WAL without its archiver, until it is told to end.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use backup::Copy;
use backup::wal_receive::{ReceiveEvent, ReceiveOptions, receive};
use diagnostic::{Error, Result};
use serde_json::json;

use crate::cli;
use crate::commands::wal;
use crate::context::Context;
use crate::copies::Copies;
use crate::{account, exit, output};

pub fn run(context: &Context, arguments: &cli::WalReceive) -> Result<u8> {
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.of.cluster.as_deref())?;
    account::become_owner(&configuration, cluster)?;
    let copies = Copies::open_all(&configuration, cluster, None)?;
    let given: Vec<Copy<'_>> = copies
        .iter()
        .map(|copy| Copy {
            name: &copy.name,
            repository: &copy.cluster,
        })
        .collect();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Error::io("signal", "cannot watch for signals", &error))?;
    }
    let clock = || context.now();
    let tell = |event: ReceiveEvent<'_>| tell(context.json, &event);
    let slot = arguments
        .slot
        .clone()
        .unwrap_or_else(|| format!("pgproof_{}", cluster.name.replace('-', "_")));
    let options = ReceiveOptions {
        slot,
        writer: backup::base::streaming_writer(&wal::host_id()),
        acknowledge: cluster.acknowledge,
        stop: &stop,
        clock: &clock,
        tell: &tell,
    };
    receive(&cluster.connection, &given, &options)?;
    Ok(exit::DONE)
}

/// One line for each event; JSON lines with `--json`.
fn tell(as_json: bool, event: &ReceiveEvent<'_>) {
    match event {
        ReceiveEvent::Streaming { timeline, from } if as_json => {
            output::json(&json!({ "event": "streaming", "timeline": timeline, "from": from }));
        }
        ReceiveEvent::Streaming { timeline, from } => {
            output::line(format!("streaming WAL of timeline {timeline} from {from}"));
        }
        ReceiveEvent::Stored { segment, copies } if as_json => {
            output::json(&json!({ "event": "stored", "file": segment, "copies": copies }));
        }
        ReceiveEvent::Stored { segment, copies } => {
            output::line(format!("{segment} is durable in {copies} copies"));
        }
        ReceiveEvent::Missing { segment, copy, error } => {
            output::notice(format!("warning: {segment} is not in copy {copy:?}"));
            exit::print_error(error);
        }
        ReceiveEvent::Lost { error, pause } => {
            output::notice(format!("warning: trying again in {} s", pause.as_secs()));
            exit::print_error(error);
        }
    }
}
