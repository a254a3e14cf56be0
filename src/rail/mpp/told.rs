//! What the client of a session is told: snapshots and receipts, as wallets read them.

use crate::rail::session::{SessionReceipt, Snapshot};
use bytes::Bytes;
use serde_json::{Value, json};

/// A snapshot as wallets read it, members in order.
pub(super) fn snapshot_json(snapshot: &Snapshot<'_>) -> Value {
    let Snapshot { channel, required, with_voucher } = snapshot;
    let of = &channel.descriptor;
    let mut shown = serde_json::Map::new();
    let mut say = |key: &str, value: Value| drop(shown.insert(key.to_owned(), value));
    say("acceptedCumulative", json!(channel.accepted()));
    say("chainId", json!(channel.chain_id));
    say("channelId", json!(channel.id));
    if let Some(at) = channel.view.close_requested_at {
        say("closeRequestedAt", json!(at.0.to_string()));
    }
    say("deposit", json!(channel.view.deposit));
    say(
        "descriptor",
        json!({
            "authorizedSigner": of.authorized_signer, "expiringNonceHash": of.expiring_nonce_hash, "operator": of.operator,
            "payee": of.payee, "payer": of.payer, "salt": of.salt, "token": of.token,
        }),
    );
    say("escrow", json!(channel.escrow));
    if let Some(voucher) = channel.highest().filter(|_| *with_voucher) {
        let said =
            json!({ "channelId": channel.id, "cumulativeAmount": voucher.amount, "signature": voucher.signature });
        say("highestVoucher", said);
    }
    say("requiredCumulative", json!(required));
    say("settled", json!(channel.view.settled));
    say("spent", json!(channel.spent()));
    Value::Object(shown)
}

/// The receipt: what the protocol asks for, and ours (`receiptId`, `charged`, `chargedUsd`, `actualUsd`). Amounts are text.
pub(super) fn receipt_json(said: &SessionReceipt<'_>) -> Value {
    let channel = said.channel;
    let mut shown = json!({
        "method": "tempo",
        "intent": "session",
        "status": "success",
        "timestamp": said.at.rfc3339(),
        "reference": channel.id,
        "challengeId": said.challenge_id,
        "channelId": channel.id,
        "acceptedCumulative": said.accepted,
        "spent": channel.spent(),
    });
    if let Value::Object(map) = &mut shown {
        if let Some(tx) = said.tx {
            map.insert("txHash".to_owned(), json!(tx));
        }
        if let Some(receipt) = said.receipt {
            map.insert("receiptId".to_owned(), json!(receipt.id));
            map.insert("charged".to_owned(), json!(receipt.charged));
            map.insert("chargedUsd".to_owned(), json!(receipt.charged_usd));
            if let Some(actual) = receipt.actual_usd {
                map.insert("actualUsd".to_owned(), json!(actual));
            }
        }
    }
    shown
}

/// One event of a stream (HTML §9.2).
pub(super) fn event(name: &str, data: &Value) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}
