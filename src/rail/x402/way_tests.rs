//! The rail against a facilitator and a chain that say what they were told to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::rail::x402::sample::{Golden, accepted};
use crate::rail::x402::signed::Signed;
use crate::secret::Secret;
use std::collections::VecDeque;
use std::sync::Mutex;

const BODY: [u8; 32] = [7; 32];

/// A facilitator by script.
struct Says {
    support: Mutex<Result<Support, String>>,
    /// Of v1, where it is another.
    v1: Mutex<Option<Support>>,
    verdict: Mutex<Verdict>,
    settlement: Mutex<Settlement>,
    /// The requirements it was called with.
    settled: Mutex<Vec<Value>>,
}

#[async_trait]
impl Facilitator for Says {
    fn support(&self, kind: &Kind) -> Result<Support, String> {
        let v1 = self.v1.lock().unwrap().clone().filter(|_| kind.version == Version::V1);
        v1.map_or_else(|| self.support.lock().unwrap().clone(), Ok)
    }
    async fn verify(&self, _call: &Call<'_>) -> Verdict {
        self.verdict.lock().unwrap().clone()
    }
    async fn settle(&self, call: &Call<'_>) -> Settlement {
        self.settled.lock().unwrap().push(serde_json::from_str(call.requirements.get()).unwrap());
        self.settlement.lock().unwrap().clone()
    }
    async fn watch(&self) {}
    async fn probe(&self) {}
}

/// A chain by script: what it shows, in order; the last word stands.
struct Node {
    traces: Mutex<VecDeque<Trace>>,
    shows: Trace,
}

#[async_trait]
impl Evidence for Node {
    async fn standing(&self) -> Result<(), String> {
        Ok(())
    }
    async fn shows(&self, _transaction: &str, _signed: &Signed, _movement: &Movement<'_>) -> Trace {
        self.shows.clone()
    }
    async fn trace(&self, _signed: &Signed, _movement: &Movement<'_>) -> Trace {
        let mut traces = self.traces.lock().unwrap();
        if traces.len() > 1 { traces.pop_front().unwrap() } else { traces[0].clone() }
    }
}

fn moved() -> Trace {
    Trace::Moved { transaction: "0xchain".into() }
}

fn paid() -> Settlement {
    Settlement::Settled { transaction: "0xfacilitator".into(), payer: None }
}

fn refused(reason: &str) -> Settlement {
    Settlement::Failed { reason: reason.into() }
}

fn silent() -> Settlement {
    Settlement::Unknown { why: "silence".into() }
}

fn settled(transaction: &str) -> Collected {
    Collected::Settled { transaction: transaction.into() }
}

/// A rail for what one of the recorded clients paid, and that payment.
struct Bed {
    rail: X402,
    says: Arc<Says>,
    golden: Golden,
    terms: Terms,
}

impl Bed {
    /// `traces`: what the chain shows; none: there is no node.
    fn new(name: &str, traces: &[Trace]) -> Self {
        Self::with(name, traces, moved(), |_| ())
    }

    fn with(name: &str, traces: &[Trace], shows: Trace, change: impl FnOnce(&mut Settings)) -> Self {
        let golden = Golden::read(name);
        let asked = golden.asked();
        let named = asked.facilitators.first().cloned();
        let is_solana = golden.entry.network.family == Family::Solana;
        let (facilitator_address, fee_payer) = if is_solana { (None, named) } else { (named, None) };
        let support =
            Support { signers: asked.facilitators.clone(), facilitator_address, fee_payer, sponsors_approval: false };
        let says = Arc::new(Says {
            support: Mutex::new(Ok(support)),
            v1: Mutex::default(),
            verdict: Mutex::new(Verdict::Valid { payer: None }),
            settlement: Mutex::new(paid()),
            settled: Mutex::default(),
        });
        let mut settings = Settings {
            id: "base/x".into(),
            scheme: golden.entry.scheme,
            network: golden.entry.network.clone(),
            asset: asked.asset.clone(),
            pay_to: golden.entry.pay_to.clone(),
            beside: Vec::new(),
            permit2: asked.permit2,
            first: false,
            ceiling: Usd::ONE,
            exposure: Usd::ONE,
            evidence_above: Usd::ONE,
            public_url: "https://gate.test".into(),
        };
        change(&mut settings);
        let terms = Terms {
            rail: "base/x".into(),
            amount: golden.entry.amount,
            price: golden.entry.amount.to_usd(6).unwrap(),
            ..crate::claim::sample::claim("a", 20_000).terms
        };
        let ring = Arc::new(KeyRing::new(&[Secret::new("0123456789abcdef0123456789abcdef")]).unwrap());
        let node = Node { traces: Mutex::new(traces.iter().cloned().collect()), shows };
        let evidence = (!traces.is_empty()).then(|| Arc::new(node) as Arc<dyn Evidence>);
        let rail = X402::new(settings, ring, Arc::clone(&says) as Arc<dyn Facilitator>, evidence);
        Self { rail, says, golden, terms }
    }

