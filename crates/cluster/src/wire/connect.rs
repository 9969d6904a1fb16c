//! From a connection string's values to an authenticated connection: hosts in their order, their addresses, TLS
//! or not as `sslmode` says.
//!
//! Invariants: all of it together takes no longer than the limit; a weaker connection is tried only where
//! `sslmode` allows it (`allow`, `prefer`); over a Unix socket there is no TLS, as with libpq.

use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diagnostic::Error;
use rustls::ClientConfig;

use super::auth::Startup;
use super::stream::Stream;
use super::tls::{ChannelBinding, TlsMode, TlsParameters, handshake};
use super::tls_problems::in_words;
use super::{Failure, Wire};

/// `SSLRequest` and `CancelRequest` in place of a protocol's version.
const SSL_REQUEST: u32 = 80_877_103;
const CANCEL_REQUEST: u32 = 80_877_102;

/// Where one server may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// The folder of its socket.
    Unix(PathBuf),
    /// A name or an address, and the address to use in its place.
    Tcp { host: String, address: Option<IpAddr> },
}

/// One host of a connection string.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) place: Place,
    pub(crate) port: u16,
    pub(crate) password: Option<Vec<u8>>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{}", self.place, self.port)
    }
}

/// `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Attributes {
    #[default]
    Any,
    ReadWrite,
    ReadOnly,
}

/// A connection string as it is to be carried out.
#[derive(Debug, Clone)]
pub(crate) struct Parameters {
    pub(crate) hosts: Vec<Host>,
    pub(crate) user: String,
    /// Empty: the server takes the user's name.
    pub(crate) database: String,
    pub(crate) options: Option<String>,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) tcp_user_timeout: Option<Duration>,
    pub(crate) keepalives: bool,
    pub(crate) keepalives_idle: Option<Duration>,
    pub(crate) keepalives_interval: Option<Duration>,
    pub(crate) keepalives_count: Option<u32>,
    pub(crate) attributes: Attributes,
    pub(crate) tls: TlsParameters,
    pub(crate) channel_binding: ChannelBinding,
}

/// How a connection was made, and what cancels its statement.
#[derive(Clone)]
pub(crate) struct Cancel {
    place: Place,
    address: Option<SocketAddr>,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    process: u32,
    secret: Vec<u8>,
}

impl Cancel {
    /// Of a connection to no server: there is nothing to cancel.
    pub(super) fn nowhere() -> Cancel {
        Cancel {
            place: Place::Tcp {
                host: String::new(),
                address: None,
            },
            address: None,
            port: 0,
            tls: None,
            process: 0,
            secret: Vec::new(),
        }
    }

    pub(crate) fn process(&self) -> u32 {
        self.process
    }

    /// Asks the server to cancel; over TLS where the session was. Nobody answers such a request.
    pub(crate) fn send(&self, limit: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        let mut stream = match (&self.place, self.address) {
            (Place::Unix(folder), _) => open_unix(folder, self.port)?,
            (Place::Tcp { host, .. }, Some(address)) => {
                let socket = TcpStream::connect_timeout(&address, limit)?;
                match &self.tls {
                    None => Stream::Tcp(socket),
                    Some(config) => match ask_for_tls(socket, host, config.clone(), deadline)? {
                        (stream, true) => stream,
                        (_, false) => return Err(Failure::Refused(tls_refused(host))),
                    },
                }
            }
            (Place::Tcp { .. }, None) => return Ok(()),
        };
        stream.set_timeouts(Some(left(deadline)?))?;
        let mut message = (12 + self.secret.len() as u32).to_be_bytes().to_vec();
        message.extend_from_slice(&CANCEL_REQUEST.to_be_bytes());
        message.extend_from_slice(&self.process.to_be_bytes());
        message.extend_from_slice(&self.secret);
        stream.write_all(&message)?;
        stream.flush()?;
        // The server closes when it has done it.
        let _ = stream.read(&mut [0; 1]);
        Ok(())
    }
}

