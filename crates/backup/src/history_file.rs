//! The history of the server's timeline, from `pg_wal` or from the repository.

use std::path::Path;

use diagnostic::{Error, Result};
use postgres::{SystemIdentifier, TimelineHistory, TimelineId};
use repository::{ClusterRepository, WalFileKind};

/// A history file is a few lines; what is larger is none.
const HISTORY_BYTES_MAX: usize = 1 << 20;

/// Reads `XXXXXXXX.history` of a timeline. Timeline 1 has none. Error: `timeline-history-missing`, and the parser's.
pub(crate) fn read_history(
    data_directory: &Path,
    repository: &ClusterRepository,
    system: SystemIdentifier,
    timeline: TimelineId,
) -> Result<TimelineHistory> {
    if timeline.0 <= 1 {
        return Ok(TimelineHistory::root(timeline));
    }
    let name = format!("{}.history", timeline.hex8());
    let path = data_directory.join("pg_wal").join(&name);
    match std::fs::read(&path) {
        Ok(content) if content.len() <= HISTORY_BYTES_MAX => {
            return TimelineHistory::parse(timeline, &content);
        }
        Ok(_) => {
            return Err(Error::new(
                "timeline-history-damaged",
                format!("timeline history file \"{name}\" is damaged"),
            )
            .detail(format!("\"{}\" is larger than any history file.", path.display())));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(Error::io(
                "file-read",
                format!("cannot read file \"{}\"", path.display()),
                &error,
            ));
        }
    }
    match repository.get_file(system, WalFileKind::History, &name)?.first() {
        Some(content) => TimelineHistory::parse(timeline, content),
        None => Err(Error::new("timeline-history-missing", format!("the history of timeline {timeline} is not known"))
            .detail(format!(
                "\"{name}\" is neither in \"{}\" nor in the repository. Without it nobody can tell which backups and \
                 which WAL belong to this cluster.",
                path.parent().unwrap_or(data_directory).display()
            ))
            .hint(format!(
                "Copy {name} from another server of this cluster into pg_wal, and run `pgproof wal push` on it."
            ))),
    }
}