    fn ask(&self) -> Ask<'_> {
        Ask { terms: &self.terms, digest: BODY, description: "", lasts: 0 }
    }

    fn now(&self) -> UnixSeconds {
        UnixSeconds(self.golden.at)
    }

    /// The recorded payment as the answer to an offer of this rail; a payment of v1 repeats none.
    fn shown(&self, ask: &Ask<'_>, now: UnixSeconds) -> Shown {
        let mut payment = self.golden.payment();
        if payment.version == Version::V2 {
            let offer = self.rail.offer(ask, now).unwrap();
            payment.accepted = Some(accepted(&offer.entry.unwrap()));
        }
        Shown::X402(Box::new(payment))
    }

    async fn proof(&self) -> (Shown, Proof) {
        let (ask, now) = (self.ask(), self.now());
        let shown = self.shown(&ask, now);
        let recognised = self.rail.recognise(&shown, &ask).unwrap().expect("ours");
        let proof = self.rail.check(&shown, recognised, &ask, now).await.unwrap();
        (shown, proof)
    }

    /// What the flow writes down of it.
    async fn claim(&self, standing: Standing) -> Claim {
        let (_, proof) = self.proof().await;
        let recognised = proof.recognised;
        Claim {
            key: recognised.key,
            challenge_id: recognised.challenge_id,
            reference: recognised.reference,
            resend: recognised.resend,
            terms: self.terms.clone(),
            payer: proof.payer,
            collect_until: proof.collect_until,
            standing,
            ..crate::claim::sample::claim("a", 1)
        }
    }

    fn says(&self, settlement: Settlement) -> &Self {
        *self.says.settlement.lock().unwrap() = settlement;
        self
    }

    fn hand_ins(&self) -> usize {
        self.says.settled.lock().unwrap().len()
    }
}

fn taking(amount: u128) -> Standing {
    Standing::Taking { by: "r0".into(), amount: Atoms(amount), receipt: None }
}

/// A facilitator with several accounts that pay fees names one at random: for every kind, in every answer, to every gate.
#[tokio::test]
async fn a_solana_payment_is_good_whichever_of_the_facilitators_fee_payers_it_was_offered() {
    const OTHER: &str = "4zMMC9srt5Ri5X14GAgXhaHii3GnPAEERYPJgZJDncDU";
    let other = |listed: &[&str]| Support {
        signers: listed.iter().map(|s| (*s).to_owned()).collect(),
        fee_payer: Some(OTHER.into()),
        ..Support::default()
    };
    for listed in [&[][..], &[OTHER]] {
        let bed = Bed::new("v1-solana", &[]);
        *bed.says.v1.lock().unwrap() = Some(other(listed));
        let (shown, proof) = bed.proof().await;
        bed.rail.collect(&shown, &proof).await;
        let sent = bed.says.settled.lock().unwrap()[0]["extra"][FEE_PAYER].clone();
        assert_eq!(sent, bed.golden.entry.extra[FEE_PAYER], "v1: the one that the transaction names");

        let bed = Bed::new("exact-solana", &[]);
        let (ask, now) = (bed.ask(), bed.now());
        let shown = bed.shown(&ask, now);
        *bed.says.support.lock().unwrap() = Ok(other(listed));
        let recognised = bed.rail.recognise(&shown, &ask).unwrap().expect("ours");
        let proof = bed.rail.check(&shown, recognised, &ask, now).await;
        assert!(proof.is_ok(), "v2: it was offered before, or by another gate: {:?}", proof.err());
    }
}

