//! `pontage audit`: are the books whole, and what do they add up to? The gate must be stopped.

use crate::store::embedded::Embedded;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Audits the stores at `paths` and prints what it found, one fact a line; several are the journals of the gates of one fleet, and
/// are compared with each other. Exit code 0: the books are sound (what is owed is listed and is no fault); 1: a journal is broken
/// or contradicts the claims or another journal; 2: a store cannot be read.
pub fn run(paths: &[PathBuf]) -> ExitCode {
    let mut out = io::stdout().lock();
    let code = match paths {
        [path] => report(path, &mut out),
        paths => together(paths, &mut out),
    };
    // Exit code 2 also when nobody can read the report: silence must not look like sound books.
    ExitCode::from(code.unwrap_or(2))
}

fn together(paths: &[PathBuf], out: &mut impl Write) -> io::Result<u8> {
    match Embedded::audit_fleet(paths) {
        Ok((parts, together)) => {
            for (path, part) in paths.iter().zip(&parts) {
                write!(out, "store     {}\n{part}", path.display())?;
            }
            write!(out, "{together}")?;
            out.flush()?;
            Ok(u8::from(!together.is_sound() || parts.iter().any(|part| !part.is_sound())))
        }
        Err(error) => {
            writeln!(io::stderr(), "{error}")?;
            Ok(2)
        }
    }
}

fn report(path: &Path, out: &mut impl Write) -> io::Result<u8> {
    match Embedded::audit(path) {
        Ok(found) => {
            write!(out, "{found}")?;
            out.flush()?;
            Ok(u8::from(!found.is_sound()))
        }
        Err(error) => {
            writeln!(io::stderr(), "{error}")?;
            Ok(2)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::claim::{Op, sample};
    use crate::clock::UnixSeconds;
    use crate::journal::{Entry, sample::receipt};
    use crate::store::{Store, Write as Commit};

    fn audit(path: &Path) -> (u8, String) {
        let mut out = Vec::new();
        let code = report(path, &mut out).unwrap();
        (code, String::from_utf8(out).unwrap())
    }

    #[tokio::test]
    async fn the_operator_sees_sums_debts_and_contradictions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pontage.redb");
        assert_eq!(audit(&path).0, 2, "no store");
        assert!(!path.exists(), "and none is made");

        let store = Embedded::open(&path).unwrap();
        let at = UnixSeconds(1_795_221_720);
        let claim = sample::claim("a", 20_000);
        let reference = claim.reference.clone();
        let owed = claim.apply(Op::PayUnserved { transaction: None }, at).unwrap();
        let claimed = Entry::Claimed { key: "a".into(), amount: claim.terms.amount, reference: reference.clone(), at };
        let paid = Entry::Paid { key: "a".into(), at };
        for (claim, entry) in [(claim, claimed), (owed, paid)] {
            store.commit(Commit { claim: Some(claim), journal: vec![entry], ..Commit::default() }).await.unwrap();
        }
        drop(store);
        let (code, said) = audit(&path);
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("owed      a paid 20000 atoms at 2026-11-21T00:42:00Z"), "{said}");
        assert!(said.ends_with("result    sound\n"), "{said}");

        let store = Embedded::open(&path).unwrap();
        let sold = Entry::Receipt(Box::new(receipt("rcpt_1", &reference, 20_000)));
        store.commit(Commit { journal: vec![sold], ..Commit::default() }).await.unwrap();
        drop(store);
        let (code, said) = audit(&path);
        assert_eq!(code, 1, "a receipt without its delivery: {said}");
        assert!(
            said.contains("charged   2026-11-21 tempo/charge $0.02 = 20000 atoms of 6 decimals, 1 receipts"),
            "{said}"
        );
        assert!(said.contains("fault     a has receipt rcpt_1 and is not delivered"), "{said}");
    }
}