/// Connects to the first host that will have us.
pub(crate) fn connect(
    parameters: &Parameters,
    startup: &[(&str, &str)],
    limit: Duration,
) -> Result<Wire, Failure> {
    let deadline = Instant::now() + limit;
    // Built before anything is sent: what is wrong with the files is said first.
    let remote = parameters
        .hosts
        .iter()
        .any(|host| matches!(host.place, Place::Tcp { .. }));
    let config = match parameters.tls.mode {
        TlsMode::Disable => None,
        _ if remote => Some(parameters.tls.client_config().map_err(Failure::Refused)?),
        _ => None,
    };
    let mut first_failure = None;
    for host in &parameters.hosts {
        match connect_host(parameters, host, config.as_ref(), startup, deadline) {
            Ok(wire) => return Ok(wire),
            // Of the default folders for sockets the first is the one that people mean.
            Err(failure) => drop(first_failure.get_or_insert(failure)),
        }
        if left(deadline).is_err() {
            break;
        }
    }
    Err(first_failure.unwrap_or_else(|| Failure::Protocol("The connection string names no host.".into())))
}

fn connect_host(
    parameters: &Parameters,
    host: &Host,
    config: Option<&Arc<ClientConfig>>,
    startup: &[(&str, &str)],
    deadline: Instant,
) -> Result<Wire, Failure> {
    let name = match &host.place {
        Place::Unix(folder) => {
            let stream = open_unix(folder, host.port)?;
            return begin(parameters, host, stream, None, None, startup, deadline);
        }
        Place::Tcp { host, .. } => host,
    };
    let mode = parameters.tls.mode;
    let mut failure = None;
    for address in addresses(host)? {
        let attempt = |tls: bool| -> Result<Wire, Failure> {
            let socket = open_tcp(parameters, &address, deadline)?;
            let (stream, config) = match config.filter(|_| tls) {
                None => (Stream::Tcp(socket), None),
                Some(config) => match ask_for_tls(socket, name, config.clone(), deadline)? {
                    (stream, true) => (stream, Some(config.clone())),
                    (stream, false) if mode <= TlsMode::Prefer => (stream, None),
                    (_, false) => return Err(Failure::Refused(tls_refused(name))),
                },
            };
            let encrypted = config.is_some().then_some(name.as_str());
            begin(parameters, host, stream, Some(address), config, startup, deadline)
                .map_err(|failure| in_words(encrypted, failure))
        };
        let result = match mode {
            TlsMode::Disable => attempt(false),
            TlsMode::Allow => attempt(false).or_else(|first| match turned_away(&first) {
                true => attempt(true).map_err(|_| first),
                false => Err(first),
            }),
            TlsMode::Prefer => {
                attempt(true).or_else(|first| match turned_away(&first) || tls_failed(&first) {
                    true => attempt(false).map_err(|_| first),
                    false => Err(first),
                })
            }
            _ => attempt(true),
        };
        match result {
            Ok(wire) => return Ok(wire),
            Err(error) => {
                let stop = !matches!(error, Failure::Io(_));
                failure = Some(error);
                if stop {
                    break;
                }
            }
        }
    }
    Err(failure.unwrap_or_else(|| Failure::Protocol(format!("The name {name} has no address."))))
}

/// pg_hba.conf has no line for a connection of this kind: the other kind may have one.
fn turned_away(failure: &Failure) -> bool {
    matches!(failure, Failure::Server(error) if error.sqlstate == "28000")
}

fn tls_failed(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused(error)
        if matches!(error.code(), "tls-handshake" | "tls-certificate" | "tls-client-certificate"))
}

fn tls_refused(host: &str) -> Error {
    Error::new("tls-refused", format!("the server at {host} does not speak TLS"))
        .detail("sslmode demands it, so nothing else was sent.")
        .hint("Set ssl = on with a certificate on the server, or connect another way.")
}

/// What is left of the time; an error when there is none.
fn left(deadline: Instant) -> Result<Duration, Failure> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(Failure::Io(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            "the server did not answer in time",
        ))),
        left => Ok(left),
    }
}

fn addresses(host: &Host) -> Result<Vec<SocketAddr>, Failure> {
    match &host.place {
        Place::Tcp {
            address: Some(address),
            ..
        } => Ok(vec![SocketAddr::new(*address, host.port)]),
        Place::Tcp { host: name, .. } => {
            let name = name.trim_start_matches('[').trim_end_matches(']');
            Ok((name, host.port).to_socket_addrs()?.collect())
        }
        Place::Unix(_) => Ok(Vec::new()),
    }
}

