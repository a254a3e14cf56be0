//! [`Quoted`] → [`Paid`]: exactly one credential becomes exactly one claim, or the request ends here.
//!
//! Order of checks, cheapest and least harmful first: form → MAC → the claim we may already have → terms → expiry and
//! signature (`Rail::check`) → would it be paid, and what we add (`Rail::complete`) → durable claim → the money. Nobody is asked before a
//! signature was looked at, and nothing is written of what would not be paid. A payment that is not for this request may have a claim as well: it is looked for before anybody is told to pay.

use super::hold::Hold;
use super::lease::Lease;
use super::loss::{Losses, Room};
use super::offered::{expected, lasts, offered};
use super::price::Quoted;
use super::promise::{Promise, unpaid};
use super::taking::{Taking, promise, take, to_its_end};
use super::{Stop, Toll, recover, session};
use crate::channel::Channel;
use crate::claim::{Claim, Denied, Op, Standing, Terms};
use crate::clock::UnixSeconds;
use crate::ids::RailId;
use crate::journal::{Entry, Settlement};
use crate::money::{Atoms, Usd};
use crate::rail::{self, Ask, Found, Identity, Offer, Rail, Recognised, Shown, When};
use crate::refusal::{Moved, Refusal};
use crate::rules::Plan;
use crate::rules::plan::Access;
use crate::store::{StoreError, Swap, Write};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

const RETRY_SECONDS: u64 = 2;

/// A request that may be forwarded.
pub struct Paid {
    /// What was asked and priced, under the rules of the offer.
    pub quoted: Arc<Quoted>,
    /// The money.
    pub money: Money,
    /// Output tokens per choice that may be produced for it.
    pub output: u64,
}

/// What stands behind a request that is served.
pub enum Money {
    /// Nothing: the route is free.
    None,
    /// A fixed amount that was taken.
    Hold(Hold),
    /// A part of a channel that may be used.
    Lease(Lease),
    /// An amount that is taken after the reply.
    Promise(Promise),
}

impl Money {
    /// What the operator may lose on the request.
    pub fn room(&self) -> Option<&Room> {
        match self {
            Self::Hold(hold) => hold.room(),
            Self::Promise(promise) => promise.room(),
            Self::None | Self::Lease(_) => None,
        }
    }

    /// For how many seconds the reply may be waited for; `None`: as long as the rules let it.
    pub fn lasts(&self, now: UnixSeconds) -> Option<u64> {
        match self {
            Self::Promise(promise) => Some(promise.lasts(now)),
            Self::None | Self::Hold(_) | Self::Lease(_) => None,
        }
    }
}

/// Everything `pay` looks at that is not the price.
pub struct Visit<'a> {
    /// The rules this request began with.
    pub plan: &'a Arc<Plan>,
    /// Credentials found in the head.
    pub found: &'a Found,
    /// SHA-256 of the body as received.
    pub digest: [u8; 32],
    /// The body as received.
    pub body: &'a Bytes,
    /// `req_…`.
    pub request: &'a str,
}

