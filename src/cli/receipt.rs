//! `pontage receipt verify`

use crate::flow::receipt::unseal;
use std::process::ExitCode;

/// Prints the receipt if its signature holds.
pub fn verify(key: &str, sealed: &str) -> ExitCode {
    match unseal(sealed.trim(), key.trim()) {
        Some(receipt) => {
            println!("{receipt:#}");
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("this is not a receipt signed by that key");
            ExitCode::FAILURE
        }
    }
}
