//! Payers of sessions: a channel that is open in the gate's books before it starts, vouchers signed here, and one connection.

use super::{CHAIN_ID, DEPOSIT, Gate, PATH, RECIPIENT, TOKEN, timed};
use alloy::primitives::{Address, B256, keccak256};
use mpp::protocol::methods::tempo::precompile_voucher as reserve;
use mpp::{PaymentChallenge, PaymentCredential};
use pontage::channel::{Act, Channel, ChannelId, Descriptor, Effect, Intent, Lease, Op, Phase, Purchase, Voucher};
use pontage::clock::UnixSeconds;
use pontage::ids;
use pontage::journal::Entry;
use pontage::money::Atoms;
use pontage::store::embedded::Embedded;
use pontage::store::{Store as _, Swap, Write as Record};
use secp256k1::{All, Message, PublicKey, Secp256k1, SecretKey};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, LazyLock};

static CURVE: LazyLock<Secp256k1<All>> = LazyLock::new(Secp256k1::new);

/// One payer with one channel.
pub struct Payer {
    key: SecretKey,
    address: Address,
    id: B256,
    descriptor: Descriptor,
    /// In atoms, cumulative.
    signed: u128,
}

impl Payer {
    /// The `n`th of this run; always the same one.
    pub fn new(n: u64) -> Self {
        let key = SecretKey::from_byte_array(keccak256(n.to_be_bytes()).0).unwrap();
        let public = PublicKey::from_secret_key(&CURVE, &key).serialize_uncompressed();
        let address = Address::from_slice(&keccak256(&public[1..])[12..]);
        let (payee, token): (Address, Address) = (RECIPIENT.parse().unwrap(), TOKEN.parse().unwrap());
        let (salt, nonce) = (B256::from(alloy::primitives::U256::from(n)), B256::ZERO);
        let escrow = pontage::chain::reserve::RESERVE;
        let id = reserve::compute_precompile_channel_id_with_escrow(
            address,
            payee,
            Address::ZERO,
            token,
            salt,
            address,
            nonce,
            escrow,
            CHAIN_ID,
        );
        let descriptor = Descriptor {
            payer: format!("{address:#x}"),
            payee: format!("{payee:#x}"),
            operator: format!("{:#x}", Address::ZERO),
            token: format!("{token:#x}"),
            salt: format!("{salt:#x}"),
            authorized_signer: format!("{address:#x}"),
            expiring_nonce_hash: format!("{nonce:#x}"),
        };
        Self { key, address, id, descriptor, signed: 0 }
    }

    /// Signs for `more` atoms than before.
    fn voucher(&mut self, more: u128) -> Voucher {
        self.signed += more;
        let escrow = pontage::chain::reserve::RESERVE;
        let digest =
            reserve::precompile_voucher_signing_hash_with_escrow(self.id, self.signed, escrow, CHAIN_ID).unwrap();
        let signed = CURVE.sign_ecdsa_recoverable(Message::from_digest(digest.0), &self.key);
        let (id, compact) = signed.serialize_compact();
        let mut bytes = compact.to_vec();
        bytes.push(27 + u8::try_from(i32::from(id)).unwrap());
        Voucher { amount: Atoms(self.signed), signature: alloy::hex::encode_prefixed(bytes) }
    }

    /// The value of `Authorization` that signs for `more` atoms.
    pub fn credential(&mut self, offer: &PaymentChallenge, more: u128) -> String {
        let voucher = self.voucher(more);
        let payload = json!({
            "action": "voucher", "channelId": self.id, "descriptor": self.descriptor,
            "cumulativeAmount": self.signed.to_string(), "signature": voucher.signature,
        });
        let source = format!("did:pkh:eip155:{CHAIN_ID}:{}", self.address);
        let credential = PaymentCredential { challenge: offer.to_echo(), source: Some(source), payload };
        mpp::format_authorization(&credential).unwrap()
    }

