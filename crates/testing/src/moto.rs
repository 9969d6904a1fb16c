//! moto, a simulator of Amazon's services that creates conditionally as S3 does, as a child process.
//!
//! `PGPROOF_MOTO_SERVER` names its program (`./test` installs it and says so). A test that needs it where it is
//! not named says so and passes, unless `PGPROOF_REQUIRE_MOTO=1` makes that a failure.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::certificates::{Authority, Validity};

/// A running simulator; it ends with the value.
pub struct MotoServer {
    child: Child,
    address: SocketAddr,
    /// Of its certificate, where it speaks TLS.
    tls: Option<tempfile::TempDir>,
}

impl MotoServer {
    /// Starts it with one bucket; `None` where it is not installed and that is allowed.
    pub fn start_or_skip(test: &str, bucket: &str) -> Option<MotoServer> {
        MotoServer::start(test, bucket, None)
    }

    /// The same that speaks TLS, Python's and OpenSSL's, with a certificate for `localhost` of this authority's.
    pub fn start_with_tls_or_skip(test: &str, bucket: &str, authority: &Authority) -> Option<MotoServer> {
        MotoServer::start(test, bucket, Some(authority))
    }

    fn start(test: &str, bucket: &str, authority: Option<&Authority>) -> Option<MotoServer> {
        let Some(program) = std::env::var_os("PGPROOF_MOTO_SERVER") else {
            assert!(
                std::env::var_os("PGPROOF_REQUIRE_MOTO").is_none(),
                "{test} needs moto, and PGPROOF_MOTO_SERVER does not name its program"
            );
            eprintln!("{test} is left out: PGPROOF_MOTO_SERVER does not name moto's program");
            return None;
        };
        // Free a moment ago; a lost race shows as a server that does not start.
        let address = TcpListener::bind(("127.0.0.1", 0))
            .and_then(|listener| listener.local_addr())
            .expect("a free port");
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
        let tls = authority.map(|authority| {
            let folder = tempfile::tempdir().expect("a folder for the certificate");
            let issued = authority.server(&["localhost"], Validity::Now);
            let (certificate, key) = issued.write(folder.path(), "moto");
            command.arg("-c").arg(certificate).arg("-k").arg(key);
            folder
        });
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto starts");
        let server = MotoServer { child, address, tls };
        let end = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < end, "moto does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        let stream = TcpStream::connect(address).expect("moto answers");
        match authority {
            None => make_bucket(stream, bucket),
            Some(authority) => make_bucket(encrypted(stream, authority), bucket),
        }
        Some(server)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`, or `https://localhost:PORT` where it speaks TLS.
    pub fn endpoint(&self) -> String {
        match self.tls {
            None => format!("http://{}", self.address),
            Some(_) => format!("https://localhost:{}", self.address.port()),
        }
    }
}

fn make_bucket(mut stream: impl Read + Write, bucket: &str) {
    let request = format!(
        "PUT /{bucket} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("a request");
    // It may close without saying so in TLS; what came until then is the answer.
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

fn encrypted(stream: TcpStream, authority: &Authority) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.pem().as_bytes()).expect("a certificate");
    roots.add(root).expect("an authority");
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client of TLS");
    StreamOwned::new(connection, stream)
}

impl Drop for MotoServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