#[tokio::test]
async fn a_solana_payment_with_a_fee_payer_that_nobody_offered_is_refused() {
    let bed = Bed::new("v1-solana", &[]);
    let nobody =
        Support { fee_payer: Some("4zMMC9srt5Ri5X14GAgXhaHii3GnPAEERYPJgZJDncDU".into()), ..Support::default() };
    *bed.says.support.lock().unwrap() = Ok(nobody);
    let (ask, now) = (bed.ask(), bed.now());
    let shown = bed.shown(&ask, now);
    let recognised = bed.rail.recognise(&shown, &ask).unwrap().expect("ours");
    let refused = bed.rail.check(&shown, recognised, &ask, now).await.err();
    assert!(matches!(&refused, Some(Refusal::PaymentInvalid { why }) if why.contains("fee payer")), "{refused:?}");
}

#[tokio::test]
async fn a_payment_under_our_offer_is_recognised_with_the_offers_own_terms() {
    for name in ["exact-eip3009", "exact-permit2", "upto", "exact-solana"] {
        let bed = Bed::new(name, &[]);
        let (_, proof) = bed.proof().await;
        let known = &proof.recognised;
        assert_eq!((&known.terms, known.digest), (&bed.terms, Some(BODY)), "{name}");
        assert_eq!(known.expires, bed.now().plus(OFFER_SECONDS), "{name}");
        assert!(known.is_public && known.resend.is_some(), "{name}");
    }
}

#[tokio::test]
async fn who_may_redeem_a_payment_is_who_knows_what_it_answered() {
    // v2: the very offer.
    let bed = Bed::new("exact-eip3009", &[]);
    let ask = bed.ask();
    let secret = |shown: &Shown, ask: &Ask<'_>| {
        let known = bed.rail.recognise(shown, ask).unwrap().unwrap();
        (known.key, known.challenge_id)
    };
    let shown = bed.shown(&ask, bed.now());
    let first = secret(&shown, &ask);
    assert_eq!(first, secret(&shown, &ask), "the same payment again");
    let later = secret(&bed.shown(&ask, bed.now()), &ask);
    assert_eq!(first.0, later.0, "one claim, whatever it is shown under");
    assert_ne!(first.1, later.1, "an observer who asked the same at the same time has an offer of his own");
    let other_body = Ask { digest: [8; 32], ..ask };
    let elsewhere = secret(&shown, &other_body);
    assert_eq!(first, elsewhere, "its payer may redeem it with another body");

    // v1: the body.
    let bed = Bed::new("v1-eip3009", &[]);
    let ask = bed.ask();
    let shown = bed.shown(&ask, bed.now());
    let secret = |ask: &Ask<'_>| bed.rail.recognise(&shown, ask).unwrap().unwrap().challenge_id;
    assert_eq!(secret(&ask), secret(&ask));
    assert_ne!(secret(&ask), secret(&Ask { digest: [8; 32], ..ask }), "who has the signature only");
}

#[tokio::test]
async fn a_payment_shown_for_another_model_or_path_is_known_and_good_for_neither() {
    for name in ["exact-eip3009", "exact-permit2", "upto", "exact-solana"] {
        let bed = Bed::new(name, &[]);
        let (ask, now) = (bed.ask(), bed.now());
        let shown = bed.shown(&ask, now);
        let known = bed.rail.recognise(&shown, &ask).unwrap().unwrap();
        let another = Terms { model: "another".into(), ..bed.terms.clone() };
        let there = Ask { terms: &another, ..ask.clone() };
        assert_eq!(bed.rail.recognise(&shown, &there), Ok(Some(known.clone())), "{name}: with the offer's own model");
        let refused = bed.rail.check(&shown, known.clone(), &there, now).await.unwrap_err();
        assert_eq!(refused.code(), "invalid_challenge", "{name}");

        let elsewhere = Terms { route: "/elsewhere".into(), ..bed.terms.clone() };
        let there = Ask { terms: &elsewhere, ..ask.clone() };
        let refused = bed.rail.recognise(&shown, &there).unwrap_err();
        assert_eq!(refused.code(), "invalid_challenge", "{name}");
        assert_eq!(bed.rail.identity(&shown, [9; 32]), Some(known.identity()), "{name}: its claim is found");
        let other = Bed::with(name, &[], moved(), |settings| settings.network = Network::parse("eip155:1").unwrap());
        assert_eq!(other.rail.identity(&shown, [9; 32]), None, "{name}: another network's");
    }
}