/// Takes the payment of a request, or says why not.
pub async fn pay(toll: &Arc<Toll>, visit: &Visit<'_>, quoted: &Arc<Quoted>) -> Result<Paid, Stop> {
    if quoted.allowed.route.access == Access::Free {
        let output = quoted.parts.max_output_tokens;
        if quoted.allowed.ask.nothing_asked {
            return Err(Refusal::NothingAsked { surface: quoted.allowed.ask.surface }.into());
        }
        return Ok(Paid { quoted: Arc::clone(quoted), money: Money::None, output });
    }
    let shown = match visit.found {
        Found::Nothing => return Err(Refusal::PaymentRequired.into()),
        Found::Malformed => return Err(Refusal::MalformedCredential.into()),
        Found::Many(found) => return Err(Refusal::TwoCredentials { found: *found }.into()),
        Found::One(shown) => shown,
    };
    toll.store.standing().map_err(|e| store_down(&e))?;
    if let Some((till, presented)) = session::present(toll, shown, UnixSeconds::now())? {
        return session::buy(toll, visit, quoted, till, presented).await;
    }
    let (rail, recognised) = match recognise(toll, visit, quoted, shown) {
        Ok(known) => known,
        Err(refusal) => return bought_before(toll, visit, quoted, shown, refusal).await,
    };
    let revision = match toll.store.claim(&recognised.key).await.map_err(|e| unread(&e))? {
        None => 1,
        // Somebody else's attempt with this proof came to nothing, as it had to. Its owner is not the poorer for it.
        Some(claim) if claim.yields_to(&recognised.challenge_id) => claim.revision.saturating_add(1),
        Some(claim) => {
            // The body it was bought for needs no second look at its price; any other must cost no more.
            let same_body = recognised.digest == Some(visit.digest);
            return resume(toll, visit, quoted, claim, &recognised.identity(), same_body).await;
        }
    };
    if !quoted.allowed.route.accept.contains(rail.id()) {
        return Err(Refusal::InvalidChallenge { why: "this rail is not accepted here any more" }.into());
    }
    let (quoted, lasts) = offered(toll, visit, quoted, rail.as_ref(), &recognised).await?;
    let terms = expected(&quoted, rail.as_ref(), &recognised)?;
    let ask = Ask { terms: &terms, digest: visit.digest, description: "", lasts };
    let proof = rail.check(shown, recognised, &ask, UnixSeconds::now()).await.inspect_err(|_| {
        toll.metrics.payments.with_label_values(&[rail.id().as_str(), "refused"]).inc();
    })?;
    if quoted.allowed.ask.nothing_asked {
        return Err(Refusal::NothingAsked { surface: quoted.allowed.ask.surface }.into());
    }
    if !toll.can_serve(&quoted) {
        return Err(Refusal::UpstreamUnavailable { retry_after_seconds: 5 }.into());
    }
    let server = toll.server(visit.request);
    let when = rail.when(quoted.allowed.stream);
    if let When::After { most: Some(_), exposure } = when {
        let output = quoted.output_covered(rail.id(), terms.decimals, terms.amount);
        if !quoted.is_covered(rail.id(), terms.decimals, terms.amount) {
            // Made under rules that are gone, and dearer ones are in force.
            return Err(Refusal::InvalidChallenge { why: "its offer covers no answer any more" }.into());
        }
        let taking = Taking { rail, shown, proof, terms, request: &server, revision, room: None };
        let money = Money::Promise(promise(toll, taking, true, exposure).await?);
        return Ok(Paid { quoted, money, output });
    }
    let room = room(toll, &quoted, None).await?;
    let output = bought(&quoted, rail.id(), terms.price, room.as_ref());
    if quoted.is_nothing(output) {
        return Err(Refusal::CapReached { retry_after_seconds: 600 }.into());
    }
    let taking = Taking { rail, shown, proof, terms, request: &server, revision, room };
    let money = match when {
        When::After { exposure, .. } => Money::Promise(promise(toll, taking, false, exposure).await?),
        When::First => Money::Hold(take(toll, taking).await?),
    };
    Ok(Paid { quoted, money, output })
}

/// Output tokens per choice that a payment buys together with what the operator carries.
fn bought(quoted: &Quoted, rail: &RailId, price: Usd, room: Option<&Room>) -> u64 {
    let worth = quoted.worth(rail, price);
    quoted.output_bought(worth.plus(room.map_or(Usd::ZERO, Room::amount)).unwrap_or(worth))
}

