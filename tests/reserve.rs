//! Is the test bed's channel reserve what Tempo published, and do hand-made sessions agree with it? When this passes and a
//! test of sessions fails, look at the gate first.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use alloy::primitives::{Address, B256, U256, address, b256};
use alloy::sol_types::SolCall;
use common::chain::BETA_USD;
use common::reserve::{Event, OnChain, RESERVE};
use common::wallet::{self, Channel, Signing, Wallet};
use common::{Chain, Fault, PATH_USD, Reserve, RpcProxy};
use pontage::chain::reserve::Reserve as _;
use pontage::chain::tempo::Tempo;
use pontage::secret::Secret;
use serde_json::json;
use tempo_alloy::contracts::precompiles::{
    ACCOUNT_KEYCHAIN_ADDRESS, IAccountKeychain as Keychain, ITIP20ChannelReserve as Abi,
};

const DEPOSIT: u128 = 100_000;

/// A chain with a reserve, a payee that can pay gas, and a channel that is open.
struct Scene {
    chain: Chain,
    reserve: Reserve,
    payee: Wallet,
    channel: Channel,
}

async fn scene() -> Scene {
    let chain = Chain::start().await;
    let reserve = Reserve::start(&chain).await;
    let payee = Wallet::fresh(&chain, 0).await;
    let payer = Wallet::fresh(&chain, 1_000_000).await;
    let channel = payer.open_on(payer.terms(payee.address, DEPOSIT));
    channel.open_on_chain(&reserve.url()).await.expect("opened");
    Scene { chain, reserve, payee, channel }
}

impl Scene {
    async fn holds(&self, who: Address) -> u128 {
        self.chain.balance(PATH_USD, &who.to_string()).await
    }

    /// The contract's own name for why a call would fail, asked without sending it.
    async fn why_not<C: SolCall>(&self, from: Address, call: C) -> String {
        let call =
            json!([{"from": from, "to": RESERVE, "data": alloy::hex::encode_prefixed(call.abi_encode())}, "latest"]);
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_call", "params": call});
        let said: serde_json::Value =
            common::http().post(self.chain.url()).json(&request).send().await.unwrap().json().await.unwrap();
        let data = said["error"]["data"].as_str().unwrap_or_else(|| panic!("it would not fail: {said}"));
        let data = alloy::hex::decode(data).unwrap();
        use alloy::sol_types::SolInterface;
        format!("{:?}", Abi::ITIP20ChannelReserveErrors::abi_decode(&data).unwrap())
    }
}

#[tokio::test]
async fn an_access_key_may_sign_for_who_authorized_it_until_its_end_and_not_once_it_is_taken_back() {
    let Scene { chain, reserve, payee: account, .. } = scene().await;
    let (node, url) = (Tempo::new(&Secret::new(chain.url())).unwrap(), reserve.url());
    let (key, other) = (Address::repeat_byte(7), Address::repeat_byte(8));
    let until = async |of: Address, key: Address| node.key_until(of, key).await.unwrap().0;
    assert_eq!(until(account.address, key).await, 0, "nobody has heard of it");

    let end = wallet::now() + 3_600;
    let config = Keychain::KeyRestrictions {
        expiry: end,
        enforceLimits: false,
        limits: vec![],
        allowAnyCalls: true,
        allowedCalls: vec![],
    };
    let authorize =
        Keychain::authorizeKey_1Call { keyId: key, signatureType: Keychain::SignatureType::Secp256k1, config };
    let sent = wallet::send(&url, &account.sign_to(ACCOUNT_KEYCHAIN_ADDRESS, authorize.abi_encode(), false)).await;
    sent.expect("authorized");
    let got = (until(account.address, key).await, until(account.address, other).await, until(other, key).await);
    assert_eq!(got, (end, 0, 0), "that key, for that account");

    let revoke = Keychain::revokeKeyCall { keyId: key }.abi_encode();
    wallet::send(&url, &account.sign_to(ACCOUNT_KEYCHAIN_ADDRESS, revoke, false)).await.expect("taken back");
    assert_eq!(until(account.address, key).await, 0);
}