fn open_unix(folder: &std::path::Path, port: u16) -> Result<Stream, Failure> {
    Ok(Stream::Unix(UnixStream::connect(
        folder.join(format!(".s.PGSQL.{port}")),
    )?))
}

fn open_tcp(parameters: &Parameters, address: &SocketAddr, deadline: Instant) -> Result<TcpStream, Failure> {
    use rustix::net::sockopt;
    let socket = TcpStream::connect_timeout(address, left(deadline)?)?;
    socket.set_nodelay(true)?;
    if parameters.keepalives {
        let io = |result: rustix::io::Result<()>| result.map_err(std::io::Error::from);
        io(sockopt::set_socket_keepalive(&socket, true))?;
        if let Some(idle) = parameters.keepalives_idle {
            io(sockopt::set_tcp_keepidle(&socket, idle))?;
        }
        if let Some(interval) = parameters.keepalives_interval {
            io(sockopt::set_tcp_keepintvl(&socket, interval))?;
        }
        if let Some(count) = parameters.keepalives_count {
            io(sockopt::set_tcp_keepcnt(&socket, count))?;
        }
    }
    if let Some(limit) = parameters.tcp_user_timeout {
        let milliseconds = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(&socket, milliseconds).map_err(std::io::Error::from)?;
    }
    Ok(socket)
}

/// Asks for TLS; whether it is spoken now.
fn ask_for_tls(
    mut socket: TcpStream,
    name: &str,
    config: Arc<ClientConfig>,
    deadline: Instant,
) -> Result<(Stream, bool), Failure> {
    socket.set_read_timeout(Some(left(deadline)?))?;
    socket.set_write_timeout(Some(left(deadline)?))?;
    let mut request = 8_u32.to_be_bytes().to_vec();
    request.extend_from_slice(&SSL_REQUEST.to_be_bytes());
    socket.write_all(&request)?;
    // One byte and no more: what came behind it in plain text would be somebody's in between.
    let mut answer = [0];
    socket.read_exact(&mut answer)?;
    match answer {
        [b'S'] => Ok((handshake(socket, name, config)?, true)),
        [b'N'] => Ok((Stream::Tcp(socket), false)),
        _ => Err(Failure::Protocol(
            "The server answered the question for TLS with neither yes nor no: it may be no PostgreSQL."
                .into(),
        )),
    }
}

fn begin(
    parameters: &Parameters,
    host: &Host,
    stream: Stream,
    address: Option<SocketAddr>,
    config: Option<Arc<ClientConfig>>,
    startup: &[(&str, &str)],
    deadline: Instant,
) -> Result<Wire, Failure> {
    stream.set_timeouts(Some(left(deadline)?))?;
    let cancel = Cancel {
        place: host.place.clone(),
        address,
        port: host.port,
        tls: config,
        process: 0,
        secret: Vec::new(),
    };
    let mut wire = Wire::new(stream, cancel);
    let mut settings = vec![("client_encoding", "UTF8")];
    if !parameters.database.is_empty() {
        settings.push(("database", &parameters.database));
    }
    if let Some(options) = &parameters.options {
        settings.push(("options", options));
    }
    settings.extend_from_slice(startup);
    let (process, secret) = wire.start(&Startup {
        user: &parameters.user,
        password: host.password.as_deref(),
        parameters: &settings,
        channel_binding: parameters.channel_binding,
    })?;
    wire.cancel.process = process;
    wire.cancel.secret = secret;
    if parameters.attributes != Attributes::Any {
        let answer = wire.query("SHOW transaction_read_only")?;
        let value = answer.rows.into_iter().flatten().flatten().next();
        let read_only = value.as_deref() == Some(b"on");
        if read_only != (parameters.attributes == Attributes::ReadOnly) {
            return Err(Failure::Io(std::io::Error::other(match read_only {
                true => "the session is read-only, and target_session_attrs asks for another",
                false => "the session is read-write, and target_session_attrs asks for another",
            })));
        }
    }
    wire.stream().set_timeouts(None)?;
    Ok(wire)
}
