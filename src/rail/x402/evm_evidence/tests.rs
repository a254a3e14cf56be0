//! The whole look, against a node that says what a test tells it to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::abi::{ExactProxy, ExactWitness, PermitTransferFrom, TokenPermissions};
use super::*;
use crate::money::Atoms;
use crate::rail::x402::node::Node;
use crate::rail::x402::signed::EXACT_PROXY;
use serde_json::{Value, json};

const TOKEN: &str = "0x036CbD53842c5426634e7929541eC2318f3dCF7e";
const US: &str = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";
const PAYER: Address = Address::repeat_byte(3);
const NONCE: B256 = B256::repeat_byte(7);
const TX: B256 = B256::repeat_byte(0x11);
const TX2: B256 = B256::repeat_byte(0x22);

fn movement<'a>() -> Movement<'a> {
    Movement { token: TOKEN, to: US, amount: Atoms(10_000), since: UnixSeconds(0) }
}

fn us() -> Address {
    US.parse().unwrap()
}

fn eip3009() -> Signed {
    Signed::Eip3009(Eip3009 {
        from: PAYER,
        to: us(),
        value: Atoms(10_000),
        valid_after: 0,
        valid_before: UnixSeconds::now().0 + 300,
        nonce: NONCE,
        signature: Bytes::new(),
    })
}

/// Bit 5 of word 3.
const PERMIT_NONCE: u64 = 3 * 256 + 5;

fn permit2() -> Signed {
    Signed::Permit2(Permit2 {
        from: PAYER,
        token: TOKEN.parse().unwrap(),
        amount: Atoms(10_000),
        spender: EXACT_PROXY,
        nonce: U256::from(PERMIT_NONCE),
        deadline: UnixSeconds::now().0 + 300,
        to: us(),
        facilitator: None,
        valid_after: 0,
        signature: Bytes::new(),
    })
}

fn log(address: &str, data: &alloy::primitives::LogData, tx: B256, block: u64) -> Value {
    json!({"address": address, "topics": data.topics(), "data": data.data, "transactionHash": tx,
           "blockNumber": format!("{block:#x}"), "removed": false, "logIndex": "0x1"})
}

fn used(tx: B256, block: u64) -> Value {
    log(TOKEN, &abi::AuthorizationUsed { authorizer: PAYER, nonce: NONCE }.encode_log_data(), tx, block)
}

fn cancelled(block: u64) -> Value {
    log(TOKEN, &abi::AuthorizationCanceled { authorizer: PAYER, nonce: NONCE }.encode_log_data(), TX, block)
}

fn paid(tx: B256, amount: u64, block: u64) -> Value {
    log(TOKEN, &abi::Transfer { from: PAYER, to: us(), value: U256::from(amount) }.encode_log_data(), tx, block)
}

fn taken_back(bit: u64, block: u64) -> Value {
    let (word, mask) = (U256::from(3), U256::from(1) << bit);
    let data = abi::UnorderedNonceInvalidation { owner: PAYER, word, mask }.encode_log_data();
    log(&PERMIT2.to_string(), &data, TX2, block)
}

fn proxy_call(tx: B256, nonce: u64, amount: u64) -> (B256, Value) {
    let permitted = TokenPermissions { token: TOKEN.parse().unwrap(), amount: U256::from(amount) };
    let permit = PermitTransferFrom { permitted, nonce: U256::from(nonce), deadline: U256::from(100) };
    let witness = ExactWitness { to: us(), validAfter: U256::ZERO };
    let input = ExactProxy::settleCall { permit, owner: PAYER, witness, signature: Bytes::new() }.abi_encode();
    (tx, json!({"hash": tx, "to": EXACT_PROXY, "input": Bytes::from(input), "from": PAYER}))
}

/// A chain as one node shows it.
#[derive(Clone)]
struct World {
    chain_id: u64,
    height: u64,
    /// Milliseconds from block to block: of the last 40,000, and before.
    pace: (u64, u64),
    /// Age of the newest block in seconds.
    age: u64,
    /// What the nonce's state is; from which block on.
    state: U256,
    since: u64,
    /// Everything ever logged.
    logs: Vec<Value>,
    calls: Vec<(B256, Value)>,
    /// Methods that fail.
    broken: &'static str,
    status: &'static str,
}

