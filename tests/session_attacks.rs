//! Sessions under bad input: nothing but a payer's own word, for this channel, on this chain, to us, moves money; and nothing
//! that is not such a word costs anybody anything.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use alloy::primitives::{Address, B256, U256, keccak256};
use common::channels::{CHAT, OTHER, SessionBed, atoms, chat, nobody, offered, streamed};
use common::gate::CHALLENGE_KEY;
use common::wallet::{self, Wallet};
use common::{Raw, RawReply, payer};
use serde_json::{Value, json};
use std::time::Duration;

const SHORT: Duration = Duration::from_secs(20);

fn code(reply: &RawReply) -> String {
    reply.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
}

/// A refusal that invites to pay, as it must: with this code and a fresh session offer.
fn assert_challenged(reply: &RawReply, want: &str, why: &str) {
    assert_eq!((reply.status, code(reply).as_str()), (402, want), "{why}: {}", reply.text());
    offered(reply);
}

/// Shows a credential to be managed and to buy; both must be refused with one of these codes, nothing served, nothing asked.
async fn refused_both_ways(bed: &SessionBed, credential: &str, status: u16, codes: &[&str], why: &str) {
    let (served, asked) = (bed.served(), bed.rpc.broadcasts());
    for reply in
        [bed.manage(credential).await, bed.buy(credential, &chat()).await, bed.buy(credential, &streamed()).await]
    {
        assert_eq!(reply.status, status, "{why}: {}", reply.text());
        assert!(codes.contains(&code(&reply).as_str()), "{why}: {}", reply.text());
        offered(&reply);
    }
    assert_eq!((bed.served(), bed.rpc.broadcasts()), (served, asked), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_signers_own_voucher_for_this_channel_here_is_taken() {
    let bed = SessionBed::open().await;
    let (channel, offer) = bed.channel(50_000, 1_000).await;
    let stranger = Wallet::empty();
    let (other, _) = bed.channel(50_000, 1_000).await;
    let amount = 5_000;
    let signed = channel.voucher(amount);
    let with = |signature: &[u8]| channel.credential(&offer, channel.signed_payload(amount, signature));
    let bent = |change: &dyn Fn(&mut wallet::Signing)| {
        with(&channel.sign(|v| {
            v.amount = amount;
            change(v);
        }))
    };
    let odd = |change: &dyn Fn(&mut Value)| {
        let mut payload = channel.voucher_payload(amount);
        change(&mut payload);
        channel.credential(&offer, payload)
    };
    let keychain = |kind: u8| [&[kind][..], stranger.address.as_slice(), &signed].concat();
    let signer: &[&str] = &["signer_mismatch"];
    let form: &[&str] = &["voucher_invalid"];
    let either: &[&str] = &["signer_mismatch", "voucher_invalid"];
    let invalid: &[&str] = &["payment_invalid"];
    for (credential, codes, why) in [
        (bent(&|v| v.channel = other.id), signer, "signed for another channel"),
        (bent(&|v| v.chain_id = 4217), signer, "signed for another chain"),
        (bent(&|v| v.escrow = nobody()), signer, "signed for another escrow"),
        (bent(&|v| v.name = "Tempo Stream Channel".into()), signer, "domain of v1"),
        (bent(&|v| v.version = "2".into()), signer, "another version of the domain"),
        (bent(&|v| v.amount = amount - 1), signer, "signed for less than it says"),
        (bent(&|v| v.key = stranger.signer.clone()), signer, "signed by a stranger"),
        (with(&wallet::high_s(&signed)), form, "the upper half of s"),
        (with(&wallet::with_v(&signed, 2)), form, "v = 2"),
        (with(&wallet::with_v(&signed, 29)), form, "v = 29"),
        (with(&wallet::with_v(&signed, 0xff)), form, "v = 255"),
        (with(&wallet::compact(&signed)), either, "EIP-2098"),
        (with(&keychain(3)), either, "keychain wrapper"),
        (with(&keychain(4)), either, "keychain wrapper v2"),
        (with(&[&[1u8][..], &[7; 129]].concat()), either, "P-256 that nobody signed"),
        (with(&[&[2u8][..], &[7; 200]].concat()), either, "WebAuthn that nobody signed"),
        (with(&[]), form, "nothing"),
        (with(&[0; 65]), either, "zeros"),
        (with(&vec![1; 4_000]), form, "more than any signature has"),
        (with(&[&signed[..], &[0]].concat()), either, "one byte more"),
        (odd(&|p| p["channelId"] = json!(other.id)), invalid, "another channel's id"),
        (odd(&|p| p["channelId"] = json!("0x00")), invalid, "no id"),
        (odd(&|p| drop(p.as_object_mut().unwrap().remove("channelId"))), invalid, "without its id"),
        (odd(&|p| p["descriptor"]["payee"] = json!(nobody())), invalid, "another payee, same id"),
        (odd(&|p| p["descriptor"]["salt"] = json!(B256::ZERO)), invalid, "another salt, same id"),
        (odd(&|p| p["descriptor"]["payer"] = json!("0x12")), invalid, "half an address"),
        (odd(&|p| p["action"] = json!("settle")), invalid, "an action of ours"),
        (odd(&|p| p["action"] = json!("open")), invalid, "an opening without a transaction"),
        (odd(&|p| p["action"] = json!("topUp")), invalid, "a top-up without a transaction"),
        (odd(&|p| p["cumulativeAmount"] = json!("6000")), signer, "more than was signed"),
        (odd(&|p| p["cumulativeAmount"] = json!("79228162514264337593543950336")), form, "2^96"),
        (odd(&|p| p["cumulativeAmount"] = json!("340282366920938463463374607431768216456")), form, "2^128 and 5000"),
        (odd(&|p| p["cumulativeAmount"] = json!("-5000")), form, "less than nothing"),
        (odd(&|p| p["cumulativeAmount"] = json!("05000")), form, "two spellings of one amount"),
        (odd(&|p| p["cumulativeAmount"] = json!("5e3")), form, "a float"),
        (odd(&|p| p["cumulativeAmount"] = json!("")), form, "no digits"),
        (odd(&|p| p["cumulativeAmount"] = json!(5000)), invalid, "a number, not text"),
        (odd(&|p| *p = json!([])), invalid, "no object"),
    ] {
        refused_both_ways(&bed, &credential, 402, codes, why).await;
    }
    // The descriptor's own word is bound by the channel's id: each change is another channel.
    for (bent, status, codes, why) in [
        (channel.bent(|d| d.payee = nobody()), 402, invalid, "to another payee"),
        (channel.bent(|d| d.operator = nobody()), 402, invalid, "with a foreign operator"),
        (channel.bent(|d| d.token = common::chain::BETA_USD.parse().unwrap()), 402, invalid, "of another token"),
        (channel.bent(|d| d.authorizedSigner = stranger.address), 402, signer, "with another signer"),
        (channel.bent(|d| d.salt = B256::ZERO), 410, &["channel_not_found"][..], "with another salt"),
        (channel.bent(|d| d.expiringNonceHash = B256::ZERO), 410, &["channel_not_found"][..], "of another opening"),
        (channel.bent(|d| d.payer = stranger.address), 410, &["channel_not_found"][..], "of another payer"),
    ] {
        let credential = bent.voucher_credential(&offer, amount);
        refused_both_ways(&bed, &credential, status, codes, why).await;
    }
    for source in
        ["did:pkh:eip155:4217:{}", "did:pkh:eip155:42431:0x0000000000000000000000000000000000000001", "me", ""]
    {
        let source = source.replace("{}", &channel.payer.address.to_string());
        let credential = payer::bend(&channel.voucher_credential(&offer, amount), |c| c["source"] = json!(source));
        refused_both_ways(&bed, &credential, 402, signer, &source).await;
    }
    let snapshot = bed.snapshot(&channel).await;
    assert_eq!((atoms(&snapshot["acceptedCumulative"]), atoms(&snapshot["spent"])), (1_000, 0), "{snapshot}");
    // And the true one, in each spelling of its recovery id, is one voucher.
    let bare = wallet::with_v(&signed, signed[64] - 27);
    for signature in [&signed, &bare, &signed] {
        let reply = bed.manage(&with(signature)).await;
        assert_eq!(reply.status, 204, "{}", reply.text());
    }
    assert_eq!(atoms(&bed.snapshot(&channel).await["acceptedCumulative"]), amount);
    let reply = bed.buy(&channel.voucher_credential(&bed.fresh().await, amount), &chat()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    bed.close(&[&channel, &other]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_is_good_only_as_it_was_issued_here_and_for_its_path() {
    let bed = SessionBed::open().await;
    let (channel, offer) = bed.channel(50_000, 1_000).await;
    let good = channel.voucher_credential(&offer, 5_000);
    let (elsewhere, _) = bed.offer(OTHER, &chat()).await;
    let altered = |change: &dyn Fn(&mut Value)| payer::bend(&good, |c| change(&mut c["challenge"]));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let inside = |slot: &str, change: &dyn Fn(&mut Value)| {
        payer::bend(&good, |c| {
            let mut words: Value =
                serde_json::from_slice(&mpp::base64url_decode(&text(&c["challenge"][slot])).unwrap()).unwrap();
            change(&mut words);
            c["challenge"][slot] = json!(mpp::base64url_encode(words.to_string().as_bytes()));
        })
    };
    let wrong: &[&str] = &["invalid_challenge"];
    for (credential, why) in [
        (channel.voucher_credential(&elsewhere, 5_000), "offered on another path"),
        (altered(&|c| c["realm"] = json!("other.example")), "another realm"),
        (altered(&|c| c["id"] = json!("A".repeat(43))), "another id"),
        (altered(&|c| c["expires"] = json!("2099-01-01T00:00:00Z")), "a longer life"),
        (altered(&|c| drop(c.as_object_mut().unwrap().remove("expires"))), "no end"),
        (altered(&|c| c["digest"] = json!("sha-256=AAAA")), "a digest"),
        (altered(&|c| drop(c.as_object_mut().unwrap().remove("opaque"))), "without our words"),
        (altered(&|c| c["intent"] = json!("charge")), "as a charge"),
        (inside("request", &|r| r["amount"] = json!("1")), "a smaller amount"),
        (inside("request", &|r| r["recipient"] = json!(nobody())), "another payee"),
        (inside("request", &|r| r["methodDetails"]["minVoucherDelta"] = json!("0")), "another delta"),
        (inside("request", &|r| r["methodDetails"]["operator"] = json!(nobody())), "an operator"),
        (inside("request", &|r| r["methodDetails"]["sessionProtocol"] = json!("v1")), "another protocol"),
        (inside("opaque", &|o| o["route"] = json!(OTHER)), "another path in our words"),
        (inside("opaque", &|o| o["rail"] = json!("tempo/charge")), "another rail in our words"),
    ] {
        refused_both_ways(&bed, &credential, 402, wrong, why).await;
    }
    // Genuine MACs of ours: what is in them is checked all the same.
    let under_our_key = |realm: &str, change: &dyn Fn(&mut Value)| {
        forged(&good, |c| {
            c["realm"] = json!(realm);
            change(c);
        })
    };
    let here = bed.gate.listen.ip().to_string();
    let repack = |c: &mut Value, change: &dyn Fn(&mut Value)| {
        let mut words: Value = serde_json::from_slice(&mpp::base64url_decode(&text(&c["request"])).unwrap()).unwrap();
        change(&mut words);
        c["request"] = json!(mpp::base64url_encode(words.to_string().as_bytes()));
    };
    let realm = payer::unpack(&good)["challenge"]["realm"].as_str().unwrap().to_owned();
    assert!(realm.starts_with(&here));
    for (credential, why) in [
        (under_our_key("other.example", &|_| ()), "another realm under one key"),
        (under_our_key(&realm, &|c| repack(c, &|r| r["recipient"] = json!(nobody()))), "our former payee"),
        (under_our_key(&realm, &|c| repack(c, &|r| r["currency"] = json!(nobody()))), "our former token"),
        (under_our_key(&realm, &|c| repack(c, &|r| r["methodDetails"]["chainId"] = json!(1))), "another chain of ours"),
        (
            under_our_key(&realm, &|c| repack(c, &|r| r["methodDetails"]["escrowContract"] = json!(nobody()))),
            "another escrow",
        ),
        (
            under_our_key(&realm, &|c| repack(c, &|r| r["methodDetails"]["operator"] = json!(nobody()))),
            "our former operator",
        ),
        (
            under_our_key(&realm, &|c| repack(c, &|r| r["methodDetails"]["sessionProtocol"] = json!("v1"))),
            "the former protocol",
        ),
    ] {
        refused_both_ways(&bed, &credential, 402, wrong, why).await;
    }
    // Sanity of the forgery: unchanged, it is taken.
    assert_eq!(bed.manage(&under_our_key(&realm, &|_| ())).await.status, 204);
    // A credential of the first protocol has no descriptor.
    let v1 = payer::bend(&good, |c| drop(c["payload"].as_object_mut().unwrap().remove("descriptor")));
    for reply in [bed.manage(&v1).await, bed.buy(&v1, &chat()).await] {
        assert_challenged(&reply, "payment_invalid", "v1");
        assert!(reply.json()["error"]["message"].as_str().unwrap().contains("v2"), "{}", reply.text());
    }
    assert_eq!(bed.served(), 0);
    bed.close(&[&channel]).await;
}

/// The credential with its challenge changed, under a MAC that is really ours.
fn forged(credential: &str, change: impl FnOnce(&mut Value)) -> String {
    payer::bend(credential, |c| {
        change(&mut c["challenge"]);
        let slot = |name: &str| c["challenge"][name].as_str().map(str::to_owned);
        let id = mpp::compute_challenge_id(
            CHALLENGE_KEY,
            &slot("realm").unwrap(),
            &slot("method").unwrap(),
            &slot("intent").unwrap(),
            &slot("request").unwrap(),
            slot("expires").as_deref(),
            slot("digest").as_deref(),
            slot("opaque").as_deref(),
        );
        c["challenge"]["id"] = json!(id);
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_challenge_still_manages_a_channel_and_buys_nothing() {
    let bed = SessionBed::open().await;
    let (channel, offer) = bed.channel(50_000, 1_000).await;
    let late = |credential: String| forged(&credential, |c| c["expires"] = json!("2026-01-01T00:00:00.000Z"));
    let old = late(channel.voucher_credential(&offer, 5_000));
    assert_challenged(&bed.buy(&old, &chat()).await, "offer_expired", "content on an expired challenge");
    assert_eq!(bed.manage(&old).await.status, 204, "a voucher that a stream may wait for");
    assert_eq!(atoms(&bed.snapshot(&channel).await["acceptedCumulative"]), 5_000);
    let calls = bed.rpc.broadcasts();
    let top_up = bed.manage(&late(channel.top_up_credential(&offer, 1_000))).await;
    assert_challenged(&top_up, "offer_expired", "a transaction on an expired challenge");
    let unopened = bed.wallet().await.open(&offer, |open| open.deposit = 20_000);
    let open = bed.manage(&late(unopened.open_credential(&offer, 0))).await;
    assert_challenged(&open, "offer_expired", "an opening on an expired challenge");
    assert_eq!((bed.rpc.broadcasts(), bed.served()), (calls, 0));
    let closed = bed.manage(&late(channel.close_credential(&offer, 5_000))).await;
    assert_eq!(closed.status, 204, "{}", closed.text());
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vouchers_only_grow_and_never_beyond_what_is_locked() {
    let bed = SessionBed::with(|o| o.conf_extra("min_voucher_delta = \"0.0001\"\n")).await;
    let (channel, offer) = bed.channel(20_000, 5_000).await;
    for (amount, want, why) in [
        (20_001, "voucher_over_deposit", "one atom over the deposit"),
        (79_228_162_514_264_337_593_543_950_335, "voucher_over_deposit", "2^96 - 1"),
        (4_999, "voucher_lower", "one atom less"),
        (0, "voucher_lower", "nothing"),
        (5_001, "voucher_delta_too_small", "one atom more"),
        (5_099, "voucher_delta_too_small", "one atom short of the step"),
    ] {
        let credential = channel.voucher_credential(&offer, amount);
        let (content, management) = (bed.buy(&credential, &chat()).await, bed.manage(&credential).await);
        assert_challenged(&content, want, why);
        assert_challenged(&management, want, why);
    }
    assert_eq!(bed.served(), 0);
    let snapshot = bed.snapshot(&channel).await;
    assert_eq!((atoms(&snapshot["acceptedCumulative"]), atoms(&snapshot["spent"])), (5_000, 0));
    for (amount, why) in [(5_100, "a whole step"), (5_100, "the same again"), (20_000, "all that is locked")] {
        assert_eq!(bed.manage(&channel.voucher_credential(&offer, amount)).await.status, 204, "{why}");
    }
    let before = channel.voucher_credential(&offer, 5_100);
    assert_challenged(&bed.manage(&before).await, "voucher_lower", "what was accepted before");
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_captured_credential_buys_nothing_its_signer_did_not_ask_for() {
    let bed = SessionBed::open().await;
    let (channel, offer) = bed.channel(80_000, 0).await;
    let first = channel.voucher_credential(&offer, 20_000);
    let reply = bed.buy(&first, &chat()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let spent = bed.charged(&channel.id);
    assert!(spent > 0 && spent < 10_000, "the balance covers many more: {spent}");
    // The same bytes again, by whoever saw them: for the same, for something else, streamed, often.
    for body in
        [chat(), streamed(), json!({"model": "openai/gpt-oss-120b", "messages": [{"role": "user", "content": "x"}]})]
    {
        for _ in 0..2 {
            assert_challenged(&bed.buy(&first, &body).await, "invalid_challenge", "a used challenge");
        }
    }
    // A voucher that a stream asked for, on the stream's own challenge, is management; with content it buys nothing.
    let next = channel.voucher_credential(&offer, 30_000);
    assert_eq!(bed.manage(&next).await.status, 204);
    assert_challenged(&bed.buy(&next, &chat()).await, "invalid_challenge", "a voucher of a stream, with content");
    assert_eq!(bed.manage(&next).await.status, 204, "and to manage it is worth what it was");
    // With a challenge of his own, a thief has no signature; with the payer's lower voucher, nothing.
    let fresh = bed.fresh().await;
    assert_challenged(
        &bed.buy(&channel.voucher_credential(&fresh, 20_000), &chat()).await,
        "voucher_lower",
        "an old one",
    );
    // The opening, too, was spent on its channel: shown again it pays nothing that is not accepted.
    let again = bed.buy(&channel.open_credential(&offer, 0), &chat()).await;
    assert_eq!(again.status, 402, "{}", again.text());
    assert_eq!((bed.served(), bed.charged(&channel.id)), (1, spent));
    // The decided rule: an equal voucher on a challenge that bought nothing yet, while there is cover.
    let equal = channel.voucher_credential(&fresh, 30_000);
    assert_eq!(bed.buy(&equal, &chat()).await.status, 200);
    assert_challenged(&bed.buy(&equal, &chat()).await, "invalid_challenge", "once");
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_credential_shown_many_times_at_once_buys_once() {
    let bed = SessionBed::open().await;
    let (channel, _) = bed.channel(80_000, 0).await;
    for round in 1..=3u128 {
        let credential = channel.voucher_credential(&bed.fresh().await, 20_000 * round);
        let body = chat().to_string();
        let authorization = [("authorization", credential.as_str())];
        let copies = (0..9).map(|_| bed.post(CHAT, &authorization, body.as_bytes()));
        let replies = futures::future::join_all(copies).await;
        let served = replies.iter().filter(|r| r.status == 200).count();
        let rest: Vec<_> = replies.iter().filter(|r| r.status != 200).map(|r| (r.status, code(r))).collect();
        assert_eq!(served, 1, "{rest:?}");
        assert!(rest.iter().all(|(status, _)| [402, 429].contains(status)), "{rest:?}");
        // The count of vouchers is of a second.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
    }
    assert_eq!(bed.served(), 3);
    bed.close(&[&channel]).await;
}

/// Bytes of a request head without a body's framing.
fn head(method: &str, path: &str, credential: &str, more: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: {credential}\r\n{more}\r\n").into_bytes()
}

/// Sends these bytes on a connection of their own; who is told to wait waits.
async fn send(bed: &SessionBed, method: &str, bytes: &[u8]) -> RawReply {
    loop {
        let mut raw = Raw::connect(bed.gate.listen).await;
        raw.send(bytes).await;
        let reply = raw.reply_to(method, SHORT).await;
        if reply.status != 429 {
            return reply;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn management_in_every_form_is_answered_here_and_never_forwarded() {
    let bed = SessionBed::open().await;
    let (channel, offer) = bed.channel(90_000, 0).await;
    let mut total = 0;
    let body = chat().to_string();
    let with_body = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    let queried = format!("{CHAT}?model=gpt&stream=true");
    for (method, path, more, why) in [
        ("HEAD", CHAT, "", "HEAD"),
        ("POST", CHAT, "content-length: 0\r\n", "POST of nothing"),
        ("POST", CHAT, "", "POST without a length"),
        ("GET", CHAT, "", "GET"),
        ("HEAD", &queried, "", "HEAD with a query"),
        ("POST", &queried, "content-length: 0\r\n", "POST with a query"),
        ("POST", CHAT, "content-type: application/json\r\ncontent-length: 0\r\n", "typed nothing"),
    ] {
        total += 100;
        let credential = channel.voucher_credential(&offer, total);
        let reply = send(&bed, method, &head(method, path, &credential, more)).await;
        assert_eq!(reply.status, 204, "{why}: {}", reply.text());
        assert!(reply.body.is_empty(), "{why}");
        let receipt = payer::unpack(reply.header("payment-receipt").unwrap_or_else(|| panic!("{why}: no receipt")));
        assert_eq!((atoms(&receipt["acceptedCumulative"]), atoms(&receipt["spent"])), (total, 0), "{why}");
        assert!(receipt.get("receiptId").is_none(), "{why}: nothing was sold");
    }
    // The same over HTTP/2, where nothing but the end of the stream says that there is no body.
    let h2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().timeout(SHORT).build().unwrap();
    for (method, path) in [("POST", CHAT), ("HEAD", CHAT), ("POST", &queried)] {
        total += 100;
        let credential = channel.voucher_credential(&offer, total);
        let reply = loop {
            let request = h2.request(method.parse().unwrap(), format!("{}{path}", bed.gate.url()));
            let reply = request.header("authorization", &credential).send().await.unwrap();
            if reply.status() != 429 {
                break reply;
            }
            // A channel takes so many vouchers a second.
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        assert_eq!((reply.status().as_u16(), reply.version()), (204, reqwest::Version::HTTP_2), "{method} {path}");
        let receipt = payer::unpack(reply.headers()["payment-receipt"].to_str().unwrap());
        assert_eq!(atoms(&receipt["acceptedCumulative"]), total, "{method} {path}");
    }
    // An empty body in chunks is content (a gate cannot know that before it has read it), so it asks for nothing and gets 400.
    total += 100;
    let chunked = head(
        "POST",
        CHAT,
        &channel.voucher_credential(&offer, total),
        "content-type: application/json\r\ntransfer-encoding: chunked\r\n",
    );
    let reply = send(&bed, "POST", &[&chunked[..], b"0\r\n\r\n"].concat()).await;
    assert_eq!((reply.status, code(&reply).as_str()), (400, "nothing_asked"), "{}", reply.text());
    // Top-up and close are management whatever comes with them.
    let topped = channel.top_up_credential(&offer, 10_000);
    let bytes = [&head("POST", CHAT, &topped, &with_body)[..], body.as_bytes()].concat();
    let reply = send(&bed, "POST", &bytes).await;
    assert_eq!(reply.status, 204, "{}", reply.text());
    assert!(payer::unpack(reply.header("payment-receipt").unwrap())["txHash"].is_string());
    assert_eq!(bed.reserve.state(&channel.id).await.deposit, 100_000);
    let closed = channel.close_credential(&offer, total);
    let bytes = [&head("POST", CHAT, &closed, &with_body)[..], body.as_bytes()].concat();
    assert_eq!(send(&bed, "POST", &bytes).await.status, 204);
    assert_eq!(bed.served(), 0, "management reached the backend");
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_credentials_on_one_request_are_refused_before_anything_is_done() {
    let bed = SessionBed::open().await;
    let (channel, offer) = bed.channel(90_000, 0).await;
    let (one, two) = (channel.voucher_credential(&offer, 20_000), channel.voucher_credential(&offer, 30_000));
    let body = chat().to_string();
    for (headers, body, why) in [
        (vec![("authorization", &one), ("authorization", &two)], body.as_str(), "two lines, content"),
        (vec![("authorization", &one), ("authorization", &two)], "", "two lines, management"),
        (vec![("authorization", &one), ("authorization", &one)], body.as_str(), "the same twice"),
        (vec![("authorization", &format!("{one}, {two}"))], body.as_str(), "two in one line"),
        (vec![("authorization", &one), ("payment-authorization", &two)], body.as_str(), "in two headers"),
    ] {
        let headers: Vec<(&str, &str)> = headers.into_iter().map(|(n, v)| (n, v.as_str())).collect();
        let reply = bed.post(CHAT, &headers, body.as_bytes()).await;
        assert_eq!((reply.status, code(&reply).as_str()), (400, "two_credentials"), "{why}: {}", reply.text());
    }
    assert_eq!((bed.served(), atoms(&bed.snapshot(&channel).await["acceptedCumulative"])), (0, 0));
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_never_makes_the_gate_ask_the_chain() {
    let bed = SessionBed::open().await;
    let (offer, _) = bed.offer(CHAT, &chat()).await;
    let stranger = Wallet::empty();
    // Everything right but the signature, or the signature over a channel that nobody opened.
    let channel = stranger.open(&offer, |open| open.deposit = 100_000);
    let good = channel.voucher(5_000);
    let broken = channel.signed_payload(5_000, &wallet::high_s(&good));
    let foreign = channel.signed_payload(5_000, &Wallet::empty().open(&offer, |_| ()).voucher(5_000));
    let mut opening = channel.open_payload(5_000);
    opening["signature"] = json!(alloy::hex::encode_prefixed(wallet::high_s(&good)));
    let mut unsigned = channel.open_payload(5_000);
    let raw = unsigned["transaction"].as_str().unwrap().to_owned();
    unsigned["transaction"] = json!(format!("{}00", &raw[..raw.len() - 2]));
    let mut other_tx = channel.open_payload(5_000);
    other_tx["transaction"] =
        stranger.open(&offer, |open| open.deposit = 99_999).open_payload(0)["transaction"].clone();
    let mut topped = channel.top_up_payload(1_000);
    topped["additionalDeposit"] = json!("2000");
    let credentials = [
        (channel.credential(&offer, broken), 402, "a signature in no form of the chain's"),
        (channel.credential(&offer, foreign), 402, "somebody else's signature"),
        (channel.credential(&offer, opening), 402, "an opening with a broken voucher"),
        (channel.credential(&offer, unsigned), 402, "an opening with a broken transaction"),
        (channel.credential(&offer, other_tx), 402, "an opening with another transaction"),
        (channel.credential(&offer, topped), 402, "a top-up over another amount than signed"),
        (channel.voucher_credential(&offer, 5_000), 410, "a good voucher of a channel that is not known here"),
        (channel.top_up_credential(&offer, 1_000), 410, "a good top-up of one"),
        (channel.close_credential(&offer, 0), 410, "a good close of one"),
        (format!("Payment {}", "A".repeat(400)), 402, "no JSON"),
    ];
    // What the gate asks by itself is over: it has read the chain, and watches blocks only.
    bed.rpc.forget();
    for (credential, status, why) in &credentials {
        for _ in 0..5 {
            for body in [chat().to_string(), String::new()] {
                let reply = bed.post(CHAT, &[("authorization", credential)], body.as_bytes()).await;
                assert_eq!(reply.status, *status, "{why}: {}", reply.text());
            }
        }
    }
    assert_eq!((bed.asked(), bed.served()), (0, 0), "{:?}", bed.rpc.calls());
    bed.close(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_gone_is_answered_410_with_fresh_offers_whatever_is_asked_of_it() {
    let bed = SessionBed::open().await;
    let (channel, offer) = bed.channel(50_000, 20_000).await;
    assert_eq!(bed.buy(&channel.voucher_credential(&bed.fresh().await, 20_000), &chat()).await.status, 200);
    let total = bed.charged(&channel.id);
    let lower = bed.manage(&channel.close_credential(&offer, total - 1)).await;
    assert_challenged(&lower, "voucher_lower", "a close for less than was used");
    let closed = bed.manage(&channel.close_credential(&offer, total)).await;
    assert_eq!(closed.status, 204, "{}", closed.text());
    let tx = payer::unpack(closed.header("payment-receipt").unwrap())["txHash"].clone();
    assert!(tx.is_string());
    let served = bed.served();
    let gone = &["channel_finalized", "channel_not_found"];
    refused_both_ways(&bed, &channel.voucher_credential(&offer, 30_000), 410, gone, "a voucher").await;
    refused_both_ways(&bed, &channel.open_credential(&offer, 30_000), 410, gone, "its opening").await;
    let top_up = bed.manage(&channel.top_up_credential(&offer, 1_000)).await;
    assert_eq!((top_up.status, code(&top_up).as_str()), (410, "channel_finalized"));
    offered(&top_up);
    // Asked to close again, it says what it said.
    let again = bed.manage(&channel.close_credential(&offer, total)).await;
    assert_eq!(again.status, 204);
    assert_eq!(payer::unpack(again.header("payment-receipt").unwrap())["txHash"], tx);
    assert_eq!(bed.served(), served);
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_closing_sells_nothing_new_and_ends_what_it_began() {
    let bed = SessionBed::open().await;
    bed.backend.tune(|script| script.per_token = Duration::from_millis(60));
    let (channel, offer) = bed.channel(50_000, 20_000).await;
    let body = streamed().to_string();
    let mut stream = Raw::connect(bed.gate.listen).await;
    let credential = channel.voucher_credential(&offer, 20_000);
    stream.send(&common::raw::post(CHAT, &[("authorization", &credential)], body.as_bytes())).await;
    assert!(stream.until(b"tok1", SHORT).await);
    let closing = channel.close_credential(&offer, 20_000);
    let (closed, rest) = tokio::join!(bed.manage(&closing), async {
        let closing = common::eventually(SHORT, || async {
            let reply = bed.buy(&channel.voucher_credential(&offer, 30_000), &chat()).await;
            reply.status == 410 && code(&reply) == "channel_finalized"
        });
        assert!(closing.await, "a closing channel sells");
        stream.reply(SHORT).await
    });
    assert_eq!(closed.status, 204, "{}", closed.text());
    assert!(rest.complete && rest.text().contains("data: [DONE]"), "{}", rest.text());
    bed.keep(&rest);
    assert!(bed.charged(&channel.id) > 0);
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_opening_shown_sixteen_times_at_once_is_one_channel_one_transaction_one_answer() {
    let bed = SessionBed::open().await;
    let wallet = bed.wallet().await;
    let (offer, _) = bed.offer(CHAT, &chat()).await;
    let channel = wallet.open(&offer, |open| open.deposit = 100_000);
    let credential = channel.open_credential(&offer, 60_000);
    let body = chat().to_string();
    let (asks, nothing) = (body.as_bytes(), &b""[..]);
    let authorization = [("authorization", credential.as_str())];
    let copies = (0..16).map(|n| bed.post(CHAT, &authorization, if n % 2 == 0 { asks } else { nothing }));
    let replies = futures::future::join_all(copies).await;
    let said: Vec<_> = replies.iter().map(|r| r.status).collect();
    assert_eq!(said.iter().step_by(2).filter(|s| **s == 200).count(), 1, "{said:?}");
    assert!(said.iter().skip(1).step_by(2).all(|s| *s == 204), "{said:?}");
    assert!(said.iter().step_by(2).all(|s| [200, 402].contains(s)), "{said:?}");
    assert_eq!((bed.rpc.broadcasts(), bed.served()), (1, 1));
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_payer_cannot_fill_the_books_with_channels_nor_with_dust() {
    let bed = SessionBed::open().await;
    let wallet = bed.wallet().await;
    let (offer, _) = bed.offer(CHAT, &chat()).await;
    let dust = wallet.open(&offer, |open| open.deposit = 99);
    assert_challenged(&bed.manage(&dust.open_credential(&offer, 0)).await, "payment_invalid", "dust");
    let over = wallet.open(&offer, |open| open.deposit = 20_000);
    assert_challenged(
        &bed.manage(&over.open_credential(&offer, 20_001)).await,
        "voucher_over_deposit",
        "first voucher",
    );
    assert_eq!(bed.rpc.broadcasts(), 0);
    let channels: Vec<_> = (0..8).map(|_| wallet.open(&offer, |open| open.deposit = 20_000)).collect();
    let credentials: Vec<_> = channels.iter().map(|c| c.open_credential(&offer, 0)).collect();
    let replies = futures::future::join_all(credentials.iter().map(|c| bed.manage(c))).await;
    let open: Vec<_> = channels.iter().zip(&replies).filter(|(_, r)| r.status == 204).map(|(c, _)| c).collect();
    let codes: Vec<_> = replies.iter().filter(|r| r.status != 204).map(code).collect();
    assert_eq!((open.len(), codes.len(), bed.rpc.broadcasts()), (4, 4, 4), "max_channels_per_payer = 4: {codes:?}");
    assert!(codes.iter().all(|code| code == "payment_invalid"), "{codes:?}");
    // One that is open is no new one, at the limit as well.
    let last = channels.iter().zip(&replies).position(|(_, r)| r.status == 204).unwrap();
    assert_eq!(bed.manage(&credentials[last]).await.status, 204);
    bed.close(&open).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opening_on_other_terms_is_never_sent() {
    let bed = SessionBed::open().await;
    let wallet = bed.wallet().await;
    let stranger = Wallet::empty();
    let (offer, _) = bed.offer(CHAT, &chat()).await;
    let beta: alloy::primitives::Address = common::chain::BETA_USD.parse().unwrap();
    type Bend<'a> = &'a dyn Fn(&mut wallet::Open);
    let bends: [(Bend<'_>, &str); 9] = [
        (&|o| o.payee = nobody(), "to another payee"),
        (&|o| o.operator = nobody(), "with a foreign operator"),
        (&|o| o.token = beta, "of another token"),
        (&|o| o.escrow = nobody(), "in another escrow"),
        (&|o| o.chain_id = 4217, "on another chain"),
        (&|o| o.valid_before = 1, "of a time gone by"),
        (&|o| o.valid_before += 3_600, "good for an hour"),
        (&|o| o.sponsored = true, "that we should pay for"),
        (&|o| o.authorized_signer = stranger.address, "whose voucher its payer signed, not its signer"),
    ];
    for (bend, why) in bends {
        let channel = wallet.open(&offer, |open| {
            open.deposit = 100_000;
            bend(open);
        });
        refused_both_ways(
            &bed,
            &channel.open_credential(&offer, 60_000),
            402,
            &["payment_invalid", "signer_mismatch"],
            why,
        )
        .await;
    }
    // With the authorised signer's key it is a channel as good as any; only that key signs for it.
    let mut channel = wallet.open(&offer, |open| {
        open.deposit = 100_000;
        open.authorized_signer = stranger.address;
    });
    channel.key = stranger.signer.clone();
    let reply = bed.buy(&channel.open_credential(&offer, 60_000), &chat()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let payers = channel.sign(|v| {
        v.amount = 70_000;
        v.key = wallet.signer.clone();
    });
    let reply = bed.manage(&channel.credential(&offer, channel.signed_payload(70_000, &payers))).await;
    assert_challenged(&reply, "signer_mismatch", "the payer is not the signer");
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_vouchers_is_bounded_by_channel_and_harms_nobody_else() {
    let bed = SessionBed::open().await;
    let (flooder, offer) = bed.channel(1_000_000, 0).await;
    let (honest, honest_offer) = bed.channel(100_000, 0).await;
    let began = std::time::Instant::now();
    let flood = async {
        let (mut taken, mut refused) = (0u128, 0u128);
        for amount in 1..=200u128 {
            let credential = flooder.voucher_credential(&offer, amount);
            let reply = bed.post(CHAT, &[("authorization", &credential)], b"").await;
            match reply.status {
                204 => taken += 1,
                429 => refused += 1,
                _ => panic!("{}", reply.text()),
            }
            if reply.status == 429 {
                assert!(reply.header("retry-after").is_some() && reply.header("www-authenticate").is_none());
                assert_eq!(reply.header("x-should-retry"), Some("false"));
            }
        }
        (taken, refused)
    };
    let calm = async {
        for round in 1..=4u128 {
            // Below the honest payer's own bound.
            let credential = honest.voucher_credential(&honest_offer, 10_000 * round);
            let reply = bed.post(CHAT, &[("authorization", &credential)], chat().to_string().as_bytes()).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
    };
    let ((taken, refused), ()) = tokio::join!(flood, calm);
    let seconds = u128::from(began.elapsed().as_secs()) + 2;
    assert!(refused > 0 && taken <= 10 * seconds, "{taken} of 200 vouchers were taken in {seconds} s");

    // Nor is there another door: vouchers that come with the opening, and with a request they do not cover.
    let wallet = bed.wallet().await;
    let opened = wallet.open(&offer, |open| open.deposit = 100_000);
    assert_eq!(bed.manage(&opened.open_credential(&offer, 0)).await.status, 204);
    let (began, mut taken) = (std::time::Instant::now(), 0u64);
    for amount in 1..=60u128 {
        let credential = opened.open_credential(&offer, amount);
        let reply = bed.post(CHAT, &[("authorization", &credential)], chat().to_string().as_bytes()).await;
        assert!([402, 429].contains(&reply.status), "{}", reply.text());
        taken += u64::from(reply.status == 402);
    }
    let seconds = began.elapsed().as_secs() + 2;
    assert!(taken <= 10 * seconds, "{taken} of 60 vouchers were taken in {seconds} s by way of the opening");
    bed.close(&[&flooder, &honest, &opened]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_makes_the_gate_ask_the_chain_once_in_five_seconds_at_most() {
    let bed = SessionBed::open().await;
    let (channel, offer) = bed.channel(20_000, 0).await;
    // The watcher reads all channels every fifteen seconds; what is counted here is what requests add to that.
    let began = std::time::Instant::now();
    bed.rpc.forget();
    for n in 1..=15u128 {
        // Over the deposit: it might have been topped up past us, so the chain is worth a question, now and then.
        let credential = channel.voucher_credential(&offer, 20_000 + n);
        let reply = bed.manage(&credential).await;
        assert_challenged(&reply, "voucher_over_deposit", "more than is locked");
    }
    let most = 1 + began.elapsed().as_secs() / 5 + 1 + began.elapsed().as_secs() / 15 + 1;
    let asked = bed.rpc.count("eth_call");
    // A read is one question for the head's height and one for the channel.
    assert!(asked as u64 <= 2 * most, "{asked} questions in {:?}", began.elapsed());
    // Topped up past the gate, it is found out.
    let topped = channel.payer.call(&bed.reserve.url(), channel.top_up_call(10_000)).await;
    topped.unwrap();
    let credential = channel.voucher_credential(&offer, 25_000);
    let found = common::eventually(SHORT, || async { bed.manage(&credential).await.status == 204 });
    assert!(found.await, "a top-up past the gate is never seen");
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn top_ups_race_each_other_a_close_and_a_forced_close_and_no_atom_is_lost() {
    let bed = SessionBed::open().await;
    // Two at once: each is sent at most once, and the record says what the chain says.
    let (channel, offer) = bed.channel(20_000, 0).await;
    let (one, two) = (channel.top_up_credential(&offer, 1_000), channel.top_up_credential(&offer, 2_000));
    let (a, b) = tokio::join!(bed.manage(&one), bed.manage(&two));
    let mut locked = 20_000;
    for (reply, credential, more) in [(a, &one, 1_000), (b, &two, 2_000)] {
        assert!([204, 409].contains(&reply.status), "{}", reply.text());
        if reply.status == 409 {
            // The same credential, a moment later.
            let landed = common::eventually(SHORT, || async { bed.manage(credential).await.status == 204 });
            assert!(landed.await, "a top-up that had to wait is lost");
        }
        locked += more;
        assert!(bed.reserve.state(&channel.id).await.deposit <= 23_000);
    }
    assert_eq!(bed.reserve.state(&channel.id).await.deposit, locked);
    assert_eq!(atoms(&bed.snapshot(&channel).await["deposit"]), locked);
    // Shown again, a top-up that landed tops up nothing.
    let again = bed.manage(&one).await;
    assert_ne!(again.status, 500, "{}", again.text());
    assert_eq!(bed.reserve.state(&channel.id).await.deposit, locked, "{}", again.text());

    // While it closes: either the top-up was first and comes back with the rest, or the channel is gone.
    let (racing, offer) = bed.channel(20_000, 5_000).await;
    let (close, top_up) = (racing.close_credential(&offer, 5_000), racing.top_up_credential(&offer, 4_000));
    let (closed, topped) = tokio::join!(bed.manage(&close), bed.manage(&top_up));
    assert!([204, 409].contains(&closed.status), "{}", closed.text());
    assert!([204, 402, 409, 410, 503].contains(&topped.status), "{}", topped.text());
    let over = common::eventually(SHORT, || async { bed.manage(&close).await.status == 204 });
    assert!(over.await, "a close that met a top-up never ends");
    assert_eq!(bed.reserve.state(&racing.id).await.deposit, 0);
    assert_eq!(bed.chain.balance(common::PATH_USD, &racing.payer.address.to_string()).await, 10_000_000);
    bed.close(&[&channel, &racing]).await;
}

/// A P-256 key in the hands of a browser's crypto (node's): JSON in, JSON out.
fn webcrypto(script: &str, input: &Value) -> Value {
    let script = format!("const c = require('crypto'); const i = JSON.parse(process.argv[1]); {script}");
    let out = std::process::Command::new("node").args(["-e", &script, &input.to_string()]).output().expect("node");
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_may_be_signed_for_by_a_passkeys_curve_in_its_one_canonical_form() {
    let order: U256 = "0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551".parse().unwrap();
    let bed = SessionBed::open().await;
    let key = webcrypto(
        "console.log(JSON.stringify(c.generateKeyPairSync('ec', {namedCurve: 'P-256'}).privateKey.export({format: 'jwk'})))",
        &json!({}),
    );
    let point: Vec<u8> =
        ["x", "y"].iter().flat_map(|n| mpp::base64url_decode(key[*n].as_str().unwrap()).unwrap()).collect();
    let signer = Address::from_slice(&keccak256(&point)[12..]);
    let wallet = bed.wallet().await;
    let (offer, _) = bed.offer(CHAT, &chat()).await;
    let channel = wallet.open(&offer, |open| {
        open.deposit = 50_000;
        open.authorized_signer = signer;
    });
    // `0x01`, r, s, x, y, and that the digest was hashed once more, as browsers do.
    let sign = |amount: u128, high: bool| {
        let digest = wallet::digest(&wallet::Signing {
            channel: channel.id,
            amount,
            chain_id: channel.chain_id,
            escrow: channel.escrow,
            name: "TIP20 Channel Reserve".into(),
            version: "1".into(),
            key: wallet.signer.clone(),
        });
        let said = webcrypto(
            "const key = c.createPrivateKey({key: i.key, format: 'jwk'}); \
             const s = c.sign('sha256', Buffer.from(i.digest.slice(2), 'hex'), {key, dsaEncoding: 'ieee-p1363'}); \
             console.log(JSON.stringify(s.toString('hex')))",
            &json!({"key": key, "digest": digest}),
        );
        let said = alloy::hex::decode(said.as_str().unwrap()).unwrap();
        let s = U256::from_be_slice(&said[32..]);
        let (low, upper) = (s.min(order - s), s.max(order - s));
        let s = if high { upper } else { low };
        [&[1u8][..], &said[..32], &s.to_be_bytes::<32>(), &point, &[1]].concat()
    };
    let mut opening = channel.open_payload(0);
    opening["signature"] = json!(alloy::hex::encode_prefixed(sign(0, false)));
    let opened = bed.manage(&channel.credential(&offer, opening)).await;
    assert_eq!(opened.status, 204, "{}", opened.text());
    let good = sign(20_000, false);
    let show = |signature: &[u8]| channel.credential(&offer, channel.signed_payload(20_000, signature));
    let with = |at: usize, byte: u8| {
        let mut bent = good.clone();
        bent[at] = byte;
        bent
    };
    let refused: &[&str] = &["voucher_invalid", "signer_mismatch"];
    for (signature, why) in [
        (sign(20_000, true), "the upper half of s"),
        (with(129, 0), "as if hashed once"),
        (with(129, 2), "another spelling of yes"),
        (with(0, 2), "as a WebAuthn one"),
        (with(70, good[70] ^ 1), "another key"),
        (good[1..].to_vec(), "without its kind"),
        ([&good[..], &[0]].concat(), "one byte more"),
        (channel.voucher(20_000), "the payer's own key"),
        (sign(20_001, false), "for another amount"),
    ] {
        refused_both_ways(&bed, &show(&signature), 402, refused, why).await;
    }
    assert_eq!(bed.manage(&show(&good)).await.status, 204);
    assert_eq!(atoms(&bed.snapshot(&channel).await["acceptedCumulative"]), 20_000);
    // The double of the reserve knows one curve, so nothing is spent that it could not pay out.
    assert_eq!(bed.served(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn top_ups_that_come_to_nothing_do_not_make_the_gate_work_for_free() {
    let bed = SessionBed::open().await;
    let (channel, offer) = bed.channel(20_000, 0).await;
    // Properly signed, and more than the payer has; each time anew.
    let empty = |n: u128| channel.top_up_credential(&offer, 900_000_000 + n);
    let began = std::time::Instant::now();
    bed.rpc.forget();
    for n in 0..12 {
        let reply = bed.post(CHAT, &[("authorization", &empty(n))], b"").await;
        assert!([402, 409].contains(&reply.status), "{}", reply.text());
        if reply.status == 409 {
            assert!(reply.header("retry-after").is_some(), "{}", reply.text());
        }
    }
    let most = 1 + began.elapsed().as_secs() / 5;
    assert!(bed.rpc.broadcasts() as u64 <= most, "{} broadcasts in {:?}", bed.rpc.broadcasts(), began.elapsed());
    // Whoever has the money tops up as soon as the wait is over.
    let good = channel.top_up_credential(&offer, 5_000);
    let done = common::eventually(SHORT, || async { bed.manage(&good).await.status == 204 });
    assert!(done.await);
    // One that landed, shown again and again, is answered and sent no more.
    bed.rpc.forget();
    for _ in 0..6 {
        let reply = bed.post(CHAT, &[("authorization", &good)], b"").await;
        assert!([204, 402, 409].contains(&reply.status), "{}", reply.text());
    }
    assert!(bed.rpc.broadcasts() <= 1, "{} broadcasts of one transaction that landed", bed.rpc.broadcasts());
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_stays_used_past_every_bound_and_over_a_power_cut() {
    let mut bed = SessionBed::open().await;
    let (channel, _) = bed.channel(100_000, 60_000).await;
    // More challenges than a record remembers one by one, all answered with one voucher.
    let mut used = Vec::new();
    for _ in 0..40 {
        let credential = channel.voucher_credential(&bed.fresh().await, 60_000);
        let reply = bed.buy(&credential, &chat()).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        used.push(credential);
    }
    let unused = channel.voucher_credential(&bed.fresh().await, 60_000);
    let spent = bed.charged(&channel.id);
    assert!(spent < 30_000, "the balance would cover all of them again");
    for power_cut in [false, true] {
        if power_cut {
            bed.gate.kill();
            bed.gate.restart().await;
        }
        for credential in &used {
            let reply = bed.buy(credential, &chat()).await;
            assert_challenged(&reply, "invalid_challenge", if power_cut { "after a power cut" } else { "at once" });
        }
    }
    assert_eq!(bed.served(), 40);
    // A challenge that bought nothing yet may have been issued in the same second as the last that is not remembered by name;
    // then a fresh one is to be had for the asking.
    let reply = bed.buy(&unused, &chat()).await;
    assert!([200, 402].contains(&reply.status), "{}", reply.text());
    let fresh = channel.voucher_credential(&bed.fresh().await, 60_000);
    assert_eq!(bed.buy(&fresh, &chat()).await.status, 200);
    bed.close(&[&channel]).await;
}
