//! A ring of hashes: a key belongs to the first server at or after it, and when servers come or go only their own keys move.
//!
//! Ours rather than Ketama of pingora-load-balancing: that one hashes socket addresses, and most of our servers are names; a
//! provider that moves would take all of its keys elsewhere, and every gate of a fleet would disagree until all had seen it.

/// Points of a server of mean weight: shares come out within a few per cent.
const POINTS: u64 = 128;

/// Points on the ring, each with the position of its server.
#[derive(Debug, Default)]
pub(super) struct Ring(Box<[(u64, usize)]>);

impl Ring {
    /// Of servers in order, by name and weight. Depends on nothing else, so that all gates agree.
    pub fn of<'a>(servers: impl Iterator<Item = (&'a str, u32)> + Clone) -> Self {
        let (count, weight) = servers.clone().fold((0u64, 0u64), |(n, w), (_, weight)| (n + 1, w + u64::from(weight)));
        let mut points = Vec::new();
        for (position, (name, share)) in servers.enumerate() {
            let share = (POINTS * count * u64::from(share)).checked_div(weight).unwrap_or(1).max(1);
            let seed = hash(name.as_bytes());
            points.extend((0..share).map(|n| (mixed(seed ^ mixed(n)), position)));
        }
        points.sort_unstable();
        Self(points.into())
    }

    /// The servers from `key` on, around the ring; one comes as often as it has points.
    pub fn from(&self, key: u64) -> impl Iterator<Item = usize> {
        let at = self.0.partition_point(|(point, _)| *point < key);
        let (before, after) = self.0.split_at_checked(at).unwrap_or((&[], &self.0));
        after.iter().chain(before).map(|(_, position)| *position)
    }
}

/// FNV-1a with its bits mixed: the same in every process, and fast on short text. No secret: whoever may choose a key may
/// choose its server.
pub(super) fn hash<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    mixed(bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

/// The finisher of SplitMix64: every bit of the input moves half of the output's.
pub(super) fn mixed(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn owners(names: &[(&str, u32)]) -> Vec<String> {
        let ring = Ring::of(names.iter().copied());
        (0..10_000).map(|n| names[ring.from(mixed(n)).next().unwrap()].0.to_owned()).collect()
    }

    #[test]
    fn keys_are_shared_by_weight() {
        let owned = owners(&[("a", 1), ("b", 1), ("c", 2)]);
        for (name, share) in [("a", 2_500), ("b", 2_500), ("c", 5_000)] {
            let has = owned.iter().filter(|o| *o == name).count();
            assert!(has.abs_diff(share) < 700, "{name} has {has} of 10000");
        }
    }

    #[test]
    fn when_a_server_leaves_only_its_own_keys_move() {
        let before = owners(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)]);
        let after = owners(&[("a", 1), ("b", 1), ("d", 1)]);
        let moved = before.iter().zip(&after).filter(|(b, a)| b != a);
        assert!(moved.clone().all(|(b, _)| b == "c"));
        assert!(moved.count() > 1_500);
    }

    #[test]
    fn around_the_ring_everyone_is_met_whatever_the_key() {
        let ring = Ring::of([("a", 1), ("b", 1000)].into_iter());
        for key in [0, 1, u64::MAX / 2, u64::MAX] {
            let met: std::collections::BTreeSet<_> = ring.from(key).collect();
            assert_eq!(met.into_iter().collect::<Vec<_>>(), [0, 1], "{key}");
        }
        assert_eq!(Ring::default().from(7).next(), None);
    }
}
