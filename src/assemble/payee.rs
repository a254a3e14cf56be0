//! Money of the last run must not go elsewhere in this one, and none of it may be left behind: what is open can be ended only by the
//! rail that began it.

use crate::claim::Standing;
use crate::clock::UnixSeconds;
use crate::money::{Atoms, Usd};
use crate::store::{Store, StoreError};
use std::collections::BTreeMap;

/// Name under which the store remembers the host of `public_url`.
const REALM: &str = "listen.public_url";

/// Payments must not silently go elsewhere than in the last run, and one whose outcome is open can be judged only by the payee,
/// asset, chain and realm it was made for. `facts` is what the configured rails say of themselves, by rail id. With `Ok` they are what
/// the next run is compared with, so nothing that can fail for other reasons comes after this.
pub(super) async fn same_payee(
    store: &dyn Store,
    mut facts: Vec<(String, String)>,
    realm: &str,
    accept: bool,
) -> Result<(), Vec<String>> {
    let broken = |e: StoreError| vec![format!("store: {e}")];
    let stranded = stranded(store, &facts).await.map_err(broken)?;
    if !stranded.is_empty() {
        return Err(stranded);
    }
    facts.push((REALM.to_owned(), realm.to_owned()));
    let mut changed = store.facts(&facts, false).await.map_err(broken)?;
    if changed.is_empty() {
        return Ok(());
    }
    let claims = store.open_claims(UnixSeconds::now()).await.map_err(broken)?;
    let open = claims.iter().filter(|c| is_in_doubt(&c.standing)).count();
    if open > 0 {
        changed.push(format!(
            "the outcome of {open} payments made before the change is not known yet: start once more with the old settings until \
             the log says their outcome"
        ));
        return Err(changed);
    }
    let channels = store.channels().await.map_err(broken)?;
    let stranded = |said: &String| channels.iter().any(|c| said.starts_with(&format!("{} was ", c.rail)));
    if changed.iter().any(stranded) {
        changed.push(format!(
            "{} channels are open under the old settings and can be settled only with them: start once more with those, and close \
             them (pontage channels close)",
            channels.len()
        ));
        return Err(changed);
    }
    if !accept && changed.iter().any(|said| !said.contains(REALM)) {
        changed.push(
            "payments would go elsewhere than in the last run; start with --accept-payee-change if that is meant"
                .to_owned(),
        );
        return Err(changed);
    }
    store.facts(&facts, true).await.map_err(broken).map(drop)
}

/// Whether only the chain can say what became of it.
fn is_in_doubt(standing: &Standing) -> bool {
    matches!(standing, Standing::Claimed { .. } | Standing::Taking { .. })
}

/// Open channels and payments of rails that are not configured any more: nobody would settle or close the channels (nor hear that
/// their owner closes one), and nobody could say what became of the payments or honour them.
async fn stranded(store: &dyn Store, facts: &[(String, String)]) -> Result<Vec<String>, StoreError> {
    let gone = |rail: &str| !facts.iter().any(|(configured, _)| configured == rail);
    let mut channels: BTreeMap<String, (usize, Usd, Usd)> = BTreeMap::new();
    for channel in store.channels().await?.iter().filter(|c| gone(c.rail.as_str())) {
        let (count, earned, held) = channels.entry(channel.rail.to_string()).or_default();
        *count += 1;
        add(earned, channel.unsettled(), channel.decimals);
        add(held, channel.view.deposit, channel.decimals);
    }
    let mut payments: BTreeMap<String, (usize, Usd)> = BTreeMap::new();
    for claim in store.open_claims(UnixSeconds::now()).await?.iter().filter(|c| gone(c.terms.rail.as_str())) {
        // What was only promised is not taken, whoever starts.
        if !matches!(claim.standing, Standing::Promised { .. }) {
            let (count, worth) = payments.entry(claim.terms.rail.to_string()).or_default();
            *count += 1;
            add(worth, claim.paid_amount(), claim.terms.decimals);
        }
    }
    let of_channels = channels.iter().map(|(rail, (count, earned, held))| {
        format!(
            "{rail} is not configured, and {count} of its channels are open ({held} USD in them, {earned} USD of it earned and not \
             settled): they can be settled only by it: start once more with the old settings, and close them (pontage channels close)"
        )
    });
    let of_payments = payments.iter().map(|(rail, (count, worth))| {
        format!(
            "{rail} is not configured, and {count} payments on it ({worth} USD) are not over: start once more with the old settings \
             until the log says their outcome; what is paid and not delivered can be redeemed for 15 minutes"
        )
    });
    Ok(of_channels.chain(of_payments).collect())
}

