//! The x402 rails of `pontage.toml`.

use crate::conf::{AuthConf, FacilitatorConf, RailConf, RailKind, X402Conf};
use crate::network::Family;
use crate::rail::Rail;
use crate::rail::ring::KeyRing;
use crate::rail::x402::evidence::Evidence;
use crate::rail::x402::evm_evidence::{self, EvmEvidence};
use crate::rail::x402::facilitator::Facilitator;
use crate::rail::x402::remote::{self, Auth, Remote, Times};
use crate::rail::x402::solana_evidence::{self, SolanaEvidence};
use crate::rail::x402::wire::Scheme;
use crate::rail::x402::{Settings, X402};
use crate::secret::SecretRef;
use std::sync::Arc;

/// Facilitators by what was written about them: sections that name the same one share it.
#[derive(Default)]
pub(super) struct Facilitators(Vec<(FacilitatorConf, Arc<dyn Facilitator>)>);

impl Facilitators {
    /// All of them, each once.
    pub(super) fn all(self) -> Vec<Arc<dyn Facilitator>> {
        self.0.into_iter().map(|(_, facilitator)| facilitator).collect()
    }

    fn of(&mut self, conf: &X402Conf) -> Result<Arc<dyn Facilitator>, String> {
        if let Some((_, known)) = self.0.iter().find(|(written, _)| *written == conf.facilitator) {
            return Ok(Arc::clone(known));
        }
        let made = facilitator(conf).map_err(|e| format!("facilitator: {e}"))?;
        self.0.push((conf.facilitator.clone(), Arc::clone(&made)));
        Ok(made)
    }
}

fn facilitator(conf: &X402Conf) -> Result<Arc<dyn Facilitator>, String> {
    match &conf.facilitator {
        FacilitatorConf::Remote { url, auth, minimal } => {
            let auth = match auth {
                AuthConf::None => Auth::None,
                AuthConf::Bearer(token) => Auth::Bearer(token.read()?),
                AuthConf::Header { name, value } => Auth::Header { name: name.clone(), value: value.read()? },
                AuthConf::Cdp { key_id, key_secret } => {
                    let key_id = key_id.read()?.expose_str().ok_or("cdp.key_id is not text")?.trim().to_owned();
                    Auth::Cdp { key_id, key_secret: key_secret.read()? }
                }
            };
            let settings = remote::Settings { url: url.read()?, auth, minimal: *minimal, times: Times::default() };
            Ok(Arc::new(Remote::new(settings)?))
        }
        FacilitatorConf::Local { .. } => local(conf),
    }
}

const UNBUILT: &str = "`local` is not in this build: build with --features local-facilitator";

#[cfg(feature = "local-facilitator")]
fn local(conf: &X402Conf) -> Result<Arc<dyn Facilitator>, String> {
    use crate::rail::x402::local::{Local, Settings};
    let FacilitatorConf::Local { rpc, key } = &conf.facilitator else { return Err("it is not local".to_owned()) };
    Ok(Arc::new(Local::new(Settings { network: conf.network.clone(), rpc: rpc.read()?, key: key.read()? })?))
}

#[cfg(not(feature = "local-facilitator"))]
fn local(_: &X402Conf) -> Result<Arc<dyn Facilitator>, String> {
    Err(UNBUILT.to_owned())
}

fn evidence(conf: &X402Conf) -> Result<Option<Arc<dyn Evidence>>, String> {
    // A facilitator in this process has a node, which can be asked what became of its own transactions.
    let own = match &conf.facilitator {
        FacilitatorConf::Local { rpc, .. } => Some(rpc),
        FacilitatorConf::Remote { .. } => None,
    };
    let Some(rpc) = conf.rpc.as_ref().or(own) else { return Ok(None) };
    node(rpc, conf).map(Some).map_err(|e| format!("rpc: {e}"))
}

/// The chain as a node shows it.
fn node(rpc: &SecretRef, conf: &X402Conf) -> Result<Arc<dyn Evidence>, String> {
    let rpc = rpc.read()?;
    Ok(match conf.network.family {
        Family::Evm { .. } => Arc::new(EvmEvidence::new(&rpc, &conf.network, evm_evidence::Look::default())?),
        Family::Solana => Arc::new(SolanaEvidence::new(&rpc, &conf.network, solana_evidence::Look::default())?),
    })
}

/// The rails of one section, which stands among `others`.
pub(super) fn rails(
    name: &str,
    conf: &X402Conf,
    others: &[RailConf],
    public_url: &str,
    ring: &Arc<KeyRing>,
    facilitators: &mut Facilitators,
) -> Result<Vec<Arc<dyn Rail>>, String> {
    let facilitator = facilitators.of(conf)?;
    let evidence = evidence(conf)?;
    let beside = |other: &RailConf| match &other.kind {
        RailKind::X402(other) if other.network == conf.network && !other.permit2 => {
            let there = (other.asset.clone(), other.pay_to.clone());
            (there != (conf.asset.clone(), conf.pay_to.clone())).then_some(there)
        }
        _ => None,
    };
    let beside: Vec<_> = others.iter().filter_map(beside).collect();
    let rail = |scheme, word: &str| {
        let settings = Settings {
            id: format!("{name}/{word}").into(),
            scheme,
            network: conf.network.clone(),
            asset: conf.asset.clone(),
            pay_to: conf.pay_to.clone(),
            beside: beside.clone(),
            permit2: conf.permit2 || scheme == Scheme::Upto,
            first: conf.first,
            ceiling: conf.ceiling,
            exposure: conf.payer_exposure,
            evidence_above: conf.evidence_above,
            public_url: public_url.to_owned(),
        };
        Arc::new(X402::new(settings, Arc::clone(ring), Arc::clone(&facilitator), evidence.clone())) as Arc<dyn Rail>
    };
    let mut rails = vec![rail(Scheme::Exact, "exact")];
    if conf.network.family != Family::Solana {
        rails.push(rail(Scheme::Upto, "upto"));
    }
    Ok(rails)
}

/// What of a section's secrets cannot be read or is not what it should be, by key.
pub(super) fn mistakes(conf: &X402Conf) -> Vec<(&'static str, String)> {
    let rpc = conf.rpc.as_ref().and_then(|rpc| node(rpc, conf).err()).map(|e| ("rpc", e));
    let facilitator = match &conf.facilitator {
        FacilitatorConf::Remote { .. } => facilitator(conf).err(),
        FacilitatorConf::Local { rpc, key } => node(rpc, conf).err().or_else(|| key.read().err()),
    };
    rpc.into_iter().chain(facilitator.map(|e| ("facilitator", e))).collect()
}

/// Why this build has not got what a section names.
pub(super) fn unbuilt(conf: &X402Conf) -> Option<&'static str> {
    let is_local = matches!(conf.facilitator, FacilitatorConf::Local { .. });
    (is_local && cfg!(not(feature = "local-facilitator"))).then_some(UNBUILT)
}
