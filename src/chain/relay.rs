//! A service that carries fees: it is handed what a payer signed, adds its fee token and its signature, and hands back the
//! transaction (`eth_signRawTransaction`, as the published clients and servers ask it). It sends nothing.

use super::Unreachable;
use super::rpc::{Fault, Rpc};
use crate::secret::Secret;
use alloy::primitives::Bytes;
use async_trait::async_trait;

/// Whoever adds the signature that pays a fee.
#[async_trait]
pub trait Relay: Send + Sync {
    /// The complete transaction of an envelope. `Ok(None)`: it will not carry this one.
    async fn sign(&self, envelope: &[u8]) -> Result<Option<Vec<u8>>, Unreachable>;
}

/// One such service over JSON-RPC.
pub struct HttpRelay(Rpc);

impl HttpRelay {
    /// Prepares a client for the service at `url`. Nothing is connected yet. The error is a sentence that does not repeat the URL.
    pub fn new(url: &Secret) -> Result<Self, &'static str> {
        Rpc::briefly(url).map(Self)
    }
}

#[async_trait]
impl Relay for HttpRelay {
    async fn sign(&self, envelope: &[u8]) -> Result<Option<Vec<u8>>, Unreachable> {
        match self.0.ask::<_, Bytes>("eth_signRawTransaction", (alloy::hex::encode_prefixed(envelope),)).await {
            Ok(raw) => Ok(Some(raw.to_vec())),
            Err(Fault::Refused { .. }) => Ok(None),
            Err(Fault::Nonsense) => Err(Unreachable { why: "the relay answered with nonsense" }),
            Err(Fault::Status(401 | 403)) => {
                Err(Unreachable { why: "the relay does not take our key (HTTP 401 or 403)" })
            }
            Err(Fault::Status(_)) => Err(Unreachable { why: "the relay answered with an HTTP error" }),
            Err(Fault::Lost) => Err(Unreachable { why: "the relay cannot be reached" }),
        }
    }
}
