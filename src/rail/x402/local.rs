//! A facilitator in this process (feature `local-facilitator`): the x402-rs crates verify and settle over our own RPC with our own key,
//! which pays the gas. `exact` of both generations and `upto`, on one EVM network.
//!
//! Their answers are read by the same rules as a stranger's. Their words are not repeated beyond the reason's name: what a chain's
//! client says may hold the RPC URL.

mod gas;

use self::gas::Frugal;
use super::facilitator::{Call, Facilitator, Kind, Settlement, Support, Verdict};
use super::remote::answers::{self, Told};
use super::remote::supported::Book;
use super::wire::{Scheme, Version};
use crate::network::{Family, Network};
use crate::secret::Secret;
use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use x402_chain_eip155::chain::config::{Eip155ChainConfig, Eip155ChainConfigInner, RpcConfig};
use x402_chain_eip155::chain::{Eip155ChainProvider, Eip155ChainReference};
use x402_chain_eip155::{V1Eip155Exact, V2Eip155Exact, V2Eip155Upto};
use x402_types::chain::FromConfig as _;
use x402_types::config::LiteralOrEnv;
use x402_types::proto::{AsPaymentProblem as _, PaymentVerificationError, VerifyRequest};
use x402_types::scheme::{
    X402SchemeFacilitator, X402SchemeFacilitatorBuilder as _, X402SchemeFacilitatorError as Fault,
};

/// Most time for one attempt to reach the chain.
const CONNECT: Duration = Duration::from_secs(10);
/// Between two such attempts.
const AGAIN: Duration = Duration::from_secs(30);
/// Most time for a verification.
const VERIFY: Duration = Duration::from_secs(10);
/// How long a transaction's receipt is awaited, and how long the whole settlement may take.
const RECEIPT_SECONDS: u64 = 40;
const SETTLE: Duration = Duration::from_secs(60);

/// Where and as whom to settle.
#[derive(Clone, Debug)]
pub struct Settings {
    /// An EVM network.
    pub network: Network,
    /// The chain's node; an `http` or `https` URL, which may hold a key.
    pub rpc: Secret,
    /// The key that pays the gas: 64 hex digits.
    pub key: Secret,
}

/// One EVM network's facilitator. Share it behind an `Arc`.
pub struct Local {
    network: Network,
    config: Eip155ChainConfig,
    ready: ArcSwapOption<Ready>,
}

/// Says neither key nor URL.
impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Local({})", self.network)
    }
}

/// Once the chain answered and has the contracts that are needed.
struct Ready {
    schemes: Schemes,
    /// The same, but nothing is sent.
    pricing: Schemes,
    book: Book,
}

/// Who is in charge of what.
struct Schemes {
    v1_exact: Box<dyn X402SchemeFacilitator>,
    exact: Box<dyn X402SchemeFacilitator>,
    upto: Box<dyn X402SchemeFacilitator>,
}

impl Local {
    /// Reads the key. Nothing is connected yet. The error is a sentence that repeats neither key nor URL.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let Settings { network, rpc, key } = settings;
        let Family::Evm { chain_id } = network.family else { return Err(format!("{network} is no EVM network")) };
        let key =
            key.expose_str().and_then(|k| k.trim().parse().ok()).ok_or("the facilitator's key is not 64 hex digits")?;
        let bad = "the RPC URL is not an http or https URL";
        let url = rpc.expose_str().map(str::trim).filter(|u| u.starts_with("http://") || u.starts_with("https://"));
        let http = LiteralOrEnv::from_literal(url.and_then(|u| u.parse().ok()).ok_or(bad)?);
        let inner = Eip155ChainConfigInner {
            eip1559: true,
            flashblocks: false,
            signers: vec![LiteralOrEnv::from_literal(key)],
            rpc: vec![RpcConfig { http, rate_limit: None }],
            receipt_timeout_secs: RECEIPT_SECONDS,
        };
        let config = Eip155ChainConfig { chain_reference: Eip155ChainReference::new(chain_id), inner };
        Ok(Self { network, config, ready: ArcSwapOption::empty() })
    }

    async fn connect(&self) -> Option<Ready> {
        // The chain's client answers with an error that may hold the URL.
        let provider = Arc::new(Eip155ChainProvider::from_config(&self.config).await.ok()?);
        let most = gas::most(&self.network);
        let schemes = Schemes::over(&Frugal::sending(&provider, most))?;
        let pricing = Schemes::over(&Frugal::pricing(&provider, most))?;
        let mut said = schemes.exact.supported().await.ok()?;
        for more in [schemes.v1_exact.supported().await.ok()?, schemes.upto.supported().await.ok()?] {
            said.kinds.extend(more.kinds);
            said.signers.extend(more.signers);
        }
        let book = Book::read(&serde_json::to_vec(&said).ok()?, None)?;
        Some(Ready { schemes, pricing, book })
    }

    /// Whoever is in charge of a call, and what to hand them.
    fn pick(ready: &Ready, call: &Call<'_>) -> Option<(VerifyRequest, Scheme)> {
        // Such a signature brings a call to a factory of the client's choice, for which this key would pay the gas (ERC-6492).
        let said: serde_json::Value = serde_json::from_str(call.payload.get()).ok()?;
        if said["payload"]["signature"].as_str().is_some_and(|signature| signature.ends_with(OF_NO_ACCOUNT_YET)) {
            return None;
        }
        let raw = serde_json::value::to_raw_value(call).ok()?;
        let request = VerifyRequest::from(raw);
        let slug = request.scheme_handler_slug()?;
        let scheme = match slug.name.as_str() {
            "exact" => Scheme::Exact,
            "upto" => Scheme::Upto,
            _ => return None,
        };
        let kind = Kind { version: call.version, scheme, network: call.expects.network.clone() };
        ready.book.support(&kind).ok().map(|_| (request, scheme))
    }
}

