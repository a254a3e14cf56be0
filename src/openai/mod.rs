//! What OpenAI-compatible clients and backends say to each other, read strictly and written exactly.
//!
//! | file | story |
//! |---|---|
//! | [`strict`] | JSON that no two parsers read differently |
//! | [`request`] | a request: read, limited, and written anew |
//! | `surface` | what each surface lets it say, and what of it decides the bill |
//! | [`prompt`] | its messages and tools: what is asked, what costs, what is counted |
//! | [`multipart`] | forms with files, as every reader reads them |
//! | [`sse`] | event streams cut into frames, byte for byte |
//! | [`meter`] | a stream on its way through: counted, unchanged, the receipt's place kept |
//! | `delta` | where its text stands, found without parsing |
//! | `mould` | frames that differ in their text alone, of which nothing else is looked at |
//! | [`cover`] | how much of it must be covered, and what waits for that |
//! | [`typed`] | the same for Responses and Messages, whose events carry their type |
//! | [`usage`] | what the backend says it used |
//! | [`reply`] | how replies of each surface say it, and what of ours stands in them |
//! | [`receipt`] | how a receipt is written into a reply |
//! | [`error`] | errors in OpenAI's shape, and what may pass of a backend's own |
//! | [`models`] | the list of models with prices |

pub mod cover;
mod delta;
pub mod error;
pub mod meter;
pub mod models;
mod mould;
pub mod multipart;
pub mod prompt;
pub mod receipt;
pub mod reply;
pub mod request;
pub mod sse;
pub mod strict;
mod surface;
pub mod typed;
pub mod usage;

#[cfg(test)]
mod cover_tests;
#[cfg(test)]
mod meter_tests;
#[cfg(test)]
mod request_tests;
#[cfg(test)]
mod strict_tests;
#[cfg(test)]
mod typed_tests;
