//! The thin binary: arguments → `pontage::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pontage::cli::main()
}
