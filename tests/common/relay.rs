//! A fee service on loopback: adds its token and its signature to whatever it is handed (`eth_signRawTransaction`).

use mpp::protocol::methods::tempo::FeePayerEnvelope78;
use serde_json::{Value, json};

use super::chain::{self, DevAccount, PATH_USD};

/// Starts one that pays with this account; the URL to reach it by holds a key.
pub async fn start(account: &DevAccount) -> String {
    use alloy::eips::Encodable2718 as _;
    use alloy::signers::SignerSync as _;
    let signer: alloy::signers::local::PrivateKeySigner = account.key.parse().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/a-key-in-the-path", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let signer = signer.clone();
            tokio::spawn(async move {
                let mut rest = Vec::new();
                while let Some(body) = chain::read_post(&mut stream, &mut rest).await {
                    let call: Value = serde_json::from_slice(&body).unwrap();
                    assert_eq!(call["method"], "eth_signRawTransaction");
                    let bytes = alloy::hex::decode(call["params"][0].as_str().unwrap()).unwrap();
                    let envelope = FeePayerEnvelope78::decode_envelope(&bytes).unwrap();
                    let (mut tx, signature, _) = envelope.to_recoverable_signed().into_parts();
                    (tx.fee_token, tx.fee_payer_signature) = (Some(PATH_USD.parse().unwrap()), None);
                    let carried = signer.sign_hash_sync(&tx.fee_payer_signature_hash(envelope.sender)).unwrap();
                    tx.fee_payer_signature = Some(carried);
                    let raw = alloy::hex::encode_prefixed(tx.into_signed(signature).encoded_2718());
                    let answer = json!({"jsonrpc": "2.0", "id": call["id"], "result": raw}).to_string();
                    if !chain::answer_json(&mut stream, answer.as_bytes()).await {
                        return;
                    }
                }
            });
        }
    });
    url
}
