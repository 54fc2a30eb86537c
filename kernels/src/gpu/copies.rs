//! Copies between host and device that leave the kernels running.
//!
//! Three queues: *compute* runs the kernels, *in* and *out* move bytes. A copy goes by way of a slot, which is a piece of
//! pinned memory here and one of the same size there:
//!
//! ```text
//! in     host → pinned        in: pinned → slot       compute: slot → where it belongs, after `moved`
//! out    compute: → slot      out: slot → pinned, after `ready`        pinned → host, after `moved`
//! ```
//!
//! What crosses the bus crosses it beside the kernels; the queue of kernels holds only the short hop inside the device,
//! so the order of calls stays the order of work. A slot is used again when its last hop is done: the host waits for that
//! only when all slots are under way. Bytes that are [`Copies::start`]ed are collected later, after more work was handed
//! over: so a loss is read while the next micro-batch runs.

use super::{Device, Fence, Lane, Pinned};
use crate::Result;

/// Bytes of a slot, on either side.
pub(crate) const SLOT_BYTES: usize = 256 << 10;
/// Slots of each direction.
const IN: usize = 8;
const OUT: usize = 4;

/// Bytes that all slots take on the device, and as many of pinned memory here.
pub(crate) const COPIES_BYTES: usize = (IN + OUT) * SLOT_BYTES;

/// The slots.
#[derive(Debug)]
pub(super) struct Copies {
    incoming: [Slot; IN],
    outgoing: [Slot; OUT],
    next: (usize, usize),
}

#[derive(Debug)]
struct Slot {
    host: Pinned,
    device: u64,
    /// Bytes have crossed the bus.
    moved: Fence,
    /// The hop inside the device is done.
    hopped: Fence,
    /// Outgoing: somebody will collect it.
    held: bool,
}

/// Bytes on their way to the host.
#[derive(Debug)]
#[must_use]
pub(super) struct Ticket {
    slot: usize,
    len: usize,
}

impl Copies {
    /// Takes the memory of all slots.
    pub fn new(device: &Device) -> Result<Copies> {
        let start = device.alloc(COPIES_BYTES)?;
        let slot = |i: usize| -> Result<Slot> {
            let (host, at) = (device.pinned(SLOT_BYTES)?, start + (i * SLOT_BYTES) as u64);
            Ok(Slot { host, device: at, moved: device.fence()?, hopped: device.fence()?, held: false })
        };
        let all = (0..IN + OUT).map(slot).collect::<Result<Vec<_>>>()?;
        let mut all = all.into_iter();
        let mut take = || all.next().expect("as many slots as were made");
        Ok(Copies { incoming: [(); IN].map(|()| take()), outgoing: [(); OUT].map(|()| take()), next: (0, 0) })
    }

    /// Gives the device's memory back.
    pub fn free(&self, device: &Device) {
        device.free(self.incoming[0].device);
    }

    /// Copies `from` to the address `to`, after everything before it. `from` may be reused at once.
    pub fn write(&mut self, device: &Device, to: u64, from: &[u8]) -> Result<()> {
        for (i, piece) in from.chunks(SLOT_BYTES).enumerate() {
            let slot = &self.incoming[self.next.0];
            self.next.0 = (self.next.0 + 1) % IN;
            // Both halves are free once the hop is done, which came after the crossing.
            device.finish(slot.hopped)?;
            device.fill_pinned(slot.host, piece)?;
            device.copy_in(slot.device, slot.host, piece.len())?;
            device.record(Lane::In, slot.moved)?;
            device.wait(Lane::Compute, slot.moved)?;
            device.hop(to + (i * SLOT_BYTES) as u64, slot.device, piece.len())?;
            device.record(Lane::Compute, slot.hopped)?;
        }
        Ok(())
    }

    /// Begins to bring `len` bytes (at most [`SLOT_BYTES`]) from the address `from`, as everything before leaves them.
    pub fn start(&mut self, device: &Device, from: u64, len: usize) -> Result<Ticket> {
        assert!(len <= SLOT_BYTES, "gpu: {len} bytes in a slot of {SLOT_BYTES}");
        let free = (0..OUT).map(|i| (self.next.1 + i) % OUT).find(|&i| !self.outgoing[i].held);
        let index = free.expect("gpu: no more reads under way than there are slots");
        self.next.1 = (index + 1) % OUT;
        let slot = &mut self.outgoing[index];
        // The last crossing read what the hop below overwrites; whoever began it may never have collected it.
        device.finish(slot.moved)?;
        device.hop(slot.device, from, len)?;
        device.record(Lane::Compute, slot.hopped)?;
        device.wait(Lane::Out, slot.hopped)?;
        device.copy_out(slot.host, slot.device, len)?;
        device.record(Lane::Out, slot.moved)?;
        slot.held = true;
        Ok(Ticket { slot: index, len })
    }

    /// Waits for those bytes.
    pub fn collect(&mut self, device: &Device, ticket: Ticket, to: &mut [u8]) -> Result<()> {
        let slot = &mut self.outgoing[ticket.slot];
        assert_eq!(to.len(), ticket.len, "gpu: bytes that were asked for");
        slot.held = false;
        device.finish(slot.moved)?;
        device.take_pinned(slot.host, to)
    }

    /// Copies from the address `from` and waits: one slot crosses while the one before is taken out.
    pub fn read(&mut self, device: &Device, from: u64, to: &mut [u8]) -> Result<()> {
        let mut before: Option<(Ticket, &mut [u8])> = None;
        for (i, piece) in to.chunks_mut(SLOT_BYTES).enumerate() {
            let ticket = self.start(device, from + (i * SLOT_BYTES) as u64, piece.len())?;
            if let Some((ticket, piece)) = before.replace((ticket, piece)) {
                self.collect(device, ticket, piece)?;
            }
        }
        before.map_or(Ok(()), |(ticket, piece)| self.collect(device, ticket, piece))
    }
}
