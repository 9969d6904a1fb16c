//! The client's side of PostgreSQL's protocol 3.0, blocking: what ordinary and replication sessions share.
//!
//! Invariants: a message that is only partly here stays in the buffer, so that a read that timed out can be
//! repeated; no length is believed beyond [`FRAME_BYTES_MAX`]; the server's own words travel as values
//! ([`ServerError`]) until somebody says what they mean. Source: "Message Formats" of PostgreSQL's manual,
//! `src/backend/libpq` and `src/backend/replication/walsender.c`.

mod auth;
mod certificate;
mod connect;
mod replay;
mod stream;
mod tls;
mod tls_problems;

use std::io::{self, Read, Write};

use diagnostic::{Error, Result};

pub(crate) use certificate::facts as certificate_facts;
pub(crate) use connect::{Attributes, Cancel, Host, Parameters, Place, connect};
pub(crate) use replay::log_in;
pub(crate) use stream::Stream;
pub(crate) use tls::{ChannelBinding, RootCertificates, TlsMode, TlsParameters};

/// The longest message that is taken: a row of 1 GiB and what stands around it.
const FRAME_BYTES_MAX: usize = (1 << 30) + (1 << 20);
/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

/// One message of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) tag: u8,
    pub(crate) body: Vec<u8>,
}

/// Why talking to the server failed.
#[derive(Debug)]
pub(crate) enum Failure {
    Io(io::Error),
    /// An ErrorResponse.
    Server(Box<ServerError>),
    /// The server said something that makes no sense.
    Protocol(String),
    /// This side will not go on.
    Refused(Error),
}

impl Failure {
    /// Nothing came within the time that was set.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self, Failure::Io(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }

    /// As an error; `lost` is the code when it is not the server that refused.
    pub(crate) fn into_error(self, lost: &'static str, message: impl Into<String>) -> Error {
        match self {
            Failure::Io(error) => Error::io(lost, message, &error),
            Failure::Protocol(what) => Error::new(lost, message).detail(what),
            Failure::Server(server) => server.into_error("server-error"),
            Failure::Refused(error) => error,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Io(error)
    }
}

/// An ErrorResponse (`E`), taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerError {
    /// Never translated: ERROR, FATAL, PANIC.
    pub(crate) severity: String,
    pub(crate) sqlstate: String,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
    pub(crate) context: Option<String>,
}

impl ServerError {
    pub(crate) fn parse(body: &[u8]) -> ServerError {
        let mut error = ServerError::default();
        let mut rest = body;
        while let Some((&field, after)) = rest.split_first() {
            if field == 0 {
                break;
            }
            let end = after.iter().position(|byte| *byte == 0).unwrap_or(after.len());
            let (value, tail) = after.split_at(end);
            let value = String::from_utf8_lossy(value).into_owned();
            match field {
                b'V' => error.severity = value,
                b'S' if error.severity.is_empty() => error.severity = value,
                b'C' => error.sqlstate = value,
                b'M' => error.message = value,
                b'D' => error.detail = Some(value),
                b'H' => error.hint = Some(value),
                b'W' => error.context = Some(value),
                _ => {}
            }
            rest = tail.get(1..).unwrap_or_default();
        }
        if error.message.is_empty() {
            error.message = "error without a message".into();
        }
        error
    }

    /// The session ends with it, or the server does.
    pub(crate) fn is_fatal(&self) -> bool {
        // 57P01 admin_shutdown, 57P02 crash_shutdown, 57P03 cannot_connect_now, 57P05 idle_session_timeout.
        matches!(self.severity.as_str(), "FATAL" | "PANIC") || self.sqlstate.starts_with("57P0")
    }

