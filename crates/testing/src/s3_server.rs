//! A server of S3 over a temporary folder (s3s-fs), inside the process of the test.
//!
//! It listens on the loopback interface, checks signatures, and ends with the value, and its folder with it. Its conditional creation
//! looks and then writes, so of several that come at once more than one may win: never test races on it.

use std::net::SocketAddr;
use std::path::Path;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::runtime::Runtime;

/// A running server.
pub struct S3Server {
    folder: tempfile::TempDir,
    address: SocketAddr,
    /// Dropped, it ends all connections.
    runtime: Option<Runtime>,
}

impl S3Server {
    pub const ACCESS_KEY_ID: &str = "AKIDPGPROOFTEST";
    pub const SECRET_ACCESS_KEY: &str = "secret-of-a-throw-away-server";

    /// Serves one empty bucket, on a port of its own. Panics, as a test does, if it cannot.
    pub fn start(bucket: &str) -> S3Server {
        let folder = tempfile::tempdir().expect("a folder to serve");
        std::fs::create_dir(folder.path().join(bucket)).expect("a bucket's folder");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("s3-server")
            .enable_all()
            .build()
            .expect("a runtime");
        let service = {
            let mut builder =
                S3ServiceBuilder::new(FileSystem::new(folder.path()).expect("a folder to serve"));
            builder.set_auth(SimpleAuth::from_single(
                Self::ACCESS_KEY_ID,
                Self::SECRET_ACCESS_KEY,
            ));
            builder.build()
        };
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0)))
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        S3Server {
            folder,
            address,
            runtime: Some(runtime),
        }
    }

    /// Where its buckets are folders.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A credentials file in AWS's form.
    pub fn credentials_text() -> String {
        format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            Self::ACCESS_KEY_ID,
            Self::SECRET_ACCESS_KEY
        )
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
