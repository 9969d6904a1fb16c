//! Claims about the configuration file.

use super::*;
use std::time::Duration;

const GOOD: &str = r#"
[cluster.main]
connection = "host=/var/run/postgresql user=postgres dbname=postgres password=secret"
data_directory = "/var/lib/postgresql/15/main"
copies = ["local"]
acknowledge = 1

[copy.local]
url = "file:///var/lib/pgproof"
key = { file = "local.key" }

[retention]
recovery_window = "30 days"
daily = 7

[drill.quarterly-pitr]
rto = "90 min"
rpo = "5 min"
checks = ["row-proof"]

[[drill.quarterly-pitr.check]]
id = "bookings-recent"
sql = "select max(created_at) > now() - interval '1 day' from bookings"
expect = true
"#;

fn parse(text: &str) -> Result<Configuration> {
    Configuration::parse(Path::new("/etc/pgproof/pgproof.toml"), text)
}

#[test]
fn the_designs_example_is_understood_with_paths_relative_to_the_file() {
    let configuration = parse(GOOD).expect("the example");
    let cluster = configuration.cluster(None).expect("the only cluster");
    assert_eq!(cluster.name, "main");
    assert_eq!(cluster.acknowledge, 1);
    assert_eq!(cluster.programs, None);
    assert_eq!(
        configuration.copies["local"].key,
        KeySource::File("/etc/pgproof/local.key".into())
    );
    let drill = &configuration.drills["quarterly-pitr"];
    assert_eq!(drill.profile.objective("rto"), Some(Duration::from_secs(90 * 60)));
    assert_eq!(drill.profile.target_text, "bracket");
    assert!(
        matches!(&drill.profile.user_checks[0].kind, drill::user_checks::CheckKind::Sql { expect, .. } if expect == "t")
    );
    let window = configuration.retention.recovery_window.expect("a window");
    assert_eq!(window.duration, Duration::from_secs(30 * 86_400));
}

#[test]
fn the_folder_of_the_programs_may_be_named() {
    let text = GOOD.replace("copies = [", "programs = \"pg/bin\"\ncopies = [");
    let configuration = parse(&text).expect("the example");
    let cluster = configuration.cluster(None).expect("the only cluster");
    assert_eq!(cluster.programs, Some("/etc/pgproof/pg/bin".into()));
}

#[test]
fn every_value_is_shown_with_its_line_and_no_password() {
    let configuration = parse(GOOD).expect("the example");
    let shown = configuration.show();
    let value = |key: &str| {
        shown
            .iter()
            .find(|shown| shown.key == key)
            .unwrap_or_else(|| panic!("{key}"))
    };
    assert_eq!(
        value("cluster.main.connection").origin,
        "/etc/pgproof/pgproof.toml:3"
    );
    assert_eq!(
        value("copy.local.key.file").origin,
        "/etc/pgproof/pgproof.toml:10"
    );
    assert_eq!(value("drill.quarterly-pitr.target").origin, "default");
    assert_eq!(
        value("drill.quarterly-pitr.check[0].sql").origin,
        "/etc/pgproof/pgproof.toml:23"
    );
    assert!(
        shown.iter().all(|shown| !shown.value.contains("secret")),
        "{shown:?}"
    );
}

#[test]
fn an_unknown_key_names_file_line_section_and_the_nearest_key() {
    let error = parse(&GOOD.replace("acknowledge =", "aknowledge =")).expect_err("unknown key");
    assert_eq!(
        error.render(),
        "error[config-syntax]: /etc/pgproof/pgproof.toml, line 6: unknown key \"aknowledge\" in [cluster.main]\n\
         hint: Did you mean \"acknowledge\"?\n"
    );
    let error = parse(&GOOD.replace("[retention]", "[retentoin]")).expect_err("unknown section");
    assert!(
        error.message().contains("line 12: unknown key \"retentoin\""),
        "{}",
        error.render()
    );
    assert_eq!(error.hint_text(), Some("Did you mean \"retention\"?"));
}

#[test]
fn broken_values_name_their_line() {
    for (from, to, line) in [
        ("\"90 min\"", "\"ninety\"", 17),
        ("\"30 days\"", "\"-3 days\"", 13),
        ("\"30 days\"", "\"2 months\"", 13),
        ("acknowledge = 1", "acknowledge = 2", 6),
        ("acknowledge = 1", "acknowledge = 0", 6),
        ("acknowledge = 1", "acknowledge = ", 6),
        ("copies = [\"local\"]", "copies = [\"locl\"]", 5),
        ("copies = [\"local\"]", "copies = []", 5),
        ("copies = [\"local\"]", "copies = [\"local\", \"local\"]", 5),
        ("{ file = \"local.key\" }", "{ }", 10),
        ("file:///var/lib/pgproof", "/var/lib/pgproof", 9),
        ("[\"row-proof\"]", "[\"row-prof\"]", 19),
        ("expect = true", "expect = [1]", 21),
        ("[cluster.main]", "[cluster.Main]", 2),
    ] {
        let error = parse(&GOOD.replace(from, to)).expect_err(to);
        assert_eq!(error.class(), diagnostic::Class::Usage, "{to}");
        assert!(
            error.message().contains(&format!("line {line}")),
            "{to}: {}",
            error.render()
        );
    }
}

