//! Bytes of one form for each value.
//!
//! Integers are little-endian and of fixed width; a list is its count (u32) and its elements; an option is a byte 0 or
//! 1 and the value. A decoder takes only what an encoder writes: `take(x) = y` means `put(y) = x`. A count is held
//! against the bytes that are left before memory is taken, so a message can claim at most what it carries.
//!
//! postcard would save some bytes by varints; these have several forms of one number, and a list's claimed length is
//! believed up to a mebibyte.

use crate::{Hash, PeerId, Signature};

/// Bytes that no encoder wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The bytes end inside a value.
    #[error("bytes end inside {what}")]
    Short {
        /// What was being read.
        what: &'static str,
    },
    /// Bytes stand behind the last value.
    #[error("{extra} bytes stand behind the end of {what}")]
    Extra {
        /// What was read.
        what: &'static str,
        /// How many.
        extra: usize,
    },
    /// A value that is not allowed.
    #[error("{what}: {why}")]
    Value {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Longer than its bound.
    #[error("{what} has {got}, at most {max} are allowed")]
    Long {
        /// What was being read.
        what: &'static str,
        /// How much was claimed.
        got: u64,
        /// How much may be.
        max: u64,
    },
}

/// Shorthand for a value that is not allowed.
pub(crate) fn bad<T>(what: &'static str, why: &'static str) -> Result<T, Malformed> {
    Err(Malformed::Value { what, why })
}

/// Takes values from the front of bytes.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from the front.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes }
    }

    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.bytes.split_at_checked(n).ok_or(Malformed::Short { what })?;
        self.bytes = rest;
        Ok(head)
    }

    /// The next `N` bytes, by value.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.bytes.split_first_chunk::<N>().ok_or(Malformed::Short { what })?;
        self.bytes = rest;
        Ok(*head)
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.bytes.len()
    }

    /// The count of a list of at most `max` elements of at least `each` bytes, held against what is left.
    pub fn count(&mut self, max: usize, each: usize, what: &'static str) -> Result<usize, Malformed> {
        let got = u32::take(self)? as usize;
        if got > max {
            return Err(Malformed::Long { what, got: got as u64, max: max as u64 });
        }
        if got.saturating_mul(each) > self.bytes.len() {
            return Err(Malformed::Short { what });
        }
        Ok(got)
    }

    /// A list of at most `max` elements.
    pub fn list<T: Canonical>(&mut self, max: usize, what: &'static str) -> Result<Vec<T>, Malformed> {
        let count = self.count(max, T::BYTES_MIN, what)?;
        let mut out = Vec::with_capacity(count);
        for _ in 0..count {
            out.push(T::take(self)?);
        }
        Ok(out)
    }

    /// Nothing may be left.
    pub fn end(&self, what: &'static str) -> Result<(), Malformed> {
        match self.bytes.len() {
            0 => Ok(()),
            extra => Err(Malformed::Extra { what, extra }),
        }
    }
}

/// Appends a list.
pub fn put_list<T: Canonical>(list: &[T], to: &mut Vec<u8>) {
    u32::try_from(list.len()).expect("codec: a list of at most 2^32 elements").put(to);
    for element in list {
        element.put(to);
    }
}

/// Lists whose keys must rise: one order for one set.
pub fn rising<K: Ord>(keys: impl Iterator<Item = K>, what: &'static str) -> Result<(), Malformed> {
    let mut last: Option<K> = None;
    for key in keys {
        if last.as_ref().is_some_and(|l| *l >= key) {
            return bad(what, "not in strictly rising order");
        }
        last = Some(key);
    }
    Ok(())
}

/// A value with one form in bytes.
pub trait Canonical: Sized {
    /// The fewest bytes that one takes.
    const BYTES_MIN: usize;
    /// Appends the value.
    fn put(&self, to: &mut Vec<u8>);
    /// Takes a value; refuses bytes that [`Canonical::put`] would not write.
    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed>;

