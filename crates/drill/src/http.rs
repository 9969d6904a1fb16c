//! One GET, as a health probe makes it: HTTP/1.1 over TCP, with TLS where the base says so.
//!
//! Invariants: the whole of it has a limit, and no answer is longer than what is read of it; no redirect is followed
//! and no proxy is asked (what is probed is what was named); user and password of the base are sent and never told.

use std::io::{ErrorKind, Read};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine;
use percent_encoding::percent_decode_str;
use ureq::http::{HeaderValue, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use url::Url;

/// More of an answer is not read.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body, decoded, at most four mebibytes of it.
    pub body: Vec<u8>,
}

/// Where the application is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Without user, password, query and fragment.
    url: Url,
    /// Not told by `Debug` either.
    authorization: Option<HeaderValue>,
}

impl Base {
    /// Reads `http://localhost:8000`, `https://user:password@host/prefix`. The error is a sentence without the
    /// password.
    pub fn parse(text: &str) -> Result<Base, String> {
        let wrong = || "the base is no http:// or https:// address".to_string();
        let mut url = Url::parse(text).map_err(|error| match error {
            url::ParseError::InvalidPort => "the base's port is no number".to_string(),
            _ => wrong(),
        })?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong());
        }
        let authorization = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => Some(basic(user, password.unwrap_or_default()).ok_or_else(wrong)?),
        };
        url.set_username("").map_err(|()| wrong())?;
        url.set_password(None).map_err(|()| wrong())?;
        url.set_query(None);
        url.set_fragment(None);
        Ok(Base { url, authorization })
    }

    /// As it may be told.
    pub fn shown(&self) -> String {
        format!(
            "{}://{}:{}{}",
            self.url.scheme(),
            self.url.host_str().unwrap_or_default(),
            self.url.port_or_known_default().unwrap_or_default(),
            self.url.path().trim_end_matches('/')
        )
    }

    /// Asks for a path, which begins with a slash. The error is a sentence.
    pub fn get(&self, path: &str, limit: Duration) -> Result<Answer, String> {
        static SYSTEM_ROOTS: LazyLock<RootCerts> = LazyLock::new(|| {
            let found = rustls_native_certs::load_native_certs().certs;
            RootCerts::from(found.iter().map(|root| Certificate::from_der(root).to_owned()))
        });
        let roots = match self.url.scheme() {
            "https" => SYSTEM_ROOTS.clone(),
            _ => RootCerts::from([]),
        };
        self.get_trusting(roots, path, limit)
    }

    fn get_trusting(&self, roots: RootCerts, path: &str, limit: Duration) -> Result<Answer, String> {
        // It is put behind the port.
        if !path.starts_with('/') {
            return Err("the path does not begin with a slash".into());
        }
        let url = Url::parse(&format!("{}{path}", self.shown())).map_err(|error| error.to_string())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(provider)
            .root_certs(roots)
            .build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .timeout_global(Some(limit))
            .max_redirects(0)
            .http_status_as_error(false)
            .proxy(None)
            .user_agent("pgproof")
            .accept("application/json, */*")
            .build()
            .new_agent();
        let mut request = agent.get(url.as_str()).header(header::CONNECTION, "close");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let answer = request.call().map_err(sentence)?;
        let status = answer.status().as_u16();
        let mut body = Vec::new();
        let mut reader = answer.into_body().into_reader().take(ANSWER_BYTES_MAX);
        match reader.read_to_end(&mut body) {
            // A server that hangs up has said all it had to say.
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(sentence(error.into())),
            _ => Ok(Answer { status, body }),
        }
    }
}

