//! A facilitator of x402 that takes everybody's word at once, and the payments it is shown.

use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{Eip712Domain, SolStruct as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener};
use std::time::{SystemTime, UNIX_EPOCH};

const NETWORK: &str = "eip155:84532";

alloy::sol! {
    struct TransferWithAuthorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }
}

/// One that says yes, whatever it is asked: what it answers satisfies `/verify`, `/settle` and `/supported`.
pub fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        super::answer(&listener, |body| {
            let asked: Value = serde_json::from_slice(body).unwrap_or_default();
            let Some(from) = asked["paymentPayload"]["payload"]["authorization"]["from"].as_str() else {
                let kind = json!({ "x402Version": 2, "scheme": "exact", "network": NETWORK });
                return json!({ "kinds": [kind], "extensions": [], "signers": {} }).to_string();
            };
            json!({
                "isValid": true, "success": true, "payer": from, "network": NETWORK, "transaction": keccak256(body),
            })
            .to_string()
        });
    });
    address
}

/// The rail `base` through it, paid on success.
pub fn section(at: SocketAddr, payee: &str) -> String {
    format!(
        "[rail.base]\nkind = \"x402\"\nnetwork = \"{NETWORK}\"\nasset = \"usdc\"\npay_to = \"{payee}\"\nfacilitator = {{ url = \"http://{at}\" }}\npayer_exposure = \"1000\"\n"
    )
}

/// The offer in the head of a 402.
pub fn offer(head: &str) -> Option<Value> {
    let value = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("payment-required").then(|| value.trim())
    })?;
    let said: Value = serde_json::from_slice(&STANDARD.decode(value).ok()?).ok()?;
    said["accepts"].get(0).cloned()
}

/// The header line that pays this offer, from the `n`th payer of a run.
pub fn payment(offer: &Value, n: u64) -> String {
    let key = PrivateKeySigner::from_bytes(&keccak256(n.to_be_bytes())).unwrap();
    let text = |name: &str| offer[name].as_str().unwrap_or_else(|| panic!("no {name} in {offer}"));
    let address = |name: &str| text(name).parse::<Address>().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let signed = TransferWithAuthorization {
        from: key.address(),
        to: address("payTo"),
        value: text("amount").parse().unwrap(),
        validAfter: U256::ZERO,
        validBefore: U256::from(now + offer["maxTimeoutSeconds"].as_u64().unwrap()),
        nonce: B256::from(U256::from(n)),
    };
    let domain = Eip712Domain {
        name: offer["extra"]["name"].as_str().map(|name| name.to_owned().into()),
        version: offer["extra"]["version"].as_str().map(|version| version.to_owned().into()),
        chain_id: Some(U256::from(84532)),
        verifying_contract: Some(address("asset")),
        salt: None,
    };
    let signature = key.sign_hash_sync(&signed.eip712_signing_hash(&domain)).unwrap().as_bytes();
    let payment = json!({ "x402Version": 2, "accepted": offer, "payload": {
        "signature": alloy::hex::encode_prefixed(signature),
        "authorization": {
            "from": signed.from, "to": signed.to, "value": signed.value.to_string(), "validAfter": "0",
            "validBefore": signed.validBefore.to_string(), "nonce": signed.nonce,
        },
    }});
    format!("PAYMENT-SIGNATURE: {}\r\n", STANDARD.encode(payment.to_string()))
}
