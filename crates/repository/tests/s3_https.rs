//! The S3 store over HTTPS, as every real one is reached: it keeps the promises of every store behind a private
//! authority's certificate, and what is wrong with a certificate is told at once and by its own name.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use repository::store::{conformance, conformance_but_races};
use repository::{RecipientKey, Repository, S3Credentials, S3Keys, S3Options, S3Store, Store};
use testing::{Asked, Authority, Fault, FaultyProxy, Issued, MotoServer, S3Server, TlsProxy, Validity};

const BUCKET: &str = "backups";

fn options(endpoint: String, authority: &Authority) -> S3Options {
    let keys = S3Keys {
        access_key_id: S3Server::ACCESS_KEY_ID.into(),
        secret_access_key: S3Server::SECRET_ACCESS_KEY.to_owned().into(),
        session_token: None,
        good_for: None,
    };
    S3Options {
        endpoint: Some(endpoint),
        path_style: true,
        certificates: Some(authority.pem().into_bytes()),
        credentials: S3Credentials::Source(Arc::new(move || Ok(keys.clone()))),
        request_timeout: Duration::from_secs(2),
        ..S3Options::default()
    }
}

fn store(options: S3Options) -> S3Store {
    S3Store::new(&format!("s3://{BUCKET}/some/prefix"), options).unwrap()
}

#[test]
fn a_bucket_behind_a_private_authoritys_certificate_conforms_and_lets_one_creator_win() {
    let test = "a_bucket_behind_a_private_authoritys_certificate_conforms_and_lets_one_creator_win";
    let authority = Authority::new("a private authority");
    let Some(moto) = MotoServer::start_with_tls_or_skip(test, BUCKET, &authority) else {
        return;
    };
    assert!(moto.endpoint().starts_with("https://"), "{}", moto.endpoint());
    let patient = S3Options {
        request_timeout: Duration::from_secs(10),
        ..options(moto.endpoint(), &authority)
    };
    conformance(&store(patient.clone()));
    let key = RecipientKey::generate().unwrap();
    let now = "2026-08-15T02:00:03Z".parse().unwrap();
    let repository = Repository::create(Arc::new(store(patient.clone())), &key, now).unwrap();
    assert!(repository.conditional_creation());
    Repository::open(Arc::new(store(patient)), &key).unwrap();
}

#[test]
fn a_store_behind_tls_and_a_bad_network_conforms() {
    let server = S3Server::start(BUCKET);
    let faults = [
        Fault::Drop,
        Fault::LoseAnswer,
        Fault::CutRequest,
        Fault::CutAnswer,
        Fault::Answer(503, "SlowDown"),
    ];
    let mut met = 0;
    let bad = FaultyProxy::start(server.address(), move |asked: &Asked| {
        // This server calls an upload that was completed before a forbidden one, where S3 says that it is gone.
        let completes = asked.method == "POST" && asked.target.contains("uploadId");
        if completes || asked.number % 3 != 2 {
            return Fault::Pass;
        }
        met += 1;
        faults[met % faults.len()].clone()
    });
    let authority = Authority::new("a private authority");
    let shown = authority.server(&["localhost"], Validity::Now);
    let proxy = TlsProxy::start(bad.address(), &shown);
    conformance_but_races(&store(options(proxy.endpoint(), &authority)));
    assert!(proxy.connections() > 1);
}

