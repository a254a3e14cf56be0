#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::channel::OrphanPolicy;

const BASE: &str = r#"
[listen]
public_url = "https://Gate.example:8443/"

[secrets]
challenge_keys = ["env:A"]
receipt_key = "env:B"

[store]

[rail.tempo]
kind = "mpp-tempo"
chain_id = 42431
rpc = "env:RPC"
currency = "0x20c0000000000000000000000000000000000000"
recipient = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
"#;

fn with(from: &str, to: &str) -> Result<Conf, Vec<String>> {
    assert!(BASE.contains(from), "{from:?}");
    let conf = Conf::inspect_text("pontage.toml", &BASE.replacen(from, to, 1)).1;
    conf.map_err(|mistakes| mistakes.iter().map(Mistake::to_string).collect())
}

#[test]
fn what_is_not_written_has_the_value_of_the_design() {
    let conf = with("kind", "kind").unwrap();
    let listen = &conf.listen;
    assert_eq!(
        (listen.address.to_string(), listen.admin.to_string()),
        ("127.0.0.1:8402".into(), "127.0.0.1:9402".into())
    );
    assert_eq!((listen.public_url.as_str(), listen.realm.as_str()), ("https://Gate.example:8443", "gate.example"));
    assert_eq!((listen.threads, listen.grace_seconds, &listen.tls), (2, 30, &None));
    assert_eq!(listen.limits.connections_per_ip, 256);
    assert_eq!(conf.store.path, Path::new("var/pontage.redb"));
    assert!(conf.warnings.is_empty() && listen.cors.is_empty());
    let RailKind::MppTempo(tempo) = &conf.rails[0].kind else { panic!("tempo") };
    assert_eq!((tempo.chain_id, tempo.accept_push, &tempo.settle_key), (42431, false, &None));
    assert_eq!(tempo.session, None, "nobody opens channels here by accident");
    assert_eq!(tempo.sponsor, None, "nobody carries fees by accident");
    assert_eq!((tempo.currency[0], tempo.recipient[0]), (0x20, 0x70));
    assert_eq!(conf.offered().keys().map(RailId::as_str).collect::<Vec<_>>(), ["tempo/charge"]);
}

