//! Channels that a former process left, or another gate that is gone: leases nobody will end, and transactions nobody follows.

use super::channels::Trouble;
use super::{Toll, transact, watcher};
use crate::channel::{Channel, Effect, Op, OrphanPolicy};
use crate::clock::UnixSeconds;
use crate::money::Atoms;
use crate::store::StoreError;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for the chain before listening. What it does not say by then is asked when a channel is used.
const SCAN: Duration = Duration::from_secs(10);
/// How long after its last valid moment a transaction is followed here, whoever sent it.
const FORGOTTEN_SECONDS: u64 = 30;
/// Age of a lease of ours from which on it must be known to a request, or is nobody's.
const NOBODYS_SECONDS: u64 = 60;

/// Puts every channel in order that is not over: leases of this gate's former life end as the operator decided, open transactions are
/// followed, and the chain is read. Returns how many leases were ended. Call before listening.
pub async fn reclaim(toll: &Arc<Toll>) -> Result<usize, StoreError> {
    let own = BTreeSet::from([toll.store.gate().to_owned()]);
    let mut ended = 0;
    for channel in toll.store.channels().await? {
        let leases = orphan(toll, &channel, &own).await.map_err(|trouble| match trouble {
            Trouble::Store(error) => error,
            other => StoreError(format!("channel {}: {other:?}", channel.id)),
        })?;
        ended += leases;
        follow(toll, &channel);
    }
    let scan = async {
        for till in &toll.tills {
            watcher::round(toll, till).await;
        }
    };
    if tokio::time::timeout(SCAN, scan).await.is_err() {
        tracing::warn!("the chain did not say in time how channels stand: each is read before it is used");
    }
    sweep_once(toll).await?;
    Ok(ended)
}

/// Looks for gates that are gone and for forgotten transactions, for ever.
pub async fn sweep(toll: Arc<Toll>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        if let Err(error) = sweep_once(&toll).await {
            tracing::error!(%error, "leases of other gates were not looked at");
        }
    }
}

pub(super) async fn sweep_once(toll: &Arc<Toll>) -> Result<(), StoreError> {
    let now = UnixSeconds::now();
    let mut alive: HashMap<String, bool> = HashMap::new();
    for channel in toll.store.channels().await? {
        let mut gone = BTreeSet::new();
        for gate in channel.leases.values().map(|lease| &lease.gate).filter(|gate| *gate != toll.store.gate()) {
            let lives = match alive.get(gate) {
                Some(known) => *known,
                None => {
                    let known = toll.store.alive(gate).await?;
                    alive.insert(gate.clone(), known);
                    known
                }
            };
            if !lives {
                gone.insert(gate.clone());
            }
        }
        for (id, lease) in &channel.leases {
            let nobodys = lease.gate == toll.store.gate() && !toll.channels.is_held(id);
            if nobodys && now > lease.since.plus(NOBODYS_SECONDS) {
                tracing::warn!(channel = %channel.id, lease = %id, "a lease that no request holds is ended");
                let op = Op::Spend { lease: id.clone(), charge: Atoms(0) };
                if let Err(trouble) = toll.channels.one(&channel.id, op).await {
                    tracing::error!(channel = %channel.id, ?trouble, "it was not ended");
                }
            }
        }
        if let Err(trouble) = orphan(toll, &channel, &gone).await {
            tracing::error!(channel = %channel.id, ?trouble, "leases of a gate that is gone were not ended");
        }
        let open = [&channel.payers_tx, &channel.our_tx];
        if open.into_iter().flatten().any(|intent| now > intent.valid_until.plus(FORGOTTEN_SECONDS)) {
            follow(toll, &channel);
        }
    }
    Ok(())
}

/// Ends the leases of these gates, as the operator decided. Returns how many.
pub(super) async fn orphan(toll: &Toll, channel: &Channel, gates: &BTreeSet<String>) -> Result<usize, Trouble> {
    let policy = toll.till(&channel.rail).map_or(OrphanPolicy::default(), |till| till.terms.orphan);
    let mut ended = 0;
    for gate in gates.iter().filter(|gate| channel.leases.values().any(|lease| lease.gate == **gate)) {
        let op = Op::Orphan { gate: gate.clone(), policy };
        if let (_, Ok(Effect::Orphaned(leases))) = toll.channels.one(&channel.id, op).await? {
            tracing::warn!(channel = %channel.id, gate, leases = leases.len(), "requests that a stop or a forced close cut off are ended");
            ended += leases.len();
        }
    }
    Ok(ended)
}

fn follow(toll: &Arc<Toll>, channel: &Channel) {
    let Some(till) = toll.till(&channel.rail) else {
        tracing::error!(channel = %channel.id, rail = %channel.rail, "its rail is not configured any more");
        return;
    };
    for intent in [&channel.payers_tx, &channel.our_tx].into_iter().flatten() {
        tracing::warn!(channel = %channel.id, act = ?intent.act, "outcome unknown: asking the chain");
        transact::follow(Arc::clone(toll), Arc::clone(till), channel.id.clone(), intent.clone());
    }
}
