//! Paying by the token, on a rail whose chain says what it was told to.

use super::*;
use crate::chain::Unreachable;
use crate::channel::{Act, ChannelId, Descriptor, Intent, OrphanPolicy, Phase, View, Voucher};
use crate::conf::SessionConf;
use crate::flow::receipt::Signet;
use crate::flow::settle::{Delivery, End, Next};
use crate::flow::{control, release, watcher};
use crate::rail::session::{Action, Outcome, PayersTx, Presented, SessionAsk, SessionReceipt, Snapshot};
use crate::refusal::Moved;
use crate::secret::Secret;

/// The paid path that takes vouchers.
pub(super) const BY_TOKEN: &str = "/v1/by-token";
pub(super) const ROUTE: (&str, &str, &str) = (
    "routes.toml",
    "[[route]]\npath = \"/v1/elsewhere\"",
    "[[route]]\npath = \"/v1/by-token\"\nsurface = \"chat\"\ntier = \"t\"\naccept = [\"tempo/session\"]\n\n[[route]]\npath = \"/v1/elsewhere\"",
);

pub(super) fn terms() -> SessionConf {
    SessionConf {
        deposit: Usd::ONE,
        min_deposit: Usd(100_000_000_000_000),
        min_voucher_delta: Usd::ZERO,
        settle_above: Usd::ONE,
        settle_every_minutes: 60,
        close_idle_hours: 24,
        orphan: OrphanPolicy::Charge,
        pause_seconds: 4,
        max_channels_per_payer: 2,
    }
}

/// A session rail: credentials are believed, the chain does what is asked of it.
pub(super) struct Purse {
    id: RailId,
    pub(super) up: AtomicBool,
    pub(super) chain: Mutex<HashMap<ChannelId, View>>,
    /// What becomes of the next transactions; then they land.
    pub(super) outcomes: Mutex<VecDeque<Outcome>>,
    pub(super) reads: AtomicUsize,
    /// A relay sends what it sponsors.
    pub(super) relays: AtomicBool,
    /// The chain answers nothing.
    pub(super) silent: AtomicBool,
    /// Sending never ends.
    pub(super) hangs: AtomicBool,
    /// What becomes of openings that an access key signed; `None`: they land.
    pub(super) keys: Mutex<Option<Outcome>>,
    /// Transactions of access keys that the accounts they name never heard of.
    pub(super) strangers: Mutex<Vec<String>>,
    /// Trials of what access keys signed never end; and how many began.
    pub(super) ponders: AtomicBool,
    pub(super) trials: AtomicUsize,
    /// How often it was asked what became of a transaction.
    pub(super) looks: AtomicUsize,
    /// So many more trials of payers' transactions fail.
    pub(super) fails: AtomicUsize,
    /// Requests to close, by their block; and how often they were asked for.
    pub(super) asked_to_close: Mutex<Vec<(u64, ChannelId)>>,
    pub(super) listens: AtomicUsize,
    /// The chain does not say how channels stand.
    pub(super) blind: AtomicBool,
    /// What happened on chain.
    pub(super) mined: Mutex<Vec<Intent>>,
    pub(super) terms: Mutex<SessionConf>,
}

impl Purse {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            id: "tempo/session".into(),
            up: AtomicBool::new(true),
            chain: Mutex::default(),
            outcomes: Mutex::default(),
            reads: AtomicUsize::new(0),
            relays: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            hangs: AtomicBool::new(false),
            keys: Mutex::default(),
            strangers: Mutex::default(),
            ponders: AtomicBool::new(false),
            trials: AtomicUsize::new(0),
            looks: AtomicUsize::new(0),
            fails: AtomicUsize::new(0),
            asked_to_close: Mutex::default(),
            listens: AtomicUsize::new(0),
            blind: AtomicBool::new(false),
            mined: Mutex::default(),
            terms: Mutex::new(terms()),
        })
    }

    pub(super) fn does(&self, channel: &Channel, intent: &Intent) -> Outcome {
        if self.silent.load(Ordering::SeqCst) {
            return Outcome::Unknown;
        }
        if let Some(verdict) = self.keys.lock().unwrap().clone().filter(|_| channel.by_access_key) {
            return verdict;
        }
        let seen = self.mined.lock().unwrap().iter().any(|known| known.tx == intent.tx);
        if seen {
            let view = self.chain.lock().unwrap()[&channel.id];
            return Outcome::Landed { mined: intent.tx.clone(), view };
        }
        if let Some(outcome) = self.outcomes.lock().unwrap().pop_front() {
            return outcome;
        }
        self.mined.lock().unwrap().push(intent.clone());
        let mut chain = self.chain.lock().unwrap();
        let view = chain.entry(channel.id.clone()).or_insert(View { block: 1, ..channel.view });
        view.block += 1;
        match &intent.act {
            Act::Open => {}
            Act::TopUp { additional } => view.deposit = Atoms(view.deposit.0 + additional.0),
            Act::Settle { amount } => view.settled = *amount,
            Act::Close { .. } => view.deposit = Atoms(0),
        }
        Outcome::Landed { mined: intent.tx.clone(), view: *view }
    }
}

