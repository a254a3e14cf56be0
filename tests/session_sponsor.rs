//! Carrying the fees of channels on a real chain: a wallet that holds its deposit and nothing else opens and tops up, whoever carries
//! the fee, and nothing is sent for a wallet that says more to the chain than that.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use alloy::primitives::{Address, Bytes, TxKind, U256};
use alloy::sol_types::SolCall as _;
use common::chain::{BETA_USD, FEE_MANAGER};
use common::channels::{CHAT, INPUT, OUTPUT, SessionBed, assert_challenged, chat, code};
use common::reserve::{Event, RESERVE};
use common::session::CrateSession;
use common::wallet::Channel;
use common::{Chain, DEV, GateOptions, PATH_USD, Wallet, client, eventually, payer, relay};
use mpp::PaymentChallenge;
use serde_json::{Value, json};
use std::time::Duration;
use tempo_alloy::contracts::precompiles::ITIP20;
use tempo_alloy::primitives::transaction::Call;

const SPONSOR: &str = DEV[8].address;
const MODEL: &str = "openai/gpt-oss-120b";
const SHORT: Duration = Duration::from_secs(20);

fn sponsored(options: GateOptions, usd_per_day: &str) -> GateOptions {
    let sponsor =
        format!("accept_push = false\nsponsor = {{ key = \"env:SPONSOR_KEY\", usd_per_day = \"{usd_per_day}\" }}");
    options.conf_edit("accept_push = false", &sponsor).env("SPONSOR_KEY", DEV[8].key)
}

async fn bed(usd_per_day: &str) -> SessionBed {
    SessionBed::with(|options| sponsored(options, usd_per_day)).await
}

/// An account that holds exactly `atoms` of pathUSD, which the reserve may take, and nothing that could pay a fee beside it.
async fn penniless(chain: &Chain, atoms: u128) -> Wallet {
    let wallet = Wallet::empty();
    let address = wallet.address.to_string();
    // The local reserve needs an approval, and that costs gas: given first, and taken away.
    chain.fund(&address, 1_000_000).await;
    let transfer = |to: &str, atoms: u128| {
        let to: Address = to.parse().unwrap();
        alloy::hex::encode_prefixed(ITIP20::transferCall { to, amount: U256::from(atoms) }.abi_encode())
    };
    let left = chain.balance(BETA_USD, &address).await;
    chain.rpc("anvil_impersonateAccount", json!([address])).await;
    let away = json!([{"from": address, "to": BETA_USD, "data": transfer(DEV[9].address, left), "gas": "0x1e8480", "feeToken": PATH_USD}]);
    let tx = chain.rpc("eth_sendTransaction", away).await;
    chain.mined(tx.as_str().unwrap()).await;
    chain.rpc("anvil_stopImpersonatingAccount", json!([address])).await;
    let held = chain.balance(PATH_USD, &address).await;
    let call =
        json!([{"from": DEV[9].address, "to": PATH_USD, "data": transfer(&address, atoms - held), "gas": "0x1e8480"}]);
    let tx = chain.rpc("eth_sendTransaction", call).await;
    chain.mined(tx.as_str().unwrap()).await;
    assert_eq!(holds(chain, &wallet).await, (atoms, 0));
    wallet
}

/// Atoms of pathUSD, and of the token that other wallets pay fees in.
async fn holds(chain: &Chain, wallet: &Wallet) -> (u128, u128) {
    let address = wallet.address.to_string();
    (chain.balance(PATH_USD, &address).await, chain.balance(BETA_USD, &address).await)
}

/// Who paid the fee of each transaction of a channel: whose money went to the chain's fee manager. (The local chain's receipts name
/// the sender as `feePayer`, whoever paid.)
async fn carriers(bed: &SessionBed, channel: &str) -> Vec<(Event, Address)> {
    let mut all = Vec::new();
    for (event, tx) in bed.reserve.logs(&channel.parse().unwrap()).await {
        let receipt = bed.chain.rpc("eth_getTransactionReceipt", json!([tx])).await;
        let logs = receipt["logs"].as_array().unwrap();
        let account =
            |log: &Value, topic: usize| Some(Address::from_word(log["topics"][topic].as_str()?.parse().ok()?));
        let manager: Address = FEE_MANAGER.parse().unwrap();
        let fees: Vec<Address> = logs
            .iter()
            .filter(|log| account(log, 2) == Some(manager) && log["topics"].as_array().unwrap().len() == 3)
            .filter_map(|log| account(log, 1))
            .collect();
        let [carrier] = fees.as_slice() else { panic!("one fee, not {fees:?}: {receipt}") };
        all.push((event, *carrier));
    }
    all
}

