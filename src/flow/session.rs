//! Buying with a channel: a session credential on a request for content becomes a lease, or the request ends here.
//!
//! Order of checks, cheapest and least harmful first: form and MAC → parties → every signature (all in `Session::present`, without
//! I/O) → route, expiry → our own state of the channel → the chain, at most once in five seconds → the lease: durable before the first byte
//! of a stream is asked for; of a reply that comes whole it is durable with what it spends, before any byte of it leaves.

use super::channels::{Live, Step};
use super::errand::Errand;
use super::lease::{Lease, Taken, denied_refusal, short, trouble_stop, unsure};
use super::pay::{Money, Paid, Visit, store_down, unknown};
use super::price::{Cover, Quoted};
use super::{Stop, Till, Toll, transact};
use crate::channel::{Channel, ChannelId, Effect, Lease as Held, Op, Phase, Purchase, Voucher};
use crate::clock::UnixSeconds;
use crate::ids;
use crate::ids::RailId;
use crate::money::Atoms;
use crate::rail::session::{Action, Outcome, PayersTx, Presented, SessionAsk, SessionReceipt, Snapshot};
use crate::rail::{Offer, Shown};
use crate::refusal::{Moved, Refusal};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;
use std::time::Duration;

/// Vouchers that a channel may show in a second, for each request that uses it.
const VOUCHERS_PER_SECOND: u32 = 10;
/// How many first leases a deposit is advised to hold.
const ADVISED: u128 = 20;
/// How long a second copy of an opening or topping-up credential waits for the first.
pub(super) const OPENING: Duration = Duration::from_secs(20);

/// The session rail of a credential, and what it says. `Ok(None)`: it is no session credential of ours.
pub fn present(toll: &Toll, shown: &Shown, now: UnixSeconds) -> Result<Option<(Arc<Till>, Presented)>, Refusal> {
    for till in &toll.tills {
        if let Some(presented) = till.rail.present(shown, now)? {
            return Ok(Some((Arc::clone(till), presented)));
        }
    }
    Ok(None)
}

/// What a request needs of a channel before anything is done for it: the prompt and a first window when its output can be counted as
/// it comes, else all it can cost.
pub fn start(quoted: &Quoted, rail: &RailId, decimals: u8, counts_itself: bool) -> Result<(Cover, Atoms), Refusal> {
    let out_of_range = || Refusal::Internal { place: "session: amount out of range" };
    let cover = quoted.cover(rail, decimals).ok_or_else(out_of_range)?;
    let hides = quoted.allowed.model.hidden_output || quoted.allowed.ask.hides_output();
    let whole = !quoted.allowed.stream || (hides && !counts_itself);
    Ok((cover, cover.start(whole).ok_or_else(out_of_range)?))
}

