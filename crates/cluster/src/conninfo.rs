//! Connection strings as libpq reads them: `key = 'value'` pairs or a `postgresql://` URI.
//!
//! Invariants: reading is total (any text gives a value or an error, never a panic); a setting that asks for
//! a protection which pgproof does not offer yet (TLS, channel binding, Kerberos) is refused and never
//! ignored; a password is never put into an error or into [`Conninfo::redacted`]. Source of the grammar:
//! `conninfo_parse` and `conninfo_uri_parse` of `src/interfaces/libpq/fe-connect.c`.

use diagnostic::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Where libpq looks for a socket when no host is named: Debian's folder, then PostgreSQL's own default.
const DEFAULT_SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Settings that only matter once TLS or Kerberos is in use, or that change nothing here.
const WITHOUT_EFFECT: [&str; 22] = [
    "application_name",
    "fallback_application_name",
    "client_encoding",
    "sslcompression",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslcertmode",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "sslsni",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "min_protocol_version",
    "max_protocol_version",
    "sslkeylogfile",
    "krbsrvname",
    "gsslib",
    "gssdelegation",
    "load_balance_hosts",
    "scram_client_key",
];

/// A connection string, taken apart.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Conninfo(BTreeMap<String, String>);

impl Conninfo {
    /// Reads either form. Error codes: `conninfo-syntax`.
    pub fn parse(text: &str) -> Result<Conninfo> {
        let trimmed = text.trim_start();
        match trimmed
            .strip_prefix("postgresql://")
            .or_else(|| trimmed.strip_prefix("postgres://"))
        {
            Some(rest) => parse_uri(rest.trim_end()),
            None => parse_pairs(text),
        }
    }

    /// The value of a setting.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The same string with one setting replaced.
    pub fn with(mut self, name: &str, value: &str) -> Conninfo {
        self.0.insert(name.to_string(), value.to_string());
        self
    }

    /// The string without its password, for messages.
    pub fn redacted(&self) -> String {
        let mut copy = self.clone();
        copy.0
            .retain(|name, _| name != "password" && name != "sslpassword");
        copy.to_string()
    }