#[test]
fn a_payment_of_v1_goes_to_the_section_that_it_was_signed_for() {
    const EVM: &str = "0x00000000000000000000000000000000000000aa";
    const SOLANA: &str = "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA";
    for (name, other) in [("v1-eip3009", EVM), ("v1-solana", SOLANA)] {
        let usual = Bed::new(name, &[]).rail.settings;
        let signed_for = (usual.asset.clone(), usual.pay_to.clone());
        let token = (Asset { address: other.into(), ..usual.asset.clone() }, usual.pay_to.clone());
        let third = (Asset { decimals: 7, ..token.0.clone() }, usual.pay_to.clone());
        let payee = (usual.asset.clone(), other.to_owned());
        let is_taken = |here: &(Asset, String), beside: &[&(Asset, String)], by_contract: bool| {
            let bed = Bed::with(name, &[], moved(), |settings| {
                (settings.asset, settings.pay_to) = here.clone();
                settings.beside = beside.iter().map(|there| (*there).clone()).collect();
            });
            let Shown::X402(mut payment) = bed.shown(&bed.ask(), bed.now()) else { panic!("another protocol") };
            if let (Signed::Eip3009(a), true) = (&mut payment.signed, by_contract) {
                a.signature = a.signature.iter().rev().copied().collect();
            }
            bed.rail.recognise(&Shown::X402(payment), &bed.ask()).unwrap().is_some()
        };
        for (here, beside, taken, why) in [
            (&signed_for, &[][..], true, "there is no other"),
            (&signed_for, &[&token, &payee], true, "it is for this one"),
            (&token, &[&signed_for], false, "in another token"),
            (&payee, &[&token, &signed_for], false, "to another payee"),
            (&token, &[], true, "there is no other, and it is told why not"),
            (&token, &[&third], true, "it is for none of them, and is told why not"),
        ] {
            assert_eq!(is_taken(here, beside, false), taken, "{name}: {why}");
        }
        if name == "v1-eip3009" {
            assert!(is_taken(&token, &[&signed_for], true), "only its contract can tell for which token it is");
            assert!(!is_taken(&payee, &[&signed_for], true), "and to whom it goes, everybody");
        }
    }
}

#[tokio::test]
async fn a_payment_is_recognised_while_the_facilitator_is_down_and_not_checked() {
    for name in ["exact-eip3009", "upto", "exact-solana", "v1-eip3009"] {
        let bed = Bed::new(name, &[]);
        let (ask, now) = (bed.ask(), bed.now());
        let shown = bed.shown(&ask, now);
        let up = bed.rail.recognise(&shown, &ask).unwrap().unwrap();
        *bed.says.support.lock().unwrap() = Err("the facilitator is down".into());
        assert_eq!(bed.rail.recognise(&shown, &ask), Ok(Some(up.clone())), "{name}: what was paid can be redeemed");
        let unchecked = bed.rail.check(&shown, up, &ask, now).await.unwrap_err();
        let v1 = name.starts_with("v1");
        let want = if v1 { "invalid_challenge" } else { "payment_unchecked" };
        assert_eq!(unchecked.code(), want, "{name}");
        assert_eq!(bed.rail.offer(&ask, now).unwrap_err().code(), "no_offer", "{name}");
        assert!(bed.rail.standing().is_err(), "{name}");
    }
}

