//! An application beside the database, for checks that ask endpoints and run programs.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::World;

/// An application that answers as it is told, and counts how often.
pub struct Application {
    /// `http://127.0.0.1:PORT`
    pub address: String,
    pub healthy: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Application {
    pub fn start() -> Application {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        listener.set_nonblocking(true).expect("does not wait");
        let (healthy, stop) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let (is_healthy, is_over) = (Arc::clone(&healthy), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    continue;
                };
                stream.set_nonblocking(false).expect("waits");
                let mut request = [0_u8; 2048];
                let read = stream.read(&mut request).unwrap_or(0);
                let path = String::from_utf8_lossy(&request[..read]).into_owned();
                let path = path.split_whitespace().nth(1).unwrap_or_default().to_owned();
                let good = is_healthy.load(Ordering::Relaxed);
                let (status, body) = match (path.as_str(), good) {
                    ("/healthz", _) => ("200 OK", r#"{"status": "ok", "db_connected": true}"#),
                    ("/readyz", true) => (
                        "200 OK",
                        r#"{"status": "ready", "database": {"migrations_current": true}}"#,
                    ),
                    ("/readyz", false) => (
                        "200 OK",
                        r#"{"status": "degraded", "database": {"migrations_current": false, "user": "mail-secret"}}"#,
                    ),
                    _ => ("404 Not Found", "{}"),
                };
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Application {
            address,
            healthy,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A program of the user's in the world's folder; its path.
pub fn script(world: &World, name: &str, text: &str) -> String {
    let path = world.scratch().join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
    path.display().to_string()
}