    /// What the client library is told. Error codes: `tls-not-supported`, `conninfo-unsupported`,
    /// `conninfo-syntax`, `password-file`.
    pub(crate) fn to_client_config(&self) -> Result<(sql::Config, Option<Duration>)> {
        let mut config = sql::Config::new();
        config.ssl_mode(sql::config::SslMode::Disable);
        let mut connect_timeout = None;
        let mut addresses: Vec<String> = Vec::new();
        for (name, value) in &self.0 {
            if value.is_empty() {
                continue; // libpq: an empty value is the default
            }
            match name.as_str() {
                "user" => {
                    config.user(value);
                }
                "password" => {
                    config.password(value);
                }
                "dbname" => {
                    config.dbname(value);
                }
                "options" => {
                    config.options(value);
                }
                "host" => {
                    for host in value.split(',') {
                        match host {
                            "" => config.host_path(DEFAULT_SOCKET_DIRECTORIES[0]),
                            path if path.starts_with('/') => config.host_path(path),
                            path if path.starts_with('@') => {
                                return Err(unsupported(name, "abstract sockets are not supported"));
                            }
                            host => config.host(host),
                        };
                    }
                }
                "hostaddr" => {
                    for address in value.split(',') {
                        let parsed = address
                            .parse()
                            .map_err(|_| syntax(format!("\"{address}\" is no IP address")))?;
                        config.hostaddr(parsed);
                        addresses.push(address.to_string());
                    }
                }
                "port" => {
                    for port in value.split(',') {
                        let port = if port.is_empty() { "5432" } else { port };
                        match port.trim().parse::<u16>() {
                            Ok(port) if port > 0 => config.port(port),
                            _ => return Err(syntax(format!("\"{port}\" is no port"))),
                        };
                    }
                }
                "connect_timeout" => {
                    let seconds: i64 = number(name, value)?;
                    if seconds > 0 {
                        // As libpq: never less than two seconds.
                        connect_timeout = Some(Duration::from_secs(seconds.max(2).unsigned_abs()));
                    }
                }
                "tcp_user_timeout" => {
                    config.tcp_user_timeout(Duration::from_millis(number(name, value)?));
                }
                "keepalives" => {
                    config.keepalives(number::<i64>(name, value)? != 0);
                }
                "keepalives_idle" => {
                    config.keepalives_idle(Duration::from_secs(number(name, value)?));
                }
                "keepalives_interval" => {
                    config.keepalives_interval(Duration::from_secs(number(name, value)?));
                }
                "keepalives_count" => {
                    config.keepalives_retries(number(name, value)?);
                }
                "target_session_attrs" => {
                    use sql::config::TargetSessionAttrs as T;
                    config.target_session_attrs(match value.as_str() {
                        "any" => T::Any,
                        "read-write" | "primary" => T::ReadWrite,
                        "read-only" | "standby" => T::ReadOnly,
                        other => return Err(unsupported(name, other)),
                    });
                }
                "sslmode" => match value.as_str() {
                    "disable" | "allow" | "prefer" => {}
                    "require" | "verify-ca" | "verify-full" => return Err(tls_not_supported(value)),
                    other => return Err(syntax(format!("\"{other}\" is no sslmode"))),
                },
                "sslnegotiation" if value == "postgres" => {}
                "sslnegotiation" | "requiressl" => return Err(tls_not_supported(value)),
                "gssencmode" | "channel_binding" if value == "disable" || value == "prefer" => {}
                "replication" if value == "false" || value == "0" || value == "off" || value == "no" => {}
                "passfile" => {}
                known if WITHOUT_EFFECT.contains(&known) => {}
                "gssencmode" | "channel_binding" | "requirepeer" | "require_auth" | "service"
                | "servicefile" | "replication" => return Err(unsupported(name, value)),
                other => {
                    return Err(syntax(format!(
                        "\"{other}\" is no setting of a connection string"
                    )));
                }
            }
        }
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            for folder in DEFAULT_SOCKET_DIRECTORIES {
                config.host_path(folder);
            }
        }
        if self.get("password").is_none_or(str::is_empty)
            && let Some(file) = self.get("passfile").filter(|file| !file.is_empty())
            && let Some(password) = self.password_from(Path::new(file))?
        {
            config.password(password);
        }
        Ok((config, connect_timeout))
    }

    /// The password that a `.pgpass` file holds for this connection.
    fn password_from(&self, file: &Path) -> Result<Option<String>> {
        let text = (|| {
            let mode = std::fs::metadata(file)?.mode();
            if mode & 0o077 != 0 {
                return Err(std::io::Error::other("the file may be read by group or others"));
            }
            std::fs::read_to_string(file)
        })()
        .map_err(|error| {
            Error::io(
                "password-file",
                format!("cannot use password file \"{}\"", file.display()),
                &error,
            )
            .hint(format!(
                "chmod 0600 '{}', owned by the account that runs pgproof.",
                file.display()
            ))
        })?;
        let wanted = [
            self.get("host")
                .filter(|host| !host.is_empty() && !host.starts_with('/'))
                .unwrap_or("localhost"),
            self.get("port").filter(|port| !port.is_empty()).unwrap_or("5432"),
            self.get("dbname").or_else(|| self.get("user")).unwrap_or(""),
            self.get("user").unwrap_or(""),
        ];
        Ok(text.lines().find_map(|line| password_of_line(line, &wanted)))
    }
}

/// One line of a password file: `host:port:database:user:password`, `\:` and `\\` escaped, `*` matches all.
fn password_of_line(line: &str, wanted: &[&str; 4]) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        let count = fields.len();
        let last = fields.last_mut()?;
        match character {
            '\\' => last.extend(characters.next()),
            ':' if count < 5 => fields.push(String::new()),
            other => last.push(other),
        }
    }
    let (password, conditions) = fields.split_last()?;
    let matches = conditions.len() == 4
        && conditions
            .iter()
            .zip(wanted)
            .all(|(condition, wanted)| condition == "*" || condition == wanted);
    matches.then(|| password.clone())
}

