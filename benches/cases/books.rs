//! What a paid session call leaves in the books, as one durable write: the channel's record, its voucher's line and its receipt.
//! Nothing else runs, so this is what the embedded store costs beside the gate.

use pontage::channel::{Act, Channel, ChannelId, Descriptor, Intent, Phase, Voucher};
use pontage::clock::UnixSeconds;
use pontage::ids;
use pontage::journal::{Entry, Receipt};
use pontage::money::{Atoms, Usd};
use pontage::store::embedded::Embedded;
use pontage::store::{Store as _, Swap, Write};
use pontage::usage::{Usage, UsageSource};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// When everything here happens.
const NOW: UnixSeconds = UnixSeconds(1_795_221_720);
/// Channels in the books, which calls use in turn.
const CHANNELS: usize = 128;

/// Calls that come at once where a crowd does.
pub const CROWD: u64 = 32;

/// Open channels in a file of their own.
pub struct Books {
    runtime: Runtime,
    store: Embedded,
    channels: Vec<Arc<Channel>>,
    next: usize,
    _scratch: TempDir,
}

impl Books {
    pub fn prepare() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let store = Embedded::open(&scratch.path().join("pontage.redb")).unwrap();
        let runtime = Builder::new_current_thread().build().unwrap();
        let channels: Vec<_> = (0..CHANNELS).map(|n| Arc::new(channel(n))).collect();
        // One after another, so that every run writes the same pages.
        for channel in &channels {
            let write = Write { channel: Some(Arc::clone(channel)), ..Write::default() };
            assert_eq!(runtime.block_on(store.commit(write)), Ok(Swap::Done));
        }
        Self { runtime, store, channels, next: 0, _scratch: scratch }
    }

    /// One call, whose write has a transaction of its own.
    pub fn run(&mut self) {
        let write = self.call();
        assert_eq!(self.runtime.block_on(self.store.commit(write)), Ok(Swap::Done));
    }

    /// [`CROWD`] calls at once, which share one.
    pub fn crowd(&mut self) {
        let calls: Vec<_> = (0..CROWD).map(|_| self.call()).collect();
        let writes = calls.into_iter().map(|write| self.store.commit(write));
        let swaps = self.runtime.block_on(futures::future::join_all(writes));
        assert!(swaps.iter().all(|swap| *swap == Ok(Swap::Done)));
    }

    fn call(&mut self) -> Write {
        let at = self.next % self.channels.len();
        self.next += 1;
        let channel = self.channels.get_mut(at).unwrap();
        // The store has let go of it: this copies nothing.
        let record = Arc::make_mut(channel);
        record.revision += 1;
        let voucher = voucher(1_000_000 + 84 * record.revision);
        record.vouchers.remove(0);
        record.vouchers.push(voucher.clone());
        record.recent.rotate_left(1);
        let spent = Atoms(84 * u128::from(record.revision));
        record.spent.insert("gate_0198f2c1d1f87c50a1b2c3d4e5f60718".to_owned(), spent);
        let Voucher { amount, signature } = voucher;
        let journal = vec![
            Entry::Voucher { channel: record.id.clone(), amount, signature, at: NOW },
            Entry::Receipt(Box::new(receipt(record))),
        ];
        Write { channel: Some(Arc::clone(channel)), journal, ..Write::default() }
    }
}

fn word(n: usize) -> String {
    format!("0x{n:064x}")
}

fn address(n: usize) -> String {
    format!("0x{n:040x}")
}

fn voucher(amount: u64) -> Voucher {
    Voucher { amount: Atoms(amount.into()), signature: format!("0x{amount:0130x}") }
}

/// A channel that has been in use for a while: every bounded list of its record is as full as calls fill it.
fn channel(n: usize) -> Channel {
    let descriptor = Descriptor {
        payer: address(n),
        payee: address(1),
        operator: address(0),
        token: address(2),
        salt: word(n),
        authorized_signer: address(n),
        expiring_nonce_hash: word(0),
    };
    let open = Intent { act: Act::Open, tx: String::new(), raw: String::new(), valid_until: UnixSeconds(0) };
    // Ids are hashes: they do not come in order.
    let id = ChannelId(format!("0x{:016x}{:048x}", (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15), n));
    let deposit = Atoms(1_000_000_000);
    let rail = "tempo/session".into();
    let mut channel =
        Channel::opening(id, rail, 42_431, address(3), descriptor, 6, deposit, voucher(1_000_000), open, NOW);
    channel.phase = Phase::Open;
    channel.payers_tx = None;
    channel.vouchers.push(voucher(1_000_084));
    channel.used.insert(format!("{:043}", n), NOW.plus(1_800));
    channel.recent = (0..32).map(|_| ids::change().into()).collect();
    channel
}

fn receipt(channel: &Channel) -> Receipt {
    Receipt {
        id: ids::fresh("rcpt"),
        request: ids::fresh("req"),
        at: NOW,
        route: "/v1/chat/completions".into(),
        tier: "standard".into(),
        model: "openai/gpt-oss-120b".into(),
        pool: "gpt-oss".into(),
        server: Some("127.0.0.1:8000".to_owned()),
        rail: channel.rail.clone(),
        generation: "0123456789abcdef".into(),
        charged: Atoms(84),
        decimals: 6,
        charged_usd: Usd(84_000_000_000_000),
        actual_usd: Some(Usd(84_000_000_000_000)),
        usage: Some(Usage { prompt: 120, completion: 110, ..Usage::default() }),
        usage_source: Some(UsageSource::Reported),
        reference: channel.id.0.clone(),
        transaction: None,
        settlement: None,
        payer: Some(channel.descriptor.payer.clone()),
        attempts: 1,
        complete: true,
    }
}
