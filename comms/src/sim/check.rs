//! What the protocol promises, held against a recorded history.
//!
//! ```text
//! agreement     one manifest a round, on all machines, for ever
//! determinism   one root a round: whoever applied a manifest has the same bits
//! validity      what is listed was committed by its peer, decodes, and was made from the round's state
//! availability  what is listed is held by a quorum of validators at that moment
//! order         a machine applies rounds one by one across restarts, unless it takes a checkpoint
//! liveness      a round ends within its deadlines while a quorum of validators is connected, and is not empty
//! ```

use crate::Hash;
use crate::round::Time;
use std::collections::BTreeMap;
use std::fmt::Write;

/// One round of a history.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    /// When its manifest was first accepted.
    pub at: Time,
    /// The manifest.
    pub manifest: Hash,
    /// The root after it, once somebody applied it.
    pub root: Option<Hash>,
    /// Peers alive then.
    pub peers: u32,
    /// Peers that may train next.
    pub slots: u32,
    /// Updates that count.
    pub entries: u32,
    /// Updates that do not.
    pub rejects: u32,
    /// Updates of liars that count.
    pub lies: u32,
}

/// How a play ended.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Rounds by number.
    pub rows: BTreeMap<u64, Row>,
    /// What was promised and not kept, each with its round and machine.
    pub faults: Vec<String>,
    /// Rounds that came to nothing although a quorum of validators lived.
    pub missed: u64,
    /// The longest time from one manifest to the next while a quorum could meet, ms.
    pub longest_ms: Time,
    /// Machines killed.
    pub kills: u64,
    /// Machines that left for ever (kills too, without a start).
    pub left: u64,
    /// Machines that came.
    pub joined: u64,
    /// Rounds from having the state to the first update that counts, worst of all honest newcomers that count at all.
    pub newcomer_rounds: u64,
    /// States mended or taken over.
    pub synced: u64,
    /// Bytes of states moved for that.
    pub synced_bytes: u64,
    /// States found to differ, and by how many rounds late, at worst.
    pub mismatches: u64,
    /// Messages and blobs that did not decode or verify.
    pub refused: u64,
    /// Statements that exclude each other, found.
    pub equivocations: u64,
    /// Machines alive at the end whose state is not the newest.
    pub behind: u64,
    /// Rounds after a partition's end until all machines were level again.
    pub healed: Option<u64>,
    /// Events played.
    pub events: u64,
    /// Distinct signatures made and verified.
    pub signatures: u64,
    /// Distance of the final state from the target, and of the first.
    pub distance: (f64, f64),
    /// Names the whole history: the same seed gives the same digest.
    pub digest: Hash,
}

impl Report {
    /// Whether every promise was kept.
    pub fn holds(&self) -> bool {
        self.faults.is_empty() && self.missed == 0
    }

    /// The table and the verdict, for people.
    pub fn table(&self) -> String {
        let mut out = String::from("  round   virtual s    peers   slots  counted  rejected   lies  root\n");
        let every = (self.rows.len() / 20).max(1);
        let last = self.rows.len().saturating_sub(1);
        for (i, (round, r)) in self.rows.iter().enumerate() {
            if i % every == 0 || i == last {
                let root = r.root.map_or("-".into(), |r| r.short());
                let (at, peers, slots) = (r.at as f64 / 1e3, r.peers, r.slots);
                let (entries, rejects, lies) = (r.entries, r.rejects, r.lies);
                let _ = writeln!(
                    out,
                    "{round:>7} {at:>11.1} {peers:>8} {slots:>7} {entries:>8} {rejects:>9} {lies:>6}  {root}"
                );
            }
        }
        let _ = writeln!(
            out,
            "{} left, {} came, {} killed and started again; {} states taken over or mended, {} found to differ; \
             {} messages refused, {} equivocations proved",
            self.left, self.joined, self.kills, self.synced, self.mismatches, self.refused, self.equivocations
        );
        let _ = writeln!(
            out,
            "longest round {:.1} s; newcomers count after at most {} rounds; distance {:.3} -> {:.3}; {} events, {} \
             signatures; seed {}, history {}",
            self.longest_ms as f64 / 1e3,
            self.newcomer_rounds,
            self.distance.0,
            self.distance.1,
            self.events,
            self.signatures,
            self.seed,
            self.digest.short()
        );
        for fault in self.faults.iter().take(20) {
            let _ = writeln!(out, "FAULT: {fault}");
        }
        let verdict = if self.holds() { "holds" } else { "BROKEN" };
        let _ = writeln!(out, "verdict: {verdict}; {} faults, {} rounds missed", self.faults.len(), self.missed);
        out
    }
}
