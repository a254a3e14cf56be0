//! MPP: `WWW-Authenticate: Payment` (draft-httpauth-payment-00 as the published clients speak it).

pub mod wire;