fn recognise<'a>(
    toll: &'a Toll,
    visit: &Visit<'_>,
    live: &Quoted,
    shown: &Shown,
) -> Result<(&'a Arc<dyn Rail>, Recognised), Stop> {
    let lasts = lasts(visit.plan, live);
    let accept = &live.allowed.route.accept;
    let (here, elsewhere): (Vec<_>, Vec<_>) = toll.rails.iter().partition(|rail| accept.contains(rail.id()));
    // Two rails may differ in nothing that a payment shows: one that the path accepts is asked first, and the other may still
    // know what it offered.
    let mut refused = None;
    for rail in here.into_iter().chain(elsewhere) {
        // What was bought is found whatever this request would cost now: it may be owed.
        let terms = terms_on(live, rail.as_ref()).or_else(|| live.terms(rail.id(), rail.decimals()));
        let Some(terms) = terms else { continue };
        let ask = Ask { terms: &terms, digest: visit.digest, description: "", lasts };
        match rail.recognise(shown, &ask) {
            Ok(Some(recognised)) => return Ok((rail, recognised)),
            Ok(None) => {}
            Err(why) => refused = refused.or(Some(why)),
        }
    }
    Err(refused.unwrap_or(Refusal::InvalidChallenge { why: "it was not issued here" }).into())
}

/// A credential that answers no offer for this request: what it bought is its payer's all the same, and nobody who has paid is told to
/// pay anew. Nothing is ever claimed by it.
async fn bought_before(
    toll: &Arc<Toll>,
    visit: &Visit<'_>,
    quoted: &Arc<Quoted>,
    shown: &Shown,
    refusal: Stop,
) -> Result<Paid, Stop> {
    let mut identities: Vec<_> = toll.rails.iter().filter_map(|rail| rail.identity(shown, visit.digest)).collect();
    identities.dedup();
    for identity in identities {
        match toll.store.claim(&identity.key).await.map_err(|e| unread(&e))? {
            Some(claim) if !claim.yields_to(&identity.challenge_id) => {
                return resume(toll, visit, quoted, claim, &identity, false).await;
            }
            _ => {}
        }
    }
    Err(refusal)
}

/// Whether what a request used is what it pays on this rail.
fn is_by_usage(rail: &dyn Rail, quoted: &Quoted) -> bool {
    matches!(rail.when(quoted.allowed.stream), When::After { most: Some(_), .. })
}

/// What a request costs on a rail, or the most it can cost where what it used is taken. `None`: more than can be asked for.
pub(super) fn terms_on(quoted: &Quoted, rail: &dyn Rail) -> Option<Terms> {
    match rail.when(quoted.allowed.stream) {
        When::After { most: Some(most), .. } => quoted.terms_by_usage(rail.id(), rail.decimals(), most),
        When::First | When::After { most: None, .. } => quoted.terms(rail.id(), rail.decimals()),
    }
}

/// The same for an offer: nobody is asked to promise more than he may.
fn offerable(quoted: &Quoted, rail: &dyn Rail) -> Result<Terms, Refusal> {
    let too_dear = |most| too_dear(quoted, most);
    let out_of_range = || Refusal::NoOffer { retry_after_seconds: 5, why: "the amount is out of range".to_owned() };
    let terms = terms_on(quoted, rail);
    match (rail.when(quoted.allowed.stream), terms) {
        (When::After { exposure, .. }, Some(terms)) if terms.price > exposure => Err(too_dear(exposure)),
        (When::After { most: Some(most), .. }, None) => Err(too_dear(most)),
        (_, terms) => terms.ok_or_else(out_of_range),
    }
}

fn too_dear(quoted: &Quoted, most: Usd) -> Refusal {
    let is_flat = quoted.parts.rule.starts_with("flat") && !quoted.allowed.route.by_usage;
    Refusal::TooDear { surface: quoted.allowed.route.surface, most, is_flat }
}

/// Room for what the operator absorbs on this request; where it was paid before and is `owed`, what was kept for it.
async fn room(toll: &Toll, quoted: &Quoted, owed: Option<&Claim>) -> Result<Option<Room>, Stop> {
    let tier = &quoted.allowed.route.tier;
    let Some((per_call, per_day)) = tier.absorbs() else { return Ok(None) };
    let now = UnixSeconds::now();
    learn(toll, tier.name.as_str(), now).await?;
    let worst = quoted.worst_cost(quoted.parts.max_output_tokens).unwrap_or(per_call);
    let want = worst.less(quoted.parts.price_usd).min(per_call);
    Ok(Some(match owed.and_then(|claim| Some((&claim.key, claim.redeem_until()?))) {
        Some(owed) => toll.losses.again(owed, &tier.name, now, want, per_day),
        None => toll.losses.reserve(&tier.name, now, want, per_day),
    }))
}

