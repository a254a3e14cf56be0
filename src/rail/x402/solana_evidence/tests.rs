//! The whole look, against a node that says what a test tells it to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::money::Atoms;
use crate::network::from_base58;
use crate::rail::x402::node::Node;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const DEVNET: &str = "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1";
const GENESIS: &str = "EtWTRABZaYq6iMfeYKouRu166VU2xqa1wcaWoxPkrZBG";
const MINT: &str = "4zMMC9srt5Ri5X14GAgXhaHii3GnPAEERYPJgZJDncDU";
const US: &str = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v";
const PROGRAMS: [&str; 3] = [
    "ComputeBudget111111111111111111111111111111",
    "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA",
    "MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr",
];
const PAY: &str = "the-payment";
const OTHER: &str = "another";

/// A version 0 transaction of the usual layout: keys 0 fee payer, 1 payer, 2 source, 3 mint, 4 destination, 5–7 programs.
fn transaction(memo: &str, fee_payers_signature: u8, first: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2];
    bytes.extend([fee_payers_signature; 64]);
    bytes.extend([0x22; 64]);
    bytes.extend([0x80, 2, 1, 4, 8]);
    for key in 1..=5_u8 {
        bytes.extend([key; 32]);
    }
    for program in PROGRAMS {
        bytes.extend(from_base58::<32>(program).unwrap());
    }
    bytes.extend([0xbb; 32]);
    bytes.push(4);
    let mut instruction = |program: u8, accounts: &[u8], data: &[u8]| {
        bytes.extend([program, accounts.len() as u8]);
        bytes.extend(accounts);
        bytes.push(data.len() as u8);
        bytes.extend(data);
    };
    instruction(5, &[], first);
    instruction(5, &[], &[3, 1, 0, 0, 0, 0, 0, 0, 0]);
    instruction(6, &[2, 3, 4, 1], &[12, 0x10, 0x27, 0, 0, 0, 0, 0, 0, 6]);
    instruction(7, &[], memo.as_bytes());
    bytes.push(0);
    bytes
}

const LIMIT: &[u8] = &[2, 0x40, 0x0d, 3, 0];

fn payment() -> Signed {
    Signed::Solana(transaction("memo-1", 0, LIMIT))
}

fn movement<'a>() -> Movement<'a> {
    Movement { token: MINT, to: US, amount: Atoms(10_000), since: UnixSeconds(1_000_000) }
}

fn landed(transaction: Vec<u8>, before: u64, after: u64) -> Landed {
    let held = |amount| vec![Balance { mint: MINT.into(), owner: US.into(), amount }];
    Landed { transaction, failed: false, before: held(before), after: held(after) }
}

#[test]
fn only_the_payers_own_message_that_brought_us_exactly_the_amount_is_a_payment() {
    use Meaning::{Moved, Otherwise, Stranger};
    let ours = || transaction("memo-1", 9, LIMIT);
    let bytes = ours();
    let sought = message(&bytes).unwrap();
    let mut strange = landed(ours(), 0, 10_000);
    strange.after[0].mint = US.into();
    let mut theirs = landed(ours(), 0, 10_000);
    theirs.after[0].owner = MINT.into();
    for (landed, want, why) in [
        (landed(ours(), 5, 10_005), Moved, "as agreed, with the fee payer's signature added"),
        (Landed { before: vec![], ..landed(ours(), 0, 10_000) }, Moved, "our account was made by it"),
        (landed(transaction("memo-2", 9, LIMIT), 5, 10_005), Stranger, "another payment of the same payer"),
        (Landed { transaction: vec![], ..landed(ours(), 5, 10_005) }, Stranger, "no transaction"),
        (Landed { failed: true, ..landed(ours(), 5, 10_005) }, Otherwise, "failed"),
        (landed(ours(), 5, 10_004), Otherwise, "one atom short"),
        (landed(ours(), 5, 10_006), Otherwise, "one atom over"),
        (landed(ours(), 10_005, 5), Otherwise, "the other way round"),
        (landed(ours(), 5, 5), Otherwise, "nothing moved"),
        (strange, Otherwise, "another token"),
        (theirs, Otherwise, "to somebody else"),
    ] {
        assert_eq!(judge(sought, &movement(), &landed), want, "{why}");
    }
    let nothing = Movement { amount: Atoms(0), ..movement() };
    assert_eq!(judge(sought, &nothing, &landed(ours(), 5, 5)), Otherwise, "nothing cannot be seen to move");
}

