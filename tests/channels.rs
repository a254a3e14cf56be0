//! What the gate does about its channels beside requests, seen from the chain: it settles by itself what is enough, an operator closes
//! one by hand, a payer closes one by force.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::channels::{self, SessionBed, atoms, streamed};
use common::client::{chat, post_json};
use common::gate::Wait;
use common::reserve::Event;
use common::wallet::Channel;
use common::{Backend, Chain, DEV, Gate, GateOptions, Raw, Reply, Reserve, Script, Wallet, payer, raw};
use serde_json::Value;
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";
const MODEL: &str = "openai/gpt-oss-120b";
/// Atoms: what a channel of the first test may owe before it is settled.
const ENOUGH: u128 = 1_000;
const CONF: [&str; 2] = ["--conf", "conf/pontage.toml"];

struct Scene {
    _chain: Chain,
    reserve: Reserve,
    _backend: Backend,
    gate: Gate,
    channel: Channel,
    /// What one answer cost.
    spent: u128,
}

/// A gate with one channel, of which something was spent.
async fn scene() -> Scene {
    let chain = Chain::start().await;
    let reserve = Reserve::start(&chain).await;
    let backend = Backend::start(Script::default()).await;
    let settle = "settle_key = \"env:PONTAGE_SETTLE_KEY\"";
    let options = GateOptions::new(&reserve.url(), &backend.url())
        .conf_edit(settle, &format!("{settle}\nsession = {{ min_deposit = \"0.01\" }}"))
        .rule_edit("routes.toml", "[\"tempo/charge\"]", "[\"tempo/session\", \"tempo/charge\"]");
    let gate = Gate::start(options).await;
    let wallet = Wallet::fresh(&chain, 5_000_000).await;
    let url = format!("http://{}{CHAT}", gate.listen);
    let body = chat(MODEL, "how much is this?");
    let asked = post_json(&url, &[], &body).await;
    assert_eq!(asked.status(), 402);
    let lines: Vec<&str> =
        asked.headers().get_all("www-authenticate").iter().map(|value| value.to_str().unwrap()).collect();
    let offer = payer::offer(&lines, "tempo", "session");
    let channel = wallet.open(&offer, |open| open.deposit = 1_000_000);
    let paid = post_json(&url, &[("authorization", &channel.open_credential(&offer, 500_000))], &body).await;
    let (status, head) = (paid.status(), paid.headers().clone());
    assert_eq!(status, 200, "{}", paid.text().await.unwrap());
    let receipt = payer::unpack(head["payment-receipt"].to_str().unwrap());
    let spent = receipt["spent"].as_str().unwrap().parse().unwrap();
    assert!(spent > 0, "{receipt}");
    Scene { _chain: chain, reserve, _backend: backend, gate, channel, spent }
}

impl Scene {
    fn verb(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let (status, out, said) = self.gate.verb(&[&["channels"], args, &CONF].concat());
        (status.code(), out, said)
    }

    async fn closed_at(&self) -> Option<u128> {
        let events = self.reserve.events(&self.channel.id).await;
        events.iter().find_map(|event| match event {
            Event::Closed { settled, .. } => Some(*settled),
            _ => None,
        })
    }
}

/// A wallet that signs no more than it is asked for.
struct Thrifty {
    channel: Channel,
    /// All its vouchers.
    signed: Vec<u128>,
}

impl Thrifty {
    /// A credential over what this body must hold to start.
    async fn credential(&mut self, bed: &SessionBed) -> String {
        let asked = atoms(&bed.snapshot(&self.channel).await["requiredCumulative"]);
        self.signed.push(asked);
        self.channel.voucher_credential(&bed.fresh().await, asked)
    }

    async fn buy(&mut self, bed: &SessionBed) {
        let credential = self.credential(bed).await;
        let reply = bed.buy(&credential, &channels::chat()).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }

    /// Buys until the gate may settle so much more than `settled`; what it is to settle then. Nothing is to be settled before.
    async fn owe(&mut self, bed: &SessionBed, settled: u128) -> u128 {
        loop {
            self.buy(bed).await;
            let spent = bed.charged(&self.channel.id);
            let most = self.signed.iter().filter(|amount| **amount <= spent).max();
            if let Some(most) = most.filter(|most| **most >= settled + ENOUGH) {
                return *most;
            }
        }
    }
}

