//! Why a request is not served: facts with their numbers. The answer is written from them in one place (`edge/reply.rs`).

mod gap;
mod moved;

pub use gap::{Gap, Place};
pub use moved::Moved;

use self::gap::{cheaper, named};
use crate::money::{Atoms, Usd};
use crate::surface::Surface;

/// One reason. Texts in here are ours or taken from the rules; a client's text appears only where the field says
/// "asked", and is quoted and cut by whoever writes it out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// No route has this path.
    UnknownPath,
    /// The path exists, the method does not. `allow` is the value of the `Allow` header.
    MethodNotAllowed {
        /// Methods that exist, comma-separated.
        allow: &'static str,
    },
    /// Something in the request head is ambiguous or not supported.
    BadHead {
        /// What.
        why: &'static str,
    },
    /// The body is larger than the tier's limit.
    BodyTooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The body did not arrive within `body_seconds`.
    BodyTooSlow {
        /// The deadline.
        seconds: u64,
    },
    /// Content-Type or Content-Encoding other than identity JSON.
    UnsupportedMedia {
        /// What was wrong.
        why: &'static str,
    },
    /// An address or the whole gate is over a rate or a budget.
    TooBusy {
        /// 429 for an address over its own rate, 503 for the gate's own budget.
        address_at_fault: bool,
        /// Suggested wait.
        retry_after_seconds: u64,
        /// Which limit.
        limit: &'static str,
    },
    /// The body is not strict JSON.
    BadJson {
        /// Byte offset of the mistake.
        at: usize,
        /// What.
        why: String,
    },
    /// The body is not a form that every reader reads alike.
    BadForm {
        /// Byte offset of the part with the mistake.
        at: usize,
        /// What.
        why: String,
    },
    /// A field has a value that cannot be served.
    BadField {
        /// Which, in dotted form.
        param: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// A field outside the surface's allow-list.
    UnknownField {
        /// Which.
        param: String,
    },
    /// A field that costs extra and has no price here.
    NotPriced {
        /// Which.
        param: String,
    },
    /// A number above the tier's limit.
    OverLimit {
        /// Which field.
        param: &'static str,
        /// What was asked.
        asked: u64,
        /// The limit.
        max: u64,
    },
    /// More prompt tokens than the tier sells.
    PromptTooLong {
        /// What was asked.
        surface: Surface,
        /// The limit.
        max: u64,
        /// Who counted: a vocabulary, or `bytes` as the bound.
        counted_by: &'static str,
        /// Paths that sell the model with a longer prompt, cheapest first.
        sold_at: Vec<Place>,
    },
    /// The flat price does not pay for this prompt and the least output.
    OverPrice {
        /// What was asked.
        surface: Surface,
        /// By how much, and what would be within it.
        gap: Gap,
        /// Paths that would serve this very request, cheapest first.
        sold_at: Vec<Place>,
    },
    /// It may cost more than any payment covers that could be offered for it.
    TooDear {
        /// What was asked.
        surface: Surface,
        /// What a payment covers at most.
        most: Usd,
        /// Its price is the path's, whatever it asks for.
        is_flat: bool,
    },
    /// No model of the rules has this name.
    UnknownModel {
        /// What the client said.
        asked: String,
    },
    /// The model exists, but another route sells it.
    WrongTier {
        /// What the client said.
        asked: String,
        /// Every path that sells it, cheapest first.
        sold_at: Vec<Place>,
    },
    /// Valid credential, but the body asks for nothing that could be served.
    NothingAsked {
        /// What could have been asked.
        surface: Surface,
    },
    /// More than one payment credential.
    TwoCredentials {
        /// How many were found.
        found: usize,
    },
    /// A credential that cannot be decoded; counts as unpaid.
    MalformedCredential,
    /// Not our challenge, or not for this request.
    InvalidChallenge {
        /// What does not match.
        why: &'static str,
    },
    /// The offer is past its `expires`.
    OfferExpired,
    /// The payment in the credential is not what the offer asks.
    PaymentInvalid {
        /// What is wrong, in our words.
        why: String,
    },
    /// An earlier payment is to be redeemed for something dearer.
    Underpaid {
        /// Price of this request.
        need: Atoms,
        /// What was paid.
        paid: Atoms,
    },
    /// A paid and undelivered proof is redeemable only on the route it was bought for.
    RedeemElsewhere {
        /// That route.
        route: String,
    },
    /// The same proof is being served right now.
    ProofRunning {
        /// Suggested wait.
        retry_after_seconds: u64,
    },
    /// The proof bought its reply already, or can no longer be redeemed.
    ProofSpent,
    /// The transaction is on chain and failed, or can no longer be mined: nothing was paid.
    PaymentFailed {
        /// What happened.
        why: String,
    },
    /// Nobody knows yet whether the payment landed. The same credential stays good.
    PaymentUnknown {
        /// Suggested wait.
        retry_after_seconds: u64,
    },
    /// The payment was handed in, and nobody can show what became of it.
    PaymentUnproven,
    /// Nobody could be asked whether the payment is good. Nothing was taken.
    PaymentUnchecked {
        /// Suggested wait.
        retry_after_seconds: u64,
    },
    /// The payer has promised as much as may be open at a time.
    PayerExposed {
        /// The most.
        most: Usd,
        /// What he had today and did not pay.
        lost: Usd,
        /// Suggested wait.
        retry_after_seconds: u64,
    },
    /// The voucher's form or signature is not one the chain would take.
    VoucherInvalid {
        /// What is wrong, in our words.
        why: String,
    },
    /// The voucher was signed by somebody else, or for something else.
    SignerMismatch,
    /// No such channel here: open one.
    ChannelUnknown,
    /// The channel is closed, closing, or was never opened: open another.
    ChannelOver,
    /// The voucher is below what was accepted before.
    VoucherLower,
    /// It is higher, by too little.
    VoucherTooFine {
        /// Least growth.
        min_delta: Atoms,
    },
    /// It is above the deposit: top up first.
    OverDeposit {
        /// The deposit.
        deposit: Atoms,
    },
    /// The channel's accepted vouchers do not cover the request.
    BalanceShort {
        /// Cumulative amount that would.
        required: Atoms,
        /// What is accepted.
        accepted: Atoms,
        /// What is locked.
        deposit: Atoms,
    },
    /// Another act on this channel is under way, or as many requests as it takes.
    ChannelBusy {
        /// Suggested wait.
        retry_after_seconds: u64,
    },
    /// The chain cannot be asked about the channel, and nothing recent is known.
    ChainUnread {
        /// Suggested wait.
        retry_after_seconds: u64,
    },
    /// The channel waits for a person.
    ChannelBlocked,
    /// No credential, or one that counts as none: pay first.
    PaymentRequired,
    /// Nothing can be offered right now.
    NoOffer {
        /// Suggested wait.
        retry_after_seconds: u64,
        /// Why, for the first rail that could not.
        why: String,
    },
    /// A cap of the operator (absorbed loss per day) is used up.
    CapReached {
        /// Suggested wait.
        retry_after_seconds: u64,
    },
    /// No server of the pool can take the request.
    UpstreamUnavailable {
        /// Suggested wait.
        retry_after_seconds: u64,
    },
    /// The backend failed: connection lost, 5xx, nonsense, or it refused our own credentials.
    UpstreamFailed {
        /// What, without anything the backend said.
        why: &'static str,
    },
    /// The backend answered 5xx and said when to come again: in seconds, as far as the gate heeds it.
    UpstreamDown(u64),
    /// The backend did not answer in time.
    UpstreamTimeout {
        /// Which wait, in seconds.
        seconds: u64,
    },
    /// The backend refused the request itself (4xx; of 402 and 403 only what is about this request, as 403): its status, type, code and param pass,
    /// its message is scrubbed.
    UpstreamRefused {
        /// 4xx.
        status: u16,
        /// OpenAI's `error.type`.
        kind: Option<String>,
        /// OpenAI's `error.code`.
        code: Option<String>,
        /// OpenAI's `error.param`.
        param: Option<String>,
        /// Scrubbed message.
        message: String,
        /// `Retry-After`, when the backend gave one.
        retry_after_seconds: Option<u64>,
    },
    /// The store cannot promise durability now.
    Store {
        /// Suggested wait.
        retry_after_seconds: u64,
    },
    /// The gate is stopping.
    Stopping,
    /// A defect of ours. The log has the rest.
    Internal {
        /// Where.
        place: &'static str,
    },
}