#[test]
fn every_single_mistake_is_named_with_its_line_and_key() {
    let url = "https://Gate.example:8443/";
    let listen = "public_url = \"https://Gate.example:8443/\"";
    let rows = [
        (url, "https://ga|te.example", "3: listen.public_url: \"https://ga|te.example\" has no plain host name"),
        (
            url,
            "https://gäte.example",
            "3: listen.public_url: \"https://gäte.example\" has characters that are not plain ASCII (write an international host in its xn-- form)",
        ),
        (
            url,
            "https://gate.example/v1",
            "3: listen.public_url: \"https://gate.example/v1\" has a path; routes have paths",
        ),
        (listen, "", "2: listen: `public_url` is missing"),
        (
            "[store]",
            "[store]\nurl = \"env:R\"",
            "10: store.url: belongs to kind = \"redis\": the embedded store is a file, see `path`",
        ),
        ("[store]", "[store]\nkind = \"redis\"", "9: store: `url` is missing"),
        ("[store]", "[store]\nkind = \"sqlite\"", "10: store.kind: \"sqlite\" is not \"embedded\" or \"redis\""),
        (
            "[\"env:A\"]",
            "[]",
            "6: secrets.challenge_keys: at least one key is needed: the first signs offers, all verify them",
        ),
        (
            "[\"env:A\"]",
            "[\"canary-canary-canary-canary-canary\"]",
            "6: secrets.challenge_keys[0]: a secret is written as \"env:NAME\" or \"file:PATH\", never inline",
        ),
        (
            "\"env:RPC\"",
            "\"https://rpc.example/canary\"",
            "14: rail.tempo.rpc: a secret is written as \"env:NAME\" or \"file:PATH\", never inline",
        ),
        ("mpp-tempo", "mpp-card", "12: rail.tempo.kind: \"mpp-card\" is not in this build: \"mpp-tempo\" or \"x402\""),
        ("kind = \"mpp-tempo\"", "", "11: rail.tempo: `kind` is missing"),
        (
            "0x20c0000000000000000000000000000000000000",
            "0x20c0",
            "15: rail.tempo.currency: \"0x20c0\" is not an address: 0x and 40 hex digits",
        ),
        (
            "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
            "0x0000000000000000000000000000000000000000",
            "16: rail.tempo.recipient: \"0x0000000000000000000000000000000000000000\" is the zero address: what is paid to it is gone",
        ),
        (
            "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
            "0x70997970C51812dc3A010C7d01b50e0d17dC79C8",
            "16: rail.tempo.recipient: \"0x70997970C51812dc3A010C7d01b50e0d17dC79C8\" is mistyped: its checksum (EIP-55, the case of its letters) does not fit",
        ),
        (
            "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
            "0x20C0000000000000000000000000000000000000",
            "16: rail.tempo.recipient: is the token's own contract: what is paid to it is gone",
        ),
        (
            "chain_id",
            "session = {}\nchain_id",
            "13: rail.tempo.session: needs `settle_key` beside it: channels are settled and closed with that key",
        ),
        ("chain_id", "sponsor = { key = \"env:F\" }\nchain_id", "13: rail.tempo.sponsor: `usd_per_day` is missing"),
        (
            "chain_id",
            "sponsor = { key = \"env:F\", usd_per_day = \"0.049\" }\nchain_id",
            "13: rail.tempo.sponsor.usd_per_day: \"0.049\" is less than one transaction may cost (0.05)",
        ),
        (
            "chain_id",
            "sponsor = { key = \"canary\", usd_per_day = \"1\" }\nchain_id",
            "13: rail.tempo.sponsor.key: a secret is written as \"env:NAME\" or \"file:PATH\", never inline",
        ),
        (
            "chain_id",
            "settle_key = \"env:S\"\nsponsor = { key = \"env:S\", usd_per_day = \"1\" }\nchain_id",
            "14: rail.tempo.sponsor.key: is `settle_key`: what was earned and what may be spent on fees are kept by two keys",
        ),
        (
            "chain_id",
            "sponsor = { key = \"env:F\", relay = \"env:R\" }\nchain_id",
            "13: rail.tempo.sponsor.key: unknown key; known here: relay",
        ),
        (
            "chain_id",
            "sponsor = { relay = \"https://canary\" }\nchain_id",
            "13: rail.tempo.sponsor.relay: a secret is written as \"env:NAME\" or \"file:PATH\", never inline",
        ),
        (
            "chain_id",
            "accept_push = true\nsponsor = { relay = \"env:R\" }\nchain_id",
            "14: rail.tempo.sponsor.relay: does not go with `accept_push`: one payment could be shown in two ways and bought with twice",
        ),
        (
            "chain_id",
            "chains = 1\nchain_id",
            "13: rail.tempo.chains: unknown key; known here: accept_push, chain_id, currency, kind, recipient, rpc, session, settle_key, sponsor",
        ),
        ("[secrets]", "admin = \"127.0.0.1:8402\"\n[secrets]", "5: listen.admin: is the same as `address`"),
        (
            "[secrets]",
            "address = \"localhost\"\n[secrets]",
            "5: listen.address: \"localhost\" is not an address and port such as \"127.0.0.1:8402\"",
        ),
        ("[secrets]", "threads = 0\n[secrets]", "5: listen.threads: 0 is not between 1 and 1024"),
        ("[secrets]", "tls = { cert = \"c.pem\" }\n[secrets]", "5: listen.tls: `key` is missing"),
        (
            "[secrets]",
            "limits = { body_seconds = 0 }\n[secrets]",
            "5: listen.limits.body_seconds: 0 is not between 1 and 3600",
        ),
        (
            "[secrets]",
            "cors = { origins = [\"https://a.example/\"] }\n[secrets]",
            "5: listen.cors.origins[0]: \"https://a.example/\" has a path or a trailing slash; an origin is scheme, host and port",
        ),
        ("[store]", "[stores]", "9: stores: unknown key; known here: listen, rail, secrets, store"),
    ];
    for (from, to, want) in rows {
        let got = with(from, to).expect_err(to);
        // A section under a wrong name is missing under its own, too.
        let got: Vec<_> = got.into_iter().filter(|m| m != "pontage.toml: `store` is missing").collect();
        assert_eq!(got, [format!("pontage.toml:{want}")], "{to:?}");
    }
}

