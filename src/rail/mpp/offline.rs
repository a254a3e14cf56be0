//! A provider that knows which chain it is on and reaches nothing: every other call ends in an error at once. Under it, the
//! crate's checks cannot cause I/O, whatever a credential holds.

use alloy::primitives::U64;
use alloy::providers::{Provider, ProviderCall, RootProvider};
use alloy::rpc::client::{NoParams, RpcClient};
use tempo_alloy::TempoNetwork;

/// See the module.
#[derive(Clone)]
pub(super) struct Offline {
    chain_id: u64,
    root: RootProvider<TempoNetwork>,
}

impl Offline {
    pub fn new(chain_id: u64) -> Self {
        // A mocked transport with nothing in its queue.
        Self { chain_id, root: RootProvider::new(RpcClient::mocked(alloy::providers::mock::Asserter::new())) }
    }
}

impl Provider<TempoNetwork> for Offline {
    fn root(&self) -> &RootProvider<TempoNetwork> {
        &self.root
    }

    fn get_chain_id(&self) -> ProviderCall<NoParams, U64, u64> {
        ProviderCall::ready(Ok(self.chain_id))
    }
}
