//! `session` of a `mpp-tempo` rail: the terms of its channels.

use crate::channel::OrphanPolicy;
use crate::money::Usd;
use crate::written::{Section, Value};

/// `min_deposit` when it is not written and `deposit` is not smaller: $0.10.
const USUAL_MIN_DEPOSIT: Usd = Usd(100_000_000_000_000_000);
/// Longest a stream may stand still for a voucher (draft-tempo-session §"insufficient balance"): then its backend is closed.
const LONGEST_PAUSE_SECONDS: u64 = 60;

/// `rail.<name>.session`. Amounts are USD and become atoms of the rail's asset, rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionConf {
    /// What a client is advised to put into a channel; more when one request needs more. Above zero.
    pub deposit: Usd,
    /// Channels with less are refused: what is left in one must be worth a settlement. At most `deposit`.
    pub min_deposit: Usd,
    /// A voucher raises the one before it by at least this. At most `deposit`.
    pub min_voucher_delta: Usd,
    /// A channel is settled when this much is spent and not settled. Above zero.
    pub settle_above: Usd,
    /// And when a hundredth of that is, for this long. Less is paid out when the channel is closed: a settlement costs a fee.
    pub settle_every_minutes: u64,
    /// A channel without a request for this long is closed by us.
    pub close_idle_hours: u64,
    /// What a crash of the gate costs whoever's stream it cut off.
    pub orphan: OrphanPolicy,
    /// Longest wait of a stream for a voucher, 1 to 60.
    pub pause_seconds: u64,
    /// Open channels of one payer on this rail.
    pub max_channels_per_payer: u32,
}

pub(super) fn read(s: &Section<'_>) -> Option<SessionConf> {
    let usd = |key, usual| match s.take(key) {
        Some(v) => v.amount(Usd::parse).map(|usd| (usd, Some(v))),
        None => Some((usual, None)),
    };
    let (deposit, delta) = (usd("deposit", Usd::ONE), usd("min_voucher_delta", Usd::ZERO));
    let min_deposit = usd("min_deposit", deposit.as_ref().map_or(Usd::ZERO, |d| d.0.min(USUAL_MIN_DEPOSIT)));
    let settle_above = usd("settle_above", Usd::ONE);
    above_zero(deposit.as_ref(), "is nothing: a channel holds money");
    above_zero(settle_above.as_ref(), "is nothing: every call would be a transaction");
    if let Some((most, _)) = &deposit {
        at_most(*most, min_deposit.as_ref(), "is more than deposit: a channel opened as advised would be refused");
        at_most(*most, delta.as_ref(), "is more than deposit: a channel opened as advised could not pay");
    }
    let count = |key, range, usual| s.take(key).map_or(Some(usual), |v| v.count(range));
    let settle_every_minutes = count("settle_every_minutes", 1..=7 * 24 * 60, 60);
    let close_idle_hours = count("close_idle_hours", 1..=365 * 24, 24);
    let pause_seconds = count("pause_seconds", 1..=LONGEST_PAUSE_SECONDS, 60);
    let channels = count("max_channels_per_payer", 1..=10_000, 16);
    let orphan = s.take("orphan_policy").map_or(Some(OrphanPolicy::default()), |v| {
        v.word(&[("charge", OrphanPolicy::Charge), ("refund", OrphanPolicy::Refund)])
    });
    Some(SessionConf {
        deposit: deposit?.0,
        min_deposit: min_deposit?.0,
        min_voucher_delta: delta?.0,
        settle_above: settle_above?.0,
        settle_every_minutes: settle_every_minutes?,
        close_idle_hours: close_idle_hours?,
        orphan: orphan?,
        pause_seconds: pause_seconds?,
        max_channels_per_payer: u32::try_from(channels?).ok()?,
    })
}

/// An amount, and where it was written when it was.
type Written<'p> = (Usd, Option<Value<'p>>);

fn above_zero(amount: Option<&Written<'_>>, why: &str) {
    if let Some((Usd::ZERO, Some(at))) = amount {
        at.wrong(why);
    }
}

fn at_most(most: Usd, amount: Option<&Written<'_>>, why: &str) {
    if let Some((usd, Some(at))) = amount
        && *usd > most
    {
        at.wrong(why);
    }
}
