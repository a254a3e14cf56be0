//! What OpenAI-compatible clients and backends say to each other, read strictly and written exactly.
//!
//! | file | story |
//! |---|---|
//! | [`strict`] | JSON that no two parsers read differently |
//! | [`request`] | a chat request: read, limited, and written anew |
//! | [`prompt`] | its messages and tools: what is asked, what costs, what is counted |
//! | [`sse`] | event streams cut into frames, byte for byte |
//! | [`usage`] | what the backend says it used, and the receipt's place in a stream |
//! | [`error`] | errors in OpenAI's shape, and what may pass of a backend's own |
//! | [`models`] | the list of models with prices |

pub mod meter;
pub mod prompt;
pub mod request;
pub mod sse;
pub mod strict;
pub mod usage;

#[cfg(test)]
mod meter_tests;
#[cfg(test)]
mod request_tests;