#[test]
fn without_a_name_the_cluster_must_be_the_only_one() {
    let two = format!("{GOOD}\n[cluster.other]\nconnection = \"host=x\"\n");
    let configuration = parse(&two).expect("two clusters");
    assert_eq!(
        configuration.cluster(None).expect_err("two").code(),
        "cluster-ambiguous"
    );
    assert_eq!(
        configuration
            .cluster(Some("othr"))
            .expect_err("a typo")
            .hint_text(),
        Some("Did you mean \"other\"?")
    );
    assert_eq!(
        configuration.clusters["other"].copies,
        ["local"],
        "all copies are the default"
    );
    assert_eq!(
        parse("").expect("empty").cluster(None).expect_err("none").code(),
        "cluster-unknown"
    );
}

#[test]
fn passwords_are_blotted_out_of_every_form() {
    use values::{without_password, without_url_password};
    assert_eq!(
        without_password("host=x password=abc user=y"),
        "host=x password=*** user=y"
    );
    assert_eq!(
        without_password("host=x password='a b\\' c' user=y"),
        "host=x password=*** user=y"
    );
    assert_eq!(
        without_password("postgresql://u:p@h/db?sslpassword=x"),
        "postgresql://u:***@h/db?sslpassword=***"
    );
    assert_eq!(without_url_password("sftp://u@h/path"), "sftp://u@h/path");
    assert_eq!(without_password("host=x"), "host=x");
    // The word also stands elsewhere.
    assert_eq!(
        without_password("user=password password=abc dbname=passwords"),
        "user=password password=*** dbname=passwords"
    );
    assert_eq!(
        without_password("sslpassword=a  password = 'b c'"),
        "sslpassword=***  password=***"
    );
    assert_eq!(
        without_password("postgresql://u:p?q@h/db?connect_timeout=3"),
        "postgresql://u:***@h/db?connect_timeout=3"
    );
    assert_eq!(
        without_password("postgresql://h?pass%77ord=x&user=u"),
        "postgresql://h?pass%77ord=***&user=u"
    );
    let many = "password=abc ".repeat(200_000);
    assert!(!without_password(&many).contains("abc"));
}

#[test]
fn arbitrary_text_never_panics() {
    for text in [
        "[",
        "a = ",
        "\u{0}",
        "[cluster]\nmain = 3",
        "[cluster.main]",
        "[[cluster]]",
        "key = 1",
        "[copy.ä]",
    ] {
        let _ = parse(text);
    }
}

#[test]
fn retention_may_differ_in_a_copy_and_a_rule_that_keeps_nothing_is_refused() {
    let own = GOOD.replace(
        "[retention]",
        "[copy.local.retention]\nkeep_last = 3\n\n[retention]\nafter_backup = true",
    );
    let configuration = parse(&own).expect("retention of its own");
    assert_eq!(configuration.retention_in("local").policy().keep_last, Some(3));
    assert_eq!(configuration.retention_in("local").policy().daily, None);
    assert_eq!(configuration.retention_in("other").policy().daily, Some(7));
    assert!(configuration.retention.after_backup);
    let shown = configuration.show();
    assert!(
        shown
            .iter()
            .any(|shown| shown.key == "copy.local.retention.keep_last" && shown.value == "3")
    );
    let nothing = parse(&GOOD.replace("daily = 7", "daily = 0")).expect_err("keeps nothing");
    assert!(
        nothing.render().contains("must be at least 1"),
        "{}",
        nothing.render()
    );
    let misspelt = parse(&GOOD.replace("daily = 7", "dayly = 7")).expect_err("misspelt");
    assert_eq!(misspelt.hint_text(), Some("Did you mean \"daily\"?"));
    let no_policy = GOOD.replace("recovery_window = \"30 days\"\ndaily = 7", "after_backup = true");
    assert!(parse(&no_policy).is_err());
}

const BUCKET: &str = r#"
[cluster.main]
connection = "host=/tmp"

[copy.s3]
url = "s3://backups/production"
key = { file = "s3.key" }
"#;