/// The base file with `session = { terms }` and a settle key.
fn channels(terms: &str) -> Result<SessionConf, Vec<String>> {
    let conf = with("chain_id", &format!("settle_key = \"env:S\"\nsession = {{ {terms} }}\nchain_id"))?;
    let RailKind::MppTempo(tempo) = &conf.rails[0].kind else { panic!("tempo") };
    Ok(tempo.session.unwrap())
}

#[test]
fn a_rail_with_terms_for_channels_offers_sessions_beside_charges() {
    let usd = |text| crate::money::Usd::parse(text).unwrap();
    let usual = SessionConf {
        deposit: usd("1"),
        min_deposit: usd("0.1"),
        min_voucher_delta: usd("0"),
        settle_above: usd("1"),
        settle_every_minutes: 60,
        close_idle_hours: 24,
        orphan: OrphanPolicy::Charge,
        pause_seconds: 60,
        max_channels_per_payer: 16,
    };
    assert_eq!(channels(""), Ok(usual));
    let said = "deposit = \"0.05\", min_voucher_delta = \"0.0001\", settle_above = \"2.5\", settle_every_minutes = 5, \
                close_idle_hours = 1, orphan_policy = \"refund\", pause_seconds = 7, max_channels_per_payer = 2";
    let want = SessionConf {
        deposit: usd("0.05"),
        min_deposit: usd("0.05"),
        min_voucher_delta: usd("0.0001"),
        settle_above: usd("2.5"),
        settle_every_minutes: 5,
        close_idle_hours: 1,
        orphan: OrphanPolicy::Refund,
        pause_seconds: 7,
        max_channels_per_payer: 2,
    };
    assert_eq!(channels(said), Ok(want), "what is not written as least deposit is never more than the advised one");

    let (rails, conf) =
        Conf::inspect_text("pontage.toml", &BASE.replace("chain_id", "settle_key = \"env:S\"\nsession = {}\nchain_id"));
    assert_eq!(conf.unwrap().offered(), rails);
    let ability = |fixed_amount| RailAbility { fixed_amount, decimals: 6 };
    assert_eq!(rails, [("tempo/charge".into(), ability(true)), ("tempo/session".into(), ability(false))].into());
}

#[test]
fn terms_of_channels_that_nobody_could_keep_are_refused() {
    for (terms, want) in [
        ("deposit = 1", "deposit: amounts are text, so that they stay exact: write \"1\""),
        ("deposit = \"0\"", "deposit: is nothing: a channel holds money"),
        ("min_deposit = \"1.01\"", "min_deposit: is more than deposit: a channel opened as advised would be refused"),
        (
            "min_voucher_delta = \"2\"",
            "min_voucher_delta: is more than deposit: a channel opened as advised could not pay",
        ),
        ("settle_above = \"0.0\"", "settle_above: is nothing: every call would be a transaction"),
        ("settle_every_minutes = 0", "settle_every_minutes: 0 is not between 1 and 10080"),
        ("close_idle_hours = 0", "close_idle_hours: 0 is not between 1 and 8760"),
        ("pause_seconds = 61", "pause_seconds: 61 is not between 1 and 60"),
        ("max_channels_per_payer = 0", "max_channels_per_payer: 0 is not between 1 and 10000"),
        ("orphan_policy = \"forget\"", "orphan_policy: \"forget\" is not \"charge\" or \"refund\""),
        (
            "escrow = \"0x4d50500000000000000000000000000000000000\"",
            "escrow: unknown key; known here: close_idle_hours, deposit, max_channels_per_payer, min_deposit, min_voucher_delta, orphan_policy, pause_seconds, settle_above, settle_every_minutes",
        ),
    ] {
        assert_eq!(channels(terms), Err(vec![format!("pontage.toml:14: rail.tempo.session.{want}")]), "{terms}");
    }
    let all = "deposit = \"x\", settle_above = \"0\", pause_seconds = 0, orphan_policy = 1";
    assert_eq!(channels(all).unwrap_err().len(), 4, "all of them at once, and none twice");
}

