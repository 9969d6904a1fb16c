//! New inputs out of known ones. Deterministic: the same seed gives the same inputs.

/// Numbers that look random and are the same each time (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Less than `limit`; 0 for 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit.max(1) as u64) as usize
    }
}

/// Numbers at which code changes its mind.
#[rustfmt::skip]
const INTERESTING: [u64; 24] = [
    0, 1, 7, 8, 16, 23, 24, 127, 128, 255, 256, 1024, 8191, 8192, 0x7FFF, 0xFFFF, 0x1_0000, 0x7FFF_FFFF, 0x8000_0000,
    0xFFFF_FFFF, 0x1_0000_0000, 0x7FFF_FFFF_FFFF_FFFF, 0x8000_0000_0000_0000, u64::MAX,
];

/// Pieces of the texts that are read.
#[rustfmt::skip]
const WORDS: [&str; 48] = [
    "99999999999999999999", "-1", "0", "null", "{}", "[]", "\"\"", "true", "1e400", "=", "'", "\\", "\"", "\n", "\0",
    "\u{fffd}", "é", "/", "..", "%", "%00", "://", "@", ":", "?", "&", ",", "#", "T", "Z", "+14:00", "-00", " ago",
    "months", "P1Y", "1970-01-01", "9999-12-31T23:59:59Z", "FFFFFFFF/FFFFFFFF", "START WAL LOCATION: ", "[[",
    "HTTP/1.1 404 ", "Content-Length: ", "bytes 2-6/10", "<Code>NoSuchKey</Code>", "NextContinuationToken",
    "\"Path\": ", "0/", "\r\n",
];

/// Changes `input` in one to a few ways; `other` is something to take pieces from. At most `most` bytes come out.
pub fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random, most: usize) {
    for _ in 0..1 + random.below(4) {
        once(input, other, random);
    }
    input.truncate(most);
}

/// Mostly where there is something: segments end in zeros, which say nothing.
fn place(input: &[u8], random: &mut Random) -> usize {
    let end = input
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 2)
        .min(input.len());
    let within = if random.below(8) == 0 { input.len() } else { end };
    // Beginnings matter most.
    match random.below(4) {
        0 => random.below(within.min(64)),
        _ => random.below(within),
    }
}

fn once(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = place(input, random);
    match random.below(15) {
        0 | 1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        2 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = random.number() as u8;
            }
        }
        3 | 4 => {
            let value = INTERESTING[random.below(INTERESTING.len())].to_le_bytes();
            let width = 1 << random.below(4);
            let mut value = value[..width].to_vec();
            // PostgreSQL's files are little-endian, its messages are not.
            if random.below(2) == 0 {
                value.reverse();
            }
            for (byte, value) in input.iter_mut().skip(at).zip(value) {
                *byte = value;
            }
        }
        5 => {
            // A number that is a little more or less.
            let width = 1 << random.below(4);
            let delta = (random.below(33) as u64).wrapping_sub(16);
            let mut value = [0; 8];
            let Some(bytes) = input.get_mut(at..at + width) else {
                return;
            };
            let big_endian = random.below(2) == 0;
            if big_endian {
                bytes.reverse();
            }
            value[..width].copy_from_slice(bytes);
            let changed = u64::from_le_bytes(value).wrapping_add(delta).to_le_bytes();
            bytes.copy_from_slice(&changed[..width]);
            if big_endian {
                bytes.reverse();
            }
        }
        6 => {
            let length = (1 + random.below(32)).min(input.len() - at);
            input.drain(at..at + length);
        }
        7 => {
            let length = (1 + random.below(64)).min(input.len() - at);
            let piece = input[at..at + length].to_vec();
            let to = place(input, random);
            input.splice(to..to, piece);
        }
        8 => {
            let piece: Vec<u8> = (0..1 + random.below(16)).map(|_| random.number() as u8).collect();
            input.splice(at..at, piece);
        }
        9 => {
            // A number of many bytes, as postcard and our index write them.
            let mut piece = vec![0xFF; random.below(10)];
            piece.push(random.below(128) as u8);
            let end = (at + piece.len() * random.below(2)).min(input.len());
            input.splice(at..end, piece);
        }
        10 => {
            let word = WORDS[random.below(WORDS.len())].as_bytes();
            let end = (at + word.len() * random.below(2)).min(input.len());
            input.splice(at..end, word.iter().copied());
        }
        11 => {
            let from = random.below(other.len());
            let length = random.below(256).min(other.len() - from);
            let piece = &other[from..from + length];
            let end = (at + length * random.below(2)).min(input.len());
            input.splice(at..end, piece.iter().copied());
        }
        12 => input.truncate(at),
        13 => {
            // The next number that is written in digits becomes another.
            let begin = input.iter().skip(at).position(u8::is_ascii_digit);
            let begin = begin.map_or(input.len(), |skipped| at + skipped);
            let digits = input[begin..].iter().take_while(|byte| byte.is_ascii_digit());
            let end = begin + digits.count();
            let mut number = INTERESTING[random.below(INTERESTING.len())].to_string();
            if random.below(4) == 0 {
                number.insert(0, '-');
            }
            input.splice(begin..end, number.into_bytes());
        }
        _ => {
            let from = random.below(other.len());
            input.truncate(at);
            input.extend_from_slice(other.get(from..).unwrap_or_default());
        }
    }
}