    /// The record of the channel, opened with a voucher over `signed` atoms.
    fn record(&mut self, signed: u128) -> Channel {
        let voucher = self.voucher(signed);
        let open = Intent { act: Act::Open, tx: String::new(), raw: String::new(), valid_until: UnixSeconds(0) };
        let mut channel = Channel::opening(
            ChannelId(format!("{:#x}", self.id)),
            "tempo/session".into(),
            CHAIN_ID,
            format!("{:#x}", pontage::chain::reserve::RESERVE),
            self.descriptor.clone(),
            6,
            Atoms(DEPOSIT),
            voucher,
            open,
            UnixSeconds::now(),
        );
        channel.phase = Phase::Open;
        channel.payers_tx = None;
        channel
    }
}

/// Opens `count` channels in the books of a gate that is not running, each signed for `signed` atoms.
pub fn plant(gate: &Gate, count: u64, signed: u128) -> Vec<Payer> {
    let mut payers: Vec<Payer> = (0..count).map(Payer::new).collect();
    let store = Embedded::open(&gate.store).unwrap();
    let writes = payers.iter_mut().map(|payer| {
        let channel = payer.record(signed);
        let (id, at) = (channel.id.clone(), channel.opened_at);
        let voucher = channel.highest().cloned().unwrap();
        let journal = vec![
            Entry::Channel {
                channel: id.clone(),
                rail: channel.rail.clone(),
                payer: channel.descriptor.payer.clone(),
                deposit: channel.view.deposit,
                at,
            },
            Entry::Voucher { channel: id.clone(), amount: voucher.amount, signature: voucher.signature, at },
            Entry::Intent { channel: id.clone(), act: Act::Open, tx: String::new(), at },
            Entry::Outcome { channel: id, tx: String::new(), landed: true, at },
        ];
        store.commit(Record { channel: Some(channel.into()), journal, ..Record::default() })
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let swaps = runtime.block_on(futures::future::join_all(writes));
    assert!(swaps.iter().all(|swap| *swap == Ok(Swap::Done)));
    payers
}

/// What a stream makes durable before its first byte is asked for, by itself: the voucher and the lease, in one write.
pub struct LeaseWrites {
    store: Arc<Embedded>,
    purses: Vec<(Payer, Channel)>,
    next: usize,
}

impl LeaseWrites {
    /// To a store of its own under `scratch`, in which there are `channels`.
    pub fn over(scratch: &Path, channels: u64) -> Self {
        let store = Arc::new(Embedded::open(&scratch.join("lease.redb")).unwrap());
        let mut purses: Vec<_> = (0..channels).map(Payer::new).map(|mut payer| (payer.record(1), payer)).collect();
        let writes = purses
            .iter()
            .map(|(channel, _)| store.commit(Record { channel: Some(Arc::new(channel.clone())), ..Record::default() }));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(futures::future::join_all(writes));
        Self { store, purses: purses.drain(..).map(|(channel, payer)| (payer, channel)).collect(), next: 0 }
    }

    /// Microseconds of the next one. Channels come in turn.
    pub fn write(&mut self, runtime: &tokio::runtime::Runtime) -> f64 {
        let at = self.next % self.purses.len();
        self.next += 1;
        let (payer, channel) = &mut self.purses[at];
        let (now, voucher) = (UnixSeconds::now(), payer.voucher(1000));
        let Voucher { amount, signature } = voucher.clone();
        let journal = vec![Entry::Voucher { channel: channel.id.clone(), amount, signature, at: now }];
        let purchase = Purchase {
            request: ids::fresh("req"),
            receipt: ids::fresh("rcpt"),
            route: PATH.into(),
            tier: "standard".into(),
            model: "openai/gpt-oss-120b".into(),
            pool: "gpt-oss".into(),
            generation: "0123456789abcdef".into(),
        };
        let (gate, cap, window) = (self.store.gate().to_owned(), Atoms(400), Atoms(40));
        let buy = Op::Buy {
            voucher,
            min_delta: Atoms(0),
            challenge: "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG".to_owned(),
            expires: now.plus(300),
            lease: ids::fresh("lease"),
            terms: Box::new(Lease { gate, cap, used: None, window, since: now, purchase }),
        };
        let (leased, effect) = channel.apply(&ids::change(), buy, now).unwrap();
        assert_eq!(effect, Effect::Leased);
        let write = Record { channel: Some(Arc::new(leased.clone())), journal, ..Record::default() };
        // As if it had cost nothing.
        *channel = Channel { leases: channel.leases.clone(), ..leased };
        let store = Arc::clone(&self.store);
        runtime.block_on(timed(async move { assert_eq!(store.commit(write).await, Ok(Swap::Done)) }))
    }
}

/// The session offer of a 402's head.
pub fn offer(head: &str) -> Option<PaymentChallenge> {
    let values = head.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("www-authenticate").then(|| value.trim())
    });
    mpp::parse_www_authenticate_all(values).into_iter().flatten().find(|offer| offer.intent.as_str() == "session")
}

