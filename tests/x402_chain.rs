//! A published facilitator and a chain, asked by ours: what is said of a payment and what the chain shows agree, whoever carried
//! the payment there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use alloy::primitives::{Address, B256, U256, address};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{Eip712Domain, SolStruct};
use common::{EvmBed, Facilitator as Service};
use pontage::clock::UnixSeconds;
use pontage::money::Atoms;
use pontage::network::Network;
use pontage::rail::x402::evidence::{Evidence, Movement, Trace};
use pontage::rail::x402::evm_evidence::{EvmEvidence, Look};
use pontage::rail::x402::facilitator::{Call, Expects, Facilitator, Kind, Settlement, Verdict};
use pontage::rail::x402::remote::{Auth, Remote, Settings, Times};
use pontage::rail::x402::shown;
use pontage::rail::x402::signed::Signed;
use pontage::rail::x402::wire::{Scheme, Version};
use pontage::secret::Secret;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

const PRICE: u128 = 2_000;
const PERMIT2: Address = address!("000000000022D473030F116dDEE9F6B43aC78BA3");
const EXACT_PROXY: Address = address!("402085c248EeA27D92E8b30b2C58ed07f9E20001");
const UPTO_PROXY: Address = address!("4020A4f3b7b90ccA423B9fabCc0CE57C6C240002");

fn network(bed: &EvmBed) -> Network {
    Network::parse(&bed.network()).unwrap()
}

fn remote(url: String) -> Remote {
    let (auth, times) = (Auth::None, Times::default());
    Remote::new(Settings { url: Secret::new(url), auth, minimal: false, times }).unwrap()
}

fn evidence(bed: &EvmBed) -> EvmEvidence {
    EvmEvidence::new(&Secret::new(bed.url()), &network(bed), Look::default()).unwrap()
}

fn signed(payment: &Value) -> Signed {
    shown::again(&to_raw_value(payment).unwrap()).expect("a payment that we understand")
}

fn nonce(payment: &Value) -> B256 {
    payment["payload"]["authorization"]["nonce"].as_str().unwrap().parse().unwrap()
}

/// A payment and what it is for, as both are handed to a facilitator.
struct Handed {
    network: Network,
    payer: String,
    payload: Box<RawValue>,
    requirements: Box<RawValue>,
    amount: u128,
}

impl Handed {
    fn new(bed: &EvmBed, payer: &PrivateKeySigner, payment: &Value, requirements: &Value) -> Self {
        Self {
            network: network(bed),
            payer: payer.address().to_string(),
            payload: to_raw_value(payment).unwrap(),
            requirements: to_raw_value(requirements).unwrap(),
            amount: requirements["amount"].as_str().unwrap().parse().unwrap(),
        }
    }

    fn call(&self) -> Call<'_> {
        let expects = Expects { network: &self.network, payer: Some(&self.payer), amount: Atoms(self.amount) };
        Call { version: Version::V2, payload: &self.payload, requirements: &self.requirements, expects, again: false }
    }
}

#[tokio::test]
async fn what_became_of_an_authorization_is_seen_whoever_did_it() {
    let bed = EvmBed::start().await;
    let evidence = evidence(&bed);
    let movement = Movement { token: bed.usdc, to: bed.payee(), amount: Atoms(PRICE), since: UnixSeconds(0) };
    let asked = bed.requirements(PRICE);
    let buyer = bed.buyer(10 * PRICE).await;
    let pay = || bed.authorize(&buyer, &asked, |_| ());

    let unused = pay();
    assert_eq!(evidence.trace(&signed(&unused), &movement).await, Trace::Unused, "nobody has used it");

    let carried = pay();
    let tx = bed.front_run(&carried).await;
    let moved = Trace::Moved { transaction: tx.clone() };
    assert_eq!(evidence.trace(&signed(&carried), &movement).await, moved, "a stranger carried it");
    assert_eq!(evidence.shows(&tx, &signed(&carried), &movement).await, moved);
    assert_eq!(
        evidence.shows(&tx, &signed(&unused), &movement).await,
        Trace::Gone,
        "one transfer pays for one payment"
    );
    let dearer = Movement { amount: Atoms(PRICE + 1), ..movement };
    assert_eq!(evidence.trace(&signed(&carried), &dearer).await, Trace::Gone, "it was not that much");
    let absent = format!("{:#x}", B256::repeat_byte(0x77));
    assert_eq!(evidence.shows(&absent, &signed(&carried), &movement).await, Trace::Unknown, "no such transaction");

    let cancelled = pay();
    bed.cancel_authorization(&buyer, nonce(&cancelled)).await;
    assert_eq!(evidence.trace(&signed(&cancelled), &movement).await, Trace::Gone, "its payer cancelled it");

    bed.travel(400).await;
    assert_eq!(evidence.trace(&signed(&unused), &movement).await, Trace::Gone, "its time is over");
    assert_eq!(evidence.trace(&signed(&carried), &movement).await, moved, "what moved stays moved");

    let deeper = EvmEvidence::new(&Secret::new(bed.url()), &network(&bed), Look { depth: 10_000, ..Look::default() });
    assert_eq!(deeper.unwrap().shows(&tx, &signed(&carried), &movement).await, Trace::Unknown, "not deep enough");
    let elsewhere = EvmEvidence::new(&Secret::new(bed.url()), &Network::parse("eip155:8453").unwrap(), Look::default());
    assert_eq!(elsewhere.unwrap().trace(&signed(&carried), &movement).await, Trace::Unknown, "a node of another chain");
}

