//! Where the secrets of a gate are kept, and who else could read them there.

use super::{AuthConf, Conf, FacilitatorConf, Place, RailKind, SponsorConf, X402Conf};
use crate::secret::SecretRef;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Who else than its owner may read a file.
const OTHERS: u32 = 0o044;

impl Conf {
    /// Every secret that `pontage.toml` names, by the key that names it.
    pub fn secrets(&self) -> Vec<(String, &SecretRef)> {
        let ring = self.challenge_keys.iter().map(|key| ("secrets.challenge_keys".to_owned(), &key.value));
        ring.chain(self.kept_from_start()).collect()
    }

    /// Those that are read at start and not again: all but the challenge keys.
    pub fn kept_from_start(&self) -> Vec<(String, &SecretRef)> {
        let mut found = vec![("secrets.receipt_key".to_owned(), &self.receipt_key.value)];
        found.extend(self.admin_token.iter().map(|token| ("secrets.admin_token".to_owned(), &token.value)));
        found.extend(self.store.redis.iter().map(|redis| ("store.url".to_owned(), &redis.url.value)));
        for rail in &self.rails {
            let of_rail = match &rail.kind {
                RailKind::MppTempo(tempo) => {
                    let sponsor = tempo.sponsor.as_ref().map(|sponsor| match sponsor {
                        SponsorConf::Key { key, .. } => ("sponsor.key", key),
                        SponsorConf::Relay { url } => ("sponsor.relay", url),
                    });
                    let settle = tempo.settle_key.iter().map(|key| ("settle_key", key));
                    std::iter::once(("rpc", &tempo.rpc)).chain(settle).chain(sponsor).collect()
                }
                RailKind::X402(x402) => of_x402(x402),
            };
            found.extend(of_rail.into_iter().map(|(key, place)| (format!("rail.{}.{key}", rail.name), place)));
        }
        found
    }

    /// Sentences about files that hold a secret and can be read by others than their owner.
    pub fn exposed(&self) -> Vec<String> {
        let files = self.secrets().into_iter().filter_map(|(key, place)| match place {
            SecretRef::File(path) => Some((key, path.as_str())),
            SecretRef::Env(_) => None,
        });
        let own = self.listen.tls.iter().map(|tls| ("listen.tls.key".to_owned(), tls.key.as_str()));
        files.chain(own).filter_map(|(key, path)| exposed(&key, Path::new(path))).collect()
    }
}

fn exposed(key: &str, path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    let said =
        || format!("{key}: {} can be read by others than its owner (mode {mode:03o}): chmod 600", path.display());
    (mode & OTHERS != 0).then(said)
}

fn of_x402(x402: &X402Conf) -> Vec<(&'static str, &SecretRef)> {
    let mut found: Vec<_> = x402.rpc.iter().map(|rpc| ("rpc", rpc)).collect();
    match &x402.facilitator {
        FacilitatorConf::Local { rpc, key } => found.extend([("facilitator.rpc", rpc), ("facilitator.key", key)]),
        FacilitatorConf::Remote { url, auth, .. } => {
            if let Place::Kept(url) = url {
                found.push(("facilitator.url", url));
            }
            match auth {
                AuthConf::None => {}
                AuthConf::Bearer(token) => found.push(("facilitator.bearer", token)),
                AuthConf::Header { value, .. } => found.push(("facilitator.header", value)),
                AuthConf::Cdp { key_id, key_secret } => {
                    found.extend([("facilitator.cdp.key_id", key_id), ("facilitator.cdp.key_secret", key_secret)]);
                }
            }
        }
    }
    found
}
