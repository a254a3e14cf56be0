//! Connections to one service, kept open between requests. Each is driven by whoever uses it, in his own task: nobody else has to be
//! woken to carry a request out or an answer in.

use super::{Reply, Silence};
use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tower_service::Service as _;

/// How long a connection that nobody uses is kept.
const KEPT: Duration = Duration::from_secs(90);
/// Most of them.
const MOST: usize = 32;
/// How often connection and exchange are looked at in turn before both wait to be woken.
const TURNS: usize = 3;

/// The way to one service.
pub(super) struct Lines {
    connector: HttpsConnector<HttpConnector>,
    to: Uri,
    /// Nobody uses them; the one used last is last.
    idle: Mutex<Vec<Line>>,
}

struct Line {
    sender: SendRequest<Full<Bytes>>,
    /// Reads and writes while it is polled; it ends when the connection does.
    connection: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>,
    since: Instant,
}

/// Why there is no answer.
enum Fault {
    /// Nothing of it was written: here it is again.
    Unsent(Box<Request<Full<Bytes>>>),
    /// It may have been heard.
    Lost,
}

impl Lines {
    /// To the service at `to`. Nothing is connected yet.
    pub fn new(connector: HttpsConnector<HttpConnector>, to: Uri) -> Self {
        Self { connector, to, idle: Mutex::default() }
    }

    /// One request and its whole answer of `at_most` bytes. What was not written to a connection that turns out to be closed goes to another;
    /// what may have been heard is not said again. Dropped, it closes its connection.
    pub async fn ask(&self, mut request: Request<Full<Bytes>>, at_most: usize) -> Result<Reply, Silence> {
        while let Some(line) = self.kept() {
            match self.on(line, request, at_most).await {
                Ok(reply) => return Ok(reply),
                Err(Fault::Unsent(again)) => request = *again,
                Err(Fault::Lost) => return Err(Silence::Lost),
            }
        }
        let line = self.open().await.ok_or(Silence::NotSent)?;
        self.on(line, request, at_most).await.map_err(|_| Silence::Lost)
    }

    async fn open(&self) -> Option<Line> {
        let mut connector = self.connector.clone();
        poll_fn(|cx| connector.poll_ready(cx)).await.ok()?;
        let (sender, connection) = handshake(connector.call(self.to.clone()).await.ok()?).await.ok()?;
        Some(Line { sender, connection: Box::pin(connection), since: Instant::now() })
    }