/// Takes what a request for content needs out of its channel.
pub async fn buy(
    toll: &Arc<Toll>,
    visit: &Visit<'_>,
    quoted: &Arc<Quoted>,
    till: Arc<Till>,
    presented: Presented,
) -> Result<Paid, Stop> {
    let now = UnixSeconds::now();
    let id = till.rail.id().clone();
    let route = &quoted.allowed.route;
    if presented.route != route.path {
        return Err(Refusal::InvalidChallenge { why: "it was offered on another path" }.into());
    }
    if !route.accept.contains(&id) {
        return Err(Refusal::InvalidChallenge { why: "this rail is not accepted here any more" }.into());
    }
    // An opening may have been sent in time, and is looked up first.
    if now >= presented.expires && !matches!(presented.action, Action::Open { .. }) {
        return Err(Refusal::OfferExpired.into());
    }
    if quoted.allowed.ask.nothing_asked {
        return Err(Refusal::NothingAsked { surface: quoted.allowed.ask.surface }.into());
    }
    if !toll.can_serve(quoted) {
        return Err(Refusal::UpstreamUnavailable { retry_after_seconds: 5 }.into());
    }
    let (cover, need) = start(quoted, till.rail.id(), till.rail.decimals(), counts_itself(toll, quoted))?;
    let voucher = match &presented.action {
        Action::Voucher(voucher) => voucher.clone(),
        // It is good for as many vouchers as any credential while it lives.
        Action::Open { .. } => open(toll, &till, &presented, now).await?,
        Action::TopUp { .. } | Action::Close { .. } => {
            return Err(Refusal::Internal { place: "session: management as content" }.into());
        }
    };
    let channel = known(toll, &till, &presented.channel).await?;
    let live = toll.channels.live_of(&channel);
    admit(&live, &channel, &voucher, now)?;
    let late = now >= presented.expires;
    // Late it is good for what it was sent for, the first thing that is bought: later, anybody may have seen it.
    if late && (channel.spent() > Atoms(0) || !channel.leases.is_empty()) {
        return Err(Refusal::OfferExpired.into());
    }
    if late || matches!(presented.action, Action::Voucher(_)) {
        transact::fresh(toll, &till, &live, &channel.id).await?;
    }
    let lease = ids::fresh("lease");
    let held = Held {
        gate: toll.store.gate().to_owned(),
        cap: need,
        used: None,
        window: if quoted.allowed.stream { cover.window(super::price::FIRST_WINDOW) } else { Atoms(0) },
        since: now,
        purchase: Purchase {
            request: visit.request.to_owned(),
            receipt: ids::fresh("rcpt"),
            route: route.path.clone(),
            tier: route.tier.name.clone(),
            model: quoted.allowed.model.name.clone(),
            pool: quoted.allowed.model.pool.clone(),
            generation: quoted.generation.clone(),
        },
    };
    let op = Op::Buy {
        voucher,
        min_delta: till.min_delta(),
        challenge: presented.challenge_id.clone(),
        expires: presented.expires,
        lease: lease.clone(),
        terms: Box::new(held.clone()),
    };
    let count = |outcome: &str| toll.metrics.payments.with_label_values(&[id.as_str(), outcome]).inc();
    toll.channels.hold(&lease);
    // A client that leaves while this is written must not leave a lease that nobody ends: it is ended by being dropped.
    let (own, step, channel_id) = (Arc::clone(toll), Step::from(op), presented.channel.clone());
    let whole = !quoted.allowed.stream;
    let work = async move {
        let tried = match whole {
            true => own.channels.later(&channel_id, step).await,
            false => own.channels.one(&channel_id, step).await,
        };
        if !matches!(tried, Ok((_, Ok(Effect::Leased)))) {
            // Taken all the same, when the answer was lost: then it is ended as nobody's.
            own.channels.let_go(&lease);
        }
        let (channel, effect) = tried.map_err(|t| trouble_stop(&t))?;
        match effect {
            Ok(Effect::Leased) => {
                let taken = Taken { live, channel, id: lease, held, challenge_id: presented.challenge_id, cover };
                Ok(Lease::of(own, till, taken))
            }
            Ok(Effect::Short { required }) => Err(short(&channel, required).into()),
            Ok(_) => Err(Refusal::Internal { place: "session: no lease" }.into()),
            Err(denied) => Err(denied_refusal(&channel, &denied).into()),
        }
    };
    let lease: Result<Lease, Stop> =
        Errand::new(work).await.unwrap_or_else(|| Err(Refusal::Internal { place: "session: lease" }.into()));
    count(if lease.is_ok() { "paid" } else { "refused" });
    let output = quoted.parts.max_output_tokens;
    Ok(Paid { quoted: Arc::clone(quoted), money: Money::Lease(lease?), output })
}

/// Whether every pool that a request may come to says on every chunk what it has used.
fn counts_itself(toll: &Toll, quoted: &Quoted) -> bool {
    if !quoted.allowed.route.surface.can_count_itself() {
        return false;
    }
    let lane = toll.lane(quoted);
    !lane.pools.is_empty() && lane.pools.iter().all(|pool| pool.profile().ability.continuous_usage)
}

/// A channel that serves.
pub(super) async fn known(toll: &Toll, till: &Till, id: &ChannelId) -> Result<Arc<Channel>, Stop> {
    let channel = toll.channels.newest(id).await.map_err(|e| store_down(&e))?;
    let channel = channel.filter(|c| c.rail == *till.rail.id()).ok_or(Refusal::ChannelUnknown)?;
    match channel.serves() {
        Ok(()) => Ok(channel),
        Err(denied) => Err(denied_refusal(&channel, &denied).into()),
    }
}

/// Bounds how many vouchers a channel shows: each costs a signature check and, when it is new, a write. One that was settled stands on the
/// chain for everybody to show: it takes no turn from the payer's own, which raise it.
pub(super) fn admit(live: &Live, channel: &Channel, voucher: &Voucher, now: UnixSeconds) -> Result<(), Refusal> {
    if voucher.amount < channel.accepted() {
        return Err(Refusal::VoucherLower);
    }
    let streams = u32::try_from(channel.leases.len().max(1)).unwrap_or(u32::MAX);
    let raises = voucher.amount > channel.accepted();
    if live.admit_voucher(now, VOUCHERS_PER_SECOND.saturating_mul(streams), raises) {
        return Ok(());
    }
    Err(Refusal::TooBusy {
        limit: "vouchers of one channel in a second",
        retry_after_seconds: 1,
        address_at_fault: true,
    })
}

