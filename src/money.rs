//! Money is integers: US dollars as counts of 1e-18, assets as counts of their smallest unit. No float, no sign.
//!
//! Rounding happens once per request, up, at [`Usd::to_atoms`]: the seller never gives away a part-atom, the buyer
//! never pays two roundings (a ceiling of a ceiling on whole multiples is the ceiling of the exact value).

use std::fmt;

const SCALE_DIGITS: usize = 18;
const ONE_USD: u128 = 1_000_000_000_000_000_000;

/// US dollars as an integer count of 1e-18. The largest value is 2^128 of those, about 3.4e20 dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Usd(pub u128);

/// A count of the smallest unit of one asset (6-decimal dollar token: 1 = $0.000001). Which asset it counts is
/// carried by what is around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Atoms(pub u128);

/// Why a text is not an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AmountError {
    /// Not plain ASCII decimal digits with at most one point: no sign, exponent, space, or leading zero before another digit.
    NotDecimal,
    /// More digits after the point than can be kept exactly.
    TooFine,
    /// Larger than the integer can hold.
    TooLarge,
}

impl fmt::Display for AmountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotDecimal => "is not a plain decimal number such as \"0.02\"",
            Self::TooFine => "has more decimal places than can be kept exactly",
            Self::TooLarge => "is too large",
        })
    }
}

/// Reads `text` as a decimal scaled by 10^`scale`, exactly.
fn parse_scaled(text: &str, scale: usize) -> Result<u128, AmountError> {
    let (whole, part) = match text.split_once('.') {
        Some((_, "")) => return Err(AmountError::NotDecimal),
        Some((w, p)) => (w, p),
        None => (text, ""),
    };
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) || (whole.len() > 1 && whole.starts_with('0')) {
        return Err(AmountError::NotDecimal);
    }
    let part = part.trim_end_matches('0');
    if part.len() > scale {
        return Err(AmountError::TooFine);
    }
    let mut value: u128 = 0;
    for b in whole.bytes().chain(part.bytes()).chain(std::iter::repeat_n(b'0', scale - part.len())) {
        value = value.checked_mul(10).and_then(|v| v.checked_add(u128::from(b - b'0'))).ok_or(AmountError::TooLarge)?;
    }
    Ok(value)
}

/// As many digits as the largest amount has.
const MOST_DIGITS: usize = 39;

/// The digits of `value`, at least `least` of them, in `room`. Every record and every line of the journal is full of amounts: no
/// allocation, and 128 bits are divided only where there are as many.
fn digits(mut value: u128, least: usize, room: &mut [u8; MOST_DIGITS]) -> &str {
    let mut count = 0;
    for place in room.iter_mut().rev() {
        let digit = match u64::try_from(value) {
            Ok(small) => {
                value = u128::from(small / 10);
                small % 10
            }
            Err(_) => {
                let digit = value % 10;
                value /= 10;
                digit as u64
            }
        };
        *place = b'0' + digit as u8;
        count += 1;
        if value == 0 && count >= least {
            break;
        }
    }
    room.get(MOST_DIGITS - count..).and_then(|digits| std::str::from_utf8(digits).ok()).unwrap_or_default()
}

fn write_scaled(value: u128, scale: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut room = [0; MOST_DIGITS];
    let text = digits(value, scale + 1, &mut room);
    let (whole, part) = text.split_at(text.len() - scale);
    f.write_str(whole)?;
    match part.trim_end_matches('0') {
        "" => Ok(()),
        part => {
            f.write_str(".")?;
            f.write_str(part)
        }
    }
}

impl Usd {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// One dollar.
    pub const ONE: Self = Self(ONE_USD);

    /// Reads a decimal string such as `"0.02"`, at most 18 places, exactly.
    pub fn parse(text: &str) -> Result<Self, AmountError> {
        parse_scaled(text, SCALE_DIGITS).map(Self)
    }

