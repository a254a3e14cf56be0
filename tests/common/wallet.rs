//! A session payer driven by hand: opens a channel, signs vouchers, tops up, closes; every field can be bent first.
//!
//! ```ignore
//! let wallet = Wallet::fresh(&chain, 1_000_000).await;
//! let offer = payer::offer(&reply.headers("www-authenticate"), "tempo", "session");
//! let channel = wallet.open(&offer, |_| ());
//! let first = channel.open_credential(&offer, 20_000);          // Authorization of the content request
//! let next = channel.voucher_credential(&offer, 40_000);
//! ```
//!
//! Nothing here asks the chain anything except where a function takes an RPC URL.

use alloy::eips::Encodable2718;
use alloy::primitives::{Address, B256, Bytes, Signature, TxKind, U256};
use alloy::signers::SignerSync;
use alloy::sol_types::{Eip712Domain, SolCall, SolStruct};
use mpp::client::channel_ops;
use mpp::client::tempo::charge::tx_builder::{TempoTxOptions, build_tempo_tx};
use mpp::client::tempo::signing::{TempoSigningMode, sign_and_encode, sign_and_encode_fee_payer_envelope};
use mpp::protocol::methods::tempo::FeePayerEnvelope78;
use mpp::protocol::methods::tempo::precompile_voucher::compute_precompile_channel_id_with_escrow;
use mpp::{PaymentChallenge, PaymentCredential, PrivateKeySigner};
use serde_json::{Value, json};
use tempo_alloy::contracts::precompiles::ITIP20ChannelReserve as Abi;
use tempo_alloy::primitives::transaction::Call;

use super::chain::{self, BETA_USD, CHAIN_ID, Chain, PATH_USD};
use super::reserve::RESERVE;

alloy::sol! {
    /// What a voucher's signature covers.
    struct Voucher {
        bytes32 channelId;
        uint96 cumulativeAmount;
    }
}

/// Seconds that a transaction is good for; the chain takes at most 30.
const VALID_FOR: u64 = 25;
const HALF_ORDER: U256 =
    U256::from_be_bytes(alloy::hex!("7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0"));
const ORDER: U256 =
    U256::from_be_bytes(alloy::hex!("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"));

/// One account.
#[derive(Clone)]
pub struct Wallet {
    pub address: Address,
    pub signer: PrivateKeySigner,
}

/// How a channel is opened. Made from an offer; a test may change any of it.
#[derive(Clone, Debug)]
pub struct Open {
    pub payee: Address,
    pub operator: Address,
    pub token: Address,
    /// The offer's `suggestedDeposit`.
    pub deposit: u128,
    pub salt: B256,
    /// The payer itself unless changed; zero also means the payer.
    pub authorized_signer: Address,
    pub chain_id: u64,
    pub escrow: Address,
    /// Unix seconds.
    pub valid_before: u64,
    /// Leaves gas to the seller (envelope 0x78).
    pub sponsored: bool,
    /// Calls before and after the opening one.
    pub before: Vec<Call>,
    pub after: Vec<Call>,
    pub gas_limit: u64,
}

/// What is signed as a voucher; a test may change any of it.
#[derive(Clone, Debug)]
pub struct Signing {
    pub channel: B256,
    pub amount: u128,
    pub chain_id: u64,
    pub escrow: Address,
    pub name: String,
    pub version: String,
    pub key: PrivateKeySigner,
}

/// A channel as its payer knows it; on chain only once somebody has sent `transaction`.
#[derive(Clone)]
pub struct Channel {
    pub id: B256,
    pub descriptor: Abi::ChannelDescriptor,
    pub deposit: u128,
    pub chain_id: u64,
    pub escrow: Address,
    /// The signed opening transaction.
    pub transaction: Vec<u8>,
    pub payer: Wallet,
    /// Signs vouchers: the payer's key unless a test gives the authorised signer's.
    pub key: PrivateKeySigner,
}

impl Wallet {
    /// `key` with or without `0x`.
    pub fn new(key: &str) -> Self {
        super::init();
        let signer: PrivateKeySigner = key.trim_start_matches("0x").parse().expect("a private key");
        Self { address: signer.address(), signer }
    }

    /// An account that nobody else uses, without money.
    pub fn empty() -> Self {
        let signer = PrivateKeySigner::random();
        Self { address: signer.address(), signer }
    }

    /// The same with `atoms` of pathUSD and gas in another token. The chain must have a reserve by now.
    pub async fn fresh(chain: &Chain, atoms: u128) -> Self {
        let wallet = Self::empty();
        chain.fund(&wallet.address.to_string(), atoms).await;
        wallet
    }

