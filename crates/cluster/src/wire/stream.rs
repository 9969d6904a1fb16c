//! The bytes' way: a Unix socket, TCP, or TLS over TCP; or what a server once said.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::replay::Replay;

/// A connected stream.
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>),
    /// A transcript in place of a server.
    Replayed(Replay),
}

impl Stream {
    /// Limits each single read and write; `None`: no limit.
    pub(crate) fn set_timeouts(&self, limit: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(limit)?;
        match self {
            Stream::Unix(stream) => stream.set_write_timeout(limit),
            Stream::Tcp(stream) => stream.set_write_timeout(limit),
            Stream::Tls(stream) => stream.sock.set_write_timeout(limit),
            Stream::Replayed(_) => Ok(()),
        }
    }

    /// Limits each single read; `None`: no limit.
    pub(crate) fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        // Zero would be an error.
        let limit = limit.map(|limit| limit.max(Duration::from_millis(1)));
        match self {
            Stream::Unix(stream) => stream.set_read_timeout(limit),
            Stream::Tcp(stream) => stream.set_read_timeout(limit),
            Stream::Tls(stream) => stream.sock.set_read_timeout(limit),
            Stream::Replayed(_) => Ok(()),
        }
    }

    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Stream::Tls(_))
    }

    /// The server's own certificate, DER.
    pub(crate) fn server_certificate(&self) -> Option<&[u8]> {
        match self {
            Stream::Tls(stream) => stream
                .conn
                .peer_certificates()?
                .first()
                .map(|certificate| certificate.as_ref()),
            _ => None,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Tls(stream) => stream.read(buffer),
            Stream::Replayed(replay) => replay.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(buffer),
            Stream::Tcp(stream) => stream.write(buffer),
            Stream::Tls(stream) => stream.write(buffer),
            Stream::Replayed(replay) => replay.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.flush(),
            Stream::Tcp(stream) => stream.flush(),
            Stream::Tls(stream) => stream.flush(),
            Stream::Replayed(replay) => replay.flush(),
        }
    }
}