fn parse_pairs(text: &str) -> Result<Conninfo> {
    let mut settings = BTreeMap::new();
    let mut characters = text.chars().peekable();
    loop {
        while characters.next_if(|c| c.is_whitespace()).is_some() {}
        if characters.peek().is_none() {
            return Ok(Conninfo(settings));
        }
        let mut name = String::new();
        while let Some(character) = characters.next_if(|c| *c != '=' && !c.is_whitespace()) {
            name.push(character);
        }
        while characters.next_if(|c| c.is_whitespace()).is_some() {}
        if name.is_empty() || characters.next_if_eq(&'=').is_none() {
            // The word itself is not repeated: it may be the rest of a badly quoted password.
            return Err(syntax("\"=\" is missing after the name of a setting".into()));
        }
        while characters.next_if(|c| c.is_whitespace()).is_some() {}
        let mut value = String::new();
        if characters.next_if_eq(&'\'').is_some() {
            loop {
                match characters.next() {
                    Some('\'') => break,
                    Some('\\') => value.extend(characters.next()),
                    Some(other) => value.push(other),
                    None => return Err(syntax("a quoted value does not end".into())),
                }
            }
        } else {
            while let Some(character) = characters.next_if(|c| !c.is_whitespace()) {
                match character {
                    '\\' => value.extend(characters.next()),
                    other => value.push(other),
                }
            }
        }
        settings.insert(name, value);
    }
}

fn parse_uri(rest: &str) -> Result<Conninfo> {
    let mut settings = BTreeMap::new();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let hosts = match authority.rsplit_once('@') {
        Some((account, hosts)) => {
            let (user, password) = account.split_once(':').unwrap_or((account, ""));
            settings.insert("user".to_string(), percent_decode(user)?);
            settings.insert("password".to_string(), percent_decode(password)?);
            hosts
        }
        None => authority,
    };
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for host in hosts.split(',') {
        let (name, port) = match host.strip_prefix('[') {
            Some(bracketed) => {
                let Some((name, after)) = bracketed.split_once(']') else {
                    return Err(syntax("\"]\" is missing in an IPv6 address".into()));
                };
                (name, after.strip_prefix(':').unwrap_or(""))
            }
            None => host.split_once(':').unwrap_or((host, "")),
        };
        names.push(percent_decode(name)?);
        ports.push(port.to_string());
    }
    if names.iter().any(|name| !name.is_empty()) {
        settings.insert("host".to_string(), names.join(","));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        settings.insert("port".to_string(), ports.join(","));
    }
    if !database.is_empty() {
        settings.insert("dbname".to_string(), percent_decode(database)?);
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(syntax("\"=\" is missing in the query part of the URI".into()));
        };
        let (name, value) = (percent_decode(name)?, percent_decode(value)?);
        if name.is_empty()
            || !name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            return Err(syntax(
                "a setting in the query part of the URI has no proper name".into(),
            ));
        }
        if name == "ssl" && value == "true" {
            settings.insert("sslmode".to_string(), "require".to_string());
        } else {
            settings.insert(name, value);
        }
    }
    settings.retain(|_, value| !value.is_empty());
    Ok(Conninfo(settings))
}

fn percent_decode(text: &str) -> Result<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digits = [bytes.next(), bytes.next()].map(|digit| digit.and_then(|d| (d as char).to_digit(16)));
        match digits {
            [Some(high), Some(low)] if high + low > 0 => decoded.push((high * 16 + low) as u8),
            _ => return Err(syntax("a percent-encoded character is wrong".into())),
        }
    }
    String::from_utf8(decoded).map_err(|_| syntax("a percent-encoded value is not UTF-8".into()))
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
    value
        .trim()
        .parse()
        .map_err(|_| syntax(format!("\"{name}\" needs a number, not \"{value}\"")))
}

fn syntax(message: String) -> Error {
    Error::usage(
        "conninfo-syntax",
        format!("cannot read the connection string: {message}"),
    )
    .hint(
        "Write it as libpq does, for example \
         \"host=/var/run/postgresql port=5432 user=postgres dbname=postgres\".",
    )
}

fn unsupported(name: &str, value: &str) -> Error {
    Error::usage(
        "conninfo-unsupported",
        format!("the connection setting {name}={value} is not supported"),
    )
    .hint("Leave it out, or connect over the server's Unix socket.")
}

fn tls_not_supported(value: &str) -> Error {
    Error::usage(
        "tls-not-supported",
        format!("the connection string demands TLS ({value}), which pgproof does not speak yet"),
    )
    .detail("Connecting without TLS would break that demand, so nothing was sent.")
    .hint("Connect over the server's Unix socket: \"host=/var/run/postgresql ...\" without sslmode.")
}

