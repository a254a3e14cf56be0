//! Where bytes come in and go out: the only folder that knows Pingora's proxy. Each phase is a few lines that call `flow/`.

pub mod admin;
pub mod body;
pub mod door;
pub mod flood;
pub mod forward;
pub mod gate;
pub mod outlet;
pub mod pipe;
pub mod reply;
pub mod scrub;
pub mod visit;
