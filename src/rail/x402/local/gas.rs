//! What our key pays at most for one payment.
//!
//! An account with code has its own say in whether its signature is good, and whoever hands the payment in pays for that: without a limit
//! a payer could have the facilitator's key emptied at no cost of his own. So every transaction is priced in gas by the node before it is
//! signed, and one above [`MOST`] is never sent; a payment is priced so when it is verified, too, so that nobody is served for one that
//! would not be taken. A contract whose cost depends on the block can still cost more in the one after; it cannot know when it is priced.

use crate::network::{Family, Network};
use alloy::eips::BlockId;
use alloy::primitives::TxKind;
use alloy::providers::Provider as _;
use alloy::rpc::types::{TransactionReceipt, TransactionRequest};
use std::sync::Arc;
use x402_chain_eip155::chain::{
    Eip155ChainProvider, Eip155ChainReference, Eip155MetaTransactionProvider, Eip155SignerAddresses, MetaTransaction,
    MetaTransactionSendError,
};
use x402_chain_eip155::v1_eip155_exact::Eip155ExactError;
use x402_types::chain::{ChainId, ChainProviderOps};
use x402_types::proto::PaymentVerificationError;
use x402_types::scheme::X402SchemeFacilitatorError as Fault;

/// Gas for one payment. A plain one takes 60,000 to 100,000, one by Permit2 with its approval under 200,000.
const MOST: u64 = 300_000;
/// The same on Arbitrum and Abstract, where posting to Ethereum is counted in gas and goes up and down with the fees there.
const MOST_WITH_POSTING: u64 = 1_500_000;
const COUNT_POSTING: [u64; 4] = [42_161, 421_614, 2_741, 11_124];
/// What is said of a payment above that.
pub(super) const TOO_DEAR: &str = "its signature takes too much gas to check";
/// How a payment ends that was only priced.
const PRICED: &str = "priced, and not sent";

/// The most gas for one payment on this network.
pub(super) fn most(network: &Network) -> u64 {
    match network.family {
        Family::Evm { chain_id } if COUNT_POSTING.contains(&chain_id) => MOST_WITH_POSTING,
        _ => MOST,
    }
}

/// A way to the chain that sends nothing dear, or nothing at all.
pub(super) struct Frugal {
    provider: Arc<Eip155ChainProvider>,
    most: u64,
    sends: bool,
}

impl Frugal {
    pub(super) fn sending(provider: &Arc<Eip155ChainProvider>, most: u64) -> Arc<Self> {
        Arc::new(Self { provider: Arc::clone(provider), most, sends: true })
    }

    pub(super) fn pricing(provider: &Arc<Eip155ChainProvider>, most: u64) -> Arc<Self> {
        Arc::new(Self { provider: Arc::clone(provider), most, sends: false })
    }
}

/// Why nothing was sent.
pub(super) enum Unsent {
    TooDear,
    Priced,
    Failed(MetaTransactionSendError),
}

impl From<Unsent> for Eip155ExactError {
    fn from(unsent: Unsent) -> Self {
        match unsent {
            Unsent::TooDear => PaymentVerificationError::InvalidSignature(TOO_DEAR.to_owned()).into(),
            Unsent::Priced => Self::ContractCall(PRICED.to_owned()),
            Unsent::Failed(error) => error.into(),
        }
    }
}

/// Whether a settlement that was only to be priced came as far as that.
pub(super) fn is_priced(fault: &Fault) -> bool {
    matches!(fault, Fault::OnchainFailure(why) if why.ends_with(PRICED))
}

/// Whether this is why: the payment is good, and too dear to take.
pub(super) fn is_too_dear(error: &PaymentVerificationError) -> bool {
    matches!(error, PaymentVerificationError::InvalidSignature(why) if why == TOO_DEAR)
}

impl Eip155MetaTransactionProvider for Frugal {
    type Error = Unsent;
    type Inner = <Eip155ChainProvider as Eip155MetaTransactionProvider>::Inner;

    fn inner(&self) -> &Self::Inner {
        self.provider.inner()
    }

    fn chain(&self) -> &Eip155ChainReference {
        self.provider.chain()
    }

    async fn send_transaction(&self, tx: MetaTransaction) -> Result<TransactionReceipt, Unsent> {
        let from = tx.from.or_else(|| Eip155SignerAddresses::signer_addresses(self).first().copied());
        let (to, input) = (Some(TxKind::Call(tx.to)), tx.calldata.clone().into());
        let request = TransactionRequest { from, to, input, ..TransactionRequest::default() };
        let gas = self.inner().estimate_gas(request).block(BlockId::pending()).await;
        match gas {
            Err(error) => Err(Unsent::Failed(error.into())),
            Ok(gas) if gas > self.most => {
                tracing::warn!(gas, most = self.most, "a payment takes more gas than it may");
                Err(Unsent::TooDear)
            }
            Ok(_) if !self.sends => Err(Unsent::Priced),
            Ok(_) => self.provider.send_transaction(tx).await.map_err(Unsent::Failed),
        }
    }
}

impl ChainProviderOps for Frugal {
    fn signer_addresses(&self) -> Vec<String> {
        ChainProviderOps::signer_addresses(&*self.provider)
    }

    fn chain_id(&self) -> ChainId {
        self.provider.chain_id()
    }
}

impl Eip155SignerAddresses for Frugal {
    fn signer_addresses(&self) -> Vec<alloy::primitives::Address> {
        Eip155SignerAddresses::signer_addresses(&*self.provider)
    }
}