    /// Reads a number as JSON writes it (`0.0012`, `1e-07`), rounded **up** to what can be kept. `None` when it is negative, is no
    /// number or is past the largest amount.
    pub fn of_number(text: &str) -> Option<Self> {
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) {
            return None;
        }
        let exponent: i64 = exponent.parse::<i32>().ok()?.into();
        // So many of its digits stand before the point of the scaled number; beyond 38 zeros it is past any amount.
        let kept = i64::try_from(whole.len()).ok()?.checked_add(exponent)?.checked_add(SCALE_DIGITS as i64)?;
        let all = || whole.bytes().chain(part.bytes());
        if all().all(|b| b == b'0') {
            return Some(Self::ZERO);
        }
        let kept = usize::try_from(kept.max(0)).ok().filter(|kept| *kept <= text.len() + 64)?;
        let mut value: u128 = 0;
        for b in all().chain(std::iter::repeat(b'0')).take(kept) {
            value = value.checked_mul(10)?.checked_add(u128::from(b - b'0'))?;
        }
        let more = all().skip(kept).any(|b| b != b'0');
        value.checked_add(u128::from(more)).map(Self)
    }

    /// Sum, or `None` past the largest amount.
    pub fn plus(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// `self − other`, or zero when `other` is larger.
    pub fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// How many of `unit` this is, as a decimal of at most 12 places, cut off: for display only. `"0"` when a unit is worth nothing.
    pub fn counted_in(self, unit: Self) -> String {
        let parts = || {
            let whole = self.0.checked_div(unit.0)?;
            let rest = (self.0 % unit.0).checked_mul(1_000_000_000_000)? / unit.0;
            Some(Self(whole.checked_mul(ONE_USD)?.checked_add(rest * 1_000_000)?).to_string())
        };
        parts().unwrap_or_else(|| "0".to_owned())
    }

    /// Smallest count of an asset with `decimals` that is worth at least this much. `None` past the largest count.
    pub fn to_atoms(self, decimals: u8) -> Option<Atoms> {
        let shift = 10u128.checked_pow(u32::from(decimals.abs_diff(SCALE_DIGITS as u8)))?;
        if usize::from(decimals) <= SCALE_DIGITS {
            Some(Atoms(self.0.div_ceil(shift)))
        } else {
            self.0.checked_mul(shift).map(Atoms)
        }
    }
}

impl fmt::Display for Usd {
    /// The exact decimal, without trailing zeros: `0.0201`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(self.0, SCALE_DIGITS, f)
    }
}

impl Atoms {
    /// What these atoms are worth when one whole unit is one dollar, exactly. `None` for more than 18 decimals or past the
    /// largest amount.
    pub fn to_usd(self, decimals: u8) -> Option<Usd> {
        let missing = SCALE_DIGITS.checked_sub(usize::from(decimals))?;
        self.0.checked_mul(10u128.checked_pow(u32::try_from(missing).ok()?)?).map(Usd)
    }

    /// Digits only, as MPP and x402 write amounts. `None` for signs, spaces, leading zeros, or past `u128`.
    pub fn parse(text: &str) -> Option<Self> {
        if text.contains('.') {
            return None;
        }
        parse_scaled(text, 0).ok().map(Self)
    }
}

impl fmt::Display for Atoms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What one token costs, as an exact count of 1e-18 USD. Operators write USD per million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PerToken(pub u128);

impl PerToken {
    /// Reads USD per 1,000,000 tokens, at most 12 decimal places, exactly.
    pub fn per_million(text: &str) -> Result<Self, AmountError> {
        parse_scaled(text, SCALE_DIGITS - 6).map(Self)
    }

    /// Price of `tokens`. `None` past the largest amount.
    pub fn of(self, tokens: u64) -> Option<Usd> {
        self.0.checked_mul(u128::from(tokens)).map(Usd)
    }

    /// How many tokens `budget` buys, rounded down; `None` when tokens are free.
    pub fn affordable(self, budget: Usd) -> Option<u64> {
        (self.0 != 0).then(|| u64::try_from(budget.0 / self.0).unwrap_or(u64::MAX))
    }

    /// The same price as USD per million tokens, exact decimal.
    pub fn as_per_million(self) -> String {
        struct Show(u128);
        impl fmt::Display for Show {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_scaled(self.0, SCALE_DIGITS - 6, f)
            }
        }
        Show(self.0).to_string()
    }

    /// The same price as USD per token, exact decimal (the form of `/v1/models`).
    pub fn as_per_token(self) -> String {
        Usd(self.0).to_string()
    }
}

/// A factor such as 1.5, with at most 6 decimal places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Factor(u128);

impl Factor {
    /// Exactly 1.
    pub const ONE: Self = Self(1_000_000);
    /// 1.5, the default overhead of an estimate.
    pub const ONE_AND_A_HALF: Self = Self(1_500_000);

    /// Reads a decimal string such as `"1.5"`.
    pub fn parse(text: &str) -> Result<Self, AmountError> {
        parse_scaled(text, 6).map(Self)
    }