/// One payment over EIP-3009 through a facilitator, and everything that is said of it.
async fn pays_once(bed: &EvmBed, facilitator: &dyn Facilitator) {
    let kind = |version, scheme| Kind { version, scheme, network: network(bed) };
    assert!(facilitator.support(&kind(Version::V2, Scheme::Exact)).is_err(), "nothing was asked yet");
    facilitator.probe().await;
    for (version, scheme) in [(Version::V2, Scheme::Exact), (Version::V1, Scheme::Exact), (Version::V2, Scheme::Upto)] {
        let support = facilitator.support(&kind(version, scheme)).unwrap();
        assert_eq!(support.signers.len(), 1, "{version:?} {scheme:?}");
    }
    let upto = facilitator.support(&kind(Version::V2, Scheme::Upto)).unwrap();
    assert!(upto.facilitator_address.is_some_and(|a| a.eq_ignore_ascii_case(bed.facilitator())));
    assert!(upto.sponsors_approval);

    let (evidence, asked) = (evidence(bed), bed.requirements(PRICE));
    let movement = Movement { token: bed.usdc, to: bed.payee(), amount: Atoms(PRICE), since: UnixSeconds(0) };
    let buyer = bed.buyer(3 * PRICE).await;
    let payment = bed.authorize(&buyer, &asked, |_| ());
    let handed = Handed::new(bed, &buyer, &payment, &asked);
    let verdict = facilitator.verify(&handed.call()).await;
    assert!(matches!(verdict, Verdict::Valid { payer: Some(_) }), "{verdict:?}");
    let settled = facilitator.settle(&handed.call()).await;
    let Settlement::Settled { transaction, .. } = settled else { panic!("{settled:?}") };
    let moved = Trace::Moved { transaction: transaction.clone() };
    assert_eq!(evidence.shows(&transaction, &signed(&payment), &movement).await, moved);
    assert_eq!(evidence.trace(&signed(&payment), &movement).await, moved);
    assert_eq!(bed.usdc(bed.payee()).await, PRICE);

    let again = facilitator.settle(&handed.call()).await;
    assert!(matches!(again, Settlement::Unknown { .. }), "it moved, so nobody may say it never will: {again:?}");
    assert_eq!(bed.usdc(bed.payee()).await, PRICE, "once");

    let stranger = bed.buyer(PRICE).await;
    let mut forged = bed.authorize(&stranger, &asked, |_| ());
    forged["payload"]["authorization"]["from"] = json!(buyer.address());
    let verdict = facilitator.verify(&Handed::new(bed, &buyer, &forged, &asked).call()).await;
    // (x402-rs reports the token's own refusal as trouble with the chain, which is no verdict; none is not a payment either.)
    assert!(!matches!(verdict, Verdict::Valid { .. }), "{verdict:?}");
}

#[tokio::test]
async fn the_published_facilitator_settles_and_the_chain_shows_it() {
    let bed = EvmBed::start().await;
    let service = Service::ts(&bed).await;
    pays_once(&bed, &remote(service.url())).await;
}

mod exact {
    alloy::sol! {
        struct TokenPermissions { address token; uint256 amount; }
        struct Witness { address to; uint256 validAfter; }
        struct PermitWitnessTransferFrom { TokenPermissions permitted; address spender; uint256 nonce; uint256 deadline; Witness witness; }
    }
}

mod upto {
    alloy::sol! {
        struct TokenPermissions { address token; uint256 amount; }
        struct Witness { address to; address facilitator; uint256 validAfter; }
        struct PermitWitnessTransferFrom { TokenPermissions permitted; address spender; uint256 nonce; uint256 deadline; Witness witness; }
    }
}

