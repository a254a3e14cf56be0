//! What the client of a session is told: snapshots and receipts, as wallets read them.

use crate::channel::ChannelId;
use crate::money::{Atoms, Usd};
use crate::rail::session::{SessionReceipt, Snapshot};
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt;

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

/// A receipt as wallets read it, members in order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    method: &'static str,
    intent: &'static str,
    status: &'static str,
    timestamp: String,
    reference: &'a ChannelId,
    challenge_id: &'a str,
    channel_id: &'a ChannelId,
    accepted_cumulative: Atoms,
    spent: Atoms,
    #[serde(skip_serializing_if = "Option::is_none")]
    tx_hash: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    charged: Option<Atoms>,
    #[serde(skip_serializing_if = "Option::is_none")]
    charged_usd: Option<Usd>,
    #[serde(skip_serializing_if = "Option::is_none")]
    actual_usd: Option<Usd>,
}

/// The receipt: what the protocol asks for, and ours (`receiptId`, `charged`, `chargedUsd`, `actualUsd`). Amounts are text.
pub(super) fn receipt_json(said: &SessionReceipt<'_>) -> Option<String> {
    let (channel, receipt) = (said.channel, said.receipt);
    let told = Told {
        method: "tempo",
        intent: "session",
        status: "success",
        timestamp: said.at.rfc3339(),
        reference: &channel.id,
        challenge_id: said.challenge_id,
        channel_id: &channel.id,
        accepted_cumulative: said.accepted,
        spent: channel.spent(),
        tx_hash: said.tx,
        receipt_id: receipt.map(|r| r.id.as_str()),
        charged: receipt.map(|r| r.charged),
        charged_usd: receipt.map(|r| r.charged_usd),
        actual_usd: receipt.and_then(|r| r.actual_usd),
    };
    serde_json::to_string(&told).ok()
}

/// One event of a stream (HTML §9.2).
pub(super) fn event(name: &str, data: &impl fmt::Display) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}
