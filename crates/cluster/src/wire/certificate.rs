//! The few things that have to be read from a certificate's DER: which hash its signature uses (for channel
//! binding), and the names in it.
//!
//! Invariants: total on any bytes; what is not understood is `None`. Sources: RFC 5280 (layout), RFC 5929
//! section 4.1 (`tls-server-end-point`), `be_tls_get_certificate_hash` of `be-secure-openssl.c`.

use aws_lc_rs::digest;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const INTEGER: u8 = 0x02;

/// Tag, content, and what stands behind.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = digits
                .iter()
                .fold(0_usize, |sum, digit| sum << 8 | usize::from(*digit));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn expect(bytes: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    element(bytes).and_then(|(tag, content, rest)| (tag == wanted).then_some((content, rest)))
}

/// The hash for `tls-server-end-point`: that of the certificate's signature, SHA-256 in place of MD5 and
/// SHA-1. `None` where the signature has no hash of its own (Ed25519): then there is no channel binding.
fn signature_hash(certificate: &[u8]) -> Option<&'static digest::Algorithm> {
    let (certificate, _) = expect(certificate, SEQUENCE)?;
    let (_, rest) = expect(certificate, SEQUENCE)?; // tbsCertificate
    let (algorithm, _) = expect(rest, SEQUENCE)?;
    let (oid, parameters) = expect(algorithm, OID)?;
    by_signature(oid, parameters)
}

fn by_signature(oid: &[u8], parameters: &[u8]) -> Option<&'static digest::Algorithm> {
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];
    if let Some(last) = oid.strip_prefix(RSA) {
        return match last {
            // md5, sha1, sha256 WithRSAEncryption
            [4] | [5] | [11] => Some(&digest::SHA256),
            [12] => Some(&digest::SHA384),
            [13] => Some(&digest::SHA512),
            [14] => Some(&digest::SHA224),
            [10] => by_hash(pss_hash(parameters)),
            _ => None,
        };
    }
    match oid.strip_prefix(ECDSA)? {
        [1] => Some(&digest::SHA256), // ecdsa-with-SHA1
        [3, 1] => Some(&digest::SHA224),
        [3, 2] => Some(&digest::SHA256),
        [3, 3] => Some(&digest::SHA384),
        [3, 4] => Some(&digest::SHA512),
        _ => None,
    }
}

/// RSASSA-PSS-params: `[0] HashAlgorithm`, SHA-1 when it is left out.
fn pss_hash(parameters: &[u8]) -> Option<&[u8]> {
    let (parameters, _) = expect(parameters, SEQUENCE)?;
    let (hash, _) = expect(parameters, 0xa0)?;
    let (hash, _) = expect(hash, SEQUENCE)?;
    expect(hash, OID).map(|(oid, _)| oid)
}

fn by_hash(oid: Option<&[u8]>) -> Option<&'static digest::Algorithm> {
    const SHA2: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];
    match oid {
        None => Some(&digest::SHA256),
        Some(oid) => match oid.strip_prefix(SHA2) {
            Some([1]) => Some(&digest::SHA256),
            Some([2]) => Some(&digest::SHA384),
            Some([3]) => Some(&digest::SHA512),
            Some([4]) => Some(&digest::SHA224),
            Some(_) => None,
            None => (oid == [0x2b, 0x0e, 0x03, 0x02, 0x1a]).then_some(&digest::SHA256), // SHA-1
        },
    }
}

/// The data of `tls-server-end-point`.
pub(super) fn end_point_binding(certificate: &[u8]) -> Option<Vec<u8>> {
    signature_hash(certificate).map(|hash| digest::digest(hash, certificate).as_ref().to_vec())
}

/// The common name of a certificate *that has no alternative names of its own*, which is when libpq looks at
/// it; `None` otherwise.
pub(super) fn common_name_that_counts(certificate: &[u8]) -> Option<String> {
    let (certificate, _) = expect(certificate, SEQUENCE)?;
    let (body, _) = expect(certificate, SEQUENCE)?;
    let mut rest = body;
    if let Some((0xa0, _, after)) = element(rest) {
        rest = after; // version
    }
    let (_, rest) = expect(rest, INTEGER)?; // serial number
    let (_, rest) = expect(rest, SEQUENCE)?; // signature
    let (_, rest) = expect(rest, SEQUENCE)?; // issuer
    let (_, rest) = expect(rest, SEQUENCE)?; // validity
    let (subject, rest) = expect(rest, SEQUENCE)?;
    let (_, mut rest) = expect(rest, SEQUENCE)?; // public key
    while let Some((tag, content, after)) = element(rest) {
        if tag == 0xa3 && has_alternative_names(content) {
            return None;
        }
        rest = after;
    }
    let mut names = subject;
    let mut found = None;
    while let Some((set, after)) = expect(names, SET) {
        names = after;
        let (pair, _) = expect(set, SEQUENCE)?;
        let (oid, value) = expect(pair, OID)?;
        if oid == [0x55, 0x04, 0x03] {
            let (_, text, _) = element(value)?;
            found = std::str::from_utf8(text).ok().map(str::to_owned);
        }
    }
    found
}

/// All that is read from a certificate: the data for channel binding, and the common name where it counts.
pub(crate) fn facts(certificate: &[u8]) -> (Option<Vec<u8>>, Option<String>) {
    (
        end_point_binding(certificate),
        common_name_that_counts(certificate),
    )
}

/// subjectAltName, 2.5.29.17, among the extensions.
fn has_alternative_names(extensions: &[u8]) -> bool {
    let Some((mut list, _)) = expect(extensions, SEQUENCE) else {
        return false;
    };
    while let Some((extension, after)) = expect(list, SEQUENCE) {
        if expect(extension, OID).is_some_and(|(oid, _)| oid == [0x55, 0x1d, 0x11]) {
            return true;
        }
        list = after;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_of(oid: &[u8], parameters: &[u8]) -> Option<usize> {
        by_signature(oid, parameters).map(|algorithm| algorithm.output_len())
    }

    #[test]
    fn the_hash_is_that_of_the_signature_and_sha_256_in_place_of_weak_ones() {
        let rsa = |last| [&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01][..], &[last]].concat();
        assert_eq!(hash_of(&rsa(5), &[]), Some(32));
        assert_eq!(hash_of(&rsa(11), &[]), Some(32));
        assert_eq!(hash_of(&rsa(12), &[]), Some(48));
        assert_eq!(hash_of(&rsa(13), &[]), Some(64));
        let ecdsa = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 3, 3];
        assert_eq!(hash_of(&ecdsa, &[]), Some(48));
        // Ed25519: 1.3.101.112
        assert_eq!(hash_of(&[0x2b, 0x65, 0x70], &[]), None);
        let sha512 = [
            0x30, 0x0f, 0xa0, 0x0d, 0x30, 0x0b, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02,
            0x03,
        ];
        assert_eq!(hash_of(&rsa(10), &sha512), Some(64));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_not(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = end_point_binding(&bytes);
            let _ = common_name_that_counts(&bytes);
        }
    }
}