    /// `amount` times this factor, rounded up at 1e-18 USD. `None` past the largest amount.
    pub fn times(self, amount: Usd) -> Option<Usd> {
        amount.0.checked_mul(self.0).map(|v| Usd(v.div_ceil(1_000_000)))
    }

    /// The most that times this factor is at most `amount`, rounded down; all there is when the factor is zero.
    pub fn undo(self, amount: Usd) -> Usd {
        let (whole, part) = (amount.0.checked_div(self.0), amount.0.checked_rem(self.0));
        let (Some(whole), Some(part)) = (whole, part) else { return Usd(u128::MAX) };
        let part = part.saturating_mul(1_000_000) / self.0;
        Usd(whole.saturating_mul(1_000_000).saturating_add(part))
    }

    /// What is left of one when this is taken off it; `None` when that is nothing.
    pub fn rest(self) -> Option<Self> {
        Self::ONE.0.checked_sub(self.0).filter(|rest| *rest > 0).map(Self)
    }

    /// Whether this is less than one.
    pub fn below_one(self) -> bool {
        self < Self::ONE
    }
}

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(self.0, 6, f)
    }
}

// Amounts are text on every wire and in every record: JSON numbers are floats to most readers.
impl serde::Serialize for Usd {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl serde::Serialize for Atoms {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(digits(self.0, 1, &mut [0; MOST_DIGITS]))
    }
}

macro_rules! from_text {
    ($type:ty, $read:expr) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(d)?;
                let read: fn(&str) -> Option<Self> = $read;
                read(&text).ok_or_else(|| serde::de::Error::custom("not an amount"))
            }
        }
    };
}