    async fn on(&self, line: Line, request: Request<Full<Bytes>>, at_most: usize) -> Result<Reply, Fault> {
        let Line { mut sender, mut connection, .. } = line;
        let sent = sender.try_send_request(request);
        let mut exchange = pin!(async {
            let unsent = |again| Fault::Unsent(Box::new(again));
            let reply = sent.await.map_err(|mut e| e.take_message().map_or(Fault::Lost, unsent))?;
            let (head, body) = reply.into_parts();
            let body = Limited::new(body, at_most).collect().await.map_err(|_| Fault::Lost)?;
            Ok(Reply { status: head.status, headers: head.headers, body: body.to_bytes() })
        });
        let mut ended = false;
        let reply = poll_fn(|cx| {
            // Each waits for the other: for the head to be read, then for its body to be wanted, then for that.
            for _ in 0..TURNS {
                ended = ended || connection.as_mut().poll(cx).is_ready();
                if let Poll::Ready(reply) = exchange.as_mut().poll(cx) {
                    return Poll::Ready(reply);
                }
            }
            Poll::Pending
        });
        let reply = reply.await?;
        if !ended {
            self.keep(Line { sender, connection, since: Instant::now() });
        }
        Ok(reply)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Line>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that was used before and is open still, as far as can be seen.
    fn kept(&self) -> Option<Line> {
        loop {
            let mut line = self.idle().pop()?;
            if line.since.elapsed() < KEPT && line.is_open() {
                return Some(line);
            }
        }
    }

    fn keep(&self, mut line: Line) {
        if !line.is_open() {
            return;
        }
        let mut idle = self.idle();
        idle.retain(|other| other.since.elapsed() < KEPT);
        if idle.len() < MOST {
            idle.push(line);
        }
    }
}

impl Line {
    /// Whether it waits for a request. Whoever uses it next is woken by it; until then nobody is.
    fn is_open(&mut self) -> bool {
        let polled = self.connection.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        polled.is_pending() && self.sender.is_ready()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use crate::chain::web::{Ask, Silence, Web};
    use crate::secret::Secret;
    use bytes::Bytes;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    /// A service that answers each request with `reply`, and hangs up after `each` of them.
    async fn service(reply: &'static str, each: usize) -> (Web, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = Web::new(&Secret::new(format!("http://{}/x", listener.local_addr().unwrap()))).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let mut said = vec![0; 4096];
                    for _ in 0..each {
                        if tcp.read(&mut said).await.is_ok_and(|n| n > 0) {
                            tcp.write_all(reply.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        (web, connections)
    }

    async fn ask(web: &Web) -> Result<String, Silence> {
        let body = Bytes::from_static(b"{}");
        let within = Duration::from_secs(5);
        let ask = Ask { path: "/x", json: Some(&body), headers: &[], within, at_most: 10 };
        web.ask(ask).await.map(|reply| String::from_utf8(reply.body.to_vec()).unwrap())
    }

    const REPLY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

    #[tokio::test]
    async fn a_connection_serves_one_request_after_the_other_and_many_serve_many_at_once() {
        let (web, connections) = service(REPLY, 100).await;
        for _ in 0..5 {
            assert_eq!(ask(&web).await.as_deref(), Ok("hi"));
        }
        assert_eq!(connections.load(Ordering::SeqCst), 1);
        let both = futures::future::join(ask(&web), ask(&web)).await;
        assert!(both.0.is_ok() && both.1.is_ok());
        assert_eq!(connections.load(Ordering::SeqCst), 2);
        assert_eq!(web.lines.idle().len(), 2);
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_meanwhile_costs_no_answer() {
        let (web, connections) = service(REPLY, 1).await;
        for n in 1..4 {
            assert_eq!(ask(&web).await.as_deref(), Ok("hi"));
            assert_eq!(connections.load(Ordering::SeqCst), n);
            let closed = async {
                while web.lines.kept().map(|line| web.lines.keep(line)).is_some() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), closed).await.expect("it is seen that it is closed");
        }
    }

    #[tokio::test]
    async fn what_may_have_been_heard_is_not_said_again() {
        for (reply, why) in [
            ("", "hung up on"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", "cut off"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world", "too large"),
            ("nonsense\r\n\r\n", "not HTTP"),
        ] {
            let (web, connections) = service(reply, 1).await;
            assert_eq!(ask(&web).await, Err(Silence::Lost), "{why}");
            assert_eq!(connections.load(Ordering::SeqCst), 1, "{why}");
            assert_eq!(web.lines.idle().len(), 0, "{why}: nor is its connection used again");
        }
        let nobody = Web::new(&Secret::new("http://127.0.0.1:1/x")).unwrap();
        assert_eq!(ask(&nobody).await, Err(Silence::NotSent));
    }

    #[tokio::test]
    async fn who_stops_waiting_leaves_no_connection_behind_with_an_answer_to_come() {
        let (web, _) = service("", 100).await;
        let body = Bytes::from_static(b"{}");
        let within = Duration::from_millis(20);
        let asked = web.ask(Ask { path: "/x", json: Some(&body), headers: &[], within, at_most: 10 }).await;
        assert_eq!(asked.map(drop), Err(Silence::Lost));
        assert_eq!(web.lines.idle().len(), 0);
    }

    #[tokio::test]
    async fn a_service_that_says_close_is_asked_on_a_new_connection() {
        let (web, connections) =
            service("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi", 9).await;
        for n in 1..3 {
            assert_eq!(ask(&web).await.as_deref(), Ok("hi"));
            assert_eq!(connections.load(Ordering::SeqCst), n);
        }
    }
}
