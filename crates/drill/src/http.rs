//! One GET, as a health probe makes it: HTTP/1.1 over TCP, with TLS where the base says so.
//!
//! Invariants: every step has a limit, and no answer is longer than what is read of it; no redirect is followed (what
//! is probed is what was named); user and password of the base are sent and never told.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

/// More of an answer is not read.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// Where distributions keep the roots that they trust.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body, decoded, at most four mebibytes of it.
    pub body: Vec<u8>,
}

/// Where the application is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    tls: bool,
    host: String,
    port: u16,
    /// Without a slash at its end.
    prefix: String,
    authorization: Option<String>,
}

impl Base {
    /// Reads `http://localhost:8000`, `https://user:password@host/prefix`. The error is a sentence without the
    /// password.
    pub fn parse(text: &str) -> Result<Base, String> {
        let wrong = || "the base is no http:// or https:// address".to_string();
        let (scheme, rest) = text.trim().split_once("://").ok_or_else(wrong)?;
        let (tls, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (false, 80),
            "https" => (true, 443),
            _ => return Err(wrong()),
        };
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (authority, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, authority),
        };
        let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => match place.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (place, None),
            },
        };
        let port = match port {
            Some(port) => port
                .parse()
                .map_err(|_| "the base's port is no number".to_string())?,
            None => default_port,
        };
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if host.is_empty() || !plain(host) || !plain(prefix) {
            return Err(wrong());
        }
        Ok(Base {
            tls,
            host: host.into(),
            port,
            prefix: prefix.trim_end_matches('/').into(),
            authorization: user.map(|user| format!("Basic {}", base64(decoded(user).as_bytes()))),
        })
    }

    /// As it may be told.
    pub fn shown(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}:{}{}", self.host, self.port, self.prefix)
    }

    /// Asks for a path. The error is a sentence.
    pub fn get(&self, path: &str, limit: Duration) -> Result<Answer, String> {
        let deadline = Instant::now() + limit;
        let left = || {
            deadline
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1))
        };
        let addresses = (self.host.as_str(), self.port).to_socket_addrs();
        let addresses = addresses.map_err(|error| format!("the host's name: {error}"))?;
        let mut failed = "the host has no address".to_string();
        let mut stream = None;
        for address in addresses {
            match TcpStream::connect_timeout(&address, left()) {
                Ok(found) => {
                    stream = Some(found);
                    break;
                }
                Err(error) => failed = error.to_string(),
            }
        }
        let stream = stream.ok_or(failed)?;
        stream
            .set_read_timeout(Some(left()))
            .and_then(|()| stream.set_write_timeout(Some(left())))
            .map_err(|error| error.to_string())?;
        let mut request = format!(
            "GET {}{path} HTTP/1.1\r\nHost: {}:{}\r\nUser-Agent: pgproof\r\nAccept: application/json, */*\r\n\
             Connection: close\r\n",
            self.prefix, self.host, self.port
        );
        if let Some(authorization) = &self.authorization {
            request.push_str(&format!("Authorization: {authorization}\r\n"));
        }
        request.push_str("\r\n");
        let bytes = match self.tls {
            false => talk(stream, &request, deadline),
            true => talk(self.encrypted(stream)?, &request, deadline),
        }?;
        parse(&bytes)
    }

    fn encrypted(
        &self,
        stream: TcpStream,
    ) -> Result<rustls::StreamOwned<rustls::ClientConnection, TcpStream>, String> {
        let mut roots = rustls::RootCertStore::empty();
        for path in SYSTEM_ROOTS {
            if let Ok(found) = CertificateDer::pem_file_iter(path) {
                roots.add_parsable_certificates(found.flatten());
                break;
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(self.host.clone()).map_err(|error| error.to_string())?;
        let connection =
            rustls::ClientConnection::new(Arc::new(config), name).map_err(|error| error.to_string())?;
        Ok(rustls::StreamOwned::new(connection, stream))
    }
}

fn talk(mut stream: impl Read + Write, request: &str, deadline: Instant) -> Result<Vec<u8>, String> {
    stream
        .write_all(request.as_bytes())
        .map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let mut buffer = [0_u8; 16 << 10];
    loop {
        if Instant::now() >= deadline {
            return Err("the answer did not end in time".into());
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(read) => {
                bytes.extend_from_slice(buffer.get(..read).unwrap_or_default());
                if bytes.len() as u64 >= ANSWER_BYTES_MAX {
                    return Ok(bytes);
                }
            }
            // A server that ends TLS without saying so has said all it had to say.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof && !bytes.is_empty() => {
                return Ok(bytes);
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Status and body of an answer.
fn parse(bytes: &[u8]) -> Result<Answer, String> {
    let wrong = || "the answer is no HTTP".to_string();
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or_else(wrong)?;
    let head = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .filter(|line| line.starts_with("HTTP/1."))
        .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .ok_or_else(wrong)?;
    let chunked = lines.any(|line| {
        line.split_once(':').is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("transfer-encoding") && value.to_ascii_lowercase().contains("chunked")
        })
    });
    let body = bytes.get(end + 4..).unwrap_or_default();
    Ok(Answer {
        status,
        body: if chunked { unchunk(body) } else { body.to_vec() },
    })
}

fn unchunk(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = body.windows(2).position(|window| window == b"\r\n") {
        let size = std::str::from_utf8(body.get(..end).unwrap_or_default())
            .ok()
            .and_then(|text| usize::from_str_radix(text.split(';').next()?.trim(), 16).ok());
        let Some(size) = size.filter(|size| *size > 0) else {
            break;
        };
        let rest = body.get(end + 2..).unwrap_or_default();
        let Some(chunk) = rest.get(..size.min(rest.len())) else {
            break;
        };
        out.extend_from_slice(chunk);
        body = rest.get(size.saturating_add(2)..).unwrap_or_default();
    }
    out
}

/// `%40` in a user's name or password.
fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let pair = (byte == b'%').then(|| bytes.clone().take(2).collect::<Vec<u8>>());
        let value = pair
            .filter(|pair| pair.len() == 2)
            .and_then(|pair| u8::from_str_radix(std::str::from_utf8(&pair).ok()?, 16).ok());
        match value {
            Some(value) => {
                out.push(value);
                bytes.nth(1);
            }
            None => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let mut word = 0_u32;
        for index in 0..3 {
            word = word << 8 | u32::from(chunk.get(index).copied().unwrap_or(0));
        }
        for index in 0..4 {
            let six = (word >> (18 - 6 * index)) & 63;
            let letter = ALPHABET.get(six as usize).copied().unwrap_or(b'=');
            out.push(if index > chunk.len() {
                '='
            } else {
                char::from(letter)
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_read_in_its_common_spellings_and_told_without_its_password() {
        for (text, shown) in [
            ("http://localhost:8000", "http://localhost:8000"),
            ("https://api.example.org/", "https://api.example.org:443"),
            ("http://user:p%40ss@host/v1/?key=secret", "http://host:80/v1"),
            ("http://[::1]:81", "http://::1:81"),
        ] {
            assert_eq!(Base::parse(text).expect(text).shown(), shown);
        }
        let base = Base::parse("http://user:p%40ss@host").expect("a base");
        assert_eq!(base.authorization.as_deref(), Some("Basic dXNlcjpwQHNz"));
        for text in [
            "",
            "localhost:8000",
            "ftp://x",
            "http://",
            "http://h:x",
            "http://a b",
        ] {
            assert!(Base::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_answer_is_read_whole_chunked_or_not_and_garbage_is_refused() {
        let plain = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").expect("an answer");
        assert_eq!((plain.status, plain.body.as_slice()), (200, b"ok".as_slice()));
        let chunked =
            b"HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        let chunked = parse(chunked).expect("an answer");
        assert_eq!(
            (chunked.status, chunked.body.as_slice()),
            (503, b"abcde".as_slice())
        );
        for bytes in [
            b"".as_slice(),
            b"SSH-2.0-x\r\n\r\n",
            b"HTTP/1.1 x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n",
        ] {
            assert!(parse(bytes).is_err());
        }
        let cut = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\nabc";
        assert_eq!(parse(cut).expect("an answer").body, b"abc");
    }
}
