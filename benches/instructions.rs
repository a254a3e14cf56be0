//! Instructions of the bounded costs, counted by valgrind: the same figure on a busy and on an idle machine, so a regression
//! shows where times would only waver. Each case runs twice in a process of its own, N and 2N times; the difference is what
//! the loop costs, start-up excluded.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cases;

use std::hint::black_box;
use std::process::Command;

/// Name, loops, operations in one loop.
const CASES: [(&str, u64, u64, &str); 10] = [
    ("challenge", 40, 1, "402 for a 1.2 KB request"),
    ("x402", 40, 1, "the same with four x402 offers"),
    ("reading", 10, 1, "read, check, rewrite 64 KB"),
    ("metering", 5, cases::Metering::EVENTS, "one SSE event"),
    ("covering", 5, cases::Metering::EVENTS, "the same, its tokens counted for cover"),
    ("running", 5, cases::Metering::EVENTS, "the same, the backend's running figure on every event"),
    ("shown", 5, cases::Metering::EVENTS, "the same, of a backend that shows all the output it bills"),
    ("selection", 1000, 1, "one server chosen among 100, and given back"),
    ("books", 128, 1, "the durable write of a paid session call"),
    ("crowded", 32, cases::books::CROWD, "the same, of 32 calls at once"),
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, case, loops] = arguments.as_slice()
        && flag == "--run"
    {
        return run(case, loops.parse().unwrap());
    }
    let missing = || println!("instructions: valgrind is missing; install the Debian package valgrind to count them");
    if Command::new("valgrind").arg("--version").output().is_err() {
        return missing();
    }
    for (case, loops, operations, what) in CASES {
        let (once, twice) = (count(case, loops), count(case, 2 * loops));
        println!("{:>12} instructions  {what}", (twice - once) / (loops * operations));
    }
}

fn run(case: &str, loops: u64) {
    match case {
        "challenge" => {
            let case = cases::Challenge::prepare();
            for _ in 0..loops {
                black_box(case.run());
            }
        }
        "x402" => {
            let case = cases::Challenge::with(&cases::X402);
            for _ in 0..loops {
                black_box(case.run());
            }
        }
        "reading" => {
            let case = cases::Reading::prepare();
            for _ in 0..loops {
                black_box(case.run());
            }
        }
        "selection" => {
            let mut case = cases::Selection::prepare(100, pontage::rules::plan::Balance::LeastOutstanding);
            for _ in 0..loops {
                case.run();
            }
        }
        "books" => {
            let mut case = cases::books::Books::prepare();
            for _ in 0..loops {
                case.run();
            }
        }
        "crowded" => {
            let mut case = cases::books::Books::prepare();
            for _ in 0..loops {
                case.crowd();
            }
        }
        _ => {
            let case = cases::Metering::prepare(match case {
                "metering" => cases::Kind::Counted,
                "covering" => cases::Kind::Covered,
                "running" => cases::Kind::Running,
                _ => cases::Kind::Shown,
            });
            for _ in 0..loops {
                black_box(case.run());
            }
        }
    }
}

fn count(case: &str, loops: u64) -> u64 {
    let program = std::env::current_exe().unwrap();
    let out = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["--run", case, &loops.to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    let collected = said.lines().find_map(|line| line.split("Collected :").nth(1));
    let Some(collected) = collected else { panic!("valgrind counted nothing:\n{said}") };
    collected.trim().parse().unwrap()
}
