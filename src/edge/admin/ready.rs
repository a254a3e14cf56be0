//! Whether anything that costs money could be sold now, judged by the routes of the rules in force.

use crate::ids::RailId;
use crate::rules::Plan;
use crate::rules::plan::{Access, Model, Route, Surface};
use std::collections::BTreeSet;

/// The rails that some route accepts.
pub(super) fn sold(plan: &Plan) -> BTreeSet<&RailId> {
    plan.routes.values().flat_map(|route| &route.accept).collect()
}

/// Why no paid route would be served now, by how its rails stand and which models have a server for a surface; empty when one would.
/// Where no route is paid, nothing but a server is needed.
pub(super) fn obstacles(
    plan: &Plan,
    standing: impl Fn(&RailId) -> Result<(), String>,
    has_server: impl Fn(&Model, Surface) -> bool,
) -> Vec<String> {
    let served = |route: &Route| {
        let mut models = route.tier.models.iter().filter_map(|name| plan.models.get(name));
        models.any(|model| has_server(model, route.surface))
    };
    let paid: Vec<_> = plan.routes.values().filter(|route| route.access == Access::Paid).collect();
    let payable = |route: &Route| route.accept.iter().any(|rail| standing(rail).is_ok());
    if paid.iter().any(|route| payable(route) && served(route)) {
        return Vec::new();
    }
    let mut why = Vec::new();
    if !paid.is_empty() && !paid.iter().any(|route| payable(route)) {
        let reasons: Vec<_> =
            sold(plan).into_iter().filter_map(|rail| standing(rail).err().map(|e| format!("{rail}: {e}"))).collect();
        why.push(format!("no rail can be offered ({})", reasons.join("; ")));
    }
    let asked = |route: &&std::sync::Arc<Route>| route.surface != Surface::Models;
    let needing = if paid.is_empty() { plan.routes.values().filter(asked).collect() } else { paid };
    if !needing.is_empty() && !needing.iter().any(|route| served(route)) {
        why.push("no pool has a usable server".to_owned());
    } else if why.is_empty() && needing.iter().any(|route| route.access == Access::Paid) {
        why.push("the routes that have a usable server have no rail that can be offered".to_owned());
    }
    why
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::catalogue::{Catalogue, ProfileAbility, RailAbility};
    use crate::rules::{Files, check};

    /// Two models, each in its own pool and its own tier of the same name; the routes are given as `(path, tier, access or rail)`.
    fn plan(routes: &[(&str, &str, &str)]) -> Plan {
        let entry = |name: &str| {
            let model = format!(
                "[model.{name}]\nupstream = \"{name}\"\npool = \"{name}\"\nprice = {{ input = \"1\", output = \"1\" }}\n"
            );
            let tier = format!(
                "[tier.{name}]\nmodels = [\"{name}\"]\nmax_output_tokens = 8\ncharge = {{ flat = \"0.01\" }}\n"
            );
            let pool = format!("[pool.{name}]\nprofile = \"vllm\"\nservers = [\"http://{name}\"]\n");
            (model, (tier, pool))
        };
        let (models, (tiers, pools)): (String, (String, String)) = ["a", "b"].map(entry).into_iter().unzip();
        let route = |(path, tier, terms): &(&str, &str, &str)| {
            let terms = if *terms == "free" { "access = \"free\"".to_owned() } else { format!("accept = [{terms:?}]") };
            format!("[[route]]\npath = \"{path}\"\nsurface = \"chat\"\ntier = \"{tier}\"\n{terms}\n")
        };
        let routes: String = routes.iter().map(route).collect();
        let ability = RailAbility { fixed_amount: true, decimals: 6 };
        let catalogue = Catalogue {
            rails: ["up/charge", "down/charge"].map(|rail| (rail.into(), ability)).into(),
            profiles: [("vllm", ProfileAbility::PLAIN)].into(),
            vocabularies: vec!["bytes"],
        };
        let texts =
            [("models.toml", &*models), ("tiers.toml", &tiers), ("routes.toml", &routes), ("pools.toml", &pools)];
        check(&Files::of(texts), &catalogue).unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
    }

    #[test]
    fn a_gate_is_ready_when_one_paid_route_could_be_paid_and_served() {
        let (up, down) = ("up/charge", "down/charge");
        let no_rail = "no rail can be offered (down/charge: chain away)";
        let no_server = "no pool has a usable server";
        for (routes, servers, want, why) in [
            (&[("/a", "a", up)][..], &["a"][..], &[][..], "payable and served"),
            (
                &[("/a", "a", down)][..],
                &["a"][..],
                &[no_rail][..],
                "a rail that no route accepts is up, and helps nobody",
            ),
            (&[("/a", "a", up)][..], &["b"][..], &[no_server][..], "a pool that no route sells has a server"),
            (&[("/a", "a", down)][..], &[][..], &[no_rail, no_server][..], "both"),
            (&[("/a", "a", down), ("/b", "b", up)][..], &["a", "b"][..], &[][..], "one of two"),
            (
                &[("/a", "a", down), ("/b", "b", up)][..],
                &["a"][..],
                &["the routes that have a usable server have no rail that can be offered"][..],
                "neither of two",
            ),
            (&[("/a", "a", "free")][..], &["a"][..], &[][..], "nothing is paid: no rail is needed"),
            (&[("/a", "a", "free")][..], &[][..], &[no_server][..], "and a server is"),
        ] {
            let standing = |rail: &RailId| if rail.as_str() == up { Ok(()) } else { Err("chain away".to_owned()) };
            let has_server = |model: &Model, _| servers.contains(&model.pool.as_str());
            assert_eq!(obstacles(&plan(routes), standing, has_server), want, "{why}");
        }
    }
}
