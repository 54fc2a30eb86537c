//! How a foreign file stores an id: little-endian integers of one to eight bytes.

use serde::{Deserialize, Serialize};

/// Integer types that the formats use for ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Int {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
}

impl Int {
    /// All of them, with the names users type.
    pub const ALL: [(Int, &'static str); 8] = [
        (Int::U8, "u8"),
        (Int::I8, "i8"),
        (Int::U16, "u16"),
        (Int::I16, "i16"),
        (Int::U32, "u32"),
        (Int::I32, "i32"),
        (Int::U64, "u64"),
        (Int::I64, "i64"),
    ];

    /// Bytes of one id.
    pub fn bytes(self) -> usize {
        match self {
            Int::U8 | Int::I8 => 1,
            Int::U16 | Int::I16 => 2,
            Int::U32 | Int::I32 => 4,
            Int::U64 | Int::I64 => 8,
        }
    }

    /// `u16`, `i64` and so on.
    pub fn name(self) -> &'static str {
        Int::ALL.iter().find(|(int, _)| *int == self).expect("all are listed").1
    }

    /// Reads [`Int::name`], or numpy's long name such as `int32`.
    pub fn from_name(name: &str) -> Option<Int> {
        let short = name.replacen("uint", "u", 1).replacen("int", "i", 1);
        Int::ALL.iter().find(|(_, n)| *n == name || *n == short).map(|(int, _)| *int)
    }

    /// The largest id it holds.
    pub fn max(self) -> u32 {
        match self {
            Int::U8 => u8::MAX.into(),
            Int::I8 => i8::MAX as u32,
            Int::U16 => u16::MAX.into(),
            Int::I16 => i16::MAX as u32,
            Int::I32 => i32::MAX as u32,
            Int::U32 | Int::U64 | Int::I64 => u32::MAX,
        }
    }

    /// Reads ids; `bytes` holds exactly `out.len()` of them. A value that is no id (negative, or
    /// past 32 bits) is returned with its place.
    pub fn read(self, bytes: &[u8], out: &mut [u32]) -> Result<(), (usize, i128)> {
        assert_eq!(bytes.len(), out.len() * self.bytes(), "formats: bytes of ids");
        // One loop a type: the compiler turns each into wide loads.
        macro_rules! each {
            ($t:ty) => {
                for (i, (o, b)) in out.iter_mut().zip(bytes.chunks_exact(size_of::<$t>())).enumerate() {
                    let value = <$t>::from_le_bytes(b.try_into().expect("a chunk of this size"));
                    *o = u32::try_from(value).map_err(|_| (i, value as i128))?;
                }
            };
        }
        match self {
            Int::U8 => each!(u8),
            Int::I8 => each!(i8),
            Int::U16 => each!(u16),
            Int::I16 => each!(i16),
            Int::U32 => each!(u32),
            Int::I32 => each!(i32),
            Int::U64 => each!(u64),
            Int::I64 => each!(i64),
        }
        Ok(())
    }

    /// Appends ids; one that does not fit is returned.
    pub fn write(self, ids: &[u32], out: &mut Vec<u8>) -> Result<(), u32> {
        let max = self.max();
        out.reserve(ids.len() * self.bytes());
        for &id in ids {
            if id > max {
                return Err(id);
            }
            out.extend_from_slice(&u64::from(id).to_le_bytes()[..self.bytes()]);
        }
        Ok(())
    }
}

impl std::fmt::Display for Int {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_reads_what_it_wrote_and_refuses_what_is_no_id() {
        for (int, name) in Int::ALL {
            assert_eq!(Int::from_name(name), Some(int));
            let ids = [0, 1, 100, int.max()];
            let (mut bytes, mut back) = (Vec::new(), [0; 4]);
            int.write(&ids, &mut bytes).unwrap();
            int.read(&bytes, &mut back).unwrap();
            assert_eq!(back, ids);
            if int.max() < u32::MAX {
                assert_eq!(int.write(&[int.max() + 1], &mut bytes), Err(int.max() + 1));
            }
            let minus_one = vec![0xff; int.bytes()];
            let signed = name.starts_with('i');
            assert_eq!(int.read(&minus_one, &mut [0]).is_err(), signed || int == Int::U64, "{name}");
        }
        assert_eq!(Int::from_name("uint16"), Some(Int::U16));
        assert_eq!(Int::from_name("float32"), None);
    }
}