#[test]
fn all_mistakes_come_at_once_and_the_rails_are_known_all_the_same() {
    let (rails, conf) = Conf::inspect_text(
        "pontage.toml",
        "[listen]\nthreads = \"2\"\n[rail.tempo]\nkind = \"mpp-tempo\"\nchain_id = -1\nsession = 5\n[rail.base]\nkind = \"x402\"\nnetwork = \"eip155:1\"\n",
    );
    let got: Vec<String> = conf.unwrap_err().iter().map(Mistake::to_string).collect();
    assert_eq!(
        got,
        [
            "pontage.toml: `secrets` is missing",
            "pontage.toml: `store` is missing",
            "pontage.toml:1: listen: `public_url` is missing",
            "pontage.toml:2: listen.threads: must be a whole number, not text",
            "pontage.toml:3: rail.tempo: `rpc` is missing",
            "pontage.toml:3: rail.tempo: `currency` is missing",
            "pontage.toml:3: rail.tempo: `recipient` is missing",
            "pontage.toml:5: rail.tempo.chain_id: -1 is not between 1 and 18446744073709551615",
            "pontage.toml:6: rail.tempo.session: needs `settle_key` beside it: channels are settled and closed with that key",
            "pontage.toml:6: rail.tempo.session: must be a table, not a whole number",
            "pontage.toml:7: rail.base: `asset` is missing",
            "pontage.toml:7: rail.base: `pay_to` is missing",
            "pontage.toml:7: rail.base: `facilitator` is missing",
        ]
    );
    let known: Vec<_> = rails.keys().map(RailId::as_str).collect();
    assert_eq!(
        known,
        ["base/exact", "base/upto", "tempo/charge", "tempo/session"],
        "so that `check` can go on to the rules"
    );
    let (rails, conf) = Conf::inspect_text("pontage.toml", "[rail.tempo.session]\ndeposit = \n");
    assert!(conf.is_err() && rails.contains_key("tempo/session"), "even when it is not TOML");
}

/// The base file with an x402 rail: `asset` and `pay_to` on Base.
fn on_base(asset: &str, pay_to: &str) -> Result<Conf, Vec<String>> {
    let rail = format!(
        "[rail.base]\nkind = \"x402\"\nnetwork = \"eip155:8453\"\nasset = {asset}\npay_to = \"{pay_to}\"\nfacilitator = {{ url = \"https://f.example\" }}\n"
    );
    with("[rail.tempo]", &format!("{rail}[rail.tempo]"))
}

const NOBODYS: &str = "0x8ba1f109551bD432803012645Ac136ddd64DBA72";

#[test]
fn a_built_in_token_has_the_decimals_and_the_domain_that_it_has() {
    let usdc = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913";
    let lower = usdc.to_ascii_lowercase();
    let written = |address: &str, decimals: u8, name: &str, version: &str| {
        format!("{{ address = \"{address}\", decimals = {decimals}, name = \"{name}\", version = \"{version}\" }}")
    };
    for (asset, right, why) in [
        (written(usdc, 6, "USD Coin", "2"), true, "as it is"),
        (written(usdc, 18, "USD Coin", "2"), false, "a million millions of the price would be asked"),
        (written(&lower, 2, "USD Coin", "2"), false, "a ten-thousandth of the price would be asked"),
        (written(usdc, 6, "USDC", "2"), false, "its name elsewhere: every signature would fail"),
        (written(usdc, 6, "USD Coin", "1"), false, "another version"),
        (written("0x20c0000000000000000000000000000000000000", 18, "Other", "1"), true, "a token that is not built in"),
    ] {
        let got = on_base(&asset, NOBODYS);
        assert_eq!(got.is_ok(), right, "{why}: {got:?}");
        if let Err(said) = got {
            let want = "rail.base.asset: is \"usdc\", which has decimals 6, name \"USD Coin\", version \"2\": write asset = \"usdc\"";
            assert!(said.len() == 1 && said[0].ends_with(want), "{said:?}");
        }
    }
    let said = on_base("\"usdc\"", &lower).unwrap_err();
    assert!(
        said.len() == 1
            && said[0].ends_with("rail.base.pay_to: is the token's own contract: what is paid to it is gone")
    );
}

