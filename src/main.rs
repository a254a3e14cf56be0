//! The thin binary: arguments → `pontage::cli`.

use std::process::ExitCode;

/// Requests move between threads, and what one of them allocated another frees.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    pontage::cli::main()
}
