//! What TLS says when a connection to the store does not come about, in an operator's words, and what helps.
//!
//! Invariants: a certificate that is not accepted is an answer, not an accident: it has a code of its own and is
//! not tried again; it is told by the library's own value, never by its words; nothing here makes anything be
//! accepted.

use std::error::Error as Cause;

use rustls::{AlertDescription, CertificateError};

use super::attempt::Kind;

/// Why there is no TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// [`Kind::Certificate`] or [`Kind::Tls`].
    pub(super) kind: Kind,
    /// Goes on behind a colon.
    pub(super) words: String,
    pub(super) hint: &'static str,
}

const TRUST: &str = "Name the certificate of the authority that issued it in the copy's section, ca_file = \
                     \"/etc/pgproof/ca.pem\", or add it to this host's own store of certificates.";
const NAME: &str = "Write in `endpoint` a name that the certificate has, or have it issued for this one as an \
                    alternative name; with path_style = false the bucket's name stands in front of the host's.";
const CLOCK: &str = "Have the store's certificate renewed; if it is valid, this host's clock is wrong.";
const ISSUE: &str = "Have a certificate issued for the server: of X.509 version 3, with its name as \
                     subjectAltName and basicConstraints CA:FALSE; ca_file names the authority that issued it.";
const NO_TLS: &str = "Look at the port in `endpoint`; a store without TLS is used with http:// and allow_http = \
                      true, in a network that you trust.";
const OFFER: &str = "The store must speak TLS 1.2 or 1.3, with the server's certificate alone.";

/// What TLS says, where that is why a request got no answer.
pub(super) fn problem(error: &(dyn Cause + 'static)) -> Option<Problem> {
    let told = tls_error(error)?;
    let of = |kind, words: String, hint| Some(Problem { kind, words, hint });
    match told {
        rustls::Error::InvalidCertificate(why) => {
            let (words, hint) = certificate_problem(why);
            of(Kind::Certificate, words, hint)
        }
        rustls::Error::InvalidMessage(_) => {
            of(Kind::Tls, "what answers does not speak TLS".to_owned(), NO_TLS)
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => of(
            Kind::Tls,
            "it asks for a certificate of the client's, and none is offered".to_owned(),
            OFFER,
        ),
        other => of(Kind::Tls, other.to_string(), OFFER),
    }
}

fn tls_error<'a>(error: &'a (dyn Cause + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(tls) = cause.downcast_ref() {
            return Some(tls);
        }
        // What an io::Error wraps is not among its own sources.
        let wrapped = cause
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => cause.source(),
        };
    }
    None
}

fn certificate_problem(error: &CertificateError) -> (String, &'static str) {
    let day = |time: &rustls::pki_types::UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        jiff::Timestamp::from_second(seconds).map_or_else(
            |_| "a day beyond all calendars".to_owned(),
            |time| time.strftime("%Y-%m-%d").to_string(),
        )
    };
    match error {
        CertificateError::UnknownIssuer => ("nobody whom this host trusts has issued it".to_owned(), TRUST),
        CertificateError::BadSignature => (
            "its signature is not that of the authority that it names".to_owned(),
            TRUST,
        ),
        CertificateError::NotValidForName => ("it was issued for another name".to_owned(), NAME),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let asked = expected.to_str();
            let words = match presented.is_empty() {
                true => format!("it was issued for no host by its alternative names, and not for {asked}"),
                false => format!("it was issued for {}, and not for {asked}", presented.join(", ")),
            };
            (words, NAME)
        }
        CertificateError::Expired => ("it has expired".to_owned(), CLOCK),
        CertificateError::ExpiredContext { not_after, .. } => {
            (format!("it expired on {}", day(not_after)), CLOCK)
        }
        CertificateError::NotValidYet => ("it is not valid yet".to_owned(), CLOCK),
        CertificateError::NotValidYetContext { not_before, .. } => {
            (format!("it is not valid before {}", day(not_before)), CLOCK)
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            ("it was not issued for servers".to_owned(), ISSUE)
        }
        other => {
            let told = format!("{other:?}");
            let words = if told.contains("CaUsedAsEndEntity") {
                "it is an authority's own, which is no server's".to_owned()
            } else if told.contains("UnsupportedCertVersion") {
                "it is of an old version of X.509".to_owned()
            } else if told.contains("EkuError") {
                "it was not issued for servers".to_owned()
            } else {
                told
            };
            (words, ISSUE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    /// As it comes from the library of HTTP: wrapped in errors of others, and in an error of reading.
    #[derive(Debug)]
    struct Wrapped(io::Error);

    impl std::fmt::Display for Wrapped {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("client error (Connect)")
        }
    }

    impl Cause for Wrapped {
        fn source(&self) -> Option<&(dyn Cause + 'static)> {
            Some(&self.0)
        }
    }

    fn told(error: rustls::Error) -> Option<Problem> {
        let twice = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error));
        problem(&Wrapped(twice))
    }

    #[test]
    fn what_tls_says_is_found_however_it_is_wrapped_and_each_fault_has_its_own_words() {
        let certificate = |why: CertificateError| told(rustls::Error::InvalidCertificate(why)).expect("TLS");
        let mut all = vec![
            certificate(CertificateError::UnknownIssuer),
            certificate(CertificateError::BadSignature),
            certificate(CertificateError::NotValidForName),
            certificate(CertificateError::Expired),
            certificate(CertificateError::NotValidYet),
            certificate(CertificateError::InvalidPurpose),
            certificate(CertificateError::Revoked),
        ];
        assert!(
            all.iter().all(|problem| problem.kind == Kind::Certificate),
            "{all:#?}"
        );
        let count = all.len();
        all.sort_by(|one, two| one.words.cmp(&two.words));
        all.dedup_by(|one, two| one.words == two.words);
        assert_eq!(all.len(), count, "two faults have the same words");
        let alert = told(rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)).expect("TLS");
        assert_eq!(alert.kind, Kind::Tls);
        // Words that only look like it are none.
        let lookalike = io::Error::other("invalid peer certificate: UnknownIssuer");
        assert_eq!(problem(&Wrapped(lookalike)), None);
    }
}