/// Opens a channel, or finds that it is open: the voucher it came with.
pub(super) async fn open(
    toll: &Arc<Toll>,
    till: &Arc<Till>,
    presented: &Presented,
    now: UnixSeconds,
) -> Result<Voucher, Stop> {
    let Action::Open { voucher, deposit, tx } = &presented.action else {
        return Err(Refusal::Internal { place: "session: not an opening" }.into());
    };
    // One opening of a payer after the other until it is in the records: how many channels he has is counted there. One that may
    // not be his does not keep him waiting.
    let of: &str = if tx.by_access_key { &presented.channel.0 } else { &presented.descriptor.payer };
    let mine = toll.channels.alone.turn(format!("opening {of}")).await;
    if let Some(channel) = toll.channels.newest(&presented.channel).await.map_err(|e| store_down(&e))? {
        drop(mine);
        return opened(toll, &channel, voucher).await;
    }
    if now >= presented.expires {
        return Err(Refusal::OfferExpired.into());
    }
    acceptable(toll, till, presented, voucher, *deposit, tx, now).await?;
    let (by_access_key, sponsored, valid_until) = (tx.by_access_key, tx.sponsored, tx.valid_until);
    if by_access_key {
        // A stranger's, who names whom he likes, is not even tried.
        till.rail.authorized(tx, now).await?;
    }
    // One that fails its trial costs who made it nothing: it has no place meanwhile. With that of a sponsored one its fee is set aside,
    // so that its place must be sure before.
    if by_access_key && sponsored {
        enter(toll, presented, valid_until, now)?;
    }
    let (own, till, presented, voucher, deposit) =
        (Arc::clone(toll), Arc::clone(till), presented.clone(), voucher.clone(), *deposit);
    // What is sent must be followed to its end, whether the client stays or not.
    let work = async move {
        let toll = own;
        let completed = till.rail.complete(&presented, now).await;
        let intent = completed.inspect_err(|_| toll.channels.unjudged.leave(&presented.channel))?;
        if by_access_key && !sponsored {
            enter(&toll, &presented, valid_until, now)?;
        }
        let (chain_id, escrow) = till.rail.place();
        let opening = Channel::opening(
            presented.channel.clone(),
            till.rail.id().clone(),
            chain_id,
            escrow,
            presented.descriptor.clone(),
            till.rail.decimals(),
            deposit,
            voucher.clone(),
            intent.clone(),
            now,
        );
        let channel = Channel { by_access_key, ..opening };
        let created = toll.channels.create(channel, now).await.map_err(|t| unsure(&t))?;
        let channel = match created {
            Ok(channel) => channel,
            Err(other) => {
                // Somebody else sends it.
                toll.channels.unjudged.leave(&other.id);
                drop(mine);
                return opened(&toll, &other, &voucher).await;
            }
        };
        drop(mine);
        match transact::carry(&toll, &till, &channel, &intent).await {
            Ok(Outcome::Landed { .. }) => {
                toll.metrics.payments.with_label_values(&[till.rail.id().as_str(), "opened"]).inc();
                Ok(voucher)
            }
            Ok(Outcome::Dropped { why }) => {
                Err(Stop { refusal: Refusal::PaymentFailed { why }, moved: Moved::No, claimed: true })
            }
            Ok(Outcome::Unknown) => Err(unknown()),
            Err(trouble) => Err(unsure(&trouble)),
        }
    };
    Errand::new(work).await.unwrap_or_else(|| Err(unknown()))
}

/// Takes a place for an opening that the chain has not judged.
fn enter(toll: &Toll, presented: &Presented, valid_until: UnixSeconds, now: UnixSeconds) -> Result<(), Refusal> {
    if toll.channels.unjudged.enter(&presented.channel, &presented.descriptor.payer, valid_until, now) {
        return Ok(());
    }
    Err(Refusal::TooBusy {
        limit: "openings signed by access keys that the chain has not judged",
        retry_after_seconds: 15,
        address_at_fault: false,
    })
}

