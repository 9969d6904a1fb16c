//! TLS as libpq's connection settings ask for it, with rustls and aws-lc-rs.
//!
//! Invariants: a protection that was asked for is given or refused, never left out; `verify-ca` and `verify-full`
//! have roots to verify against or fail before anything is sent; a private key that others may read is not
//! used. Source: `src/interfaces/libpq/fe-secure-openssl.c`, and "SSL Support" of the manual. Two differences:
//! rustls takes no X.509 v1 certificates and no TLS older than 1.2.

use std::fmt;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use diagnostic::{Error, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};

use super::Failure;
use super::certificate::common_name_that_counts;
use super::stream::Stream;
use super::tls_problems::{problem, tls_error};

/// Where distributions keep the roots that they trust.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum TlsMode {
    Disable,
    Allow,
    #[default]
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// `channel_binding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ChannelBinding {
    Disable,
    #[default]
    Prefer,
    Require,
}

/// `sslrootcert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootCertificates {
    File(PathBuf),
    System,
}

/// Everything that a connection string says about TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct TlsParameters {
    pub(crate) mode: TlsMode,
    pub(crate) roots: Option<RootCertificates>,
    pub(crate) revoked: Option<PathBuf>,
    /// Certificate and key of the client.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
    pub(crate) only_tls_13: bool,
    pub(crate) no_tls_13: bool,
    pub(crate) without_server_name: bool,
}

impl TlsParameters {
    /// Is the server's certificate verified?
    fn verifies(&self) -> bool {
        // As libpq: with a root certificate "require" verifies the chain.
        self.mode >= TlsMode::VerifyCa || (self.mode == TlsMode::Require && self.roots.is_some())
    }

    /// The library's configuration. Error codes: `tls-file`, `tls-root-missing`, `tls-setup`.
    pub(crate) fn client_config(&self) -> Result<Arc<ClientConfig>> {
        let setup = |error: rustls::Error| Error::new("tls-setup", "cannot set up TLS").caused_by(&error);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let versions: &[&rustls::SupportedProtocolVersion] = match (self.only_tls_13, self.no_tls_13) {
            (true, _) => &[&rustls::version::TLS13],
            (_, true) => &[&rustls::version::TLS12],
            _ => &[&rustls::version::TLS13, &rustls::version::TLS12],
        };
        let verifier = Arc::new(Verifier::new(self, provider.clone())?);
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(setup)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &self.client {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                builder
                    .with_client_auth_cert(chain, private_key(key)?)
                    .map_err(|error| {
                        Error::new(
                            "tls-file",
                            format!(
                                "certificate \"{}\" and key \"{}\" do not fit together",
                                certificate.display(),
                                key.display()
                            ),
                        )
                        .caused_by(&error)
                    })?
            }
        };
        config.enable_sni = !self.without_server_name;
        Ok(Arc::new(config))
    }
}

/// Speaks TLS over `socket`, on which the server has said that it does.
pub(super) fn handshake(
    mut socket: TcpStream,
    name: &str,
    config: Arc<ClientConfig>,
) -> Result<Stream, Failure> {
    let server = ServerName::try_from(name.to_owned()).map_err(|_| {
        Failure::Refused(Error::usage(
            "conninfo-syntax",
            format!("\"{name}\" is no name of a host that TLS could verify"),
        ))
    })?;
    let mut connection =
        ClientConnection::new(config, server).map_err(|error| Failure::Refused(problem(name, &error)))?;
    while connection.is_handshaking() {
        if let Err(error) = connection.complete_io(&mut socket) {
            let tls = tls_error(&error).map(|inner| Failure::Refused(problem(name, inner)));
            return Err(tls.unwrap_or(Failure::Io(error)));
        }
    }
    Ok(Stream::Tls(Box::new(rustls::StreamOwned::new(
        connection, socket,
    ))))
}

fn file_error(path: &Path, what: &str, error: &dyn fmt::Display) -> Error {
    Error::new(
        "tls-file",
        format!("cannot read {what} from \"{}\"", path.display()),
    )
    .detail(error.to_string())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let what = "certificates";
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| file_error(path, what, &error))?;
    match found.is_empty() {
        true => Err(file_error(path, what, &"There is no certificate in the file.")),
        false => Ok(found),
    }
}

/// As `pqsecure_initialize` of libpq: a regular file for the owner's eyes only, or root's that a group may read.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let what = "the private key";
    let metadata = std::fs::metadata(path).map_err(|error| file_error(path, what, &error))?;
    if !metadata.is_file() {
        return Err(file_error(path, what, &"It is no regular file."));
    }
    if metadata.mode() & forbidden_to_others(metadata.uid()) != 0 {
        return Err(file_error(
            path,
            what,
            &"The file may be read or changed by others: 0600 or less is allowed, or 0640 where it is root's.",
        )
        .hint(format!("chmod 0600 '{}'", path.display())));
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| match is_encrypted(path) {
        true => file_error(
            path,
            what,
            &"It is encrypted with a passphrase, which is not supported: nobody could type it for a timer.",
        )
        .hint(format!(
            "Write it without one, for this account's eyes only: (umask 077; openssl pkey -in '{0}' -out '{0}.plain')",
            path.display()
        )),
        false => {
            let told = match &error {
                rustls::pki_types::pem::Error::NoItemsFound => "There is no private key in the file.".to_owned(),
                other => other.to_string(),
            };
            file_error(path, what, &told)
        }
    })
}

/// The rights that nobody but the owner may have; a file of root's may be read by a group, by which a service's account
/// gets at it.
fn forbidden_to_others(owner: u32) -> u32 {
    match owner {
        0 => 0o037,
        _ => 0o077,
    }
}

