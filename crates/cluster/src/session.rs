//! One connection to a server for ordinary SQL: the simple query protocol, everything as text.
//!
//! Invariants: nothing waits for ever. The server is told a `statement_timeout`; should it not answer at all
//! (a stopped process, a silent network), this side gives up a little later, and the session counts as lost.
//! That needs a thread for each session, since the client library blocks: a caller waits for the thread's
//! answer with a limit. What decides how values look as text (`DateStyle`, `TimeZone`, ...) is set when
//! connecting, and `search_path` is `pg_catalog` unless the caller wants otherwise, so that nobody's objects
//! are called by accident.
//!
//! Error codes: `server-unreachable` (nobody answers, or the server starts or stops), `server-refused`
//! (authentication, no such database, too many connections), `server-error` (a statement failed; the detail
//! begins with `SQLSTATE`), `connection-lost`.

use crate::conninfo::Conninfo;
use crate::wire::{self, Cancel, Failure, Wire};
use diagnostic::{Error, Result};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// How much longer than the server this side waits.
const GRACE: Duration = Duration::from_secs(10);

/// How to connect, beyond what the connection string says.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Connect to this database whatever the connection string says.
    pub database: Option<String>,
    /// Limit for connecting and authenticating, all hosts together; `connect_timeout` of the string goes
    /// first.
    pub connect_timeout: Duration,
    /// Limit for each statement.
    pub statement_timeout: Duration,
    /// `lock_timeout`.
    pub lock_timeout: Duration,
    /// `application_name`.
    pub application_name: String,
    /// Leave `search_path` as the server has it; otherwise it is `pg_catalog` alone.
    pub keep_search_path: bool,
    /// Every transaction is read-only (`default_transaction_read_only`).
    pub read_only: bool,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        ConnectOptions {
            database: None,
            connect_timeout: Duration::from_secs(15),
            statement_timeout: Duration::from_secs(300),
            lock_timeout: Duration::from_secs(30),
            application_name: "pgproof".into(),
            keep_search_path: false,
            read_only: false,
        }
    }
}

/// Rows as text, `None` for NULL.
pub type Rows = Vec<Vec<Option<String>>>;

struct Request {
    statement: String,
    answer: SyncSender<Result<(Rows, u64)>>,
}

/// One connection. Dropping it closes it.
pub struct Session {
    requests: Option<SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
    cancel: CancelHandle,
    limit: Duration,
    version_num: u32,
    /// Why the connection can no longer be used.
    lost: Option<Error>,
    /// A transcript in place of a server: it needs no thread, since it is never waited for.
    replayed: Option<Wire>,
}

/// Cancels the statement that a session runs, from any thread.
#[derive(Clone)]
pub struct CancelHandle(Cancel);

impl CancelHandle {
    /// Asks the server to cancel; that it was asked says nothing about whether there was something to cancel.
    pub fn cancel(&self) -> Result<()> {
        let token = self.0.clone();
        let (answer, result) = sync_channel(1);
        spawn("pgproof-cancel", move || {
            let _ = answer.send(token.send(GRACE));
        })?;
        match result.recv_timeout(GRACE) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(failure)) => Err(failure.into_error("connection-lost", "cannot cancel the statement")),
            Err(_) => Err(Error::new(
                "connection-lost",
                "cannot cancel the statement: the server is silent",
            )),
        }
    }
}

impl Session {
    /// Connects with the default options.
    pub fn connect(conninfo: &str) -> Result<Session> {
        Session::connect_with(conninfo, &ConnectOptions::default())
    }

    /// Connects, authenticates, and pins what decides how values look as text.
    pub fn connect_with(conninfo: &str, options: &ConnectOptions) -> Result<Session> {
        let mut conninfo = Conninfo::parse(conninfo)?;
        if let Some(database) = &options.database {
            conninfo = conninfo.with("dbname", database);
        }
        let shown = conninfo.redacted();
        let parameters = conninfo.parameters()?;
        let connect_timeout = parameters.connect_timeout.unwrap_or(options.connect_timeout);
        let application_name = options.application_name.clone();

        let (requests, inbox) = sync_channel::<Request>(1);
        let (ready, connected) = sync_channel(1);
        let thread = spawn("pgproof-session", move || {
            let startup = [("application_name", application_name.as_str())];
            match wire::connect(&parameters, &startup, connect_timeout) {
                Ok(wire) => {
                    if ready.send(Ok(CancelHandle(wire.cancel.clone()))).is_ok() {
                        serve(wire, &inbox);
                    }
                }
                Err(failure) => {
                    let _ = ready.send(Err(failure));
                }
            }
        })?;
        // Looking up a name has no limit of its own.
        let cancel = match connected.recv_timeout(connect_timeout) {
            Ok(Ok(cancel)) => cancel,
            Ok(Err(failure)) => return Err(connect_error(&shown, failure)),
            Err(_) => {
                return Err(
                    Error::new("server-unreachable", format!("cannot connect to {shown}")).detail(format!(
                        "The server did not answer within {} seconds.",
                        connect_timeout.as_secs()
                    )),
                );
            }
        };
        let mut session = Session {
            requests: Some(requests),
            thread: Some(thread),
            cancel,
            limit: options.statement_timeout,
            version_num: 0,
            lost: None,
            replayed: None,
        };
        let version = session.one("SHOW server_version_num")?;
        session.version_num = version
            .first()
            .and_then(|v| v.as_deref())
            .and_then(|v| v.parse().ok())
            .ok_or_else(|| {
                Error::new("server-error", "the server does not tell its version")
                    .detail("SHOW server_version_num gave no number.")
            })?;
        session.execute(&pinned_settings(options, session.version_num))?;
        Ok(session)
    }