impl Purse {
    fn answers(&self) -> Result<(), Unreachable> {
        if self.silent.load(Ordering::SeqCst) { Err(Unreachable { why: "silent, as the test asked" }) } else { Ok(()) }
    }
}

impl Way for Purse {
    fn id(&self) -> &RailId {
        &self.id
    }
    fn range(&self) -> (&'static str, &'static str) {
        ("tempo", "session")
    }
    fn currency(&self) -> &str {
        "0xtoken"
    }
    fn decimals(&self) -> u8 {
        6
    }
    fn facts(&self) -> (String, String) {
        (self.id.to_string(), "payee".into())
    }
    fn standing(&self) -> Result<(), String> {
        if self.up.load(Ordering::SeqCst) { Ok(()) } else { Err("the chain is silent".into()) }
    }
}

#[async_trait]
impl Session for Purse {
    fn place(&self) -> (u64, String) {
        (1, "0xescrow".into())
    }
    fn offer(&self, ask: &SessionAsk<'_>, _now: UnixSeconds) -> Result<Offer, Refusal> {
        let snapshot = ask.snapshot.map_or(String::new(), |s| format!(" required={}", s.required));
        let line = format!("amount={} deposit={}{snapshot}", ask.amount, ask.deposit);
        Ok(Offer {
            rail: self.id.clone(),
            range: ("tempo".into(), "session".into()),
            headers: vec![(http::header::WWW_AUTHENTICATE, line.parse().unwrap())],
            challenge_id: Some(crate::ids::fresh("ch")),
            entry: None,
        })
    }
    fn present(&self, shown: &Shown, _now: UnixSeconds) -> Result<Option<Presented>, Refusal> {
        let Shown::Mpp(credential) = shown else { return Ok(None) };
        if shown.action().is_none() {
            return Ok(None);
        }
        let say = |name: &str| credential.payload[name].as_str().unwrap_or("0").to_owned();
        let voucher = Voucher { amount: Atoms::parse(&say("amount")).unwrap(), signature: "0xsig".into() };
        let is_over = credential.payload["over"] == true;
        let tx = || PayersTx {
            raw: Vec::new(),
            hash: format!("0x{}", say("tx")),
            valid_until: if is_over { UnixSeconds::now() } else { UnixSeconds::now().plus(25) },
            sponsored: credential.payload["sponsored"] == true,
            by_access_key: credential.payload["by"] == "access key",
        };
        let number = |name: &str| Atoms::parse(&say(name)).unwrap();
        let action = match shown.action().unwrap() {
            "open" => Action::Open { voucher, deposit: number("deposit"), tx: tx() },
            "topUp" => Action::TopUp { additional: number("additional"), tx: tx() },
            "close" => Action::Close { voucher, agreed: credential.payload["agreed"] == true },
            _ => Action::Voucher(voucher),
        };
        Ok(Some(Presented {
            challenge_id: credential.challenge.id.clone(),
            expires: if is_over { UnixSeconds::now() } else { UnixSeconds::now().plus(1_800) },
            route: BY_TOKEN.into(),
            channel: shown.channel().unwrap(),
            descriptor: Arc::new(match credential.payload["payer"].as_str() {
                Some(payer) => Descriptor { payer: payer.to_owned(), ..descriptor() },
                None => descriptor(),
            }),
            action,
        }))
    }
    fn is_relayed(&self) -> bool {
        self.relays.load(Ordering::SeqCst)
    }
    async fn authorized(&self, tx: &PayersTx, _: UnixSeconds) -> Result<(), Refusal> {
        self.answers().map_err(|_| Refusal::ChainUnread { retry_after_seconds: 5 })?;
        match self.strangers.lock().unwrap().contains(&tx.hash) {
            true => Err(Refusal::PaymentInvalid { why: "a stranger's key".into() }),
            false => Ok(()),
        }
    }
    async fn complete(&self, presented: &Presented, now: UnixSeconds) -> Result<Intent, Refusal> {
        let (act, tx) = match &presented.action {
            Action::Open { tx, .. } => (Act::Open, tx),
            Action::TopUp { additional, tx } => (Act::TopUp { additional: *additional }, tx),
            other => panic!("{other:?} has no transaction"),
        };
        if tx.valid_until <= now {
            return Err(Refusal::PaymentInvalid { why: "it is past".into() });
        }
        self.trials.fetch_add(1, Ordering::SeqCst);
        if tx.by_access_key && self.ponders.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let left = self.fails.load(Ordering::SeqCst);
        if left > 0 {
            self.fails.store(left - 1, Ordering::SeqCst);
            return Err(Refusal::PaymentInvalid { why: "it would fail".into() });
        }
        Ok(Intent { act, tx: tx.hash.clone(), raw: "0x".into(), valid_until: now.plus(25) })
    }
    async fn submit(&self, channel: &Channel, intent: &Intent) -> Outcome {
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.does(channel, intent)
    }
    async fn look(&self, channel: &Channel, intent: &Intent) -> Outcome {
        self.looks.fetch_add(1, Ordering::SeqCst);
        self.does(channel, intent)
    }
    async fn views(&self, channels: &[ChannelId]) -> Result<Vec<View>, Unreachable> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.answers()?;
        if self.blind.load(Ordering::SeqCst) {
            return Err(Unreachable { why: "blind, as the test asked" });
        }
        let chain = self.chain.lock().unwrap();
        let none = View { block: 99, deposit: Atoms(0), settled: Atoms(0), close_requested_at: None };
        Ok(channels.iter().map(|id| chain.get(id).copied().unwrap_or(none)).collect())
    }
    async fn close_requests(&self, since: Option<u64>) -> Result<(u64, Vec<ChannelId>), Unreachable> {
        self.answers()?;
        self.listens.fetch_add(1, Ordering::SeqCst);
        let asked = self.asked_to_close.lock().unwrap();
        let head = asked.last().map_or(0, |(block, _)| *block);
        let since = since.unwrap_or(head);
        Ok((head.max(since), asked.iter().filter(|(block, _)| *block > since).map(|(_, id)| id.clone()).collect()))
    }
    async fn settle(&self, _: &Channel, voucher: &Voucher, now: UnixSeconds) -> Result<Intent, Unreachable> {
        self.answers()?;
        let act = Act::Settle { amount: voucher.amount };
        Ok(Intent { act, tx: crate::ids::fresh("0xsettle"), raw: "0x".into(), valid_until: now.plus(25) })
    }
    async fn close(
        &self,
        _: &Channel,
        voucher: &Voucher,
        capture: Atoms,
        now: UnixSeconds,
    ) -> Result<Intent, Unreachable> {
        self.answers()?;
        let act = Act::Close { amount: voucher.amount, capture };
        Ok(Intent { act, tx: crate::ids::fresh("0xclose"), raw: "0x".into(), valid_until: now.plus(25) })
    }
    fn receipt(&self, said: &SessionReceipt<'_>) -> Option<(http::HeaderName, http::HeaderValue)> {
        let line = format!("spent={} accepted={}", said.channel.spent(), said.accepted);
        Some((http::HeaderName::from_static("payment-receipt"), line.parse().unwrap()))
    }
    fn receipt_event(&self, said: &SessionReceipt<'_>) -> Bytes {
        format!("event: payment-receipt\ndata: spent={}\n\n", said.channel.spent()).into()
    }
    fn need_voucher(&self, _: &Channel, required: Atoms) -> Bytes {
        format!("event: payment-need-voucher\ndata: {required}\n\n").into()
    }
    fn snapshot(&self, snapshot: &Snapshot<'_>) -> Vec<(http::HeaderName, http::HeaderValue)> {
        vec![(http::HeaderName::from_static("payment-session"), snapshot.channel.id.0.parse().unwrap())]
    }
}

