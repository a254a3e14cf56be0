//! How replies of each surface speak: where their text stands, how they say what was used, what ends a stream; and the shape
//! that words of ours take among theirs.

use super::delta::{Holder, text_of};
use super::error::{body as error_body, is_about_the_request};
use super::receipt;
use super::typed::{self, Dialect};
use super::usage::{Bounds, Reply, Verdict, read_json, read_list};
use crate::surface::Surface;
use bytes::Bytes;

/// Where the text of a chunk stands.
pub(super) fn text_in_stream(surface: Surface) -> Holder {
    match surface {
        Surface::Completions => Holder::Text,
        _ => Holder::Delta,
    }
}

/// Reads a reply that came whole. One that is not what the surface answers has failed.
pub fn whole(surface: Surface, body: &[u8], bounds: Bounds) -> Verdict {
    let verdict = read(surface, body, bounds);
    Verdict { at_fault: verdict.failed && !is_about_the_request(body), ..verdict }
}

fn read(surface: Surface, body: &[u8], bounds: Bounds) -> Verdict {
    match surface {
        Surface::Responses => typed::read_json(Dialect::Responses, body, bounds),
        Surface::Messages => typed::read_json(Dialect::Messages, body, bounds),
        Surface::Completions => {
            let text = text_of(body, Holder::Text, |_| {});
            Verdict { delivered_chunks: text.texts, delivered_bytes: text.bytes, ..read_json(body, bounds) }
        }
        // Vectors and pictures: an answer is as many of them as it has.
        Surface::Embeddings => read_list(body, bounds),
        // Their price is flat: what they say of usage is not in our units, and nobody asks for it.
        Surface::Images => {
            let Verdict { finished, failed, model, .. } = read_list(body, bounds);
            Verdict { finished, failed, model, ..Verdict::default() }
        }
        Surface::Speech | Surface::Transcriptions => {
            Verdict { finished: !body.is_empty(), failed: says_error(body), ..Verdict::default() }
        }
        Surface::Chat | Surface::Models => read_json(body, bounds),
    }
}

/// An error in OpenAI's shape where sound or text was expected.
fn says_error(body: &[u8]) -> bool {
    Reply::read(body).is_some_and(|reply| reply.error.is_some())
}

/// The receipt as an event of the surface's stream, in a shape that its clients read over. `None`: they would not.
pub fn receipt_event(surface: Surface, of: &Receipt<'_>) -> Option<Bytes> {
    let object = match surface {
        Surface::Chat => "chat.completion.chunk",
        Surface::Completions => "text_completion",
        _ => return None,
    };
    Some(receipt::receipt_chunk(object, of.id, of.created, of.model, of.name, of.block, of.wants_usage))
}

/// What is written into a stream of a receipt.
#[derive(Clone, Copy, Debug)]
pub struct Receipt<'a> {
    /// Its id.
    pub id: &'a str,
    /// Unix seconds.
    pub created: u64,
    /// Public name of the model.
    pub model: &'a str,
    /// Name of the block.
    pub name: &'a str,
    /// The block, a JSON value.
    pub block: &'a str,
    /// The client asked for usage: it expects that member on every chunk.
    pub wants_usage: bool,
}

/// The last event of an answer that was cut: clients raise it as an API error instead of taking half an answer for a whole one.
pub fn cut_short(surface: Surface, why: &str, code: &str) -> Bytes {
    if let Some(dialect) = Dialect::of(surface) {
        return typed::cut_short(dialect, why, code);
    }
    let body = error_body(why, "server_error", code, None);
    let mut frame = b"data: ".to_vec();
    frame.extend_from_slice(&body);
    frame.extend_from_slice(b"\n\n");
    frame.into()
}
