//! Sizes of memory as people write them.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A number of bytes; written as a number, or as text with the suffix `K`, `M` or `G` (powers of
/// 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, shift) = match text.char_indices().next_back() {
            Some((end, 'K')) => (&text[..end], 10),
            Some((end, 'M')) => (&text[..end], 20),
            Some((end, 'G')) => (&text[..end], 30),
            _ => (text, 0),
        };
        let number: Option<u64> = digits.parse().ok();
        number.and_then(|n| n.checked_mul(1 << shift)).map(Self).ok_or_else(|| {
            format!("\"{text}\" is no size: write bytes, or a number with K, M or G")
        })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes % (1 << 30) == 0 => write!(f, "{} GiB", bytes >> 30),
            bytes if bytes % (1 << 20) == 0 => write!(f, "{} MiB", bytes >> 20),
            bytes if bytes % (1 << 10) == 0 => write!(f, "{} KiB", bytes >> 10),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;

        impl Visitor<'_> for SizeVisitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"256M\"")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Size, E> {
                u64::try_from(value).map(Size).map_err(|_| E::custom("a size is not negative"))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Size, E> {
                value.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(SizeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::Size;

    #[test]
    fn suffixes_are_powers_of_1024() {
        assert_eq!("256M".parse(), Ok(Size(256 << 20)));
        assert_eq!("3G".parse(), Ok(Size(3 << 30)));
        assert_eq!("4K".parse(), Ok(Size(4096)));
        assert_eq!("4096".parse(), Ok(Size(4096)));
        for bad in ["", "M", "1.5G", "-1", "1T", "99999999999G"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn shown_in_the_largest_whole_unit() {
        assert_eq!(Size(3 << 30).to_string(), "3 GiB");
        assert_eq!(Size(1 << 20).to_string(), "1 MiB");
        assert_eq!(Size(12288).to_string(), "12 KiB");
        assert_eq!(Size(1).to_string(), "1 bytes");
    }
}