pub(super) fn descriptor() -> Descriptor {
    let word = |w: &str| format!("0x{w}");
    Descriptor {
        payer: word("payer"),
        payee: word("payee"),
        operator: word("0"),
        token: word("token"),
        salt: word("salt"),
        authorized_signer: word("0"),
        expiring_nonce_hash: word("nonce"),
    }
}

pub(super) fn session(fields: serde_json::Value) -> Shown {
    let challenge = fields["challenge"].as_str().map_or_else(|| crate::ids::fresh("ch"), str::to_owned);
    let credential = json!({
        "challenge": {"id": challenge, "realm": "gate.test", "method": "tempo", "intent": "session", "request": "e30"},
        "payload": fields,
    });
    Shown::Mpp(Box::new(serde_json::from_value(credential).unwrap()))
}

pub(super) fn opening(channel: &str, amount: u128, deposit: u128) -> Shown {
    session(
        json!({"action": "open", "channelId": channel, "amount": amount.to_string(), "deposit": deposit.to_string(), "tx": channel}),
    )
}

pub(super) fn voucher(channel: &str, amount: u128) -> Shown {
    session(json!({"action": "voucher", "channelId": channel, "amount": amount.to_string()}))
}

/// Streams of up to 1,000 tokens.
pub(super) fn bed() -> Bed {
    Bed::with(&[ROUTE, ("tiers.toml", "max_output_tokens = 100", "max_output_tokens = 1000")])
}