impl Schemes {
    fn over(chain: &Arc<Frugal>) -> Option<Self> {
        let sponsors = || Some(json!({"eip2612_gas_sponsoring": true}));
        Some(Self {
            v1_exact: V1Eip155Exact.build(Arc::clone(chain), None).ok()?,
            exact: V2Eip155Exact.build(Arc::clone(chain), sponsors()).ok()?,
            upto: V2Eip155Upto.build(Arc::clone(chain), sponsors()).ok()?,
        })
    }

    fn of(&self, version: Version, scheme: Scheme) -> &dyn X402SchemeFacilitator {
        match (version, scheme) {
            (Version::V1, _) => &*self.v1_exact,
            (Version::V2, Scheme::Exact) => &*self.exact,
            (Version::V2, Scheme::Upto) => &*self.upto,
        }
    }
}

/// The published name of a refusal.
fn reason(error: &PaymentVerificationError) -> String {
    if gas::is_too_dear(error) {
        return gas::TOO_DEAR.to_owned();
    }
    let name = serde_json::to_value(error.as_payment_problem().reason()).ok();
    answers::word(name.as_ref().and_then(|n| n.as_str()))
}

/// Whether a refusal to settle can never be this very payment's own effect, had an earlier call handed it in.
fn is_definite(error: &PaymentVerificationError) -> bool {
    use PaymentVerificationError as Refused;
    !matches!(
        error,
        Refused::TransactionSimulation(_)
            | Refused::InsufficientFunds
            | Refused::InsufficientAllowance
            | Refused::Expired
    )
}

/// Ends a signature of an account that is not deployed yet (ERC-6492), as hex.
const OF_NO_ACCOUNT_YET: &str = "6492649264926492649264926492649264926492649264926492649264926492";

const NOT_READY: &str = "the chain has not been reached yet, or lacks the contracts that x402 needs";

#[async_trait]
impl Facilitator for Local {
    fn support(&self, kind: &Kind) -> Result<Support, String> {
        self.ready.load().as_deref().ok_or_else(|| NOT_READY.to_owned())?.book.support(kind)
    }

    async fn verify(&self, call: &Call<'_>) -> Verdict {
        let unknown = |why: &str| Verdict::Unknown { why: why.to_owned() };
        let Some(ready) = self.ready.load_full() else { return unknown(NOT_READY) };
        let Some((request, scheme)) = Self::pick(&ready, call) else {
            return Verdict::Invalid { reason: "unsupported_scheme".into() };
        };
        let looking = ready.schemes.of(call.version, scheme).verify(&request);
        let pricing = ready.pricing.of(call.version, scheme).settle(&request);
        let Ok((looked, priced)) = timeout(VERIFY, futures::future::join(looking, pricing)).await else {
            return unknown("it took too long");
        };
        match (looked, priced) {
            (Ok(said), Err(fault)) if gas::is_priced(&fault) => {
                let read = answers::verified(200, said.0.to_string().as_bytes(), &call.expects);
                read.unwrap_or_else(|why| Verdict::Unknown { why })
            }
            (Err(Fault::PaymentVerification(error)), _) | (_, Err(Fault::PaymentVerification(error))) => {
                Verdict::Invalid { reason: reason(&error) }
            }
            (Err(Fault::OnchainFailure(_)), _) => unknown("the chain could not be asked"),
            (Ok(_), _) => unknown("what it takes to hand it in could not be learned"),
        }
    }