#[tokio::test]
async fn ids_and_digests_are_those_of_the_published_vector() {
    let chain = Chain::start().await;
    let reserve = Reserve::start(&chain).await;
    let id = b256!("b0d26a1087cd96b3d63bfa58b3a73c5efa7f7e0df323ff002aca5d4f5d8f9879");
    let payer = address!("3C44CdDdB6a900fa2b585dd299e03d12FA4293BC");
    let said = reserve
        .view(Abi::computeChannelIdCall {
            payer,
            payee: address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266"),
            operator: Address::ZERO,
            token: PATH_USD.parse().unwrap(),
            salt: b256!("60d220b02991435cafe95669fa3a0cf49e7ab664a8f64a5868f4a2cd44fe7dbd"),
            authorizedSigner: payer,
            expiringNonceHash: b256!("58455eb60e015889b1dfef2e25223fe9c712945452a59eec3acc68f531b9e31b"),
        })
        .await;
    assert_eq!(said, id);
    assert_eq!(
        reserve.view(Abi::domainSeparatorCall {}).await,
        b256!("a3aa475070603a80823360e5a4a0d3b4fe2cd4e82a109ee3c21a4640a199688d")
    );
    assert_eq!(reserve.view(Abi::CLOSE_GRACE_PERIODCall {}).await, 900);
    for (amount, digest) in [
        (75u128, b256!("022cf61aff481d4cb898bca485d31c82fe2a2357797de11aff5f9f236e767903")),
        (525, b256!("a30e87f179513ebe786647e60315b561fffd730283515445f575838bfc0ebaaa")),
    ] {
        let asked = Abi::getVoucherDigestCall { channelId: id, cumulativeAmount: amount.try_into().unwrap() };
        assert_eq!(reserve.view(asked).await, digest, "the contract, {amount}");
        let signing = Signing {
            channel: id,
            amount,
            chain_id: common::chain::CHAIN_ID,
            escrow: RESERVE.parse().unwrap(),
            name: "TIP20 Channel Reserve".into(),
            version: "1".into(),
            key: Wallet::empty().signer,
        };
        assert_eq!(wallet::digest(&signing), digest, "the wallet, {amount}");
    }
}

#[tokio::test]
async fn a_channel_pays_what_was_signed_and_gives_the_rest_back() {
    let s = scene().await;
    let (rpc, id) = (s.reserve.url(), s.channel.id);
    let opened = Event::Opened {
        deposit: DEPOSIT,
        payer: s.channel.payer.address,
        nonce_hash: s.channel.descriptor.expiringNonceHash,
    };
    assert_eq!(s.reserve.events(&id).await, std::slice::from_ref(&opened), "the wallet's id is not the chain's");
    assert_eq!(s.reserve.state(&id).await, OnChain { settled: 0, deposit: DEPOSIT, close_requested_at: 0 });
    assert_eq!((s.reserve.locked().await, s.holds(s.channel.payer.address).await), (DEPOSIT, 900_000));

    s.payee.call(&rpc, s.channel.settle_call(30_000)).await.unwrap();
    s.channel.payer.call(&rpc, s.channel.top_up_call(50_000)).await.unwrap();
    assert_eq!(s.reserve.state(&id).await, OnChain { settled: 30_000, deposit: 150_000, close_requested_at: 0 });
    assert_eq!(s.holds(s.payee.address).await, 30_000);

    // Signed 120,000, captured 70,000.
    s.payee.call(&rpc, s.channel.close_call(120_000, 70_000)).await.unwrap();
    assert_eq!(s.reserve.state(&id).await, OnChain::default());
    assert_eq!((s.holds(s.payee.address).await, s.holds(s.channel.payer.address).await), (70_000, 930_000));
    assert_eq!(s.reserve.locked().await, 0);
    let rest = [
        opened,
        Event::Settled { cumulative: 30_000, paid: 30_000 },
        Event::TopUp { added: 50_000, deposit: 150_000 },
        Event::Closed { settled: 70_000, refunded: 80_000 },
    ];
    assert_eq!(s.reserve.events(&id).await, rest);
}

#[tokio::test]
async fn a_payer_leaves_by_itself_after_the_grace_period_and_a_top_up_takes_its_request_back() {
    let s = scene().await;
    let (rpc, id, channel) = (s.reserve.url(), s.channel.id, &s.channel);
    channel.request_close(&rpc).await.unwrap();
    let asked_at = s.reserve.state(&id).await.close_requested_at;
    assert!(asked_at > 0);
    assert_eq!(s.reserve.events(&id).await[1], Event::CloseRequested { grace_end: asked_at + 900 });
    channel.payer.call(&rpc, channel.top_up_call(1)).await.unwrap();
    assert_eq!(s.reserve.state(&id).await.close_requested_at, 0);
    assert_eq!(s.reserve.events(&id).await[2], Event::CloseCancelled);

    channel.request_close(&rpc).await.unwrap();
    let payer = channel.payer.address;
    assert!(s.why_not(payer, channel.withdraw_call()).await.contains("CloseNotReady"));
    s.reserve.age_close_request(&id, 890).await;
    assert!(s.why_not(payer, channel.withdraw_call()).await.contains("CloseNotReady"));
    s.payee.call(&rpc, channel.settle_call(40_000)).await.expect("the seller still collects");
    s.reserve.age_close_request(&id, 10).await;
    channel.withdraw(&rpc).await.unwrap();
    assert_eq!((s.holds(s.payee.address).await, s.holds(payer).await), (40_000, 960_000));
    assert_eq!(s.reserve.state(&id).await, OnChain::default());
}

