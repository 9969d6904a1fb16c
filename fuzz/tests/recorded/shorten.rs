//! Cuts down what servers said: a data directory has megabytes, and a seed is to be small. What is left is as they wrote
//! it, but for lengths and for the manifest's own checksum.

use postgres::Lsn;

const BLOCK: usize = 512;
/// Larger files are left out, but for those that decide.
const FILE_BYTES_MAX: usize = 400;
/// Of a WAL message.
const WAL_BYTES_MAX: usize = 200;
const CONTROL_FILE: &str = "global/pg_control";

/// A base backup, cut down.
pub struct BaseBackup {
    pub conversation: Vec<u8>,
    /// Tar archives in their order, without `pg_control`'s zeros.
    pub archives: Vec<Vec<u8>>,
    pub manifest: Vec<u8>,
    /// The member with `pg_control`, whole.
    control: Vec<u8>,
}

fn messages(mut said: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut messages = Vec::new();
    while let Some((&tag, rest)) = said.split_first() {
        // The last one may not have come whole.
        let length = (u32::from_be_bytes(*rest.first_chunk().unwrap()) as usize).min(rest.len());
        messages.push((tag, rest[4..length].to_vec()));
        said = &rest[length..];
    }
    messages
}

fn put(out: &mut Vec<u8>, tag: u8, body: &[u8]) {
    out.push(tag);
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
}

/// The result with the most rows, and of it no more than these.
pub fn largest_result(said: &[u8], rows_max: usize) -> Vec<u8> {
    // The conversation has several connections in it, each of which ends without a word of the server's.
    let messages = messages(said);
    let ends = |message: &(u8, Vec<u8>)| message.0 == b'Z';
    let largest = messages
        .split_inclusive(ends)
        .max_by_key(|result| result.len())
        .unwrap();
    let mut out = Vec::new();
    let mut rows = 0;
    for (tag, body) in largest {
        rows += usize::from(*tag == b'D');
        if *tag != b'D' || rows <= rows_max {
            put(&mut out, *tag, body);
        }
    }
    out
}

/// `letters`: each message of the data begins with one (from 15 on).
pub fn base_backup(said: &[u8], letters: bool) -> BaseBackup {
    let mut base = BaseBackup {
        conversation: Vec::new(),
        archives: Vec::new(),
        manifest: Vec::new(),
        control: Vec::new(),
    };
    let mut kept = Vec::new();
    let mut data = Vec::new();
    for (tag, body) in messages(said) {
        let letter = match (tag, letters) {
            (b'd', true) => body[0],
            (b'd', false) => b'd',
            _ => 0,
        };
        match letter {
            b'd' => data.extend_from_slice(&body[usize::from(letters)..]),
            b'p' => {}
            _ => {
                base.flush(&mut data, &mut kept, letters);
                put(&mut base.conversation, tag, &body);
            }
        }
    }
    base
}

impl BaseBackup {
    fn flush(&mut self, data: &mut Vec<u8>, kept: &mut Vec<String>, letters: bool) {
        let data = std::mem::take(data);
        if data.is_empty() {
            return;
        }
        let shortened = if data.starts_with(b"{") {
            self.manifest = manifest(&data, kept);
            self.manifest.clone()
        } else {
            let archive = self.archive(&data, kept);
            self.archives.push(archive.clone());
            archive
        };
        let letter: &[u8] = if letters { b"d" } else { b"" };
        put(&mut self.conversation, b'd', &[letter, &shortened].concat());
    }

    fn archive(&mut self, tar: &[u8], kept: &mut Vec<String>) -> Vec<u8> {
        let mut out = Vec::new();
        let mut at = 0;
        let mut directories = 0;
        while let Some(header) = tar.get(at..at + BLOCK).filter(|header| header[0] != 0) {
            let name =
                String::from_utf8(header[..100].split(|byte| *byte == 0).next().unwrap().into()).unwrap();
            let digits = std::str::from_utf8(&header[124..135]).unwrap();
            let size = usize::from_str_radix(digits, 8).unwrap();
            let end = at + BLOCK + size.next_multiple_of(BLOCK);
            directories += usize::from(header[156] == b'5');
            if name == CONTROL_FILE {
                self.control = tar[at..end].to_vec();
                kept.push(name);
            } else if size <= FILE_BYTES_MAX && (header[156] != b'5' || directories <= 4) && kept.len() < 14 {
                out.extend_from_slice(&tar[at..end]);
                kept.push(name);
            }
            at = end;
        }
        out.extend_from_slice(&[0; 2 * BLOCK]);
        out
    }
}

/// The lines of files that were kept.
fn manifest(manifest: &[u8], kept: &[String]) -> Vec<u8> {
    let text = std::str::from_utf8(manifest).unwrap();
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        if line.starts_with("{ \"Path\"") {
            let path = line.split('"').nth(3).unwrap();
            if kept.iter().any(|kept| kept == path) {
                lines.push(format!("{},", line.trim_end_matches(',')));
            }
        } else {
            // The last of a list has no comma behind it.
            if line.starts_with(']')
                && let Some(last) = lines.last_mut()
                && last.starts_with("{ \"Path\"")
            {
                last.pop();
            }
            lines.push(line.to_owned());
        }
    }
    let mut bytes = (lines.join("\n") + "\n").into_bytes();
    fuzz::seal::manifest(&mut bytes);
    bytes
}

/// What `pg_basebackup -Ft` makes of it, as one archive: the data directory's, with manifest and control file.
pub fn as_base_archive(base: &BaseBackup) -> Vec<u8> {
    let archive = base.archives.last().unwrap();
    let mut out = archive[..archive.len() - 2 * BLOCK].to_vec();
    out.extend_from_slice(&base.control);
    let mut header = base.control[..BLOCK].to_vec();
    header[..100].fill(0);
    header[..15].copy_from_slice(b"backup_manifest");
    header[124..136].copy_from_slice(format!("{:011o}\0", base.manifest.len()).as_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(&base.manifest);
    out.resize(out.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    fuzz::seal::tar(&out)
}

/// With the stream's beginning in front of it; of WAL only the first bytes, and the ones behind them.
pub fn wal(start: Lsn, said: &[u8]) -> Vec<u8> {
    let mut out = start.0.to_be_bytes().to_vec();
    let mut position = start.0;
    for (tag, body) in messages(said) {
        if (tag, body.first()) != (b'd', Some(&b'w')) {
            put(&mut out, tag, &body);
        } else if position < start.0 + 3 * WAL_BYTES_MAX as u64 {
            let mut body = body[..body.len().min(25 + WAL_BYTES_MAX)].to_vec();
            body[1..9].copy_from_slice(&position.to_be_bytes());
            position += body.len() as u64 - 25;
            put(&mut out, tag, &body);
        }
    }
    out
}
