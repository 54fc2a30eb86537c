//! A spec's one form in bytes: its fields in their order, behind a magic. What decodes can run.

use super::{
    ALLOWED_MAX, Admission, Codec, Inner, KNOTS_MAX, Limits, Mean, Outer, Protocol, RunSpec, TENSORS_MAX, Times,
    VALIDATORS_MAX,
};
use crate::wire::codec::{Canonical, Malformed, Reader, bad, codes, put_list};
use crate::{Hash, PeerId};

const MAGIC: [u8; 8] = *b"ESKRUN1\n";

codes!(Codec, "outer.codec" { Reference = 0, Ours = 1, Dense = 2 });
codes!(Mean, "outer.mean" { Peers = 0, Senders = 1 });

impl Canonical for Outer {
    const BYTES_MIN: usize = 18;
    fn put(&self, to: &mut Vec<u8>) {
        self.tile.put(to);
        self.k.put(to);
        self.codec.put(to);
        self.mean.put(to);
        self.beta.put(to);
        put_list(&self.alpha, to);
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Outer {
            tile: u32::take(from)?,
            k: u32::take(from)?,
            codec: Codec::take(from)?,
            mean: Mean::take(from)?,
            beta: f32::take(from)?,
            alpha: from.list(KNOTS_MAX, "outer.alpha")?,
        })
    }
}

impl Canonical for Admission {
    const BYTES_MIN: usize = 1;
    fn put(&self, to: &mut Vec<u8>) {
        match self {
            Admission::Open => to.push(0),
            Admission::Invite(owner) => {
                to.push(1);
                owner.put(to);
            }
            Admission::Allow(peers) => {
                to.push(2);
                put_list(peers, to);
            }
        }
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match u8::take(from)? {
            0 => Admission::Open,
            1 => Admission::Invite(PeerId::take(from)?),
            2 => Admission::Allow(from.list(ALLOWED_MAX, "admission.allow")?),
            _ => return bad("admission", "not one that this build knows"),
        })
    }
}

impl Canonical for RunSpec {
    const BYTES_MIN: usize = 8;
    fn put(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&MAGIC);
        to.push(u8::try_from(self.name.len()).expect("spec: a name of at most 64 bytes"));
        to.extend_from_slice(self.name.as_bytes());
        self.protocol.put(to);
        self.model.put(to);
        self.data.put(to);
        self.genesis.put(to);
        put_list(&self.tensors, to);
        self.inner.put(to);
        self.outer.put(to);
        self.blob_bytes.put(to);
        self.delay.put(to);
        self.times.put(to);
        put_list(&self.validators, to);
        self.quorum.put(to);
        self.admission.put(to);
        self.limits.put(to);
        self.seed.put(to);
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        if from.array::<8>("the spec's magic")? != MAGIC {
            return bad("the spec's magic", "not ESKRUN1");
        }
        let len = usize::from(u8::take(from)?);
        let Ok(name) = std::str::from_utf8(from.bytes(len, "name")?) else { return bad("name", "not UTF-8") };
        let spec = RunSpec {
            name: name.into(),
            protocol: Protocol::take(from)?,
            model: Hash::take(from)?,
            data: Hash::take(from)?,
            genesis: Hash::take(from)?,
            tensors: from.list(TENSORS_MAX, "tensors")?,
            inner: Inner::take(from)?,
            outer: Outer::take(from)?,
            blob_bytes: u64::take(from)?,
            delay: u8::take(from)?,
            times: Times::take(from)?,
            validators: from.list(VALIDATORS_MAX, "validators")?,
            quorum: u16::take(from)?,
            admission: Admission::take(from)?,
            limits: Limits::take(from)?,
            seed: u64::take(from)?,
        };
        spec.check()?;
        Ok(spec)
    }
}
