//! A server's side of a conversation, replayed: what it once said comes out again, and what is said to it goes nowhere.
//!
//! So every reader of the server's messages is a function of bytes: for transcripts of real servers, and for what no
//! server would say (`crate::readers`). Invariants: nothing is waited for; where the transcript ends, the connection
//! was closed. The nonce of a SCRAM exchange is made the client's own, since no transcript can know it.

use std::io::{self, Read, Write};

use super::auth::Startup;
use super::connect::Cancel;
use super::stream::Stream;
use super::tls::ChannelBinding;
use super::{Failure, Wire};

/// AuthenticationSASLContinue.
const SASL_CONTINUE: u32 = 11;
/// Behind the tag, the length and the kind of an AuthenticationSASLContinue.
const SASL_DATA: usize = 9;

/// See the module.
pub(crate) struct Replay {
    said: Vec<u8>,
    position: usize,
}

impl Replay {
    fn new(said: &[u8]) -> Replay {
        Replay {
            said: said.to_vec(),
            position: 0,
        }
    }

    /// Tag, kind of an authentication message, and end of the message that begins at `from`.
    fn message(&self, from: usize) -> Option<(u8, Option<u32>, usize)> {
        let (tag, rest) = self.said.get(from..)?.split_first()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let end = from
            .checked_add(1)?
            .checked_add(u32::from_be_bytes(*length) as usize)?;
        let kind = rest.first_chunk::<4>().map(|kind| u32::from_be_bytes(*kind));
        (end > from + 4 && end <= self.said.len()).then_some((*tag, kind, end))
    }

    /// What may be read before the client has to answer: up to the end of the next authentication message.
    fn until_an_answer_is_due(&self) -> usize {
        let mut end = self.position;
        while let Some((tag, _, next)) = self.message(end) {
            if tag == b'R' {
                return next;
            }
            end = next;
        }
        self.said.len()
    }

    /// In the challenge that comes next, the client's nonce stands where that of the recorded client stood.
    fn take_nonce(&mut self, nonce: &[u8]) {
        let Some((b'R', Some(SASL_CONTINUE), end)) = self.message(self.position) else {
            return;
        };
        let challenge = self.said.get_mut(self.position + SASL_DATA..end);
        if let Some(place) = challenge
            .and_then(|challenge| challenge.strip_prefix_mut(b"r="))
            .and_then(|recorded| recorded.get_mut(..nonce.len()))
        {
            place.copy_from_slice(nonce);
        }
    }
}

/// `strip_prefix` of a slice that may be changed.
trait StripPrefixMut {
    fn strip_prefix_mut(&mut self, prefix: &[u8]) -> Option<&mut [u8]>;
}

impl StripPrefixMut for [u8] {
    fn strip_prefix_mut(&mut self, prefix: &[u8]) -> Option<&mut [u8]> {
        match self.starts_with(prefix) {
            true => self.get_mut(prefix.len()..),
            false => None,
        }
    }
}

impl Read for Replay {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let end = self.until_an_answer_is_due();
        let now = self.said.get(self.position..end).unwrap_or_default();
        let count = now.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), now.get(..count)) {
            to.copy_from_slice(from);
        }
        self.position += count;
        Ok(count)
    }
}

impl Write for Replay {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        // SASLInitialResponse: ... n=,r=<nonce>
        let mark = b"n=,r=";
        if buffer.first() == Some(&b'p')
            && let Some(at) = buffer.windows(mark.len()).position(|window| window == mark)
        {
            let nonce = buffer.get(at + mark.len()..).unwrap_or_default().to_vec();
            self.take_nonce(&nonce);
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire {
    /// A connection to a server that says this.
    pub(crate) fn replayed(said: &[u8]) -> Wire {
        Wire::new(Stream::Replayed(Replay::new(said)), Cancel::nowhere())
    }
}

/// Start-up and authentication by password, up to ReadyForQuery.
pub(crate) fn log_in(said: &[u8]) -> Result<Wire, Failure> {
    let mut wire = Wire::replayed(said);
    wire.start(&Startup {
        user: "postgres",
        password: Some(b"secret"),
        parameters: &[],
        channel_binding: ChannelBinding::Prefer,
    })?;
    Ok(wire)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [&[tag][..], &length, body].concat()
    }

    #[test]
    fn a_conversation_is_read_as_from_a_server_and_ends_where_it_ends() {
        let said = [
            message(b'R', &[0, 0, 0, 3]),
            message(b'R', &[0, 0, 0, 0]),
            message(b'K', &[0, 0, 0, 7, 1, 2, 3, 4]),
            message(b'Z', b"I"),
            message(b'D', b"\x00\x01\x00\x00\x00\x0215"),
            message(b'C', b"SELECT 1\0"),
            message(b'Z', b"I"),
        ]
        .concat();
        let mut wire = log_in(&said).map_err(|_| "no login").unwrap();
        let answer = wire.query("SELECT 15").map_err(|_| "no answer").unwrap();
        assert_eq!(answer.rows, [[Some(b"15".to_vec())]]);
        assert_eq!(answer.count, 1);
        assert!(matches!(wire.query("SELECT 16"), Err(Failure::Io(_))));
    }

    /// The whole exchange but for the server's proof, which depends on the nonce.
    #[test]
    fn a_recorded_scram_exchange_is_followed_up_to_the_servers_proof() {
        let challenge = "r=abcdefghijklmnopqrstuvwxSERVER,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let begin = message(b'R', b"\x00\x00\x00\x0aSCRAM-SHA-256\0\0");
        let proof = b"\x00\x00\x00\x0cv=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let told = |challenge: &str| {
            let challenge = [b"\x00\x00\x00\x0b", challenge.as_bytes()].concat();
            let said = [begin.clone(), message(b'R', &challenge), message(b'R', proof)].concat();
            match log_in(&said) {
                Err(Failure::Refused(error)) => error.render(),
                _ => panic!("the server knew no password"),
            }
        };
        assert!(
            told(challenge).contains("SCRAM verification error"),
            "{}",
            told(challenge)
        );
        // A count of rounds that would keep the client busy for an hour.
        let long = challenge.replace("4096", "4000000000");
        assert!(!told(&long).contains("verification"), "{}", told(&long));
    }
}
