//! Which published client pays which way: the tables that tests run, row by row, and that `docs/clients.md` is made of.

use super::x402::Client;
use super::x402::stall::server;

/// A package as it is published; its version is what the test bed has locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Package {
    /// `testbed/package-lock.json`.
    Npm(&'static str),
    /// `testbed/x402/package-lock.json`.
    NpmX402(&'static str),
    /// `testbed/constraints.txt`.
    PyPi(&'static str),
    /// `Cargo.lock`.
    Crate(&'static str),
}

/// The published clients of MPP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mpp {
    /// npm mppx.
    Sdk,
    /// Its command line.
    Cli,
    /// npm openai over mppx.
    OpenAi,
    /// Vercel's AI SDK over mppx.
    AiSdk,
    /// PyPI pympp.
    Python,
    /// PyPI openai over pympp.
    PyOpenAi,
    /// The crate mpp.
    Crate,
}

impl Mpp {
    pub const ALL: [Self; 7] =
        [Self::Sdk, Self::Cli, Self::OpenAi, Self::AiSdk, Self::Python, Self::PyOpenAi, Self::Crate];

    /// What it is made of, the part that its user calls first, and how that is called if the package has more faces than one.
    pub const fn made_of(self) -> (&'static [Package], &'static str) {
        use Package::{Crate, Npm, PyPi};
        match self {
            Self::Sdk => (&[Npm("mppx")], ""),
            Self::Cli => (&[Npm("mppx")], "command line"),
            Self::OpenAi => (&[Npm("openai"), Npm("mppx")], ""),
            Self::AiSdk => (&[Npm("ai"), Npm("@ai-sdk/openai-compatible"), Npm("mppx")], ""),
            Self::Python => (&[PyPi("pympp")], ""),
            Self::PyOpenAi => (&[PyPi("openai"), PyPi("pympp")], ""),
            Self::Crate => (&[Crate("mpp")], ""),
        }
    }
}

impl Client {
    /// As [`Mpp::made_of`].
    pub const fn made_of(self) -> (&'static [Package], &'static str) {
        use Package::{NpmX402, PyPi};
        match self {
            Self::Fetch => (&[NpmX402("@x402/fetch"), NpmX402("@x402/evm"), NpmX402("@x402/svm")], ""),
            Self::Legacy => (&[NpmX402("x402-fetch")], "v1"),
            Self::OpenAi => (&[NpmX402("openai"), NpmX402("@x402/fetch")], ""),
            Self::Httpx => (&[PyPi("x402"), PyPi("httpx")], ""),
            Self::Requests => (&[PyPi("x402"), PyPi("requests")], ""),
            Self::PyOpenAi => (&[PyPi("openai"), PyPi("x402"), PyPi("httpx")], ""),
        }
    }
}

/// A charge before the answer: the client, and whether the answer streams. Run by `tests/clients_pay.rs`.
pub const CHARGE: [(Mpp, bool); 12] = [
    (Mpp::Sdk, false),
    (Mpp::Sdk, true),
    (Mpp::Cli, false),
    (Mpp::OpenAi, false),
    (Mpp::OpenAi, true),
    (Mpp::AiSdk, false),
    (Mpp::AiSdk, true),
    (Mpp::Python, false),
    (Mpp::Python, true),
    (Mpp::PyOpenAi, false),
    (Mpp::PyOpenAi, true),
    (Mpp::Crate, false),
];

/// A session, in whole answers and in streams: the client, and the test of `tests/session.rs` that runs it.
pub const SESSION: [(Mpp, &str); 4] = [
    (Mpp::Sdk, "the_sdk_opens_with_json_streams_on_vouchers_and_closes"),
    (Mpp::OpenAi, "npm_openai_pays_by_the_token_without_knowing"),
    (Mpp::Crate, "the_rust_client_asks_streams_and_closes"),
    (Mpp::Cli, "the_command_line_opens_with_json_streams_and_closes"),
];

/// x402 on an EVM chain: every client at every server of a [`super::x402::Stall`] that it can pay, in whole answers and in streams.
/// v1 knows neither Permit2 nor `upto`. Run by `tests/x402.rs`.
pub fn on_evm() -> Vec<(Client, &'static str, bool)> {
    let mut rows = Vec::new();
    for client in Client::ALL {
        for server in [server::EXACT, server::FIRST, server::PERMIT2, server::UPTO] {
            if client == Client::Legacy && matches!(server, server::PERMIT2 | server::UPTO) {
                continue;
            }
            rows.extend([(client, server, false), (client, server, true)]);
        }
    }
    rows
}

/// x402 on Solana: the client, and whether the answer streams. Run by `tests/x402_solana.rs`.
pub const ON_SOLANA: [(Client, bool); 12] = [
    (Client::Fetch, false),
    (Client::Fetch, true),
    (Client::Legacy, false),
    (Client::Legacy, true),
    (Client::OpenAi, false),
    (Client::OpenAi, true),
    (Client::Httpx, false),
    (Client::Httpx, true),
    (Client::Requests, false),
    (Client::Requests, true),
    (Client::PyOpenAi, false),
    (Client::PyOpenAi, true),
];

/// A network of the shipped rule set `agent402`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// By its chain id.
    Evm(u64),
    Solana,
}

pub const BASE: u64 = 8453;
pub const POLYGON: u64 = 137;
pub const ARBITRUM: u64 = 42161;

/// The networks in the order of the rule set.
pub const NETWORKS: [(On, &str); 4] =
    [(On::Evm(BASE), "Base"), (On::Evm(POLYGON), "Polygon"), (On::Evm(ARBITRUM), "Arbitrum"), (On::Solana, "Solana")];

/// x402 `exact` against a 402 that offers all four networks: the client, where its money is, the path of the tier, whether it streams.
/// Every tier, and every kind of client. Run by `tests/agent402.rs`.
pub const AGENT402: [(Client, On, &str, bool); 11] = {
    use super::agent402::{AUTO, NANO, PREMIUM, PRO, STANDARD};
    [
        (Client::Fetch, On::Evm(BASE), NANO, false),
        (Client::Fetch, On::Evm(POLYGON), AUTO, true),
        (Client::Fetch, On::Evm(ARBITRUM), STANDARD, false),
        (Client::Fetch, On::Solana, PRO, true),
        (Client::Legacy, On::Evm(BASE), AUTO, true),
        (Client::Legacy, On::Evm(POLYGON), NANO, false),
        (Client::Legacy, On::Solana, AUTO, false),
        (Client::OpenAi, On::Evm(POLYGON), PREMIUM, false),
        (Client::Httpx, On::Evm(ARBITRUM), PRO, false),
        (Client::Httpx, On::Solana, NANO, false),
        (Client::PyOpenAi, On::Evm(BASE), STANDARD, true),
    ]
};
