//! What TLS says when a connection does not come about, in an operator's words: our certificate or the server's,
//! whose fault it is, and what helps.
//!
//! Invariant: a refusal of our certificate is told apart from one of the server's. With TLS 1.3 the server's
//! refusal comes behind a handshake that looked complete, as the answer to the first message.

use std::io;

use diagnostic::Error;
use rustls::{AlertDescription, CertificateError};

use super::Failure;

/// What TLS says, if that is what an operation failed of.
pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// The same failure; where the server at `name` has refused TLS or our certificate, in these words. `None`: without
/// TLS.
pub(super) fn in_words(name: Option<&str>, failure: Failure) -> Failure {
    match (name, &failure) {
        (Some(name), Failure::Io(error)) => match tls_error(error) {
            Some(tls) => Failure::Refused(problem(name, tls)),
            None => failure,
        },
        _ => failure,
    }
}

/// Codes: `tls-certificate` (the server's is not accepted), `tls-client-certificate` (ours is not, or is missing),
/// `tls-handshake`.
pub(super) fn problem(name: &str, error: &rustls::Error) -> Error {
    match error {
        rustls::Error::InvalidCertificate(why) => {
            let refused = Error::new(
                "tls-certificate",
                format!("the certificate of the server at {name} is not accepted"),
            )
            .detail(certificate_problem(why));
            match why {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => refused.hint(
                    "sslrootcert must name a file with the certificate of the authority that issued the server's.",
                ),
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    refused.hint(
                        "Connect by a name that is in the certificate (host=NAME, with hostaddr=ADDRESS if need \
                         be), or have the certificate issued for this one.",
                    )
                }
                _ => refused,
            }
        }
        rustls::Error::AlertReceived(alert) => match client_certificate_problem(*alert) {
            Some((detail, hint)) => Error::new(
                "tls-client-certificate",
                format!("the server at {name} does not accept our certificate"),
            )
            .detail(detail)
            .hint(hint),
            None => handshake(name, error),
        },
        other => handshake(name, other),
    }
}

fn handshake(name: &str, error: &rustls::Error) -> Error {
    Error::new("tls-handshake", format!("TLS with the server at {name} failed")).caused_by(error)
}

/// What the server says about the certificate that it was shown, and what helps.
fn client_certificate_problem(alert: AlertDescription) -> Option<(&'static str, &'static str)> {
    Some(match alert {
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => (
            "It asks for one, and none was shown.",
            "Name certificate and key in the connection string: sslcert=FILE sslkey=FILE.",
        ),
        AlertDescription::UnknownCA => (
            "Nobody whom the server trusts has issued it.",
            "sslcert must be issued by an authority in the server's ssl_ca_file, and hold the authorities in \
             between.",
        ),
        AlertDescription::CertificateExpired => (
            "It has expired, or is not valid yet.",
            "Have a new one issued, and name it with sslcert; if it is valid, compare the clocks of both hosts.",
        ),
        AlertDescription::CertificateRevoked => (
            "It was revoked: the server's ssl_crl_file names it.",
            "Have a new one issued, and name it with sslcert.",
        ),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => (
            "The server does not say why; its log does.",
            "sslcert must be issued for clients (extended key usage), by an authority in the server's ssl_ca_file.",
        ),
        _ => return None,
    })
}

fn certificate_problem(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => "Nobody in sslrootcert has issued it.".into(),
        CertificateError::NotValidForName => "It was issued for another host.".into(),
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            "It was issued for another host, or for none.".into()
        }
        CertificateError::NotValidForNameContext { presented, .. } => {
            format!("It was issued for another host: {}.", presented.join(", "))
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "It has expired.".into(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "It is not valid yet.".into()
        }
        CertificateError::Revoked => "It was revoked.".into(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_our_certificate_is_told_apart_and_stays_a_lost_connection_without_tls() {
        let refused = |alert| {
            let tls = rustls::Error::AlertReceived(alert);
            let failure = Failure::Io(io::Error::new(io::ErrorKind::InvalidData, tls));
            in_words(Some("db"), failure)
        };
        for (alert, code, words) in [
            (
                AlertDescription::UnknownCA,
                "tls-client-certificate",
                "ssl_ca_file",
            ),
            (
                AlertDescription::CertificateRequired,
                "tls-client-certificate",
                "sslcert=FILE",
            ),
            (
                AlertDescription::CertificateRevoked,
                "tls-client-certificate",
                "ssl_crl_file",
            ),
            (
                AlertDescription::CertificateExpired,
                "tls-client-certificate",
                "expired",
            ),
            (
                AlertDescription::ProtocolVersion,
                "tls-handshake",
                "ProtocolVersion",
            ),
        ] {
            let Failure::Refused(error) = refused(alert) else {
                panic!("{alert:?} is no refusal");
            };
            assert_eq!(error.code(), code, "{alert:?}");
            assert!(error.render().contains(words), "{alert:?}: {}", error.render());
        }
        let plain = in_words(None, Failure::Io(io::ErrorKind::ConnectionReset.into()));
        assert!(matches!(plain, Failure::Io(_)));
        let lost = in_words(Some("db"), Failure::Io(io::ErrorKind::ConnectionReset.into()));
        assert!(matches!(lost, Failure::Io(_)));
    }
}