#[test]
fn a_payee_whose_key_nobody_or_everybody_has_is_refused_where_money_is_worth_something() {
    let tempo = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";
    for (chain_id, recipient, lost, why) in [
        ("42431", tempo, false, "Tempo's test network: the sample as it is"),
        ("31337", tempo, false, "a local chain"),
        ("4217", tempo, true, "Tempo itself"),
        ("4217", "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266", true, "another of them"),
        ("7", tempo, true, "whatever that is"),
        ("4217", NOBODYS, false, "somebody's own"),
        ("42431", "0x000000000000000000000000000000000000dEaD", true, "the placeholder of samples, anywhere"),
    ] {
        let text = BASE.replace("42431", chain_id).replace(tempo, recipient);
        let conf = Conf::inspect_text("pontage.toml", &text).1.unwrap();
        assert_eq!(conf.rails[0].kind.pays_nobody().map(|(key, _)| key), lost.then_some("recipient"), "{why}");
        assert_eq!(conf.warnings.len(), usize::from(lost), "{why}: `check` says so too");
    }
    for (pay_to, lost) in [(tempo, true), (NOBODYS, false), ("0x000000000000000000000000000000000000dEaD", true)] {
        let conf = on_base("\"usdc\"", pay_to).unwrap();
        assert_eq!(conf.rails.iter().find_map(|rail| rail.kind.pays_nobody()).is_some(), lost, "{pay_to}");
    }
}

#[test]
fn an_admin_listener_that_others_can_reach_is_allowed_with_a_warning() {
    let conf = with("[secrets]", "admin = \"0.0.0.0:9402\"\n[secrets]").unwrap();
    assert_eq!(
        conf.warnings,
        [
            "listen.admin (line 5) is 0.0.0.0:9402: metrics, status and the list of channels are open to whoever can reach it"
        ]
    );
}

#[test]
fn a_gate_that_others_can_reach_and_cannot_find_or_trust_by_its_name_is_told_of() {
    let open = "address = \"0.0.0.0:8402\"";
    for (url, address, want, why) in [
        ("https://gate.example", open, "", "as it should be"),
        ("http://gate.example", "", "", "behind something that nobody else can reach, for a try"),
        ("http://127.0.0.1:8402", "", "", "the sample"),
        ("http://gate.example", open, "is plain HTTP", "a man in the middle puts his own payee into offers"),
        ("https://localhost", open, "means its own machine", "offers name it to everybody"),
        ("http://127.0.0.1:8402", open, "means its own machine", "the sample, opened"),
        ("http://[::1]:8402", open, "means its own machine", "IPv6"),
    ] {
        let text =
            BASE.replace("https://Gate.example:8443/", url).replace("[secrets]", &format!("{address}\n[secrets]"));
        let warnings = Conf::inspect_text("pontage.toml", &text).1.unwrap().warnings;
        assert_eq!(warnings.len(), usize::from(!want.is_empty()), "{why}: {warnings:?}");
        assert!(warnings.iter().all(|said| said.contains(want)), "{why}: {warnings:?}");
    }
}

#[test]
fn a_secret_in_a_file_that_others_can_read_is_told_of() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seed");
    std::fs::write(&path, "canary").unwrap();
    for (mode, exposed) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o644, true)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let conf = with("env:B", &format!("file:{}", path.display())).unwrap();
        let said = conf.exposed();
        assert_eq!(said.len(), usize::from(exposed), "{mode:o}: {said:?}");
        assert!(said.iter().all(|s| s.starts_with("secrets.receipt_key: ") && !s.contains("canary")), "{said:?}");
    }
    std::fs::remove_file(&path).unwrap();
    let conf = with("env:B", &format!("file:{}", path.display())).unwrap();
    assert!(conf.exposed().is_empty(), "one that is not there is somebody else's complaint");
}