#[test]
fn a_bucket_is_described_beside_its_url_and_shown_without_secrets() {
    let text = format!(
        "{BUCKET}endpoint = \"https://minio.example:9000\"\nregion = \"eu\"\nretry_for = \"30 s\"\n\
         ca_file = \"ca.pem\"\ncredentials = {{ command = \"vault read topsecret\" }}\n"
    );
    let configuration = parse(&text).expect("a bucket");
    let bucket = configuration.copies["s3"].bucket.clone().expect("a bucket");
    assert!(bucket.path_style && !bucket.allow_http);
    assert_eq!(bucket.retry_for(), Some(Duration::from_secs(30)));
    assert_eq!(bucket.ca_file.as_deref(), Some(Path::new("/etc/pgproof/ca.pem")));
    let shown = configuration.show();
    for (key, line) in [("copy.s3.endpoint", ":8"), ("copy.s3.ca_file", ":11")] {
        let stands = |it: &Shown| it.key == key && it.origin.ends_with(line);
        assert!(shown.iter().any(stands), "{key} in {shown:#?}");
    }
    assert!(shown.iter().all(|shown| !shown.value.contains("topsecret")));

    let bucket = parse(BUCKET).expect("Amazon's").copies["s3"]
        .bucket
        .clone()
        .expect("a bucket");
    assert!(!bucket.path_style && bucket.endpoint.is_none());
    assert_eq!(bucket.credentials, CredentialsSource::Environment);
}

#[test]
fn what_is_wrong_with_a_bucket_is_refused_and_secrets_are_not_repeated() {
    for (line, word) in [
        ("endpoint = \"http://minio\"", "unencrypted"),
        ("endpoint = \"minio:9000\"", "no endpoint"),
        ("endpoint = \"https://minio/bucket\"", "belongs into `url`"),
        (
            "endpoint = \"https://key:topsecret@minio\"",
            "credentials do not belong",
        ),
        ("credentials = { file = \"a\", command = \"b\" }", "either `file`"),
        ("credentials = { profile = \"b\" }", "either `file`"),
        (
            "credentials = { secret_access_key = \"topsecret\" }",
            "unknown key",
        ),
        ("secret_access_key = \"topsecret\"", "unknown key"),
        ("credentials = \"AKID:topsecret\"", "line 8"),
        ("pathstyle = true", "unknown key"),
    ] {
        let error = parse(&format!("{BUCKET}{line}\n")).expect_err(line);
        assert_eq!(error.class().exit_code(), 2);
        let text = error.render();
        assert!(
            text.contains(word) && !text.contains("topsecret"),
            "{line}: {text}"
        );
    }
    let folder = BUCKET.replace("s3://backups/production", "file:///backups");
    let error = parse(&format!("{folder}region = \"eu\"\n")).expect_err("a folder has no region");
    assert!(
        error.render().contains("`region` has no meaning"),
        "{}",
        error.render()
    );
    let error = parse(&format!("{folder}ca_file = \"ca.pem\"\n")).expect_err("a folder has no certificate");
    assert!(
        error.render().contains("`ca_file` has no meaning"),
        "{}",
        error.render()
    );
}

#[test]
fn how_far_wal_runs_ahead_is_configured_and_checked() {
    let configuration = parse(GOOD).expect("defaults");
    let wal = &configuration.cluster(None).expect("main").archive;
    assert_eq!(wal.spool, Path::new("/etc/pgproof/spool"));
    assert_eq!((wal.push_ahead, wal.prefetch_bytes), (2, 128 << 20));
    let with = |line: &str| {
        parse(&GOOD.replace(
            "acknowledge = 1",
            &format!("acknowledge = 1\narchive = {{ {line} }}"),
        ))
    };
    let configuration =
        with(r#"spool = "/var/spool/pgproof", push_ahead = 0, prefetch = "1 GB", warn_age = "1 h""#);
    let configuration = configuration.expect("values");
    let wal = &configuration.cluster(None).expect("main").archive;
    assert_eq!(wal.spool, Path::new("/var/spool/pgproof"));
    assert_eq!((wal.push_ahead, wal.prefetch_bytes), (0, 1 << 30));
    assert_eq!(wal.warn_age, Duration::from_secs(3600));
    for line in [
        "push_ahead = 65",
        r#"prefetch = "12 parsecs""#,
        r#"prefetch = "99999999999999999999 GB""#,
    ] {
        let error = with(line).expect_err(line);
        assert_eq!(error.code(), "config-value", "{line}");
        assert!(
            error.message().contains("pgproof.toml, line 7"),
            "{}",
            error.message()
        );
    }
}
