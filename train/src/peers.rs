//! A run of several owners over the network: what `esker peer` and `esker peers local` do.
//!
//! [`crate::outer`] is an owner's part of a round as a library, `esker_comms::node` a process that agrees with others on
//! what counts. This joins them: [`spec`] writes down what all must agree on, [`work`] is the owner as the node wants it,
//! [`peer`] one process, [`local`] several on one machine, [`page`] what came of it. [`events`] is what a process keeps
//! of its days, [`replay`] reads it; [`invite`] lets a guest in, [`lock`] keeps two processes out of one folder.

pub mod events;
pub mod invite;
pub mod local;
pub mod lock;
pub mod page;
pub mod peer;
pub mod replay;
pub mod spec;
pub mod work;

use crate::folder::FolderError;
use crate::live::LiveError;
use crate::outer::OuterError;
use crate::source::SourceError;
use esker_comms::blob::bucket::BucketError;
use esker_comms::node::NodeError;
use esker_comms::{KeyError, PeerId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The section `[peers]`: who decides, and how long they wait. All owners of a run have the same one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peers {
    /// Keys of those who check and sign, in hex; `esker peers local` makes its own.
    pub validators: Vec<PeerId>,
    /// Owners to wait for before the first round.
    pub owners_min: u32,
    /// 0: training waits for the exchange; 1: it goes on meanwhile, and updates are applied one round late.
    pub delay: u8,
    /// Seconds that a round's training may take.
    pub train_s: f64,
    /// Seconds that validators wait longer for a connected owner.
    pub grace_s: f64,
    /// Seconds in which updates are fetched and checked.
    pub collect_s: f64,
    /// Seconds after which something unanswered is asked again.
    pub retry_s: f64,
    /// How updates travel.
    pub route: Route,
    /// Who may take part.
    pub admission: Admission,
}

/// Who may take part: `"open"`, `{ invite = KEY }` or `{ allow = [KEY, ..] }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admission {
    /// Whoever comes.
    Open,
    /// Who shows an invitation signed by this key; `esker peers invite` makes one. Validators need none.
    Invite(PeerId),
    /// These, validators that train among them.
    Allow(Vec<PeerId>),
}

/// How updates travel: `"mesh"`, `"seeded"` or `{ bucket = URL }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// From their makers and from each other.
    Mesh,
    /// Pushed once to a seeder, who gives them to the others: for owners with a slow line.
    Seeded,
    /// Written once to a bucket, and read from there: a folder that all mount, or s3://, gs:// or az:// in builds with
    /// `--features bucket`.
    Bucket(String),
}

impl Peers {
    /// A key of the section, and what is wrong with its value.
    pub(crate) fn check(&self, slots: u64) -> Result<(), (&'static str, String)> {
        let within = |good: bool, key, why: String| if good { Ok(()) } else { Err((key, why)) };
        let owners = u64::from(self.owners_min);
        within((1..=slots).contains(&owners), "owners_min", format!("{owners}; from 1 to outer.slots = {slots}"))?;
        within(self.delay <= 1, "delay", format!("{}; 0 or 1", self.delay))?;
        let seconds = [
            ("train_s", self.train_s, 0.001),
            ("grace_s", self.grace_s, 0.0),
            ("collect_s", self.collect_s, 0.001),
            ("retry_s", self.retry_s, 0.001),
        ];
        for (key, value, least) in seconds {
            within((least..=86_400.0).contains(&value), key, format!("{value}; from {least} to 86400 seconds"))?;
        }
        let ascend = |keys: &[PeerId]| keys.windows(2).all(|pair| pair[0] < pair[1]);
        within(ascend(&self.validators), "validators", "each once, in ascending order".into())?;
        if let Admission::Allow(peers) = &self.admission {
            let listed = !peers.is_empty() && ascend(peers);
            within(listed, "admission.allow", "at least one key, each once, in ascending order".into())?;
        }
        if let Route::Bucket(url) = &self.route {
            within(!url.is_empty(), "route.bucket", "a folder, or an s3://, gs:// or az:// URL".into())?;
        }
        Ok(())
    }
}

/// Why a process of a run cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeersError {
    /// The owner's own part.
    #[error(transparent)]
    Owner(#[from] OuterError),
    /// The tokens.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The process among others.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The page.
    #[error(transparent)]
    Live(#[from] LiveError),
    /// The bucket.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// An invitation to a run that asks for none, or from a key whose invitations it does not take.
    #[error("{name}: peers.admission takes no invitation of {ours}; it has to be {{ invite = \"{ours}\" }}")]
    NoInvitations {
        /// The run.
        name: String,
        /// The key at hand.
        ours: PeerId,
    },
    /// The configuration is not of a run over the network.
    #[error("{name}: has no section [peers], so nobody is there to decide; see configs/peers-quickstart.toml")]
    NoPeers {
        /// The run.
        name: String,
    },
    /// Another process has the folder.
    #[error(
        "{dir} is in use by process {by}: each owner has a folder of its own, named with --dir; to go on with this one, end that \
         process first"
    )]
    Taken {
        /// The folder.
        dir: PathBuf,
        /// The other process.
        by: String,
    },
    /// Nobody decides.
    #[error(
        "{name}: peers.validators is empty; put in the key of whoever validates, which \
         `esker peers key DIR` prints there; ours is {ours}, and who puts it in validates"
    )]
    NoValidators {
        /// The run.
        name: String,
        /// Our key.
        ours: PeerId,
    },
    /// What all agree on would be refused.
    #[error("{name}: these settings make no run that owners can share: {why}")]
    Spec {
        /// The run.
        name: String,
        /// What the protocol says.
        why: String,
    },
    /// A file or a process of this machine.
    #[error("{what}: {source}")]
    System {
        /// Which, and what was tried.
        what: String,
        /// What the system answered.
        source: std::io::Error,
    },
    /// One of the owners of `esker peers local` ended early.
    #[error("owner {owner} ended before the run did: {why}; its log is {log}")]
    Ended {
        /// Which, from 1.
        owner: usize,
        /// The last that it said.
        why: String,
        /// Where it wrote.
        log: PathBuf,
    },
    /// Owners came to different weights: the one thing that must never happen.
    #[error("round {round}: the owners' roots differ")]
    Roots {
        /// Which round.
        round: u64,
    },
    /// A signal.
    #[error("stopped; what was done is kept, the same command goes on")]
    Stopped,
}