/// The channel was opened, topped up and closed; the first two on `carrier`, the last on the seller.
async fn assert_carried(bed: &SessionBed, channel: &str, carrier: &str, why: &str) {
    let all = carriers(bed, channel).await;
    for (event, who) in &all {
        let ours = matches!(event, Event::Settled { .. } | Event::Closed { .. });
        let want: Address = if ours { DEV[1].address } else { carrier }.parse().unwrap();
        assert_eq!(*who, want, "{why}: {event:?}");
    }
    let has = |of: fn(&Event) -> bool| all.iter().any(|(event, _)| of(event));
    assert!(has(|e| matches!(e, Event::Opened { .. })), "{why}: {all:?}");
    assert!(has(|e| matches!(e, Event::TopUp { .. })), "{why}: {all:?}");
    assert!(has(|e| matches!(e, Event::Closed { .. })), "{why}: {all:?}");
}

fn says_fee_payer(offer: &PaymentChallenge) -> bool {
    payer::terms(offer)["methodDetails"]["feePayer"] == true
}

/// A top-up whose fee is left to the seller, by any transaction.
fn top_up(channel: &Channel, offer: &PaymentChallenge, additional: u128, input: Vec<u8>) -> String {
    let raw = channel.payer.sign(input, true);
    let payload = json!({
        "action": "topUp", "type": "transaction", "channelId": channel.id, "descriptor": channel.wire(),
        "transaction": alloy::hex::encode_prefixed(raw), "additionalDeposit": additional.to_string(),
    });
    channel.credential(offer, payload)
}

async fn counted(bed: &SessionBed, outcome: &str) -> f64 {
    bed.gate.metric("pontage_sponsored_total", &[("rail", "tempo/session"), ("outcome", outcome)]).await
}

/// What the backend reported, at the price, each request rounded up.
fn due(bed: &SessionBed) -> u128 {
    let (prompt, completion) = bed.backend.usage_reported();
    u128::from(prompt) * INPUT + u128::from(completion) * OUTPUT
}