fn add(sum: &mut Usd, atoms: Atoms, decimals: u8) {
    sum.0 = sum.0.saturating_add(atoms.to_usd(decimals).unwrap_or_default().0);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::channel::sample::opening;
    use crate::claim::{Op, sample};
    use crate::store::embedded::Embedded;
    use crate::store::{Swap, Write};

    const REALM_NOW: &str = "gate.example";

    fn facts(rails: &[(&str, &str)]) -> Vec<(String, String)> {
        rails.iter().map(|(rail, said)| ((*rail).to_owned(), (*said).to_owned())).collect()
    }

    /// A store of a gate that had these rails, with a channel on `tempo/session` and a payment at `standing` on `tempo/charge`.
    async fn last_run(has_channel: bool, payment: Option<Standing>) -> (tempfile::TempDir, Embedded) {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("p.redb")).unwrap();
        let rails = facts(&[("tempo/charge", "payee A"), ("tempo/session", "payee A")]);
        assert_eq!(same_payee(&store, rails, REALM_NOW, false).await, Ok(()));
        if has_channel {
            let channel = Some(opening("0xa", 600).into());
            assert_eq!(store.commit(Write { channel, ..Write::default() }).await, Ok(Swap::Done));
        }
        if let Some(standing) = payment {
            let mut claim = sample::claim("k", 20_000);
            assert_eq!(store.commit(Write { claim: Some(claim.clone()), ..Write::default() }).await, Ok(Swap::Done));
            if standing == Standing::Owed {
                claim = claim.apply(Op::PayUnserved { transaction: None }, UnixSeconds::now()).unwrap();
            } else {
                (claim.revision, claim.standing) = (2, standing);
            }
            assert_eq!(store.commit(Write { claim: Some(claim), ..Write::default() }).await, Ok(Swap::Done));
        }
        (dir, store)
    }

    #[tokio::test]
    async fn a_rail_that_still_has_channels_or_payments_is_not_left_out_of_the_configuration() {
        let by = || "r0".to_owned();
        let channel = Some("tempo/session is not configured, and 1 of its channels are open (");
        let money = Some("tempo/charge is not configured, and 1 payments on it (0.02 USD) are not over");
        let (both, renamed) = (&["tempo/charge", "tempo/session"][..], &["tempo2/charge", "tempo2/session"][..]);
        for (now, has_channel, payment, want, why) in [
            (both, true, Some(Standing::Owed), None, "nothing was left out"),
            (renamed, false, None, None, "nothing is open"),
            (renamed, true, None, channel, "renamed, and the payee is the same: that is no difference in facts"),
            (&["tempo/charge"][..], true, None, channel, "the terms of channels were taken out"),
            (&["base/exact"][..], false, Some(Standing::Claimed { by: by() }), money, "in doubt"),
            (&["base/exact"][..], false, Some(Standing::Serving { by: by() }), money, "paid, and its gate is gone"),
            (&["base/exact"][..], false, Some(Standing::Owed), money, "paid, to be redeemed"),
            (&["base/exact"][..], false, Some(Standing::Promised { by: by() }), None, "nothing was taken"),
            (&["base/exact"][..], false, Some(Standing::Dead), None, "it is over"),
        ] {
            let (_dir, store) = last_run(has_channel, payment).await;
            let now = facts(&now.iter().map(|rail| (*rail, "payee A")).collect::<Vec<_>>());
            let got = same_payee(&store, now, REALM_NOW, true).await;
            match want {
                None => assert_eq!(got, Ok(()), "{why}"),
                Some(want) => {
                    let said = got.expect_err(why);
                    assert!(
                        said.len() == 1 && said[0].starts_with(want) && said[0].contains("start once more"),
                        "{said:?}"
                    );
                }
            }
        }
    }

    #[tokio::test]
    async fn while_an_outcome_is_open_its_payee_stays() {
        let taking = Standing::Taking { by: "r0".to_owned(), amount: Atoms(20_000), receipt: None };
        let changed = || facts(&[("tempo/charge", "payee B"), ("tempo/session", "payee B")]);
        for (payment, refused) in
            [(Standing::Claimed { by: "r0".to_owned() }, true), (taking, true), (Standing::Dead, false)]
        {
            let (_dir, store) = last_run(false, Some(payment)).await;
            assert!(same_payee(&store, changed(), REALM_NOW, false).await.is_err(), "without the flag never");
            assert_eq!(same_payee(&store, changed(), REALM_NOW, true).await.is_err(), refused);
        }
    }

    #[tokio::test]
    async fn another_payee_needs_to_be_meant_and_another_name_does_not() {
        let (_dir, store) = last_run(false, None).await;
        let as_before = || facts(&[("tempo/charge", "payee A"), ("tempo/session", "payee A")]);
        assert_eq!(same_payee(&store, as_before(), "other.example", false).await, Ok(()));
        let changed = || facts(&[("tempo/charge", "payee B"), ("tempo/session", "payee A")]);
        let said = same_payee(&store, changed(), "other.example", false).await.unwrap_err().concat();
        assert!(said.contains("payee B") && said.contains("--accept-payee-change"), "{said}");
        assert!(same_payee(&store, changed(), "other.example", false).await.is_err(), "refused is not remembered");
        assert_eq!(same_payee(&store, changed(), "other.example", true).await, Ok(()));
        assert_eq!(same_payee(&store, changed(), "other.example", false).await, Ok(()), "meant once is meant");
    }
}
