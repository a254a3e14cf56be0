//! The house keeps its shape: what `src/lib.rs` says about floors is true, and the habits that no lint of the compiler knows
//! are kept. Each rule is first shown to fail on a sample, then applied to every file.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "floors/source.rs"]
mod source;

use source::{Kind, Source};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Every folder and every file directly under `src/`, from the ground up. Within the lists of [`OPEN`] floors everybody knows
/// everybody; elsewhere neighbours do not know each other.
const FLOORS: [&[&str]; 8] = [
    &[
        "money",
        "network",
        "channel",
        "claim",
        "limits",
        "ids",
        "refusal",
        "metrics",
        "clock",
        "picture",
        "secret",
        "catalogue",
        "surface",
        "usage",
        "origin",
        "written",
    ],
    &["rules", "openai", "journal", "tokens", "conf"],
    &["store", "chain", "upstream"],
    &["rail"],
    &["flow"],
    &["edge"],
    &["assemble"],
    &["cli", "main", "lib"],
];
/// The ground floor is one vocabulary, the top is the binary.
const OPEN: [usize; 2] = [0, 7];
/// Where money is counted. No float may come near.
const MONEY: [&str; 4] = ["money", "channel", "claim", "rail"];
/// Longest story, in lines that are not tests.
const LONGEST: usize = 600;

/// One file under `src/`.
struct File {
    /// `flow/pay.rs`.
    path: String,
    /// Folder or file on a floor: `flow`.
    room: String,
    /// Modules between it and the crate's root.
    depth: usize,
    /// All of it is tests.
    test: bool,
    text: String,
    source: Source,
}

impl File {
    fn new(path: &str, text: &str) -> Self {
        let parts: Vec<_> = path.trim_end_matches(".rs").split('/').collect();
        let room = parts.first().copied().unwrap_or_default().to_owned();
        let depth = parts.iter().filter(|p| !["mod", "lib", "main"].contains(p)).count();
        Self { path: path.to_owned(), room, depth, test: false, text: text.to_owned(), source: Source::read(text) }
    }

    /// Positions and lines of product code.
    fn product(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let tokens = self.source.tokens.iter().enumerate();
        tokens.filter(|(_, t)| !t.test && !self.test).map(|(at, t)| (at, t.line))
    }

