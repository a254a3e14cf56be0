//! Channels to test with. Amounts are small so that they meet each other often.

use super::*;

/// Deposit of [`opening`].
pub const DEPOSIT: u128 = 1_000;
/// When [`opening`] was made.
pub const START: UnixSeconds = UnixSeconds(10_000);

/// A voucher.
pub fn voucher(amount: u128) -> Voucher {
    Voucher { amount: Atoms(amount), signature: format!("0x{amount:0130x}") }
}

/// A transaction.
pub fn intent(act: Act, tx: &str) -> Intent {
    Intent { act, tx: tx.to_owned(), raw: "0x76".to_owned(), valid_until: START.plus(60) }
}

/// The chain's word: nobody asked to close.
pub fn view(block: u64, deposit: u128, settled: u128) -> View {
    View { block, deposit: Atoms(deposit), settled: Atoms(settled), close_requested_at: None }
}

/// What the request `name` buys under a plan.
pub fn purchase(name: &str, generation: &str) -> Purchase {
    Purchase {
        request: format!("req_{name}"),
        receipt: format!("rcpt_{name}"),
        route: format!("/v1/{generation}").into(),
        tier: format!("tier-{generation}").into(),
        model: format!("model-{generation}").into(),
        pool: format!("pool-{generation}").into(),
        generation: generation.into(),
    }
}

/// A lease of `gate`: no byte has left.
pub fn lease(name: &str, gate: &str, cap: u128, window: u128) -> Lease {
    Lease {
        gate: gate.to_owned(),
        cap: Atoms(cap),
        used: None,
        window: Atoms(window),
        since: START,
        purchase: purchase(name, "plan"),
    }
}

/// A channel of payer `0xpayer` whose opening transaction `open` is on its way, with a voucher of `signed`.
pub fn opening(id: &str, signed: u128) -> Channel {
    let word = |c: &str| format!("0x{}", c.repeat(64));
    let descriptor = Descriptor {
        payer: "0xpayer".to_owned(),
        payee: "0xpayee".to_owned(),
        operator: "0xoperator".to_owned(),
        token: "0xtoken".to_owned(),
        salt: word("1"),
        authorized_signer: "0xsigner".to_owned(),
        expiring_nonce_hash: word("2"),
    };
    let (id, escrow, open) = (ChannelId(id.to_owned()), "0xescrow".to_owned(), intent(Act::Open, "open"));
    let rail = "tempo/session".into();
    Channel::opening(id, rail, 42_431, escrow, descriptor, 6, Atoms(DEPOSIT), voucher(signed), open, START)
}

/// The same, opened in block 1.
pub fn open(id: &str, signed: u128) -> Channel {
    let landed = Op::Landed { tx: "open".to_owned(), mined: None, view: view(1, DEPOSIT, 0) };
    opening(id, signed)
        .apply("landed", landed, START)
        .map_or_else(|denied| panic!("{denied:?}"), |(channel, _)| channel)
}
