//! PyPI `llmock`, unmodified, as a backend that nobody here wrote: it makes `n` choices, writes `usage: null` on every earlier
//! chunk as OpenAI does, and fails on demand. It ignores `max_tokens`, and counts several choices once.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::client::python_path;
use super::{eventually, free_port, http};

/// A running llmock; dropping it ends its process by id.
pub struct Llmock {
    child: Child,
    url: String,
}

impl Drop for Llmock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Llmock {
    pub async fn start() -> Self {
        super::require_testbed();
        let port = free_port();
        let child = Command::new(python_path())
            .args([
                "-m",
                "llmock.cli",
                "serve",
                "--host",
                "127.0.0.1",
                "--log-level",
                "error",
                "--port",
                &port.to_string(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("llmock cannot be started: {e}"));
        let llmock = Self { child, url: format!("http://127.0.0.1:{port}") };
        let up = eventually(Duration::from_secs(60), || async {
            http().get(format!("{}/_llmock/requests", llmock.url)).send().await.is_ok_and(|r| r.status().is_success())
        })
        .await;
        assert!(up, "llmock does not answer");
        llmock
    }

    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// What the next request meets, in llmock's own form.
    pub async fn next(&self, behaviour: Value) {
        let url = format!("{}/_llmock/scenario", self.url);
        let taken = http().post(url).body(json!({ "behaviors": [behaviour] }).to_string()).send().await.unwrap();
        assert_eq!(taken.status(), 201, "{}", taken.text().await.unwrap());
    }

    /// Requests that it was asked.
    pub async fn heard(&self) -> usize {
        let said: Value =
            http().get(format!("{}/_llmock/requests", self.url)).send().await.unwrap().json().await.unwrap();
        said["requests"].as_array().unwrap_or_else(|| panic!("{said}")).len()
    }
}
