//! For tests only: throw-away PostgreSQL clusters, a load on them, digests of their rows, a server of S3, a proxy that
//! fails as it is told, one that speaks TLS, and certificates for them.
//!
//! Invariants: a test cluster lives in a folder of its own under `/tmp`, speaks over a private socket only,
//! never runs as root (as root it runs as the account `postgres`), and is stopped and removed when it is
//! dropped. A test that needs PostgreSQL where there is none says so on standard error and passes, unless
//! the variable `PGPROOF_REQUIRE_POSTGRES=1` makes that a failure.

mod certificates;
mod digest;
mod faulty_proxy;
mod moto;
mod s3_server;
mod test_cluster;
mod tls_proxy;
mod workload;

pub use certificates::{Authority, Issued, Validity};
pub use digest::row_digest;
pub use faulty_proxy::{Asked, Fault, FaultyProxy};
pub use moto::MotoServer;
pub use s3_server::S3Server;
pub use test_cluster::{
    Scratch, TestCluster, TestOptions, account, client_program, programs_of_major_or_skip, programs_or_skip,
};
pub use tls_proxy::TlsProxy;
pub use workload::{Workload, WorkloadStatistics};
