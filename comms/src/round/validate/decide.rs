//! From what the agreement asks for to what is kept, said and sealed.

use super::Validator;
use crate::PeerId;
use crate::round::agree::{Act, Agree};
use crate::round::core::Core;
use crate::round::follow::Follow;
use crate::round::{Event, Order, Record, Time, Whom};
use crate::wire::{Ballot, Body, Manifest, Message, Msg, Propose, Sealed, Vote};
use std::sync::Arc;

impl Validator {
    /// Lets the agreement go as far as it goes; gives the manifest that became final.
    pub(super) fn agreement(
        &mut self,
        core: &mut Core,
        follow: &Follow,
        now: Time,
        mut acts: Vec<Act>,
        out: &mut Vec<Order>,
    ) -> Option<Msg> {
        loop {
            let mut agree = std::mem::replace(&mut self.agree, Agree::new(0));
            let mut sound = |m: &Manifest| self.sound(core, follow, m);
            agree.advance(now, &core.spec, &core.me, &mut sound, &mut acts);
            self.agree = agree;
            if acts.is_empty() {
                return None;
            }
            for act in std::mem::take(&mut acts) {
                match act {
                    Act::Propose { attempt, again } => {
                        let (ready, manifest) = match again {
                            Some((ready, manifest)) => (Some(ready), manifest),
                            None => match self.manifest(core, follow) {
                                Some(manifest) => (None, manifest),
                                None => continue,
                            },
                        };
                        let body = Body::Propose(Box::new(Propose { attempt, ready, manifest }));
                        let msg = Message::new(&core.key, &core.run, body);
                        out.push(Order::Persist(Record::Propose(msg.bytes().to_vec())));
                        out.push(Order::Flood { to: Whom::Validators, msg: msg.clone() });
                        self.agree.propose(&core.spec, &msg, &mut acts);
                    }
                    Act::Cast(ballot) => self.cast(core, ballot, &mut acts, out),
                    Act::Lock { attempt, manifest } => {
                        out.push(Order::Persist(Record::Lock(attempt, Box::new(manifest))));
                    }
                    Act::Decide { attempt, manifest, votes } => return Some(seal(core, attempt, manifest, votes, out)),
                    Act::Liar { .. } => liars(&[act], out),
                }
            }
        }
    }

    fn cast(&mut self, core: &Core, ballot: Ballot, acts: &mut Vec<Act>, out: &mut Vec<Order>) {
        out.push(Order::Persist(Record::Ballot(ballot.clone())));
        let msg = Message::new(&core.key, &core.run, Body::Ballot(ballot));
        out.push(Order::Flood { to: Whom::Validators, msg: msg.clone() });
        self.agree.ballot(&msg, acts);
    }
}

/// Tells of validators that say two things.
pub(super) fn liars(acts: &[Act], out: &mut Vec<Order>) {
    for act in acts {
        if let Act::Liar { signer, first, second } = act {
            let (first, second) = (first.bytes().to_vec(), second.bytes().to_vec());
            out.push(Order::Log(Event::Equivocation { signer: *signer, first, second }));
        }
    }
}

/// Puts a manifest and its signatures together; who had the turn sends it to all.
fn seal(
    core: &Core,
    attempt: u32,
    manifest: Manifest,
    votes: Vec<(PeerId, crate::Signature)>,
    out: &mut Vec<Order>,
) -> Msg {
    let votes = votes.into_iter().map(|(validator, signature)| Vote { validator, signature }).collect();
    let turn = core.spec.proposer(manifest.round, attempt) == core.me;
    let sealed = Sealed { hash: manifest.hash(), manifest, attempt, votes };
    let msg = Message::new(&core.key, &core.run, Body::Sealed(Arc::new(sealed)));
    if turn {
        out.push(Order::Flood { to: Whom::All, msg: msg.clone() });
    }
    msg
}