impl Refusal {
    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::UnknownPath | Self::UnknownModel { .. } => 404,
            Self::MethodNotAllowed { .. } => 405,
            Self::BodyTooLarge { .. } => 413,
            Self::BodyTooSlow { .. } => 408,
            Self::UnsupportedMedia { .. } => 415,
            Self::TooBusy { address_at_fault: true, .. } => 429,
            Self::BadHead { .. }
            | Self::BadJson { .. }
            | Self::BadForm { .. }
            | Self::BadField { .. }
            | Self::UnknownField { .. }
            | Self::NotPriced { .. }
            | Self::OverLimit { .. }
            | Self::PromptTooLong { .. }
            | Self::OverPrice { .. }
            | Self::TooDear { .. }
            | Self::WrongTier { .. }
            | Self::NothingAsked { .. }
            | Self::TwoCredentials { .. } => 400,
            Self::PaymentRequired
            | Self::MalformedCredential
            | Self::InvalidChallenge { .. }
            | Self::OfferExpired
            | Self::PaymentInvalid { .. }
            | Self::PaymentFailed { .. }
            | Self::VoucherInvalid { .. }
            | Self::SignerMismatch
            | Self::VoucherLower
            | Self::VoucherTooFine { .. }
            | Self::OverDeposit { .. }
            | Self::BalanceShort { .. } => 402,
            Self::ChannelUnknown | Self::ChannelOver => 410,
            // Money has moved: never invite a second payment.
            Self::ProofSpent | Self::PaymentUnproven | Self::Underpaid { .. } | Self::RedeemElsewhere { .. } => 403,
            Self::PayerExposed { .. } => 429,
            Self::ProofRunning { .. } | Self::ChannelBusy { .. } => 409,
            Self::ChannelBlocked => 403,
            Self::UpstreamFailed { .. } | Self::UpstreamDown(_) => 502,
            Self::UpstreamTimeout { .. } => 504,
            Self::UpstreamRefused { status, .. } => *status,
            Self::TooBusy { .. }
            | Self::PaymentUnknown { .. }
            | Self::PaymentUnchecked { .. }
            | Self::ChainUnread { .. }
            | Self::NoOffer { .. }
            | Self::CapReached { .. }
            | Self::UpstreamUnavailable { .. }
            | Self::Store { .. }
            | Self::Stopping => 503,
            Self::Internal { .. } => 500,
        }
    }

    /// Value of `Retry-After` in seconds, where waiting helps.
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::TooBusy { retry_after_seconds, .. }
            | Self::ProofRunning { retry_after_seconds }
            | Self::ChannelBusy { retry_after_seconds }
            | Self::ChainUnread { retry_after_seconds }
            | Self::PaymentUnknown { retry_after_seconds }
            | Self::PaymentUnchecked { retry_after_seconds }
            | Self::PayerExposed { retry_after_seconds, .. }
            | Self::NoOffer { retry_after_seconds, .. }
            | Self::CapReached { retry_after_seconds }
            | Self::UpstreamUnavailable { retry_after_seconds }
            | Self::UpstreamDown(retry_after_seconds)
            | Self::Store { retry_after_seconds } => Some(*retry_after_seconds),
            Self::UpstreamRefused { retry_after_seconds, .. } => *retry_after_seconds,
            Self::Stopping => Some(5),
            _ => None,
        }
    }

    /// Whether the answer is a challenge: it carries every offer of the route. So does the one that a channel is gone, for the
    /// client has to open another.
    pub fn invites_payment(&self) -> bool {
        // What a backend said of what it was asked is no word about payment.
        matches!(self.status(), 402 | 410) && !matches!(self, Self::UpstreamRefused { .. })
    }

    /// Problem type suffix behind `https://paymentauth.org/problems/` (draft-httpauth-payment §8), for answers about payment.
    pub fn problem(&self) -> Option<&'static str> {
        Some(match self {
            Self::PaymentRequired => "payment-required",
            Self::MalformedCredential => "malformed-credential",
            Self::InvalidChallenge { .. } => "invalid-challenge",
            Self::OfferExpired => "payment-expired",
            Self::PaymentInvalid { .. } | Self::PaymentFailed { .. } | Self::ProofSpent | Self::PaymentUnproven => {
                "verification-failed"
            }
            Self::Underpaid { .. } => "payment-insufficient",
            Self::TwoCredentials { .. } => "bad-request",
            Self::VoucherInvalid { .. } => "session/invalid-signature",
            Self::SignerMismatch => "session/signer-mismatch",
            Self::VoucherLower => "verification-failed",
            Self::VoucherTooFine { .. } => "session/delta-too-small",
            Self::OverDeposit { .. } => "session/amount-exceeds-deposit",
            Self::BalanceShort { .. } => "session/insufficient-balance",
            Self::ChannelUnknown => "session/channel-not-found",
            Self::ChannelOver => "session/channel-finalized",
            _ => return None,
        })
    }

    /// OpenAI's `error.code`: a closed set, also the `outcome` label of metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownPath => "unknown_path",
            Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::BadHead { .. } => "bad_head",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::BodyTooSlow { .. } => "body_too_slow",
            Self::UnsupportedMedia { .. } => "unsupported_media_type",
            Self::TooBusy { .. } => "rate_limit_exceeded",
            Self::BadJson { .. } => "invalid_json",
            Self::BadForm { .. } => "invalid_form",
            Self::BadField { .. } => "invalid_value",
            Self::UnknownField { .. } => "unknown_parameter",
            Self::NotPriced { .. } => "not_priced",
            Self::OverLimit { .. } => "over_limit",
            Self::PromptTooLong { .. } => "context_length_exceeded",
            Self::OverPrice { .. } => "over_price",
            Self::TooDear { .. } => "too_dear",
            Self::UnknownModel { .. } => "model_not_found",
            Self::WrongTier { .. } => "wrong_tier",
            Self::NothingAsked { .. } => "nothing_asked",
            Self::TwoCredentials { .. } => "two_credentials",
            Self::MalformedCredential => "malformed_credential",
            Self::InvalidChallenge { .. } => "invalid_challenge",
            Self::OfferExpired => "offer_expired",
            Self::PaymentInvalid { .. } => "payment_invalid",
            Self::Underpaid { .. } => "underpaid",
            Self::RedeemElsewhere { .. } => "redeem_elsewhere",
            Self::ProofRunning { .. } => "payment_in_use",
            Self::ProofSpent => "payment_spent",
            Self::PaymentFailed { .. } => "payment_failed",
            Self::PaymentUnknown { .. } => "payment_unknown",
            Self::PaymentUnproven => "payment_unproven",
            Self::PaymentUnchecked { .. } => "payment_unchecked",
            Self::PayerExposed { .. } => "payer_exposed",
            Self::VoucherInvalid { .. } => "voucher_invalid",
            Self::SignerMismatch => "signer_mismatch",
            Self::ChannelUnknown => "channel_not_found",
            Self::ChannelOver => "channel_finalized",
            Self::VoucherLower => "voucher_lower",
            Self::VoucherTooFine { .. } => "voucher_delta_too_small",
            Self::OverDeposit { .. } => "voucher_over_deposit",
            Self::BalanceShort { .. } => "insufficient_balance",
            Self::ChannelBusy { .. } => "channel_busy",
            Self::ChainUnread { .. } => "chain_unavailable",
            Self::ChannelBlocked => "channel_blocked",
            Self::PaymentRequired => "payment_required",
            Self::NoOffer { .. } => "no_offer",
            Self::CapReached { .. } => "cap_reached",
            Self::UpstreamUnavailable { .. } => "upstream_unavailable",
            Self::UpstreamFailed { .. } | Self::UpstreamDown(_) => "upstream_failed",
            Self::UpstreamTimeout { .. } => "upstream_timeout",
            Self::UpstreamRefused { .. } => "upstream_refused",
            Self::Store { .. } => "store_unavailable",
            Self::Stopping => "stopping",
            Self::Internal { .. } => "internal",
        }
    }

    /// OpenAI's `error.param`.
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::BadField { param, .. } | Self::UnknownField { param } | Self::NotPriced { param } => Some(param),
            Self::OverLimit { param, .. } => Some(param),
            Self::PromptTooLong { surface, .. } | Self::OverPrice { surface, .. } | Self::NothingAsked { surface } => {
                Some(surface.prompt_field())
            }
            Self::UnknownModel { .. } | Self::WrongTier { .. } => Some("model"),
            Self::UpstreamRefused { param, .. } => param.as_deref(),
            _ => None,
        }
    }

    /// One sentence for the client: what is wrong, and what to do.
    pub fn message(&self) -> String {
        match self {
            Self::UnknownPath => "no such path".to_owned(),
            Self::MethodNotAllowed { allow } => format!("this path takes {allow}"),
            Self::BadHead { why } => (*why).to_owned(),
            Self::BodyTooLarge { limit } => format!("the body is larger than {limit} bytes"),
            Self::BodyTooSlow { seconds } => format!("the body did not arrive within {seconds} s"),
            Self::UnsupportedMedia { why } => (*why).to_owned(),
            Self::TooBusy { limit, .. } => format!("over the limit {limit}; try again later"),
            Self::BadJson { at, why } => format!("the body is not acceptable JSON at byte {at}: {why}"),
            Self::BadForm { at, why } => format!("the body is not an acceptable form at byte {at}: {why}"),
            Self::BadField { param, why } => format!("{param}: {why}"),
            Self::UnknownField { param } => format!("{param} is not accepted here"),
            Self::NotPriced { param } => format!("{param} has no price here and is not accepted"),
            Self::OverLimit { param, asked, max } => format!("{param} is {asked}; the most sold here is {max}"),
            Self::PromptTooLong { max, counted_by, sold_at, .. } => {
                let said =
                    format!("the prompt is longer than {max} tokens (counted by {counted_by}), the most sold here");
                if sold_at.is_empty() { said } else { format!("{said}; longer ones are sold at {}", named(sold_at)) }
            }
            Self::OverPrice { surface, gap, sold_at } => gap.message(*surface, sold_at),
            Self::TooDear { surface, most, is_flat } => {
                let mend = cheaper(*surface, *is_flat);
                format!("this request may cost more than the ${most} that a payment covers here: {mend}")
            }
            Self::UnknownModel { asked } => format!("the model {} does not exist", quoted(asked)),
            Self::WrongTier { asked, sold_at } if sold_at.is_empty() => {
                format!("the model {} is not sold here", quoted(asked))
            }
            Self::WrongTier { asked, sold_at } => {
                format!("the model {} is not sold here; it is sold at {}", quoted(asked), named(sold_at))
            }
            Self::NothingAsked { surface } => {
                format!("the body has no {}; nothing was charged", surface.prompt_field())
            }
            Self::TwoCredentials { found } => format!("{found} payment credentials on one request; send exactly one"),
            Self::MalformedCredential => "the payment credential cannot be decoded".to_owned(),
            Self::InvalidChallenge { why } => {
                format!("the credential does not answer an offer for this request: {why}")
            }
            Self::OfferExpired => "the offer has expired; pay the fresh one".to_owned(),
            Self::PaymentInvalid { why } => format!("the payment was not accepted and nothing was taken: {why}"),
            Self::Underpaid { need, paid } => format!(
                "this payment of {paid} does not cover a request that costs {need}; send one that costs no more, or pay anew"
            ),
            Self::RedeemElsewhere { route } => format!("this payment is for {route}; it can be redeemed only there"),
            Self::ProofRunning { .. } => "a request with this payment is running; wait for its answer".to_owned(),
            Self::ProofSpent => "this payment has bought its answer already, or came too late for one".to_owned(),
            Self::PaymentFailed { why } => format!("the payment did not go through: {why}"),
            Self::PaymentUnproven => {
                "the payment was handed in and used up, and nobody can show that it paid us: ask the operator"
                    .to_owned()
            }
            Self::PaymentUnchecked { .. } => {
                "the payment could not be verified now; nothing was taken: send the same credential again".to_owned()
            }
            Self::PayerExposed { most, lost, .. } => {
                format!("this payer may have ${most} promised and not paid at a time, and left ${lost} unpaid today")
            }
            Self::PaymentUnknown { .. } => {
                "it is not known yet whether the payment landed; send the same credential again, do not pay anew"
                    .to_owned()
            }
            Self::VoucherInvalid { why } => format!("the voucher was not accepted: {why}"),
            Self::SignerMismatch => {
                "the voucher is not signed by the channel's signer for this channel and amount".to_owned()
            }
            Self::ChannelUnknown => "this channel is not known here; open one".to_owned(),
            Self::ChannelOver => "this channel is closed or closing; forget it and open another".to_owned(),
            Self::VoucherLower => "the voucher is lower than one that was accepted before".to_owned(),
            Self::VoucherTooFine { min_delta } => {
                format!("a voucher raises the one before it by at least {min_delta}")
            }
            Self::OverDeposit { deposit } => format!("the voucher is above the deposit of {deposit}; top up first"),
            Self::BalanceShort { required, accepted, deposit } => format!(
                "this request needs vouchers of {required} in total; accepted are {accepted}, of a deposit of {deposit}"
            ),
            Self::ChannelBusy { .. } => {
                "another act on this channel is under way, or as many requests as it takes; try again".to_owned()
            }
            Self::ChainUnread { .. } => "the chain cannot be asked about this channel now".to_owned(),
            Self::ChannelBlocked => "this channel is blocked until the operator has looked at it".to_owned(),
            Self::PaymentRequired => "payment is required".to_owned(),
            Self::NoOffer { why, .. } => format!("no way to pay can be offered now: {why}"),
            Self::CapReached { .. } => "this price cannot be offered any more today".to_owned(),
            Self::UpstreamUnavailable { .. } => "no backend can take the request now".to_owned(),
            Self::UpstreamFailed { why } => format!("the backend failed: {why}"),
            Self::UpstreamDown(_) => "the backend failed: it answered with a server error".to_owned(),
            Self::UpstreamTimeout { seconds } => format!("the backend did not answer within {seconds} s"),
            Self::UpstreamRefused { message, .. } => message.clone(),
            Self::Store { .. } => "payments cannot be recorded safely now".to_owned(),
            Self::Stopping => "the gate is stopping".to_owned(),
            Self::Internal { .. } => "internal error".to_owned(),
        }
    }
}