from_text!(Usd, |t| Usd::parse(t).ok());
from_text!(Atoms, Atoms::parse);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_amount_is_shown_in_credits_exactly_where_that_can_be_written() {
        for (usd, unit, want) in [
            ("0.0125", "0.01", "1.25"),
            ("0.000001", "0.01", "0.0001"),
            ("0", "0.01", "0"),
            ("123456789.5", "0.01", "12345678950"),
            ("1", "3", "0.333333333333"),
            ("1", "0", "0"),
        ] {
            let (usd, unit) = (Usd::parse(usd).unwrap(), Usd::parse(unit).unwrap());
            assert_eq!(usd.counted_in(unit), want, "{usd} in units of {unit}");
        }
    }

    #[test]
    fn an_amount_is_written_with_all_its_digits_and_read_again() {
        let edges =
            [0, 1, 9, 10, 84, u128::from(u64::MAX), u128::from(u64::MAX) + 1, 10 * ONE_USD, u128::MAX - 1, u128::MAX];
        for amount in edges {
            let text = serde_json::to_string(&Atoms(amount)).unwrap();
            assert_eq!(text, format!("\"{amount}\""));
            assert_eq!(serde_json::from_str::<Atoms>(&text).unwrap(), Atoms(amount));
            let text = serde_json::to_string(&Usd(amount)).unwrap();
            assert_eq!(serde_json::from_str::<Usd>(&text).unwrap(), Usd(amount), "{text}");
        }
        for (amount, want) in
            [(0, "0"), (1, "0.000000000000000001"), (ONE_USD, "1"), (20_100_000_000_000_000, "0.0201")]
        {
            assert_eq!(Usd(amount).to_string(), want);
        }
    }

    #[test]
    fn a_number_of_json_is_read_exactly_and_what_is_too_fine_rounds_up() {
        for (text, want, why) in [
            ("0.95", Some(950_000_000_000_000_000), "a cost"),
            ("1e-07", Some(100_000_000_000), "as Python writes it"),
            ("1E+0", Some(ONE_USD), "capital, signed"),
            ("2.9999900000000002e-06", Some(2_999_990_000_001), "float noise is a little more"),
            ("2.9999900000000000e-06", Some(2_999_990_000_000), "zeros are none"),
            ("0.0000000000000000001", Some(1), "finer than the unit"),
            ("1e-400", Some(1), "much finer"),
            ("0", Some(0), "nothing"),
            ("0e999", Some(0), "nothing, whatever the exponent"),
            ("170141183460469231731", Some(170_141_183_460_469_231_731 * ONE_USD), "large"),
            ("1e21", None, "too large"),
            ("1e2000000000", None, "far too large"),
            ("1e99999999999", None, "an exponent that is none"),
            ("-0.1", None, "negative"),
            ("\"0.1\"", None, "text"),
            (".5", None, "no whole part"),
            ("5.", None, "no part"),
            ("1_0", None, "no number"),
            ("", None, "empty"),
        ] {
            assert_eq!(Usd::of_number(text), want.map(Usd), "{text}: {why}");
        }
    }

    #[test]
    fn amounts_are_read_strictly() {
        for (text, want, why) in [
            ("0.02", Ok(Usd(20_000_000_000_000_000)), "plain"),
            ("1", Ok(Usd::ONE), "whole"),
            ("1.50", Ok(Usd(1_500_000_000_000_000_000)), "trailing zero"),
            ("0.000000000000000001", Ok(Usd(1)), "finest"),
            ("0.0000000000000000001", Err(AmountError::TooFine), "one place too many"),
            ("", Err(AmountError::NotDecimal), "empty"),
            (".5", Err(AmountError::NotDecimal), "no whole part"),
            ("1.", Err(AmountError::NotDecimal), "bare point"),
            ("1e3", Err(AmountError::NotDecimal), "exponent"),
            ("+5", Err(AmountError::NotDecimal), "sign"),
            ("-5", Err(AmountError::NotDecimal), "negative"),
            ("0x10", Err(AmountError::NotDecimal), "hex"),
            ("007", Err(AmountError::NotDecimal), "leading zeros"),
            ("1_000", Err(AmountError::NotDecimal), "separators"),
            ("٣", Err(AmountError::NotDecimal), "digits of another script"),
            ("999999999999999999999", Err(AmountError::TooLarge), "past u128"),
        ] {
            assert_eq!(Usd::parse(text), want, "{why}");
        }
        assert_eq!(Atoms::parse("340282366920938463463374607431768211456"), None, "2^128");
        assert_eq!(Atoms::parse("1.0"), None, "atoms are whole");
    }

    #[test]
    fn part_atoms_round_up_in_the_sellers_favour() {
        for (usd, decimals, want, why) in [
            ("0.02", 6, 20_000, "exact"),
            ("0.0000001", 6, 1, "smallest sale"),
            ("0.0000010000000001", 6, 2, "just past one atom"),
            ("0", 6, 0, "nothing"),
            ("0.02", 18, 20_000_000_000_000_000, "18 decimals"),
        ] {
            assert_eq!(Usd::parse(usd).unwrap().to_atoms(decimals), Some(Atoms(want)), "{why}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(v in any::<u128>()) {
            prop_assert_eq!(Usd::parse(&Usd(v).to_string()), Ok(Usd(v)));
        }

        #[test]
        fn rounding_twice_is_rounding_once(v in 0u128..u128::MAX / 2_000_000, f in 1u128..2_000_000) {
            let exact_numerator = v.checked_mul(f);
            prop_assume!(exact_numerator.is_some());
            let once = exact_numerator.unwrap_or(0).div_ceil(1_000_000_000_000u128 * 1_000_000);
            let twice = Factor(f).times(Usd(v)).and_then(|u| u.to_atoms(6));
            prop_assert_eq!(twice, Some(Atoms(once)));
        }

        #[test]
        fn what_is_read_up_is_the_same_or_the_next(v in any::<u64>(), places in 0u32..24) {
            let digits = format!("{v:0>25}");
            let (whole, part) = digits.split_at(25 - places as usize);
            let whole = whole.trim_start_matches('0');
            let text = format!("{}{whole}.{part}0", if whole.is_empty() { "0" } else { "" });
            let exact = if places <= 18 {
                u128::from(v).checked_mul(10u128.pow(18 - places))
            } else {
                Some(u128::from(v).div_ceil(10u128.pow(places - 18)))
            };
            prop_assert_eq!(Usd::of_number(&text), exact.map(Usd), "{}", text);
            prop_assert_eq!(Usd::of_number(&format!("{v}e-{places}")), exact.map(Usd));
        }

        #[test]
        fn what_is_undone_costs_no_more_than_was_there(f in 1u128..1_000_001, v in 0u128..1u128 << 100) {
            let list = Factor(f).undo(Usd(v));
            prop_assert!(Factor(f).times(list).unwrap() <= Usd(v));
            prop_assert!(Factor(f).times(Usd(list.0 + 1)).unwrap() > Usd(v) || f == 1_000_000 && list.0 == v);
        }

        #[test]
        fn what_is_affordable_never_costs_more_than_the_budget(price in 1u128..1u128 << 64, budget in 0u128..1u128 << 100) {
            let n = PerToken(price).affordable(Usd(budget)).unwrap_or(0);
            if n < u64::MAX {
                prop_assert!(price * u128::from(n) <= budget);
                prop_assert!(price * (u128::from(n) + 1) > budget);
            }
        }
    }
}
