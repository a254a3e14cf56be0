//! The yardstick of `benches/process.rs`: the smallest proxy Pingora can be, forwarding everything to one server.
//!
//!     bare_pingora 127.0.0.1:8403 127.0.0.1:8000

use async_trait::async_trait;
use pingora::prelude::{HttpPeer, Result, Server};
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::configuration::ServerConf;
use std::net::SocketAddr;

/// As many workers as the gate has by default.
const THREADS: usize = 2;

struct Bare {
    upstream: SocketAddr,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.upstream, false, String::new())))
    }
}

/// Proxies until the process ends.
pub fn serve(listen: &str, upstream: SocketAddr) -> ! {
    let mut server = Server::new_with_opt_and_conf(None, ServerConf { threads: THREADS, ..ServerConf::default() });
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Bare { upstream });
    service.add_tcp(listen);
    server.add_service(service);
    server.run_forever()
}

#[allow(dead_code)] // The bench takes this file as a module and calls `serve` itself.
fn main() {
    let mut arguments = std::env::args().skip(1);
    let (listen, upstream) = (arguments.next(), arguments.next().and_then(|a| a.parse().ok()));
    match (listen, upstream) {
        (Some(listen), Some(upstream)) => serve(&listen, upstream),
        _ => {
            eprintln!("usage: bare_pingora LISTEN_ADDRESS:PORT UPSTREAM_ADDRESS:PORT");
            std::process::exit(2);
        }
    }
}