#[test]
fn the_payment_with_the_right_memo_is_looked_at_first_and_others_not_at_all() {
    let entry = |name: &str, memo: Option<&str>, time: Option<u64>| {
        let (signature, memo) = (name.to_owned(), memo.map(str::to_owned));
        Listed { signature, memo, time }
    };
    let mine = Some("[6] memo-1");
    let history = [
        entry("late", mine, Some(9_000)),
        entry("a", Some("[6] memo-9"), Some(1_100)),
        entry("b", None, None),
        entry("c", mine, Some(1_100)),
        entry("early", None, Some(999)),
    ];
    for (memos, want, why) in [
        (vec!["memo-1"], vec!["c", "b"], "its own, then the ones without"),
        (vec!["memo-2"], vec!["b"], "only those the node does not tell"),
        (vec![], vec!["b"], "a payment without a memo is not one with"),
        (vec!["memo-1", "x"], vec!["b"], "all of its memos"),
    ] {
        assert_eq!(candidates(&history, &memos, UnixSeconds(1_000)), want, "{why}");
    }
}

/// A network as one node shows it.
#[derive(Clone)]
struct World {
    genesis: &'static str,
    age: u64,
    /// Commitments at which the blockhash holds.
    holds: Vec<&'static str>,
    history: Vec<(String, Option<&'static str>)>,
    /// When the blocks of the history were made, where the node tells: the payment's, of what came after it, of what came before.
    times: Option<(u64, u64, u64)>,
    landed: Vec<(&'static str, Vec<u8>, Value)>,
    broken: &'static str,
}

impl World {
    fn new() -> Self {
        let holds = vec!["processed", "finalized"];
        Self { genesis: GENESIS, age: 1, holds, history: vec![], times: None, landed: vec![], broken: "none" }
    }

    fn paid() -> Self {
        let history = vec![(OTHER.into(), Some("[6] memo-9")), (PAY.into(), Some("[6] memo-1"))];
        Self { history, landed: vec![(PAY, transaction("memo-1", 9, LIMIT), Value::Null)], ..Self::new() }
    }

    fn answer(&self, method: &str, params: &Value) -> Option<Value> {
        if method == self.broken {
            return None;
        }
        Some(match method {
            "getGenesisHash" => json!(self.genesis),
            "getSlot" => json!(77),
            "getBlockTime" => json!(UnixSeconds::now().0 - self.age),
            "isBlockhashValid" => {
                assert_eq!(params[0], json!(base58(&[0xbb; 32])));
                json!({"context": {"slot": 1}, "value": self.holds.iter().any(|c| params[1]["commitment"] == *c)})
            }
            "getSignaturesForAddress" => {
                assert_eq!(params[0], json!(base58(&[3; 32])), "the account the money comes from");
                assert_eq!(params[1]["commitment"], "confirmed");
                let before = params[1]["before"].as_str();
                let start = before.map_or(0, |b| self.history.iter().position(|(s, _)| s == b).unwrap() + 1);
                let page = self.history[start..].iter().take(PAGE);
                let paid = self.history.iter().position(|(s, _)| s == PAY).unwrap_or(0);
                let time = |at: usize| {
                    self.times.map(|(of, after, before)| match at.cmp(&paid) {
                        std::cmp::Ordering::Less => after,
                        std::cmp::Ordering::Equal => of,
                        std::cmp::Ordering::Greater => before,
                    })
                };
                let page = page.enumerate().map(|(n, (s, m))| {
                    json!({"signature": s, "memo": m, "err": null, "slot": 1, "blockTime": time(start + n)})
                });
                json!(page.collect::<Vec<_>>())
            }
            "getTransaction" => {
                assert_eq!(params[1]["maxSupportedTransactionVersion"], 0);
                let Some((_, bytes, err)) = self.landed.iter().find(|(s, ..)| params[0] == *s) else {
                    return Some(Value::Null);
                };
                let held = |amount: &str| json!([{"accountIndex": 4, "mint": MINT, "owner": US, "uiTokenAmount": {"amount": amount, "decimals": 6}}]);
                json!({"slot": 1, "transaction": [STANDARD.encode(bytes), "base64"],
                       "meta": {"err": err, "preTokenBalances": held("7"), "postTokenBalances": held("10007")}})
            }
            other => panic!("{other} is not asked"),
        })
    }

    async fn evidence(self, doubt: Duration) -> (Node, SolanaEvidence) {
        let node = Node::start(move |method, params| self.answer(method, params)).await;
        let look = Look { doubt, ..Look::default() };
        let evidence = SolanaEvidence::new(&node.url(), &Network::parse(DEVNET).unwrap(), look).unwrap();
        (node, evidence)
    }
}

fn moved() -> Trace {
    Trace::Moved { transaction: PAY.into() }
}

#[tokio::test]
async fn a_message_is_found_whoever_paid_its_fee_and_silence_is_unknown() {
    let failed = json!({"InstructionError": [2, "Custom"]});
    let crowd = |count: usize, memo| {
        let mut history: Vec<(String, Option<&'static str>)> = (0..count).map(|n| (format!("s{n}"), memo)).collect();
        history.push((PAY.into(), Some("[6] memo-1")));
        World { history, ..World::paid() }
    };
    for (world, want, why) in [
        (World::new(), Trace::Unused, "nobody used it"),
        (World { age: 90, ..World::new() }, Trace::Unknown, "a node that lags does not know"),
        (
            World { genesis: "5eykt4UsFv8P8NJdTREpY1vzqKqZKvdpKuc147dw2N9d", ..World::paid() },
            Trace::Unknown,
            "a node of another network",
        ),
        (World { holds: vec![], ..World::new() }, Trace::Gone, "over, and never used"),
        (World { holds: vec![], age: 90, ..World::new() }, Trace::Unknown, "over, says a node that lags"),
        (World { holds: vec!["finalized"], ..World::new() }, Trace::Unknown, "over, not yet for good"),
        (World { holds: vec!["processed"], ..World::new() }, Trace::Unused, "too young for the finalized blocks"),
        (World::paid(), moved(), "used, and paid"),
        (World { holds: vec![], age: 900, ..World::paid() }, moved(), "paid, however old the news"),
        (
            World { landed: vec![(PAY, transaction("memo-1", 9, LIMIT), failed)], ..World::paid() },
            Trace::Gone,
            "used, and failed",
        ),
        (World { landed: vec![], ..World::paid() }, Trace::Unknown, "listed, and not shown"),
        (
            World { landed: vec![(PAY, transaction("memo-2", 9, LIMIT), Value::Null)], ..World::paid() },
            Trace::Unused,
            "another message under its memo",
        ),
        (crowd(2_500, Some("[6] memo-9")), moved(), "among thousands with other memos"),
        (World { landed: vec![], ..crowd(9, None) }, Trace::Unknown, "too many to look at"),
        (World { broken: "getTransaction", ..World::paid() }, Trace::Unknown, "no transaction"),
        (World { broken: "getSignaturesForAddress", ..World::paid() }, Trace::Unknown, "no history"),
        (World { broken: "isBlockhashValid", ..World::new() }, Trace::Unknown, "no word on the blockhash"),
        (World { broken: "getBlockTime", ..World::new() }, Trace::Unknown, "no time"),
    ] {
        let (_node, evidence) = world.evidence(Duration::ZERO).await;
        assert_eq!(evidence.trace(&payment(), &movement()).await, want, "{why}");
    }
}

#[tokio::test]
async fn a_message_is_looked_for_in_its_own_time_and_not_among_what_its_payer_did_later() {
    let since = movement().since.0;
    let crowd = |after: usize, before: usize, landed: bool| {
        let mut history: Vec<(String, Option<&'static str>)> = (0..after).map(|n| (format!("s{n}"), None)).collect();
        if landed {
            history.push((PAY.into(), None));
        }
        history.extend((0..before).map(|n| (format!("o{n}"), None)));
        World { history, times: Some((since + 1_900, since + 20_000, since - 100)), ..World::paid() }
    };
    for (world, pages, want, why) in [
        (crowd(5_500, 5_500, true), 6, moved(), "thousands came after it, and the node tells no memo"),
        (crowd(0, 20_000, true), 1, moved(), "what is older is not asked for"),
        (
            World { times: Some((0, since - 1, since - 1)), ..crowd(0, 20_000, false) },
            1,
            Trace::Unused,
            "nobody used it",
        ),
        (crowd(20_000, 0, true), 10, Trace::Unknown, "more came after it than anybody looks through"),
    ] {
        let (node, evidence) = world.evidence(Duration::ZERO).await;
        assert_eq!(evidence.trace(&payment(), &movement()).await, want, "{why}");
        assert_eq!(node.calls("getSignaturesForAddress"), pages, "{why}");
    }
}

#[tokio::test]
async fn one_look_is_not_enough_to_bury_a_message() {
    let world = World { holds: vec![], ..World::new() };
    let (_node, evidence) = world.evidence(Duration::from_secs(300)).await;
    for _ in 0..2 {
        assert_eq!(evidence.trace(&payment(), &movement()).await, Trace::Unknown, "this node may not have heard of it");
    }
    let seen = Instant::now() - Duration::from_secs(301);
    evidence.doubted.lock().unwrap().values_mut().for_each(|since| *since = seen);
    assert_eq!(evidence.trace(&payment(), &movement()).await, Trace::Gone, "the same, long after");
}

#[tokio::test]
async fn a_transaction_that_need_not_grow_old_is_never_held_to_be_over() {
    let stored_nonce = Signed::Solana(transaction("memo-1", 0, &[4, 0, 0, 0]));
    let (node, evidence) = World { holds: vec![], ..World::new() }.evidence(Duration::ZERO).await;
    assert_eq!(evidence.trace(&stored_nonce, &movement()).await, Trace::Unknown);
    assert_eq!(node.calls("isBlockhashValid"), 0);
}

#[tokio::test]
async fn a_named_transaction_shows_the_movement_or_that_it_does_not() {
    for (name, world, signed, want, why) in [
        (PAY, World::paid(), payment(), moved(), "it does"),
        (
            PAY,
            World::paid(),
            Signed::Solana(transaction("memo-2", 0, LIMIT)),
            Trace::Gone,
            "another payment of the same payer",
        ),
        (OTHER, World::paid(), payment(), Trace::Unknown, "not there, or not yet"),
        (PAY, World { genesis: "x", ..World::paid() }, payment(), Trace::Unknown, "a node of another network"),
        (PAY, World { broken: "getTransaction", ..World::paid() }, payment(), Trace::Unknown, "silence"),
        (PAY, World::paid(), Signed::Solana(vec![]), Trace::Unknown, "nothing was signed"),
    ] {
        let (_node, evidence) = world.evidence(Duration::ZERO).await;
        assert_eq!(evidence.shows(name, &signed, &movement()).await, want, "{why}");
    }
}

#[test]
fn only_a_solana_network_can_be_looked_at_and_the_url_is_never_repeated() {
    let (solana, evm) = (Network::parse(DEVNET).unwrap(), Network::parse("eip155:1").unwrap());
    assert!(SolanaEvidence::new(&Secret::new("http://127.0.0.1:1"), &evm, Look::default()).is_err());
    let error = SolanaEvidence::new(&Secret::new("ftp://canary"), &solana, Look::default()).unwrap_err();
    assert!(!error.contains("canary"), "{error}");
}