pub(super) fn streamed(output: u64) -> String {
    let mut body: serde_json::Value = serde_json::from_str(&ask("m", output)).unwrap();
    body["stream"] = json!(true);
    body.to_string()
}

pub(super) fn delivery(bed: &Bed, paid: Paid) -> Delivery {
    let signet = Arc::new(Signet::new(&Secret::new([7u8; 32])).unwrap());
    Delivery::begin(Arc::clone(&bed.toll), signet, paid, "req_test")
}

/// A chunk with `n` bytes of text, which are covered as as many tokens and charged as a quarter of them.
pub(super) fn words(n: usize) -> Bytes {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", "a".repeat(n)).into()
}

pub(super) fn usage(prompt: u64, completion: u64) -> Bytes {
    let total = prompt + completion;
    format!("data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":{completion},\"total_tokens\":{total}}}}}\n\ndata: [DONE]\n\n").into()
}

pub(super) fn text(out: &[Bytes]) -> String {
    String::from_utf8(out.concat()).unwrap()
}

pub(super) async fn channel(bed: &Bed, id: &str) -> Channel {
    bed.store.inner.channel(&ChannelId(id.into())).await.unwrap().unwrap()
}

/// As this gate knows it.
pub(super) async fn newest(bed: &Bed, id: &str) -> Arc<Channel> {
    bed.toll.channels.newest(&ChannelId(id.into())).await.unwrap().unwrap()
}

/// 9 tokens of prompt and 7 of answer: 79 atoms.
pub(super) const REPLY: &[u8] = br#"{"choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":7,"total_tokens":16}}"#;

/// The books hold together. Looked at in a copy, because the tasks of channels keep the file open for a while.
pub(super) async fn audited(bed: Bed) -> crate::journal::audit::Audit {
    let copy = bed._dir.path().join("copy.redb");
    std::fs::copy(bed._dir.path().join("store.redb"), &copy).unwrap();
    let audit = Embedded::audit(&copy).unwrap();
    assert!(audit.is_sound(), "{audit}");
    audit
}

#[tokio::test]
async fn a_plain_answer_holds_what_it_can_cost_and_is_charged_what_it_used() {
    let bed = bed();
    let body = ask("m", 100);
    let paid = bed.pay(BY_TOKEN, &body, &opening("0xaa", 2_000, 50_000)).await.unwrap();
    let during = newest(&bed, "0xaa").await;
    assert_eq!((during.phase.clone(), during.spent()), (Phase::Open, Atoms(0)));
    assert!(during.leased() > Atoms(1_000) && during.leased() < Atoms(1_100), "100 tokens and the prompt: {during:?}");
    let mut served = delivery(&bed, paid);
    served.whole(Bytes::from_static(REPLY)).await.unwrap();
    let after = channel(&bed, "0xaa").await;
    assert_eq!((after.spent(), after.leased()), (Atoms(9 + 70), Atoms(0)));
    let receipt = bed.store.inner.receipt(&served.receipt().id).await.unwrap().unwrap();
    assert_eq!((receipt.charged, receipt.reference.as_str(), receipt.complete), (Atoms(79), "0xaa", true));
    assert_eq!(served.headers()[0].1, "spent=79 accepted=2000");
    drop(served);
    audited(bed).await;
}

