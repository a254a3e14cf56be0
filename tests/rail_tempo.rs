//! `tempo/charge` against a real Tempo node (anvil) with the crate's own client as the payer.
//!
//! Where the test bed is missing these tests say so and fail: a payment rail that was not tried against a chain is not
//! tested.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use alloy::primitives::{Address, B256};
use alloy::signers::local::PrivateKeySigner;
use common::chain::CHAIN_ID;
use common::{Chain, DEV, PATH_USD};
use mpp::client::{PaymentProvider as _, TempoProvider};
use mpp::{PaymentChallenge, PaymentCredential};
use pontage::chain::tempo::Tempo;
use pontage::chain::{Chain as _, Inclusion, Sent};
use pontage::claim::{Claim, Standing, Terms};
use pontage::clock::UnixSeconds;
use pontage::money::{Atoms, Usd};
use pontage::rail::mpp::charge::{Charge, Settings};
use pontage::rail::mpp::collect::Pace;
use pontage::rail::ring::KeyRing;
use pontage::rail::{Ask, Collected, Proof, Rail, Shown, Way as _};
use pontage::secret::Secret;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Paid by the crate's client, which pays gas in the currency of the charge: what the payee got is what counts.
const PAYEE: &str = DEV[0].address;
const PAYER: &str = DEV[1].key;

fn node(chain: &Chain) -> Tempo {
    Tempo::new(&Secret::new(chain.url())).unwrap()
}

/// Atoms the payee holds.
async fn earned(chain: &Chain) -> u128 {
    chain.balance(PATH_USD, PAYEE).await
}

fn terms(amount: u128) -> Terms {
    Terms {
        rail: "tempo/charge".into(),
        route: "/v1/chat/completions".into(),
        model: "m".into(),
        tier: "standard".into(),
        generation: "0123456789abcdef".into(),
        amount: Atoms(amount),
        price: Usd::parse("0.01").unwrap(),
        decimals: 6,
    }
}

fn ask(terms: &Terms) -> Ask<'_> {
    Ask { terms, digest: [5; 32], description: "one chat completion", lasts: 900 }
}

fn rail(rpc: &str, patience: Duration) -> Charge {
    let settings = Settings {
        id: "tempo/charge".into(),
        realm: "llm.test".into(),
        chain_id: CHAIN_ID,
        currency: PATH_USD.parse().unwrap(),
        recipient: PAYEE.parse().unwrap(),
        accept_push: true,
        pace: Pace { patience, ..Pace::default() },
    };
    let ring = KeyRing::new(&[Secret::new("test-secret-key-0123456789abcdef0123456789")]).unwrap();
    Charge::new(settings, Arc::new(ring), Arc::new(Tempo::new(&Secret::new(rpc)).unwrap())).unwrap()
}

/// The published client answers our offer.
async fn paid_by(rail: &Charge, chain: &Chain, key: &PrivateKeySigner, terms: &Terms) -> PaymentCredential {
    let offer = rail.offer(&ask(terms), UnixSeconds::now()).unwrap();
    let challenge = PaymentChallenge::from_header(offer.headers[0].1.to_str().unwrap()).unwrap();
    TempoProvider::new(key.clone(), chain.url()).unwrap().pay(&challenge).await.unwrap()
}

async fn admitted(rail: &Charge, credential: PaymentCredential, terms: &Terms) -> (Shown, Proof) {
    let shown = Shown::Mpp(Box::new(credential));
    let known = rail.recognise(&shown, &ask(terms)).unwrap().unwrap();
    let proof = rail.check(&shown, known, &ask(terms), UnixSeconds::now()).await.unwrap();
    (shown, proof)
}