#[test]
fn a_reading_differs_by_what_it_says_and_not_by_where_it_says_it() {
    let now = with("kind", "kind").unwrap();
    for (from, to, want) in [
        ("[store]", "# a remark\n\n[store]", &[][..]),
        ("[secrets]", "threads = 3\n[secrets]", &["listen"][..]),
        ("[\"env:A\"]", "[\"env:C\", \"env:A\"]", &["secrets"][..]),
        ("[store]", "[store]\npath = \"elsewhere\"", &["store"][..]),
        ("42431", "4217", &["rail"][..]),
        ("https://Gate.example:8443/", "https://gate.example\"\ngrace_seconds = 7 # \"", &["listen"][..]),
    ] {
        let later = Conf::inspect_text("pontage.toml", &BASE.replacen(from, to, 1)).1.unwrap();
        assert_eq!(now.differs(&later), want, "{to}");
    }
}

#[test]
fn secrets_are_measured_when_they_are_read_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        format!("file:{}", path.display())
    };
    let conf = |key: &str, seed: &str| {
        let text = BASE.replace("chain_id", &format!("settle_key = \"{seed}\"\nchain_id"));
        let text = text.replace("\"env:A\"", &format!("\"{key}\"")).replace("\"env:B\"", &format!("\"{seed}\""));
        Conf::inspect_text("pontage.toml", &text).1.unwrap()
    };
    let (key, seed) = (place("key", "canary-canary-canary-canary-canary\n"), place("seed", &"0a".repeat(32)));
    let secrets = conf(&key, &seed).read_secrets().unwrap();
    assert_eq!(secrets.challenge_keys[0].expose(), b"canary-canary-canary-canary-canary");
    assert_eq!(secrets.receipt_key.expose(), [0x0a; 32]);
    assert_eq!(format!("{secrets:?}"), "Secrets(…)");
    let settle_key = |seed: &str| {
        let RailKind::MppTempo(tempo) = conf(&key, seed).rails[0].kind.clone() else { panic!("tempo") };
        tempo.read_settle_key().map(|key| key.expose().to_vec())
    };
    assert_eq!(settle_key(&seed), Ok(vec![0x0a; 32]));
    assert_eq!(settle_key(&place("0x", &format!("0x{}", "0b".repeat(32)))), Ok(vec![0x0b; 32]), "as wallets write it");
    let refused = settle_key(&place("canary", "canary")).unwrap_err();
    assert_eq!(refused, "the key is not 64 hex digits (32 bytes)");
    assert!(settle_key("file:/nowhere/s").unwrap_err().contains("/nowhere/s"));

    let bad = conf(&place("short", "canary"), &place("odd", "canary"));
    let got: Vec<String> = bad.read_secrets().unwrap_err().iter().map(Mistake::to_string).collect();
    assert_eq!(
        got,
        [
            "pontage.toml:6: secrets.challenge_keys[0]: the key has 6 bytes; at least 32 are needed",
            "pontage.toml:7: secrets.receipt_key: the key is not 64 hex digits (32 bytes)",
        ]
    );
    let got = conf("file:/nowhere/k", "file:/nowhere/s").read_secrets().unwrap_err();
    assert_eq!(got.len(), 2, "both are named");
}

#[test]
fn a_token_of_the_admin_address_is_as_long_as_a_key_and_fits_a_header() {
    let dir = tempfile::tempdir().unwrap();
    for (content, want) in [
        ("canary-canary-canary-canary-canary\n", None),
        ("canary", Some("the key has 6 bytes; at least 32 are needed")),
        ("canary-canary-canary-canary\r\ncanary", Some("the token has a character that is no visible ASCII")),
        ("canary canary canary canary canary", Some("the token has a character that is no visible ASCII")),
    ] {
        let place = |name: &str, content: &str| {
            std::fs::write(dir.path().join(name), content).unwrap();
            format!("\"file:{}\"", dir.path().join(name).display())
        };
        let (key, seed) = (place("key", &"k".repeat(32)), place("seed", &"0a".repeat(32)));
        let token = place("token", content);
        let text = BASE.replace("\"env:A\"", &key).replace("\"env:B\"", &format!("{seed}\nadmin_token = {token}"));
        let conf = Conf::inspect_text("pontage.toml", &text).1.unwrap();
        assert!(conf.secrets().iter().any(|(key, _)| key == "secrets.admin_token"));
        match (conf.read_secrets(), want) {
            (Ok(secrets), None) => assert_eq!(secrets.admin_token.unwrap().expose(), content.trim().as_bytes()),
            (Err(mistakes), Some(want)) => {
                assert_eq!(mistakes[0].to_string(), format!("pontage.toml:8: secrets.admin_token: {want}"));
            }
            (got, _) => panic!("{content:?}: {got:?}"),
        }
    }
}