const HELD: u128 = 5_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn wallets_that_hold_their_deposit_and_nothing_else_open_and_top_up() {
    let bed = bed("20").await;
    let before = bed.chain.balance(PATH_USD, SPONSOR).await;
    for who in ["mppx", "the crate", "by hand"] {
        let (sold, wallet) = (due(&bed), penniless(&bed.chain, HELD).await);
        let (rpc, url) = (bed.reserve.url(), bed.gate.chat_url());
        let channel = match who {
            "mppx" => {
                let key = wallet.secret();
                let flags = [
                    ("url", url.as_str()),
                    ("rpc", &rpc),
                    ("key", &key),
                    ("model", MODEL),
                    ("max_tokens", "10"),
                    ("steps", "json,topup=0.02,sse,close"),
                ];
                let out = client::node("session.mjs", &flags).await;
                assert_eq!(out["ok"], true, "{out:#}");
                out["channel"].as_str().unwrap().to_owned()
            }
            // It locks no more than this at first, and tops up when a request asks for more than is left of it.
            "the crate" => {
                let session = CrateSession::new(&wallet, &rpc, &url, 1_000_000);
                assert_eq!(session.ask(&chat()).await.status, 200);
                let channel = session.channel().expect("a channel").to_string();
                let snapshot = bed.reserve.state(&channel.parse().unwrap()).await;
                let mut dear = chat();
                dear["max_tokens"] = json!(2_000);
                for _ in 0..3 {
                    assert_eq!(session.ask(&dear).await.status, 200, "{snapshot:?}");
                }
                session.close().await.expect("a receipt");
                channel
            }
            _ => {
                let (offer, start) = bed.offer(CHAT, &chat()).await;
                assert!(says_fee_payer(&offer));
                let channel = wallet.open(&offer, |_| ());
                let reply = bed.buy(&channel.open_credential(&offer, start), &chat()).await;
                assert_eq!(reply.status, 200, "{}", reply.text());
                let offer = bed.fresh().await;
                let more = top_up(&channel, &offer, 20_000, channel.top_up_call(20_000).abi_encode());
                let reply = bed.manage(&more).await;
                assert_eq!(reply.status, 204, "{}", reply.text());
                let reply = bed.manage(&more).await;
                assert!([204, 402, 409].contains(&reply.status), "once more: {}", reply.text());
                assert_eq!(bed.reserve.state(&channel.id).await.deposit, channel.deposit + 20_000, "added once");
                let reply = bed.manage(&channel.close_credential(&bed.fresh().await, start)).await;
                assert_eq!(reply.status, 204, "{}", reply.text());
                channel.id.to_string()
            }
        };
        assert_carried(&bed, &channel, SPONSOR, who).await;
        let paid = due(&bed) - sold;
        assert!(paid > 0, "{who}");
        assert_eq!(holds(&bed.chain, &wallet).await, (HELD - paid, 0), "{who}: it paid what was used and no fee");
    }
    assert_eq!(bed.reserve.locked().await, 0);
    assert!(counted(&bed, "cosigned").await >= 6.0);
    let cost = before - bed.chain.balance(PATH_USD, SPONSOR).await;
    assert!(cost > 0 && cost < 300_000, "{cost}");
    let told = async || bed.gate.metric("pontage_sponsored_usd_total", &[("rail", "tempo/session")]).await;
    #[allow(clippy::cast_precision_loss)]
    let same = eventually(SHORT, || async { (told().await * 1e6 - cost as f64).abs() < 0.5 }).await;
    assert!(same, "told {} USD, took {cost} atoms", told().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_carries_the_fees_of_a_channel() {
    let url = relay::start(&DEV[7]).await;
    let bed = SessionBed::with(|options| {
        options
            .conf_edit("accept_push = false", "accept_push = false\nsponsor = { relay = \"env:FEE_RELAY\" }")
            .env("FEE_RELAY", &url)
    })
    .await;
    let wallet = penniless(&bed.chain, HELD).await;
    let (rpc, url, key) = (bed.reserve.url(), bed.gate.chat_url(), wallet.secret());
    let flags = [
        ("url", url.as_str()),
        ("rpc", &rpc),
        ("key", &key),
        ("model", MODEL),
        ("max_tokens", "10"),
        ("steps", "json,topup=0.02,sse,close"),
    ];
    let out = client::node("session.mjs", &flags).await;
    assert_eq!(out["ok"], true, "{out:#}");
    assert_carried(&bed, out["channel"].as_str().unwrap(), DEV[7].address, "relay").await;
    assert_eq!(holds(&bed.chain, &wallet).await, (HELD - due(&bed), 0), "it paid what was used and no fee");
    assert!(!bed.gate.log().contains("a-key-in-the-path"), "the relay's address is not repeated");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_says_more_to_the_chain_than_is_due_is_refused_before_anything_is_sent() {
    let bed = bed("20").await;
    let (wallet, thief) = (penniless(&bed.chain, HELD).await, Wallet::empty());
    let (offer, start) = bed.offer(CHAT, &chat()).await;
    let good = wallet.open(&offer, |_| ());
    let reply = bed.manage(&good.open_credential(&offer, start)).await;
    assert_eq!(reply.status, 204, "{}", reply.text());
    let before = bed.chain.balance(PATH_USD, SPONSOR).await;
    bed.rpc.forget();
    let (offer, start) = bed.offer(CHAT, &chat()).await;
    let pays = ITIP20::transferCall { to: thief.address, amount: U256::from(1) }.abi_encode();
    let to = |to: &str, input: &[u8]| Call {
        to: TxKind::Call(to.parse().unwrap()),
        value: U256::ZERO,
        input: Bytes::copy_from_slice(input),
    };
    let request = good.request_close_call().abi_encode();
    let mut refused: Vec<(String, &str)> = Vec::new();
    for (before, after, why) in [
        (vec![to(PATH_USD, &pays)], vec![], "a payment that rides along"),
        (vec![], vec![to(PATH_USD, &pays)], "a payment behind it"),
        (vec![to(PATH_USD, &[])], vec![], "an empty call"),
        (vec![], vec![to(RESERVE, &request)], "another word to the reserve"),
    ] {
        let bent = wallet.open(&offer, |open| (open.before, open.after) = (before, after));
        refused.push((bent.open_credential(&offer, start), why));
    }
    for (gas, why) in [(2_000_001, "more gas than is carried"), (40_000_000, "all the gas of a block")] {
        let bent = wallet.open(&offer, |open| open.gas_limit = gas);
        refused.push((bent.open_credential(&offer, start), why));
    }
    let late = wallet.open(&offer, |open| open.valid_before += 3_600);
    refused.push((late.open_credential(&offer, start), "valid for an hour"));
    let call = good.top_up_call(20_000).abi_encode();
    for (input, why) in [
        ([&call[..], &[0; 3_200]].concat(), "padded: every byte costs gas"),
        ([&call[..], &[0]].concat(), "padded by one byte"),
        (request.clone(), "a request to close instead"),
        (good.withdraw_call().abi_encode(), "a withdrawal instead"),
        (good.top_up_call(30_000).abi_encode(), "another amount than it says"),
    ] {
        refused.push((top_up(&good, &offer, 20_000, input), why));
    }
    let open = wallet.open(&offer, |_| ());
    let mut payload = open.open_payload(start);
    payload["transaction"] = json!(alloy::hex::encode_prefixed(wallet.cosign(&open.transaction)));
    refused.push((open.credential(&offer, payload), "carried by somebody else already"));
    for (credential, why) in refused {
        assert_challenged(&bed.manage(&credential).await, "payment_invalid", why);
    }
    assert_eq!(bed.rpc.broadcasts(), 0, "nothing was sent");
    assert_eq!(bed.chain.balance(PATH_USD, SPONSOR).await, before, "and it cost nothing");
    // A payment that cannot work is tried once on the newest state, and then not any more.
    let broke = wallet.open(&offer, |open| open.deposit = 2 * HELD);
    for _ in 0..2 {
        let reply = bed.manage(&broke.open_credential(&offer, start)).await;
        assert_challenged(&reply, "payment_invalid", "more than the wallet has");
    }
    assert_eq!((counted(&bed, "fails").await, bed.rpc.broadcasts()), (1.0, 0));
    assert_eq!(bed.chain.balance(PATH_USD, SPONSOR).await, before);
    let reply = bed.manage(&good.close_credential(&bed.fresh().await, start)).await;
    assert_eq!(reply.status, 204, "the good channel is as it was: {}", reply.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_budget_is_said_and_the_channel_opens_on_the_payers_own_fee() {
    // Room for one transaction of these wallets, whose limits allow 0.04 USD.
    let bed = bed("0.05").await;
    let before = bed.chain.balance(PATH_USD, SPONSOR).await;
    let mut opened = Vec::new();
    for _ in 0..6 {
        let wallet = bed.wallet().await;
        let (offer, start) = bed.offer(CHAT, &chat()).await;
        assert!(says_fee_payer(&offer), "nothing is spent yet");
        opened.push((wallet.open(&offer, |_| ()), offer, start));
    }
    let asking = opened.iter().map(|(channel, offer, start)| async {
        let credential = channel.open_credential(offer, *start);
        bed.manage(&credential).await
    });
    let replies = futures::future::join_all(asking).await;
    let mut carried = 0;
    for (reply, (channel, ..)) in replies.iter().zip(&opened) {
        let deposit = bed.reserve.state(&channel.id).await.deposit;
        if reply.status == 204 {
            carried += 1;
            assert_eq!(deposit, channel.deposit);
            continue;
        }
        assert_challenged(reply, "payment_invalid", "the budget is used up");
        assert!(reply.text().contains("carried"), "it says why: {}", reply.text());
        assert_eq!(deposit, 0, "and nothing was locked");
    }
    assert!((1..6).contains(&carried), "{carried}");
    let cost = before - bed.chain.balance(PATH_USD, SPONSOR).await;
    assert!(cost > 0 && cost <= 50_000, "{cost}");
    // Who was refused pays his own fee, and is served.
    let at = replies.iter().position(|reply| reply.status != 204).unwrap();
    let (offer, start) = bed.offer(CHAT, &chat()).await;
    assert!(!says_fee_payer(&offer), "what is left does not cover every allowed transaction");
    let own = opened[at].0.payer.open(&offer, |_| ());
    let reply = bed.buy(&own.open_credential(&offer, start), &chat()).await;
    assert_eq!(reply.status, 200, "{} {}", code(&reply), reply.text());
    assert_eq!(before - bed.chain.balance(PATH_USD, SPONSOR).await, cost, "not on the sponsor");
    assert!(bed.gate.log().contains("budget for today is used up"), "the operator is told");
}
