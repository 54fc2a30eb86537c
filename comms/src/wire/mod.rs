//! What peers say to each other: every message, its bytes, and who must have signed it.
//!
//! ```text
//! signed      kind u8 | body | signer [32] | signature [64]
//! unsigned    kind u8 | body                     (Status, Pull, Reveal: hints; and Sealed, which carries its own proof)
//! signature   Ed25519 over  "esker peers 1\0" | run id [32] | kind u8 | body
//! ```
//!
//! The domain, the run and the kind stand under each signature, and each body names its round and the manifest that it
//! follows, so nothing can be replayed in another run, round or place. A control message has at most 16 KiB, one that
//! lists peers at most [`RunSpec::manifest_bytes_max`]. Bytes have one form: [`codec`].

pub mod codec;
mod manifest;
mod say;

pub use codec::{Canonical, Malformed};
pub use manifest::{Checkpoint, Entry, Manifest, Reason, Reject, Sealed, Slot, Vote};
pub(crate) use say::invitation;
pub use say::{
    Attest, Ballot, Body, Close, Commit, Have, Join, Kind, Phase, Propose, Pull, Refuse, Reveal, Status, invite,
};

use crate::{Hash, Key, MESSAGE_BYTES_MAX, PeerId, RunSpec, Signature};
use codec::Reader;
use std::sync::Arc;

const DOMAIN: &[u8; 14] = b"esker peers 1\0";

/// Why a message was refused. Nothing of it reaches the rounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireFault {
    /// The bytes are not those of a message.
    #[error("a message does not decode: {0}")]
    Malformed(#[from] Malformed),
    /// The signature does not hold in this run.
    #[error("{kind:?} has a signature of {signer} that does not hold in this run")]
    Signature {
        /// What it claims to be.
        kind: Kind,
        /// Who is said to have signed.
        signer: PeerId,
    },
    /// The signer may not say this.
    #[error("{kind:?} was signed by {signer}, who is not a validator")]
    NotAValidator {
        /// What it claims to be.
        kind: Kind,
        /// Who signed.
        signer: PeerId,
    },
    /// A manifest without a quorum of the run's validators.
    #[error("the manifest of round {round} has {got} signatures that hold; {want} are needed")]
    Quorum {
        /// The manifest's round.
        round: u64,
        /// Signatures that hold.
        got: usize,
        /// How many it takes.
        want: usize,
    },
    /// A manifest of another run.
    #[error("a manifest of run {got}")]
    OtherRun {
        /// The run that it names.
        got: Hash,
    },
}

/// A message whose bytes, signature and signer's right to say it were checked, or which was made here.
#[derive(Debug)]
pub struct Message {
    signer: Option<PeerId>,
    body: Body,
    bytes: Vec<u8>,
    id: Hash,
}

/// A message as it is handed around.
pub type Msg = Arc<Message>;

/// What is signed.
fn to_sign(run: &Hash, kind: Kind, body: &[u8]) -> Vec<u8> {
    [&DOMAIN[..], &run.0, &[kind as u8], body].concat()
}

impl Message {
    /// Makes and signs a message; the unsigned kinds stay unsigned.
    pub fn new(key: &Key, run: &Hash, body: Body) -> Msg {
        let kind = body.kind();
        let mut bytes = vec![kind as u8];
        body.put(&mut bytes);
        let signer = kind.signed().then(|| {
            let signature = key.sign(&to_sign(run, kind, &bytes[1..]));
            key.id().put(&mut bytes);
            signature.put(&mut bytes);
            key.id()
        });
        let id = Hash::of(&bytes);
        Arc::new(Message { signer, body, bytes, id })
    }

    /// Decodes without checking signatures: the pure half of [`Message::open`], for fuzzing and for logs.
    pub fn decode(spec: &RunSpec, bytes: &[u8]) -> Result<(Body, Option<(PeerId, Signature)>), Malformed> {
        let mut reader = Reader::new(bytes);
        let kind = Kind::take(&mut reader)?;
        let max = if kind.lists_peers() { spec.message_bytes_max() } else { MESSAGE_BYTES_MAX };
        if bytes.len() > max {
            return Err(Malformed::Long { what: "a message", got: bytes.len() as u64, max: max as u64 });
        }
        let body = Body::take(spec, kind, &mut reader)?;
        let signed = match kind.signed() {
            true => Some((PeerId::take(&mut reader)?, Signature::take(&mut reader)?)),
            false => None,
        };
        reader.end("a message")?;
        Ok((body, signed))
    }

    /// Takes a message from the wire: bounds, form, signature, and the signer's right to say it.
    pub fn open(spec: &RunSpec, run: &Hash, bytes: Vec<u8>) -> Result<Msg, WireFault> {
        let (body, signed) = Message::decode(spec, &bytes)?;
        let kind = body.kind();
        if let Some((signer, signature)) = &signed {
            if kind.by_validators() && !spec.is_validator(signer) {
                return Err(WireFault::NotAValidator { kind, signer: *signer });
            }
            let end = bytes.len() - PeerId::BYTES_MIN - Signature::BYTES_MIN;
            if !signer.verify(&to_sign(run, kind, &bytes[1..end]), signature) {
                return Err(WireFault::Signature { kind, signer: *signer });
            }
        }
        match &body {
            Body::Sealed(sealed) => sealed.verify(spec, run)?,
            Body::Propose(p) if p.manifest.run != *run => return Err(WireFault::OtherRun { got: p.manifest.run }),
            _ => {}
        }
        let id = Hash::of(&bytes);
        Ok(Arc::new(Message { signer: signed.map(|(signer, _)| signer), body, bytes, id }))
    }

    /// Who signed, for the kinds that are signed.
    pub fn signer(&self) -> Option<PeerId> {
        self.signer
    }

    /// What is said.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// The bytes, to be sent on as they are.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Hash of the bytes: a message is acted on once.
    pub fn id(&self) -> Hash {
        self.id
    }

    /// The signature at the end, for the kinds that are signed.
    pub fn signature(&self) -> Option<Signature> {
        self.signer?;
        self.bytes.last_chunk::<64>().copied().map(Signature)
    }
}

#[cfg(test)]
mod tests;