#[tokio::test]
async fn no_two_payments_are_found_by_one_reference() {
    // A nonce is the payer's to choose: another payer's, or his own on another network.
    let mut seen = std::collections::HashSet::new();
    let nonce = match Golden::read("exact-eip3009").payment().signed {
        Signed::Eip3009(a) => a.nonce,
        _ => panic!("another method"),
    };
    for (name, change) in [
        ("exact-eip3009", false),
        ("exact-eip3009-sepolia", false),
        ("exact-eip3009", true),
        ("exact-permit2", false),
        ("upto", false),
    ] {
        let bed = Bed::new(name, &[]);
        let ask = bed.ask();
        let Shown::X402(mut payment) = bed.shown(&ask, bed.now()) else { panic!("another protocol") };
        if let Signed::Eip3009(a) = &mut payment.signed {
            a.nonce = nonce;
            a.from = if change { a.to } else { a.from };
        }
        let known = bed.rail.recognise(&Shown::X402(payment), &ask).unwrap().unwrap();
        assert!(seen.insert(known.reference.clone()), "{name}: {}", known.reference);
    }
}

#[tokio::test]
async fn what_a_hand_in_came_to_is_the_facilitators_word_unless_the_chain_says_otherwise() {
    let used = || refused("invalid_exact_evm_nonce_already_used");
    let poor = || refused("insufficient_funds");
    let table: &[(&[Trace], Settlement, Collected, &str)] = &[
        (&[], paid(), settled("0xfacilitator"), "it says so"),
        (&[], poor(), failed("insufficient_funds"), "it says no"),
        (&[], silent(), Collected::Unknown, "it says nothing"),
        (&[], used(), Collected::Unprovable, "used up, and nobody can show by whom"),
        (&[moved()], used(), settled("0xchain"), "somebody else handed it in: it is paid"),
        (&[Trace::Gone], used(), failed("it was used up for something else"), "cancelled"),
        (&[Trace::Unused], used(), Collected::Unknown, "one says used, the other new"),
        (&[Trace::Unknown], used(), Collected::Unknown, "the node does not say"),
        (&[moved()], poor(), settled("0xchain"), "it moved, whatever the facilitator says"),
        (&[Trace::Gone], poor(), failed("insufficient_funds"), "it did not move"),
        (&[Trace::Unused], poor(), failed("insufficient_funds"), "nor was it used"),
        (&[Trace::Unknown], poor(), failed("insufficient_funds"), "the node does not say: the facilitator's word"),
        (&[moved()], silent(), settled("0xchain"), "it says nothing, and the chain shows it already"),
        (&[Trace::Gone], silent(), failed("it was used up for something else"), "nothing is left to wait for"),
        (&[Trace::Unused], silent(), Collected::Unknown, "it may be on its way"),
        (&[Trace::Unknown], silent(), Collected::Unknown, "nobody says anything"),
    ];
    for (traces, says, want, why) in table {
        let bed = Bed::new("exact-eip3009", traces);
        let (shown, proof) = bed.proof().await;
        assert_eq!(bed.says(says.clone()).rail.collect(&shown, &proof).await, *want, "{why}");
        let claim = bed.claim(taking(20_000)).await;
        assert_eq!(bed.rail.take(&claim, bed.now()).await, *want, "{why}, after the reply");
        assert_eq!(bed.hand_ins(), 2, "{why}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_amount_is_paid_when_the_chain_shows_it() {
    let table: &[(Trace, &[Trace], Collected, &str)] = &[
        (moved(), &[Trace::Unknown], settled("0xchain"), "the transaction is there"),
        (Trace::Gone, &[Trace::Unused], Collected::Unknown, "it pays nothing, and the authorization is unused"),
        (Trace::Gone, &[Trace::Gone], failed("it was used up for something else"), "it pays nothing"),
        (Trace::Gone, &[moved()], settled("0xchain"), "another transaction pays"),
        (Trace::Unknown, &[moved()], Collected::Unknown, "it is not there yet: the recovery looks on"),
    ];
    for (shows, traces, want, why) in table {
        let dear = |settings: &mut Settings| settings.evidence_above = Usd::ZERO;
        let bed = Bed::with("exact-eip3009", traces, shows.clone(), dear);
        let claim = bed.claim(taking(20_000)).await;
        assert_eq!(bed.rail.take(&claim, bed.now()).await, *want, "{why}");
        let bed = Bed::with("exact-eip3009", traces, shows.clone(), |_| ());
        let claim = bed.claim(taking(20_000)).await;
        assert_eq!(bed.rail.take(&claim, bed.now()).await, settled("0xfacilitator"), "{why}: a small one");
    }
}

/// What the chain shows, what the facilitator says, when; what is known then, after how many hand-ins, and why.
type Row<'a> = (&'a [Trace], Settlement, u64, Collected, usize, &'a str);

#[tokio::test]
async fn what_became_of_a_payment_is_asked_of_the_chain_and_else_handed_in_again() {
    const EARLY: u64 = 0;
    const LATE: u64 = 10_000;
    const NEVER: u64 = 100_000;
    let ran_out = || failed("it ran out before it was taken");
    let no = || refused("authorization_expired");
    let gone = || failed("it was used up for something else");
    let table: &[Row<'_>] = &[
        (&[moved()], no(), EARLY, settled("0xchain"), 0, "it landed"),
        (&[moved()], no(), LATE, settled("0xchain"), 0, "it landed long ago"),
        (&[Trace::Gone], paid(), EARLY, gone(), 0, "it never can any more"),
        (&[Trace::Unused], paid(), EARLY, settled("0xfacilitator"), 1, "handed in again, and it lands"),
        (&[Trace::Unused], paid(), LATE, ran_out(), 0, "too late, and nobody used it"),
        (&[Trace::Unused], silent(), EARLY, Collected::Unknown, 1, "handed in again, and silence"),
        (&[Trace::Unused], no(), EARLY, Collected::Unknown, 1, "a no now, and an earlier hand-in may be on its way"),
        (&[Trace::Unused, moved()], no(), EARLY, settled("0xchain"), 1, "it was on its way"),
        (&[Trace::Unused, Trace::Gone], no(), EARLY, failed("authorization_expired"), 1, "it went elsewhere"),
        (&[Trace::Unknown], paid(), EARLY, Collected::Unknown, 0, "there is a node, and it is down"),
        (&[Trace::Unknown], paid(), LATE, Collected::Unknown, 0, "and still down"),
        (&[Trace::Unknown], paid(), NEVER, Collected::Unprovable, 0, "and it never will"),
        (&[], paid(), EARLY, settled("0xfacilitator"), 1, "no node: handed in again"),
        (&[], silent(), LATE, Collected::Unknown, 1, "no node, and silence"),
        (&[], no(), EARLY, Collected::Unknown, 1, "no node: a no says nothing about the first time"),
        (&[], no(), LATE, Collected::Unprovable, 1, "no node, and it can land no more: nobody can tell"),
    ];
    for (traces, says, after, want, hand_ins, why) in table {
        for standing in [taking(20_000), Standing::Claimed { by: "r0".into() }] {
            let bed = Bed::new("exact-eip3009", traces);
            let claim = bed.says(says.clone()).claim(standing).await;
            assert_eq!(bed.rail.look(&claim, bed.now().plus(*after)).await, *want, "{why}");
            assert_eq!(bed.hand_ins(), *hand_ins, "{why}");
        }
    }
}

#[tokio::test]
async fn a_payment_is_good_when_the_facilitator_says_so_or_the_chain_shows_it_paid() {
    let used = || Verdict::Invalid { reason: "invalid_exact_evm_nonce_already_used".into() };
    let poor = || Verdict::Invalid { reason: "insufficient_funds".into() };
    let silent = || Verdict::Unknown { why: "silence".into() };
    let bad = |why: &str| Err(Refusal::PaymentInvalid { why: why.into() });
    let unchecked = || Err(Refusal::PaymentUnchecked { retry_after_seconds: 5 });
    let (good, unproven) = (|| Ok(()), || Err(Refusal::PaymentUnproven));
    let unknown = || Err(Refusal::PaymentUnknown { retry_after_seconds: 5 });
    type Row<'a> = (&'a str, &'a [Trace], Verdict, Result<(), Refusal>, &'a str);
    let table: &[Row<'_>] = &[
        ("exact-eip3009", &[], Verdict::Valid { payer: None }, good(), "it would settle"),
        ("exact-eip3009", &[], poor(), bad("insufficient_funds"), "it would not"),
        ("exact-eip3009", &[Trace::Unused], poor(), bad("insufficient_funds"), "it would not, and nobody used it"),
        ("exact-eip3009", &[Trace::Unknown], poor(), unchecked(), "it would not, and the node is silent"),
        ("exact-eip3009", &[moved()], poor(), good(), "all he had is with us: somebody handed it in before us"),
        ("exact-eip3009", &[], silent(), unchecked(), "it does not say"),
        ("exact-eip3009", &[moved()], used(), good(), "somebody handed it in before us"),
        ("exact-eip3009", &[Trace::Gone], used(), bad("invalid_exact_evm_nonce_already_used"), "for something else"),
        ("exact-eip3009", &[Trace::Unknown], used(), unknown(), "the node does not say"),
        ("exact-eip3009", &[Trace::Unused], used(), unknown(), "the node has not seen it yet"),
        ("exact-eip3009", &[], used(), unproven(), "there is no node to show it"),
        (
            "exact-solana",
            &[moved()],
            poor(),
            bad("insufficient_funds"),
            "a transaction that did not land leaves nothing to find",
        ),
        ("upto", &[moved()], used(), bad("invalid_exact_evm_nonce_already_used"), "what will be used is not known yet"),
    ];
    for (name, traces, says, want, why) in table {
        for first in [false, true] {
            let bed = Bed::with(name, traces, moved(), |settings| settings.first = first);
            *bed.says.verdict.lock().unwrap() = says.clone();
            let (shown, proof) = bed.proof().await;
            // What is taken first is claimed and followed where it is said to be used.
            let is_followed = first && name.starts_with("exact") && says.clone() == used();
            let want = if is_followed { good() } else { want.clone() };
            let told = bed.rail.complete(&shown, proof.clone(), first).await;
            assert_eq!(told, want.map(|()| proof), "{why}, first: {first}");
            assert_eq!(bed.hand_ins(), 0, "{why}: nothing moves");
        }
    }
}

#[tokio::test]
async fn no_node_is_asked_for_a_signature_that_may_be_nobodys() {
    for first in [false, true] {
        let bed = Bed::with("exact-eip3009", &[moved()], moved(), |settings| settings.first = first);
        *bed.says.verdict.lock().unwrap() = Verdict::Invalid { reason: "invalid_signature".into() };
        let (shown, proof) = bed.proof().await;
        let told = bed.rail.complete(&shown, Proof { is_proven: false, ..proof }, first).await;
        assert_eq!(told, Err(Refusal::PaymentInvalid { why: "invalid_signature".into() }), "first: {first}");
    }
}

#[tokio::test]
async fn what_is_taken_is_what_the_claim_says_in_the_payments_own_generation() {
    for (name, word, amount) in
        [("upto", "amount", 32), ("exact-eip3009", "amount", 20_000), ("v1-eip3009", "maxAmountRequired", 20_000)]
    {
        let bed = Bed::new(name, &[]);
        let claim = bed.claim(taking(amount)).await;
        assert_eq!(bed.rail.take(&claim, bed.now()).await, settled("0xfacilitator"), "{name}");
        assert_eq!(bed.rail.look(&claim, bed.now()).await, settled("0xfacilitator"), "{name}");
        let asked = bed.says.settled.lock().unwrap().clone();
        let amounts: Vec<_> = asked.iter().map(|said| said[word].as_str().unwrap().to_owned()).collect();
        assert_eq!(amounts, [amount.to_string(), amount.to_string()], "{name}");
        let other = if word == "amount" { "maxAmountRequired" } else { "amount" };
        assert!(asked.iter().all(|said| said.get(other).is_none()), "{name}");
    }
}

#[tokio::test]
async fn a_claim_without_what_it_takes_to_hand_it_in_is_never_decided() {
    let bed = Bed::new("exact-eip3009", &[]);
    let claim = Claim { resend: None, ..bed.claim(taking(20_000)).await };
    assert_eq!(bed.rail.take(&claim, bed.now()).await, Collected::Unknown);
    assert_eq!(bed.rail.look(&claim, bed.now().plus(10_000)).await, Collected::Unknown);
    let (shown, mut proof) = bed.proof().await;
    proof.recognised.resend = None;
    let told = bed.rail.complete(&shown, proof.clone(), false).await;
    assert!(matches!(told, Err(Refusal::PaymentUnchecked { .. })), "{told:?}");
    assert_eq!((bed.rail.collect(&shown, &proof).await, bed.hand_ins()), (Collected::Unknown, 0));
}

#[test]
fn when_money_is_taken_depends_on_scheme_network_and_whether_it_streams() {
    type Change = fn(&mut Settings);
    let first: Change = |settings| settings.first = true;
    let none: Change = |_| ();
    for (name, change, streams, want, why) in [
        ("exact-eip3009", none, false, None, "by its success"),
        ("exact-eip3009", none, true, Some(When::First), "a stream cannot be taken back"),
        ("exact-eip3009", first, false, Some(When::First), "as configured"),
        ("exact-solana", none, false, Some(When::First), "a transaction does not wait"),
        ("upto", first, true, Some(When::After { most: Some(Usd::ONE), exposure: Usd::ONE }), "by what it used"),
    ] {
        let want = want.unwrap_or(When::After { most: None, exposure: Usd::ONE });
        assert_eq!(Bed::with(name, &[], moved(), change).rail.when(streams), want, "{why}");
    }
}

#[test]
fn an_old_client_pays_one_of_our_recent_prices_and_what_it_pays_is_found_by_it() {
    let bed = Bed::new("v1-eip3009", &[]);
    let shown = bed.shown(&bed.ask(), bed.now());
    let known = bed.rail.recognise(&shown, &bed.ask()).unwrap().unwrap();
    assert_eq!((&known.terms, known.digest), (&bed.terms, Some(bed.ask().digest)), "the price in force, of this body");
    let dearer = Terms { amount: Atoms(20_001), ..bed.terms.clone() };
    let known = bed.rail.recognise(&shown, &Ask { terms: &dearer, ..bed.ask() }).unwrap().unwrap();
    assert_eq!(
        (known.terms.amount, known.terms.generation.as_str()),
        (Atoms(20_000), ""),
        "which rules, is to be found"
    );
}

#[tokio::test]
async fn an_offer_that_ran_out_or_was_for_another_body_is_refused() {
    let bed = Bed::new("exact-eip3009", &[]);
    let ask = bed.ask();
    let shown = bed.shown(&ask, bed.now());
    let known = bed.rail.recognise(&shown, &ask).unwrap().unwrap();
    let code = |ask: Ask<'static>, now| {
        let (bed, shown, known) = (&bed, &shown, known.clone());
        async move { bed.rail.check(shown, known, &ask, now).await.map(drop).map_err(|refusal| refusal.code()) }
    };
    let terms: &'static Terms = Box::leak(Box::new(bed.terms.clone()));
    let ask = Ask { terms, digest: BODY, description: "", lasts: 0 };
    assert_eq!(
        code(ask.clone(), bed.now().plus(OFFER_SECONDS - 1)).await.err(),
        Some("payment_invalid"),
        "too short a life"
    );
    assert_eq!(code(ask.clone(), bed.now()).await, Ok(()));
    assert_eq!(code(ask.clone(), bed.now().plus(OFFER_SECONDS)).await, Err("offer_expired"));
    assert_eq!(code(Ask { digest: [8; 32], ..ask.clone() }, bed.now()).await, Err("invalid_challenge"));
    assert_eq!(code(Ask { lasts: 60, ..ask.clone() }, bed.now()).await, Ok(()), "its time was that of the offer");
    assert_eq!(
        code(Ask { lasts: 600, ..ask }, bed.now()).await,
        Err("payment_invalid"),
        "it must last for the request"
    );
}
