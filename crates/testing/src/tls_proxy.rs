//! A proxy that speaks TLS with clients and passes on what they say in the clear to a server behind it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use crate::certificates::Issued;

/// A running proxy; it ends with the value.
pub struct TlsProxy {
    address: SocketAddr,
    connections: Arc<AtomicU64>,
    /// Dropped, it ends all connections.
    runtime: Option<Runtime>,
}

impl TlsProxy {
    /// Stands before `server`, on a port of its own, and shows this certificate. Panics, as a test does, if it cannot.
    pub fn start(server: SocketAddr, shown: &Issued) -> TlsProxy {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("tls-proxy")
            .enable_all()
            .build()
            .expect("a runtime");
        let acceptor = TlsAcceptor::from(Arc::new(server_config(shown)));
        let listener = runtime
            .block_on(TcpListener::bind(("127.0.0.1", 0)))
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicU64::new(0));
        let counted = connections.clone();
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // What goes wrong on a connection is the client's to notice.
                    let Ok(mut client) = acceptor.accept(socket).await else {
                        return;
                    };
                    if let Ok(mut behind) = TcpStream::connect(server).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut behind).await;
                    }
                });
            }
        });
        TlsProxy {
            address,
            connections,
            runtime: Some(runtime),
        }
    }

    /// `https://localhost:PORT`
    pub fn endpoint(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// Connections that were made so far, also those on which TLS never came about.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for TlsProxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn server_config(shown: &Issued) -> ServerConfig {
    let chain = CertificateDer::pem_slice_iter(shown.certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .expect("a chain");
    let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).expect("a key");
    ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate with its key")
}
