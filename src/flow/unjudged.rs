//! Openings that an access key signed and the chain has not judged. Anybody can make one that names any payer: where the chain's keychain
//! does not know the key it is refused at once. Any other may still be one that its key is not allowed (limits, calls), or that its payer
//! takes back: it is not counted as a channel of the payer it names, and of all such openings only a few may be under way at this gate.

use crate::channel::ChannelId;
use crate::clock::UnixSeconds;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Openings under way that name one payer.
const OF_ONE_PAYER: usize = 4;
/// Openings under way altogether.
const ALL: usize = 32;
/// After the end of its validity, an opening is judged within so many seconds wherever the chain answers.
const JUDGED_WITHIN: u64 = 60;

/// Those under way at this gate.
#[derive(Default)]
pub(super) struct Unjudged(Mutex<HashMap<ChannelId, Named>>);

struct Named {
    payer: String,
    /// It is over by then, whether its end was heard of or not.
    until: UnixSeconds,
}

impl Unjudged {
    /// Counts the opening of `channel`, that can be mined until `valid_until`; `false` when too many are under way. The same
    /// opening is counted once.
    pub fn enter(&self, channel: &ChannelId, payer: &str, valid_until: UnixSeconds, now: UnixSeconds) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other, named| named.until > now && other != channel);
        if all.len() >= ALL || all.values().filter(|named| named.payer == payer).count() >= OF_ONE_PAYER {
            return false;
        }
        let until = valid_until.plus(JUDGED_WITHIN);
        all.insert(channel.clone(), Named { payer: payer.to_owned(), until });
        true
    }

    /// Its end is known, or it was never sent.
    pub fn leave(&self, channel: &ChannelId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(channel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_openings_of_one_payer_and_of_all_are_under_way_until_their_end() {
        let (all, now) = (Unjudged::default(), UnixSeconds(1_000));
        let enter = |id: &str, payer: &str, now| all.enter(&ChannelId(id.to_owned()), payer, UnixSeconds(1_025), now);
        for n in 0..OF_ONE_PAYER {
            assert!(enter(&format!("a{n}"), "a", now));
        }
        assert!(!enter("a9", "a", now), "one more of this payer");
        assert!(enter("a0", "a", now), "a copy is no second one");
        for n in OF_ONE_PAYER..ALL {
            assert!(enter(&format!("b{n}"), &format!("b{n}"), now), "{n}");
        }
        assert!(!enter("c", "c", now), "one more of all");
        all.leave(&ChannelId("a0".to_owned()));
        assert!(enter("c", "c", now), "one is judged");
        assert!(!enter("d", "d", UnixSeconds(1_025 + JUDGED_WITHIN - 1)), "not over yet");
        assert!(enter("d", "d", UnixSeconds(1_025 + JUDGED_WITHIN)), "what nobody heard of again is over");
    }
}