#[tokio::test]
async fn a_stream_is_let_out_as_far_as_it_is_covered_and_goes_on_when_a_voucher_comes() {
    let bed = bed();
    let body = streamed(1_000);
    let paid = bed.pay(BY_TOKEN, &body, &opening("0xaa", 450, 50_000)).await.unwrap();
    let mut stream = delivery(&bed, paid);
    let mut out = Vec::new();
    assert_eq!(stream.chunk(words(20), &mut out).await.unwrap(), Next::Go);
    stream.first_byte().await.unwrap();
    assert!(text(&out).contains("aaaa"));
    let asked = text(&out).matches("payment-need-voucher").count();
    assert_eq!(asked, 1, "more than half of the window is used: {}", text(&out));
    out.clear();
    assert_eq!(stream.chunk(words(60), &mut out).await.unwrap(), Next::Hold, "80 of 32 tokens");
    assert_eq!(text(&out), "", "nothing of it, and nobody is asked twice");
    let waiting = async {
        let mut out = Vec::new();
        loop {
            match stream.resume(&mut out).await {
                Next::Hold => {}
                next => return (next, text(&out)),
            }
        }
    };
    let paying = async {
        let plan = bed.toll.rules.plan();
        let route = plan.route(BY_TOKEN).unwrap();
        control::manage(&bed.toll, route, &voucher("0xaa", 2_000)).await.unwrap()
    };
    let ((next, sent), done) = tokio::join!(waiting, paying);
    assert_eq!(next, Next::Go);
    assert!(sent.contains(&"a".repeat(60)), "{sent}");
    assert_eq!(done[0].1, "spent=0 accepted=2000");
    let mut out = Vec::new();
    assert_eq!(stream.chunk(usage(9, 80), &mut out).await.unwrap(), Next::Go);
    assert_eq!(stream.end(End::Whole, &mut out).await, Next::Go);
    let end = text(&out);
    assert!(end.ends_with("data: [DONE]\n\nevent: payment-receipt\ndata: spent=809\n\n"), "{end}");
    assert_eq!(channel(&bed, "0xaa").await.spent(), Atoms(9 + 800));
    drop(stream);
    audited(bed).await;
}

#[tokio::test]
async fn a_stream_nobody_pays_for_ends_and_is_charged_what_left() {
    let bed = bed();
    let paid = bed.pay(BY_TOKEN, &streamed(1_000), &opening("0xaa", 450, 50_000)).await.unwrap();
    let mut stream = delivery(&bed, paid);
    let mut out = Vec::new();
    stream.chunk(words(20), &mut out).await.unwrap();
    stream.first_byte().await.unwrap();
    assert_eq!(stream.chunk(words(60), &mut out).await.unwrap(), Next::Hold);
    let mut next = Next::Hold;
    while next == Next::Hold {
        next = stream.resume(&mut out).await;
    }
    assert_eq!((next, stream.is_unpaid()), (Next::Stop, true));
    out.clear();
    stream.end(End::Unpaid, &mut out).await;
    let end = text(&out);
    assert!(!end.contains("aaaa") && end.contains("insufficient_balance"), "{end}");
    let spent = channel(&bed, "0xaa").await.spent();
    assert_eq!(end.matches(&format!("event: payment-receipt\ndata: spent={spent}\n\n")).count(), 1, "{end}");
    let receipt = stream.receipt().clone();
    assert_eq!((receipt.charged, receipt.complete, receipt.usage.unwrap().completion), (spent, false, 5));
    drop(stream);
    audited(bed).await;
}

