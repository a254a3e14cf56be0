//! How a channel's transactions are judged, on a chain that says what a table tells it to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::chain::fees::Tried;
use crate::chain::reserve::GasPrice;
use crate::chain::{Chain, Inclusion};
use crate::channel::sample;
use async_trait::async_trait;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;
use tempo_alloy::primitives::transaction::{KeyAuthorization, KeychainSignature, SignatureType};

const CHAIN: u64 = 42431;
const DEPOSIT: u128 = sample::DEPOSIT;
/// The block that a transaction of these tests is mined in.
const BLOCK: u64 = 40;
const LOST: Sent = Sent::Lost { why: "gone" };
const DOWN: Unreachable = Unreachable { why: "gone" };

/// Patience without end where there is something to wait for, so that a busy machine changes no verdict; else little.
fn pace(want: &str) -> Pace {
    let patience = if want == "unknown" { Duration::from_millis(50) } else { Duration::from_secs(60) };
    Pace { patience, pause: Duration::from_millis(1), nonce_doubt: Duration::from_millis(10) }
}

/// Answers in order; the last one stays.
struct Script<T>(Mutex<VecDeque<T>>);

impl<T: Clone> Script<T> {
    fn new(answers: Vec<T>) -> Self {
        Self(Mutex::new(answers.into()))
    }

    fn next(&self) -> T {
        let mut answers = self.0.lock().unwrap();
        if answers.len() > 1 { answers.pop_front().unwrap() } else { answers.front().unwrap().clone() }
    }
}

type Seen = Result<Option<Mined>, Unreachable>;

struct Scripted {
    sent: Script<Sent>,
    seen: Script<Seen>,
    states: Script<Result<Vec<View>, Unreachable>>,
    chain_id: u64,
    head: Result<u64, Unreachable>,
    sends: Mutex<usize>,
    gas: Script<Result<Option<u64>, Unreachable>>,
    tries: Mutex<usize>,
    keys: Script<Result<UnixSeconds, Unreachable>>,
    asked_for_keys: Mutex<Vec<(Address, Address)>>,
}

#[async_trait]
impl Chain for Scripted {
    async fn head(&self) -> Result<Head, Unreachable> {
        self.head.map(|time| Head { chain_id: self.chain_id, number: BLOCK, time: UnixSeconds(time) })
    }
    async fn time_of(&self, _: u64) -> Result<UnixSeconds, Unreachable> {
        Ok(UnixSeconds(0))
    }
    async fn inclusion(&self, _: B256) -> Result<Inclusion, Unreachable> {
        Err(DOWN)
    }
    async fn rehearse(&self, _: Address, _: &TempoTransaction) -> Result<Tried, Unreachable> {
        Ok(Tried::Passes)
    }
    async fn send(&self, _: &[u8]) -> Sent {
        *self.sends.lock().unwrap() += 1;
        self.sent.next()
    }
}

#[async_trait]
impl Reserve for Scripted {
    async fn states(&self, _: &[B256]) -> Result<Vec<View>, Unreachable> {
        self.states.next()
    }
    async fn close_requests(&self, _: Address, _: u64, _: u64) -> Result<Vec<B256>, Unreachable> {
        Ok(vec![id()])
    }
    async fn mined(&self, _: B256) -> Result<Option<Mined>, Unreachable> {
        self.seen.next()
    }
    async fn gas_price(&self) -> Result<GasPrice, Unreachable> {
        Ok(GasPrice(10))
    }
    async fn gas(&self, _: Address, _: &[u8]) -> Result<Option<u64>, Unreachable> {
        *self.tries.lock().unwrap() += 1;
        self.gas.next()
    }
    async fn in_turn(&self, _: Address, _: &[Call]) -> Result<Option<bool>, Unreachable> {
        Err(DOWN)
    }
    async fn key_until(&self, account: Address, key: Address) -> Result<UnixSeconds, Unreachable> {
        self.asked_for_keys.lock().unwrap().push((account, key));
        self.keys.next()
    }
}

