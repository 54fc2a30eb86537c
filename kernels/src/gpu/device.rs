//! The verbs that a card and the simulator share: memory, launches, graphs, and three queues with fences between them.

use super::{Args, Grid, Kernel, card, graph::Launch, sim};
use crate::Result;

/// A card or its simulator.
#[derive(Debug)]
pub(super) enum Device {
    Card(card::Card),
    Sim(sim::Sim),
}

/// A queue of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Kernels, and copies inside the device.
    Compute,
    /// From the host.
    In,
    /// To the host.
    Out,
}

/// A place in a queue that another queue or the host can wait for; recorded anew each time it is used. The device owns it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fence(pub(super) usize);

/// Memory of the host that a device reaches by itself. The device owns it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pinned {
    pub(super) at: *mut u8,
    pub(super) len: usize,
}

// SAFETY: plain memory that lives as long as its device; `Copies` hands it to one side at a time.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Copies `from` into its head.
    ///
    /// # Safety
    /// The device that made it is alive, and nothing else writes or reads it meanwhile.
    pub(super) unsafe fn fill(self, from: &[u8]) {
        assert!(from.len() <= self.len, "pinned: {} bytes in {}", from.len(), self.len);
        // SAFETY: inside the memory, by the check; alone with it, by the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.at, from.len()) }
    }

    /// Copies its head to `to`.
    ///
    /// # Safety
    /// As for [`Pinned::fill`].
    pub(super) unsafe fn take(self, to: &mut [u8]) {
        assert!(to.len() <= self.len, "pinned: {} bytes of {}", to.len(), self.len);
        // SAFETY: inside the memory, by the check; alone with it, by the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(self.at, to.as_mut_ptr(), to.len()) }
    }
}

/// A graph, of the device that built it.
#[derive(Debug)]
pub(super) enum Exec {
    Card(card::Exec),
    Sim(sim::Exec),
}

/// Calls a verb of whichever device it is.
macro_rules! verb {
    ($of:expr, $device:ident => $call:expr) => {
        match $of {
            Device::Card($device) => $call,
            Device::Sim($device) => $call,
        }
    };
}

/// The verbs that a device has.
impl Device {
    /// What it is called.
    pub(super) fn name(&self) -> String {
        verb!(self, device => device.name())
    }

    /// Bytes free and in all.
    pub(super) fn memory(&self) -> Result<(usize, usize)> {
        verb!(self, device => device.memory())
    }

    pub(super) fn alloc(&self, bytes: usize) -> Result<u64> {
        verb!(self, device => device.alloc(bytes))
    }

    pub(super) fn free(&self, address: u64) {
        verb!(self, device => device.free(address));
    }

    pub(super) fn zero(&self, to: u64, bytes: usize) -> Result<()> {
        verb!(self, device => device.zero(to, bytes))
    }

    pub(super) fn launch(&self, kernel: Kernel, grid: Grid, args: &Args) -> Result<()> {
        verb!(self, device => device.launch(kernel, grid, args.bytes()))
    }

    pub(super) fn synchronise(&self) -> Result<()> {
        verb!(self, device => device.synchronise())
    }

    /// A graph of these launches, each after the one before.
    pub(super) fn build(&self, launches: &[Launch]) -> Result<Exec> {
        match self {
            Device::Card(card) => card.build(launches).map(Exec::Card),
            Device::Sim(sim) => Ok(Exec::Sim(sim.build(launches))),
        }
    }

    /// Gives a node the arguments and the grid of `launch`, whose kernel it has.
    pub(super) fn change(&self, exec: &mut Exec, node: usize, launch: &Launch) -> Result<()> {
        match (self, exec) {
            (Device::Card(card), Exec::Card(exec)) => card.change(exec, node, launch),
            (Device::Sim(sim), Exec::Sim(exec)) => {
                sim.change(exec, node, launch);
                Ok(())
            }
            _ => panic!("gpu: a graph of another device"),
        }
    }

    pub(super) fn launch_graph(&self, exec: &Exec) -> Result<()> {
        match (self, exec) {
            (Device::Card(card), Exec::Card(exec)) => card.launch_graph(exec),
            (Device::Sim(sim), Exec::Sim(exec)) => sim.launch_graph(exec),
            _ => panic!("gpu: a graph of another device"),
        }
    }

    pub(super) fn fence(&self) -> Result<Fence> {
        verb!(self, device => device.fence())
    }

    /// Puts the fence behind what the lane was handed so far.
    pub(super) fn record(&self, lane: Lane, fence: Fence) -> Result<()> {
        verb!(self, device => device.record(lane, fence))
    }

    /// What the lane is handed from now on begins after the fence.
    pub(super) fn wait(&self, lane: Lane, fence: Fence) -> Result<()> {
        verb!(self, device => device.wait(lane, fence))
    }

    /// The host waits for the fence.
    pub(super) fn finish(&self, fence: Fence) -> Result<()> {
        verb!(self, device => device.finish(fence))
    }

    pub(super) fn pinned(&self, bytes: usize) -> Result<Pinned> {
        verb!(self, device => device.pinned(bytes))
    }

    /// The host writes pinned memory, which no copy under way may read.
    pub(super) fn fill_pinned(&self, to: Pinned, from: &[u8]) -> Result<()> {
        verb!(self, device => device.fill_pinned(to, from))
    }

    /// The host reads pinned memory, into which all copies are done.
    pub(super) fn take_pinned(&self, from: Pinned, to: &mut [u8]) -> Result<()> {
        verb!(self, device => device.take_pinned(from, to))
    }

    pub(super) fn copy_in(&self, to: u64, from: Pinned, bytes: usize) -> Result<()> {
        verb!(self, device => device.copy_in(to, from, bytes))
    }

    pub(super) fn copy_out(&self, to: Pinned, from: u64, bytes: usize) -> Result<()> {
        verb!(self, device => device.copy_out(to, from, bytes))
    }

    /// Copies inside the device, in the lane of the kernels.
    pub(super) fn hop(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        verb!(self, device => device.hop(to, from, bytes))
    }
}
