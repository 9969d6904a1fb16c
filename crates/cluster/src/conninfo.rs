//! Connection strings as libpq reads them: `key = 'value'` pairs or a `postgresql://` URI.
//!
//! Invariants: reading is total (any text gives a value or an error, never a panic); a setting that asks for
//! a protection which pgproof does not offer (Kerberos, revocation folders, ...) is refused and never ignored; a password is never put into an error or into [`Conninfo::redacted`]. Source of the grammar:
//! `conninfo_parse` and `conninfo_uri_parse` of `src/interfaces/libpq/fe-connect.c`.

use crate::wire::{
    Attributes, ChannelBinding, Host, Parameters, Place, RootCertificates, TlsMode, TlsParameters,
};
use diagnostic::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where libpq looks for a socket when no host is named: Debian's folder, then PostgreSQL's own default.
const DEFAULT_SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Settings that `Conninfo::tls` reads, whatever order they come in.
const TLS_SETTINGS: [&str; 11] = [
    "sslmode",
    "sslrootcert",
    "sslcrl",
    "sslcert",
    "sslkey",
    "sslcertmode",
    "sslsni",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "sslnegotiation",
    "requiressl",
];

/// Settings of libpq that change nothing here.
const WITHOUT_EFFECT: [&str; 12] = [
    "application_name",
    "fallback_application_name",
    "client_encoding",
    "sslcompression",
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

    /// What is to be done. Error codes: `conninfo-unsupported`, `conninfo-syntax`, `password-file`.
    pub(crate) fn parameters(&self) -> Result<Parameters> {
        let mut parameters = Parameters {
            hosts: Vec::new(),
            user: match self.value("user") {
                Some(user) => user.to_owned(),
                None => account_name()?,
            },
            database: self.value("dbname").unwrap_or_default().to_owned(),
            options: self.value("options").map(str::to_owned),
            connect_timeout: None,
            tcp_user_timeout: None,
            keepalives: true,
            keepalives_idle: None,
            keepalives_interval: None,
            keepalives_count: None,
            attributes: Attributes::Any,
            tls: TlsParameters::default(),
            channel_binding: ChannelBinding::Prefer,
        };
        for (name, value) in &self.0 {
            if value.is_empty() {
                continue; // libpq: an empty value is the default
            }
            // libpq's own are of 32 bits; what is longer could not be added to any time.
            let seconds = || Ok(Some(Duration::from_secs(number::<u32>(name, value)?.into())));
            match name.as_str() {
                "user" | "password" | "passfile" | "dbname" | "options" | "host" | "hostaddr" | "port" => {}
                "connect_timeout" => {
                    let seconds: i32 = number(name, value)?;
                    if seconds > 0 {
                        // As libpq: never less than two seconds.
                        let seconds = seconds.max(2).unsigned_abs();
                        parameters.connect_timeout = Some(Duration::from_secs(seconds.into()));
                    }
                }
                "tcp_user_timeout" => {
                    parameters.tcp_user_timeout =
                        Some(Duration::from_millis(number::<u32>(name, value)?.into()));
                }
                "keepalives" => parameters.keepalives = number::<i64>(name, value)? != 0,
                "keepalives_idle" => parameters.keepalives_idle = seconds()?,
                "keepalives_interval" => parameters.keepalives_interval = seconds()?,
                "keepalives_count" => parameters.keepalives_count = Some(number(name, value)?),
                "target_session_attrs" => {
                    parameters.attributes = match value.as_str() {
                        "any" => Attributes::Any,
                        "read-write" | "primary" => Attributes::ReadWrite,
                        "read-only" | "standby" => Attributes::ReadOnly,
                        other => return Err(unsupported(name, other)),
                    };
                }
                "channel_binding" => {
                    parameters.channel_binding = match value.as_str() {
                        "disable" => ChannelBinding::Disable,
                        "prefer" => ChannelBinding::Prefer,
                        "require" => ChannelBinding::Require,
                        other => return Err(syntax(format!("\"{other}\" is no channel_binding"))),
                    };
                }
                known if TLS_SETTINGS.contains(&known) => {}
                "gssencmode" if value == "disable" || value == "prefer" => {}
                "replication" if value == "false" || value == "0" || value == "off" || value == "no" => {}
                known if WITHOUT_EFFECT.contains(&known) => {}
                "gssencmode" | "requirepeer" | "require_auth" | "service" | "servicefile" | "replication"
                | "sslnegotiation" | "requiressl" | "sslpassword" | "sslcrldir" => {
                    return Err(unsupported(name, value));
                }
                other => {
                    return Err(syntax(format!(
                        "\"{other}\" is no setting of a connection string"
                    )));
                }
            }
        }
        parameters.tls = self.tls()?;
        parameters.hosts = self.hosts(&parameters)?;
        Ok(parameters)
    }

    /// A setting that is not empty.
    fn value(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    fn tls(&self) -> Result<TlsParameters> {
        let mut tls = TlsParameters {
            mode: match self.value("sslmode") {
                None | Some("prefer") => TlsMode::Prefer,
                Some("disable") => TlsMode::Disable,
                Some("allow") => TlsMode::Allow,
                Some("require") => TlsMode::Require,
                Some("verify-ca") => TlsMode::VerifyCa,
                Some("verify-full") => TlsMode::VerifyFull,
                Some(other) => return Err(syntax(format!("\"{other}\" is no sslmode"))),
            },
            revoked: self.value("sslcrl").map(PathBuf::from),
            without_server_name: self.value("sslsni") == Some("0"),
            ..TlsParameters::default()
        };
        tls.roots = match self.value("sslrootcert") {
            None => None,
            Some("system") => {
                // As libpq: any public authority vouches for names only, so that a weaker check would mean nothing.
                match self.value("sslmode") {
                    None | Some("verify-full") => tls.mode = TlsMode::VerifyFull,
                    Some(weaker) => {
                        return Err(syntax(format!(
                            "sslrootcert=system needs sslmode=verify-full, not {weaker}"
                        )));
                    }
                }
                Some(RootCertificates::System)
            }
            Some(file) => Some(RootCertificates::File(file.into())),
        };
        tls.client = match (
            self.value("sslcertmode"),
            self.value("sslcert"),
            self.value("sslkey"),
        ) {
            (Some("disable"), ..) | (None | Some("allow"), None, None) => None,
            (None | Some("allow"), Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
            (Some(mode), ..) if mode != "allow" => return Err(unsupported("sslcertmode", mode)),
            _ => {
                return Err(syntax(
                    "sslcert and sslkey belong together: name both files or none".into(),
                ));
            }
        };
        let version = |name: &str| match self.value(name) {
            None | Some("TLSv1" | "TLSv1.1") => Ok(None),
            Some("TLSv1.2") => Ok(Some(12)),
            Some("TLSv1.3") => Ok(Some(13)),
            Some(other) => Err(syntax(format!("\"{other}\" is no {name}"))),
        };
        tls.only_tls_13 = version("ssl_min_protocol_version")? == Some(13);
        tls.no_tls_13 = match self.value("ssl_max_protocol_version") {
            Some(old @ ("TLSv1" | "TLSv1.1")) => return Err(unsupported("ssl_max_protocol_version", old)),
            _ => version("ssl_max_protocol_version")? == Some(12),
        };
        if tls.only_tls_13 && tls.no_tls_13 {
            return Err(syntax(
                "ssl_min_protocol_version lies above ssl_max_protocol_version".into(),
            ));
        }
        for name in ["sslnegotiation", "requiressl"] {
            match self.value(name) {
                None | Some("postgres") => {}
                Some(value) => return Err(unsupported(name, value)),
            }
        }
        if matches!(tls.mode, TlsMode::Disable) && self.value("channel_binding") == Some("require") {
            return Err(syntax(
                "channel_binding=require needs TLS, and sslmode=disable".into(),
            ));
        }
        Ok(tls)
    }

    fn hosts(&self, parameters: &Parameters) -> Result<Vec<Host>> {
        fn list(value: Option<&str>) -> Vec<&str> {
            value.map(|value| value.split(',').collect()).unwrap_or_default()
        }
        let (names, addresses) = (list(self.value("host")), list(self.value("hostaddr")));
        let ports = list(self.value("port"));
        if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
            return Err(syntax("host and hostaddr do not name equally many hosts".into()));
        }
        let mut places = Vec::new();
        for index in 0..names.len().max(addresses.len()) {
            let name = names.get(index).copied().unwrap_or_default();
            let address = addresses
                .get(index)
                .filter(|address| !address.is_empty())
                .map(|address| {
                    address
                        .parse::<IpAddr>()
                        .map_err(|_| syntax(format!("\"{address}\" is no IP address")))
                })
                .transpose()?;
            places.push(match (name, address) {
                ("", None) => Place::Unix(DEFAULT_SOCKET_DIRECTORIES[0].into()),
                (path, None) if path.starts_with('/') => Place::Unix(path.into()),
                (path, _) if path.starts_with('@') => {
                    return Err(unsupported("host", "abstract sockets are not supported"));
                }
                ("", Some(address)) => {
                    if parameters.tls.mode == TlsMode::VerifyFull {
                        return Err(syntax(
                            "sslmode=verify-full needs the server's name in host".into(),
                        ));
                    }
                    Place::Tcp {
                        host: address.to_string(),
                        address: Some(address),
                    }
                }
                (host, address) => Place::Tcp {
                    host: host.to_owned(),
                    address,
                },
            });
        }
        if places.is_empty() {
            places.extend(DEFAULT_SOCKET_DIRECTORIES.map(|folder| Place::Unix(folder.into())));
        }
        if ports.len() > 1 && ports.len() != places.len() {
            return Err(syntax(
                "port does not name as many ports as there are hosts".into(),
            ));
        }
        let mut hosts = Vec::new();
        for (index, place) in places.into_iter().enumerate() {
            let port = match ports.get(index).or(ports.first()).copied().unwrap_or("5432") {
                "" => "5432",
                port => port,
            };
            let port = match port.trim().parse::<u16>() {
                Ok(port) if port > 0 => port,
                _ => return Err(syntax(format!("\"{port}\" is no port"))),
            };
            hosts.push(Host {
                password: self.password(&place, port, parameters)?,
                place,
                port,
            });
        }
        Ok(hosts)
    }

    fn password(&self, place: &Place, port: u16, parameters: &Parameters) -> Result<Option<Vec<u8>>> {
        if let Some(password) = self.value("password") {
            return Ok(Some(password.as_bytes().to_vec()));
        }
        let Some(file) = self.value("passfile") else {
            return Ok(None);
        };
        let host = match place {
            Place::Unix(_) => "localhost",
            Place::Tcp { host, .. } => host,
        };
        let database = match parameters.database.as_str() {
            "" => &parameters.user,
            database => database,
        };
        let wanted = [host, &port.to_string(), database, &parameters.user];
        Ok(password_from(Path::new(file), &wanted)?.map(String::into_bytes))
    }
}

/// The password that a `.pgpass` file holds for this connection.
fn password_from(file: &Path, wanted: &[&str; 4]) -> Result<Option<String>> {
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
    Ok(password_in(&text, wanted))
}

/// The password in the first line of a password file that fits.
pub(crate) fn password_in(text: &str, wanted: &[&str; 4]) -> Option<String> {
    text.lines().find_map(|line| password_of_line(line, wanted))
}

/// The operating system account's name, libpq's default for the user.
fn account_name() -> Result<String> {
    let wanted = rustix::process::geteuid().as_raw().to_string();
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    accounts
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&wanted.as_str()))
        .and_then(|fields| fields.first().map(|name| (*name).to_owned()))
        .ok_or_else(|| {
            Error::usage(
                "conninfo-syntax",
                format!("the connection string names no user, and account {wanted} has no name"),
            )
            .hint("Add user=NAME to the connection string.")
        })
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
    fn what_is_demanded_is_carried_out_or_refused() {
        let parameters = |text: &str| Conninfo::parse(text).unwrap().parameters();
        for (mode, wanted) in [
            ("disable", TlsMode::Disable),
            ("allow", TlsMode::Allow),
            ("prefer", TlsMode::Prefer),
            ("require", TlsMode::Require),
            ("verify-ca", TlsMode::VerifyCa),
            ("verify-full", TlsMode::VerifyFull),
        ] {
            let parameters = parameters(&format!("host=h user=u sslmode={mode}")).unwrap();
            assert_eq!(parameters.tls.mode, wanted);
        }
        let system = parameters("host=h user=u sslrootcert=system").unwrap();
        assert_eq!(system.tls.mode, TlsMode::VerifyFull);
        assert_eq!(
            Conninfo::parse("postgresql://u@h/?ssl=true")
                .unwrap()
                .parameters()
                .unwrap()
                .tls
                .mode,
            TlsMode::Require
        );
        let bound = parameters("host=h user=u channel_binding=require").unwrap();
        assert_eq!(bound.channel_binding, ChannelBinding::Require);
        for demand in [
            "requirepeer=postgres",
            "service=x",
            "gssencmode=require",
            "sslnegotiation=direct",
            "sslcrldir=/x",
            "sslcertmode=require",
            "ssl_max_protocol_version=TLSv1.1",
        ] {
            let error = parameters(&format!("user=u {demand}")).unwrap_err();
            assert_eq!(error.code(), "conninfo-unsupported", "{demand}");
        }
        for contradiction in [
            "sslmode=require sslrootcert=system",
            "sslcert=/x",
            "sslmode=disable channel_binding=require",
            "sslmode=verify-full hostaddr=127.0.0.1",
        ] {
            let error = parameters(&format!("user=u {contradiction}")).unwrap_err();
            assert_eq!(error.code(), "conninfo-syntax", "{contradiction}");
        }
    }

    #[test]
    fn each_host_has_its_port_and_its_address() {
        let parameters = Conninfo::parse("host=a,/run/pg,c hostaddr=10.0.0.1,,10.0.0.3 port=1,2,3 user=u")
            .unwrap()
            .parameters()
            .unwrap();
        let shown: Vec<_> = parameters.hosts.iter().map(|host| format!("{host:?}")).collect();
        assert_eq!(
            shown,
            [
                r#"Tcp { host: "a", address: Some(10.0.0.1) }:1"#,
                r#"Unix("/run/pg"):2"#,
                r#"Tcp { host: "c", address: Some(10.0.0.3) }:3"#
            ]
        );
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
            let error = Conninfo::parse(text).unwrap().parameters();
            assert_eq!(error.unwrap_err().code(), "conninfo-syntax", "{text}");
        }
    }

    #[test]
    fn a_timeout_is_one_that_libpq_would_take() {
        let parameters = |text: &str| Conninfo::parse(text).unwrap().parameters();
        let longest = parameters("host=h user=u connect_timeout=2147483647").unwrap();
        let limit = longest.connect_timeout.unwrap();
        assert!(std::time::Instant::now().checked_add(limit).is_some());
        for text in [
            "connect_timeout",
            "keepalives_idle",
            "keepalives_interval",
            "tcp_user_timeout",
        ] {
            let error = parameters(&format!("host=h user=u {text}=9223372036854775807")).unwrap_err();
            assert_eq!(error.code(), "conninfo-syntax", "{text}");
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
                    let _ = conninfo.parameters();
                    proptest::prop_assert_eq!(Conninfo::parse(&conninfo.to_string()).ok(), Some(conninfo));
                }
            }
        }
    }
}