impl World {
    fn new() -> Self {
        Self {
            chain_id: 84_532,
            height: 10_000,
            pace: (2_000, 2_000),
            age: 0,
            state: U256::ZERO,
            since: 0,
            logs: Vec::new(),
            calls: Vec::new(),
            broken: "none",
            status: "0x1",
        }
    }

    fn time(&self, block: u64) -> u64 {
        let back = self.height.checked_sub(block).expect("a block that is there");
        let late = back.min(40_000);
        UnixSeconds::now().0 - self.age - (late * self.pace.0 + (back - late) * self.pace.1) / 1_000
    }

    fn answer(&self, method: &str, params: &Value) -> Option<Value> {
        let number = |v: &Value| u64::from_str_radix(v.as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
        if method == self.broken {
            return None;
        }
        let of = |tx: &Value| self.logs.iter().filter(|l| l["transactionHash"] == *tx).cloned().collect::<Vec<_>>();
        Some(match method {
            "eth_chainId" => json!(format!("{:#x}", self.chain_id)),
            "eth_getBlockByNumber" => {
                let block = if params[0] == "latest" { self.height } else { number(&params[0]) };
                json!({"number": format!("{block:#x}"), "timestamp": format!("{:#x}", self.time(block)), "hash": TX})
            }
            "eth_call" => {
                let at = number(&params[1]);
                assert!(at <= self.height, "asked of a block that is not there");
                json!(B256::from(if at >= self.since { self.state } else { U256::ZERO }))
            }
            "eth_getLogs" => {
                let (wanted, any) = (&params[0], Vec::new());
                let (first, last) = (number(&wanted["fromBlock"]), number(&wanted["toBlock"]));
                assert!(last - first < 2_000, "no more than a node gives at once");
                let hits = |log: &&Value| {
                    let topics = wanted["topics"].as_array().unwrap();
                    let block = number(&log["blockNumber"]);
                    log["address"].as_str().unwrap().eq_ignore_ascii_case(wanted["address"].as_str().unwrap())
                        && (first..=last).contains(&block)
                        && topics
                            .iter()
                            .enumerate()
                            .all(|(at, t)| t.as_array().unwrap_or(&any).contains(&log["topics"][at]))
                };
                json!(self.logs.iter().filter(hits).collect::<Vec<_>>())
            }
            "eth_getTransactionReceipt" => {
                let logs = of(&params[0]);
                let block = logs.first().map_or(Value::Null, |l| l["blockNumber"].clone());
                if logs.is_empty() {
                    return Some(Value::Null);
                }
                json!({"transactionHash": params[0], "status": self.status, "blockNumber": block, "logs": logs})
            }
            "eth_getTransactionByHash" => {
                self.calls.iter().find(|(tx, _)| json!(tx) == params[0]).map_or(Value::Null, |(_, call)| call.clone())
            }
            other => panic!("{other} is not asked"),
        })
    }

    async fn evidence(self, look: Look) -> (Node, EvmEvidence) {
        let node = Node::start(move |method, params| self.answer(method, params)).await;
        let network = Network::parse("eip155:84532").unwrap();
        let evidence = EvmEvidence::new(&node.url(), &network, look).unwrap();
        (node, evidence)
    }

    async fn trace(self, signed: &Signed, look: Look) -> Trace {
        let (_node, evidence) = self.evidence(look).await;
        evidence.trace(signed, &movement()).await
    }
}

fn moved() -> Trace {
    Trace::Moved { transaction: TX.to_string() }
}

#[tokio::test]
async fn an_authorization_is_found_whoever_handed_it_in_and_silence_is_unknown() {
    let now = World::new;
    let one = U256::from(1);
    let spent = |logs: Vec<Value>| World { state: one, logs, ..World::new() };
    for (world, want, why) in [
        (now(), Trace::Unused, "nobody used it"),
        (World { age: 120, ..now() }, Trace::Unknown, "a node that lags does not know"),
        (World { age: 30, ..now() }, Trace::Unused, "a node that is young enough does"),
        (World { chain_id: 8453, ..now() }, Trace::Unknown, "a node of another chain"),
        (World { broken: "eth_call", ..now() }, Trace::Unknown, "no state"),
        (World { broken: "eth_chainId", ..now() }, Trace::Unknown, "no chain"),
        (spent(vec![used(TX, 9_990), paid(TX, 10_000, 9_990)]), moved(), "used, and paid"),
        (spent(vec![used(TX, 2_500), paid(TX, 10_000, 2_500)]), moved(), "long ago"),
        (spent(vec![used(TX, 9_990), paid(TX, 9_999, 9_990)]), Trace::Gone, "used for another amount"),
        (spent(vec![cancelled(9_990)]), Trace::Gone, "cancelled"),
        (
            World { state: U256::from(2), ..spent(vec![cancelled(9_990)]) },
            Trace::Gone,
            "cancelled, of a token that counts so",
        ),
        (spent(vec![]), Trace::Unknown, "used before what we can search"),
        (
            World { age: 600, ..spent(vec![used(TX, 9_990), paid(TX, 10_000, 9_990)]) },
            moved(),
            "what happened stays, however old the news",
        ),
        (World { broken: "eth_getLogs", ..spent(vec![used(TX, 9_990)]) }, Trace::Unknown, "no logs"),
        (World { broken: "eth_getTransactionReceipt", ..spent(vec![used(TX, 9_990)]) }, Trace::Unknown, "no receipt"),
    ] {
        assert_eq!(world.trace(&eip3009(), Look::default()).await, want, "{why}");
    }
}

#[tokio::test]
async fn what_nobody_used_in_its_time_is_over_by_the_chains_own_clock() {
    let Signed::Eip3009(mut signed) = eip3009() else { panic!() };
    for (past, want, why) in [(20, Trace::Unused, "not for sure yet"), (60, Trace::Gone, "over for good")] {
        signed.valid_before = UnixSeconds::now().0 - past;
        assert_eq!(World::new().trace(&Signed::Eip3009(signed.clone()), Look::default()).await, want, "{why}");
    }
}

#[tokio::test]
async fn a_payment_counts_when_it_is_as_deep_as_the_operator_wants() {
    let world = World { state: U256::from(1), logs: vec![used(TX, 9_990), paid(TX, 10_000, 9_990)], ..World::new() };
    for (depth, want) in [(1, moved()), (11, moved()), (12, Trace::Unknown)] {
        let look = Look { depth, ..Look::default() };
        assert_eq!(world.clone().trace(&eip3009(), look).await, want, "{depth} blocks");
        let (_node, evidence) = world.clone().evidence(look).await;
        assert_eq!(evidence.shows(&TX.to_string(), &eip3009(), &movement()).await, want, "{depth} blocks, named");
    }
    let cancelled = World { state: U256::from(1), logs: vec![cancelled(9_990)], ..World::new() };
    assert_eq!(
        cancelled.trace(&eip3009(), Look { depth: 12, ..Look::default() }).await,
        Trace::Unknown,
        "a shallow cancel"
    );
}

#[tokio::test]
async fn a_permit_is_found_among_other_payments_of_the_same_payer() {
    let set = U256::from(1) << 5;
    let ours = || proxy_call(TX, PERMIT_NONCE, 10_000);
    let spent = |logs: Vec<Value>, calls| World { state: set, since: 9_000, logs, calls, ..World::new() };
    for (world, want, why) in [
        (World::new(), Trace::Unused, "nobody used it"),
        (World { state: U256::MAX ^ set, ..World::new() }, Trace::Unused, "its neighbours are used"),
        (World { age: 120, ..World::new() }, Trace::Unknown, "a node that lags"),
        (spent(vec![paid(TX, 10_000, 9_990)], vec![ours()]), moved(), "used, and paid"),
        (
            spent(
                vec![paid(TX, 10_000, 9_000), paid(TX2, 10_000, 9_990), paid(B256::repeat_byte(0x33), 5, 9_995)],
                vec![ours(), proxy_call(TX2, 78, 10_000), proxy_call(B256::repeat_byte(0x33), 79, 5)],
            ),
            moved(),
            "among others at the same price",
        ),
        (spent(vec![paid(TX2, 10_000, 9_990)], vec![proxy_call(TX2, 78, 10_000)]), Trace::Unknown, "only others"),
        (
            spent(vec![paid(TX, 9_999, 9_990)], vec![proxy_call(TX, PERMIT_NONCE, 9_999)]),
            Trace::Gone,
            "another amount taken",
        ),
        (spent(vec![paid(TX, 10_000, 9_990)], vec![]), Trace::Unknown, "the node does not show the call"),
        (spent(vec![], vec![]), Trace::Unknown, "used, who knows for what"),
        (spent(vec![taken_back(5, 9_000)], vec![]), Trace::Gone, "taken back by the payer"),
        (spent(vec![taken_back(6, 9_000)], vec![]), Trace::Unknown, "another one taken back"),
        (
            World { since: 8_000, ..spent(vec![taken_back(5, 9_000)], vec![]) },
            Trace::Unknown,
            "taken back after it was used",
        ),
        (
            spent(vec![taken_back(5, 9_000), paid(TX, 10_000, 9_000)], vec![]),
            Trace::Unknown,
            "taken back, and a payment beside it that cannot be read",
        ),
        (
            World {
                since: 9_990,
                ..spent((0..9).map(|n| paid(B256::repeat_byte(0x40 + n), 10_000, 9_990)).collect(), vec![])
            },
            Trace::Unknown,
            "too many to look at in one block",
        ),
        (
            World {
                since: 9_990,
                ..spent(
                    (0..30)
                        .map(|n| paid(B256::repeat_byte(0x40 + n), 10_000, 9_970 + u64::from(n)))
                        .chain([paid(TX, 10_000, 9_990)])
                        .collect(),
                    (0..30)
                        .map(|n| proxy_call(B256::repeat_byte(0x40 + n), 900 + u64::from(n), 10_000))
                        .chain([ours()])
                        .collect(),
                )
            },
            moved(),
            "one of many at the same price",
        ),
    ] {
        assert_eq!(world.trace(&permit2(), Look::default()).await, want, "{why}");
    }
}

#[tokio::test]
async fn a_named_transaction_shows_the_movement_or_that_it_does_not() {
    let pays = World { logs: vec![used(TX, 9_990), paid(TX, 10_000, 9_990)], ..World::new() };
    let mixed = |of: Movement<'static>, tx: String, world: World, signed: Signed| async move {
        let (_node, evidence) = world.evidence(Look::default()).await;
        evidence.shows(&tx, &signed, &of).await
    };
    let tx = || TX.to_string();
    for (of, tx, world, signed, want, why) in [
        (movement(), tx(), pays.clone(), eip3009(), moved(), "it does"),
        (Movement { amount: Atoms(9_999), ..movement() }, tx(), pays.clone(), eip3009(), Trace::Gone, "another amount"),
        (
            Movement { to: "0x0303030303030303030303030303030303030303", ..movement() },
            tx(),
            pays.clone(),
            eip3009(),
            Trace::Gone,
            "another payee",
        ),
        (Movement { token: US, ..movement() }, tx(), pays.clone(), eip3009(), Trace::Gone, "another token"),
        (Movement { token: "usdc", ..movement() }, tx(), pays.clone(), eip3009(), Trace::Unknown, "no token at all"),
        (
            Movement { amount: Atoms(0), ..movement() },
            tx(),
            pays.clone(),
            eip3009(),
            Trace::Unknown,
            "nothing cannot be seen to move",
        ),
        (
            movement(),
            tx(),
            World { logs: vec![paid(TX, 10_000, 9_990)], ..World::new() },
            eip3009(),
            Trace::Gone,
            "another payment of the same payer",
        ),
        (movement(), tx(), World { status: "0x0", ..pays.clone() }, eip3009(), Trace::Gone, "reverted"),
        (movement(), TX2.to_string(), pays.clone(), eip3009(), Trace::Unknown, "not there, or not yet"),
        (movement(), "0x12".into(), pays.clone(), eip3009(), Trace::Unknown, "no hash"),
        (movement(), tx(), World { chain_id: 1, ..pays.clone() }, eip3009(), Trace::Unknown, "a node of another chain"),
        (
            movement(),
            tx(),
            World { broken: "eth_getTransactionReceipt", ..pays.clone() },
            eip3009(),
            Trace::Unknown,
            "no receipt",
        ),
        (
            movement(),
            tx(),
            World { calls: vec![proxy_call(TX, PERMIT_NONCE, 10_000)], ..pays.clone() },
            permit2(),
            moved(),
            "by a permit",
        ),
        (
            movement(),
            tx(),
            World { calls: vec![proxy_call(TX, 78, 10_000)], ..pays.clone() },
            permit2(),
            Trace::Gone,
            "by another permit",
        ),
        (movement(), tx(), pays.clone(), permit2(), Trace::Unknown, "a call the node does not show"),
        (movement(), tx(), pays.clone(), Signed::Solana(vec![]), Trace::Unknown, "of another kind of network"),
    ] {
        assert_eq!(mixed(of, tx, world, signed).await, want, "{why}");
    }
}