/// Waits for what the gate pays out by itself: the chain says so, then the gate.
async fn settled(bed: &SessionBed, channel: &Channel, all: &[Event]) {
    let heard = common::eventually(Duration::from_secs(30), || async {
        let events = bed.reserve.events(&channel.id).await;
        events.iter().filter(|event| matches!(event, Event::Settled { .. })).eq(all)
    });
    assert!(heard.await, "{:?}, not {all:?}", bed.reserve.events(&channel.id).await);
    let Some(Event::Settled { cumulative, .. }) = all.last() else { panic!("nothing was to be settled") };
    assert_eq!(bed.reserve.state(&channel.id).await.settled, *cumulative);
    let paid: u128 = bed.chain.payments_to(DEV[1].address).await.iter().map(|transfer| transfer.amount).sum();
    assert_eq!(paid, *cumulative, "the payee has it");
    let (id, said) = (channel.id.to_string(), cumulative.to_string());
    let known = common::eventually(Duration::from_secs(10), || async {
        let (_, all) = bed.gate.admin_get("/channels").await.expect("alive");
        let line = all.lines().find(|line| line.contains(&id)).expect("listed");
        let line: Value = serde_json::from_str(line).unwrap();
        (line["settled"].as_str(), line["tx"].is_null()) == (Some(&said), true)
    });
    assert!(known.await, "the record does not say that {said} are settled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gate_settles_by_itself_what_is_enough_under_a_stream_as_well_and_the_close_takes_the_rest() {
    let bed = SessionBed::with(|mut options| {
        options.conf_extra.push_str("settle_above = \"0.001\"\n");
        options
    })
    .await;
    let (channel, _) = bed.channel(100_000, 0).await;
    let mut wallet = Thrifty { channel, signed: Vec::new() };

    // A stream has a part of the channel for as long as that takes.
    bed.backend.next(Reply::Model(Script::default()).held());
    let credential = wallet.credential(&bed).await;
    let mut stream = Raw::connect(bed.gate.listen).await;
    let body = streamed().to_string();
    stream.send(&raw::post(CHAT, &[("authorization", &credential)], body.as_bytes())).await;
    assert!(common::eventually(Duration::from_secs(10), || async { bed.served() == 1 }).await);
    let first = wallet.owe(&bed, 0).await;
    let mut all = vec![Event::Settled { cumulative: first, paid: first }];
    settled(&bed, &wallet.channel, &all).await;
    bed.backend.release();
    let rest = stream.reply(Duration::from_secs(20)).await;
    assert!(rest.complete && rest.text().contains("data: [DONE]"), "{}", rest.text());
    bed.keep(&rest);

    // The channel goes on, and so does what is settled of it: only what is new.
    let second = wallet.owe(&bed, first).await;
    all.push(Event::Settled { cumulative: second, paid: second - first });
    settled(&bed, &wallet.channel, &all).await;
    wallet.buy(&bed).await;
    let spent = bed.charged(&wallet.channel.id);
    assert!(spent > second);
    let books = bed.close(&[&wallet.channel]).await;
    assert_eq!(books.charged, spent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_lists_releases_settles_and_closes_channels_of_the_running_gate() {
    let s = scene().await;
    let id = s.channel.id.to_string();
    let (code, listed, said) = s.verb(&["list"]);
    assert_eq!(code, Some(0), "{said}");
    let row: Vec<&str> = listed.lines().nth(1).expect("a channel").split('\t').collect();
    let spent = s.spent.to_string();
    assert_eq!(row[..8], [&id, "tempo/session", "open", "1000000", "500000", &spent, "0", "0"], "{listed}");

    let (code, out, said) = s.verb(&["release", &id]);
    assert_eq!(code, Some(0), "{said}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&answer["phase"], &answer["why"]), (&Value::from("open"), &Value::Null), "nothing blocked it: {out}");

    let (code, out, said) = s.verb(&["settle", &id]);
    assert_eq!(code, Some(0), "{said}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(answer["sent"], false, "the only voucher is over more than was spent: {out}");
    let why = answer["why"].as_str().expect("a reason");
    assert!(why.contains(&format!("{} atoms are spent and not settled", s.spent)), "{out}");

    let (code, out, said) = s.verb(&["close", &id]);
    assert_eq!(code, Some(0), "{said}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&answer["phase"], answer["sent"].as_bool()), (&Value::from("closed"), Some(true)), "{out}");
    assert_eq!(s.closed_at().await, Some(s.spent), "what was used is paid out, and the rest goes back");
    assert_eq!(s.reserve.locked().await, 0);
    assert_eq!(s.verb(&["list"]).1.lines().count(), 1, "only the heading");
    let (code, _, said) = s.verb(&["close", &format!("0x{:064}", 7)]);
    assert_eq!((code, said.contains("no such channel")), (Some(1), true), "{said}");

    let url = format!("http://{}/channels/{id}/close", s.gate.admin);
    let page = common::http().post(url).send().await.unwrap();
    assert_eq!(page.status(), 403, "a web page cannot do it from an operator's browser");
}

#[tokio::test]
async fn a_payer_who_closes_by_force_pays_what_he_spent() {
    let s = scene().await;
    s.channel.request_close(&s.reserve.url()).await.unwrap();
    let closed = common::eventually(Duration::from_secs(40), || async { s.closed_at().await == Some(s.spent) }).await;
    assert!(closed, "{:?}", s.reserve.events(&s.channel.id).await);
    let claimed = || async {
        let labels = [("outcome", "claimed"), ("rail", "tempo/session")];
        s.gate.metric("pontage_forced_closes_total", &labels).await == 1.0
    };
    assert!(common::eventually(Duration::from_secs(10), claimed).await, "and the operator sees it");
}

#[tokio::test]
async fn without_a_running_gate_the_verbs_say_so() {
    let gate = Gate::prepare(GateOptions::new("http://127.0.0.1:9", "http://127.0.0.1:9").wait(Wait::Alive));
    let (status, out, said) = gate.verb(&["channels", "list", CONF[0], CONF[1]]);
    assert_eq!((status.code(), out.as_str()), (Some(1), ""));
    assert!(said.contains("no gate runs here"), "{said}");
    let (status, _, said) = gate.verb(&["channels", "close", "0x12", CONF[0], CONF[1]]);
    assert!(status.code() == Some(1) && said.contains("64 hex digits"), "{said}");
}
