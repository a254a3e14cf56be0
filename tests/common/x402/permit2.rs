//! What a buyer signs for Permit2, by hand: `exact` and `upto`.

use alloy::primitives::{Address, Bytes, U256};
use alloy::sol_types::Eip712Domain;
use mpp::PrivateKeySigner;
use serde_json::{Value, json};

use super::{EXACT_PROXY, EvmBed, PERMIT2, UPTO_PROXY, account, now, sign};

mod exact {
    alloy::sol! {
        struct TokenPermissions { address token; uint256 amount; }
        struct Witness { address to; uint256 validAfter; }
        struct PermitWitnessTransferFrom {
            TokenPermissions permitted; address spender; uint256 nonce; uint256 deadline; Witness witness;
        }
    }
}

mod upto {
    alloy::sol! {
        struct TokenPermissions { address token; uint256 amount; }
        struct Witness { address to; address facilitator; uint256 validAfter; }
        struct PermitWitnessTransferFrom {
            TokenPermissions permitted; address spender; uint256 nonce; uint256 deadline; Witness witness;
        }
    }
}

/// Everything that is signed; a test may change any of it first.
#[derive(Clone, Debug)]
pub struct Permit {
    pub from: Address,
    pub token: Address,
    pub amount: U256,
    pub spender: Address,
    pub nonce: U256,
    pub deadline: U256,
    pub to: Address,
    /// Only under `upto`.
    pub facilitator: Option<Address>,
    pub valid_after: U256,
}

impl EvmBed {
    /// As [`EvmBed::authorize`], for requirements that want Permit2.
    pub fn permit(&self, buyer: &PrivateKeySigner, requirements: &Value, change: impl FnOnce(&mut Permit)) -> Value {
        let text = |name: &str| requirements[name].as_str().unwrap_or_else(|| panic!("requirements without {name}"));
        let lifetime = requirements["maxTimeoutSeconds"].as_u64().unwrap();
        let by_usage = requirements["scheme"] == "upto";
        let mut permit = Permit {
            from: buyer.address(),
            token: account(text("asset")),
            amount: text("amount").parse().unwrap(),
            spender: account(if by_usage { UPTO_PROXY } else { EXACT_PROXY }),
            nonce: U256::from_be_bytes(alloy::primitives::B256::random().0),
            deadline: U256::from(now() + lifetime),
            to: account(text("payTo")),
            facilitator: requirements["extra"]["facilitatorAddress"].as_str().map(account),
            valid_after: U256::ZERO,
        };
        change(&mut permit);
        let Permit { from, token, amount, spender, nonce, deadline, to, facilitator, valid_after } = permit;
        let domain = self.permit2_domain();
        let signature: Bytes = match facilitator {
            None => {
                let witness = exact::Witness { to, validAfter: valid_after };
                let permitted = exact::TokenPermissions { token, amount };
                let signed = exact::PermitWitnessTransferFrom { permitted, spender, nonce, deadline, witness };
                sign(buyer, &signed, &domain)
            }
            Some(facilitator) => {
                let witness = upto::Witness { to, facilitator, validAfter: valid_after };
                let permitted = upto::TokenPermissions { token, amount };
                let signed = upto::PermitWitnessTransferFrom { permitted, spender, nonce, deadline, witness };
                sign(buyer, &signed, &domain)
            }
        };
        let mut witness = json!({"to": to, "validAfter": valid_after.to_string()});
        if let Some(facilitator) = facilitator {
            witness["facilitator"] = json!(facilitator);
        }
        json!({"x402Version": 2, "accepted": requirements, "payload": {
            "signature": signature,
            "permit2Authorization": {
                "from": from, "permitted": {"token": token, "amount": amount.to_string()}, "spender": spender,
                "nonce": nonce.to_string(), "deadline": deadline.to_string(), "witness": witness,
            },
        }})
    }

    fn permit2_domain(&self) -> Eip712Domain {
        Eip712Domain {
            name: Some("Permit2".into()),
            version: None,
            chain_id: Some(U256::from(self.chain_id)),
            verifying_contract: Some(account(PERMIT2)),
            salt: None,
        }
    }
}
