//! Where bytes come in and go out: the only folder that knows Pingora's proxy.

pub mod body;
pub mod forward;
pub mod scrub;