/// One connection that is kept.
pub struct Wire {
    address: SocketAddr,
    read: BufReader<TcpStream>,
    line: String,
}

impl Wire {
    pub fn open(address: SocketAddr) -> std::io::Result<Self> {
        let tcp = TcpStream::connect(address)?;
        tcp.set_nodelay(true)?;
        Ok(Self { address, read: BufReader::new(tcp), line: String::new() })
    }

    pub fn send(&mut self, credential: &str, body: &str) -> std::io::Result<()> {
        self.post(PATH, &format!("Authorization: {credential}\r\n"), body)
    }

    /// Sends JSON; each line of `headers` with its end.
    pub fn post(&mut self, path: &str, headers: &str, body: &str) -> std::io::Result<()> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        self.read.get_mut().write_all(request.as_bytes())
    }

    /// Status, head and how long the body is; `None`: it comes in chunks.
    pub fn head(&mut self) -> std::io::Result<(u16, String, Option<usize>)> {
        let (mut head, mut length) = (String::new(), None);
        loop {
            self.line.clear();
            if self.read.read_line(&mut self.line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if self.line == "\r\n" {
                break;
            }
            self.line.make_ascii_lowercase();
            if let Some(n) = self.line.strip_prefix("content-length:") {
                length = n.trim().parse().ok();
            }
            head.push_str(&self.line);
        }
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        Ok((status, head, length))
    }

    pub fn body(&mut self, length: usize) -> std::io::Result<Vec<u8>> {
        let mut body = vec![0; length];
        self.read.read_exact(&mut body)?;
        Ok(body)
    }

    /// The next chunk of a body; empty at its end.
    pub fn chunk(&mut self) -> std::io::Result<Vec<u8>> {
        self.line.clear();
        self.read.read_line(&mut self.line)?;
        let length = usize::from_str_radix(self.line.trim(), 16).map_err(|_| std::io::ErrorKind::InvalidData)?;
        let mut chunk = self.body(length + 2)?;
        chunk.truncate(length);
        Ok(chunk)
    }

    /// One request, answered as a whole: status, head, body.
    pub fn ask(&mut self, credential: &str, body: &str) -> std::io::Result<(u16, String, Vec<u8>)> {
        self.send(credential, body)?;
        let (status, head, length) = self.head()?;
        let mut whole = Vec::new();
        match length {
            Some(length) => whole = self.body(length)?,
            None => loop {
                let chunk = self.chunk()?;
                if chunk.is_empty() {
                    break;
                }
                whole.extend(chunk);
            },
        }
        Ok((status, head, whole))
    }
}

/// What a reply says of itself, for whoever reads why a run broke.
pub fn words(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| json!(String::from_utf8_lossy(body)))
}