/// A client's own word, made safe to repeat: printable ASCII only, at most 64 characters, in quotes.
fn quoted(text: &str) -> String {
    let safe: String =
        text.chars().take(64).map(|c| if c.is_ascii_graphic() && c != '"' && c != '\\' { c } else { '?' }).collect();
    format!("\"{safe}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_money_moved_no_answer_invites_a_second_payment() {
        for refusal in [
            Refusal::ProofSpent,
            Refusal::ProofRunning { retry_after_seconds: 1 },
            Refusal::PaymentUnknown { retry_after_seconds: 5 },
            Refusal::Underpaid { need: Atoms(2), paid: Atoms(1) },
            // A retired model, and a provider that wants money of its own.
            refused_by_backend(410),
            refused_by_backend(402),
        ] {
            assert!(!refusal.invites_payment(), "{refusal:?}");
        }
    }

    fn refused_by_backend(status: u16) -> Refusal {
        let message = String::new();
        Refusal::UpstreamRefused { status, kind: None, code: None, param: None, message, retry_after_seconds: None }
    }

    #[test]
    fn a_refusal_of_what_was_asked_names_the_field_that_the_client_sent() {
        let gap = gap::Gap {
            price: Usd(1),
            prompt: 2,
            counted_by: "",
            output: 3,
            n: 1,
            shorten_by: None,
            n_within: 0,
            output_within: 1,
        };
        for (surface, prompt, output) in [
            (Surface::Chat, "messages", "max_tokens"),
            (Surface::Messages, "messages", "max_tokens"),
            (Surface::Responses, "input", "max_output_tokens"),
            (Surface::Completions, "prompt", "max_tokens"),
            (Surface::Embeddings, "input", ""),
            (Surface::Images, "prompt", ""),
            (Surface::Speech, "input", ""),
            (Surface::Transcriptions, "file", ""),
        ] {
            let long = Refusal::PromptTooLong { surface, max: 1, counted_by: "", sold_at: Vec::new() };
            let over = Refusal::OverPrice { surface, gap, sold_at: Vec::new() };
            let nothing = Refusal::NothingAsked { surface };
            for refusal in [&long, &over, &nothing] {
                assert_eq!(refusal.param(), Some(prompt), "{refusal:?}");
            }
            assert!(nothing.message().contains(prompt), "{}", nothing.message());
            assert!(!surface.has_output() || over.message().contains(&format!("({output})")), "{}", over.message());
        }
    }

    #[test]
    fn a_clients_word_is_repeated_only_as_safe_ascii() {
        let m = Refusal::UnknownModel { asked: "a\r\nSet-Cookie: x\"é".repeat(20) }.message();
        assert!(m.is_ascii() && !m.contains('\n') && m.len() < 120, "{m}");
    }
}
