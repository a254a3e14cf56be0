//! The OpenAI surfaces a route can speak. Plain names: how each is read and metered is `openai/`.

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Surface {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/models` (free, GET).
    Models,
}