    /// The private key in hex, for clients that want it.
    pub fn secret(&self) -> String {
        format!("{:#x}", self.signer.to_bytes())
    }

    /// Signs the opening of a channel on the terms of a session offer. Nothing is sent.
    pub fn open(&self, offer: &PaymentChallenge, change: impl FnOnce(&mut Open)) -> Channel {
        let terms = super::payer::terms(offer);
        let address = |value: &Value| value.as_str().map_or(Address::ZERO, |a| a.parse().expect("an address"));
        let details = &terms["methodDetails"];
        let mut open = self.terms(address(&terms["recipient"]), 0);
        open.operator = address(&details["operator"]);
        open.token = address(&terms["currency"]);
        open.escrow = address(&details["escrowContract"]);
        open.chain_id = details["chainId"].as_u64().expect("a chain id");
        open.sponsored = details["feePayer"] == json!(true);
        open.deposit = amount(&terms["suggestedDeposit"]).unwrap_or_else(|| 20 * amount(&terms["amount"]).unwrap());
        change(&mut open);
        self.open_on(open)
    }

    /// Terms without an offer, on the local chain.
    pub fn terms(&self, payee: Address, deposit: u128) -> Open {
        Open {
            payee,
            operator: Address::ZERO,
            token: PATH_USD.parse().unwrap(),
            deposit,
            salt: B256::random(),
            authorized_signer: self.address,
            chain_id: CHAIN_ID,
            escrow: RESERVE.parse().unwrap(),
            valid_before: now() + VALID_FOR,
            sponsored: false,
            before: Vec::new(),
            after: Vec::new(),
            gas_limit: 2_000_000,
        }
    }

    /// Signs the opening of a channel. Nothing is sent.
    pub fn open_on(&self, open: Open) -> Channel {
        let input = Abi::openCall {
            payee: open.payee,
            operator: open.operator,
            token: open.token,
            deposit: open.deposit.try_into().expect("uint96"),
            salt: open.salt,
            authorizedSigner: open.authorized_signer,
        };
        let mut calls = open.before;
        calls.push(call(open.escrow, input.abi_encode()));
        calls.extend(open.after);
        let tx = build_tempo_tx(tx_options(calls, open.chain_id, open.valid_before, open.gas_limit, open.sponsored));
        let nonce_hash = channel_ops::compute_expiring_nonce_hash(&tx, self.address);
        let descriptor = Abi::ChannelDescriptor {
            payer: self.address,
            payee: open.payee,
            operator: open.operator,
            token: open.token,
            salt: open.salt,
            authorizedSigner: open.authorized_signer,
            expiringNonceHash: nonce_hash,
        };
        let sign = if open.sponsored { sign_and_encode_fee_payer_envelope } else { sign_and_encode };
        Channel {
            id: id_of(&descriptor, open.escrow, open.chain_id),
            descriptor,
            deposit: open.deposit,
            chain_id: open.chain_id,
            escrow: open.escrow,
            transaction: sign(tx, &self.signer, &TempoSigningMode::Direct).expect("signed"),
            payer: self.clone(),
            key: self.signer.clone(),
        }
    }

    /// A signed call of the reserve that is not part of an opening: valid for 25 s, gas in BetaUSD.
    pub fn sign(&self, input: Vec<u8>, sponsored: bool) -> Vec<u8> {
        self.sign_to(RESERVE.parse().unwrap(), input, sponsored)
    }

    /// The same to whom it says.
    pub fn sign_to(&self, to: Address, input: Vec<u8>, sponsored: bool) -> Vec<u8> {
        let calls = vec![call(to, input)];
        let mut tx = build_tempo_tx(tx_options(calls, CHAIN_ID, now() + VALID_FOR, 2_000_000, sponsored));
        // Two equal transactions would be one to the chain.
        tx.valid_after =
            std::num::NonZeroU64::new(1 + u64::from(B256::random()[0]) * 1_000 + u64::from(B256::random()[0]));
        let sign = if sponsored { sign_and_encode_fee_payer_envelope } else { sign_and_encode };
        sign(tx, &self.signer, &TempoSigningMode::Direct).expect("signed")
    }

    /// Pays, in BetaUSD, the gas of a transaction that its sender left to somebody else (0x78): what the chain takes.
    pub fn cosign(&self, envelope: &[u8]) -> Vec<u8> {
        let envelope = FeePayerEnvelope78::decode_envelope(envelope).expect("an envelope");
        let sender = envelope.sender;
        let signature = envelope.signature.clone();
        let mut tx = envelope.to_recoverable_signed().strip_signature();
        tx.fee_token = Some(BETA_USD.parse().unwrap());
        let hash = tx.fee_payer_signature_hash(sender);
        tx.fee_payer_signature = Some(self.signer.sign_hash_sync(&hash).expect("signed"));
        tx.into_signed(signature).encoded_2718()
    }