/// Reads the day's loss from the store: once, or each time where other gates add to it.
pub(super) async fn learn(toll: &Toll, tier: &str, now: UnixSeconds) -> Result<(), Stop> {
    let name = tier.into();
    if !toll.losses.knows(&name, now) || toll.store.changes().is_some() {
        let lost = toll.store.tally(&Losses::tally_name(&name), now.day()).await.map_err(|e| store_down(&e))?;
        toll.losses.know(&name, now.day(), lost);
    }
    Ok(())
}

/// The key says which proof it is; the challenge says who was asked. Somebody else's proof under an offer of one's own must
/// not open somebody else's claim.
fn is_answered_by(claim: &Claim, identity: &Identity) -> Result<(), Stop> {
    if claim.challenge_id == identity.challenge_id {
        return Ok(());
    }
    // While it is not known whose it is, nobody may be told to pay anew.
    match claim.standing {
        Standing::Claimed { .. } | Standing::Taking { .. } | Standing::Promised { .. } => Err(running_stop()),
        // An x402 payment is public once it is settled. Whoever shows it otherwise than its payer did is told that it is used.
        _ if identity.is_public => Err(Stop { moved: Moved::Yes, claimed: true, ..Refusal::ProofSpent.into() }),
        _ => Err(Refusal::InvalidChallenge { why: "the payment answers another offer" }.into()),
    }
}

