//! The S3 store against servers, and against a network that fails: it keeps the promises of every store, loses
//! nothing, and says what went wrong by the right name.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use repository::store::{conformance, conformance_but_races};
use repository::{Put, RecipientKey, Repository, S3Credentials, S3Keys, S3Options, S3Store, Store};
use testing::{Asked, Fault, FaultyProxy, MotoServer, S3Server};

const BUCKET: &str = "backups";

fn options(endpoint: String) -> S3Options {
    let keys = S3Keys {
        access_key_id: S3Server::ACCESS_KEY_ID.into(),
        secret_access_key: S3Server::SECRET_ACCESS_KEY.to_owned().into(),
        session_token: None,
        good_for: None,
    };
    S3Options {
        endpoint: Some(endpoint),
        path_style: true,
        allow_http: true,
        credentials: S3Credentials::Source(Arc::new(move || Ok(keys.clone()))),
        request_timeout: Duration::from_secs(2),
        retry_for: Duration::from_secs(20),
        ..S3Options::default()
    }
}

fn store(endpoint: String) -> S3Store {
    S3Store::new(&format!("s3://{BUCKET}/some/prefix"), options(endpoint)).unwrap()
}

/// The same that gives up soon.
fn impatient(endpoint: String) -> S3Store {
    let options = S3Options {
        request_timeout: Duration::from_millis(300),
        retry_for: Duration::from_secs(1),
        ..options(endpoint)
    };
    S3Store::new(&format!("s3://{BUCKET}/some/prefix"), options).unwrap()
}

#[test]
fn a_bucket_conforms() {
    let server = S3Server::start(BUCKET);
    conformance_but_races(&store(server.endpoint()));
}

#[test]
fn a_bucket_without_a_prefix_conforms_also_when_conditions_are_ignored() {
    let server = S3Server::start(BUCKET);
    let store = S3Store::new(&format!("s3://{BUCKET}"), options(server.endpoint())).unwrap();
    store.set_conditional_creation(false);
    conformance_but_races(&store);
}

#[test]
fn conditional_creation_lets_one_of_many_creators_win() {
    let test = "conditional_creation_lets_one_of_many_creators_win";
    let Some(moto) = MotoServer::start_or_skip(test, BUCKET) else {
        return;
    };
    conformance(&store(moto.endpoint()));
    let repository = Repository::create(
        Arc::new(store(moto.endpoint())),
        &RecipientKey::generate().unwrap(),
        now(),
    )
    .unwrap();
    assert!(repository.conditional_creation());
}

fn now() -> jiff::Timestamp {
    "2026-08-15T02:00:03Z".parse().unwrap()
}

/// Each third request meets the next fault.
fn unlucky(faults: Vec<Fault>) -> impl FnMut(&Asked) -> Fault + Send {
    let mut met = 0;
    move |asked| {
        if asked.number % 3 != 2 {
            return Fault::Pass;
        }
        met += 1;
        faults[met % faults.len()].clone()
    }
}

#[test]
fn a_store_behind_a_bad_network_conforms() {
    let server = S3Server::start(BUCKET);
    let faults = vec![
        Fault::Drop,
        Fault::LoseAnswer,
        Fault::CutRequest,
        Fault::CutAnswer,
        Fault::Answer(500, "InternalError"),
        Fault::Answer(503, "SlowDown"),
        Fault::Answer(409, "OperationAborted"),
        Fault::Wait(Duration::from_millis(100)),
    ];
    let proxy = FaultyProxy::start(server.address(), unlucky(faults));
    let store = store(proxy.endpoint());
    conformance_but_races(&store);
    let counts = store.requests();
    // A try may meet a connection that was just closed, and so never reach the proxy.
    let asked = proxy.asked().len() as u64;
    let tries = asked..=asked + asked / 10;
    assert!(
        tries.contains(&counts.total()),
        "every try is counted: {counts:?}, {asked}"
    );
}

#[test]
fn a_creation_whose_answer_was_lost_is_ours_and_anothers_is_not() {
    let server = S3Server::start(BUCKET);
    let proxy = FaultyProxy::start(server.address(), |asked: &Asked| match asked.number {
        0 => Fault::LoseAnswer,
        _ => Fault::Pass,
    });
    let store = store(proxy.endpoint());
    assert_eq!(store.put_new("a", b"mine").unwrap(), Put::Created);
    proxy.set(|asked: &Asked| match asked.method.as_str() {
        "PUT" => Fault::LoseAnswer,
        _ => Fault::Pass,
    });
    // The first try is lost too, and the name is another's.
    let first = proxy.asked().len() as u64;
    proxy.set(move |asked: &Asked| match asked.number == first {
        true => Fault::LoseAnswer,
        false => Fault::Pass,
    });
    assert_eq!(store.put_new("a", b"other").unwrap(), Put::Exists);
    assert_eq!(store.read("a").unwrap().unwrap(), b"mine");
}

