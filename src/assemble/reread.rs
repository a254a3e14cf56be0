//! SIGHUP: what is read again, and a word about everything else that changed on disk and is not used.

use crate::conf::{Conf, TlsFiles};
use crate::edge::door::tls;
use crate::rail::ring::KeyRing;
use crate::rules::Rules;
use crate::secret::{Secret, SecretRef};
use arc_swap::ArcSwap;
use pingora::listeners::tls::Acceptor;
use std::path::PathBuf;
use std::sync::Arc;

/// What is read again: rules (with the keys of their pools), challenge keys in files, and the certificate.
pub(super) struct Reread {
    /// Where the configuration came from.
    pub path: PathBuf,
    /// The configuration in use.
    pub conf: Conf,
    /// Rules.
    pub rules: Arc<Rules>,
    /// Challenge keys.
    pub ring: Arc<KeyRing>,
    /// Certificate and key, where the gate ends TLS.
    pub certificate: Option<Arc<ArcSwap<Acceptor>>>,
    /// Secrets in files that are read at start only, as they were then.
    pub kept: Vec<Kept>,
}

/// One of those.
pub(super) struct Kept {
    key: String,
    place: SecretRef,
    value: Secret,
}

impl Kept {
    /// All of a configuration that can be read.
    pub(super) fn of(conf: &Conf) -> Vec<Self> {
        let in_files = conf.kept_from_start().into_iter().filter(|(_, place)| matches!(place, SecretRef::File(_)));
        in_files
            .filter_map(|(key, place)| Some(Self { key, place: place.clone(), value: place.read().ok()? }))
            .collect()
    }
}

impl Reread {
    /// Each part on its own: one that is wrong stays as it was, and the log says why.
    pub(super) fn all(&self) {
        self.rules.reload();
        match self.conf.read_secrets() {
            Ok(secrets) => match self.ring.swap(&secrets.challenge_keys) {
                Ok(()) => tracing::info!("challenge keys read again"),
                Err(e) => tracing::error!(error = %e, "challenge keys stay as they were"),
            },
            Err(mistakes) => {
                for mistake in mistakes {
                    tracing::error!(%mistake, "secrets stay as they were");
                }
            }
        }
        if let (Some(files), Some(in_use)) = (&self.conf.listen.tls, &self.certificate) {
            certify(files, in_use);
        }
        for said in unused(&self.kept).into_iter().chain(self.changed()) {
            tracing::warn!("{said}");
        }
    }

    /// Whether the file says something else by now.
    fn changed(&self) -> Vec<String> {
        let name = self.path.display();
        match Conf::load(&self.path) {
            Ok(now) => {
                let parts = self.conf.differs(&now);
                let said =
                    || format!("{name}: {} changed, and is read at start only: restart the gate", parts.join(", "));
                if parts.is_empty() { Vec::new() } else { vec![said()] }
            }
            Err(mistakes) => mistakes.iter().map(|m| format!("the gate would not start again: {m}")).collect(),
        }
    }
}

fn certify(files: &TlsFiles, in_use: &ArcSwap<Acceptor>) {
    match tls(&files.cert, &files.key) {
        Ok(acceptor) => {
            in_use.store(acceptor);
            tracing::info!("certificate read again");
        }
        Err(e) => tracing::error!(error = %e, "the certificate stays as it was"),
    }
}

/// What is not in use as it lies on disk.
fn unused(kept: &[Kept]) -> Vec<String> {
    let said = |kept: &Kept| match kept.place.read() {
        Ok(now) if now == kept.value => None,
        Ok(_) => Some(format!("{} changed, and is read at start only: restart the gate", kept.key)),
        Err(e) => Some(format!("the gate would not start again: {}: {e}", kept.key)),
    };
    kept.iter().filter_map(said).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_secret_that_changed_and_is_not_used_is_named_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            format!("file:{}", path.display())
        };
        let (ring, seed, rpc) =
            (file("ring", &"k".repeat(32)), file("seed", &"0a".repeat(32)), file("rpc", "http://a"));
        let text = format!(
            "[listen]\npublic_url = \"http://127.0.0.1\"\n[secrets]\nchallenge_keys = [\"{ring}\"]\nreceipt_key = \"{seed}\"\n[store]\n\
             [rail.tempo]\nkind = \"mpp-tempo\"\nchain_id = 42431\nrpc = \"{rpc}\"\nsettle_key = \"env:NOT_IN_A_FILE\"\n\
             currency = \"0x20c0000000000000000000000000000000000000\"\nrecipient = \"0x70997970c51812dc3a010c7d01b50e0d17dc79c8\"\n"
        );
        let conf = Conf::inspect_text("pontage.toml", &text).1.unwrap();
        let kept = Kept::of(&conf);
        assert_eq!(kept.iter().map(|k| k.key.as_str()).collect::<Vec<_>>(), ["secrets.receipt_key", "rail.tempo.rpc"]);
        assert_eq!(unused(&kept), [""; 0]);
        file("rpc", "http://canary");
        file("ring", &"canary".repeat(8));
        assert_eq!(unused(&kept), ["rail.tempo.rpc changed, and is read at start only: restart the gate"]);
        std::fs::remove_file(dir.path().join("seed")).unwrap();
        let said = unused(&kept);
        assert!(
            said.len() == 2 && said[0].starts_with("the gate would not start again: secrets.receipt_key: "),
            "{said:?}"
        );
    }
}