fn claim(proof: &Proof) -> Claim {
    Claim {
        schema: Claim::SCHEMA,
        revision: 1,
        key: proof.recognised.key.clone(),
        challenge_id: proof.recognised.challenge_id.clone(),
        terms: proof.recognised.terms.clone(),
        reference: proof.recognised.reference.clone(),
        payer: proof.payer.clone(),
        resend: proof.recognised.resend.clone(),
        standing: Standing::Claimed { by: "req_1".into() },
        claimed_at: UnixSeconds::now(),
        collect_until: proof.collect_until,
        paid_at: None,
        taken: None,
        output: None,
        departures: 0,
        transaction: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_client_pays_a_real_chain_once() {
    let chain = Chain::start().await;
    let rail = rail(&chain.url(), Duration::from_secs(20));
    rail.probe().await;
    assert_eq!(rail.standing(), Ok(()));
    let payer: PrivateKeySigner = PAYER.parse().unwrap();
    let before = earned(&chain).await;

    let terms = terms(10_000);
    let (shown, proof) = admitted(&rail, paid_by(&rail, &chain, &payer, &terms).await, &terms).await;
    assert_eq!(earned(&chain).await, before, "nothing moved before collect");
    assert_eq!(rail.collect(&shown, &proof).await, Collected::Paid);
    assert_eq!(earned(&chain).await - before, 10_000, "the exact amount");

    assert_eq!(rail.look(&claim(&proof), UnixSeconds::now()).await, Collected::Paid, "and from the record alone");
    assert_eq!(rail.collect(&shown, &proof).await, Collected::Paid, "again: the same payment, not a second one");
    assert_eq!(earned(&chain).await - before, 10_000);

    let hash: B256 = proof.recognised.reference.parse().unwrap();
    let Inclusion::Done { sender, transfers, .. } = node(&chain).inclusion(hash).await.unwrap() else {
        panic!("mined")
    };
    assert_eq!(sender, payer.address());
    assert!(transfers.iter().any(|t| t.amount == 10_000 && t.to == PAYEE.parse::<Address>().unwrap()));

    // Push: the same transaction, named by its hash, is the same claim.
    let by_hash = PaymentCredential::new(
        match &shown {
            Shown::Mpp(c) => c.challenge.clone(),
            Shown::X402(_) => unreachable!("nobody showed one"),
        },
        mpp::PaymentPayload::hash(&proof.recognised.reference),
    );
    let (shown, pushed) = admitted(&rail, by_hash, &terms).await;
    assert_eq!(pushed.recognised.key, proof.recognised.key);
    assert_eq!(rail.collect(&shown, &pushed).await, Collected::Paid, "push is confirmed by its logs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payer_without_money_has_definitely_not_paid() {
    let chain = Chain::start().await;
    let rail = rail(&chain.url(), Duration::from_secs(10));
    let poor = PrivateKeySigner::from_slice(&[9; 32]).unwrap();
    let terms = terms(10_000);
    let offer = rail.offer(&ask(&terms), UnixSeconds::now()).unwrap();
    let challenge = PaymentChallenge::from_header(offer.headers[0].1.to_str().unwrap()).unwrap();
    // With a gas limit of its own, the client does not notice that it is poor.
    let options = mpp::client::tempo::charge::SignOptions {
        rpc_url: Some(chain.url()),
        gas_limit: Some(1_000_000),
        ..Default::default()
    };
    let charge = mpp::client::tempo::charge::TempoCharge::from_challenge(&challenge).unwrap();
    let credential = charge.sign_with_options(&poor, options).await.unwrap().into_credential();
    let before = earned(&chain).await;
    let (shown, proof) = admitted(&rail, credential, &terms).await;
    let got = rail.collect(&shown, &proof).await;
    assert!(matches!(got, Collected::Failed { .. }), "{got:?}");
    assert_eq!(earned(&chain).await, before);
}

/// A TCP hop in front of the node that can be cut: what the far side said is then thrown away.
async fn hop(to: u16) -> (u16, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (cut, open) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(carry(client, to, open.clone()));
        }
    });
    (port, cut)
}

/// Requests always pass, answers only while the hop is not cut.
async fn carry(mut client: TcpStream, to: u16, cut: watch::Receiver<bool>) {
    let Ok(mut node) = TcpStream::connect(("127.0.0.1", to)).await else { return };
    let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            Ok(n) = client.read(&mut up) => {
                if n == 0 || node.write_all(&up[..n]).await.is_err() { return }
            }
            Ok(n) = node.read(&mut down) => {
                if n == 0 || *cut.borrow() || client.write_all(&down[..n]).await.is_err() { return }
            }
            else => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_whose_answer_was_lost_is_unknown_until_it_is_seen() {
    let chain = Chain::start().await;
    let (port, cut) = hop(chain.port).await;
    let rail = rail(&format!("http://127.0.0.1:{port}"), Duration::from_secs(3));
    let terms = terms(10_000);
    let before = earned(&chain).await;
    let payer: PrivateKeySigner = PAYER.parse().unwrap();
    let (shown, proof) = admitted(&rail, paid_by(&rail, &chain, &payer, &terms).await, &terms).await;
    cut.send(true).unwrap();
    assert_eq!(rail.collect(&shown, &proof).await, Collected::Unknown, "the node heard us, we do not hear the node");
    assert_eq!(rail.look(&claim(&proof), UnixSeconds::now()).await, Collected::Unknown);
    cut.send(false).unwrap();
    assert_eq!(rail.look(&claim(&proof), UnixSeconds::now()).await, Collected::Paid);
    assert_eq!(earned(&chain).await - before, 10_000, "once, however often it was handed in");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_never_reached_the_node_is_sent_again_by_a_later_look() {
    let chain = Chain::start().await;
    let down = rail("http://127.0.0.1:1", Duration::from_millis(300));
    let up = rail(&chain.url(), Duration::from_secs(20));
    let terms = terms(10_000);
    let payer: PrivateKeySigner = PAYER.parse().unwrap();
    let (shown, proof) = admitted(&down, paid_by(&down, &chain, &payer, &terms).await, &terms).await;
    assert_eq!(down.collect(&shown, &proof).await, Collected::Unknown);
    down.probe().await;
    assert!(down.standing().is_err());
    assert_eq!(up.look(&claim(&proof), UnixSeconds::now()).await, Collected::Paid);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_no_longer_be_mined_is_failed_by_the_chains_own_clock() {
    let chain = Chain::start().await;
    let rail = rail(&chain.url(), Duration::from_secs(5));
    let terms = terms(10_000);
    let payer: PrivateKeySigner = PAYER.parse().unwrap();
    let (_, proof) = admitted(&rail, paid_by(&rail, &chain, &payer, &terms).await, &terms).await;
    let mut late = claim(&proof);
    late.collect_until = UnixSeconds(UnixSeconds::now().0 - 20);
    assert_eq!(rail.look(&late, UnixSeconds::now()).await, Collected::Unknown, "a lagging replica might still show it");
    late.collect_until = UnixSeconds(UnixSeconds::now().0 - 60);
    assert!(matches!(rail.look(&late, UnixSeconds::now()).await, Collected::Failed { .. }));
    let again = node(&chain).send(&alloy::hex::decode(proof.recognised.resend.unwrap()).unwrap()).await;
    assert_eq!(again, Sent::Accepted, "those looks did not send it");
}