#[test]
fn what_could_not_be_looked_at_is_never_absent() {
    let server = S3Server::start(BUCKET);
    let proxy = FaultyProxy::start(server.address(), |_: &Asked| Fault::Pass);
    let store = impatient(proxy.endpoint());
    assert_eq!(store.put_new("there", b"1").unwrap(), Put::Created);
    for (fault, code) in [
        (Fault::Answer(403, "AccessDenied"), "store-denied"),
        (Fault::Answer(403, "RequestTimeTooSkewed"), "store-denied"),
        (Fault::Answer(401, "Unauthorized"), "store-denied"),
        (Fault::Answer(400, "ExpiredToken"), "store-credentials"),
        (Fault::Answer(404, "NoSuchBucket"), "store-bucket-missing"),
        (Fault::Answer(404, ""), "object-missing"),
        (Fault::Answer(301, "PermanentRedirect"), "store-region"),
        (Fault::Answer(400, "InvalidRequest"), "store-refused"),
        (Fault::Answer(500, "InternalError"), "store-failing"),
        (Fault::Answer(502, ""), "store-failing"),
        (Fault::Answer(503, "SlowDown"), "store-throttled"),
        (Fault::Answer(429, "TooManyRequests"), "store-throttled"),
        (Fault::Answer(507, "InsufficientStorage"), "store-full"),
        (Fault::Drop, "store-unreachable"),
        (Fault::CutAnswer, "store-unreachable"),
        (Fault::Wait(Duration::from_secs(2)), "store-unreachable"),
    ] {
        let told = fault.clone();
        proxy.set(move |_: &Asked| told.clone());
        let began = Instant::now();
        let is = |error: diagnostic::Error, what: &str| {
            let text = error.render();
            // A listing that is answered by 404 says nothing of the object either.
            assert_eq!(error.code(), code, "{what} with {fault:?}: {text}");
            assert!(!text.contains(S3Server::SECRET_ACCESS_KEY), "{text}");
        };
        is(store.read("there").unwrap_err(), "read");
        is(store.read_range("there", 0, 1).unwrap_err(), "read_range");
        is(store.list("t").unwrap_err(), "list");
        if fault != Fault::CutAnswer {
            // A HEAD has no body whose code could be read, or that could be cut.
            let error = store.size("there").unwrap_err();
            assert_ne!(error.code(), "object-damaged", "{}", error.render());
        }
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{fault:?} took {:?}",
            began.elapsed()
        );
    }
    proxy.set(|_: &Asked| Fault::Pass);
    assert_eq!(store.read("there").unwrap().unwrap(), b"1");
    assert_eq!(store.read("absent").unwrap(), None);
    assert_eq!(store.size("absent").unwrap(), None);
}

#[test]
fn a_bucket_that_is_gone_is_not_an_empty_one() {
    let server = S3Server::start(BUCKET);
    let store = impatient(server.endpoint());
    store.put_new("there", b"1").unwrap();
    std::fs::rename(server.folder().join(BUCKET), server.folder().join("elsewhere")).unwrap();
    // This server says NoSuchKey to a GET; moto answers as S3 does.
    let mut errors = vec![store.size("there").unwrap_err(), store.list("").unwrap_err()];
    if let Some(moto) = MotoServer::start_or_skip("a_bucket_that_is_gone_is_not_an_empty_one", "another") {
        let store = impatient(moto.endpoint());
        errors.push(store.read("there").unwrap_err());
        errors.push(store.size("there").unwrap_err());
        errors.push(store.list("").unwrap_err());
        errors.push(store.put_new("there", b"1").unwrap_err());
    }
    for error in errors {
        assert_eq!(error.code(), "store-bucket-missing", "{}", error.render());
    }
}

#[test]
fn a_wrong_address_is_told_soon_and_wrong_keys_are_told_at_once() {
    let began = Instant::now();
    let store = store("http://no-such-host.invalid".into());
    let error = store.list("").unwrap_err();
    assert_eq!(error.code(), "store-unreachable", "{}", error.render());
    assert!(began.elapsed() < Duration::from_secs(15));

    let server = S3Server::start(BUCKET);
    let wrong = S3Options {
        credentials: S3Credentials::Source(Arc::new(|| {
            Ok(S3Keys {
                access_key_id: S3Server::ACCESS_KEY_ID.into(),
                secret_access_key: "wrong".to_owned().into(),
                session_token: None,
                good_for: None,
            })
        })),
        ..options(server.endpoint())
    };
    let error = S3Store::new("s3://backups", wrong).unwrap().list("").unwrap_err();
    assert_eq!(error.code(), "store-denied", "{}", error.render());

    let none = S3Options {
        credentials: S3Credentials::Source(Arc::new(|| {
            Err(diagnostic::Error::new("store-credentials", "the file is gone"))
        })),
        ..impatient_options(server.endpoint())
    };
    let error = S3Store::new("s3://backups", none).unwrap().list("").unwrap_err();
    assert_eq!(error.code(), "store-credentials", "{}", error.render());
}

