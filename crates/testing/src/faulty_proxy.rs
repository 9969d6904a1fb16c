//! A proxy for HTTP/1.1 between a client and a server, that does to each request what a test says.
//!
//! Faults are whole: it refuses, answers in the server's place, lets the server work and drops the answer, cuts
//! bodies short in either direction, or waits. It forwards requests byte for byte, so that signatures hold.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    Pass,
    /// The connection is closed before the server hears of it.
    Drop,
    /// The server does it, and its answer is lost.
    LoseAnswer,
    /// The server hears half of the request's body, then the connection ends.
    CutRequest,
    /// The client gets half of the answer's body.
    CutAnswer,
    /// The server is not asked; the answer has this status and this code of S3's.
    Answer(u16, &'static str),
    /// Nothing is sent for so long.
    Wait(Duration),
}

/// A request's first line, taken apart, and which part of an object it asks for.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    /// With the query.
    pub target: String,
    /// The header `Range`.
    pub range: Option<String>,
    /// Counted over all connections, from 0.
    pub number: u64,
}

type Rule = Box<dyn FnMut(&Asked) -> Fault + Send>;

/// A running proxy.
pub struct FaultyProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: SocketAddr,
    ended: AtomicBool,
    state: Mutex<State>,
}

struct State {
    rule: Rule,
    asked: Vec<Asked>,
}

impl FaultyProxy {
    /// Stands before `server`; `rule` decides for each request.
    pub fn start(server: SocketAddr, rule: impl FnMut(&Asked) -> Fault + Send + 'static) -> FaultyProxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            server,
            ended: AtomicBool::new(false),
            state: Mutex::new(State {
                rule: Box::new(rule),
                asked: Vec::new(),
            }),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.ended.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(client), shared) = (client, accepting.clone()) else {
                    continue;
                };
                std::thread::spawn(move || {
                    // Ends with the connection; what went wrong on it is the client's to notice.
                    let _ = shared.serve(&client);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        FaultyProxy { address, shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Another rule from now on.
    pub fn set(&self, rule: impl FnMut(&Asked) -> Fault + Send + 'static) {
        self.state().rule = Box::new(rule);
    }

    /// Everything that was asked so far, also what never reached the server.
    pub fn asked(&self) -> Vec<Asked> {
        self.state().asked.clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

/// Head of a message: its lines as they came, the first one, how long the body is, and `Range`.
struct Head {
    bytes: Vec<u8>,
    first: String,
    length: Option<u64>,
    chunked: bool,
    range: Option<String>,
}

fn head(from: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut head = Head {
        bytes: Vec::new(),
        first: String::new(),
        length: None,
        chunked: false,
        range: None,
    };
    loop {
        let mut line = Vec::new();
        if from.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        head.bytes.extend_from_slice(&line);
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if head.first.is_empty() {
            head.first = text;
        } else if text.is_empty() {
            return Ok(Some(head));
        } else if let Some((name, value)) = text.split_once(':') {
            match name.to_ascii_lowercase().as_str() {
                "content-length" => head.length = value.trim().parse().ok(),
                "range" => head.range = Some(value.trim().to_owned()),
                "transfer-encoding" => head.chunked = value.contains("chunked"),
                _ => {}
            }
        }
    }
}

fn copy(from: &mut impl Read, to: &mut impl Write, length: u64) -> io::Result<()> {
    match io::copy(&mut from.take(length), to)? {
        copied if copied == length => to.flush(),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Chunks as they come, until the empty one and the line behind it.
fn copy_chunks(from: &mut impl BufRead, to: &mut impl Write) -> io::Result<()> {
    loop {
        let mut line = Vec::new();
        from.read_until(b'\n', &mut line)?;
        to.write_all(&line)?;
        let text = String::from_utf8_lossy(&line);
        let digits = text.trim().split(';').next().unwrap_or_default();
        let length = u64::from_str_radix(digits, 16).map_err(io::Error::other)?;
        copy(from, to, length + 2)?;
        if length == 0 {
            return Ok(());
        }
    }
}

impl Shared {
    fn decide(&self, head: &Head) -> (Asked, Fault) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut words = head.first.split(' ').map(str::to_owned);
        let asked = Asked {
            method: words.next().unwrap_or_default(),
            target: words.next().unwrap_or_default(),
            range: head.range.clone(),
            number: state.asked.len() as u64,
        };
        state.asked.push(asked.clone());
        let fault = (state.rule)(&asked);
        (asked, fault)
    }

    /// One connection of the client's, with one of ours to the server.
    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        let mut from_client = BufReader::new(client);
        let server = TcpStream::connect(self.server)?;
        let mut from_server = BufReader::new(&server);
        let (mut to_client, mut to_server) = (client, &server);
        while let Some(request) = head(&mut from_client)? {
            let (asked, fault) = self.decide(&request);
            let length = request.length.unwrap_or(0);
            match fault {
                Fault::Drop => return Ok(()),
                Fault::Answer(status, code) => {
                    copy(&mut from_client, &mut io::sink(), length)?;
                    let body = match asked.method.as_str() {
                        "HEAD" => String::new(),
                        _ => format!(
                            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as the test said</Message></Error>"
                        ),
                    };
                    write!(
                        to_client,
                        "HTTP/1.1 {status} As Told\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    )?;
                    continue;
                }
                Fault::Wait(time) => std::thread::sleep(time),
                _ => {}
            }
            to_server.write_all(&request.bytes)?;
            if fault == Fault::CutRequest {
                copy(&mut from_client, &mut to_server, length / 2)?;
                return server.shutdown(Shutdown::Both);
            }
            copy(&mut from_client, &mut to_server, length)?;
            let Some(answer) = head(&mut from_server)? else {
                return Ok(());
            };
            if fault == Fault::LoseAnswer {
                return Ok(());
            }
            to_client.write_all(&answer.bytes)?;
            let status = answer.first.split(' ').nth(1).unwrap_or_default();
            if asked.method == "HEAD" || matches!(status, "204" | "304") {
                continue;
            }
            let cut = fault == Fault::CutAnswer;
            match answer.length {
                Some(length) if cut => {
                    copy(&mut from_server, &mut to_client, length / 2)?;
                    return Ok(());
                }
                Some(length) => copy(&mut from_server, &mut to_client, length)?,
                None if answer.chunked && !cut => copy_chunks(&mut from_server, &mut to_client)?,
                None => return Ok(()),
            }
        }
        Ok(())
    }
}