/// What the operator takes as a channel. Nothing has been sent yet.
async fn acceptable(
    toll: &Toll,
    till: &Till,
    presented: &Presented,
    voucher: &Voucher,
    deposit: Atoms,
    tx: &PayersTx,
    now: UnixSeconds,
) -> Result<(), Stop> {
    let invalid = |why: String| -> Stop { Refusal::PaymentInvalid { why }.into() };
    let least = till.atoms(till.terms.min_deposit);
    if deposit < least {
        return Err(invalid(format!("a channel holds at least {least} here, this one {deposit}")));
    }
    if voucher.amount > deposit {
        return Err(Refusal::OverDeposit { deposit }.into());
    }
    if now >= tx.valid_until {
        return Err(invalid("the transaction can no longer be mined".to_owned()));
    }
    if let Err(why) = till.rail.standing() {
        tracing::warn!(rail = %till.rail.id(), why, "a channel cannot be opened now");
        return Err(Refusal::ChainUnread { retry_after_seconds: 5 }.into());
    }
    let payer = &presented.descriptor.payer;
    let open = toll.store.channels_of(till.rail.id(), payer).await.map_err(|e| store_down(&e))?;
    let most = usize::try_from(till.terms.max_channels_per_payer).unwrap_or(usize::MAX);
    // A stranger can name him: what the chain has not judged takes none of his places.
    if open.iter().filter(|channel| !channel.is_unjudged()).count() >= most {
        return Err(invalid(format!("one payer has at most {most} open channels here; close one or use one")));
    }
    Ok(())
}

/// The credential of an opening was shown before: by a copy that is under way, or for a channel that is open.
async fn opened(toll: &Arc<Toll>, channel: &Channel, voucher: &Voucher) -> Result<Voucher, Stop> {
    let live = toll.channels.live(&channel.id);
    let deadline = tokio::time::Instant::now() + OPENING;
    let settled = |c: &Channel| c.phase != Phase::Opening;
    let seen = match settled(channel) {
        true => Arc::new(channel.clone()),
        false => match toll.channels.wait(&live, &channel.id, deadline, settled).await {
            Ok(channel) => channel,
            Err(_) => return Err(unknown()),
        },
    };
    match seen.serves() {
        Ok(()) => Ok(voucher.clone()),
        Err(denied) => Err(denied_refusal(&seen, &denied).into()),
    }
}

/// What is said of a channel when the call that opened it is refused after that: npm `mppx` drops one that it has just opened, deposit and
/// all, unless the answer speaks of it. Only while the offer lives: later, anybody may have seen the credential.
pub async fn opened_by(toll: &Toll, shown: &Shown) -> Option<(HeaderName, HeaderValue)> {
    if shown.action() != Some("open") {
        return None;
    }
    let now = UnixSeconds::now();
    let (till, presented) = present(toll, shown, now).ok()??;
    let channel = toll.channels.seen(&presented.channel).await?;
    if now >= presented.expires || channel.rail != *till.rail.id() || channel.serves().is_err() {
        return None;
    }
    let (challenge_id, accepted) = (&presented.challenge_id, channel.accepted());
    till.rail.receipt(&SessionReceipt { challenge_id, channel: &channel, accepted, receipt: None, tx: None, at: now })
}

/// The channel that a request speaks of: that of its credential, or the one its `Payment-Session` header names.
pub async fn hinted(toll: &Toll, shown: Option<&ChannelId>, headers: &HeaderMap) -> Option<Arc<Channel>> {
    let named = || {
        let text = headers.get("payment-session")?.to_str().ok()?.trim().to_ascii_lowercase();
        let digits = text.strip_prefix("0x")?;
        (digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then_some(ChannelId(text))
    };
    let id = shown.cloned().or_else(named)?;
    let channel = toll.channels.newest(&id).await.ok()??;
    channel.serves().is_ok().then_some(channel)
}

/// An offer to pay by the token, with what is known of the payer's channel.
pub fn offer(
    toll: &Toll,
    till: &Till,
    quoted: &Quoted,
    known: Option<&Channel>,
    description: &str,
    now: UnixSeconds,
) -> Result<Offer, Refusal> {
    let (_, need) = start(quoted, till.rail.id(), till.rail.decimals(), counts_itself(toll, quoted))?;
    let deposit = till.atoms(till.terms.deposit).max(Atoms(need.0.saturating_mul(ADVISED)));
    let snapshot = known.filter(|channel| channel.rail == *till.rail.id()).map(|channel| Snapshot {
        channel,
        // A wallet that signs just this must not sign less than it has signed before.
        required: channel.required(need, till.min_delta()).max(channel.accepted()),
        with_voucher: false,
    });
    // By so much wallets raise what they signed last: by all of it where nothing is known of them, else by what is missing. What a
    // request may cost is more than most cost, and who raised by it each time would have signed his deposit away long before he spent it.
    // Of several requests at once each would find the same missing.
    let alone = snapshot.as_ref().filter(|s| s.channel.leases.is_empty());
    let missing = alone.map_or(need, |s| Atoms(s.required.0.saturating_sub(s.channel.accepted().0)));
    let ask = SessionAsk {
        route: &quoted.allowed.route.path,
        generation: &quoted.generation,
        amount: missing.max(till.min_delta()).max(Atoms(1)),
        deposit,
        snapshot,
        description,
    };
    till.rail.offer(&ask, now)
}
