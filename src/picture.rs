//! How many tokens a picture is. Its size stands in the first bytes of its file; what a model makes of that size is a table per family
//! of models. For quotes and for what is set aside: what is charged is the backend's own figure. Pure.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Most base64 characters that are decoded to find a size: a JPEG may carry a preview of itself before it says how large it is.
const MOST_READ: usize = 256 * 1024;

/// Picture elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// From left to right.
    pub width: u32,
    /// From top to bottom.
    pub height: u32,
}

/// How a family of models counts pictures. Vendors scale large pictures down first; where how they do it is not certain, it is
/// not counted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// GPT-4o and its like (o1, o3 and GPT-5's chat models count a little less): 85, and 170 for each tile of 512 × 512 of the picture fitted into 2048 × 2048 and 768 at its shorter side.
    Tiles,
    /// GPT-4o mini: the same tiles at 2,833 and 5,667, so that a picture costs what it costs on GPT-4o.
    TilesMini,
    /// GPT-4.1 mini, o4-mini and their like: patches of 32 × 32, at most 1,536, times at most 2.46.
    Patches,
    /// Claude: a token for each 750 picture elements.
    Claude,
    /// Gemini: 258 for each tile of 768 × 768.
    Gemini,
}

impl Family {
    /// The names rules give them.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("tiles", Self::Tiles),
        ("tiles-mini", Self::TilesMini),
        ("patches", Self::Patches),
        ("claude", Self::Claude),
        ("gemini", Self::Gemini),
    ];

    /// Tokens of one picture, shown in full detail.
    pub fn tokens(self, size: Size) -> u64 {
        let (width, height) = (u64::from(size.width).max(1), u64::from(size.height).max(1));
        let cells = |side: u64| width.div_ceil(side).saturating_mul(height.div_ceil(side));
        let tiles = || {
            let (width, height) = fitted(width, height);
            width.div_ceil(512) * height.div_ceil(512)
        };
        match self {
            Self::Tiles => 170 * tiles() + 85,
            Self::TilesMini => 5667 * tiles() + 2833,
            Self::Patches => (cells(32).min(1536) * 246).div_ceil(100),
            Self::Claude => width.saturating_mul(height).div_ceil(750),
            Self::Gemini => cells(768).saturating_mul(258),
        }
    }
}

/// Into 2048 × 2048, then 768 at the shorter side; never larger than it was. Rounded up.
fn fitted(width: u64, height: u64) -> (u64, u64) {
    let scale = |(w, h): (u64, u64), of: u64, to: u64| {
        if of <= to { (w, h) } else { ((w * to).div_ceil(of), (h * to).div_ceil(of)) }
    };
    let (w, h) = scale((width, height), width.max(height), 2048);
    scale((w, h), w.min(h), 768)
}

/// The size of the picture in a `data:` URL; `None` when it is another URL, another format, or is not said where it should be.
pub fn of_data_url(url: &str) -> Option<Size> {
    let (kind, data) = url.strip_prefix("data:image/")?.split_once(',')?;
    kind.ends_with(";base64").then(|| of_base64(data)).flatten()
}

/// The size of a picture whose file is written in base64.
pub fn of_base64(data: &str) -> Option<Size> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    let read = |most: usize| LENIENT.decode(data.as_bytes().get(..most.min(data.len()))?).ok();
    let start = read(64)?;
    // All but these say it at once.
    let is_late = start.starts_with(&[0xFF, 0xD8]) || start.starts_with(b"GIF8");
    if is_late { of_file(&read(MOST_READ)?) } else { of_file(&start) }
}

/// The size of a picture by the first bytes of its file.
pub fn of_file(bytes: &[u8]) -> Option<Size> {
    let at = |from: usize, n: usize| bytes.get(from..from + n);
    let big = |from| at(from, 4).map(|b| b.iter().fold(0u32, |n, b| (n << 8) | u32::from(*b)));
    let little = |from, n| at(from, n).map(|b| b.iter().rev().fold(0u32, |n, b| (n << 8) | u32::from(*b)));
    let size = |width: Option<u32>, height: Option<u32>| Some(Size { width: width?, height: height? });
    let found = if bytes.starts_with(b"\x89PNG\r\n\x1a\n") && at(12, 4)? == b"IHDR" {
        size(big(16), big(20))
    } else if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
        of_gif(bytes)
    } else if bytes.starts_with(b"RIFF") && at(8, 4)? == b"WEBP" {
        match at(12, 4)? {
            b"VP8 " if at(23, 3)? == [0x9D, 0x01, 0x2A] => {
                size(little(26, 2).map(|w| w & 0x3FFF), little(28, 2).map(|h| h & 0x3FFF))
            }
            b"VP8L" if at(20, 1)? == [0x2F] => {
                let bits = little(21, 4)?;
                size(Some((bits & 0x3FFF) + 1), Some(((bits >> 14) & 0x3FFF) + 1))
            }
            b"VP8X" => size(little(24, 3).map(|w| w + 1), little(27, 3).map(|h| h + 1)),
            _ => None,
        }
    } else {
        of_jpeg(bytes)
    };
    found.filter(|size| size.width > 0 && size.height > 0)
}