#[tokio::test]
async fn the_reserve_refuses_what_the_published_one_refuses() {
    let s = scene().await;
    let (channel, payee, payer) = (&s.channel, s.payee.address, s.channel.payer.address);
    let stranger = Wallet::empty();
    let forged = |change: &dyn Fn(&mut Signing)| {
        let mut call = channel.settle_call(10);
        call.signature = channel
            .sign(|v| {
                v.amount = 10;
                change(v)
            })
            .into();
        call
    };
    let form = |bytes: Vec<u8>| Abi::settleCall { signature: bytes.into(), ..channel.settle_call(10) };
    let good = channel.voucher(10);
    let other = channel.bent(|d| d.salt = B256::ZERO);
    for (row, said, want) in [
        ("too much", s.why_not(payee, channel.settle_call(DEPOSIT + 1)).await, "AmountExceedsDeposit"),
        ("nothing new", s.why_not(payee, channel.settle_call(0)).await, "AmountNotIncreasing"),
        ("the payer settles", s.why_not(payer, channel.settle_call(10)).await, "NotPayeeOrOperator"),
        ("a stranger closes", s.why_not(stranger.address, channel.close_call(10, 10)).await, "NotPayeeOrOperator"),
        ("another channel", s.why_not(payee, other.settle_call(10)).await, "ChannelNotFound"),
        ("capture over voucher", s.why_not(payee, channel.close_call(10, 11)).await, "CaptureAmountInvalid"),
        ("the payee tops up", s.why_not(payee, channel.top_up_call(1)).await, "NotPayer"),
        ("the payee asks to close", s.why_not(payee, channel.request_close_call()).await, "NotPayer"),
        ("no request", s.why_not(payer, channel.withdraw_call()).await, "CloseNotReady"),
        ("overflow", s.why_not(payer, channel.top_up_call((1 << 96) - 1)).await, "DepositOverflow"),
        ("another amount", s.why_not(payee, forged(&|v| v.amount = 11)).await, "InvalidSignature"),
        ("another chain", s.why_not(payee, forged(&|v| v.chain_id += 1)).await, "InvalidSignature"),
        ("another escrow", s.why_not(payee, forged(&|v| v.escrow = payer)).await, "InvalidSignature"),
        (
            "another domain",
            s.why_not(payee, forged(&|v| v.name = "Tempo Stream Channel".into())).await,
            "InvalidSignature",
        ),
        ("another version", s.why_not(payee, forged(&|v| v.version = "2".into())).await, "InvalidSignature"),
        ("another key", s.why_not(payee, forged(&|v| v.key = stranger.signer.clone())).await, "InvalidSignature"),
        ("high s", s.why_not(payee, form(wallet::high_s(&good))).await, "InvalidSignature"),
        ("v from 0", s.why_not(payee, form(wallet::with_v(&good, good[64] - 27))).await, "InvalidSignature"),
        ("compact", s.why_not(payee, form(wallet::compact(&good))).await, "InvalidSignature"),
    ] {
        assert!(said.contains(want), "{row}: {said}");
    }
    let mut nobody = channel.payer.terms(Address::ZERO, 1);
    assert!(channel.payer.open_on(nobody.clone()).open_on_chain(&s.reserve.url()).await.is_err(), "no payee");
    (nobody.payee, nobody.deposit) = (payee, 0);
    assert!(channel.payer.open_on(nobody).open_on_chain(&s.reserve.url()).await.is_err(), "no deposit");
    assert_eq!(
        s.reserve.view(Abi::getChannelStatesBatchCall { channelIds: vec![channel.id, other.id] }).await[0]
            .deposit
            .to::<u128>(),
        DEPOSIT
    );
    assert!(U256::from(s.reserve.locked().await) == U256::from(DEPOSIT), "a refused call moved money");
}

#[tokio::test]
async fn channels_opened_at_once_are_all_known_by_their_wallets_ids() {
    let s = scene().await;
    let rpc = s.reserve.url();
    let channels: Vec<_> =
        (0..5).map(|_| s.channel.payer.open_on(s.channel.payer.terms(s.payee.address, 1_000))).collect();
    let opened = futures::future::join_all(channels.iter().map(|c| c.open_on_chain(&rpc))).await;
    assert!(opened.iter().all(Result::is_ok), "{opened:?}");
    for channel in &channels {
        assert_eq!(s.reserve.state(&channel.id).await.deposit, 1_000);
    }
}

