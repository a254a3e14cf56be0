//! A pretend model server for the demo: deterministic text, honest usage, a human reading speed.
//!
//!     demo_backend --listen 127.0.0.1:8000 [--tokens 12] [--per-token-ms 20]

#[path = "../tests/common/backend.rs"]
mod backend;

use std::time::Duration;

#[tokio::main]
async fn main() {
    let mut script = backend::Script { per_token: Duration::from_millis(20), ..backend::Script::default() };
    let mut listen = "127.0.0.1:8000".to_owned();
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next();
        let number = || value.as_deref().and_then(|v| v.parse::<u64>().ok());
        match (name.as_str(), &value) {
            ("--listen", Some(v)) => listen.clone_from(v),
            ("--tokens", Some(_)) if number().is_some() => script.tokens = number().unwrap_or_default(),
            ("--per-token-ms", Some(_)) if number().is_some() => {
                script.per_token = Duration::from_millis(number().unwrap_or_default())
            }
            _ => {
                eprintln!("usage: demo_backend [--listen ADDRESS:PORT] [--tokens N] [--per-token-ms N]");
                std::process::exit(2);
            }
        }
    }
    let Ok(address) = listen.parse() else {
        eprintln!("--listen wants an address and a port, such as 127.0.0.1:8000; it got {listen:?}");
        std::process::exit(2);
    };
    let running = backend::Backend::start_on(address, script).await;
    println!("demo backend: {}", running.url());
    std::future::pending::<()>().await;
}
