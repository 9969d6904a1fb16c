//! What people and their programs write, changed at random: the configuration file, times and targets, credentials. The
//! corpus lies in `fuzz/corpus`.

use std::hint::black_box;
use std::path::Path;

use cluster::conninfo::Conninfo;
use jiff::Timestamp;

use crate::config::{Configuration, without_password};
use crate::{stores, targets, times};

const ITERATIONS: u64 = 1000;
const ITERATIONS_LONG: u64 = 200_000;
const TARGETS: [fuzz::Target; 4] = [
    ("configuration", configuration),
    ("time", time),
    ("store-credentials", store_credentials),
    ("conninfo", shown_connection),
];

fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    black_box(Configuration::parse(Path::new("/etc/pgproof.toml"), &text)).ok();
}

fn time(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for now in [
        Timestamp::constant(1_786_759_203, 0),
        Timestamp::MIN,
        Timestamp::MAX,
    ] {
        black_box(times::parse(&text, now)).ok();
        black_box(targets::parse(&text, now)).ok();
    }
    black_box(targets::timeline(&text)).ok();
}

fn store_credentials(bytes: &[u8]) {
    black_box(stores::keys_of_profile(
        &String::from_utf8_lossy(bytes),
        "default",
    ));
    for now in [Timestamp::MIN, Timestamp::MAX] {
        black_box(stores::printed_keys(bytes, now)).ok();
    }
}

/// A password that the connection would be made with is never shown.
fn shown_connection(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let shown = without_password(&text);
    let Ok(conninfo) = Conninfo::parse(&text) else {
        return;
    };
    if let Some(password) = conninfo.get("password") {
        // What stands there twice may be another value, and short ones stand everywhere.
        if password.chars().count() > 4 && text.matches(password).count() == 1 {
            assert!(!shown.contains(password), "{shown} shows the password of {text}");
        }
    }
}

#[test]
fn nothing_that_people_write_harms_the_program() {
    for target in TARGETS {
        fuzz::check(target, ITERATIONS);
    }
}

#[test]
#[ignore = "minutes; ./test --long runs it"]
fn nothing_that_people_write_harms_the_program_for_long() {
    for target in TARGETS {
        fuzz::check(target, ITERATIONS_LONG);
    }
}