    fn at(&self, line: usize, what: impl std::fmt::Display) -> String {
        format!("src/{}:{line}: {what}", self.path)
    }
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// Every import that goes up or sideways, and every room without a floor. Tests obey like everything else.
fn imports(file: &File) -> Vec<String> {
    let Some(here) = floor(&file.room) else {
        return vec![file.at(1, format!("give {} a floor in tests/floors.rs", file.room))];
    };
    let mut named = file.source.named_from("crate");
    named.extend(file.source.named_by_climbing(file.depth));
    if file.room == "main" {
        named.extend(file.source.named_from("pontage"));
    }
    let wrong = |name: &str| match floor(name) {
        _ if name == file.room => None,
        None => Some("has no floor in tests/floors.rs"),
        Some(there) if there > here => Some("is above"),
        Some(there) if there == here && !OPEN.contains(&here) => Some("is a neighbour"),
        Some(_) => None,
    };
    let mut found: Vec<_> = (named.into_iter())
        .filter_map(|(name, line)| {
            wrong(&name).map(|why| file.at(line, format!("{} uses {name}, which {why}", file.room)))
        })
        .collect();
    found.extend(
        (0..file.source.tokens.len())
            .filter(|at| file.source.stands(*at, &["crate", "as"]))
            .map(|at| file.at(file.source.tokens[at].line, "the crate's root under another name hides imports")),
    );
    found
}

/// Pingora's proxy outside `edge/`.
fn proxies(file: &File) -> Vec<String> {
    let mut found: Vec<_> = (file.source.named_from("pingora").into_iter())
        .filter(|(name, _)| name == "proxy" || name == "pingora_proxy")
        .map(|(_, line)| line)
        .collect();
    let words = file.source.tokens.iter().filter(|t| t.kind == Kind::Word("pingora_proxy".into()));
    found.extend(words.map(|t| t.line));
    found.retain(|_| file.room != "edge");
    found.into_iter().map(|line| file.at(line, "pingora::proxy is known only to edge/")).collect()
}

/// What carries money must not know what carries bytes, rows or blocks.
fn machinery(file: &File) -> Vec<String> {
    let roots = ["pingora", "redb", "redis", "alloy", "tempo_alloy", "mpp"];
    let found =
        roots.iter().flat_map(|root| file.source.named_from(root).into_iter().map(move |(_, line)| (root, line)));
    found.filter(|_| file.room == "flow").map(|(root, line)| file.at(line, format!("flow/ uses {root}"))).collect()
}

/// Floats where money is counted. (A test may weigh its dice.)
fn floats(file: &File) -> Vec<String> {
    let is_float = |kind: &Kind| match kind {
        Kind::Word(word) => word == "f32" || word == "f64",
        Kind::Number(n) if n.starts_with("0x") => false,
        Kind::Number(n) => {
            let tail = n.trim_start_matches(|c: char| c.is_ascii_digit() || c == '_');
            tail.starts_with(['.', 'e', 'E']) || tail.ends_with("f32") || tail.ends_with("f64")
        }
        Kind::Mark(_) | Kind::Text(_) => false,
    };
    let mut found = Vec::new();
    for (at, line) in file.product().filter(|_| MONEY.contains(&file.room.as_str())) {
        if is_float(&file.source.tokens[at].kind) {
            found.push(file.at(line, "a float near money"));
        }
    }
    found
}

/// `unsafe`, anywhere.
fn unsafety(file: &File) -> Vec<String> {
    let words = file.source.tokens.iter().filter(|t| t.kind == Kind::Word("unsafe".into()));
    words.map(|t| file.at(t.line, "unsafe")).collect()
}

/// Ways to panic, outside tests and outside items that are allowed to and say why.
fn panics(file: &File) -> Vec<String> {
    let ways: [&[&str]; 6] = [
        &[".", "unwrap", "(", ")"],
        &[".", "expect", "("],
        &["panic", "!"],
        &["todo", "!"],
        &["unimplemented", "!"],
        &["unreachable", "!"],
    ];
    let mut found = Vec::new();
    for (at, line) in file.product().filter(|(at, _)| !file.source.tokens[*at].excused) {
        // A text argument tells `Option::expect` from a parser's own method of that name.
        let is_text = |i: usize| file.source.tokens.get(i).is_some_and(|t| matches!(t.kind, Kind::Text(_)));
        for way in ways {
            if file.source.stands(at, way) && (way[1] != "expect" || is_text(at + 3)) {
                found.push(file.at(line, format!("{} on the product's path", way.concat())));
            }
        }
    }
    found
}

/// Stories that are too long to be one.
fn length(file: &File) -> Vec<String> {
    let tests: BTreeSet<_> = file.source.tokens.iter().filter(|t| t.test).map(|t| t.line).collect();
    let test_lines = match (tests.first(), tests.last()) {
        (Some(first), Some(last)) => last - first + 1,
        _ => 0,
    };
    let lines = file.text.lines().count() - if file.test { file.text.lines().count() } else { test_lines };
    let long = lines > LONGEST;
    long.then(|| file.at(lines, format!("{lines} lines besides tests; {LONGEST} is the most"))).into_iter().collect()
}

fn house() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    let mut files: Vec<_> = (paths.iter())
        .map(|path| {
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
            File::new(&name, &std::fs::read_to_string(path).unwrap())
        })
        .collect();
    let tests: Vec<_> = files
        .iter()
        .flat_map(|f| f.source.test_files.iter().map(|(name, path)| child(&f.path, name, path.as_deref())))
        .collect();
    for file in &mut files {
        file.test = tests.iter().any(|t| file.path == format!("{t}.rs") || file.path.starts_with(&format!("{t}/")));
    }
    files
}