#[test]
fn the_shipped_files_are_right() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, sessions, warnings) in [
        ("conf/pontage.toml", false, 0),
        ("conf/worldrouter.toml", true, 1),
        ("conf/agent402.toml", false, 4),
        ("conf/khala.toml", true, 2),
    ] {
        let conf = Conf::load(&root.join(file))
            .unwrap_or_else(|mistakes| panic!("{:#?}", mistakes.iter().map(Mistake::to_string).collect::<Vec<_>>()));
        assert_eq!(conf.offered().contains_key("tempo/session"), sessions, "{file}");
        // What a sample for a real network warns of is its payee.
        assert_eq!(conf.warnings.len(), warnings, "{file}: {:?}", conf.warnings);
        let of_payee = |said: &String| said.contains("recipient") || said.contains("pay_to");
        assert!(conf.warnings.iter().all(of_payee), "{file}: {:?}", conf.warnings);
    }
}

#[test]
fn a_facilitator_elsewhere_without_a_node_of_ones_own_is_warned_of() {
    let read = |more: &str| on_base("\"usdc\"", &format!("{NOBODYS}\"\n{more}#")).unwrap().warnings;
    assert!(read("").iter().any(|said| said.contains("`rpc`") && said.contains("rail.base")), "{:?}", read(""));
    assert_eq!(read("rpc = \"env:BASE_RPC_URL\""), [""; 0]);
}

#[test]
fn the_sample_shows_every_term_of_channels_with_its_default() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sample = std::fs::read_to_string(root.join("conf/pontage.toml")).unwrap();
    let (_, terms) = sample.split_once("# [rail.tempo.session]\n").unwrap();
    let terms = terms.split("\n\n").next().unwrap();
    let written: Vec<&str> = terms.lines().filter_map(|line| line.strip_prefix("# ")).collect();
    let line = |term: &&str| term.split('#').next().unwrap().trim_end().to_owned();
    let terms = written.iter().map(line).collect::<Vec<_>>();
    assert_eq!(channels(&terms.join(", ")), channels(""));
    let unknown = channels("x = 1").unwrap_err().concat();
    let known = unknown.split("known here: ").nth(1).unwrap();
    assert!(known.split(", ").all(|key| terms.iter().any(|term| term.starts_with(&format!("{key} = ")))), "{known}");
}

#[test]
fn the_sample_shows_every_key_of_an_x402_rail_and_reads_when_uncommented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sample = std::fs::read_to_string(root.join("conf/pontage.toml")).unwrap();
    let (before, terms) = sample.split_once("# [rail.base]\n").unwrap();
    let terms: Vec<&str> = terms.lines().map(|line| line.strip_prefix("# ").unwrap_or("")).collect();
    let text = format!("{before}[rail.base]\n{}\n", terms.join("\n"));
    let (rails, conf) = Conf::inspect_text("pontage.toml", &text);
    let written = conf.unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
    assert!(rails.contains_key("base/exact") && rails.contains_key("base/upto"));
    // What is shown is what a section has that says no more than it must.
    let must = ["kind", "network", "asset", "pay_to", "facilitator", "rpc"];
    let short = terms.iter().filter(|line| must.iter().any(|key| line.starts_with(&format!("{key} = "))));
    let short = format!("{before}[rail.base]\n{}\n", short.copied().collect::<Vec<_>>().join("\n"));
    assert_eq!(Conf::inspect_text("pontage.toml", &short).1.unwrap().rails, written.rails);
    let (_, unknown) = Conf::inspect_text("pontage.toml", &format!("{text}x = 1\n"));
    let unknown: Vec<String> = unknown.unwrap_err().iter().map(Mistake::to_string).collect();
    let known = unknown[0].split("known here: ").nth(1).unwrap_or_else(|| panic!("{unknown:?}"));
    assert!(known.split(", ").all(|key| terms.iter().any(|term| term.starts_with(&format!("{key} = ")))), "{known}");
}