#[tokio::test]
async fn many_streams_never_get_more_than_was_signed() {
    let bed = Arc::new(bed());
    // A start is 32 tokens and the prompt, some 410 atoms; there is money for three and a half.
    let first = bed.pay(BY_TOKEN, &streamed(1_000), &opening("0xaa", 1_430, 50_000)).await.unwrap();
    let tries: Vec<_> = (0..20)
        .map(|_| {
            let bed = Arc::clone(&bed);
            tokio::spawn(async move { bed.pay(BY_TOKEN, &streamed(1_000), &voucher("0xaa", 1_430)).await })
        })
        .collect();
    let mut taken = vec![first];
    for attempt in tries {
        match attempt.await.unwrap() {
            Ok(paid) => taken.push(paid),
            Err(stop) => {
                assert!(matches!(stop.refusal.code(), "insufficient_balance" | "rate_limit_exceeded"), "{stop:?}")
            }
        }
    }
    let now = channel(&bed, "0xaa").await;
    assert_eq!((taken.len(), now.leases.len()), (3, 3));
    assert!(now.leased() <= Atoms(1_430));
}

#[tokio::test]
async fn a_voucher_buys_again_only_on_a_challenge_that_has_bought_nothing() {
    let bed = bed();
    let body = ask("m", 10);
    drop(bed.pay(BY_TOKEN, &body, &opening("0xaa", 5_000, 50_000)).await.unwrap());
    until(|| async { channel(&bed, "0xaa").await.leases.is_empty() }).await;
    let once = session(json!({"action": "voucher", "channelId": "0xaa", "amount": "5000", "challenge": "c1"}));
    drop(bed.pay(BY_TOKEN, &body, &once).await.unwrap());
    let stop = stopped(bed.pay(BY_TOKEN, &body, &once).await);
    assert_eq!(stop.refusal.code(), "invalid_challenge", "whoever captured it gets nothing");
    let lower = voucher("0xaa", 4_999);
    assert_eq!(stopped(bed.pay(BY_TOKEN, &body, &lower).await).refusal, Refusal::VoucherLower);
    let over = voucher("0xaa", 50_001);
    assert_eq!(stopped(bed.pay(BY_TOKEN, &body, &over).await).refusal, Refusal::OverDeposit { deposit: Atoms(50_000) });
    let unknown = voucher("0xbb", 10);
    assert_eq!(stopped(bed.pay(BY_TOKEN, &body, &unknown).await).refusal, Refusal::ChannelUnknown);
}

#[tokio::test]
async fn a_failed_answer_costs_nothing_and_a_dropped_stream_what_had_left() {
    let bed = bed();
    let paid = bed.pay(BY_TOKEN, &streamed(100), &opening("0xaa", 5_000, 50_000)).await.unwrap();
    let stop = delivery(&bed, paid).fail(Refusal::UpstreamFailed { why: "test" }).await;
    assert_eq!((stop.moved, stop.claimed), (Moved::No, true));
    assert_eq!((channel(&bed, "0xaa").await.spent(), channel(&bed, "0xaa").await.leased()), (Atoms(0), Atoms(0)));

    let paid = bed.pay(BY_TOKEN, &streamed(100), &voucher("0xaa", 5_000)).await.unwrap();
    let mut stream = delivery(&bed, paid);
    stream.chunk(words(10), &mut Vec::new()).await.unwrap();
    drop(stream);
    until(|| async { channel(&bed, "0xaa").await.leases.is_empty() }).await;
    let spent = channel(&bed, "0xaa").await.spent();
    assert!(spent > Atoms(30) && spent < Atoms(50), "three tokens of ten bytes, and the prompt: {spent}");
    audited(bed).await;
}

#[tokio::test]
async fn an_opening_that_fails_opens_nothing_and_one_in_doubt_is_found_out() {
    let bed = bed();
    let body = ask("m", 10);
    bed.purse.outcomes.lock().unwrap().push_back(Outcome::Dropped { why: "reverted".into() });
    let stop = stopped(bed.pay(BY_TOKEN, &body, &opening("0xaa", 5_000, 50_000)).await);
    assert_eq!((stop.refusal.code(), stop.moved), ("payment_failed", Moved::No));
    assert_eq!(channel(&bed, "0xaa").await.phase, Phase::Failed);

    bed.purse.outcomes.lock().unwrap().push_back(Outcome::Unknown);
    let credential = opening("0xbb", 5_000, 50_000);
    let stop = stopped(bed.pay(BY_TOKEN, &body, &credential).await);
    assert_eq!((stop.refusal.code(), stop.moved, stop.claimed), ("payment_unknown", Moved::Unknown, true));
    assert!(
        bed.pay(BY_TOKEN, &body, &credential).await.is_ok(),
        "the same credential waits for the chain and is served"
    );
}

