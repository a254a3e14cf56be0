//! Which transactions pay for which authorization, and which only look like it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::super::abi::{Eip2612Permit, ExactWitness, PermitTransferFrom, TokenPermissions, UptoWitness};
use super::*;
use crate::chain::B256;
use crate::money::Atoms;
use alloy::primitives::Bytes;

const TOKEN: Address = Address::repeat_byte(1);
const US: Address = Address::repeat_byte(2);
const PAYER: Address = Address::repeat_byte(3);
const OTHER: Address = Address::repeat_byte(9);
const NONCE: B256 = B256::repeat_byte(7);

fn log(address: Address, data: LogData) -> Log {
    let (topics, data) = data.split();
    Log { address, topics, data, transaction_hash: B256::ZERO, block_number: 10, removed: false }
}

fn moved(from: Address, to: Address, amount: u64) -> Log {
    log(TOKEN, Transfer { from, to, value: U256::from(amount) }.encode_log_data())
}

fn used(authorizer: Address, nonce: B256) -> Log {
    log(TOKEN, AuthorizationUsed { authorizer, nonce }.encode_log_data())
}

fn elsewhere(mut log: Log) -> Log {
    log.address = OTHER;
    log
}

fn mined(logs: Vec<Log>) -> Mined {
    Mined { block: 10, success: true, logs }
}

fn due() -> Due {
    Due { token: TOKEN, to: US, amount: U256::from(10_000) }
}

#[test]
fn an_authorization_is_paid_only_by_the_transfer_it_caused() {
    use Meaning::{Moved, Otherwise, Stranger, Unclear};
    let signed = Eip3009 {
        from: PAYER,
        to: US,
        value: Atoms(10_000),
        valid_after: 0,
        valid_before: 100,
        nonce: NONCE,
        signature: Bytes::new(),
    };
    let second = B256::repeat_byte(8);
    let (mark, pay) = (|| used(PAYER, NONCE), || moved(PAYER, US, 10_000));
    for (logs, want, why) in [
        (vec![mark(), pay()], Moved, "as agreed"),
        (vec![pay(), mark()], Moved, "a token that moves first"),
        (vec![elsewhere(mark()), mark(), elsewhere(pay()), pay()], Moved, "other contracts write beside it"),
        (vec![moved(OTHER, US, 5), mark(), pay(), moved(US, OTHER, 1)], Moved, "strangers' transfers around it"),
        (vec![used(OTHER, NONCE), moved(OTHER, US, 10_000), mark(), pay()], Moved, "a batch, by another payer's side"),
        (vec![used(PAYER, second), moved(PAYER, US, 1), mark(), pay()], Moved, "a batch of one payer"),
        (vec![mark(), pay(), used(PAYER, second), moved(PAYER, US, 1)], Moved, "a batch of one payer, the first"),
        (vec![moved(PAYER, US, 1), used(PAYER, second), pay(), mark()], Moved, "the same where the token moves first"),
        (vec![], Stranger, "nothing happened"),
        (vec![pay()], Stranger, "the payer paid us, not with this authorization"),
        (vec![used(PAYER, second), pay()], Stranger, "with another one at the same price"),
        (vec![used(OTHER, NONCE), moved(OTHER, US, 10_000)], Stranger, "the same nonce of another payer"),
        (vec![elsewhere(mark()), pay()], Stranger, "another contract says it was used"),
        (vec![mark()], Unclear, "used, and nothing moved"),
        (vec![mark(), elsewhere(pay())], Unclear, "another token moved"),
        (vec![mark(), moved(OTHER, US, 10_000)], Unclear, "another payer's money moved"),
        (vec![mark(), moved(PAYER, OTHER, 10_000)], Otherwise, "to another payee"),
        (vec![mark(), moved(PAYER, US, 9_999)], Otherwise, "one atom short"),
        (vec![mark(), moved(PAYER, US, 10_001)], Otherwise, "one atom over"),
        (
            vec![mark(), moved(PAYER, PAYER, 10_000), used(PAYER, second), pay()],
            Otherwise,
            "paid to themselves, beside a payment that another claim owns",
        ),
        (
            vec![mark(), moved(PAYER, PAYER, 10_000), pay()],
            Otherwise,
            "paid to themselves, then a transfer that another claim may own",
        ),
        (
            vec![pay(), mark(), moved(PAYER, PAYER, 10_000)],
            Unclear,
            "a transfer on either side: which one it caused cannot be told",
        ),
    ] {
        assert_eq!(eip3009(&signed, &due(), &mined(logs)), want, "{why}");
    }
    let reverted = Mined { success: false, ..mined(vec![mark(), pay()]) };
    assert_eq!(eip3009(&signed, &due(), &reverted), Stranger, "reverted");
}

/// A call to a proxy, as a test changes it.
struct Ask {
    proxy: Address,
    owner: Address,
    nonce: u64,
    token: Address,
    to: Address,
    amount: u64,
    approve: bool,
    cut: usize,
}

