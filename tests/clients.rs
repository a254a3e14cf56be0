//! Published clients where they are strict or things go wrong: the validator of the mppx command line, wallets that push,
//! a backend that fails, a chain that falls silent.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bed::{CHAT, PRICE, assert_final, chat};
use common::client::{mppx_cli, node, python};
use common::{Bed, DEV, Fault, Reply, Unseen};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn the_validator_of_mppx_finds_nothing_wrong_until_it_would_have_to_pay() {
    let bed = Bed::open().await;
    let (url, endpoint, body) = (bed.gate.url(), format!("POST:{CHAT}"), chat().to_string());
    // With a request, with an empty one, and with what it finds by itself.
    for more in
        [&["--endpoint", endpoint.as_str(), "--body", &body][..], &["--endpoint", &endpoint, "--body", "{}"], &[]]
    {
        let args = [&["validate", url.as_str(), "-j"], more].concat();
        let out = mppx_cli(&args, DEV[2].key, &bed.chain.url()).await;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let found: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {out:?}"));
        let endpoint = &found["endpoints"][0];
        assert_eq!(endpoint["path"], CHAT, "{said}");
        // Its paid part knows only the public test network and is left out.
        let mut passed = 0;
        for part in [&found["discovery"]["checks"], &endpoint["challenge"], &endpoint["errorHandling"]] {
            for check in part.as_array().unwrap_or_else(|| panic!("a part is missing: {said}")) {
                assert_eq!(check["severity"], "pass", "{check}");
                passed += 1;
            }
        }
        assert!(passed >= 14, "it looked at {passed} things only: {said}");
    }
    assert_eq!(bed.served(), 0);
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_that_pushes_learns_from_the_offer_whether_it_may() {
    for (accepted, paid) in [(false, 0), (true, 1)] {
        let bed = Bed::with(|o| o.conf_edit("accept_push = false", &format!("accept_push = {accepted}"))).await;
        let (url, rpc) = (bed.gate.chat_url(), bed.chain.url());
        let got = node("mppx.mjs", &[("url", &url), ("rpc", &rpc), ("key", DEV[2].key), ("mode", "push")]).await;
        assert_eq!(bed.chain.payments_to(DEV[1].address).await.len(), paid, "{got}");
        assert_eq!(got["ok"], accepted, "{got}");
        if accepted {
            assert_eq!(got["payments"].as_array().map(Vec::len), Some(1), "{got}");
            bed.ledger.sold(&got["receipt"], got["text"].as_str().unwrap().split(' ').count() as u64);
        } else {
            assert_eq!(got["error"]["message"], "Challenge does not support push mode.", "{got}");
        }
        assert_eq!(bed.rpc.broadcasts(), 0, "the gate sends nothing that the payer sent");
        bed.close(Unseen::default()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_published_client_that_meets_a_failing_backend_is_debited_once() {
    let bed = Bed::open().await;
    bed.backend.always(Reply::error(500, "server_error", "boom", "out of memory"));
    let (url, base, rpc) = (bed.gate.chat_url(), bed.gate.base(), bed.chain.url());
    let flags = [("url", url.as_str()), ("base", &base), ("rpc", &rpc), ("key", DEV[2].key)];
    // The AI SDK knows no header that stops its retries, so it must be told; the others are as they come.
    let told = [&flags[..], &[("max_retries", "0")]].concat();
    let scripts = [("mppx.mjs", &flags[..]), ("openai-mppx.mjs", &flags), ("ai-sdk.mjs", &told)];
    for (at, (script, flags)) in scripts.into_iter().enumerate() {
        let got = node(script, flags).await;
        assert_eq!((&got["ok"], bed.served()), (&Value::Bool(false), at + 1), "{script}: {got}");
    }
    let got = python("pympp_charge.py", &flags).await;
    assert_eq!((&got["status"], bed.served()), (&Value::from(502), 4), "{got}");
    let body = chat().to_string();
    let out = mppx_cli(&[&url, "-J", &body, "-i", "-f"], DEV[2].key, &rpc).await;
    assert!(!out.status.success() && bed.served() == 5, "{out:?}");
    let books = bed.close(Unseen { owed: 5, ..Unseen::default() }).await;
    assert_eq!(books.owed.iter().map(|(_, atoms)| *atoms).collect::<Vec<_>>(), [PRICE; 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_openai_client_whose_payment_has_no_known_outcome_does_not_pay_twice() {
    let bed = Bed::open().await;
    let (base, rpc) = (bed.gate.base(), bed.chain.url());
    bed.rpc.always("eth_sendRawTransactionSync", Fault::HangAfter);
    bed.rpc.always("eth_sendRawTransaction", Fault::HangAfter);
    bed.rpc.always("eth_getTransactionReceipt", Fault::Refuse);
    let got = node("openai-mppx.mjs", &[("base", &base), ("rpc", &rpc), ("key", DEV[2].key)]).await;
    assert_eq!(
        (&got["error"]["status"], &got["error"]["code"]),
        (&Value::from(503), &Value::from("payment_unknown")),
        "{got}"
    );
    assert_eq!(got["payments"].as_array().map(Vec::len), Some(1), "{got}");
    assert_eq!(got["error"]["headers"]["x-should-retry"], "false", "{got}");
    assert!(got["error"]["message"].as_str().is_some_and(|m| m.contains("do not pay anew")), "{got}");
    bed.rpc.clear();
    let proof = got["payments"][0]["credential"].as_str().expect("a credential").to_owned();
    let reply = bed.show(&proof, CHAT, &chat()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_final(&bed.show(&proof, CHAT, &chat()).await, &[403]);
    assert_eq!(bed.close(Unseen::default()).await.charged, PRICE);
}