/// The screen of a GIF, or what is drawn on it first where that is larger: viewers differ in which of them they believe.
fn of_gif(bytes: &[u8]) -> Option<Size> {
    let word = |at: usize| Some(u32::from(*bytes.get(at)?) | u32::from(*bytes.get(at + 1)?) << 8);
    let (width, height) = (word(6)?, word(8)?);
    let colours = |flags: u8| if flags & 0x80 == 0 { 0 } else { 6usize << (flags & 7) };
    let mut at = 13 + colours(*bytes.get(10)?);
    loop {
        match *bytes.get(at)? {
            0x2C => {
                let (right, bottom) = (word(at + 1)? + word(at + 5)?, word(at + 3)? + word(at + 7)?);
                return Some(Size { width: width.max(right), height: height.max(bottom) });
            }
            // An extension: its kind, then blocks up to an empty one.
            0x21 => {
                at += 2;
                while let block @ 1.. = usize::from(*bytes.get(at)?) {
                    at += 1 + block;
                }
                at += 1;
            }
            _ => return None,
        }
    }
}

/// Passes the segments of a JPEG to the one that starts its picture.
fn of_jpeg(bytes: &[u8]) -> Option<Size> {
    let mut at = bytes.starts_with(&[0xFF, 0xD8]).then_some(2usize)?;
    let word = |at: usize| Some(u32::from(*bytes.get(at)?) << 8 | u32::from(*bytes.get(at + 1)?));
    loop {
        if *bytes.get(at)? != 0xFF {
            return None;
        }
        match *bytes.get(at + 1)? {
            // A filling byte before a marker; markers without a segment.
            0xFF => at += 1,
            0x01 | 0xD0..=0xD7 => at += 2,
            // Start of frame; C4, C8 and CC among them are tables.
            0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF => {
                let size = Size { height: word(at + 5)?, width: word(at + 7)? };
                return (size.width > 0 && size.height > 0).then_some(size);
            }
            // Its data, or its end, before its size was said.
            0xD9 | 0xDA => return None,
            _ => at = at.checked_add(2)?.checked_add(usize::try_from(word(at + 2)?).ok()?)?,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use proptest::prelude::*;

    fn files() -> Vec<(&'static str, Vec<u8>, Size)> {
        let size = |width, height| Size { width, height };
        let jpeg = |before: &[u8]| {
            [&[0xFF, 0xD8], before, &[0xFF, 0xC2, 0, 17, 8, 0x02, 0x58, 0x03, 0x20, 3][..], &[1, 0x22, 0, 2, 0x11, 1]]
                .concat()
        };
        // Four colours, a comment, and how long it is shown.
        let before = [&b"\x81\0\0"[..], &[0; 12], b"\x21\xfe\x03abc\x01d\0\x21\xf9\x04\0\x0a\0\0\0"].concat();
        let gif = |screen: &[u8], drawn: &[u8]| [b"GIF89a", screen, &before, b"\x2c", drawn, b"\0\x02"].concat();
        let preview = [&[0xFF, 0xE1, 0xC3, 0x52][..], &vec![0xD8; 0xC350], &[0xFF, 0xFF, 0xC4, 0, 3, 9]].concat();
        vec![
            ("PNG", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x03\x20\0\0\x02\x58\x08\x06".to_vec(), size(800, 600)),
            ("GIF", gif(b"\x20\x03\x58\x02", b"\0\0\0\0\x20\x03\x58\x02"), size(800, 600)),
            ("GIF larger than its screen", gif(b"\x01\0\x01\0", b"\0\0\0\0\x20\x03\x58\x02"), size(800, 600)),
            (
                "GIF that reaches beyond it",
                gif(b"\x90\x01\x2c\x01", b"\x90\x01\x2c\x01\x90\x01\x2c\x01"),
                size(800, 600),
            ),
            ("GIF smaller than it", gif(b"\x20\x03\x58\x02", b"\0\0\0\0\x01\0\x01\0"), size(800, 600)),
            (
                "WebP, lossy",
                b"RIFF\x24\0\0\0WEBPVP8 \x18\0\0\0\x30\x01\0\x9d\x01\x2a\x20\x03\x58\x02".to_vec(),
                size(800, 600),
            ),
            ("WebP, lossless", b"RIFF\x24\0\0\0WEBPVP8L\x18\0\0\0\x2f\x1f\xc3\x95\0".to_vec(), size(800, 600)),
            (
                "WebP, extended",
                b"RIFF\x24\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\x1f\x03\0\x57\x02\0".to_vec(),
                size(800, 600),
            ),
            ("JPEG", jpeg(&[]), size(800, 600)),
            ("JPEG behind a preview of itself", jpeg(&preview), size(800, 600)),
        ]
    }

    #[test]
    fn the_size_of_a_picture_is_read_from_the_start_of_its_file_and_not_guessed() {
        for (name, file, want) in files() {
            assert_eq!(of_file(&file), Some(want), "{name}");
            for padding in ["", "AAAA"] {
                let url = format!("data:image/any;base64,{}{padding}", BASE64.encode(&file).trim_end_matches('='));
                assert_eq!(of_data_url(&url), Some(want), "{name}");
            }
            let head = file.len() - 12;
            assert_eq!(of_file(&file[..head.min(20)]), None, "{name}: cut");
        }
        for (url, why) in [
            ("https://example.org/a.png", "not in the request"),
            ("data:image/svg+xml;base64,PHN2Zz4=", "a format that has no size"),
            ("data:image/png,%89PNG", "not base64"),
            ("data:image/png;base64,!!!!!!!!", "no base64 either"),
            ("data:image/png;base64,", "empty"),
        ] {
            assert_eq!(of_data_url(url), None, "{why}");
        }
        assert_eq!(of_file(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\0\0\0\x02\x58\x08\x06"), None, "a width of nothing");
        assert_eq!(of_file(b"GIF89a\x20\x03\x58\x02\0\0\0\x3b"), None, "a screen with nothing on it");
    }

    #[test]
    fn tokens_of_a_picture_are_those_of_the_vendors_own_examples_or_more() {
        let size = |width, height| Size { width, height };
        for (family, of, want, why) in [
            (Family::Tiles, size(1024, 1024), 765, "OpenAI's example: 768 at the side, four tiles"),
            (Family::Tiles, size(2048, 4096), 1105, "OpenAI's example: 768 by 1536, six tiles"),
            (Family::Tiles, size(100, 100), 255, "one tile"),
            (Family::TilesMini, size(100, 100), 8_500, "one tile, as it was billed"),
            (Family::TilesMini, size(2048, 4096), 36_835, "six tiles"),
            (Family::Patches, size(1024, 1024), 2520, "1,024 patches"),
            (Family::Patches, size(8000, 8000), 3779, "at most 1,536"),
            (Family::Claude, size(1092, 1092), 1590, "Anthropic's example"),
            (Family::Claude, size(200, 200), 54, "Anthropic's example"),
            (Family::Gemini, size(384, 384), 258, "one tile"),
            (Family::Gemini, size(960, 540), 516, "two"),
            (Family::Gemini, size(u32::MAX, u32::MAX), 5_592_406 * 5_592_406 * 258, "no overflow"),
        ] {
            assert_eq!(family.tokens(of), want, "{family:?} {of:?}: {why}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_a_larger_picture_is_never_fewer_tokens(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            file in 0usize..10, cut in 0usize..60, w in 1u32..9000, h in 1u32..9000,
        ) {
            let _ = of_file(&bytes);
            let own = &files()[file].1;
            let _ = of_file(&[&own[..cut.min(own.len())], &bytes].concat());
            let (size, larger) = (Size { width: w, height: h }, Size { width: w + 100, height: h });
            for (_, family) in Family::NAMES {
                prop_assert!(family.tokens(size) > 0);
                // What is fitted into a square first may be fewer tiles when it is longer.
                prop_assert!(matches!(family, Family::Tiles | Family::TilesMini) || family.tokens(larger) >= family.tokens(size));
            }
        }
    }
}
