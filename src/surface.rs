//! The surfaces a route can speak. Plain facts: how each is read and written is `openai/surface/`, how its replies are metered
//! `openai/reply.rs`.

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Surface {
    /// Chat completions.
    Chat,
    /// Legacy completions: a text that is continued.
    Completions,
    /// OpenAI's responses.
    Responses,
    /// Texts as vectors.
    Embeddings,
    /// Anthropic's messages.
    Messages,
    /// Pictures made from a text.
    Images,
    /// Sound made from a text.
    Speech,
    /// Text made from sound.
    Transcriptions,
    /// The list of models (free, GET).
    Models,
}

/// How a surface gives its whole reply, where it does not stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whole {
    /// A JSON object.
    Json,
    /// JSON or text, as the request said.
    Text,
    /// Sound.
    Sound,
}

impl Surface {
    /// Every surface, in the order of the documentation.
    pub const ALL: [Self; 9] = [
        Self::Chat,
        Self::Completions,
        Self::Responses,
        Self::Embeddings,
        Self::Messages,
        Self::Images,
        Self::Speech,
        Self::Transcriptions,
        Self::Models,
    ];

    /// Its name in `routes.toml`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Responses => "responses",
            Self::Embeddings => "embeddings",
            Self::Messages => "messages",
            Self::Images => "images",
            Self::Speech => "speech",
            Self::Transcriptions => "transcriptions",
            Self::Models => "models",
        }
    }

    /// What it sells, for documents that people read.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Chat => "Chat completions",
            Self::Completions => "Completions",
            Self::Responses => "Responses",
            Self::Embeddings => "Embeddings",
            Self::Messages => "Messages",
            Self::Images => "Images",
            Self::Speech => "Speech",
            Self::Transcriptions => "Transcriptions",
            Self::Models => "Models",
        }
    }

    /// Where a backend has it, below its server's prefix.
    pub const fn upstream_path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Responses => "/v1/responses",
            Self::Embeddings => "/v1/embeddings",
            Self::Messages => "/v1/messages",
            Self::Images => "/v1/images/generations",
            Self::Speech => "/v1/audio/speech",
            Self::Transcriptions => "/v1/audio/transcriptions",
            Self::Models => "/v1/models",
        }
    }

    /// The value of `Allow`.
    pub const fn methods(self) -> &'static str {
        match self {
            Self::Models => "GET, HEAD",
            _ => "POST, HEAD",
        }
    }

    /// Its replies can come as events.
    pub const fn can_stream(self) -> bool {
        matches!(self, Self::Chat | Self::Completions | Self::Responses | Self::Messages)
    }

    /// Its replies have tokens of output, which a request can limit.
    pub const fn has_output(self) -> bool {
        self.can_stream()
    }

    /// Some backends say in every event of a stream what was used until then: only chat's and its elder's have a place for it.
    pub const fn can_count_itself(self) -> bool {
        matches!(self, Self::Chat | Self::Completions)
    }

    /// Its backends put a chat template around what is asked.
    pub const fn has_template(self) -> bool {
        matches!(self, Self::Chat | Self::Responses | Self::Messages)
    }

    /// A request costs the tier's flat price and nothing else will do: what its backends report is not in tokens, or they
    /// report nothing.
    pub const fn is_flat(self) -> bool {
        matches!(self, Self::Images | Self::Speech | Self::Transcriptions)
    }

    /// What its requests hold: a form of several parts where a file is sent, else JSON.
    pub const fn takes_form(self) -> bool {
        matches!(self, Self::Transcriptions)
    }

    /// The field of a request that holds what it asks about.
    pub const fn prompt_field(self) -> &'static str {
        match self {
            Self::Chat | Self::Messages => "messages",
            Self::Responses | Self::Embeddings | Self::Speech => "input",
            Self::Completions | Self::Images => "prompt",
            Self::Transcriptions => "file",
            // It asks for nothing.
            Self::Models => "",
        }
    }

    /// The field of a request that limits its output, where there is one.
    pub const fn output_field(self) -> &'static str {
        match self {
            Self::Responses => "max_output_tokens",
            _ => "max_tokens",
        }
    }

    /// What a flat price buys one of.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Images => "picture",
            _ => "request",
        }
    }

    /// How a reply comes that does not stream.
    pub const fn whole(self) -> Whole {
        match self {
            Self::Speech => Whole::Sound,
            Self::Transcriptions => Whole::Text,
            _ => Whole::Json,
        }
    }
}