    /// Calls the reserve on the chain as this account. The error is the chain's message, or `reverted`.
    pub async fn call<C: SolCall>(&self, rpc: &str, call: C) -> Result<Value, String> {
        send(rpc, &self.sign(call.abi_encode(), false)).await
    }
}

/// Sends raw bytes and waits for the receipt.
pub async fn send(rpc: &str, raw: &[u8]) -> Result<Value, String> {
    let receipt = chain::rpc(rpc, "eth_sendRawTransactionSync", json!([alloy::hex::encode_prefixed(raw)])).await?;
    if receipt["status"] == "0x1" { Ok(receipt) } else { Err(format!("reverted: {receipt}")) }
}

impl Channel {
    /// The signature of a voucher for this total.
    pub fn voucher(&self, cumulative: u128) -> Vec<u8> {
        self.sign(|voucher| voucher.amount = cumulative)
    }

    /// The same with anything changed before it is signed.
    pub fn sign(&self, change: impl FnOnce(&mut Signing)) -> Vec<u8> {
        let mut signing = Signing {
            channel: self.id,
            amount: 0,
            chain_id: self.chain_id,
            escrow: self.escrow,
            name: "TIP20 Channel Reserve".into(),
            version: "1".into(),
            key: self.key.clone(),
        };
        change(&mut signing);
        let hash = digest(&signing);
        signing.key.sign_hash_sync(&hash).expect("signed").as_bytes().to_vec()
    }

    /// The descriptor as credentials carry it.
    pub fn wire(&self) -> Value {
        let d = &self.descriptor;
        json!({
            "payer": d.payer, "payee": d.payee, "operator": d.operator, "token": d.token, "salt": d.salt,
            "authorizedSigner": d.authorizedSigner, "expiringNonceHash": d.expiringNonceHash,
        })
    }

    pub fn open_payload(&self, cumulative: u128) -> Value {
        json!({
            "action": "open", "type": "transaction", "channelId": self.id, "descriptor": self.wire(),
            "transaction": alloy::hex::encode_prefixed(&self.transaction), "cumulativeAmount": cumulative.to_string(),
            "signature": alloy::hex::encode_prefixed(self.voucher(cumulative)),
            "authorizedSigner": self.descriptor.authorizedSigner,
        })
    }

    pub fn voucher_payload(&self, cumulative: u128) -> Value {
        self.signed_payload(cumulative, &self.voucher(cumulative))
    }

    /// A voucher with a signature made elsewhere.
    pub fn signed_payload(&self, cumulative: u128, signature: &[u8]) -> Value {
        json!({
            "action": "voucher", "channelId": self.id, "descriptor": self.wire(),
            "cumulativeAmount": cumulative.to_string(), "signature": alloy::hex::encode_prefixed(signature),
        })
    }

    /// With a freshly signed transaction; keep the payload to send the same one twice.
    pub fn top_up_payload(&self, additional: u128) -> Value {
        let raw = self.payer.sign(self.top_up_call(additional).abi_encode(), false);
        json!({
            "action": "topUp", "type": "transaction", "channelId": self.id, "descriptor": self.wire(),
            "transaction": alloy::hex::encode_prefixed(raw), "additionalDeposit": additional.to_string(),
        })
    }

    pub fn close_payload(&self, cumulative: u128) -> Value {
        let mut payload = self.voucher_payload(cumulative);
        payload["action"] = json!("close");
        payload
    }

    /// An `Authorization` value for any payload.
    pub fn credential(&self, offer: &PaymentChallenge, payload: Value) -> String {
        let source = format!("did:pkh:eip155:{}:{}", self.chain_id, self.descriptor.payer);
        let credential = PaymentCredential { challenge: offer.to_echo(), source: Some(source), payload };
        mpp::format_authorization(&credential).expect("a credential fits in a header")
    }

    pub fn open_credential(&self, offer: &PaymentChallenge, cumulative: u128) -> String {
        self.credential(offer, self.open_payload(cumulative))
    }

    pub fn voucher_credential(&self, offer: &PaymentChallenge, cumulative: u128) -> String {
        self.credential(offer, self.voucher_payload(cumulative))
    }

    pub fn top_up_credential(&self, offer: &PaymentChallenge, additional: u128) -> String {
        self.credential(offer, self.top_up_payload(additional))
    }

    pub fn close_credential(&self, offer: &PaymentChallenge, cumulative: u128) -> String {
        self.credential(offer, self.close_payload(cumulative))
    }

