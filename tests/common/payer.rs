//! A Rust payer on the published `mpp` client: turns a 402 into an `Authorization` value that a test can send, send
//! twice, or bend first.

use mpp::client::tempo::charge::{SignOptions, TempoCharge};
use mpp::client::{PaymentProvider, TempoProvider};
use mpp::{PaymentChallenge, PrivateKeySigner};
use serde_json::Value;

use super::raw::RawReply;

pub struct Payer {
    pub address: String,
    signer: PrivateKeySigner,
    provider: TempoProvider,
}

impl Payer {
    /// `key` with or without `0x`.
    pub fn new(key: &str, rpc: &str) -> Self {
        super::init();
        let signer: PrivateKeySigner = key.trim_start_matches("0x").parse().expect("a private key");
        let address = signer.address().to_string();
        Self { address, provider: TempoProvider::new(signer.clone(), rpc).expect("an RPC URL"), signer }
    }

    /// A payer whose account nobody else uses, with `atoms` of pathUSD. This client pays gas in pathUSD too and wants
    /// about 0.04 USD at hand for it, so give at least 100 000 atoms more than will be spent.
    pub async fn fresh(chain: &super::Chain, atoms: u128) -> Self {
        let key: String = uuid::Uuid::now_v7().simple().to_string();
        let key = format!("{key}{}", uuid::Uuid::now_v7().simple());
        let payer = Self::new(&key, &chain.url());
        chain.fund(&payer.address, atoms).await;
        payer
    }

    /// Signs a pull payment for a challenge; nothing is broadcast.
    pub async fn authorization(&self, challenge: &PaymentChallenge) -> String {
        let credential = self.provider.pay(challenge).await.unwrap_or_else(|e| panic!("the payer cannot pay: {e}"));
        mpp::format_authorization(&credential).expect("a credential fits in a header")
    }

    /// As [`Self::authorization`] without asking the chain anything, so that a payer without money can sign too. Gas is
    /// paid in BetaUSD. Valid for 25 seconds unless `change` says otherwise; the chain takes at most 30.
    pub async fn sign(&self, challenge: &PaymentChallenge, change: impl FnOnce(&mut SignOptions)) -> String {
        let mut options = SignOptions {
            rpc_url: Some("http://127.0.0.1:1".into()),
            gas_limit: Some(1_000_000),
            fee_token: Some(super::chain::BETA_USD.parse().unwrap()),
            ..SignOptions::default()
        };
        change(&mut options);
        let charge = TempoCharge::from_challenge(challenge).expect("a charge");
        let signed = charge.sign_with_options(&self.signer, options).await.expect("signed");
        mpp::format_authorization(&signed.into_credential()).expect("a credential fits in a header")
    }

    /// As [`Self::authorization`], for the `tempo/charge` offer of a 402.
    pub async fn pay(&self, reply: &RawReply) -> String {
        self.authorization(&offer(&reply.headers("www-authenticate"), "tempo", "charge")).await
    }
}

/// Every offer in these `WWW-Authenticate` values.
pub fn offers(values: &[&str]) -> Vec<PaymentChallenge> {
    mpp::parse_www_authenticate_all(values.iter().copied()).into_iter().filter_map(Result::ok).collect()
}

/// The offer of one rail; panics with what was offered instead.
pub fn offer(values: &[&str], method: &str, intent: &str) -> PaymentChallenge {
    let all = offers(values);
    let found = all.iter().find(|c| c.method.as_str() == method && c.intent.as_str() == intent);
    found.cloned().unwrap_or_else(|| panic!("no {method}/{intent} offer in {values:?}"))
}

/// The terms inside an offer.
pub fn terms(challenge: &PaymentChallenge) -> Value {
    challenge.request.decode_value().expect("an offer's request is JSON")
}

/// Takes a `Payment …` credential apart, lets `change` bend the JSON, and puts it together again.
pub fn bend(authorization: &str, change: impl FnOnce(&mut Value)) -> String {
    let packed = authorization.strip_prefix("Payment ").expect("a Payment credential");
    let mut credential: Value =
        serde_json::from_slice(&mpp::base64url_decode(packed).expect("base64url")).expect("JSON");
    change(&mut credential);
    format!("Payment {}", mpp::base64url_encode(credential.to_string().as_bytes()))
}

/// The JSON inside a `Payment …` credential or a `Payment-Receipt` value.
pub fn unpack(value: &str) -> Value {
    let packed = value.strip_prefix("Payment ").unwrap_or(value);
    serde_json::from_slice(&mpp::base64url_decode(packed).expect("base64url")).expect("JSON")
}
