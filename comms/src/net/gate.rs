//! Who may start a handshake, and who may stay after it.
//!
//! | when | answer |
//! | --- | --- |
//! | more than `refuse_above` handshakes are pending | refuse |
//! | the subnet (/24, /48) has used its tokens | ignore: silence costs nothing and reflects nothing |
//! | more than `retry_above` are pending and the address is not proven | retry: the sender must show that it hears us |
//! | else | accept |
//! | after the handshake, the key has used its tokens | close |
//!
//! And whom this process may dial on hearsay: a subnet has tokens here too, since whoever tells us of a thousand peers at
//! a stranger's address would have us, and all others that he tells, knock there.
//!
//! Pure: time comes in as a duration since any fixed start. Both tables have a bound; when one is full, entries whose
//! bucket is full again (that is, who did nothing lately) go first, then the newcomer is turned away.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::pace::Bucket;
use crate::key::PeerId;

/// What to do with a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Accept,
    /// Let the sender prove its address first.
    Retry,
    /// Say no.
    Refuse,
    /// Say nothing.
    Ignore,
}

/// The numbers of the gate.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Pending handshakes above which an address must be proven.
    pub retry_above: usize,
    /// Pending handshakes above which all are refused.
    pub refuse_above: usize,
    /// Handshakes a subnet may start at once.
    pub subnet_burst: f64,
    /// Handshakes a second that a subnet gains.
    pub subnet_rate: f64,
    /// Connections a key may make at once.
    pub key_burst: f64,
    /// Connections a second that a key gains.
    pub key_rate: f64,
    /// Addresses of a subnet that are dialled on hearsay at once.
    pub dial_burst: f64,
    /// Such dials a second that a subnet gains.
    pub dial_rate: f64,
    /// Subnets, and keys, remembered at most.
    pub table_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            retry_above: 32,
            refuse_above: 256,
            subnet_burst: 256.0,
            subnet_rate: 16.0,
            key_burst: 24.0,
            key_rate: 0.5,
            dial_burst: 128.0,
            dial_rate: 4.0,
            table_max: 4096,
        }
    }
}

/// The gate's memory.
#[derive(Debug)]
pub struct Gate {
    limits: Limits,
    pending: usize,
    subnets: BTreeMap<[u8; 7], Bucket>,
    keys: BTreeMap<PeerId, Bucket>,
    dials: BTreeMap<[u8; 7], Bucket>,
}

/// The /24 or /48 of an address, with a mark for its family. A v4 address inside v6 counts as v4.
fn subnet(ip: IpAddr) -> [u8; 7] {
    let mut out = [0; 7];
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            out[0] = 4;
            out[1..4].copy_from_slice(&v4.octets()[..3]);
        }
        IpAddr::V6(v6) => {
            out[0] = 6;
            out[1..7].copy_from_slice(&v6.octets()[..6]);
        }
    }
    out
}

/// Takes one token of `key`'s bucket in a table of bounded size.
fn take<K: Ord>(table: &mut BTreeMap<K, Bucket>, max: usize, now: Duration, key: K, rate: f64, burst: f64) -> bool {
    if !table.contains_key(&key) && table.len() >= max {
        table.retain(|_, b| !b.is_full(now));
        if table.len() >= max {
            return false;
        }
    }
    table.entry(key).or_insert_with(|| Bucket::new(rate, burst)).try_take(now, 1.0)
}

impl Gate {
    /// A gate that has seen nobody.
    pub fn new(limits: Limits) -> Gate {
        Gate { limits, pending: 0, subnets: BTreeMap::new(), keys: BTreeMap::new(), dials: BTreeMap::new() }
    }

    /// A handshake has arrived. On `Accept` it counts as pending until `settled`.
    pub fn arrived(&mut self, now: Duration, from: IpAddr, proven: bool) -> Verdict {
        let l = &self.limits;
        if self.pending >= l.refuse_above {
            return Verdict::Refuse;
        }
        if self.pending >= l.retry_above && !proven {
            return Verdict::Retry;
        }
        if !take(&mut self.subnets, l.table_max, now, subnet(from), l.subnet_rate, l.subnet_burst) {
            return Verdict::Ignore;
        }
        self.pending += 1;
        Verdict::Accept
    }

    /// An accepted handshake has ended, well or not.
    pub fn settled(&mut self) {
        self.pending = self.pending.checked_sub(1).expect("each handshake settles once");
    }

    /// Whether a key that has just proven itself may stay.
    pub fn admit(&mut self, now: Duration, key: PeerId) -> bool {
        let l = &self.limits;
        take(&mut self.keys, l.table_max, now, key, l.key_rate, l.key_burst)
    }

    /// Whether an address that others told may be dialled.
    pub fn may_dial(&mut self, now: Duration, to: IpAddr) -> bool {
        let l = &self.limits;
        take(&mut self.dials, l.table_max, now, subnet(to), l.dial_rate, l.dial_burst)
    }

    /// Handshakes under way.
    pub fn pending(&self) -> usize {
        self.pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn pending_handshakes_have_two_lines() {
        let mut g = Gate::new(Limits::default());
        for n in 0..32 {
            assert_eq!(g.arrived(Duration::ZERO, ip(n << 8), false), Verdict::Accept);
        }
        assert_eq!(g.arrived(Duration::ZERO, ip(1 << 20), false), Verdict::Retry);
        for n in 32..256 {
            assert_eq!(g.arrived(Duration::ZERO, ip(n << 8), true), Verdict::Accept);
        }
        assert_eq!(g.arrived(Duration::ZERO, ip(1 << 20), true), Verdict::Refuse);
        g.settled();
        assert_eq!(g.arrived(Duration::ZERO, ip(1 << 20), true), Verdict::Accept);
    }

    #[test]
    fn a_subnet_and_a_key_have_quotas_and_tables_have_bounds() {
        let limits = Limits { subnet_burst: 4.0, key_burst: 2.0, table_max: 100, ..Limits::default() };
        let mut g = Gate::new(limits);
        let mut yes = 0;
        for n in 0..10 {
            if g.arrived(Duration::ZERO, ip(n), true) == Verdict::Accept {
                yes += 1;
                g.settled();
            }
        }
        assert_eq!(yes, 4);
        assert!(g.admit(Duration::ZERO, PeerId([1; 32])) && g.admit(Duration::ZERO, PeerId([1; 32])));
        assert!(!g.admit(Duration::ZERO, PeerId([1; 32])));
        assert!(g.admit(Duration::from_secs(3), PeerId([1; 32])));
        assert!((0..1000).filter(|n| g.may_dial(Duration::ZERO, ip(n % 256))).count() == 128);
        assert!(g.may_dial(Duration::ZERO, ip(1 << 8)) && g.may_dial(Duration::from_secs(1), ip(7)));
        for n in 0..10_000u32 {
            let _ = g.arrived(Duration::ZERO, ip(n << 8), true);
            g.pending = 0;
        }
        assert!(g.subnets.len() <= 100);
    }
}
