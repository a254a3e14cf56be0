//! Sessions under bad input: nothing but a payer's own word, for this channel, on this chain, to us, moves money; and nothing
//! that is not such a word costs anybody anything.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use alloy::primitives::{Address, B256};
use common::channels::{CHAT, OTHER, SessionBed, atoms, chat, nobody, offered, streamed};
use common::gate::CHALLENGE_KEY;
use common::wallet::{self, Channel, Wallet};
use common::{RawReply, payer, raw};
use mpp::PaymentChallenge;
use serde_json::{Value, json};

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
    for reply in [bed.manage(credential).await, bed.buy(credential, &chat()).await, bed.buy(credential, &streamed()).await] {
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
    for source in ["did:pkh:eip155:4217:{}", "did:pkh:eip155:42431:0x0000000000000000000000000000000000000001", "me", ""] {
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