impl fmt::Display for Conninfo {
    /// `key='value'` pairs, with the password if there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (name, value)) in self.0.iter().enumerate() {
            let gap = if number == 0 { "" } else { " " };
            write!(
                f,
                "{gap}{name}='{}'",
                value.replace('\\', "\\\\").replace('\'', "\\'")
            )?;
        }
        Ok(())
    }
}

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_as_libpq_reads_them() {
        let conninfo = Conninfo::parse(r" host = /run/pg  user='a\'b\\c' dbname=x\ y ").unwrap();
        assert_eq!(conninfo.get("host"), Some("/run/pg"));
        assert_eq!(conninfo.get("user"), Some(r"a'b\c"));
        assert_eq!(conninfo.get("dbname"), Some("x y"));
        assert_eq!(Conninfo::parse(&conninfo.to_string()).unwrap(), conninfo);
    }

    #[test]
    fn uris_are_read_as_libpq_reads_them() {
        let conninfo =
            Conninfo::parse("postgresql://me:s%40cret@[::1]:6000,other/db?connect_timeout=3&sslmode=prefer")
                .unwrap();
        assert_eq!(conninfo.get("host"), Some("::1,other"));
        assert_eq!(conninfo.get("port"), Some("6000,"));
        assert_eq!(conninfo.get("password"), Some("s@cret"));
        assert_eq!(conninfo.get("dbname"), Some("db"));
        assert!(!conninfo.redacted().contains("cret"));
        let socket = Conninfo::parse("postgres://%2Frun%2Fpg/db").unwrap();
        assert_eq!(socket.get("host"), Some("/run/pg"));
    }

    #[test]
    fn demanding_tls_is_refused_and_never_ignored() {
        for mode in ["require", "verify-ca", "verify-full"] {
            let error = Conninfo::parse(&format!("host=h sslmode={mode}"))
                .unwrap()
                .to_client_config();
            assert_eq!(error.unwrap_err().code(), "tls-not-supported");
        }
        let error = Conninfo::parse("postgresql://h/?ssl=true")
            .unwrap()
            .to_client_config();
        assert_eq!(error.unwrap_err().code(), "tls-not-supported");
        for mode in ["disable", "allow", "prefer"] {
            assert!(
                Conninfo::parse(&format!("sslmode={mode}"))
                    .unwrap()
                    .to_client_config()
                    .is_ok()
            );
        }
        for demand in [
            "channel_binding=require",
            "requirepeer=postgres",
            "service=x",
            "gssencmode=require",
        ] {
            let error = Conninfo::parse(demand).unwrap().to_client_config();
            assert_eq!(error.unwrap_err().code(), "conninfo-unsupported", "{demand}");
        }
    }

    #[test]
    fn nonsense_is_an_error_of_usage() {
        for text in [
            "host",
            "=x",
            "host='abc",
            "postgresql://%zz@h/",
            "postgresql://[::1/x",
            "a b=c",
        ] {
            assert_eq!(
                Conninfo::parse(text).unwrap_err().code(),
                "conninfo-syntax",
                "{text}"
            );
        }
        for text in [
            "port=0",
            "port=99999",
            "port=x",
            "hostaddr=nowhere",
            "colour=red",
            "sslmode=maybe",
        ] {
            let error = Conninfo::parse(text).unwrap().to_client_config();
            assert_eq!(error.unwrap_err().code(), "conninfo-syntax", "{text}");
        }
    }

    #[test]
    fn password_files_match_as_libpq_matches_them() {
        let wanted = ["localhost", "5432", "db", "me"];
        assert_eq!(
            password_of_line("*:*:db:me:a\\:b:c", &wanted).as_deref(),
            Some("a:b:c")
        );
        assert_eq!(password_of_line("other:*:*:*:p", &wanted), None);
        assert_eq!(password_of_line("# *:*:*:*:p", &wanted), None);
        assert_eq!(password_of_line("", &wanted), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            for text in [text.clone(), format!("postgresql://{text}"), format!("host='{text}")] {
                if let Ok(conninfo) = Conninfo::parse(&text) {
                    let _ = conninfo.to_client_config();
                    proptest::prop_assert_eq!(Conninfo::parse(&conninfo.to_string()).ok(), Some(conninfo));
                }
            }
        }
    }
}