    /// With a server of this version that answers the next statements so, whatever they are.
    pub(crate) fn replayed(said: &[u8], version_num: u32) -> Session {
        let wire = Wire::replayed(said);
        Session {
            requests: None,
            thread: None,
            cancel: CancelHandle(wire.cancel.clone()),
            limit: Duration::ZERO,
            version_num,
            lost: None,
            replayed: Some(wire),
        }
    }

    /// All rows of all results of `statement`, in order.
    pub fn rows(&mut self, statement: &str) -> Result<Rows> {
        self.run(statement).map(|(rows, _)| rows)
    }

    /// The only row; an error (`server-error`) when there is none or more than one.
    pub fn one(&mut self, statement: &str) -> Result<Vec<Option<String>>> {
        let mut rows = self.rows(statement)?;
        match (rows.len(), rows.pop()) {
            (1, Some(row)) => Ok(row),
            (count, _) => Err(Error::new(
                "server-error",
                "the server's answer has another shape than expected",
            )
            .detail(format!("One row was expected and {count} came for: {statement}"))),
        }
    }

    /// Runs statements and gives the row count of the last one.
    pub fn execute(&mut self, statement: &str) -> Result<u64> {
        self.run(statement).map(|(_, count)| count)
    }

    /// `text` as a literal of SQL, whatever it holds.
    pub fn literal(text: &str) -> String {
        // E'' does not depend on standard_conforming_strings. A NUL cannot be in any text of PostgreSQL.
        let escaped = text.replace('\0', "").replace('\'', "''");
        match escaped.contains('\\') {
            true => format!("E'{}'", escaped.replace('\\', "\\\\")),
            false => format!("'{escaped}'"),
        }
    }

    /// `name` as a quoted identifier.
    pub fn identifier(name: &str) -> String {
        format!("\"{}\"", name.replace('\0', "").replace('"', "\"\""))
    }

    /// `server_version_num`, for example 150018.
    pub fn version_num(&self) -> u32 {
        self.version_num
    }

    /// A handle to cancel what this session runs.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// Another limit for the statements from now on.
    pub fn set_statement_timeout(&mut self, limit: Duration) -> Result<()> {
        self.execute(&format!("SET statement_timeout = {}", milliseconds(limit)))?;
        self.limit = limit;
        Ok(())
    }