/// Whether the file holds a key under a passphrase, in PKCS #8 or in OpenSSL's older form.
fn is_encrypted(path: &Path) -> bool {
    let text = std::fs::read(path).unwrap_or_default();
    let holds = |words: &[u8]| text.windows(words.len()).any(|window| window == words);
    holds(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || holds(b"Proc-Type: 4,ENCRYPTED")
}

struct Verifier {
    provider: Arc<CryptoProvider>,
    /// `None`: everything is accepted.
    roots: Option<Arc<WebPkiServerVerifier>>,
    /// The certificates of `sslrootcert`: a server may show one of them as its own.
    trusted: Vec<CertificateDer<'static>>,
    check_name: bool,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("verifies", &self.roots.is_some())
            .field("check_name", &self.check_name)
            .finish_non_exhaustive()
    }
}

impl Verifier {
    fn new(parameters: &TlsParameters, provider: Arc<CryptoProvider>) -> Result<Verifier> {
        let mut verifier = Verifier {
            provider: provider.clone(),
            roots: None,
            trusted: Vec::new(),
            check_name: parameters.mode == TlsMode::VerifyFull,
        };
        if !parameters.verifies() {
            return Ok(verifier);
        }
        let path = match &parameters.roots {
            Some(RootCertificates::File(path)) => path.clone(),
            Some(RootCertificates::System) => SYSTEM_ROOTS
                .iter()
                .map(PathBuf::from)
                .find(|path| path.is_file())
                .ok_or_else(|| {
                    Error::new(
                        "tls-root-missing",
                        "this host has no file of trusted root certificates",
                    )
                    .hint("Install the package ca-certificates, or name a file with sslrootcert=FILE.")
                })?,
            None => {
                return Err(Error::usage(
                    "tls-root-missing",
                    "sslmode verifies the server's certificate, but sslrootcert is not set",
                )
                .hint("Add sslrootcert=FILE (or sslrootcert=system) to the connection string."));
            }
        };
        verifier.trusted = certificates(&path)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(verifier.trusted.iter().cloned());
        if roots.is_empty() {
            return Err(file_error(
                &path,
                "root certificates",
                &"None of them can be used (X.509 v1?).",
            ));
        }
        let mut builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        if let Some(path) = &parameters.revoked {
            let lists = CertificateRevocationListDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| file_error(path, "revocation lists", &error))?;
            builder = builder.with_crls(lists).allow_unknown_revocation_status();
        }
        let built = builder
            .build()
            .map_err(|error| Error::new("tls-setup", "cannot set up TLS").caused_by(&error))?;
        verifier.roots = Some(built);
        Ok(verifier)
    }

    /// A name that is missing among the alternative names may be the common name, if there are none.
    fn is_common_name(&self, certificate: &[u8], name: &ServerName<'_>) -> bool {
        let ServerName::DnsName(name) = name else {
            return false;
        };
        common_name_that_counts(certificate).is_some_and(|common| matches_name(&common, name.as_ref()))
    }
}

/// As `wildcard_certificate_match` of libpq: `*.` stands for one label.
fn matches_name(pattern: &str, name: &str) -> bool {
    if pattern.eq_ignore_ascii_case(name) {
        return true;
    }
    match (pattern.strip_prefix("*."), name.split_once('.')) {
        (Some(rest), Some((label, tail))) => !label.is_empty() && rest.eq_ignore_ascii_case(tail),
        _ => false,
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(roots) = &self.roots else {
            return Ok(ServerCertVerified::assertion());
        };
        let error = match roots.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Ok(verified) => return Ok(verified),
            Err(error) => error,
        };
        match &error {
            // The chain is good; names are looked at last.
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) if !self.check_name || self.is_common_name(certificate, name) => {
                Ok(ServerCertVerified::assertion())
            }
            // `openssl req -x509` makes authorities: what is trusted as one may also be shown as the server's
            // own. Validity was checked before.
            rustls::Error::InvalidCertificate(CertificateError::Other(other))
                if format!("{other:?}").contains("CaUsedAsEndEntity")
                    && self.trusted.contains(certificate) =>
            {
                let named = ParsedCertificate::try_from(certificate)
                    .and_then(|parsed| rustls::client::verify_server_name(&parsed, name));
                match named {
                    Err(error) if self.check_name && !self.is_common_name(certificate, name) => Err(error),
                    _ => Ok(ServerCertVerified::assertion()),
                }
            }
            _ => Err(error),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_one_label() {
        assert!(matches_name("db.example.org", "DB.example.org"));
        assert!(matches_name("*.example.org", "db.example.org"));
        assert!(!matches_name("*.example.org", "a.db.example.org"));
        assert!(!matches_name("*.example.org", "example.org"));
    }

    #[test]
    fn a_group_may_read_a_key_of_roots_and_of_nobody_elses() {
        for (owner, mode, allowed) in [
            (1000, 0o600, true),
            (1000, 0o400, true),
            (1000, 0o640, false),
            (1000, 0o604, false),
            (0, 0o600, true),
            (0, 0o640, true),
            (0, 0o660, false),
            (0, 0o644, false),
        ] {
            assert_eq!(
                mode & forbidden_to_others(owner) == 0,
                allowed,
                "{owner} {mode:o}"
            );
        }
    }

    #[test]
    fn verifying_without_a_root_is_refused_before_anything_is_sent() {
        let parameters = TlsParameters {
            mode: TlsMode::VerifyFull,
            ..TlsParameters::default()
        };
        assert_eq!(parameters.client_config().unwrap_err().code(), "tls-root-missing");
    }
}