#[tokio::test]
async fn a_look_is_a_few_requests_however_long_the_chain() {
    let world = World { state: U256::from(1), ..World::new() };
    let (node, evidence) = world.evidence(Look::default()).await;
    assert_eq!(evidence.trace(&eip3009(), &movement()).await, Trace::Unknown);
    assert_eq!((node.calls("eth_getLogs"), node.calls("eth_getBlockByNumber") < 12), (6, true));
    // An authorization that never ends, on a chain of millions of blocks.
    let world = World { state: U256::from(1), height: 9_000_000, pace: (250, 250), ..World::new() };
    let (node, evidence) = world.evidence(Look::default()).await;
    assert_eq!(evidence.trace(&eip3009(), &movement()).await, Trace::Unknown);
    assert!(node.calls("eth_getLogs") <= 20 && node.calls("eth_getBlockByNumber") <= 26);
}

#[tokio::test]
async fn what_was_used_hours_ago_is_found_in_its_own_time_whatever_the_pace_of_the_chain() {
    let now = UnixSeconds::now().0;
    for (pace, hours, why) in [
        ((2_000, 2_000), 6, "Base"),
        ((250, 250), 6, "Arbitrum: 86,400 blocks ago"),
        ((250, 250), 1, "an hour ago: 14,400 blocks"),
        ((12_000, 12_000), 20, "a slow chain"),
        ((250, 2_000), 20, "it makes more blocks than it did"),
        ((2_000, 250), 40, "it makes fewer"),
        ((1_000, 1_000), 0, "just now"),
    ] {
        let shown = now - hours * 3_600;
        // As wallets write it: good from ten minutes ago, for as long as the offer says.
        let (after, before) = (shown.saturating_sub(600), shown + 1_260);
        let world = World { height: 5_000_000, pace, ..World::new() };
        // It was taken a minute and a half after it was shown.
        let taken = (0..=world.height).rev().find(|block| world.time(*block) <= (shown + 90).min(now)).unwrap();
        for permit in [false, true] {
            let signed = match (eip3009(), permit2()) {
                (Signed::Eip3009(it), _) if !permit => {
                    Signed::Eip3009(Eip3009 { valid_after: after, valid_before: before, ..it })
                }
                (_, Signed::Permit2(it)) => Signed::Permit2(Permit2 { valid_after: after, deadline: before, ..it }),
                _ => unreachable!(),
            };
            let state = if permit { U256::from(1) << 5 } else { U256::from(1) };
            let later = paid(TX2, 10_000, world.height);
            let logs = vec![used(TX, taken), paid(TX, 10_000, taken), later];
            let world = World { state, logs, calls: vec![proxy_call(TX, PERMIT_NONCE, 10_000)], ..world.clone() };
            for since in [shown - 1_800, 0] {
                let (node, evidence) = world.clone().evidence(Look::default()).await;
                let movement = Movement { since: UnixSeconds(since), ..movement() };
                let found = evidence.trace(&signed, &movement).await;
                let asked = (node.calls("eth_getLogs"), node.calls("eth_getBlockByNumber"));
                assert_eq!(found, moved(), "{why}: {asked:?} permit {permit}");
                assert!(asked.0 <= 8 && asked.1 <= 20, "{why}: {asked:?}");
            }
        }
    }
}

#[test]
fn only_an_evm_network_can_be_looked_at_and_the_url_is_never_repeated() {
    let solana = Network::parse("solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1").unwrap();
    let evm = Network::parse("eip155:1").unwrap();
    assert!(EvmEvidence::new(&Secret::new("http://127.0.0.1:1"), &solana, Look::default()).is_err());
    let error = EvmEvidence::new(&Secret::new("ftp://canary"), &evm, Look::default()).unwrap_err();
    assert!(!error.contains("canary"), "{error}");
}