fn impatient_options(endpoint: String) -> S3Options {
    S3Options {
        retry_for: Duration::from_secs(1),
        ..options(endpoint)
    }
}

/// Some stores refuse `bytes=-32`, among them Azure's.
#[test]
fn no_range_is_counted_from_an_objects_end() {
    let server = S3Server::start(BUCKET);
    let proxy = FaultyProxy::start(server.address(), |_: &Asked| Fault::Pass);
    let store = store(proxy.endpoint());
    let content: Vec<u8> = (0..100).collect();
    store.put_new("a", &content).unwrap();
    assert_eq!(store.read_range("a", 90, 10).unwrap(), content[90..]);
    assert_eq!(store.read_range("a", 0, 10).unwrap(), content[..10]);
    assert_eq!(store.read("a").unwrap().unwrap(), content);
    let ranges: Vec<String> = proxy
        .asked()
        .into_iter()
        .filter_map(|asked| asked.range)
        .collect();
    assert_eq!(ranges, ["bytes=90-99", "bytes=0-9"]);
}

#[test]
fn a_segment_is_one_request_and_a_pack_is_sent_in_parts_with_little_memory() {
    let server = S3Server::start(BUCKET);
    let proxy = FaultyProxy::start(server.address(), |_: &Asked| Fault::Pass);
    let store = store(proxy.endpoint());
    let mut segment = store.writer("segment").unwrap();
    for _ in 0..129 {
        segment.write_all(&[7; 128 << 10]).unwrap();
    }
    assert_eq!(segment.finish().unwrap(), Put::Created);
    assert_eq!(proxy.asked().len(), 1, "{:?}", proxy.asked());

    let pack = |name: &str| {
        let mut pack = store.writer(name).unwrap();
        for _ in 0..64 {
            pack.write_all(&[9; 1 << 20]).unwrap();
        }
        pack
    };
    let before = proxy.asked().len();
    assert_eq!(pack("pack").finish().unwrap(), Put::Created);
    let asked: Vec<Asked> = proxy.asked().split_off(before);
    let count = |method: &str, word: &str| {
        asked
            .iter()
            .filter(|asked| asked.method == method && asked.target.contains(word))
            .count()
    };
    assert_eq!(
        (
            count("POST", "uploads"),
            count("PUT", "partNumber"),
            count("POST", "uploadId")
        ),
        (1, 8, 1),
        "{asked:?}"
    );
    assert_eq!(store.size("pack").unwrap(), Some(64 << 20));

    drop(pack("abandoned"));
    let last = proxy.asked().pop().unwrap();
    assert!(
        last.method == "DELETE" && last.target.contains("uploadId"),
        "{last:?}"
    );
    assert_eq!(store.size("abandoned").unwrap(), None);
}

#[test]
fn an_upload_that_cannot_be_finished_fails_by_its_name_and_leaves_nothing_visible() {
    let server = S3Server::start(BUCKET);
    let proxy = FaultyProxy::start(server.address(), |asked: &Asked| {
        match asked.target.contains("partNumber=3") {
            true => Fault::Answer(403, "AccessDenied"),
            false => Fault::Pass,
        }
    });
    let store = impatient(proxy.endpoint());
    let mut pack = store.writer("pack").unwrap();
    let written = (0..64).try_for_each(|_| pack.write_all(&[9; 1 << 20]));
    let error = match written {
        Ok(()) => pack.finish().unwrap_err(),
        Err(error) => {
            drop(pack);
            error
                .into_inner()
                .unwrap()
                .downcast_ref::<diagnostic::Error>()
                .unwrap()
                .clone()
        }
    };
    assert_eq!(error.code(), "store-denied", "{}", error.render());
    assert_eq!(store.list("").unwrap(), []);
    assert!(proxy.asked().iter().any(|asked| asked.method == "DELETE"));
}

#[test]
fn expired_credentials_are_asked_for_again() {
    let server = S3Server::start(BUCKET);
    let proxy = FaultyProxy::start(server.address(), |asked: &Asked| match asked.number {
        1 => Fault::Answer(400, "ExpiredToken"),
        _ => Fault::Pass,
    });
    let times = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = times.clone();
    let base = options(proxy.endpoint());
    let S3Credentials::Source(source) = base.credentials.clone() else {
        unreachable!()
    };
    let options = S3Options {
        credentials: S3Credentials::Source(Arc::new(move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            source()
        })),
        ..base
    };
    let store = S3Store::new("s3://backups", options).unwrap();
    for _ in 0..3 {
        store.list("").unwrap();
    }
    assert_eq!(times.load(std::sync::atomic::Ordering::Relaxed), 2);
}