#[test]
fn a_certificate_that_is_not_accepted_is_told_at_once_with_what_helps() {
    let server = S3Server::start(BUCKET);
    let ours = Authority::new("a private authority");
    let another = Authority::new("a private authority");
    let unknown = Authority::new("nobody whom we know");
    let cases: [(&str, Issued, &str, &str); 7] = [
        (
            "an authority that nobody named",
            unknown.server(&["localhost"], Validity::Now),
            "nobody whom this host trusts has issued it",
            "ca_file",
        ),
        (
            "another authority of the same name",
            another.server(&["localhost"], Validity::Now),
            "",
            "ca_file",
        ),
        (
            "another host",
            ours.server(&["minio.example"], Validity::Now),
            "and not for localhost",
            "endpoint",
        ),
        (
            "an expired one",
            ours.server(&["localhost"], Validity::Expired),
            "it expired on 2021-01-01",
            "renewed",
        ),
        (
            "one of the future",
            ours.server(&["localhost"], Validity::NotYet),
            "it is not valid before 2090-01-01",
            "clock",
        ),
        ("an authority's own", ours.own(), "", ""),
        ("a client's", ours.client("localhost", Validity::Now), "", ""),
    ];
    for (what, shown, words, hint) in cases {
        let proxy = TlsProxy::start(server.address(), &shown);
        let store = store(options(proxy.endpoint(), &ours));
        let began = Instant::now();
        let mut asked = 0;
        let mut refused = |error: diagnostic::Error, doing: &str| {
            asked += 1;
            let text = error.render();
            assert_eq!(error.code(), "store-certificate", "{what}, {doing}: {text}");
            assert!(
                text.contains(words) && text.contains(&proxy.endpoint()),
                "{what}: {text}"
            );
            assert!(
                error.hint_text().is_some_and(|told| told.contains(hint)),
                "{what}: {text}"
            );
            assert!(!text.contains(S3Server::SECRET_ACCESS_KEY), "{text}");
        };
        refused(store.list("").unwrap_err(), "list");
        refused(store.read("a").unwrap_err(), "read");
        refused(store.size("a").unwrap_err(), "size");
        refused(store.put_new("a", b"1").unwrap_err(), "put");
        refused(store.delete("a").unwrap_err(), "delete");
        assert_eq!(proxy.connections(), asked, "{what}: nothing is tried again");
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{what}: {:?}",
            began.elapsed()
        );
    }
}

#[test]
fn a_store_that_speaks_no_tls_or_nothing_at_all_is_told_soon() {
    let authority = Authority::new("a private authority");
    let impatient = |endpoint: String| S3Options {
        request_timeout: Duration::from_millis(500),
        retry_for: Duration::from_secs(1),
        ..options(endpoint, &authority)
    };
    let server = S3Server::start(BUCKET);
    let plain = format!("https://localhost:{}", server.address().port());
    let error = store(impatient(plain)).list("").unwrap_err();
    assert_eq!(error.code(), "store-tls", "{}", error.render());
    assert!(
        error.render().contains("does not speak TLS"),
        "{}",
        error.render()
    );

    // It takes connections and never says a word.
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let endpoint = format!("https://localhost:{}", silent.local_addr().unwrap().port());
    let began = Instant::now();
    let error = store(impatient(endpoint)).list("").unwrap_err();
    assert_eq!(error.code(), "store-unreachable", "{}", error.render());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn certificates_that_are_none_are_refused_before_anything_is_sent() {
    let server = S3Server::start(BUCKET);
    let authority = Authority::new("a private authority");
    let shown = authority.server(&["localhost"], Validity::Now);
    let proxy = TlsProxy::start(server.address(), &shown);
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for text in ["", "a certificate\n", shown.key.as_str(), broken] {
        let with = S3Options {
            certificates: Some(text.as_bytes().to_vec()),
            ..options(proxy.endpoint(), &authority)
        };
        let error = store(with).list("").unwrap_err();
        assert_eq!(error.code(), "store-options", "{text}: {}", error.render());
        assert_eq!(error.class().exit_code(), 2);
        assert!(!error.render().contains("PRIVATE KEY"), "{}", error.render());
    }
    assert_eq!(proxy.connections(), 0);
    // Several in one file: each of them is trusted.
    let both = [Authority::new("an old one").pem(), authority.pem()].concat();
    let with = S3Options {
        certificates: Some(both.into_bytes()),
        ..options(proxy.endpoint(), &authority)
    };
    assert_eq!(store(with).list("").unwrap(), []);
}