    /// The server's words under a code of ours; the detail begins with `SQLSTATE`.
    pub(crate) fn into_error(self, code: &'static str) -> Error {
        let mut detail = format!("SQLSTATE {}", self.sqlstate);
        if let Some(text) = &self.detail {
            detail.push_str(": ");
            detail.push_str(text);
        }
        if let Some(context) = &self.context {
            detail.push_str("\ncontext: ");
            detail.push_str(context);
        }
        let message = self.message.lines().next().unwrap_or_default();
        let error = Error::new(code, message).detail(detail);
        match self.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// Rows of one result, each value as the server sent it.
pub(crate) type RawRows = Vec<Vec<Option<Vec<u8>>>>;

/// What a simple query gave: the rows of all its results together, and the count in the last command's tag.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) rows: RawRows,
    pub(crate) count: u64,
}

/// An authenticated connection.
pub(crate) struct Wire {
    stream: Stream,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were taken already.
    taken: usize,
    pub(crate) cancel: Cancel,
}

impl Wire {
    fn new(stream: Stream, cancel: Cancel) -> Wire {
        Wire {
            stream,
            buffer: Vec::new(),
            taken: 0,
            cancel,
        }
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The next message. After a timeout the call can be repeated.
    pub(crate) fn receive(&mut self) -> Result<Frame, Failure> {
        loop {
            let waiting = self.buffer.get(self.taken..).unwrap_or_default();
            let mut wanted = 5;
            if let Some((&tag, rest)) = waiting.split_first()
                && let Some((length, rest)) = rest.split_first_chunk::<4>()
            {
                let length = u32::from_be_bytes(*length) as usize;
                let Some(length) = length.checked_sub(4).filter(|length| *length <= FRAME_BYTES_MAX) else {
                    return Err(Failure::Protocol(format!(
                        "A message of the server is said to have {length} bytes."
                    )));
                };
                if let Some(body) = rest.get(..length) {
                    let body = body.to_vec();
                    self.taken += 5 + length;
                    return Ok(Frame { tag, body });
                }
                wanted = 5 + length;
            }
            self.fill(wanted)?;
        }
    }

    /// Reads more; there are `wanted` bytes to be had before a message is whole.
    fn fill(&mut self, wanted: usize) -> Result<(), Failure> {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        let filled = self.buffer.len();
        // Grown as it comes, not as it is announced.
        let room = wanted.saturating_sub(filled).clamp(READ_BYTES, 4 * READ_BYTES);
        self.buffer.resize(filled + room, 0);
        let read = self
            .stream
            .read(self.buffer.get_mut(filled..).unwrap_or_default());
        let count = *read.as_ref().unwrap_or(&0);
        self.buffer.truncate(filled + count);
        match read {
            Ok(0) => Err(Failure::Io(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server closed the connection",
            ))),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The next message that is not a notice or a change of a parameter; an ErrorResponse is a failure.
    pub(crate) fn expect(&mut self) -> Result<Frame, Failure> {
        loop {
            let frame = self.receive()?;
            match frame.tag {
                b'N' | b'S' | b'A' => {}
                b'E' => return Err(Failure::Server(Box::new(ServerError::parse(&frame.body)))),
                _ => return Ok(frame),
            }
        }
    }

    /// Sends one message.
    pub(crate) fn send(&mut self, tag: u8, body: &[u8]) -> Result<(), Failure> {
        let length = u32::try_from(body.len() + 4)
            .map_err(|_| Failure::Protocol("A message would be too long.".into()))?;
        let mut message = Vec::with_capacity(body.len() + 5);
        message.push(tag);
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(body);
        self.stream.write_all(&message)?;
        self.stream.flush()?;
        Ok(())
    }

    /// Sends a simple query (`Q`) and leaves the answer to the caller.
    pub(crate) fn send_query(&mut self, statement: &str) -> Result<(), Failure> {
        if statement.contains('\0') {
            return Err(Failure::Protocol("A statement holds a NUL byte.".into()));
        }
        let mut body = statement.as_bytes().to_vec();
        body.push(0);
        self.send(b'Q', &body)
    }

    /// A simple query up to ReadyForQuery. An error of the server leaves the connection usable, unless it is
    /// fatal.
    pub(crate) fn query(&mut self, statement: &str) -> Result<Answer, Failure> {
        self.send_query(statement)?;
        let mut answer = Answer::default();
        let mut error = None;
        loop {
            let frame = self.receive()?;
            match frame.tag {
                b'D' => answer.rows.push(data_row(&frame.body)?),
                b'C' => answer.count = command_count(&frame.body),
                b'E' => {
                    let server = ServerError::parse(&frame.body);
                    if matches!(server.severity.as_str(), "FATAL" | "PANIC") {
                        return Err(Failure::Server(Box::new(server)));
                    }
                    error.get_or_insert(server);
                }
                // COPY is not for this door: data would have to come from, or go, somewhere.
                b'G' => self.send(b'f', b"not supported\0")?,
                b'Z' => break,
                _ => {}
            }
        }
        match error {
            Some(server) => Err(Failure::Server(Box::new(server))),
            None => Ok(answer),
        }
    }

    /// Says goodbye; whether it is heard does not matter.
    pub(crate) fn close(mut self) {
        let _ = self.send(b'X', &[]);
    }
}

/// The values of a DataRow.
pub(crate) fn data_row(body: &[u8]) -> Result<Vec<Option<Vec<u8>>>, Failure> {
    let malformed = || Failure::Protocol("A row of the server's answer is malformed.".into());
    let (count, mut rest) = body.split_first_chunk::<2>().ok_or_else(malformed)?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
        let length = i32::from_be_bytes(*length);
        match usize::try_from(length) {
            Err(_) => {
                row.push(None);
                rest = after;
            }
            Ok(length) => {
                row.push(Some(after.get(..length).ok_or_else(malformed)?.to_vec()));
                rest = after.get(length..).unwrap_or_default();
            }
        }
    }
    Ok(row)
}

/// The last number in a CommandComplete's tag: `INSERT 0 5`.
fn command_count(body: &[u8]) -> u64 {
    let tag = body.split(|byte| *byte == 0).next().unwrap_or_default();
    std::str::from_utf8(tag)
        .ok()
        .and_then(|tag| tag.rsplit(' ').next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_response_is_taken_apart() {
        let body = b"SFEHLER\0VERROR\0C42501\0Mno right\nat all\0Dsome detail\0Ha hint\0\0";
        let error = ServerError::parse(body);
        assert_eq!(error.severity, "ERROR");
        assert!(!error.is_fatal());
        let error = error.into_error("server-error");
        assert_eq!(error.message(), "no right");
        assert_eq!(error.detail_text(), Some("SQLSTATE 42501: some detail"));
        assert_eq!(error.hint_text(), Some("a hint"));
    }

    #[test]
    fn counts_are_the_last_word_of_a_tag() {
        assert_eq!(command_count(b"INSERT 0 5\0"), 5);
        assert_eq!(command_count(b"SELECT 12\0"), 12);
        assert_eq!(command_count(b"SET\0"), 0);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_row_or_an_error(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)) {
            let _ = data_row(&bytes);
            let _ = ServerError::parse(&bytes);
        }
    }
}
