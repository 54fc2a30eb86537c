//! Who may take part: one question, asked when a peer joins, answered from the run's spec or by the host's own rule.

use crate::wire::{Join, Reason};
use crate::{Admission, Hash, PeerId, RunSpec};

/// The question.
pub trait Admit: Send {
    /// Whether `peer`, whose signed wish is `join`, may take part.
    fn admit(&self, spec: &RunSpec, run: &Hash, peer: &PeerId, join: &Join) -> Result<(), Reason>;
}

/// The answer that the run's spec gives.
#[derive(Debug, Clone, Copy, Default)]
pub struct BySpec;

impl Admit for BySpec {
    fn admit(&self, spec: &RunSpec, run: &Hash, peer: &PeerId, join: &Join) -> Result<(), Reason> {
        if join.protocol.max < spec.protocol.min || join.protocol.min > spec.protocol.max {
            return Err(Reason::Version);
        }
        let invited = |owner: &PeerId| {
            let message = crate::wire::invitation(run, peer);
            join.token.is_some_and(|token| owner.verify(&message, &token))
        };
        let let_in = match &spec.admission {
            Admission::Open => true,
            Admission::Invite(owner) => spec.is_validator(peer) || invited(owner),
            Admission::Allow(peers) => peers.binary_search(peer).is_ok(),
        };
        if let_in { Ok(()) } else { Err(Reason::NotAdmitted) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Protocol;
    use crate::spec::tests::{key, spec};
    use crate::wire::invite;

    #[test]
    fn open_invited_and_listed() {
        let join = |token| Join { protocol: Protocol { min: 1, max: 1 }, token };
        let (owner, guest) = (key(50), key(60));
        let mut spec = spec(1);
        let asks = |spec: &RunSpec, token| BySpec.admit(spec, &spec.id(), &guest.id(), &join(token));
        assert_eq!(asks(&spec, None), Ok(()));
        spec.admission = Admission::Invite(owner.id());
        let run = spec.id();
        assert_eq!(asks(&spec, None), Err(Reason::NotAdmitted));
        assert_eq!(asks(&spec, Some(invite(&owner, &run, &guest.id()))), Ok(()));
        assert_eq!(asks(&spec, Some(invite(&guest, &run, &guest.id()))), Err(Reason::NotAdmitted));
        assert_eq!(asks(&spec, Some(invite(&owner, &Hash::NONE, &guest.id()))), Err(Reason::NotAdmitted));
        assert_eq!(asks(&spec, Some(invite(&owner, &run, &key(61).id()))), Err(Reason::NotAdmitted));
        spec.admission = Admission::Allow(vec![guest.id()]);
        assert_eq!(asks(&spec, None), Ok(()));
        spec.protocol = Protocol { min: 2, max: 3 };
        assert_eq!(asks(&spec, None), Err(Reason::Version));
    }
}