#[tokio::test]
async fn management_tops_up_and_closes_and_a_closed_channel_is_gone_for_good() {
    let bed = bed();
    let body = ask("m", 10);
    let mut served = delivery(&bed, bed.pay(BY_TOKEN, &body, &opening("0xaa", 500, 1_000)).await.unwrap());
    let reply = br#"{"choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":7,"total_tokens":16}}"#;
    served.whole(Bytes::from_static(reply)).await.unwrap();
    let plan = bed.toll.rules.plan();
    let route = plan.route(BY_TOKEN).unwrap();
    let more = session(json!({"action": "topUp", "channelId": "0xaa", "additional": "9000", "tx": "more"}));
    control::manage(&bed.toll, route, &more).await.unwrap();
    assert_eq!(channel(&bed, "0xaa").await.view.deposit, Atoms(10_000));
    let below = session(json!({"action": "close", "channelId": "0xaa", "amount": "78"}));
    assert_eq!(control::manage(&bed.toll, route, &below).await.unwrap_err().refusal, Refusal::VoucherLower);
    let close = session(json!({"action": "close", "channelId": "0xaa", "amount": "500"}));
    control::manage(&bed.toll, route, &close).await.unwrap();
    let after = channel(&bed, "0xaa").await;
    assert!(matches!(after.phase, Phase::Closed { tx: Some(_) }));
    assert_eq!((after.spent(), after.view.settled), (Atoms(79), Atoms(79)), "what was used is paid out, and no more");
    control::manage(&bed.toll, route, &close).await.unwrap();
    assert_eq!(stopped(bed.pay(BY_TOKEN, &body, &voucher("0xaa", 600)).await).refusal, Refusal::ChannelOver);
    drop(served);
    drop(plan);
    audited(bed).await;
}

#[tokio::test]
async fn a_channel_in_use_says_wait_and_a_blocked_one_says_so() {
    let bed = bed();
    let body = ask("m", 10);
    drop(bed.pay(BY_TOKEN, &body, &opening("0xaa", 5_000, 50_000)).await.unwrap());
    let plan = bed.toll.rules.plan();
    let route = plan.route(BY_TOKEN).unwrap();
    bed.purse.outcomes.lock().unwrap().extend([Outcome::Unknown, Outcome::Unknown, Outcome::Unknown]);
    let more = |tx: &str| session(json!({"action": "topUp", "channelId": "0xaa", "additional": "900", "tx": tx}));
    let stop = control::manage(&bed.toll, route, &more("one")).await.unwrap_err();
    assert_eq!(stop.refusal.code(), "payment_unknown");
    let stop = control::manage(&bed.toll, route, &more("two")).await.unwrap_err();
    assert_eq!((stop.refusal.code(), stop.refusal.status()), ("channel_busy", 409), "one is under way");

    let id = ChannelId("0xaa".into());
    let says = |deposit| {
        let mut chain = bed.purse.chain.lock().unwrap();
        let view = chain.get_mut(&id).unwrap();
        (view.block, view.deposit) = (view.block + 1, Atoms(deposit));
    };
    let till = &bed.toll.tills[0];
    says(4_999);
    watcher::round(&bed.toll, till).await;
    let blocked = || async { stopped(bed.pay(BY_TOKEN, &body, &voucher("0xaa", 6_000)).await).refusal };
    assert_eq!((blocked().await.code(), blocked().await.status()), ("channel_blocked", 403));
    assert_eq!(release::release(&bed.toll, till, &id).await.unwrap_err().refusal, Refusal::ChannelBlocked, "rightly");
    says(50_000);
    watcher::round(&bed.toll, till).await;
    assert_eq!(blocked().await.code(), "channel_blocked", "until a person has looked");
    bed.purse.up.store(false, Ordering::SeqCst);
    assert_eq!(release::release(&bed.toll, till, &id).await.unwrap_err().refusal.code(), "chain_unavailable");
    bed.purse.up.store(true, Ordering::SeqCst);
    assert_eq!(release::release(&bed.toll, till, &id).await.unwrap().phase, Phase::Open);
    bed.pay(BY_TOKEN, &body, &voucher("0xaa", 6_000)).await.unwrap();
}
