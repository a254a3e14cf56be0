//! What a tier allows one request, and how a backend spells it. Plain data that floors above pass down.

use crate::money::Usd;

/// What happens to an ask that exceeds a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverLimit {
    /// The limit is written into the request instead.
    #[default]
    Clamp,
    /// 400 that names the limit.
    Refuse,
}

/// What happens to a request field that is not on the surface's allow-list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownFields {
    /// 400 that names the field.
    #[default]
    Refuse,
    /// The field does not leave the gate.
    Strip,
}

/// Whether a route streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamRule {
    /// As the body says.
    #[default]
    Allow,
    /// Always, whatever the body says.
    Force,
    /// `stream: true` is refused.
    Refuse,
}

/// Which pictures a flat price is for: vendors charge by size and quality, and a price need not cover what is not sold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drawn {
    /// Values of `size`; the first is asked for when the client says none. Empty: any.
    pub sizes: Vec<String>,
    /// Values of `quality`, likewise.
    pub qualities: Vec<String>,
}

/// What one picture in a prompt may cost.
///
/// Backends count pictures among the tokens of the prompt that they report, so that this is a bound: it stands in every price for a picture
/// whose tokens nobody knows beforehand, and what is charged by usage is the backend's figure alone. Where a backend bills pictures
/// beside its tokens, they are `apart`: each is charged, whatever is reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PicturePrice {
    /// Of one picture.
    pub flat: Usd,
    /// It is charged on top of what the backend reports.
    pub apart: bool,
}

impl PicturePrice {
    /// What `all` pictures cost, of which so many are counted as tokens by their size. `None` past the largest amount.
    pub fn of(&self, all: u64, sized: u64) -> Option<Usd> {
        let priced = if self.apart { all } else { all.saturating_sub(sized) };
        self.flat.0.checked_mul(u128::from(priced)).map(Usd)
    }
}

/// The limits of one tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest request body read, in bytes; above it 413.
    pub max_body_bytes: usize,
    /// Most output tokens of one choice.
    pub max_output_tokens: u64,
    /// Most prompt tokens, counted exactly where the vocabulary is known, else bytes. `None`: only the body limit.
    pub max_input_tokens: Option<u64>,
    /// Most choices (`n`).
    pub max_n: u64,
    /// What happens above `max_output_tokens` (above the others: always refused).
    pub over_limit: OverLimit,
    /// What happens to fields outside the surface's allow-list.
    pub unknown_fields: UnknownFields,
    /// What a picture in the prompt may cost; `None`: pictures are refused.
    pub image_url: Option<PicturePrice>,
    /// Which pictures may be asked for, where pictures are sold.
    pub drawn: Drawn,
}

/// How a backend profile spells the limit on output tokens. Exactly one field is ever written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// `max_tokens` (vLLM, SGLang, llama.cpp, Ollama).
    MaxTokens,
    /// `max_completion_tokens` (OpenAI).
    MaxCompletionTokens,
}

/// How much to reserve for a body of `bytes` that is let go when its backend answers. Pingora keeps two buffers of 64 KB for as long as a
/// stream lasts and fills little of them: a body of about that size asks for more than it needs, so that the memory it leaves behind,
/// all of it written to, is not what they are made of.
pub fn room_for_body(bytes: usize) -> usize {
    const THEIRS: usize = 64 * 1024;
    if bytes > THEIRS / 2 { bytes.max(THEIRS + THEIRS / 8) } else { bytes }
}
