//! Start-up and authentication: trust, password, MD5, SCRAM-SHA-256 with and without channel binding.
//!
//! Invariants: with `channel_binding=require` nothing but a bound SCRAM exchange is accepted; a client that
//! could bind says so, so that a server whose offer was cut out on the way notices (RFC 5802, section 6); the
//! server has to prove that it knows the password too.

use std::io::Write;

use diagnostic::Error;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ScramSha256};

use super::certificate::end_point_binding;
use super::tls::ChannelBinding;
use super::tls_problems::tls_error;
use super::{Failure, ServerError, Wire};

/// What a session says of itself.
pub(crate) struct Startup<'a> {
    pub(crate) user: &'a str,
    pub(crate) password: Option<&'a [u8]>,
    /// `database`, `replication`, `application_name`, `options`, ...
    pub(crate) parameters: &'a [(&'a str, &'a str)],
    pub(crate) channel_binding: ChannelBinding,
}

impl Wire {
    /// Sends the start-up message and authenticates, up to ReadyForQuery. Gives process and secret key.
    pub(super) fn start(&mut self, startup: &Startup<'_>) -> Result<(u32, Vec<u8>), Failure> {
        let mut body = 196_608_u32.to_be_bytes().to_vec(); // protocol 3.0
        for (name, value) in [("user", startup.user)].iter().chain(startup.parameters) {
            for text in [name, value] {
                if text.contains('\0') {
                    return Err(Failure::Protocol("A setting holds a NUL byte.".into()));
                }
                body.extend_from_slice(text.as_bytes());
                body.push(0);
            }
        }
        body.push(0);
        let mut message = ((body.len() + 4) as u32).to_be_bytes().to_vec();
        message.extend_from_slice(&body);
        if let Err(lost) = self.stream.write_all(&message).and_then(|()| self.stream.flush()) {
            // Whoever closed the connection may have said why before: a refused certificate, for one.
            return Err(match self.receive() {
                Ok(frame) if frame.tag == b'E' => Failure::Server(Box::new(ServerError::parse(&frame.body))),
                Err(Failure::Io(told)) if tls_error(&told).is_some() => Failure::Io(told),
                _ => Failure::Io(lost),
            });
        }
        self.authenticate(startup)?;
        let mut key = (0, Vec::new());
        loop {
            let frame = self.receive()?;
            match frame.tag {
                b'K' => {
                    if let Some((process, secret)) = frame.body.split_first_chunk::<4>() {
                        key = (u32::from_be_bytes(*process), secret.to_vec());
                    }
                }
                b'E' => return Err(Failure::Server(Box::new(ServerError::parse(&frame.body)))),
                b'Z' => return Ok(key),
                _ => {}
            }
        }
    }

    fn authenticate(&mut self, startup: &Startup<'_>) -> Result<(), Failure> {
        let mut bound = false;
        loop {
            let frame = self.expect()?;
            let Some((kind, rest)) = frame.body.split_first_chunk::<4>().filter(|_| frame.tag == b'R') else {
                return Err(Failure::Protocol(
                    "The server did not ask for authentication: it may be no PostgreSQL.".into(),
                ));
            };
            let kind = u32::from_be_bytes(*kind);
            let binding_missing = startup.channel_binding == ChannelBinding::Require && !bound;
            match kind {
                0 if binding_missing => return Err(not_bound()),
                0 => return Ok(()),
                3 | 5 if binding_missing => return Err(not_bound()),
                3 => {
                    let mut answer = password(startup)?.to_vec();
                    answer.push(0);
                    self.send(b'p', &answer)?;
                }
                5 => {
                    let salt = rest
                        .first_chunk::<4>()
                        .ok_or_else(|| Failure::Protocol("The server's salt is missing.".into()))?;
                    let mut answer =
                        md5_hash(startup.user.as_bytes(), password(startup)?, *salt).into_bytes();
                    answer.push(0);
                    self.send(b'p', &answer)?;
                }
                10 => bound = self.scram(startup, rest)?,
                7 | 9 => return Err(unsupported("Kerberos (GSSAPI or SSPI)")),
                other => return Err(unsupported(&format!("an unknown method ({other})"))),
            }
        }
    }

