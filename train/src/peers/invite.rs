//! Invitations: what `esker peers key` and `esker peers invite` do.
//!
//! A run with `admission = { invite = KEY }` takes whoever shows a signature by KEY over the run and the guest's own key.
//! The guest sends its key (`esker peers key`), the inviter signs it (`esker peers invite`), the guest starts with the
//! answer (`esker peer --invite`). An invitation is no secret: it is of use to the guest's key alone, in this run alone.

use super::peer::{self, KEY, Opened};
use super::{Admission, PeersError, spec};
use crate::config::Run;
use crate::folder::FolderError;
use esker_comms::{Key, PeerId, Signature, wire};
use std::path::Path;

/// The key in a peer's folder, made where there is none.
///
/// # Errors
/// Where folder or key cannot be read or made.
pub fn key(dir: &Path) -> Result<PeerId, PeersError> {
    std::fs::create_dir_all(dir).map_err(|source| FolderError::Io { path: dir.into(), action: "create", source })?;
    Ok(Key::load_or_create(&dir.join(KEY))?.id())
}

/// An invitation of `guest` to `run`, by the key in `dir`.
///
/// # Errors
/// Where the run takes no invitation of that key, or the folder or the tokens cannot be opened.
pub fn invite(run: &Run, dir: &Path, guest: &PeerId) -> Result<Signature, PeersError> {
    let asked = spec::peers(run)?.admission.clone();
    let Opened { key, spec, .. } = peer::open(run, dir)?;
    match asked {
        Admission::Invite(owner) if owner == key.id() => Ok(wire::invite(&key, &spec.id(), guest)),
        _ => Err(PeersError::NoInvitations { name: run.name.clone(), ours: key.id() }),
    }
}
