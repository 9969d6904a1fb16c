//! moto, a simulator of Amazon's services that creates conditionally as S3 does, as a child process.
//!
//! `PGPROOF_MOTO_SERVER` names its program (`./test` installs it and says so). A test that needs it where it is
//! not named says so and passes, unless `PGPROOF_REQUIRE_MOTO=1` makes that a failure.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running simulator; it ends with the value.
pub struct MotoServer {
    child: Child,
    address: SocketAddr,
}

impl MotoServer {
    /// Starts it with one bucket; `None` where it is not installed and that is allowed.
    pub fn start_or_skip(test: &str, bucket: &str) -> Option<MotoServer> {
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
        let child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &address.port().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto starts");
        let server = MotoServer { child, address };
        let end = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < end, "moto does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut stream = TcpStream::connect(address).expect("moto answers");
        write!(
            stream,
            "PUT /{bucket} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Some(server)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for MotoServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
