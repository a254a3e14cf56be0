//! Management of channels: opening, vouchers, top-ups and closing without content, and the proof by which a payer without memory
//! finds his channel again. All of it is answered here, with 204, and never forwarded.

use super::errand::Errand;
use super::lease::{denied_refusal, trouble_stop, unsure};
use super::pay::unknown;
use super::session::{OPENING, admit, known, open};
use super::{Stop, Till, Toll, closing, transact};
use crate::channel::{Act, Channel, ChannelId, Denied, Intent, Op, Voucher};
use crate::claim::Terms;
use crate::clock::UnixSeconds;
use crate::ids::RailId;
use crate::money::{Atoms, Usd};
use crate::rail::mpp::charge::OFFER_SECONDS;
use crate::rail::session::{Action, Outcome, Presented, SessionReceipt, Snapshot};
use crate::rail::{self, Ask, Offer, Rail, Recognised, Shown};
use crate::refusal::{Moved, Refusal};
use crate::rules::plan::{Plan, Route};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;

/// Header lines of a 204.
pub type Done = Vec<(HeaderName, HeaderValue)>;

/// Whether a credential is for us alone: `topUp` and `close` always, `open` and `voucher` when no content is asked for with them (a query
/// string never counts).
pub fn is_management(shown: &Shown, no_body: bool) -> bool {
    match shown.action() {
        Some("topUp" | "close") => true,
        Some("open" | "voucher") => no_body,
        _ => false,
    }
}

/// Does what a session credential asks, on the path it was offered for.
pub async fn manage(toll: &Arc<Toll>, route: &Route, shown: &Shown) -> Result<Done, Stop> {
    toll.store.standing().map_err(|e| super::pay::store_down(&e))?;
    let now = UnixSeconds::now();
    let Some((till, presented)) = super::session::present(toll, shown, now)? else {
        return Err(Refusal::InvalidChallenge { why: "it was not issued here" }.into());
    };
    if presented.route != route.path {
        return Err(Refusal::InvalidChallenge { why: "it was offered on another path" }.into());
    }
    let id = &presented.channel;
    let (channel, tx) = match &presented.action {
        Action::Open { .. } => {
            open(toll, &till, &presented, now).await?;
            known(toll, &till, id).await?;
            (toll.channels.written(id).await.map_err(|t| trouble_stop(&t))?, None)
        }
        // A voucher speaks for itself: it is taken as long as the stream that asked for it may run.
        Action::Voucher(voucher) => (accept(toll, &till, id, voucher, now).await?, None),
        Action::TopUp { .. } => {
            let (_, tx) = top_up(toll, &till, presented.clone(), now).await?;
            (toll.channels.written(id).await.map_err(|t| unsure(&t))?, tx)
        }
        Action::Close { voucher, agreed } => {
            let closed = close(toll, &till, id, (voucher, *agreed), now).await?;
            (closed.channel, closed.tx)
        }
    };
    let said = SessionReceipt {
        challenge_id: &presented.challenge_id,
        channel: &channel,
        accepted: match &presented.action {
            Action::Close { voucher, .. } => voucher.amount,
            _ => channel.accepted(),
        },
        receipt: None,
        tx: tx.as_deref(),
        at: now,
    };
    Ok(till.rail.receipt(&said).into_iter().collect())
}

async fn accept(
    toll: &Arc<Toll>,
    till: &Till,
    id: &ChannelId,
    voucher: &Voucher,
    now: UnixSeconds,
) -> Result<Arc<Channel>, Stop> {
    let channel = known(toll, till, id).await?;
    let live = toll.channels.live_of(&channel);
    admit(&live, &channel, voucher, now)?;
    let op = || Op::Accept { voucher: voucher.clone(), min_delta: till.min_delta() };
    let mut tried = toll.channels.one(id, op()).await.map_err(|t| trouble_stop(&t))?;
    // It may have been topped up without us.
    if let (_, Err(Denied::OverDeposit { .. })) = &tried
        && live.may_ask_chain()
        && let Ok(views) = till.rail.views(std::slice::from_ref(id)).await
        && let Some(view) = views.first()
    {
        transact::heard(toll, till, id, *view).await.map_err(|t| trouble_stop(&t))?;
        tried = toll.channels.one(id, op()).await.map_err(|t| trouble_stop(&t))?;
    }
    match tried {
        (channel, Ok(_)) => Ok(channel),
        (channel, Err(denied)) => Err(denied_refusal(&channel, &denied).into()),
    }
}