    fn run(&mut self, statement: &str) -> Result<(Rows, u64)> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        if let Some(wire) = &mut self.replayed {
            return answer_of(wire, statement);
        }
        let (answer, result) = sync_channel(1);
        let request = Request {
            statement: statement.to_string(),
            answer,
        };
        let sent = self
            .requests
            .as_ref()
            .is_some_and(|requests| requests.send(request).is_ok());
        let outcome = match sent {
            true => result.recv_timeout(self.limit.saturating_add(GRACE)),
            false => Err(RecvTimeoutError::Disconnected),
        };
        let error = match outcome {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) if error.code() != "connection-lost" => return Err(error),
            Ok(Err(error)) => error,
            Err(RecvTimeoutError::Timeout) => Error::new("connection-lost", "the server no longer answers")
                .detail(format!(
                    "Nothing came back within {} seconds.",
                    (self.limit + GRACE).as_secs()
                )),
            Err(RecvTimeoutError::Disconnected) => {
                Error::new("connection-lost", "the connection to the server is closed")
            }
        };
        self.lost = Some(error.clone());
        Err(error)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.requests = None;
        // With a lost connection the thread may wait for ever: it is left behind.
        if let (None, Some(thread)) = (&self.lost, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

/// The SQLSTATE of an error with code `server-error` or `server-refused`.
pub fn sqlstate(error: &Error) -> Option<&str> {
    error.detail_text()?.strip_prefix("SQLSTATE ")?.get(..5)
}

/// The session's thread: one request after the other, until the session is dropped.
fn serve(mut wire: Wire, inbox: &Receiver<Request>) {
    while let Ok(request) = inbox.recv() {
        let answer = answer_of(&mut wire, &request.statement);
        let lost = matches!(&answer, Err(error) if error.code() == "connection-lost");
        let _ = request.answer.send(answer);
        if lost {
            return;
        }
    }
    wire.close();
}

fn answer_of(wire: &mut Wire, statement: &str) -> Result<(Rows, u64)> {
    match wire.query(statement) {
        Ok(answer) => as_text(answer),
        Err(failure) => Err(statement_error(failure)),
    }
}

fn as_text(answer: wire::Answer) -> Result<(Rows, u64)> {
    let text = |value: Option<Vec<u8>>| value.map(String::from_utf8).transpose();
    let rows: Result<Rows, _> = answer
        .rows
        .into_iter()
        .map(|row| row.into_iter().map(text).collect())
        .collect();
    let rows = rows.map_err(|error| {
        Error::new("server-error", "a value of the server's answer is not UTF-8").caused_by(&error)
    })?;
    Ok((rows, answer.count))
}

fn statement_error(failure: Failure) -> Error {
    match failure {
        Failure::Server(server) if !server.is_fatal() => server.into_error("server-error"),
        Failure::Server(server) => server.into_error("connection-lost"),
        other => other.into_error("connection-lost", "the connection to the server is lost"),
    }
}

/// Why a connection was not made. Codes: `server-unreachable`, `server-refused`, and those of TLS.
pub(crate) fn connect_error(shown: &str, failure: Failure) -> Error {
    let message = format!("cannot connect to {shown}");
    let server = match failure {
        Failure::Server(server) => server,
        Failure::Refused(error) => return error.context(message),
        other => {
            return other.into_error("server-unreachable", message).hint(
                "See whether the server runs and listens there: psql with the same connection string.",
            );
        }
    };
    let code = match server.sqlstate.starts_with("57P0") {
        true => "server-unreachable",
        false => "server-refused",
    };
    let (sqlstate, told) = (server.sqlstate.clone(), server.message.clone());
    let refused = server.into_error(code).context(message);
    if sqlstate == "28000" && told.contains("no encryption") {
        return refused
            .hint("pg_hba.conf may ask for TLS (hostssl): add sslmode=require, or a stronger one.");
    }
    if sqlstate == "28000" && told.contains("client certificate") {
        return refused.hint(
            "pg_hba.conf asks for a certificate: name it and its key in the connection string, sslcert=FILE \
             sslkey=FILE.",
        );
    }
    if sqlstate == "28000" && told.contains("certificate authentication failed") {
        return refused.hint(
            "The common name in sslcert must be the role's name, or be mapped to it in pg_ident.conf (map=... in \
             pg_hba.conf).",
        );
    }
    refused
}

fn milliseconds(limit: Duration) -> u128 {
    // 0 would mean "no limit", and the setting is an int.
    limit.as_millis().clamp(1, i32::MAX as u128)
}

fn pinned_settings(options: &ConnectOptions, version_num: u32) -> String {
    let mut settings = format!(
        "SET client_min_messages = warning; SET standard_conforming_strings = on; \
         SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = 0; \
         SET DateStyle = 'ISO, YMD'; SET TimeZone = 'UTC'; SET IntervalStyle = 'postgres'; \
         SET bytea_output = 'hex'; SET extra_float_digits = 1; \
         SET default_transaction_isolation = 'read committed'",
        milliseconds(options.statement_timeout),
        milliseconds(options.lock_timeout)
    );
    if version_num >= 140_000 {
        settings.push_str("; SET idle_session_timeout = 0");
    }
    if version_num >= 170_000 {
        settings.push_str("; SET transaction_timeout = 0");
    }
    if !options.keep_search_path {
        settings.push_str("; SET search_path = pg_catalog");
    }
    if options.read_only {
        settings.push_str("; SET default_transaction_read_only = on");
    }
    settings
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map_err(|error| Error::io("thread-start", "cannot start a thread", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_identifiers_cannot_be_broken_out_of() {
        assert_eq!(Session::literal("it's"), "'it''s'");
        assert_eq!(Session::literal(r"a\'b"), r"E'a\\''b'");
        assert_eq!(Session::literal("a\0b"), "'ab'");
        assert_eq!(Session::identifier("a\"b"), "\"a\"\"b\"");
    }

    #[test]
    fn a_server_that_accepts_and_never_speaks_is_given_up() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let options = ConnectOptions {
            connect_timeout: Duration::from_millis(300),
            ..Default::default()
        };
        let conninfo = format!("host=127.0.0.1 port={port} user=x password=secret dbname=x");
        let error = Session::connect_with(&conninfo, &options).err().unwrap();
        assert_eq!(error.code(), "server-unreachable");
        assert!(!error.render().contains("secret"));
    }

    #[test]
    fn nobody_listening_is_told_as_unreachable() {
        let folder = tempfile::tempdir().unwrap();
        let conninfo = format!("host={} user=x dbname=x", folder.path().display());
        assert_eq!(
            Session::connect(&conninfo).err().unwrap().code(),
            "server-unreachable"
        );
    }
}