fn scripted(sent: Vec<Sent>, seen: Vec<Seen>, states: Vec<Result<Vec<View>, Unreachable>>) -> Scripted {
    Scripted {
        sent: Script::new(sent),
        seen: Script::new(seen),
        states: Script::new(states),
        chain_id: CHAIN,
        head: Ok(0),
        sends: Mutex::new(0),
        gas: Script::new(vec![Err(DOWN)]),
        tries: Mutex::new(0),
        keys: Script::new(vec![Err(DOWN)]),
        asked_for_keys: Mutex::default(),
    }
}

fn escrow(chain: Arc<dyn Reserve>, want: &str) -> Escrow {
    let key = SettleKey::new(&Secret::new([7; 32])).unwrap();
    Escrow { pace: pace(want), ..Escrow::new(chain, key, CHAIN, Address::repeat_byte(2)) }
}

fn id() -> B256 {
    B256::repeat_byte(9)
}

/// The nonce hash of [`sample::opening`].
fn nonce_hash() -> B256 {
    B256::repeat_byte(0x22)
}

fn channel() -> Channel {
    sample::opening(&format!("{:#x}", id()), 10)
}

fn intent(act: Act) -> Intent {
    Intent { valid_until: UnixSeconds(100), ..sample::intent(act, &format!("{:#x}", B256::repeat_byte(5))) }
}

fn opened() -> Deed {
    Deed::Opened { channel: id(), nonce_hash: nonce_hash(), deposit: DEPOSIT }
}

fn done(deeds: Vec<Deed>) -> Mined {
    Mined { block: BLOCK, success: true, deeds }
}

fn at(block: u64) -> Result<Vec<View>, Unreachable> {
    Ok(vec![sample::view(block, DEPOSIT, 0)])
}

fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Landed { .. } => "landed",
        Outcome::Dropped { .. } => "dropped",
        Outcome::Unknown => "unknown",
    }
}

const TOP_UP: Act = Act::TopUp { additional: Atoms(50) };
const SETTLE: Act = Act::Settle { amount: Atoms(30) };
const CLOSE: Act = Act::Close { amount: Atoms(30), capture: Atoms(20) };

