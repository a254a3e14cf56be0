//! Replies that came whole and are large: reading them takes a thread of its own, or everybody whom this thread serves would wait.

use super::Delivery;
use crate::openai::reply;
use crate::openai::usage::Verdict;
use crate::refusal::Refusal;
use bytes::Bytes;

/// Most that is read where it stands, in bytes. Reading takes milliseconds for a mebibyte.
const READ_INLINE_BYTES: usize = 1024 * 1024;

impl Delivery {
    /// What a reply that came whole says of itself.
    pub(super) async fn read_whole(&self, body: &Bytes) -> Result<Verdict, Refusal> {
        let (surface, bounds, body) = (self.surface(), self.bounds, body.clone());
        read(body.len(), move || reply::whole(surface, &body, bounds)).await
    }
}

/// Reads a text of so many bytes.
pub(super) async fn read<T: Send + 'static>(
    bytes: usize,
    how: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    if bytes <= READ_INLINE_BYTES {
        return Ok(how());
    }
    tokio::task::spawn_blocking(how).await.map_err(|_| Refusal::Internal { place: "settle: reading a reply" })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_large_reply_is_read_beside_the_threads_that_serve_everybody() {
        let here = std::thread::current().id();
        for (bytes, beside) in [(2, false), (READ_INLINE_BYTES, false), (READ_INLINE_BYTES + 1, true)] {
            let there = read(bytes, || std::thread::current().id()).await.unwrap();
            assert_eq!(there != here, beside, "{bytes} bytes");
        }
    }
}