/// A Permit2 payment and the requirements it answers.
fn permit(bed: &EvmBed, buyer: &PrivateKeySigner, scheme: Scheme) -> (Value, Value) {
    let (token, to): (Address, Address) = (bed.usdc.parse().unwrap(), bed.payee().parse().unwrap());
    let facilitator: Address = bed.facilitator().parse().unwrap();
    let (amount, nonce) = (U256::from(PRICE), U256::from_be_bytes(B256::random().0));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let (deadline, from) = (U256::from(now + 300), buyer.address());
    let domain = Eip712Domain {
        name: Some("Permit2".into()),
        version: None,
        chain_id: Some(U256::from(bed.chain_id)),
        verifying_contract: Some(PERMIT2),
        salt: None,
    };
    let mut witness = json!({"to": to, "validAfter": "0"});
    let mut requirements = bed.requirements(PRICE);
    requirements["extra"]["assetTransferMethod"] = json!("permit2");
    let (hash, spender) = if scheme == Scheme::Upto {
        requirements["scheme"] = json!("upto");
        requirements["extra"]["facilitatorAddress"] = json!(bed.facilitator());
        witness["facilitator"] = json!(facilitator);
        let permitted = upto::TokenPermissions { token, amount };
        let witness = upto::Witness { to, facilitator, validAfter: U256::ZERO };
        let spender = UPTO_PROXY;
        let data = upto::PermitWitnessTransferFrom { permitted, spender, nonce, deadline, witness };
        (data.eip712_signing_hash(&domain), spender)
    } else {
        let permitted = exact::TokenPermissions { token, amount };
        let witness = exact::Witness { to, validAfter: U256::ZERO };
        let spender = EXACT_PROXY;
        let data = exact::PermitWitnessTransferFrom { permitted, spender, nonce, deadline, witness };
        (data.eip712_signing_hash(&domain), spender)
    };
    let signature = alloy::hex::encode_prefixed(buyer.sign_hash_sync(&hash).unwrap().as_bytes());
    let authorization = json!({
        "permitted": {"token": token, "amount": PRICE.to_string()}, "from": from, "spender": spender,
        "nonce": nonce.to_string(), "deadline": deadline.to_string(), "witness": witness,
    });
    let payload = json!({"signature": signature, "permit2Authorization": authorization});
    (json!({"x402Version": 2, "accepted": requirements, "payload": payload}), requirements)
}

/// Permits of both schemes through a facilitator: the whole amount, or what was used.
async fn permits_pay_what_was_used(bed: &EvmBed, facilitator: &dyn Facilitator) {
    facilitator.probe().await;
    let evidence = evidence(bed);
    let buyer = bed.buyer(10 * PRICE).await;
    bed.approve_permit2(&buyer.address().to_string()).await;
    for (scheme, actual) in [(Scheme::Exact, PRICE), (Scheme::Upto, PRICE), (Scheme::Upto, 1_234)] {
        let before = bed.usdc(bed.payee()).await;
        let (payment, mut requirements) = permit(bed, &buyer, scheme);
        let movement = Movement { token: bed.usdc, to: bed.payee(), amount: Atoms(actual), since: UnixSeconds(0) };
        assert_eq!(evidence.trace(&signed(&payment), &movement).await, Trace::Unused, "{scheme:?}");
        let verdict = facilitator.verify(&Handed::new(bed, &buyer, &payment, &requirements).call()).await;
        assert!(matches!(verdict, Verdict::Valid { .. }), "{scheme:?}: {verdict:?}");
        requirements["amount"] = json!(actual.to_string());
        let settled = facilitator.settle(&Handed::new(bed, &buyer, &payment, &requirements).call()).await;
        let Settlement::Settled { transaction, .. } = settled else { panic!("{scheme:?}: {settled:?}") };
        assert_eq!(bed.usdc(bed.payee()).await - before, actual, "{scheme:?}");
        let moved = Trace::Moved { transaction: transaction.clone() };
        assert_eq!(evidence.shows(&transaction, &signed(&payment), &movement).await, moved, "{scheme:?}");
        assert_eq!(evidence.trace(&signed(&payment), &movement).await, moved, "{scheme:?}, among others");
        let other = Movement { amount: Atoms(actual - 1), ..movement };
        assert_eq!(evidence.trace(&signed(&payment), &other).await, Trace::Gone, "{scheme:?}: not that much");
        let (another, _) = permit(bed, &buyer, scheme);
        assert_eq!(evidence.shows(&transaction, &signed(&another), &movement).await, Trace::Gone, "one payment's");
    }
}

