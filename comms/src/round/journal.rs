//! What a process must not forget, as records appended to a file.
//!
//! ```text
//! file     records end to end
//! record   length u32 | first 8 bytes of blake3(body) | body = kind u8, fields
//! ```
//!
//! A validator's ballots and proposals are here before anybody hears of them, so no restart makes it say two things; a
//! peer's commits, so that no restart makes it equivocate; and manifests, so that a restart goes on from its chain. A
//! record that was cut by a kill ends the file: [`recover`] says how many bytes are whole, and the host cuts the rest, unless
//! it is [`damaged`].

use crate::wire::codec::Reader;
use crate::wire::{Ballot, Canonical, Manifest, Message, Sealed};
use crate::{Hash, RunSpec};
use std::sync::Arc;

/// One thing not to forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A manifest was accepted.
    Sealed(Arc<Sealed>),
    /// One's own commit: the message's bytes.
    Commit(Vec<u8>),
    /// One's own proposal: the message's bytes.
    Propose(Vec<u8>),
    /// One's own ballot.
    Ballot(Ballot),
    /// What one is locked on, in which attempt.
    Lock(u32, Box<Manifest>),
}

const HEAD: usize = 12;

impl Record {
    /// The record's bytes, framed.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Record::Sealed(sealed) => {
                body.push(1);
                sealed.put(&mut body);
            }
            Record::Commit(bytes) => {
                body.push(2);
                body.extend_from_slice(bytes);
            }
            Record::Propose(bytes) => {
                body.push(3);
                body.extend_from_slice(bytes);
            }
            Record::Ballot(ballot) => {
                body.push(4);
                ballot.put(&mut body);
            }
            Record::Lock(attempt, manifest) => {
                body.push(5);
                attempt.put(&mut body);
                manifest.put(&mut body);
            }
        }
        frame(&body)
    }

    fn decode(spec: &RunSpec, body: &[u8]) -> Option<Record> {
        let (kind, rest) = body.split_first()?;
        Some(match kind {
            1 => Record::Sealed(Arc::new(Sealed::decode(rest).ok()?)),
            2 | 3 => {
                Message::decode(spec, rest).ok()?;
                if *kind == 2 { Record::Commit(rest.into()) } else { Record::Propose(rest.into()) }
            }
            4 => Record::Ballot(Ballot::decode(rest).ok()?),
            5 => {
                let mut reader = Reader::new(rest);
                let record = Record::Lock(u32::take(&mut reader).ok()?, Box::new(Manifest::take(&mut reader).ok()?));
                reader.end("a lock").ok()?;
                record
            }
            _ => return None,
        })
    }
}

/// A body with its length and check in front.
pub(crate) fn frame(body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("journal: a record under 4 GiB");
    [&len.to_le_bytes(), &Hash::of(body).0[..8], body].concat()
}

/// The next whole body of at most `max` bytes, and what stands behind it.
pub(crate) fn unframe(bytes: &[u8], max: usize) -> Option<(&[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let len = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    let (body, rest) = rest.split_at_checked(len).filter(|_| len <= max)?;
    (Hash::of(body).0[..8] == head[4..]).then_some((body, rest))
}

/// Bytes of a record's body, at most.
fn bytes_max(spec: &RunSpec) -> usize {
    spec.message_bytes_max() + 64
}

/// The records of a journal up to the first that is not whole, and how many bytes those take.
pub fn recover(spec: &RunSpec, bytes: &[u8]) -> (Vec<Record>, usize) {
    let (mut records, mut left) = (Vec::new(), bytes);
    while let Some((body, rest)) = unframe(left, bytes_max(spec))
        && let Some(record) = Record::decode(spec, body)
    {
        records.push(record);
        left = rest;
    }
    (records, bytes.len() - left.len())
}

/// Whether a file was damaged, of which [`recover`] left `rest`: a kill cuts the last record alone, so nothing whole stands
/// behind what is not. The host must not go on then: what it signed and forgot it could contradict.
pub fn damaged(spec: &RunSpec, rest: &[u8]) -> bool {
    let whole = |at| unframe(&rest[at..], bytes_max(spec)).is_some_and(|(body, _)| !body.is_empty());
    (0..rest.len()).any(whole)
}

/// The records that still matter of a journal: manifests of `round` and later, and what belongs to a round not yet
/// decided. A host that writes these aside and renames keeps its journal short.
pub fn compact(spec: &RunSpec, records: Vec<Record>, round: u64) -> Vec<Record> {
    let newest = records.iter().filter_map(|r| match r {
        Record::Sealed(s) => Some(s.manifest.round),
        _ => None,
    });
    let newest = newest.max();
    let open = |round: u64| newest.is_none_or(|n| round > n);
    let keep = |record: &Record| match record {
        Record::Sealed(s) => s.manifest.round >= round || Some(s.manifest.round) == newest,
        Record::Ballot(b) => open(b.round),
        Record::Lock(_, m) => open(m.round),
        Record::Commit(bytes) | Record::Propose(bytes) => match Message::decode(spec, bytes) {
            Ok((crate::wire::Body::Commit(c), _)) => open(c.round),
            Ok((crate::wire::Body::Propose(p), _)) => open(p.manifest.round),
            _ => false,
        },
    };
    records.into_iter().filter(keep).collect()
}