#[tokio::test]
async fn a_transaction_landed_only_when_the_reserve_itself_says_what_it_was_for() {
    let other = B256::repeat_byte(8);
    let topped = |channel| Deed::ToppedUp { channel, deposit: DEPOSIT + 50 };
    let settled = |channel, settled| Deed::Settled { channel, settled };
    let closed = |channel| Deed::Closed { channel };
    for (act, deeds, want, why) in [
        (Act::Open, vec![opened()], "landed", "opened as intended"),
        (Act::Open, vec![closed(other), settled(other, 1), opened()], "landed", "among other deeds"),
        (Act::Open, vec![], "dropped", "mined, and the reserve says nothing"),
        (
            Act::Open,
            vec![Deed::Opened { channel: other, nonce_hash: nonce_hash(), deposit: DEPOSIT }],
            "dropped",
            "another channel",
        ),
        (
            Act::Open,
            vec![Deed::Opened { channel: id(), nonce_hash: other, deposit: DEPOSIT }],
            "dropped",
            "another opening",
        ),
        (
            Act::Open,
            vec![Deed::Opened { channel: id(), nonce_hash: nonce_hash(), deposit: DEPOSIT - 1 }],
            "dropped",
            "less locked",
        ),
        (
            Act::Open,
            vec![Deed::Opened { channel: id(), nonce_hash: nonce_hash(), deposit: DEPOSIT + 1 }],
            "dropped",
            "more locked",
        ),
        (Act::Open, vec![topped(id())], "dropped", "a top-up is no opening"),
        (TOP_UP, vec![topped(id())], "landed", "topped up"),
        (TOP_UP, vec![topped(other)], "dropped", "another channel"),
        (TOP_UP, vec![opened()], "dropped", "an opening is no top-up"),
        (SETTLE, vec![settled(id(), 30)], "landed", "settled"),
        (SETTLE, vec![settled(id(), 31)], "landed", "and more is out by another one of ours"),
        (SETTLE, vec![settled(id(), 29)], "dropped", "less than the voucher"),
        (SETTLE, vec![settled(other, 30)], "dropped", "another channel"),
        (SETTLE, vec![closed(id())], "dropped", "a close is no settlement"),
        (CLOSE, vec![closed(id())], "landed", "closed"),
        (CLOSE, vec![settled(id(), 30), closed(id())], "landed", "closed with the last payment"),
        (CLOSE, vec![closed(other)], "dropped", "another channel"),
        (CLOSE, vec![settled(id(), 30)], "dropped", "a settlement is no close"),
    ] {
        for (success, want) in [(true, want), (false, "dropped")] {
            let mined = Mined { success, ..done(deeds.clone()) };
            for (states, judged) in [
                (at(BLOCK), want),
                (at(BLOCK + 1), want),
                // The node we asked does not have the block yet: its word about the channel is older than what happened.
                (at(BLOCK - 1), if want == "landed" { "unknown" } else { want }),
                (Err(DOWN), if want == "landed" { "unknown" } else { want }),
                (Ok(vec![]), if want == "landed" { "unknown" } else { want }),
            ] {
                let chain =
                    Arc::new(scripted(vec![Sent::Accepted], vec![Ok(Some(mined.clone()))], vec![states.clone()]));
                let escrow = escrow(chain.clone(), judged);
                let told = escrow.submit(&channel(), &intent(act.clone())).await;
                assert_eq!(kind(&told), judged, "{why}, success {success}, states {states:?}");
                let looked = escrow.look(&channel(), &intent(act.clone())).await;
                assert_eq!(kind(&looked), judged, "a later look: {why}, success {success}, states {states:?}");
                assert_eq!(*chain.sends.lock().unwrap(), 1, "{why}: what is mined is not sent again");
                if let Outcome::Landed { mined, view } = told {
                    let want = (format!("{:#x}", B256::repeat_byte(5)), states.unwrap()[0]);
                    assert_eq!((mined, view), want, "{why}: with the chain's word after it");
                }
            }
        }
    }
}

#[tokio::test]
async fn nothing_is_dropped_without_evidence_and_nothing_is_believed_that_was_not_seen() {
    let absent = || Ok(None);
    let landed = || Ok(Some(done(vec![opened()])));
    let reverted = || Ok(Some(Mined { success: false, ..done(vec![]) }));
    let refused = |why| Sent::Rejected(why);
    for (sent, seen, want, why) in [
        (vec![Sent::Accepted], vec![landed()], "landed", "taken and mined"),
        (vec![Sent::Accepted], vec![absent(), absent(), landed()], "landed", "mined after a while"),
        (vec![Sent::Accepted], vec![Err(DOWN), Err(DOWN), landed()], "landed", "the node was away for a moment"),
        (vec![Sent::Accepted], vec![absent()], "unknown", "taken, never seen"),
        (vec![Sent::Accepted], vec![Err(DOWN)], "unknown", "taken, and nobody to ask"),
        (vec![Sent::Accepted], vec![reverted()], "dropped", "reverted"),
        (vec![LOST], vec![absent()], "unknown", "nobody knows whether it was taken"),
        (vec![LOST], vec![Err(DOWN)], "unknown", "nothing answers"),
        (vec![LOST], vec![landed()], "landed", "its answer was lost, it was mined"),
        (vec![LOST, Sent::Accepted], vec![absent(), landed()], "landed", "handed in again"),
        (vec![LOST, refused(Rejection::Funds)], vec![absent()], "unknown", "refused after the first was lost"),
        (vec![LOST, refused(Rejection::Invalid)], vec![absent()], "unknown", "the same"),
        (vec![refused(Rejection::Funds)], vec![absent()], "dropped", "its sender cannot pay"),
        (vec![refused(Rejection::Funds)], vec![Err(DOWN)], "unknown", "refused, and the receipt was not looked at"),
        (vec![refused(Rejection::Invalid)], vec![absent()], "dropped", "no node will take it"),
        (vec![refused(Rejection::Invalid)], vec![landed()], "landed", "refused because it is mined already"),
        (vec![refused(Rejection::Nonce)], vec![absent()], "dropped", "its nonce was used by another one, long enough"),
        (vec![refused(Rejection::Nonce)], vec![absent(), landed()], "landed", "its nonce was used by this very one"),
        (vec![refused(Rejection::Nonce)], vec![Err(DOWN)], "unknown", "its nonce is used; by whom was not seen"),
    ] {
        let chain = Arc::new(scripted(sent, seen, vec![at(BLOCK)]));
        let told = escrow(chain, want).submit(&channel(), &intent(Act::Open)).await;
        assert_eq!(kind(&told), want, "{why}: {told:?}");
    }
}

