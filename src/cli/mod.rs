//! Arguments, one file per verb.

pub mod audit;
pub mod channels;
pub mod check;
pub mod quote;
pub mod receipt;
pub mod serve;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// The toll paid to cross a bridge: a reverse proxy in front of OpenAI-compatible backends where software agents pay per call.
#[derive(Debug, Parser)]
#[command(name = "pontage", version, about, long_about = None)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

/// Where the two halves of the configuration are.
#[derive(Debug, clap::Args)]
pub struct Places {
    /// The file read once at start.
    #[arg(long, default_value = "conf/pontage.toml")]
    pub conf: PathBuf,
    /// The directory that is reloaded when it changes.
    #[arg(long, default_value = "lua-free-rules/default")]
    pub rules: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the gate.
    Serve {
        #[command(flatten)]
        places: Places,
        /// Start although payee, asset or chain differ from the last run.
        #[arg(long)]
        accept_payee_change: bool,
    },
    /// Report every mistake in configuration and rules at once; exit 1 if there is one.
    Check {
        #[command(flatten)]
        places: Places,
    },
    /// Price a request file and show the parts.
    Quote {
        #[command(flatten)]
        places: Places,
        /// Path the request would be sent to.
        #[arg(long)]
        path: String,
        /// A table for people; otherwise JSON.
        #[arg(long)]
        table: bool,
        /// The request body, a file (`-`: standard input).
        request: PathBuf,
    },
    /// Walk the journal and compare it with the claims.
    Audit {
        /// The store's file; of a fleet, every gate's, one option each.
        #[arg(long, default_value = "var/pontage.redb")]
        store: Vec<PathBuf>,
    },
    /// Work with the channels of the running gate.
    Channels {
        #[command(subcommand)]
        verb: ChannelsVerb,
        /// Its configuration: it says where to ask.
        #[arg(long, default_value = "conf/pontage.toml", global = true)]
        conf: PathBuf,
    },
    /// Work with receipts.
    Receipt {
        #[command(subcommand)]
        verb: ReceiptVerb,
    },
}

#[derive(Debug, Subcommand)]
enum ChannelsVerb {
    /// Print those that are not over.
    List,
    /// Have paid out what is spent of one, as far as a voucher says exactly so.
    Settle {
        /// Its id.
        id: String,
    },
    /// Close one: what is spent is paid out, the rest goes back to its owner.
    Close {
        /// Its id.
        id: String,
    },
    /// Let one go on that is quarantined (`list` says why), once you have looked at it. Refused while the chain still contradicts it.
    Release {
        /// Its id.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum ReceiptVerb {
    /// Check the signature of a sealed receipt and print it.
    Verify {
        /// Public key, 64 hex digits, from the gate's `/status`.
        #[arg(long)]
        key: String,
        /// What follows `: pontage-receipt` in a stream.
        sealed: String,
    },
}

/// Runs the verb.
pub fn main() -> ExitCode {
    match Arguments::parse().verb {
        Verb::Serve { places, accept_payee_change } => serve::run(&places, accept_payee_change),
        Verb::Check { places } => check::run(&places.conf, &places.rules),
        Verb::Quote { places, path, table, request } => quote::run(&places, &path, &request, table),
        Verb::Audit { store } => audit::run(&store),
        Verb::Channels { verb: ChannelsVerb::List, conf } => channels::list(&conf),
        Verb::Channels { verb: ChannelsVerb::Settle { id }, conf } => channels::act(&conf, &id, "settle"),
        Verb::Channels { verb: ChannelsVerb::Close { id }, conf } => channels::act(&conf, &id, "close"),
        Verb::Channels { verb: ChannelsVerb::Release { id }, conf } => channels::act(&conf, &id, "release"),
        Verb::Receipt { verb: ReceiptVerb::Verify { key, sealed } } => receipt::verify(&key, &sealed),
    }
}

/// Prints mistakes, one a line, and says how many.
pub(crate) fn complain<T: std::fmt::Display>(mistakes: &[T]) -> ExitCode {
    for mistake in mistakes {
        eprintln!("{mistake}");
    }
    eprintln!("{} mistake{}", mistakes.len(), if mistakes.len() == 1 { "" } else { "s" });
    ExitCode::FAILURE
}
