//! What is said on a stream between who wants a blob and who may hold it.
//!
//! A request is 41 bytes: a kind, the blob's name, a number (u64, little-endian). An answer is two bytes and a body
//! whose length the asker knows: what it got, and how many of the holder's packets on this path were lost (in units of
//! 1 in 10 000), by which the asker decides how many pipes to hold.
//!
//! | kind | asks for | number | body |
//! | --- | --- | --- | --- |
//! | 0 | a chunk | its index | the chunk |
//! | 1 | the outline | the blob's size | 32 bytes a chunk |
//! | 2 | what is there | the blob's size | one bit a chunk |
//! | 3 | to fetch the blob from the asker and keep it | the blob's size | none |
//! | 4 | so many zeros, to measure the way here | at most 1 MiB | the zeros |
//! | 5 | to take so many bytes, which follow the request | at most 1 MiB | none |

use super::tree::{BLOB_MAX, CHUNK};
use crate::hash::Hash;
use crate::wire::codec::{Canonical, Malformed, Reader};

/// Bytes of a request.
pub const REQUEST_BYTES: usize = 41;

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The blob.
    pub name: Hash,
    /// What about it.
    pub what: Ask,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// One chunk.
    Chunk(u32),
    /// The outline of a blob of this size.
    Outline(u64),
    /// Which chunks of a blob of this size are there.
    Have(u64),
    /// To fetch a blob of this size from the asker.
    Keep(u64),
    /// Zeros, to measure the way down.
    Down(u32),
    /// To take so many bytes, to measure the way up.
    Up(u32),
}

/// The first byte of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The body follows.
    Here = 0,
    /// Not held, or not for the asker.
    Absent = 1,
    /// Held, but later.
    Busy = 2,
}

impl Status {
    /// The status in a byte.
    pub fn of(byte: u8) -> Option<Status> {
        [Status::Here, Status::Absent, Status::Busy].into_iter().find(|s| *s as u8 == byte)
    }
}

impl Request {
    /// The request's bytes.
    pub fn to_bytes(&self) -> [u8; REQUEST_BYTES] {
        let (kind, number) = match self.what {
            Ask::Chunk(i) => (0, u64::from(i)),
            Ask::Outline(size) => (1, size),
            Ask::Have(size) => (2, size),
            Ask::Keep(size) => (3, size),
            Ask::Down(n) => (4, u64::from(n)),
            Ask::Up(n) => (5, u64::from(n)),
        };
        let mut out = Vec::with_capacity(REQUEST_BYTES);
        out.push(kind);
        self.name.put(&mut out);
        number.put(&mut out);
        out.try_into().expect("41 bytes")
    }

    /// Reads a request.
    ///
    /// # Errors
    /// On bytes that `to_bytes` does not write.
    pub fn parse(bytes: &[u8]) -> Result<Request, Malformed> {
        let what = "a request";
        let mut r = Reader::new(bytes);
        let kind = u8::take(&mut r)?;
        let name = Hash::take(&mut r)?;
        let number = u64::take(&mut r)?;
        r.end(what)?;
        if number > BLOB_MAX {
            return Err(Malformed::Long { what, got: number, max: BLOB_MAX });
        }
        let ask = match kind {
            0 => match u32::try_from(number) {
                Ok(i) => Ask::Chunk(i),
                Err(_) => return Err(Malformed::Value { what, why: "a chunk beyond 2^32" }),
            },
            1 => Ask::Outline(number),
            2 => Ask::Have(number),
            3 => Ask::Keep(number),
            4 | 5 if number > CHUNK as u64 => return Err(Malformed::Long { what, got: number, max: CHUNK as u64 }),
            4 => Ask::Down(number as u32),
            5 => Ask::Up(number as u32),
            _ => return Err(Malformed::Value { what, why: "a kind that is not 0 to 5" }),
        };
        Ok(Request { name, what: ask })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_go_round() {
        for what in [Ask::Chunk(7), Ask::Outline(0), Ask::Have(BLOB_MAX), Ask::Keep(1), Ask::Down(9), Ask::Up(1 << 20)]
        {
            let request = Request { name: Hash([3; 32]), what };
            assert_eq!(Request::parse(&request.to_bytes()), Ok(request));
        }
        let mut bytes = Request { name: Hash([3; 32]), what: Ask::Keep(1) }.to_bytes();
        assert!(Request::parse(&bytes[..40]).is_err());
        bytes[40] = 255;
        assert!(Request::parse(&bytes).is_err());
        bytes[40] = 0;
        bytes[0] = 6;
        assert!(Request::parse(&bytes).is_err());
    }
}