#[tokio::test]
async fn an_opening_that_a_sponsor_pays_gas_for_has_the_wallets_id_too() {
    let s = scene().await;
    let (sponsor, payer) = (Wallet::fresh(&s.chain, 0).await, Wallet::fresh(&s.chain, 1_000).await);
    let mut terms = payer.terms(s.payee.address, 1_000);
    terms.sponsored = true;
    let channel = payer.open_on(terms);
    assert_eq!(channel.transaction[0], 0x78);
    let gas = s.chain.balance(BETA_USD, &payer.address.to_string()).await;
    wallet::send(&s.reserve.url(), &sponsor.cosign(&channel.transaction)).await.unwrap();
    assert_eq!(s.reserve.state(&channel.id).await.deposit, 1_000);
    assert_eq!(s.holds(payer.address).await, 0);
    assert_eq!(s.chain.balance(BETA_USD, &payer.address.to_string()).await, gas, "the payer paid gas");
}

#[tokio::test]
async fn an_opening_whose_answer_was_lost_is_on_the_chain() {
    let s = scene().await;
    let road = RpcProxy::start(&s.reserve.url()).await;
    let channel = s.channel.payer.open_on(s.channel.payer.terms(s.payee.address, 1_000));
    road.once("eth_sendRawTransactionSync", Fault::DropReply);
    assert!(channel.open_on_chain(&road.url()).await.is_err());
    assert_eq!(s.reserve.state(&channel.id).await.deposit, 1_000);
}

#[tokio::test]
async fn an_operator_and_a_separate_signer_are_as_good_as_payee_and_payer() {
    let s = scene().await;
    let rpc = s.reserve.url();
    let (operator, signer) = (Wallet::fresh(&s.chain, 0).await, Wallet::empty());
    let mut terms = s.channel.payer.terms(s.payee.address, 1_000);
    (terms.operator, terms.authorized_signer) = (operator.address, signer.address);
    let mut channel = s.channel.payer.open_on(terms);
    channel.open_on_chain(&rpc).await.unwrap();
    assert!(
        s.why_not(operator.address, channel.settle_call(400)).await.contains("InvalidSignature"),
        "the payer's key"
    );
    channel.key = signer.signer;
    operator.call(&rpc, channel.settle_call(400)).await.unwrap();
    operator.call(&rpc, channel.close_call(500, 500)).await.unwrap();
    assert_eq!(s.holds(s.payee.address).await, 500);
}

#[tokio::test]
async fn the_gate_hears_of_requests_to_close_of_its_payee_in_the_blocks_it_asks_about_and_of_nothing_else() {
    let s = scene().await;
    let (rpc, payee) = (s.reserve.url(), s.payee.address);
    let node = Tempo::new(&Secret::new(rpc.as_str())).unwrap();
    let open = async |payee: Address| {
        let payer = Wallet::fresh(&s.chain, 1_000_000).await;
        let channel = payer.open_on(payer.terms(payee, DEPOSIT));
        channel.open_on_chain(&rpc).await.expect("opened");
        channel
    };
    let (other, elses) = (open(payee).await, open(common::channels::nobody()).await);
    // Everything else that happens to a channel, and a request to close one of somebody else.
    s.payee.call(&rpc, other.settle_call(30_000)).await.unwrap();
    other.payer.call(&rpc, other.top_up_call(50_000)).await.unwrap();
    elses.request_close(&rpc).await.unwrap();
    let before = s.chain.block_number().await;
    assert_eq!(node.close_requests(payee, 0, before).await, Ok(Vec::new()));
    assert_eq!(node.close_requests(common::channels::nobody(), 0, before).await, Ok(vec![elses.id]));

    s.channel.request_close(&rpc).await.unwrap();
    let asked = s.chain.block_number().await;
    assert_eq!(node.close_requests(payee, before + 1, asked).await, Ok(vec![s.channel.id]));
    // A top-up takes it back: that is no request.
    s.channel.payer.call(&rpc, s.channel.top_up_call(10_000)).await.unwrap();
    other.request_close(&rpc).await.unwrap();
    let newest = s.chain.block_number().await;
    assert_eq!(node.close_requests(payee, asked + 1, newest).await, Ok(vec![other.id]));
    assert_eq!(node.close_requests(payee, 0, newest).await, Ok(vec![s.channel.id, other.id]), "in order");
}
