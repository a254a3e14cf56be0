//! What a mined transaction on an EVM chain means for one authorization. Pure.
//!
//! That the payer paid the payee the amount is not enough: the same payer may have bought twice at one price, and a facilitator
//! that names the other payment's transaction would have one transfer pay for both. So the transaction must show that *this*
//! authorization was used, and which transfer it caused.

use super::abi::{AuthorizationUsed, ExactProxy, Transfer, UptoProxy};
use crate::chain::Address;
use crate::chain::evm::{Called, Log, Mined};
use crate::rail::x402::signed::{EXACT_PROXY, Eip3009, Permit2, UPTO_PROXY};
use alloy::primitives::{LogData, U256};
use alloy::sol_types::{SolCall as _, SolEvent};

/// The movement that was bought, typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub token: Address,
    pub to: Address,
    pub amount: U256,
}

/// What one transaction is to one authorization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It used the authorization, which caused the movement.
    Moved,
    /// It used the authorization, which caused another movement or none.
    Otherwise,
    /// It has nothing to do with this authorization.
    Stranger,
    /// It cannot be told.
    Unclear,
}

/// What the token wrote that bears on authorizations.
enum Event {
    Used(AuthorizationUsed),
    Moved(Transfer),
}

impl Event {
    fn read(log: &Log) -> Option<Self> {
        let used = decode::<AuthorizationUsed>(log).map(Self::Used);
        used.or_else(|| decode::<Transfer>(log).map(Self::Moved))
    }
}

fn decode<E: SolEvent>(log: &Log) -> Option<E> {
    E::decode_log_data(&LogData::new(log.topics.clone(), log.data.clone())?).ok()
}

/// EIP-3009, whoever handed it in and with whatever else. A token marks the nonce and moves the money in one function, so the
/// two logs are neighbours; which comes first is the token's choice, the same for every authorization in the transaction.
pub(super) fn eip3009(signed: &Eip3009, due: &Due, mined: &Mined) -> Meaning {
    if !mined.success {
        return Meaning::Stranger;
    }
    let events: Vec<Event> = mined.logs.iter().filter(|l| l.address == due.token).filter_map(Event::read).collect();
    let uses: Vec<(usize, &AuthorizationUsed)> = events
        .iter()
        .enumerate()
        .filter_map(|(at, e)| match e {
            Event::Used(used) => Some((at, used)),
            Event::Moved(_) => None,
        })
        .collect();
    let Some((at, _)) = uses.iter().find(|(_, u)| u.authorizer == signed.from && u.nonce == signed.nonce) else {
        return Meaning::Stranger;
    };
    let beside = |at: Option<usize>, from: Address| match at.and_then(|at| events.get(at)) {
        Some(Event::Moved(t)) if t.from == from => Some(t),
        _ => None,
    };
    let after = |at: &usize, from| beside(at.checked_add(1), from);
    let before = |at: &usize, from| beside(at.checked_sub(1), from);
    let pays = |t: &Transfer| t.to == due.to && t.value == due.amount;
    let caused = [
        uses.iter().all(|(at, u)| after(at, u.authorizer).is_some()).then(|| after(at, signed.from)).flatten(),
        uses.iter().all(|(at, u)| before(at, u.authorizer).is_some()).then(|| before(at, signed.from)).flatten(),
    ];
    // Where both orders are possible, a transfer of another kind stands beside: both must pay, or nobody can tell.
    match (caused.iter().flatten().any(|t| pays(t)), caused.iter().flatten().any(|t| !pays(t))) {
        (true, false) => Meaning::Moved,
        (false, true) => Meaning::Otherwise,
        _ => Meaning::Unclear,
    }
}

/// What a call to one of the proxies asks for.
struct Use {
    owner: Address,
    nonce: U256,
    token: Address,
    to: Address,
    amount: U256,
}

/// `None` for a call that is not one of the proxy's.
fn read(proxy: Address, input: &[u8]) -> Option<Use> {
    let exact = |permit: super::abi::PermitTransferFrom, owner, to| Use {
        owner,
        nonce: permit.nonce,
        token: permit.permitted.token,
        to,
        amount: permit.permitted.amount,
    };
    match proxy {
        EXACT_PROXY => ExactProxy::settleCall::abi_decode_validate(input)
            .map(|c| exact(c.permit, c.owner, c.witness.to))
            .or_else(|_| {
                ExactProxy::settleWithPermitCall::abi_decode_validate(input)
                    .map(|c| exact(c.permit, c.owner, c.witness.to))
            })
            .ok(),
        UPTO_PROXY => UptoProxy::settleCall::abi_decode_validate(input)
            .map(|c| Use { amount: c.amount, ..exact(c.permit, c.owner, c.witness.to) })
            .or_else(|_| {
                UptoProxy::settleWithPermitCall::abi_decode_validate(input)
                    .map(|c| Use { amount: c.amount, ..exact(c.permit, c.owner, c.witness.to) })
            })
            .ok(),
        _ => None,
    }
}

/// Permit2 through a proxy. Permit2 writes no log, so the call itself must be read: a direct call to the proxy uses exactly one
/// authorization. One that goes through another contract cannot be told.
pub(super) fn permit2(signed: &Permit2, due: &Due, mined: &Mined, called: &Called) -> Meaning {
    if !mined.success {
        return Meaning::Stranger;
    }
    let Some(used) = called.to.filter(|to| *to == signed.spender).and_then(|to| read(to, &called.input)) else {
        // Another proxy's direct call is not ours either, but telling so would need every wrapper's code.
        return Meaning::Unclear;
    };
    if used.owner != signed.from || used.nonce != signed.nonce {
        return Meaning::Stranger;
    }
    let asked = used.token == due.token && used.to == due.to && used.amount == due.amount;
    let moved = mined.logs.iter().filter(|l| l.address == due.token).filter_map(decode::<Transfer>);
    let paid = moved.filter(|t| t.from == signed.from && t.to == due.to && t.value == due.amount).count() > 0;
    match (asked, paid) {
        (true, true) => Meaning::Moved,
        (false, _) => Meaning::Otherwise,
        // The call succeeded and the token shows nothing of it.
        (true, false) => Meaning::Unclear,
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