async fn top_up(
    toll: &Arc<Toll>,
    till: &Arc<Till>,
    presented: Presented,
    now: UnixSeconds,
) -> Result<(Arc<Channel>, Option<String>), Stop> {
    let channel = known(toll, till, &presented.channel).await?;
    let live = toll.channels.live_of(&channel);
    let Action::TopUp { tx, .. } = &presented.action else {
        return Err(Refusal::Internal { place: "control: not a top-up" }.into());
    };
    let hash = tx.hash.clone();
    if let Some(mined) = live.landed(&hash) {
        return Ok((channel, Some(mined)));
    }
    let is_under_way = |c: &Channel| c.payers_tx.as_ref().is_some_and(|known| known.tx == hash);
    if is_under_way(&channel) {
        let deadline = tokio::time::Instant::now() + OPENING;
        let channel = toll.channels.wait(&live, &channel.id, deadline, |c| !is_under_way(c)).await;
        let channel = channel.map_err(|_| unknown())?;
        if let Some(mined) = live.landed(&hash) {
            return Ok((channel, Some(mined)));
        }
    }
    if !live.may_top_up() {
        return Err(Refusal::ChannelBusy { retry_after_seconds: 5 }.into());
    }
    if now >= tx.valid_until {
        return sent_before(toll, till, &presented).await;
    }
    if now >= presented.expires {
        return Err(Refusal::OfferExpired.into());
    }
    let (own, till) = (Arc::clone(toll), Arc::clone(till));
    // What is sent must be followed to its end, whether the client stays or not.
    let work = async move {
        let toll = own;
        let id = &presented.channel;
        let intent = match till.rail.complete(&presented, now).await {
            Err(Refusal::PaymentInvalid { .. }) => match landed_before(&toll, &till, &presented).await? {
                Some(landed) => return Ok(landed),
                None => till.rail.complete(&presented, now).await?,
            },
            tried => tried?,
        };
        let intend = Op::Intend { intent: intent.clone() };
        let (channel, effect) = toll.channels.one(id, intend).await.map_err(|t| unsure(&t))?;
        if let Err(denied) = effect {
            return Err(denied_refusal(&channel, &denied).into());
        }
        match transact::carry(&toll, &till, &channel, &intent).await.map_err(|t| unsure(&t))? {
            Outcome::Landed { mined, .. } => {
                // A relay's transaction has another hash than what the payer signed.
                live.topped_up(&hash, &mined);
                Ok((known(&toll, &till, id).await?, Some(mined)))
            }
            Outcome::Dropped { why } => {
                Err(Stop { refusal: Refusal::PaymentFailed { why }, moved: Moved::No, claimed: true })
            }
            Outcome::Unknown => Err(unknown()),
        }
    };
    Errand::new(work).await.unwrap_or_else(|| Err(unknown()))
}

/// A top-up that would fail may be one that landed, and that nobody here remembers: its payer may have too little left for a second, and must
/// not be asked for one. `Ok(None)`: a node that knows what the record knows does not have it. What one that is behind says against it, and
/// that it does not have it, is not known to be so.
async fn landed_before(
    toll: &Arc<Toll>,
    till: &Arc<Till>,
    presented: &Presented,
) -> Result<Option<(Arc<Channel>, Option<String>)>, Stop> {
    let id = &presented.channel;
    let views = till.rail.views(std::slice::from_ref(id)).await;
    let block = known(toll, till, id).await?.view.block;
    let is_abreast = views.is_ok_and(|views| views.first().is_some_and(|view| view.block >= block));
    match sent_before(toll, till, presented).await {
        Err(stop) if is_abreast && stop == unknown() => Ok(None),
        landed => landed.map(Some),
    }
}