#[tokio::test]
async fn a_node_that_is_behind_the_one_that_mined_it_is_asked_until_it_is_not() {
    let seen = vec![Ok(Some(done(vec![opened()])))];
    let states = vec![at(BLOCK - 2), Err(DOWN), at(BLOCK - 1), at(BLOCK)];
    let chain = Arc::new(scripted(vec![Sent::Accepted], seen, states));
    let told = escrow(chain.clone(), "landed").submit(&channel(), &intent(Act::Open)).await;
    assert_eq!(kind(&told), "landed", "the payer, who has locked his money, is not sent away: {told:?}");
    assert_eq!(*chain.sends.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_later_look_sends_again_while_it_can_land_and_gives_up_only_by_the_chains_clock() {
    let absent = || Ok(None);
    let landed = || Ok(Some(done(vec![opened()])));
    for (head, sent, seen, want, sends, why) in [
        (Ok(99), LOST, vec![landed()], "landed", 0, "it landed meanwhile"),
        (Ok(10_000), LOST, vec![landed()], "landed", 0, "asked long after"),
        (Ok(99), Sent::Accepted, vec![absent(), landed()], "landed", 1, "sent again and mined at once"),
        (Ok(99), Sent::Accepted, vec![absent()], "unknown", 1, "sent again, not seen yet"),
        (Ok(99), LOST, vec![absent()], "unknown", 1, "sent again, nobody knows"),
        (
            Ok(99),
            Sent::Rejected(Rejection::Invalid),
            vec![absent()],
            "unknown",
            1,
            "refused: perhaps because it landed",
        ),
        (Ok(100), Sent::Accepted, vec![absent()], "unknown", 0, "its time is over, perhaps in a block not seen"),
        (Ok(130), Sent::Accepted, vec![absent()], "unknown", 0, "at the edge of the doubt"),
        (Ok(131), Sent::Accepted, vec![absent()], "dropped", 0, "over for sure"),
        (Ok(131), Sent::Accepted, vec![Err(DOWN)], "unknown", 0, "no look, no verdict"),
        (Err(DOWN), Sent::Accepted, vec![absent()], "unknown", 0, "no clock, no verdict"),
        (Err(DOWN), Sent::Accepted, vec![landed()], "unknown", 0, "a node that cannot tell its head is asked again"),
    ] {
        let chain = Arc::new(Scripted { head, ..scripted(vec![sent], seen, vec![at(BLOCK)]) });
        let told = escrow(chain.clone(), want).look(&channel(), &intent(Act::Open)).await;
        assert_eq!((kind(&told), *chain.sends.lock().unwrap()), (want, sends), "{why}: {told:?}");
    }
}

#[tokio::test]
async fn nothing_that_a_node_of_another_chain_says_is_believed() {
    let gone = Ok(vec![View { block: BLOCK, deposit: Atoms(0), settled: Atoms(0), close_requested_at: None }]);
    for (chain_id, want) in [(CHAIN, "dropped"), (CHAIN + 1, "unknown")] {
        let ours = chain_id == CHAIN;
        for rejection in [Rejection::Funds, Rejection::Invalid, Rejection::Nonce] {
            let node = scripted(vec![Sent::Rejected(rejection)], vec![Ok(None)], vec![gone.clone()]);
            let told = escrow(Arc::new(Scripted { chain_id, ..node }), want).submit(&channel(), &intent(CLOSE)).await;
            assert_eq!(kind(&told), want, "chain {chain_id} refused: {rejection:?}");
        }
        let node = scripted(vec![LOST], vec![Ok(None)], vec![gone.clone()]);
        let escrow = escrow(Arc::new(Scripted { chain_id, head: Ok(10_000), ..node }), want);
        let told = escrow.look(&channel(), &intent(CLOSE)).await;
        assert_eq!(kind(&told), want, "chain {chain_id} does not have it, long after its end");
        let views = escrow.views(&[channel().id]).await;
        assert_eq!(views.is_ok_and(|views| views[0].is_gone()), ours, "chain {chain_id} knows no such channel");
        let asked = escrow.close_requests(Address::ZERO, Some(1)).await;
        assert_eq!(asked.is_ok(), ours, "chain {chain_id} has logs of its own");
    }
    for (chain_id, want) in [(CHAIN, "landed"), (CHAIN + 1, "unknown")] {
        let seen = vec![Ok(Some(done(vec![Deed::Closed { channel: id() }])))];
        let node = Scripted { chain_id, ..scripted(vec![Sent::Accepted], seen, vec![gone.clone()]) };
        let told = escrow(Arc::new(node), want).submit(&channel(), &intent(CLOSE)).await;
        assert_eq!(kind(&told), want, "its word on the channel is chain {chain_id}'s");
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_kept_as_it_is() {
    let good = intent(Act::Open);
    let broken = Channel { id: ChannelId("0xnone".to_owned()), ..channel() };
    for (channel, intent, why) in [
        (channel(), Intent { tx: "0x12".to_owned(), ..good.clone() }, "no hash"),
        (channel(), Intent { raw: "0x7".to_owned(), ..good.clone() }, "no bytes"),
        (broken, good, "no channel id"),
    ] {
        let chain = Arc::new(Scripted {
            head: Ok(10_000),
            ..scripted(vec![Sent::Rejected(Rejection::Funds)], vec![Ok(Some(done(vec![opened()])))], vec![at(BLOCK)])
        });
        let escrow = escrow(chain, "unknown");
        assert_eq!(escrow.submit(&channel, &intent).await, Outcome::Unknown, "{why}");
        assert_eq!(escrow.look(&channel, &intent).await, Outcome::Unknown, "{why}");
    }
}

#[tokio::test]
async fn a_node_that_never_answers_costs_no_more_than_our_patience() {
    struct Silent;
    #[async_trait]
    impl Chain for Silent {
        async fn head(&self) -> Result<Head, Unreachable> {
            std::future::pending().await
        }
        async fn time_of(&self, _: u64) -> Result<UnixSeconds, Unreachable> {
            std::future::pending().await
        }
        async fn inclusion(&self, _: B256) -> Result<Inclusion, Unreachable> {
            std::future::pending().await
        }
        async fn rehearse(&self, _: Address, _: &TempoTransaction) -> Result<Tried, Unreachable> {
            std::future::pending().await
        }
        async fn send(&self, _: &[u8]) -> Sent {
            std::future::pending().await
        }
    }
    #[async_trait]
    impl Reserve for Silent {
        async fn states(&self, _: &[B256]) -> Result<Vec<View>, Unreachable> {
            std::future::pending().await
        }
        async fn close_requests(&self, _: Address, _: u64, _: u64) -> Result<Vec<B256>, Unreachable> {
            std::future::pending().await
        }
        async fn mined(&self, _: B256) -> Result<Option<Mined>, Unreachable> {
            std::future::pending().await
        }
        async fn gas_price(&self) -> Result<GasPrice, Unreachable> {
            std::future::pending().await
        }
        async fn gas(&self, _: Address, _: &[u8]) -> Result<Option<u64>, Unreachable> {
            std::future::pending().await
        }
        async fn in_turn(&self, _: Address, _: &[Call]) -> Result<Option<bool>, Unreachable> {
            std::future::pending().await
        }
        async fn key_until(&self, _: Address, _: Address) -> Result<UnixSeconds, Unreachable> {
            std::future::pending().await
        }
    }
    let escrow = escrow(Arc::new(Silent), "unknown");
    let both = async {
        let (channel, intent) = (channel(), intent(Act::Open));
        (escrow.submit(&channel, &intent).await, escrow.look(&channel, &intent).await)
    };
    let got = tokio::time::timeout(Duration::from_secs(10), both).await.expect("it ends by itself");
    assert_eq!(got, (Outcome::Unknown, Outcome::Unknown));
}

/// A payer's transaction of one call.
fn payers_tx(salt: u8) -> TempoTransaction {
    TempoTransaction {
        chain_id: CHAIN,
        max_fee_per_gas: 10,
        gas_limit: 1_000_000,
        calls: vec![Call { to: TxKind::Call(RESERVE), value: U256::ZERO, input: vec![salt].into() }],
        nonce_key: TEMPO_EXPIRING_NONCE_KEY,
        valid_before: NonZeroU64::new(100),
        ..TempoTransaction::default()
    }
}

/// The same, signed.
fn payers(salt: u8) -> Vec<u8> {
    let tx = payers_tx(salt);
    let key = PrivateKeySigner::from_slice(&[8; 32]).unwrap();
    let signature = key.sign_hash_sync(&alloy::consensus::SignableTransaction::signature_hash(&tx)).unwrap();
    tx.into_signed(TempoSignature::Primitive(PrimitiveSignature::Secp256k1(signature))).encoded_2718()
}

#[tokio::test(start_paused = true)]
async fn what_would_fail_is_asked_about_once_in_five_seconds_however_often_it_is_shown() {
    let chain = Arc::new(Scripted {
        gas: Script::new(vec![Ok(None), Ok(None), Err(DOWN), Err(DOWN), Ok(Some(21_000))]),
        ..scripted(vec![LOST], vec![Ok(None)], vec![Err(DOWN)])
    });
    let escrow = escrow(chain.clone(), "unknown");
    let tries = || *chain.tries.lock().unwrap();
    let shown = |salt: u8| {
        let raw = payers(salt);
        let escrow = &escrow;
        async move { escrow.would_open(&raw).await }
    };
    let first = shown(1).await;
    assert!(matches!(first, Err(Refusal::PaymentInvalid { .. })), "{first:?}");
    for _ in 0..50 {
        assert_eq!(shown(1).await, first, "the same words");
    }
    assert_eq!(tries(), 1);
    assert!(shown(2).await.is_err());
    assert_eq!(tries(), 2, "another one is asked about");
    tokio::time::advance(Duration::from_secs(5)).await;
    for n in 3..5 {
        assert!(matches!(shown(1).await, Err(Refusal::ChainUnread { .. })));
        assert_eq!(tries(), n, "a silent node has said nothing that could be remembered");
    }
    assert_eq!(shown(1).await, Ok(()), "there is enough of the token now");
}

/// The same, signed by `key`, that is said to be `account`'s access key; with the authorization that `by` signed for it.
fn by_access_key(salt: u8, account: Address, key: &PrivateKeySigner, by: Option<&PrivateKeySigner>) -> Vec<u8> {
    let mut tx = payers_tx(salt);
    tx.key_authorization = by.map(|by| {
        let authorization = KeyAuthorization::unrestricted(CHAIN, SignatureType::Secp256k1, key.address());
        let signature = by.sign_hash_sync(&authorization.signature_hash()).unwrap();
        authorization.into_signed(PrimitiveSignature::Secp256k1(signature))
    });
    let hash = alloy::consensus::SignableTransaction::signature_hash(&tx);
    let inner = key.sign_hash_sync(&KeychainSignature::signing_hash(hash, account)).unwrap();
    let signature = KeychainSignature::new(account, PrimitiveSignature::Secp256k1(inner));
    tx.into_signed(TempoSignature::Keychain(signature)).encoded_2718()
}

#[tokio::test(start_paused = true)]
async fn an_access_key_signs_only_for_an_account_that_says_so_on_chain_or_in_the_transaction() {
    let key = |n: u8| PrivateKeySigner::from_slice(&[n; 32]).unwrap();
    let (payer, own, stranger) = (key(8), key(9), key(10));
    let now = UnixSeconds(1_000);
    let chain = |says| {
        Arc::new(Scripted { keys: Script::new(vec![says]), ..scripted(vec![LOST], vec![Ok(None)], vec![Err(DOWN)]) })
    };
    let of = payer.address();
    for (raw, says, want, asked, why) in [
        (payers(1), Err(DOWN), "yes", None, "the payer's own signature is his word"),
        (by_access_key(1, of, &own, None), Ok(UnixSeconds(1_001)), "yes", Some(own.address()), "he authorized it"),
        (by_access_key(2, of, &own, None), Ok(UnixSeconds(1_000)), "no", Some(own.address()), "it is over"),
        (by_access_key(3, of, &stranger, None), Ok(UnixSeconds(0)), "no", Some(stranger.address()), "a stranger's"),
        (by_access_key(4, of, &own, None), Err(DOWN), "unread", Some(own.address()), "a silent node says nothing"),
        (by_access_key(5, of, &own, Some(&payer)), Err(DOWN), "yes", None, "he authorizes it with this transaction"),
        (
            by_access_key(6, of, &stranger, Some(&stranger)),
            Ok(UnixSeconds(0)),
            "no",
            Some(stranger.address()),
            "a stranger authorizes himself",
        ),
        (
            by_access_key(7, of, &own, Some(&stranger)),
            Ok(UnixSeconds(u64::MAX)),
            "yes",
            Some(stranger.address()),
            "one of his keys authorizes another: whether it may, the trial says",
        ),
    ] {
        let node = chain(says);
        let escrow = escrow(node.clone(), "unknown");
        for _ in 0..3 {
            let got = match escrow.may_sign(&raw, now).await {
                Ok(()) => "yes",
                Err(Refusal::PaymentInvalid { .. }) => "no",
                Err(Refusal::ChainUnread { .. }) => "unread",
                Err(other) => panic!("{why}: {other:?}"),
            };
            assert_eq!(got, want, "{why}");
        }
        let questions = node.asked_for_keys.lock().unwrap().clone();
        assert!(questions.iter().all(|asked_of| Some(*asked_of) == asked.map(|key| (of, key))), "{why}: {questions:?}");
        if want == "no" {
            assert_eq!(questions.len(), 1, "{why}: the chain is not asked again for five seconds");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_failures_are_remembered_than_there_is_room_for() {
    let failed = Failed::default();
    let tx = |n: usize| keccak256(n.to_be_bytes());
    let said = || Refusal::PaymentInvalid { why: "no".to_owned() };
    for n in 0..MOST_FAILED + 10 {
        failed.remember(tx(n), said());
    }
    assert_eq!(failed.0.lock().unwrap().len(), MOST_FAILED);
    assert_eq!((failed.lately(&tx(0)), failed.lately(&tx(MOST_FAILED + 9))), (Some(said()), None));
    tokio::time::advance(FAILED).await;
    assert_eq!(failed.lately(&tx(0)), None, "it may be tried again");
    failed.remember(tx(MOST_FAILED + 9), said());
    assert_eq!(failed.0.lock().unwrap().len(), 1, "what is over makes room");
}

#[tokio::test]
async fn a_look_without_bytes_sends_nothing() {
    let chain = Arc::new(Scripted { head: Ok(50), ..scripted(vec![LOST], vec![Ok(None)], vec![Err(DOWN)]) });
    let escrow = escrow(chain.clone(), "unknown");
    for (raw, sends) in [("0x", 0), ("0x76", 1)] {
        let intent = Intent { raw: raw.to_owned(), ..intent(Act::TopUp { additional: Atoms(5) }) };
        assert_eq!(escrow.look(&channel(), &intent).await, Outcome::Unknown);
        assert_eq!(*chain.sends.lock().unwrap(), sends, "{raw:?}");
    }
}
