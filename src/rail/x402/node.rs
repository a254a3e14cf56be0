//! A JSON-RPC node for tests: it answers as a function says, over a real socket.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use crate::secret::Secret;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Listens on a free port of loopback until the test's runtime ends.
pub struct Node {
    url: String,
    heard: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Node {
    /// `answer` is given method and parameters; `None` is a JSON-RPC error.
    pub async fn start(answer: impl Fn(&str, &Value) -> Option<Value> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (answer, kept) = (Arc::new(answer), Arc::clone(&heard));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (answer, kept) = (Arc::clone(&answer), Arc::clone(&kept));
                tokio::spawn(async move { serve(stream, &*answer, &kept).await });
            }
        });
        Self { url, heard }
    }

    pub fn url(&self) -> Secret {
        Secret::new(self.url.clone())
    }

    /// How often a method was called.
    pub fn calls(&self, method: &str) -> usize {
        self.heard.lock().unwrap().iter().filter(|(m, _)| m == method).count()
    }
}

async fn serve(
    mut stream: TcpStream,
    answer: &(impl Fn(&str, &Value) -> Option<Value> + Sync),
    heard: &Mutex<Vec<(String, Value)>>,
) {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 65_536];
    let call: Value = loop {
        let Some(n) = stream.read(&mut buffer).await.ok().filter(|n| *n > 0) else { return };
        bytes.extend_from_slice(&buffer[..n]);
        let body = std::str::from_utf8(&bytes).unwrap().split_once("\r\n\r\n").map(|(_, body)| body);
        if let Some(call) = body.and_then(|body| serde_json::from_str(body).ok()) {
            break call;
        }
    };
    let (method, params) = (call["method"].as_str().unwrap(), &call["params"]);
    heard.lock().unwrap().push((method.to_owned(), params.clone()));
    let body = match answer(method, params) {
        Some(result) => json!({"jsonrpc": "2.0", "id": 1, "result": result}),
        None => json!({"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": "canary"}}),
    }
    .to_string();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    drop(stream.write_all(format!("{head}{body}").as_bytes()).await);
}
