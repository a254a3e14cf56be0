//! What black-box tests stand on: a local chain, a scripted backend, the gate as a process, and clients.
//!
//! A test file says `mod common;` and takes what it needs:
//!
//! ```ignore
//! let chain = common::Chain::start().await;
//! let backend = common::Backend::start(common::Script::default()).await;
//! let gate = common::Gate::start(common::GateOptions::new(&chain.url(), &backend.url())).await;
//! let paid = common::client::node("mppx.mjs", &[("url", &gate.chat_url()), ("rpc", &chain.url())]).await;
//! assert_eq!(paid["status"], 200);
//! ```
//!
//! Everything listens on loopback and free ports, and ends only the processes it started. When the test bed is not
//! installed these helpers fail with a sentence; no test is ever skipped silently.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    dead_code,
    unused_imports,
    unreachable_pub
)]

pub mod agent402;
pub mod aimock;
pub mod backend;
pub mod bed;
pub mod bridge;
pub mod chain;
pub mod channels;
pub mod client;
pub mod facilitator;
pub mod gate;
pub mod ledger;
pub mod llama;
pub mod llmock;
pub mod payer;
pub mod paying;
pub mod raw;
pub mod relay;
pub mod reserve;
pub mod session;
pub mod typed;
pub mod wallet;
pub mod x402;

pub use aimock::Aimock;
pub use backend::{Backend, Recorded, Reply, Script, Step};
pub use bed::Bed;
pub use bridge::Bridge;
pub use chain::{Chain, DEV, DevAccount, Fault, PATH_USD, RpcProxy, Transfer};
pub use channels::SessionBed;
pub use facilitator::{Answer, Scripted};
pub use gate::{Gate, GateOptions};
pub use ledger::{Ledger, Unseen};
pub use llama::Llama;
pub use llmock::Llmock;
pub use payer::Payer;
pub use raw::{Raw, RawReply};
pub use reserve::Reserve;
pub use wallet::Wallet;
pub use x402::{EvmBed, Facilitator, SvmBed};

use std::path::PathBuf;
use std::time::Duration;

/// The directory of `testbed/`.
pub fn testbed() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testbed")
}

/// Fails, saying what to do, when `testbed/setup` has not been run.
pub fn require_testbed() {
    assert!(
        testbed().join("node_modules/.ready").exists(),
        "the test bed is not installed: run `make test` (or `testbed/setup`) first"
    );
}

/// TLS needs one crypto provider per process, and the HTTP client asks for it even on plain HTTP.
pub fn init() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// An HTTP client without proxies, redirects or surprises.
pub fn http() -> reqwest::Client {
    init();
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(60))
        .build()
        .unwrap()
}

/// A port of loopback that nobody listens on, and that stays free until whoever asked uses it, again after a restart too: it is below
/// those that the kernel gives to others (32768 and up), and given once.
pub fn free_port() -> u16 {
    static NEXT: std::sync::OnceLock<std::sync::atomic::AtomicU32> = std::sync::OnceLock::new();
    let next = NEXT.get_or_init(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
        std::process::id().wrapping_mul(7_919).wrapping_add(now).into()
    });
    let ports = std::iter::repeat_with(|| {
        let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        10_000 + u16::try_from(n % 20_000).unwrap()
    });
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.take(20_000).find(is_free).expect("a free port of loopback")
}

/// Asks again until `probe` says yes or `limit` has passed; returns whether it said yes.
pub async fn eventually<F, Fut>(limit: Duration, mut probe: F) -> bool
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let end = std::time::Instant::now() + limit;
    loop {
        if probe().await {
            return true;
        }
        if std::time::Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// Sends a signal to one process by its id. `unsafe` is forbidden here, so the system's `kill` does it.
pub fn signal(pid: u32, name: &str) {
    let done = std::process::Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(done.is_ok_and(|s| s.success()), "kill -{name} {pid} failed");
}