/// What became of a top-up that nobody here remembers: the chain does. Nothing is sent.
async fn sent_before(
    toll: &Arc<Toll>,
    till: &Arc<Till>,
    presented: &Presented,
) -> Result<(Arc<Channel>, Option<String>), Stop> {
    let Action::TopUp { additional, tx } = &presented.action else {
        return Err(Refusal::Internal { place: "control: not a top-up" }.into());
    };
    let (id, act) = (&presented.channel, Act::TopUp { additional: *additional });
    let intent = Intent { act, tx: tx.hash.clone(), raw: "0x".to_owned(), valid_until: tx.valid_until };
    let channel = known(toll, till, id).await?;
    match till.rail.look(&channel, &intent).await {
        Outcome::Landed { mined, view } => {
            transact::heard(toll, till, id, view).await.map_err(|t| trouble_stop(&t))?;
            toll.channels.live_of(&channel).had_topped_up(&tx.hash, &mined);
            Ok((known(toll, till, id).await?, Some(mined)))
        }
        // What a relay sent has a hash of its own: that this one is not there says nothing.
        Outcome::Dropped { .. } if tx.sponsored && till.rail.is_relayed() => Err(unknown()),
        Outcome::Dropped { why } => Err(Refusal::PaymentFailed { why }.into()),
        Outcome::Unknown => Err(unknown()),
    }
}

/// So long after its last use a channel is in use.
const IN_USE_SECONDS: u64 = 300;

async fn close(
    toll: &Arc<Toll>,
    till: &Arc<Till>,
    id: &ChannelId,
    (voucher, agreed): (&Voucher, bool),
    now: UnixSeconds,
) -> Result<closing::Closed, Stop> {
    // What a request uses may not be in the store yet.
    let channel = toll.channels.newest(id).await.map_err(|e| super::pay::store_down(&e))?;
    let channel = channel.filter(|c| c.rail == *till.rail.id()).ok_or(Refusal::ChannelUnknown)?;
    if channel.serves().is_ok() {
        // Less than what was used is no end to agree on. A lower voucher than the highest may be shown: we have the better one.
        if voucher.amount < channel.capture() {
            return Err(Refusal::VoucherLower.into());
        }
        // Whoever reads the chain has this one, and any offer of the path to show it with. A wallet may have no other, so it closes what
        // nobody uses: the rest goes back to its payer, whoever asked.
        let in_use = !channel.leases.is_empty() || now < channel.touched_at.plus(IN_USE_SECONDS);
        if !agreed && in_use && published(&channel).is_some_and(|known| voucher.amount <= known) {
            let why = "it is public since it was settled, and the channel is in use: close with a higher one, with a closeSignature, \
                       or five minutes after its last use";
            return Err(Refusal::VoucherInvalid { why: why.to_owned() }.into());
        }
        if voucher.amount > channel.accepted() {
            accept(toll, till, id, voucher, now).await?;
        }
    }
    closing::close(toll, till, id).await
}

/// The highest voucher that the chain has been shown, if any: settled, or on its way.
fn published(channel: &Channel) -> Option<Atoms> {
    let on_its_way = channel.our_tx.as_ref().and_then(|intent| match intent.act {
        Act::Settle { amount } | Act::Close { amount, .. } => Some(amount),
        Act::Open | Act::TopUp { .. } => None,
    });
    let settled = Some(channel.view.settled).filter(|settled| *settled > Atoms(0));
    settled.max(on_its_way)
}

