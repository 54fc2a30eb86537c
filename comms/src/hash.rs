//! The one name of content: blake3, 32 bytes, written as 64 lower-case hex digits.
//!
//! Blobs, manifests, a run's spec, pages and leaves of a state are all known by it. Source: O'Connor et al. 2020,
//! "BLAKE3: one function, fast everywhere".

use std::fmt;

/// A blake3 hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// No content has this name; it stands where there is nothing to name.
    pub const NONE: Hash = Hash([0; 32]);

    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Hash {
        Hash(*blake3::hash(bytes).as_bytes())
    }

    /// The hash of parts laid end to end.
    pub fn of_parts(parts: &[&[u8]]) -> Hash {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        Hash(*hasher.finalize().as_bytes())
    }

    /// The first eight digits, for people.
    pub fn short(&self) -> String {
        hex(&self.0[..4])
    }
}

/// Text that is not the hex form of so many bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{got:?} is not {want} lower-case hex digits")]
pub struct NotHex {
    /// What was read, cut to 80 characters.
    pub got: String,
    /// How many digits were expected.
    pub want: usize,
}

/// Lower-case hex digits of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|n| char::from(DIGITS[usize::from(n)])).collect()
}

/// The inverse of [`hex`]: exactly `N` bytes, lower case, so that a value has one text.
pub(crate) fn unhex<const N: usize>(text: &str) -> Result<[u8; N], NotHex> {
    let fault = || NotHex { got: text.chars().take(80).collect(), want: 2 * N };
    let digit = |c: u8| match c {
        b'0'..=b'9' => Ok(c - b'0'),
        b'a'..=b'f' => Ok(c - b'a' + 10),
        _ => Err(fault()),
    };
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return Err(fault());
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(out)
}

/// Display, Debug, FromStr and serde (as a string) of a newtype over bytes, by their hex form.
macro_rules! hex_text {
    ($name:ident, $bytes:literal) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&$crate::hash::hex(&self.0))
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::hash::NotHex;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $crate::hash::unhex::<$bytes>(text).map($name)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use hex_text;

hex_text!(Hash, 32);

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_a_value() {
        let h = Hash::of(b"esker");
        assert_eq!(h.to_string().parse(), Ok(h));
        assert!(h.to_string().to_uppercase().parse::<Hash>().is_err());
        assert!("00".parse::<Hash>().is_err());
        assert!("é".repeat(32).parse::<Hash>().is_err());
        assert_eq!(Hash::of_parts(&[b"es", b"", b"ker"]), h);
    }
}
