//! Sessions under bad input: nothing but a payer's own word, for this channel, on this chain, to us, moves money; and nothing
//! that is not such a word costs anybody anything.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use alloy::primitives::{Address, B256, U256, keccak256};
use common::channels::{
    CHAT, OTHER, SessionBed, assert_challenged, atoms, chat, code, nobody, refused_both_ways, streamed,
};
use common::gate::CHALLENGE_KEY;
use common::wallet::{self, Wallet};
use common::{Raw, RawReply, payer};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_secs(20);

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
async fn vouchers_do_not_count_against_their_address_and_what_else_is_asked_of_a_channel_does() {
    let few = |o: common::GateOptions| o.conf_edit("unpaid_per_ip_per_second = 100000", "unpaid_per_ip_per_second = 2");
    let bed = SessionBed::with(few).await;
    let (channel, offer) = bed.channel(80_000, 1_000).await;
    let ask = async |credential: String| bed.post(CHAT, &[("authorization", &credential)], b"").await.status;
    for number in 0..8 {
        assert_eq!(ask(channel.voucher_credential(&offer, 1_000)).await, 204, "voucher {number} of ten in a second");
    }
    // One after the other: a burst is counted before any of it is forgiven.
    let mut closes = 0;
    while ask(channel.close_credential(&offer, 1_000)).await == 204 {
        closes += 1;
        assert!(closes < 200, "a close that changes nothing could be asked for without end");
    }
    assert!(closes >= 1, "the first is answered");
}

/// Bytes of a request head without a body's framing.
fn head(method: &str, path: &str, credential: &str, more: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: {credential}\r\n{more}\r\n").into_bytes()
}

/// Sends these bytes on a connection of their own; who is told to wait waits.
async fn send(bed: &SessionBed, method: &str, bytes: &[u8]) -> RawReply {
    send_slowly(bed, method, &[bytes]).await
}

/// The same in pieces, which come one after the other.
async fn send_slowly(bed: &SessionBed, method: &str, pieces: &[&[u8]]) -> RawReply {
    let end = Instant::now() + SHORT;
    loop {
        let mut raw = Raw::connect(bed.gate.listen).await;
        for (at, piece) in pieces.iter().enumerate() {
            if at > 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            raw.send(piece).await;
        }
        let reply = raw.reply_to(method, SHORT).await;
        if reply.status != 429 {
            return reply;
        }
        assert!(Instant::now() < end, "told to wait for ever: {}", reply.text());
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
        let end = Instant::now() + SHORT;
        let reply = loop {
            let request = h2.request(method.parse().unwrap(), format!("{}{path}", bed.gate.url()));
            let reply = request.header("authorization", &credential).send().await.unwrap();
            if reply.status() != 429 {
                break reply;
            }
            assert!(Instant::now() < end, "told to wait for ever");
            // A channel takes so many vouchers a second.
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        assert_eq!((reply.status().as_u16(), reply.version()), (204, reqwest::Version::HTTP_2), "{method} {path}");
        let receipt = payer::unpack(reply.headers()["payment-receipt"].to_str().unwrap());
        assert_eq!(atoms(&receipt["acceptedCumulative"]), total, "{method} {path}");
    }
    // A body that only its end shows to be empty: chunks that end at once, and on HTTP/2 a stream that ends with a frame after its head, as
    // Node's own client ends every POST.
    for h2 in [true, false] {
        let client = reqwest::Client::builder().no_proxy().timeout(SHORT);
        let client = if h2 { client.http2_prior_knowledge() } else { client }.build().unwrap();
        total += 100;
        let credential = channel.voucher_credential(&offer, total);
        let reply = common::eventually(SHORT, || async {
            let nothing = reqwest::Body::wrap_stream(futures::stream::empty::<std::io::Result<Vec<u8>>>());
            let request = client.post(bed.gate.chat_url()).header("authorization", &credential).body(nothing);
            let reply = request.send().await.unwrap();
            assert!([204, 429].contains(&reply.status().as_u16()), "h2 {h2}: {}", reply.status());
            let taken = reply.headers().get("payment-receipt").map(|v| payer::unpack(v.to_str().unwrap()));
            taken.is_some_and(|receipt| atoms(&receipt["acceptedCumulative"]) == total)
        });
        assert!(reply.await, "h2 {h2}");
    }
    // Top-up and close are management whatever comes with them.
    let topped = channel.top_up_credential(&offer, 10_000);
    let bytes = [&head("POST", CHAT, &topped, &with_body)[..], body.as_bytes()].concat();
    let reply = send(&bed, "POST", &bytes).await;
    assert_eq!(reply.status, 204, "{}", reply.text());
    assert!(payer::unpack(reply.header("payment-receipt").unwrap())["txHash"].is_string());
    assert_eq!(bed.reserve.state(&channel.id).await.deposit, 100_000);
    let closed = channel.close_credential(&offer, total);
    // Its body comes late, in pieces.
    let (first, last) = body.as_bytes().split_at(body.len() / 2);
    let reply = send_slowly(&bed, "POST", &[&head("POST", CHAT, &closed, &with_body), first, last]).await;
    assert_eq!(reply.status, 204, "{}", reply.text());
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