/// A proof we have seen before. `same_body`: under our MAC it was bought for this body.
async fn resume(
    toll: &Arc<Toll>,
    visit: &Visit<'_>,
    quoted: &Arc<Quoted>,
    mut claim: Claim,
    identity: &Identity,
    same_body: bool,
) -> Result<Paid, Stop> {
    is_answered_by(&claim, identity)?;
    let rail = claim.terms.rail.clone();
    let deadline = tokio::time::Instant::now() + toll.unknown_wait;
    while let Standing::Claimed { by } | Standing::Taking { by, .. } = &claim.standing {
        if !recover::is_following(by) {
            toll.metrics.payments.with_label_values(&[rail.as_str(), "replayed"]).inc();
            return Err(running_stop());
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(unknown());
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
        claim = toll.store.claim(&claim.key).await.map_err(|e| unread(&e))?.ok_or_else(unknown)?;
        // It may have died meanwhile and been claimed by its owner.
        is_answered_by(&claim, identity)?;
    }
    let by_usage = toll.rail(&rail).is_some_and(|rail| is_by_usage(rail.as_ref(), quoted));
    let decimals = claim.terms.decimals;
    let need = match same_body {
        true => Some(claim.paid_amount()),
        // Its prompt, and a word of an answer.
        false if by_usage => quoted.cover(&rail, decimals).and_then(|cover| cover.of(cover.most.min(1))),
        false => quoted.terms(&rail, decimals).map(|terms| terms.amount),
    };
    let need = need.ok_or(Refusal::Internal { place: "pay: redeem" })?;
    let redeem = Op::Redeem { by: toll.server(visit.request), route: quoted.allowed.route.path.clone(), need };
    let now = UnixSeconds::now();
    let count = |outcome: &str| toll.metrics.payments.with_label_values(&[rail.as_str(), outcome]).inc();
    // Asked of the pure rules first, so that a refusal that would change nothing costs no write.
    if let Err(denied) = claim.apply(redeem.clone(), now) {
        count("replayed");
        return Err(denied_stop(&claim, denied));
    }
    if quoted.allowed.ask.nothing_asked {
        let moved = claim.redeem_until().map_or(Moved::Unknown, |until| Moved::Redeemable { until });
        let refusal = Refusal::NothingAsked { surface: quoted.allowed.ask.surface };
        return Err(Stop { refusal, moved, claimed: true });
    }
    let key = claim.key.clone();
    let (own, request, wanted) = (Arc::clone(toll), toll.server(visit.request), Arc::clone(quoted));
    let step = async move {
        let left = |stop: &Stop| recover::abandon(&own, &claim.key, &request, stop);
        let claim = advance(&own, &claim, redeem, now).await.inspect_err(left)?;
        // Nobody else has the claim from here on, and with it what was kept for it.
        match room(&own, &wanted, Some(&claim)).await {
            Ok(room) => Ok(Hold::of(own, claim, request, room)),
            Err(stop) => {
                let moved = Hold::of(own, claim, request, None).give_back().await;
                Err(Stop { moved, claimed: true, ..stop })
            }
        }
    };
    let hold = to_its_end(toll, &key, step).await?;
    let output = match hold.claim().output {
        // What the first answer used was taken, and the second is paid by nothing else: it may be as long.
        Some(used) if by_usage && same_body => used.min(quoted.parts.max_output_tokens),
        _ if by_usage => quoted.output_covered(&rail, decimals, hold.claim().paid_amount()),
        _ => bought(quoted, &rail, hold.terms().price, hold.room()),
    };
    if !by_usage && hold.room().is_some() && quoted.is_nothing(output) {
        // Nothing was kept for it here, and others have used the day up.
        let refusal = Refusal::CapReached { retry_after_seconds: 60 };
        return Err(Stop { refusal, moved: hold.give_back().await, claimed: true });
    }
    count("redeemed");
    Ok(Paid { quoted: Arc::clone(quoted), money: Money::Hold(hold), output: output.max(1) })
}

/// Applies an op and swaps the record; what the claim or the store says against it becomes the answer.
pub(super) async fn advance(toll: &Toll, claim: &Claim, op: Op, now: UnixSeconds) -> Result<Claim, Stop> {
    let entry = match &op {
        Op::Pay { .. } => Some(Entry::Paid { key: claim.key.0.clone(), at: now }),
        Op::PayUnserved { .. } | Op::GiveBack { .. } | Op::Depart { .. } => {
            Some(Entry::Owed { key: claim.key.0.clone(), at: now })
        }
        Op::Die | Op::Forgo { .. } => Some(Entry::Dead { key: claim.key.0.clone(), at: now }),
        Op::Take { amount, .. } => Some(Entry::Taking { key: claim.key.0.clone(), amount: *amount, at: now }),
        Op::Doubt => Some(Entry::Unproven { key: claim.key.0.clone(), at: now }),
        _ => None,
    };
    let next = claim.apply(op, now).map_err(|denied| denied_stop(claim, denied))?;
    let mut write = Write { claim: Some(next.clone()), journal: entry.into_iter().collect(), ..Write::default() };
    match (&claim.standing, &next.standing) {
        (Standing::Taking { receipt: Some(id), amount, .. }, _) => {
            (write.journal, write.tally) = settled_after(toll, &next, id, *amount, now).await?;
        }
        // Nothing left, but a backend worked for it.
        (Standing::Taking { amount, .. }, Standing::Untaken) => write.tally = unpaid(&next, *amount, now),
        _ => {}
    }
    match toll.store.commit(write).await {
        Ok(Swap::Done) => {
            if let (Standing::Taking { amount, .. }, Standing::Lost { .. }) = (&claim.standing, &next.standing) {
                let usd = crate::metrics::shown(amount.to_usd(claim.terms.decimals).unwrap_or(claim.terms.price));
                toll.metrics.delivered_unpaid_usd.with_label_values(&[claim.terms.rail.as_str()]).inc_by(usd);
            }
            Ok(next)
        }
        Ok(Swap::Lost(_) | Swap::Overtaken(_)) => Err(running_stop()),
        Err(e) => Err(Stop { claimed: true, moved: Moved::Unknown, ..store_down(&e) }),
    }
}

/// What is written when the payment of an answer that has left is known: the receipt as it is now, and what its payer did not pay.
async fn settled_after(
    toll: &Toll,
    next: &Claim,
    receipt: &str,
    amount: Atoms,
    now: UnixSeconds,
) -> Result<(Vec<Entry>, Vec<(String, u64, Usd)>), Stop> {
    let known = toll.store.receipt(receipt).await.map_err(|e| unread(&e))?;
    let with = |settlement, lost: bool| {
        let mut receipt = known?;
        (receipt.settlement, receipt.transaction) = (Some(settlement), next.transaction.clone());
        if lost {
            (receipt.charged, receipt.charged_usd) = (Atoms(0), Usd::ZERO);
        }
        Some(Entry::Receipt(Box::new(receipt)))
    };
    Ok(match next.standing {
        Standing::Delivered { .. } => {
            let paid = Entry::Paid { key: next.key.0.clone(), at: now };
            ([paid].into_iter().chain(with(Settlement::Settled, false)).collect(), Vec::new())
        }
        Standing::Lost { .. } => {
            tracing::error!(claim = %next.key.0, payer = next.payer.as_deref().unwrap_or(""), "delivered, and its payment failed");
            (with(Settlement::Lost, true).into_iter().collect(), unpaid(next, amount, now))
        }
        _ => (Vec::new(), Vec::new()),
    })
}

pub(super) fn denied_stop(claim: &Claim, denied: Denied) -> Stop {
    let redeemable = claim.redeem_until().map_or(Moved::Unknown, |until| Moved::Redeemable { until });
    let (refusal, moved) = match denied {
        Denied::Running => (Refusal::ProofRunning { retry_after_seconds: RETRY_SECONDS }, Moved::Unknown),
        Denied::Spent if matches!(claim.standing, Standing::Lost { .. }) => (Refusal::ProofSpent, Moved::No),
        Denied::Spent => (Refusal::ProofSpent, Moved::Yes),
        Denied::Dead => (
            Refusal::PaymentFailed { why: "this payment failed earlier and can never go through".to_owned() },
            Moved::No,
        ),
        Denied::Unproven => (Refusal::PaymentUnproven, Moved::Unknown),
        Denied::OtherRoute => (Refusal::RedeemElsewhere { route: claim.terms.route.to_string() }, redeemable),
        Denied::Dearer { need, paid } => (Refusal::Underpaid { need, paid }, redeemable),
        Denied::OutOfOrder => (Refusal::Internal { place: "claim: op out of order" }, Moved::Unknown),
    };
    Stop { refusal, moved, claimed: true }
}

pub(super) fn running(toll: &Toll, rail: &dyn Rail) -> Stop {
    toll.metrics.payments.with_label_values(&[rail.id().as_str(), "replayed"]).inc();
    running_stop()
}

pub(super) fn running_stop() -> Stop {
    let refusal = Refusal::ProofRunning { retry_after_seconds: RETRY_SECONDS };
    Stop { refusal, moved: Moved::Unknown, claimed: true }
}

pub(super) fn unknown() -> Stop {
    let refusal = Refusal::PaymentUnknown { retry_after_seconds: 5 };
    Stop { refusal, moved: Moved::Unknown, claimed: true }
}

pub(super) fn store_down(e: &StoreError) -> Stop {
    tracing::error!(error = %e, "the store cannot answer: paid traffic is refused");
    Refusal::Store { retry_after_seconds: 10 }.into()
}

/// A proof was shown and nobody can say what became of it: it may have been paid by an earlier request.
pub(super) fn unread(e: &StoreError) -> Stop {
    Stop { claimed: true, moved: Moved::Unknown, ..store_down(e) }
}

/// Every offer of a route that can be honoured now, in the client's order, or [`Refusal::NoOffer`]. `known`: the payer's channel,
/// which session offers speak of.
pub async fn offers(
    toll: &Toll,
    quoted: &Quoted,
    digest: [u8; 32],
    headers: &http::HeaderMap,
    known: Option<&Channel>,
) -> Result<Vec<Offer>, Refusal> {
    let allowed = &quoted.allowed;
    if let Err(e) = toll.store.standing() {
        return Err(store_down(&e).refusal);
    }
    if !toll.can_serve(quoted) {
        return Err(Refusal::NoOffer { retry_after_seconds: 5, why: "no backend can take the request".to_owned() });
    }
    let mut capped = false;
    if let Some((per_call, per_day)) = allowed.route.tier.absorbs() {
        let now = UnixSeconds::now();
        learn(toll, allowed.route.tier.name.as_str(), now).await.map_err(|stop| stop.refusal)?;
        let left = toll.losses.left(&allowed.route.tier.name, now, per_day).min(per_call);
        let budget = quoted.parts.price_usd.plus(left).unwrap_or(left);
        capped = quoted.is_nothing(quoted.output_bought(budget));
    }
    let now = UnixSeconds::now();
    let description = description(quoted);
    // Beside offers that charge what is used, one that does not says so.
    let as_quoted = format!("{description}: a quote for this request, charged as it is, whatever is used");
    let lasts = lasts(&toll.rules.plan(), quoted);
    let none = |why: String| Refusal::NoOffer { retry_after_seconds: 5, why };
    let (mut why, mut covered) = (None, None);
    let mut offers = Vec::with_capacity(allowed.route.accept.len());
    for id in &allowed.route.accept {
        let Some(way) = toll.way(id) else { continue };
        // Whoever holds a channel loses nothing by our own account's being empty, and would pay elsewhere beside his deposit.
        let holder = toll.till(id).filter(|_| known.is_some_and(|channel| channel.rail == *id));
        let standing = holder.map_or_else(|| way.standing(), |till| till.rail.chain_standing());
        let made = standing.map_err(none).and_then(|()| match (toll.rail(id), toll.till(id)) {
            // Whoever pays what he uses leaves the operator nothing to carry.
            (Some(rail), _) if capped && !is_by_usage(rail.as_ref(), quoted) => {
                Err(none("the operator's cap is reached".to_owned()))
            }
            (Some(rail), _) => {
                let terms = offerable(quoted, rail.as_ref())?;
                let fixed = allowed.route.by_usage && !is_by_usage(rail.as_ref(), quoted);
                let description = if fixed { &as_quoted } else { &description };
                let ask = Ask { terms: &terms, digest, description, lasts };
                rail.offer(&ask, now)
            }
            (None, Some(till)) => session::offer(toll, till, quoted, known, &description, now),
            (None, None) => Err(none("it is not configured".to_owned())),
        });
        match made {
            Ok(offer) => offers.push(offer),
            Err(refusal) => {
                tracing::debug!(rail = %id, reason = refusal.message(), "not offered");
                match refusal {
                    Refusal::TooDear { most, .. } => covered = covered.max(Some(most)),
                    _ => drop(why.get_or_insert_with(|| format!("{id} is not available"))),
                }
            }
        }
    }
    if offers.is_empty() && capped {
        return Err(Refusal::CapReached { retry_after_seconds: 600 });
    }
    if offers.is_empty() {
        // Another way may be back soon; what is too dear for every one stays so.
        return Err(match (why, covered) {
            (None, Some(most)) => too_dear(quoted, most),
            (why, _) => none(why.unwrap_or_else(|| "this path accepts no rail".to_owned())),
        });
    }
    for offer in &offers {
        toll.metrics.challenges.with_label_values(&[offer.rail.as_str()]).inc();
    }
    Ok(rail::ranked(headers, offers))
}

/// What the wallet shows its owner. Words of the rules only.
pub fn description(quoted: &Quoted) -> String {
    let ascii = |s: &str| s.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect::<String>();
    format!("{} on {}", ascii(quoted.allowed.model.name.as_str()), ascii(quoted.allowed.route.path.as_str()))
}
