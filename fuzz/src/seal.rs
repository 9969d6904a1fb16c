//! Makes right again what a change has made wrong, so that what stands behind a checksum is read too.
//!
//! Checksums keep out accidents, and nobody who means it.

use aws_lc_rs::digest::{SHA256, digest};

const BLOCK: usize = 512;
/// Where the CRC of `pg_control` stands, in 13 to 17 and in 18.
pub const CONTROL_FILE_ENDS: [usize; 2] = [288, 292];

/// The CRC of a control file, if it is that long.
pub fn control_file(content: &mut [u8], end: usize) {
    if let Some((content, rest)) = content.split_at_mut_checked(end)
        && let Some(place) = rest.get_mut(..4)
    {
        place.copy_from_slice(&crc32c::crc32c(content).to_le_bytes());
    }
}

/// The checksum of a server's manifest, where its last line begins as it should.
pub fn manifest(content: &mut [u8]) {
    let mark = b"\"Manifest-Checksum\": \"";
    let Some(at) = content.windows(mark.len()).rposition(|window| window == mark) else {
        return;
    };
    let hash = digest(&SHA256, &content[..at]);
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let at = at + mark.len();
    if let Some(place) = content.get_mut(at..at + hex.len()) {
        place.copy_from_slice(hex.as_bytes());
    }
}

/// Checksums of the headers of a tar archive, and of the files in it that carry one: the control file and the manifest.
pub fn tar(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while let Some(header) = bytes.get_mut(at..at + BLOCK) {
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let end = header[..100].iter().position(|byte| *byte == 0).unwrap_or(100);
        let name = header[..end].to_vec();
        let size = octal(&header[124..136]);
        let begin = at + BLOCK;
        let end = begin.saturating_add(size);
        if let Some(content) = bytes.get_mut(begin..end) {
            if name.ends_with(b"global/pg_control") {
                let is_18 = content.get(8..12) == Some(&1800_u32.to_le_bytes());
                control_file(content, CONTROL_FILE_ENDS[usize::from(is_18)]);
            } else if name.ends_with(b"backup_manifest") {
                manifest(content);
            }
        }
        at = match end.checked_next_multiple_of(BLOCK) {
            Some(next) => next,
            None => break,
        };
    }
    bytes
}

/// As much of a size as is written in octal digits.
fn octal(field: &[u8]) -> usize {
    field
        .iter()
        .map_while(|byte| (*byte as char).to_digit(8))
        .fold(0_usize, |sum, digit| {
            sum.wrapping_mul(8).wrapping_add(digit as usize)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_manifest_is_right_again() {
        let mut text =
            b"{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [ ],\n\"WAL-Ranges\": [\n],\n\
            \"Manifest-Checksum\": \"0000000000000000000000000000000000000000000000000000000000000000\"}\n"
                .to_vec();
        let read = |text: &[u8]| {
            let mut reader = cluster::replication::ManifestReader::default();
            reader.add(text, &mut |_| Ok(()))?;
            reader.finish()
        };
        assert!(read(&text).is_err());
        manifest(&mut text);
        assert_eq!(read(&text).expect("a manifest").version, 1);
    }
}
