//! What the operator writes in `lua-free-rules/`, checked whole and turned into one [`Plan`].

pub mod plan;

pub use plan::Plan;