    async fn settle(&self, call: &Call<'_>) -> Settlement {
        let unknown = |why: &str| Settlement::Unknown { why: why.to_owned() };
        let Some(ready) = self.ready.load_full() else { return unknown(NOT_READY) };
        let Some((request, scheme)) = Self::pick(&ready, call) else {
            return Settlement::Failed { reason: "unsupported_scheme".into() };
        };
        // In a task of its own: whoever stops waiting must not stop a nonce's transaction half way.
        let version = call.version;
        let settling = tokio::spawn(async move { ready.schemes.of(version, scheme).settle(&request).await });
        match timeout(SETTLE, settling).await {
            Ok(Ok(Ok(said))) => match answers::settled(200, said.0.to_string().as_bytes(), &call.expects) {
                Ok(Told::Settled { transaction, payer }) => Settlement::Settled { transaction, payer },
                // It has errors for refusals: one that comes as an answer is a transaction that moved nothing, or is about to.
                Ok(Told::Failed { reason }) => Settlement::Unknown { why: reason },
                Ok(Told::Open { why }) | Err(why) => Settlement::Unknown { why },
                Ok(Told::Pending) => unknown("it is handed in and not confirmed yet"),
            },
            Ok(Ok(Err(Fault::PaymentVerification(error)))) if is_definite(&error) => {
                Settlement::Failed { reason: reason(&error) }
            }
            Ok(Ok(Err(Fault::PaymentVerification(error)))) => Settlement::Unknown { why: reason(&error) },
            Ok(Ok(Err(Fault::OnchainFailure(_)))) => {
                unknown("the chain could not be asked, or did not confirm it in time")
            }
            Ok(Err(_)) | Err(_) => unknown("it took too long"),
        }
    }

    async fn watch(&self) {
        while self.ready.load().is_none() {
            tokio::time::sleep(AGAIN).await;
            self.probe().await;
        }
        // What it supports is decided by its code and its key from here on.
        std::future::pending().await
    }

    async fn probe(&self) {
        if self.ready.load().is_some() {
            return;
        }
        match timeout(CONNECT, self.connect()).await {
            Ok(Some(ready)) => self.ready.store(Some(Arc::new(ready))),
            Ok(None) | Err(_) => tracing::warn!(network = %self.network, "{NOT_READY}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    const KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";

    fn settings(network: &str, rpc: &str, key: &str) -> Settings {
        Settings { network: Network::parse(network).unwrap(), rpc: Secret::new(rpc), key: Secret::new(key) }
    }

    #[test]
    fn what_cannot_be_used_is_named_without_being_repeated() {
        for (network, rpc, key, why) in [
            ("solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1", "http://h.example", KEY, "no EVM network"),
            ("eip155:84532", "ftp://canary.example", KEY, "another scheme"),
            ("eip155:84532", "canary", KEY, "no URL"),
            ("eip155:84532", "$CANARY", KEY, "a name of something in the environment"),
            ("eip155:84532", "http://h.example", "canary", "no key"),
        ] {
            let error = Local::new(settings(network, rpc, key)).unwrap_err();
            assert!(!error.to_lowercase().contains("canary"), "{why}: {error}");
        }
        let local = Local::new(settings("eip155:84532", "http://canary.example", KEY)).unwrap();
        assert!(!format!("{local:?}").contains("canary"));
    }

    #[tokio::test]
    async fn nothing_is_supported_while_the_chain_is_out_of_reach() {
        let local = Local::new(settings("eip155:84532", "http://127.0.0.1:1", KEY)).unwrap();
        local.probe().await;
        let network = Network::parse("eip155:84532").unwrap();
        assert!(local.support(&Kind { version: Version::V2, scheme: Scheme::Exact, network }).is_err());
    }

    #[test]
    fn a_refusal_that_the_payment_itself_may_have_caused_is_not_definite() {
        use PaymentVerificationError as Refused;
        for (error, want, why) in [
            (Refused::RecipientMismatch, true, "another payee"),
            (Refused::InvalidSignature("x".into()), true, "not signed"),
            (Refused::TransactionSimulation("x".into()), false, "its nonce may be used by itself"),
            (Refused::InsufficientFunds, false, "it may have taken the funds"),
            (Refused::Expired, false, "it may have been used before its end"),
        ] {
            assert_eq!(is_definite(&error), want, "{why}");
        }
        assert_eq!(reason(&Refused::InsufficientAllowance), "permit2_allowance_required");
    }
}
