//! Certificates for servers and clients of a test, and the throw-away authority that issues them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SerialNumber, date_time_ymd,
};

/// Serial numbers, of whichever authority.
static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1000);

/// An authority with a key of its own. Two of one name are two.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, both PEM.
pub struct Issued {
    pub certificate: String,
    pub key: String,
    serial: u64,
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    Now,
    /// Until 2021.
    Expired,
    /// From 2090 on.
    NotYet,
}

fn named(name: &str, alternative: &[&str]) -> CertificateParams {
    let alternative: Vec<String> = alternative.iter().map(|name| (*name).to_owned()).collect();
    let mut parameters = CertificateParams::new(alternative).expect("names that a certificate can hold");
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.not_before = date_time_ymd(2020, 1, 1);
    parameters.not_after = date_time_ymd(2099, 1, 1);
    parameters
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut parameters = named(name, &[]);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        let key = KeyPair::generate().expect("a key");
        Authority(CertifiedIssuer::self_signed(parameters, key).expect("an authority"))
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Its own certificate and key, as a server would show them that knows no better.
    pub fn own(&self) -> Issued {
        Issued {
            certificate: self.pem(),
            key: self.0.key().serialize_pem(),
            serial: 0,
        }
    }

    /// For a server of these names or addresses.
    pub fn server(&self, names: &[&str], validity: Validity) -> Issued {
        let mut parameters = named(names.first().copied().unwrap_or("server"), names);
        match validity {
            Validity::Now => {}
            Validity::Expired => parameters.not_after = date_time_ymd(2021, 1, 1),
            Validity::NotYet => parameters.not_before = date_time_ymd(2090, 1, 1),
        }
        self.issue(parameters, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// For a client; PostgreSQL's `cert` takes the common name for the role's.
    pub fn client(&self, common_name: &str, validity: Validity) -> Issued {
        let mut parameters = named(common_name, &[]);
        if validity == Validity::Expired {
            parameters.not_after = date_time_ymd(2021, 1, 1);
        }
        self.issue(parameters, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(&self, mut parameters: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Issued {
        let serial = NEXT_SERIAL.fetch_add(1, Ordering::Relaxed);
        parameters.serial_number = Some(SerialNumber::from(serial));
        parameters.use_authority_key_identifier_extension = true;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &self.0).expect("a certificate");
        Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            serial,
        }
    }

    /// A list, PEM, that takes these certificates back.
    pub fn revoke(&self, issued: &[&Issued]) -> String {
        let revoked = issued.iter().map(|issued| RevokedCertParams {
            serial_number: SerialNumber::from(issued.serial),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(2099, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.0).expect("a list");
        list.pem().expect("a list as PEM")
    }
}

impl Issued {
    /// Writes `NAME.crt` and, for the owner's eyes only, `NAME.key`; gives both paths.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (
            folder.join(format!("{name}.crt")),
            folder.join(format!("{name}.key")),
        );
        fs::write(&certificate, &self.certificate).expect("write a certificate");
        fs::write(&key, &self.key).expect("write a key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("mode of a key");
        (certificate, key)
    }
}