fn sentence(error: ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "the answer did not end in time".into(),
        ureq::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

/// Both as they stand in a URL.
fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    let pair: Vec<u8> = percent_decode_str(user)
        .chain([b':'])
        .chain(percent_decode_str(password))
        .collect();
    let pair = base64::engine::general_purpose::STANDARD.encode(pair);
    let mut value = HeaderValue::try_from(format!("Basic {pair}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::path::Path;
    use std::process::Command;
    use std::time::Instant;

    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);
    const SHORT_LIMIT: Duration = Duration::from_millis(300);

    /// Answers each connection in a thread of its own. Returns the port.
    fn serve(answer: impl Fn(TcpStream) + Clone + Send + 'static) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = answer.clone();
                std::thread::spawn(move || answer(stream));
            }
        });
        port
    }

    /// The head of a request.
    fn request(stream: &mut impl Read) -> String {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
            head.push(byte[0]);
        }
        String::from_utf8_lossy(&head).into_owned()
    }

    /// A base whose server answers everything with these bytes, and then hangs up.
    fn saying(bytes: &[u8]) -> Base {
        let bytes = bytes.to_vec();
        let port = serve(move |mut stream| {
            request(&mut stream);
            let _ = stream.write_all(&bytes);
        });
        Base::parse(&format!("http://127.0.0.1:{port}")).expect("a base")
    }

    #[test]
    fn a_base_is_read_in_its_common_spellings_and_told_without_its_password() {
        for (text, shown) in [
            ("http://localhost:8000", "http://localhost:8000"),
            ("https://api.example.org/", "https://api.example.org:443"),
            ("http://user:p%40ss@host/v1/?key=secret", "http://host:80/v1"),
            ("http://[::1]:81", "http://[::1]:81"),
        ] {
            assert_eq!(Base::parse(text).expect(text).shown(), shown);
        }
        let base = Base::parse("http://user:p%40ss@host").expect("a base");
        let authorization = base.authorization.as_ref().and_then(|value| value.to_str().ok());
        assert_eq!(authorization, Some("Basic dXNlcjpwQHNz"));
        assert!(!format!("{base:?}").contains("dXNlcjpwQHNz"), "{base:?}");
        for text in [
            "",
            "localhost:8000",
            "ftp://x",
            "http://",
            "http://h:x",
            "http://a b",
        ] {
            assert!(Base::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_answer_is_read_whole_chunked_or_not_and_garbage_is_refused() {
        let of = |bytes: &[u8]| saying(bytes).get("/", LIMIT);
        let plain = of(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").expect("an answer");
        assert_eq!((plain.status, plain.body.as_slice()), (200, b"ok".as_slice()));
        let until_it_hangs_up = of(b"HTTP/1.0 200 OK\r\n\r\nok").expect("an answer");
        assert_eq!(until_it_hangs_up, plain);
        let chunked =
            b"HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        let chunked = of(chunked).expect("an answer");
        assert_eq!(
            (chunked.status, chunked.body.as_slice()),
            (503, b"abcde".as_slice())
        );
        for bytes in [
            b"".as_slice(),
            b"SSH-2.0-x\r\n\r\n",
            b"HTTP/1.1 x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nmany\r\nabc",
        ] {
            assert!(of(bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
        for cut in [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\nabc".as_slice(),
            b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc",
        ] {
            assert_eq!(of(cut).expect("an answer").body, b"abc");
        }
    }

    #[test]
    fn no_more_of_an_answer_is_read_than_four_mebibytes() {
        for head in ["", "Content-Length: 1099511627776\r\n"] {
            let port = serve(move |mut stream| {
                request(&mut stream);
                let _ = write!(stream, "HTTP/1.1 200 OK\r\n{head}\r\n");
                while stream.write_all(&[b'x'; 1 << 16]).is_ok() {}
            });
            let base = Base::parse(&format!("http://127.0.0.1:{port}")).expect("a base");
            let answer = base.get("/", LIMIT).expect("an answer");
            assert_eq!(answer.body.len() as u64, ANSWER_BYTES_MAX);
        }
    }

    #[test]
    fn a_redirect_is_an_answer_and_nobody_is_asked_where_it_leads() {
        let elsewhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        elsewhere.set_nonblocking(true).expect("does not wait");
        let to = elsewhere.local_addr().expect("an address");
        for status in [301, 302, 303, 307, 308] {
            let text =
                format!("HTTP/1.1 {status} X\r\nLocation: http://{to}/\r\nContent-Length: 2\r\n\r\nno");
            let answer = saying(text.as_bytes()).get("/", LIMIT).expect("an answer");
            assert_eq!(
                (answer.status, answer.body.as_slice()),
                (status, b"no".as_slice())
            );
        }
        assert!(elsewhere.accept().is_err());
    }

    #[test]
    fn the_limit_is_for_the_whole_of_a_request_however_slowly_it_goes_on() {
        // Nothing at all, a head without end, a body without end, a chunk without end.
        for begin in [
            "",
            "HTTP/1.1 200 OK\r\nX: ",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n",
        ] {
            let port = serve(move |mut stream| {
                let _ = stream.write_all(begin.as_bytes());
                while begin.is_empty() || stream.write_all(b"x").is_ok() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            for scheme in ["http", "https"] {
                let base = Base::parse(&format!("{scheme}://127.0.0.1:{port}")).expect("a base");
                let started = Instant::now();
                let why = base.get_trusting(RootCerts::from([]), "/", SHORT_LIMIT);
                let why = why.expect_err("no answer");
                assert!(started.elapsed() < LIMIT / 4, "{scheme} {begin:?}");
                if scheme == "http" || begin.is_empty() {
                    assert_eq!(why, "the answer did not end in time", "{begin:?}");
                }
            }
        }
    }

    #[test]
    fn user_and_password_are_sent_and_no_error_tells_them() {
        let port = serve(|mut stream| {
            let head = request(&mut stream).to_ascii_lowercase();
            let told = head.contains("\r\nauthorization: basic dxnlcjpwqhnz\r\n");
            let whole =
                head.starts_with("get /v1/readyz?a=b http/1.1\r\n") && head.contains("user-agent: pgproof");
            let status = if told && whole { 200 } else { 401 };
            let _ = write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
        });
        let of = |base: &str| Base::parse(base).and_then(|base| base.get("/readyz?a=b", LIMIT));
        let answer = of(&format!("http://user:p%40ss@127.0.0.1:{port}/v1/"));
        assert_eq!(answer.map(|answer| answer.status), Ok(200));
        let answer = of(&format!("http://127.0.0.1:{port}/v1/"));
        assert_eq!(answer.map(|answer| answer.status), Ok(401));

        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let nobody = closed.local_addr().expect("an address").port();
        drop(closed);
        for base in [
            format!("http://user:pa55word@127.0.0.1:{nobody}"),
            format!("https://user:pa55word@127.0.0.1:{port}"),
            "http://user:pa55word@nobody.invalid".into(),
            "http://user:pa55word@".into(),
            "http://user:pa55word@host:x".into(),
            "ftp://user:pa55word@host".into(),
            "http//user:pa55word@host".into(),
        ] {
            let why = Base::parse(&base).and_then(|base| base.get("/", SHORT_LIMIT));
            let why = why.expect_err("no answer");
            for secret in ["pa55word", "user", "dXNlc"] {
                assert!(!why.contains(secret), "{base}: {why}");
            }
        }
    }

    #[test]
    fn a_path_stays_a_path() {
        let base = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        for path in [
            "/a<b>{c}|\\^`\"",
            "//elsewhere.invalid/",
            "/@elsewhere.invalid",
            "/%zz?a=\"#b",
        ] {
            assert_eq!(
                base.get(path, LIMIT).map(|answer| answer.status),
                Ok(200),
                "{path}"
            );
        }
        for path in ["", "0/", ".invalid/", "@elsewhere.invalid/"] {
            assert!(base.get(path, LIMIT).is_err(), "{path}");
        }
    }

    /// A certificate for localhost that stands for itself.
    fn certificate(folder: &Path) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let output = Command::new("openssl")
            .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30".split(' '))
            .args(
                "-subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout key -out certificate"
                    .split(' '),
            )
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .current_dir(folder)
            .output()
            .expect("openssl is installed with PostgreSQL");
        assert!(output.status.success(), "{output:?}");
        (
            CertificateDer::from_pem_file(folder.join("certificate")).expect("a certificate"),
            PrivateKeyDer::from_pem_file(folder.join("key")).expect("a key"),
        )
    }

    #[test]
    fn only_a_certificate_that_is_trusted_and_names_the_host_is_talked_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let (certificate, key) = certificate(folder.path());
        let root = RootCerts::from([Certificate::from_der(&certificate).to_owned()]);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_no_client_auth()
                    .with_single_cert(vec![certificate], key)
            })
            .map(Arc::new)
            .expect("a server's side");
        let port = serve(move |stream| {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).expect("a connection");
            let mut stream = rustls::StreamOwned::new(connection, stream);
            request(&mut stream);
            // It neither says how long the answer is nor that it ends.
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nok");
        });
        let at = |host: &str| Base::parse(&format!("https://user:pa55word@{host}:{port}")).expect("a base");
        let answer = at("localhost").get_trusting(root.clone(), "/", LIMIT);
        assert_eq!(answer.map(|answer| answer.body), Ok(b"ok".to_vec()));
        for why in [
            at("localhost").get("/", LIMIT),
            at("127.0.0.1").get_trusting(root, "/", LIMIT),
        ] {
            let why = why.expect_err("no answer");
            assert!(why.contains("certificate") && !why.contains("pa55word"), "{why}");
        }
    }
}