    /// Says whether the exchange was bound to the TLS channel.
    fn scram(&mut self, startup: &Startup<'_>, mechanisms: &[u8]) -> Result<bool, Failure> {
        let mut plain = false;
        let mut plus = false;
        for mechanism in mechanisms.split(|byte| *byte == 0) {
            plain |= mechanism == sasl::SCRAM_SHA_256.as_bytes();
            plus |= mechanism == sasl::SCRAM_SHA_256_PLUS.as_bytes();
        }
        let binding = match startup.channel_binding {
            ChannelBinding::Disable => None,
            _ => self.stream.server_certificate().and_then(end_point_binding),
        };
        let (mechanism, binding, bound) = match binding {
            Some(hash) if plus => (
                sasl::SCRAM_SHA_256_PLUS,
                sasl::ChannelBinding::tls_server_end_point(hash),
                true,
            ),
            _ if startup.channel_binding == ChannelBinding::Require => return Err(not_bound()),
            // "I could have": a server that offered it knows then that somebody stands between.
            Some(_) if plain => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested(), false),
            None if plain => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported(), false),
            _ => return Err(unsupported("SASL without SCRAM-SHA-256")),
        };
        let mut exchange = ScramSha256::new(password(startup)?, binding);
        let mut first = mechanism.as_bytes().to_vec();
        first.push(0);
        first.extend_from_slice(&(exchange.message().len() as u32).to_be_bytes());
        first.extend_from_slice(exchange.message());
        self.send(b'p', &first)?;
        let challenge = self.sasl_message(11)?;
        exchange.update(&challenge).map_err(dishonest)?;
        self.send(b'p', exchange.message())?;
        let outcome = self.sasl_message(12)?;
        exchange.finish(&outcome).map_err(dishonest)?;
        Ok(bound)
    }

    fn sasl_message(&mut self, expected: u32) -> Result<Vec<u8>, Failure> {
        let frame = self.expect()?;
        match frame.body.split_first_chunk::<4>() {
            Some((kind, rest)) if frame.tag == b'R' && u32::from_be_bytes(*kind) == expected => {
                Ok(rest.to_vec())
            }
            _ => Err(Failure::Protocol(
                "The server broke off the SCRAM exchange.".into(),
            )),
        }
    }
}

fn password<'a>(startup: &Startup<'a>) -> Result<&'a [u8], Failure> {
    startup.password.ok_or_else(|| {
        Failure::Refused(
            Error::new(
                "server-refused",
                "the server asks for a password, and there is none",
            )
            .hint(
                "Write it into a file that only this account can read, one line \
                 host:port:database:user:password, and add passfile=FILE to the connection string. For a \
                 replication connection the line's database is \"replication\" or *.",
            ),
        )
    })
}

fn dishonest(error: std::io::Error) -> Failure {
    Failure::Refused(
        Error::new(
            "server-refused",
            "the server did not prove that it knows the password",
        )
        .caused_by(&error)
        .hint("Make sure that the host in the connection string is the right one."),
    )
}

fn not_bound() -> Failure {
    Failure::Refused(
        Error::new(
            "channel-binding-missing",
            "channel_binding=require, but the server offers no authentication that binds to the TLS channel",
        )
        .hint(
            "It takes TLS (sslmode=require or stronger), scram-sha-256 in pg_hba.conf, and a certificate that \
             is not signed with Ed25519.",
        ),
    )
}

fn unsupported(method: &str) -> Failure {
    Failure::Refused(
        Error::new(
            "server-refused",
            format!("the server asks for an authentication that pgproof does not speak: {method}"),
        )
        .hint("Add a line with scram-sha-256 or cert for this account to pg_hba.conf."),
    )
}