    /// The value's bytes.
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put(&mut out);
        out
    }

    /// The value of all of `bytes`.
    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let value = Self::take(&mut reader)?;
        reader.end("a value")?;
        Ok(value)
    }
}

macro_rules! integers {
    ($($t:ident),*) => {$(
        impl Canonical for $t {
            const BYTES_MIN: usize = size_of::<$t>();
            fn put(&self, to: &mut Vec<u8>) {
                to.extend_from_slice(&self.to_le_bytes());
            }
            fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                Ok($t::from_le_bytes(from.array(stringify!($t))?))
            }
        }
    )*};
}
integers!(u8, u16, u32, u64);

macro_rules! arrays {
    ($($t:ident, $n:literal);*) => {$(
        impl Canonical for $t {
            const BYTES_MIN: usize = $n;
            fn put(&self, to: &mut Vec<u8>) {
                to.extend_from_slice(&self.0);
            }
            fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                from.array(stringify!($t)).map($t)
            }
        }
    )*};
}
arrays!(Hash, 32; PeerId, 32; Signature, 64);

/// Finite, and zero only as +0.
impl Canonical for f32 {
    const BYTES_MIN: usize = 4;
    fn put(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.to_le_bytes());
    }
    fn take(from: &mut Reader<'_>) -> Result<f32, Malformed> {
        let x = f32::from_le_bytes(from.array("f32")?);
        if !x.is_finite() || x == 0.0 && x.is_sign_negative() { bad("f32", "not finite, or minus zero") } else { Ok(x) }
    }
}

/// Finite, and zero only as +0.
impl Canonical for f64 {
    const BYTES_MIN: usize = 8;
    fn put(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.to_le_bytes());
    }
    fn take(from: &mut Reader<'_>) -> Result<f64, Malformed> {
        let x = f64::from_le_bytes(from.array("f64")?);
        if !x.is_finite() || x == 0.0 && x.is_sign_negative() { bad("f64", "not finite, or minus zero") } else { Ok(x) }
    }
}

impl<T: Canonical> Canonical for Option<T> {
    const BYTES_MIN: usize = 1;
    fn put(&self, to: &mut Vec<u8>) {
        match self {
            None => to.push(0),
            Some(value) => {
                to.push(1);
                value.put(to);
            }
        }
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        match u8::take(from)? {
            0 => Ok(None),
            1 => T::take(from).map(Some),
            _ => bad("an option", "neither 0 nor 1"),
        }
    }
}

/// A struct whose bytes are those of its fields in order.
macro_rules! record {
    ($name:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        impl $crate::wire::codec::Canonical for $name {
            const BYTES_MIN: usize = 0 $(+ <$kind as $crate::wire::codec::Canonical>::BYTES_MIN)*;
            fn put(&self, to: &mut Vec<u8>) {
                $($crate::wire::codec::Canonical::put(&self.$field, to);)*
            }
            fn take(
                from: &mut $crate::wire::codec::Reader<'_>,
            ) -> Result<Self, $crate::wire::codec::Malformed> {
                Ok($name { $($field: <$kind as $crate::wire::codec::Canonical>::take(from)?),* })
            }
        }
    };
}
pub(crate) use record;

/// An enum whose bytes are one, a code for each value.
macro_rules! codes {
    ($name:ident, $what:literal { $($value:ident = $code:literal),* $(,)? }) => {
        impl $crate::wire::codec::Canonical for $name {
            const BYTES_MIN: usize = 1;
            fn put(&self, to: &mut Vec<u8>) {
                to.push(match self {
                    $($name::$value => $code,)*
                });
            }
            fn take(
                from: &mut $crate::wire::codec::Reader<'_>,
            ) -> Result<Self, $crate::wire::codec::Malformed> {
                match <u8 as $crate::wire::codec::Canonical>::take(from)? {
                    $($code => Ok($name::$value),)*
                    _ => $crate::wire::codec::bad($what, "not one that this build knows"),
                }
            }
        }
    };
}
pub(crate) use codes;