/// The rail by which a payer proves who he is: the charge of the same section.
fn proving<'t>(toll: &'t Toll, till: &Till) -> Option<&'t Arc<dyn Rail>> {
    let (section, _) = till.rail.id().as_str().rsplit_once('/')?;
    toll.rail(&RailId::from(format!("{section}/charge")))
}

/// The till of a route whose payers may look for their channel.
fn searched<'t>(toll: &'t Toll, route: &Route) -> Option<&'t Arc<Till>> {
    route.accept.iter().find_map(|id| toll.till(id))
}

/// What is offered to a payer who looks for his channel: to prove who he is, for nothing. Only on HEAD, on a route that takes
/// sessions, to a client that names the proof's rail.
pub fn proof_offer(
    toll: &Toll,
    plan: &Plan,
    route: &Route,
    headers: &HeaderMap,
    digest: [u8; 32],
    now: UnixSeconds,
) -> Option<Offer> {
    let rail = proving(toll, searched(toll, route)?)?;
    if !rail::names(headers, rail.as_ref()) || rail.standing().is_err() {
        return None;
    }
    let terms = nothing(rail.as_ref(), plan, route);
    rail.offer(&Ask { terms: &terms, digest, description: "Find your channel", lasts: 0 }, now).ok()
}

/// The terms of a proof: it buys nothing.
fn nothing(rail: &dyn Rail, plan: &Plan, route: &Route) -> Terms {
    Terms {
        rail: rail.id().clone(),
        route: route.path.clone(),
        model: "".into(),
        tier: route.tier.name.clone(),
        generation: plan.generation.clone(),
        amount: Atoms(0),
        price: Usd::ZERO,
        decimals: rail.decimals(),
    }
}

/// The channel of a payer who proved who he is: with its newest voucher, which is his own. `Ok(None)`: the credential is no such
/// proof. One that tells something, or could yet, is good once; published wallets sign one for each time they look. One that was offered
/// before the channel was opened tells nothing: it may have been shown then, when nothing was kept of it.
pub async fn prove(
    toll: &Toll,
    plan: &Plan,
    route: &Route,
    shown: &Shown,
    digest: [u8; 32],
) -> Result<Option<Done>, Stop> {
    let Some(till) = searched(toll, route) else { return Ok(None) };
    let Some(rail) = proving(toll, till) else { return Ok(None) };
    let terms = nothing(rail.as_ref(), plan, route);
    let ask = Ask { terms: &terms, digest, description: "", lasts: 0 };
    let Some(recognised) = rail.recognise(shown, &ask)? else { return Ok(None) };
    let terms = recognised.terms.clone();
    if terms.amount != Atoms(0) || !terms.model.as_str().is_empty() || terms.route != route.path {
        return Ok(None);
    }
    let ask = Ask { terms: &terms, digest, description: "", lasts: 0 };
    let now = UnixSeconds::now();
    let proof = rail.check(shown, recognised, &ask, now).await?;
    let Some(payer) = proof.payer.map(|p| p.to_ascii_lowercase()) else { return Ok(Some(Vec::new())) };
    let open = toll.store.channels_of(till.rail.id(), &payer).await.map_err(|e| super::pay::store_down(&e))?;
    if open.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let newest = open.iter().filter(|c| c.serves().is_ok()).max_by_key(|c| (c.opened_at, c.id.clone()));
    let Recognised { key, expires, .. } = proof.recognised;
    toll.channels.proven.take(&payer, key, expires, now)?;
    // In one second nobody can tell which was first.
    if newest.is_some_and(|channel| expires <= channel.opened_at.plus(OFFER_SECONDS)) {
        return Err(Refusal::InvalidChallenge { why: "it is older than the channel; sign a fresh one" }.into());
    }
    let Some(channel) = newest else { return Ok(Some(Vec::new())) };
    let required = channel.required(Atoms(0), till.min_delta());
    Ok(Some(till.rail.snapshot(&Snapshot { channel, required, with_voucher: true })))
}