impl Ask {
    fn input(&self) -> Bytes {
        let limit = if self.proxy == UPTO_PROXY { 20_000 } else { self.amount };
        let permitted = TokenPermissions { token: self.token, amount: U256::from(limit) };
        let permit = PermitTransferFrom { permitted, nonce: U256::from(self.nonce), deadline: U256::from(100) };
        let approval = Eip2612Permit { value: U256::from(limit), deadline: U256::from(100), r: NONCE, s: NONCE, v: 27 };
        let (owner, signature, zero) = (self.owner, Bytes::from(vec![1; 65]), U256::ZERO);
        let exact = ExactWitness { to: self.to, validAfter: zero };
        let upto = UptoWitness { to: self.to, facilitator: OTHER, validAfter: zero };
        let amount = U256::from(self.amount);
        let mut input = match (self.proxy == UPTO_PROXY, self.approve) {
            (false, false) => ExactProxy::settleCall { permit, owner, witness: exact, signature }.abi_encode(),
            (false, true) => {
                ExactProxy::settleWithPermitCall { approval, permit, owner, witness: exact, signature }.abi_encode()
            }
            (true, false) => UptoProxy::settleCall { permit, amount, owner, witness: upto, signature }.abi_encode(),
            (true, true) => {
                UptoProxy::settleWithPermitCall { approval, permit, amount, owner, witness: upto, signature }
                    .abi_encode()
            }
        };
        input.truncate(input.len() - self.cut);
        input.into()
    }
}

#[test]
fn a_permit_is_paid_only_by_a_direct_call_that_used_it_and_the_transfer_that_followed() {
    use Meaning::{Moved, Otherwise, Stranger, Unclear};
    for proxy in [EXACT_PROXY, UPTO_PROXY] {
        let signed = Permit2 {
            from: PAYER,
            token: TOKEN,
            amount: Atoms(20_000),
            spender: proxy,
            nonce: U256::from(77),
            deadline: 100,
            to: US,
            facilitator: (proxy == UPTO_PROXY).then_some(OTHER),
            valid_after: 0,
            signature: Bytes::new(),
        };
        let judged = |change: &dyn Fn(&mut Ask), to: Option<Address>, logs: Vec<Log>| {
            let (owner, token, cut, approve) = (PAYER, TOKEN, 0, false);
            let mut ask = Ask { proxy, owner, nonce: 77, token, to: US, amount: 10_000, approve, cut };
            change(&mut ask);
            permit2(&signed, &due(), &mined(logs), &Called::new(B256::ZERO, to, ask.input()))
        };
        let pay = || vec![moved(PAYER, US, 10_000)];
        let same: &dyn Fn(&mut Ask) = &|_| ();
        let other = if proxy == EXACT_PROXY { UPTO_PROXY } else { EXACT_PROXY };
        for (change, to, logs, want, why) in [
            (same, Some(proxy), pay(), Moved, "as agreed"),
            (&|a| a.approve = true, Some(proxy), pay(), Moved, "with an approval carried along"),
            (&|a| a.nonce = 78, Some(proxy), pay(), Stranger, "another permit of the same payer at the same price"),
            (&|a| a.owner = OTHER, Some(proxy), pay(), Stranger, "another payer's"),
            (&|a| a.to = OTHER, Some(proxy), vec![moved(PAYER, OTHER, 10_000)], Otherwise, "to another payee"),
            (&|a| a.token = OTHER, Some(proxy), pay(), Otherwise, "another token"),
            (&|a| a.amount = 9_999, Some(proxy), vec![moved(PAYER, US, 9_999)], Otherwise, "one atom short"),
            (same, Some(proxy), vec![], Unclear, "the token shows nothing"),
            (same, Some(proxy), vec![elsewhere(moved(PAYER, US, 10_000))], Unclear, "another token shows it"),
            (same, Some(proxy), vec![moved(OTHER, US, 10_000)], Unclear, "from another payer"),
            (same, Some(other), pay(), Unclear, "the other proxy"),
            (same, Some(OTHER), pay(), Unclear, "through a contract we do not know"),
            (same, None, pay(), Unclear, "a new contract"),
            (&|a| a.cut = 40, Some(proxy), pay(), Unclear, "bytes missing"),
        ] {
            let change: &dyn Fn(&mut Ask) = change;
            assert_eq!(judged(change, to, logs), want, "{why}, {proxy}");
        }
        let ask = Ask { proxy, owner: PAYER, nonce: 77, token: TOKEN, to: US, amount: 10_000, approve: false, cut: 0 };
        let reverted = Mined { success: false, ..mined(pay()) };
        let called = Called::new(B256::ZERO, Some(proxy), ask.input());
        assert_eq!(permit2(&signed, &due(), &reverted, &called), Stranger, "reverted");
    }
}
