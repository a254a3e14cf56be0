//! Pontage: the toll paid to cross a bridge.
//!
//! A reverse proxy in front of OpenAI-compatible backends where software agents pay per call. An unpaid request gets
//! `402 Payment Required` with every way to pay; a paid one is verified, forwarded, metered by what the backend itself
//! reports, and answered with a receipt.
//!
//! The house has floors; a file may use its own folder and the floors below it (`tests/floors.rs` keeps that true):
//!
//! | floor | holds |
//! |---|---|
//! | 7 | [`cli`] |
//! | 6 | [`assemble`]: the only place that knows every concrete kind |
//! | 5 | [`edge`]: the only folder that knows Pingora's proxy |
//! | 4 | [`flow`]: a request's life, in order |
//! | 3 | [`rail`]: ways to pay |
//! | 2 | [`store`], [`chain`], [`upstream`] |
//! | 1 | [`rules`], [`openai`], [`journal`], [`tokens`], [`conf`] |
//! | 0 | [`money`], [`channel`], [`claim`], [`limits`], [`ids`], [`refusal`], [`metrics`], [`clock`], [`secret`], [`catalogue`], [`usage`], [`surface`]: pure |
//! | 0 | [`network`], [`picture`]: what is known of chains and of pictures |
//! | 0 | [`origin`], [`written`]: reading what an operator wrote |

pub mod assemble;
pub mod catalogue;
pub mod chain;
pub mod channel;
pub mod claim;
pub mod cli;
pub mod clock;
pub mod conf;
pub mod edge;
pub mod flow;
pub mod ids;
pub mod journal;
pub mod limits;
pub mod metrics;
pub mod money;
pub mod network;
pub mod openai;
pub mod origin;
pub mod picture;
pub mod rail;
pub mod refusal;
pub mod rules;
pub mod secret;
pub mod store;
pub mod surface;
pub mod tokens;
pub mod upstream;
pub mod usage;
pub mod written;
