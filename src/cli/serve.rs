//! `pontage serve`

use super::{Places, complain};
use crate::assemble::{self, Start};
use crate::conf::Conf;
use std::process::ExitCode;
use tracing::{Level, Metadata};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::layer::{Filter, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Runs the gate until it is told to stop. Configuration mistakes come all at once before anything is opened.
pub fn run(places: &Places, accept_payee_change: bool) -> ExitCode {
    // One TLS/crypto provider for the whole process, before anything can pick another.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let asked = EnvFilter::try_from_env("PONTAGE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_target(true);
    tracing_subscriber::registry().with(lines.with_filter(words(asked))).init();
    let conf = match Conf::load(&places.conf) {
        Ok(conf) => conf,
        Err(mistakes) => return complain(&mistakes),
    };
    for warning in conf.warnings.iter().chain(&conf.exposed()) {
        tracing::warn!("{warning}");
    }
    let (secrets, mut mistakes) = match conf.read_secrets() {
        Ok(secrets) => (Some(secrets), Vec::new()),
        Err(mistakes) => (None, mistakes.iter().map(ToString::to_string).collect()),
    };
    mistakes.extend(assemble::mistakes(&conf, &places.rules));
    let Some(secrets) = secrets.filter(|_| mistakes.is_empty()) else { return complain(&mistakes) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(conf.listen.threads).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => return complain(&[format!("no runtime: {e}")]),
    };
    let start = Start { path: places.conf.clone(), conf, secrets, rules: places.rules.clone(), accept_payee_change };
    let ended = runtime.block_on(assemble::run(start));
    // Tasks that follow up payments get a moment; what they cannot finish, recovery does at the next start.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(mistakes) => complain(&mistakes),
    }
}

/// What is written. The hint goes as far as [`may_speak`] alone would not: without it every `trace!` of a library is put
/// together before it is thrown away, and Pingora has several for every chunk of a stream.
fn words(asked: EnvFilter) -> impl Filter<Registry> {
    let most = asked.max_level_hint().unwrap_or(LevelFilter::TRACE);
    asked.and(filter_fn(may_speak).with_max_level_hint(most))
}

/// Libraries speak at `info` and above, whatever `PONTAGE_LOG` says: below that Pingora quotes heads that it cannot read, and
/// with them credentials and prompts. Our own words are chosen so that every level can be shown.
fn may_speak(what: &Metadata<'_>) -> bool {
    let ours = what.target() == "access" || what.target().split("::").next() == Some("pontage");
    ours || *what.level() <= Level::INFO
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn what_nobody_asked_for_is_not_put_together_either() {
        for (asked, most) in [("info", LevelFilter::INFO), ("warn,pontage=debug", LevelFilter::DEBUG)] {
            assert_eq!(words(EnvFilter::new(asked)).max_level_hint(), Some(most), "{asked}");
        }
    }
}