#[tokio::test]
async fn a_permit_pays_what_was_used_and_the_chain_shows_which() {
    let bed = EvmBed::start().await;
    let service = Service::ts(&bed).await;
    permits_pay_what_was_used(&bed, &remote(service.url())).await;
}

#[cfg(feature = "local-facilitator")]
mod local {
    use super::*;
    use common::Backend;
    use common::x402::stall::{self, FLAT, PER_TOKEN, server};
    use common::x402::{Client, Stall};
    use pontage::rail::x402::local::{Local, Settings};

    fn local(bed: &EvmBed) -> Local {
        let key = Secret::new("0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80");
        Local::new(Settings { network: network(bed), rpc: Secret::new(bed.url()), key }).unwrap()
    }

    #[tokio::test]
    async fn a_facilitator_in_this_process_settles_and_the_chain_shows_it() {
        let bed = EvmBed::start().await;
        pays_once(&bed, &local(&bed)).await;
    }

    #[tokio::test]
    async fn in_this_process_too_a_permit_pays_what_was_used() {
        let bed = EvmBed::start().await;
        permits_pay_what_was_used(&bed, &local(&bed)).await;
    }

    /// Says yes to every signature, after so many rounds of nothing.
    fn wallet(rounds: u16) -> String {
        format!("0x61{rounds:04x}5b60019003806003575063{}60e01b60005260206000f3", "1626ba7e")
    }

    #[tokio::test]
    async fn an_account_whose_own_check_burns_gas_is_refused_before_anything_is_sent() {
        let bed = EvmBed::start().await;
        let facilitator = local(&bed);
        facilitator.probe().await;
        let asked = bed.requirements(PRICE);
        for (rounds, dear, why) in [(1, false, "it says yes at once"), (24_000, true, "it burns 600,000 gas first")] {
            let buyer = bed.buyer(10 * PRICE).await;
            bed.rpc("anvil_setCode", json!([buyer.address(), wallet(rounds)])).await;
            let payment = bed.authorize(&buyer, &asked, |_| ());
            let handed = Handed::new(&bed, &buyer, &payment, &asked);
            let sent = || bed.rpc("eth_getTransactionCount", json!([bed.facilitator(), "pending"]));
            let before = sent().await;
            let verdict = facilitator.verify(&handed.call()).await;
            assert_eq!(matches!(verdict, Verdict::Valid { .. }), !dear, "{why}: {verdict:?}");
            assert_eq!(sent().await, before, "{why}: looking sends nothing");
            let settled = facilitator.settle(&handed.call()).await;
            if dear {
                assert!(matches!(&verdict, Verdict::Invalid { reason } if reason.contains("gas")), "{verdict:?}");
                assert!(matches!(&settled, Settlement::Failed { reason } if reason.contains("gas")), "{settled:?}");
                assert_eq!(sent().await, before, "{why}: nothing was sent");
            } else {
                assert!(matches!(settled, Settlement::Settled { .. }), "{why}: {settled:?}");
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_gate_that_is_its_own_facilitator_is_paid_by_published_clients() {
        let bed = EvmBed::start().await;
        let backend = Backend::start(Default::default()).await;
        let itself = "facilitator = { local = { rpc = \"env:RPC_84532\", key = \"env:GAS_KEY\" } }";
        let mut options = stall::options(&bed, "http://nobody.example", &backend.url())
            .env("GAS_KEY", "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80");
        let conf = options.conf.take().unwrap();
        options.conf = Some(conf.replace("facilitator = { url = \"http://nobody.example\" }", itself));
        let gate = common::Gate::start(options).await;
        let stall = Stall { chain: bed, backend, gate };
        for (client, server, flags) in [
            (Client::Fetch, server::EXACT, &[][..]),
            (Client::Fetch, server::FIRST, &[("stream", "true")][..]),
            (Client::Legacy, server::EXACT, &[][..]),
            (Client::Fetch, server::UPTO, &[][..]),
        ] {
            let buyer = stall.chain.buyer(1_000_000).await;
            stall.chain.approve_permit2(&buyer.address().to_string()).await;
            let before = stall.earned().await;
            let used = || {
                let (prompt, completion) = stall.backend.usage_reported();
                u128::from(prompt + 2 * completion) * PER_TOKEN
            };
            let had = used();
            let got = client.pay(&stall.chain, &buyer, &stall.server(server), flags).await;
            let said = format!("{client:?} {server} {flags:?}: {got:#}");
            assert_eq!(got["status"], 200, "{said}");
            let used = used() - had;
            let earned = stall.earned().await - before;
            match server {
                server::UPTO => assert_eq!((earned, earned > 0), (used, true), "{said}"),
                _ => assert_eq!(earned, FLAT, "{said}"),
            }
        }
    }
}