    pub fn top_up_call(&self, additional: u128) -> Abi::topUpCall {
        Abi::topUpCall { descriptor: self.descriptor.clone(), additionalDeposit: additional.try_into().unwrap() }
    }

    pub fn settle_call(&self, cumulative: u128) -> Abi::settleCall {
        Abi::settleCall {
            descriptor: self.descriptor.clone(),
            cumulativeAmount: cumulative.try_into().unwrap(),
            signature: self.voucher(cumulative).into(),
        }
    }

    pub fn close_call(&self, cumulative: u128, capture: u128) -> Abi::closeCall {
        Abi::closeCall {
            descriptor: self.descriptor.clone(),
            cumulativeAmount: cumulative.try_into().unwrap(),
            captureAmount: capture.try_into().unwrap(),
            signature: self.voucher(cumulative).into(),
        }
    }

    pub fn request_close_call(&self) -> Abi::requestCloseCall {
        Abi::requestCloseCall { descriptor: self.descriptor.clone() }
    }

    pub fn withdraw_call(&self) -> Abi::withdrawCall {
        Abi::withdrawCall { descriptor: self.descriptor.clone() }
    }

    /// Sends the opening transaction past the seller.
    pub async fn open_on_chain(&self, rpc: &str) -> Result<Value, String> {
        send(rpc, &self.transaction).await
    }

    /// The payer asks for its money back past the seller.
    pub async fn request_close(&self, rpc: &str) -> Result<Value, String> {
        self.payer.call(rpc, self.request_close_call()).await
    }

    /// The payer takes it, once the grace period is over.
    pub async fn withdraw(&self, rpc: &str) -> Result<Value, String> {
        self.payer.call(rpc, self.withdraw_call()).await
    }

    /// The same channel with a descriptor changed by the test: its id follows, the chain knows nothing of it.
    pub fn bent(&self, change: impl FnOnce(&mut Abi::ChannelDescriptor)) -> Self {
        let mut bent = self.clone();
        change(&mut bent.descriptor);
        bent.id = id_of(&bent.descriptor, bent.escrow, bent.chain_id);
        bent
    }
}

/// What a wallet signs for a voucher.
pub fn digest(signing: &Signing) -> B256 {
    let domain = Eip712Domain::new(
        Some(signing.name.clone().into()),
        Some(signing.version.clone().into()),
        Some(U256::from(signing.chain_id)),
        Some(signing.escrow),
        None,
    );
    let amount = signing.amount.try_into().expect("uint96");
    Voucher { channelId: signing.channel, cumulativeAmount: amount }.eip712_signing_hash(&domain)
}

/// The other valid form of a signature, which the chain does not take.
pub fn high_s(signature: &[u8]) -> Vec<u8> {
    let signature = Signature::from_raw(signature).expect("65 bytes");
    assert!(signature.s() <= HALF_ORDER);
    Signature::new(signature.r(), ORDER - signature.s(), !signature.v()).as_bytes().to_vec()
}

/// The same signature with another last byte.
pub fn with_v(signature: &[u8], v: u8) -> Vec<u8> {
    let mut other = signature.to_vec();
    *other.last_mut().unwrap() = v;
    other
}

/// The same signature in 64 bytes (EIP-2098).
pub fn compact(signature: &[u8]) -> Vec<u8> {
    let mut short = signature[..64].to_vec();
    if Signature::from_raw(signature).unwrap().v() {
        short[32] |= 0x80;
    }
    short
}

fn id_of(d: &Abi::ChannelDescriptor, escrow: Address, chain_id: u64) -> B256 {
    compute_precompile_channel_id_with_escrow(
        d.payer,
        d.payee,
        d.operator,
        d.token,
        d.salt,
        d.authorizedSigner,
        d.expiringNonceHash,
        escrow,
        chain_id,
    )
}

/// A decimal string as atoms.
fn amount(value: &Value) -> Option<u128> {
    value.as_str().map(|digits| digits.parse().expect("an amount"))
}

fn call(to: Address, input: Vec<u8>) -> Call {
    Call { to: TxKind::Call(to), value: U256::ZERO, input: Bytes::from(input) }
}

fn tx_options(calls: Vec<Call>, chain_id: u64, valid_before: u64, gas_limit: u64, sponsored: bool) -> TempoTxOptions {
    TempoTxOptions {
        calls,
        chain_id,
        fee_token: BETA_USD.parse().unwrap(),
        nonce: 0,
        nonce_key: U256::MAX,
        gas_limit,
        max_fee_per_gas: 20_000_000_000,
        max_priority_fee_per_gas: 1_000_000_000,
        fee_payer: sponsored,
        valid_before: Some(valid_before),
        key_authorization: None,
    }
}

pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}