fn walk(dir: &Path, into: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            walk(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// Where `mod name;` in `path` finds its file, without `.rs`.
fn child(path: &str, name: &str, at: Option<&str>) -> String {
    if let Some(at) = at {
        let folder = path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        return folder + at.trim_end_matches(".rs");
    }
    let stem = path.trim_end_matches(".rs");
    let folder = ["mod", "lib", "main"].iter().find_map(|own| stem.strip_suffix(own)).map(|s| s.trim_end_matches('/'));
    match folder {
        Some("") => name.to_owned(),
        Some(folder) => format!("{folder}/{name}"),
        None => format!("{stem}/{name}"),
    }
}

#[test]
fn the_plan_of_the_house_names_every_room() {
    let plan = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    for (floor, rooms) in FLOORS.iter().enumerate() {
        for room in rooms.iter().filter(|room| !["main", "lib"].contains(room)) {
            let on_it =
                |line: &str| line.starts_with(&format!("//! | {floor} |")) && line.contains(&format!("[`{room}`]"));
            assert!(plan.lines().any(on_it), "src/lib.rs does not say that {room} is on floor {floor}");
        }
    }
}

/// Applies a rule to the whole house.
fn kept(rule: fn(&File) -> Vec<String>) {
    let broken: Vec<_> = house().iter().flat_map(rule).collect();
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

/// Shows that a rule sees what it should and nothing else.
fn sees(rule: fn(&File) -> Vec<String>, cases: &[(&str, &str, usize, &str)]) {
    for (path, text, want, why) in cases {
        let found = rule(&File::new(path, text));
        assert_eq!(found.len(), *want, "{why}\n{path}: {text}\n{found:?}");
    }
}

#[test]
fn nobody_imports_from_above_or_from_a_neighbour() {
    sees(
        imports,
        &[
            ("flow/pay.rs", "use crate::money::Usd; use crate::rail;", 0, "downwards"),
            ("flow/pay.rs", "use crate::edge::reply;", 1, "upwards"),
            ("store/mod.rs", "use crate::chain::Chain;", 1, "sideways"),
            ("claim.rs", "use crate::clock::UnixSeconds;", 0, "the ground floor is one vocabulary"),
            ("claim.rs", "use crate::tokens::count;", 1, "the ground floor knows nothing above it"),
            ("rail/x.rs", "use crate::rail::Offer;", 0, "its own folder"),
            ("rail/x.rs", "use crate::{money::{Atoms, Usd}, flow::{pay, Toll}, edge};", 2, "inside braces"),
            ("rail/x.rs", "use crate::{ids::{self, RailId}, store::Store,};", 0, "names after the first are not rooms"),
            ("rail/x.rs", "fn f() { crate::flow::pay::pay() }", 1, "a path in code"),
            ("rail/x.rs", "// use crate::flow;\n/* crate::flow /* x */ */ let s = \"crate::flow\";", 0, "words only"),
            ("rail/x.rs", "let s = r#\"\"crate::flow\"#; let c = '\"'; crate::flow::f()", 1, "after odd strings"),
            ("rail/x.rs", "fn f<'a>(x: &'a str) -> &'a str { crate::edge::g(x) }", 1, "lifetimes are not characters"),
            ("rail/x.rs", "pub(crate) fn f() {} pub(in crate::flow) fn g() {}", 1, "visibility"),
            ("rail/mpp/x.rs", "use super::super::super::flow::pay;", 1, "climbing to the root"),
            ("rail/mpp/x.rs", "use super::super::Offer;", 0, "climbing inside its own folder"),
            ("rail/x.rs", "mod tests { use super::super::Offer; }", 0, "one climb leaves the inner module"),
            ("money.rs", "mod tests { use super::super::flow::f; }", 1, "a test obeys, too"),
            ("rail/x.rs", "#[cfg(test)] mod tests { use crate::edge::x; }", 1, "a test obeys, too"),
            ("rail/x.rs", "use crate as gate;", 1, "another name for the root"),
            ("rail/x.rs", "use crate::utils::x;", 1, "a room without a floor"),
            ("helpers.rs", "", 1, "a file without a floor"),
            ("main.rs", "fn main() { pontage::cli::main() }", 0, "the binary"),
        ],
    );
    kept(imports);
}

#[test]
fn only_the_edge_knows_pingoras_proxy() {
    sees(
        proxies,
        &[
            ("edge/gate.rs", "use pingora::proxy::ProxyHttp;", 0, "at home"),
            ("flow/pay.rs", "use pingora::proxy::Session;", 1, "elsewhere"),
            ("assemble.rs", "use pingora::{apps::X, proxy::{HttpProxy}};", 1, "in braces"),
            ("upstream/pool.rs", "use pingora_proxy::Session;", 1, "by its crate"),
            ("upstream/pool.rs", "use pingora::lb::Backend;", 0, "another part of Pingora"),
        ],
    );
    kept(proxies);
}

#[test]
fn the_flow_knows_no_proxy_no_database_and_no_chain_client() {
    sees(
        machinery,
        &[
            ("flow/pay.rs", "use alloy::primitives::B256;", 1, "a chain's types"),
            ("flow/pay.rs", "let x = redb::Database::open(p);", 1, "a database"),
            ("chain/tempo.rs", "use alloy::primitives::B256;", 0, "where they belong"),
        ],
    );
    kept(machinery);
}

#[test]
fn no_float_comes_near_money() {
    sees(
        floats,
        &[
            ("money.rs", "fn f(x: f64) {}", 1, "a type"),
            ("rail/mpp/x.rs", "let x = 1.5;", 1, "a number"),
            ("rail/mpp/x.rs", "let x = 2f32 + 1e3;", 2, "a suffix and an exponent"),
            ("claim.rs", "let x = 1..5; let y = 1.max(2); let z = 0xe0; t.0.1; 1_usize", 0, "dots that are no floats"),
            ("claim.rs", "#[cfg(test)] mod tests { fn f() { weighted(0.5); } }", 0, "a test's dice"),
            ("metrics.rs", "let x: f64 = 1.0;", 0, "what is shown is not what is counted"),
        ],
    );
    kept(floats);
}

#[test]
fn nothing_is_unsafe() {
    sees(
        unsafety,
        &[
            ("money.rs", "unsafe { f() }", 1, "a block"),
            ("money.rs", "#![forbid(unsafe_code)] // unsafe", 0, "the word alone"),
        ],
    );
    kept(unsafety);
}

#[test]
fn no_request_can_meet_a_panic_of_ours() {
    sees(
        panics,
        &[
            ("flow/x.rs", "fn f() { x.unwrap(); y.expect(\"z\"); panic!(\"no\"); unreachable!() }", 4, "all of them"),
            ("flow/x.rs", "fn f() { x.unwrap_or(1); y.unwrap_or_default(); self.expect(b); }", 0, "their cousins"),
            (
                "flow/x.rs",
                "#[cfg(test)]\nmod tests { fn f() { x.unwrap() } }\nfn g() { y.unwrap() }",
                1,
                "after a test",
            ),
            ("flow/x.rs", "#[cfg(not(test))]\nfn f() { x.unwrap() }", 1, "the opposite of a test"),
            (
                "flow/x.rs",
                "#[test]\nfn f() {}\n#[cfg(all(test, unix))] fn g() { x.unwrap() }",
                0,
                "a test with a condition",
            ),
            (
                "flow/x.rs",
                "/// Literals.\n#[allow(clippy::expect_used)]\nfn f() { x.expect(\"y\") }",
                0,
                "allowed, and says why",
            ),
            (
                "flow/x.rs",
                "#[expect(clippy::panic, reason = \"start\")]\nfn f() { panic!() }",
                0,
                "allowed, and says why",
            ),
            (
                "flow/x.rs",
                "fn a() {}\n#[allow(clippy::expect_used)]\nfn f() { x.expect(\"y\") }",
                1,
                "allowed without a reason",
            ),
            ("flow/x.rs", "/// Why.\n#[allow(clippy::panic)]\nfn f() {}\nfn g() { panic!() }", 1, "only that item"),
        ],
    );
    kept(panics);
}

#[test]
fn no_file_is_too_long_to_be_one_story() {
    let long = "fn f() {}\n".repeat(LONGEST + 1);
    let tested = format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{\n{long}}}\n");
    sees(length, &[("flow/x.rs", &long, 1, "too long"), ("flow/x.rs", &tested, 0, "tests are tables, not the story")]);
    kept(length);
}

#[test]
fn a_file_of_tests_is_found_where_it_is_declared() {
    for (path, text, want) in [
        ("conf.rs", "#[cfg(test)]\nmod tests;", "conf/tests"),
        ("rail/mpp/mod.rs", "#[cfg(test)] #[rustfmt::skip] mod charge_tests;", "rail/mpp/charge_tests"),
        ("rail/mpp/charge.rs", "#[cfg(test)]\n#[path = \"charge_tests.rs\"]\nmod tests;", "rail/mpp/charge_tests"),
        ("lib.rs", "#[cfg(test)] pub(crate) mod bed;", "bed"),
    ] {
        let source = Source::read(text);
        let found: Vec<_> = source.test_files.iter().map(|(name, at)| child(path, name, at.as_deref())).collect();
        assert_eq!(found, [want], "{path}");
    }
    assert!(
        Source::read("#[cfg(test)] mod tests { mod inner; }").test_files.is_empty(),
        "a module with a body is no file"
    );
}

#[test]
fn the_whole_house_was_looked_at() {
    let house = house();
    for room in ["money", "rules", "store", "rail", "flow", "edge", "cli", "main"] {
        assert!(
            house.iter().any(|f| f.room == room),
            "src/{room} was not found: is the test looking in the right place?"
        );
    }
    assert!(house.iter().all(|f| f.text.trim().is_empty() || !f.source.tokens.is_empty() || f.text.starts_with("//")));
}
