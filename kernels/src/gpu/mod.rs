//! Devices with memory of their own: a CUDA card, and the simulator that stands in for one.
//!
//! **How device memory enters.** An [`Arena`](crate::tensor::Arena) placed on a [`Gpu`] is one allocation there and one
//! mapping of the same size here, the *mirror*, whose pages exist once they are touched. A tensor is the same window of
//! both and knows which side is newer. Host access (`f32()`, `set`, ...) first brings the mirror up to date, and writing
//! there makes it the newer side; an op asks for the device's side, which is brought up to date once, before the launch.
//! So code that loads weights, draws them, saves them or reads a loss is written once for all devices, nothing is copied
//! that nobody asks for, and inside a step all tensors but tokens and losses stay on the device.
//!
//! **Ops.** A door hands an op of a `Gpu` to the `gpu.rs` of its folder, which packs arguments and launches kernels of
//! `cuda/`. It does not know whether a card or the simulator runs them. Ops of generation (`attention::decode`, `tree`)
//! and two of the three codecs of `chunk_topk` run on the host, on the mirror.
//!
//! **Order.** One stream: launches, copies and fills happen in the order of calls. Nothing is allocated in a step; an op
//! that needs room has [`SCRATCH_BYTES`] for the time of its own launches.

pub mod card;
pub mod images;
pub mod nvrtc;
pub mod sim;

use crate::{Result, pool::Pool};
use std::sync::Arc;

/// Bytes that ops may use between their own launches.
pub const SCRATCH_BYTES: usize = 32 << 20;

/// A kernel, by its module and its own name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// Module that holds it: see [`images::MODULES`].
    pub module: &'static str,
    /// Name in the `.cu`.
    pub name: &'static str,
}

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Blocks in x, y and z.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
}

impl Grid {
    /// `blocks` blocks in a row, without dynamic shared memory.
    pub fn row(blocks: usize, threads: u32) -> Grid {
        Grid { blocks: [count(blocks), 1, 1], threads, shared: 0 }
    }
}

/// A number of blocks, rows or columns as a kernel takes it.
pub(crate) fn count(n: usize) -> u32 {
    u32::try_from(n).ok().filter(|&n| n <= i32::MAX as u32).expect("gpu: a size past 2^31")
}

/// The arguments of a kernel, one after the other, each on a multiple of its own size.
#[derive(Clone, Copy, Debug)]
pub struct Args {
    bytes: [u8; 256],
    len: usize,
}

impl Args {
    /// None yet.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Args {
        Args { bytes: [0; 256], len: 0 }
    }

    /// An address on the device; 0 stands for none.
    pub fn address(self, address: u64) -> Args {
        self.push(&address.to_le_bytes(), 8)
    }

    /// A 64-bit length.
    pub fn long(self, n: usize) -> Args {
        self.push(&(n as u64).to_le_bytes(), 8)
    }

    /// A length or an index below 2^31.
    pub fn int(self, n: usize) -> Args {
        self.push(&count(n).to_le_bytes(), 4)
    }

    /// A flag, 0 or 1.
    pub fn flag(self, set: bool) -> Args {
        self.push(&u32::from(set).to_le_bytes(), 4)
    }

    /// A word.
    pub fn word(self, word: u32) -> Args {
        self.push(&word.to_le_bytes(), 4)
    }

    /// A number.
    pub fn float(self, x: f32) -> Args {
        self.push(&x.to_le_bytes(), 4)
    }

    /// Goes on at a multiple of eight, as a struct that holds an address does.
    pub fn aligned(self) -> Args {
        self.push(&[], 8)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(mut self, bytes: &[u8], align: usize) -> Args {
        let at = self.len.next_multiple_of(align);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.len = at + bytes.len();
        self
    }
}

/// A device, with its scratch and the host's threads for what runs here.
#[derive(Clone, Debug)]
pub struct Gpu(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    device: Device,
    host: Pool,
    scratch: u64,
}

#[derive(Debug)]
enum Device {
    Card(card::Card),
    Sim(sim::Sim),
}

/// Calls a verb of whichever device it is.
macro_rules! verb {
    ($gpu:expr, $device:ident => $call:expr) => {
        match &$gpu.0.device {
            Device::Card($device) => $call,
            Device::Sim($device) => $call,
        }
    };
}

/// A moment in the stream's order.
#[derive(Debug)]
pub enum Event {
    /// On a card.
    Card(card::Event),
    /// On the simulator: instructions run so far.
    Sim(u64),
}

impl Gpu {
    /// The CUDA card number `ordinal`, with `threads` host threads for what runs here.
    pub fn cuda(ordinal: usize, threads: usize) -> Result<Gpu> {
        Gpu::over(Device::Card(card::Card::open(ordinal)?), threads)
    }

    /// The simulator. It schedules warps and delays copies as `seed` says; `races` looks for accesses without an order.
    pub fn sim(seed: u64, races: bool, threads: usize) -> Result<Gpu> {
        Gpu::over(Device::Sim(sim::Sim::new(seed, races)), threads)
    }

    /// [`Gpu::sim`] with other code for one module: how planted bugs are run.
    pub fn sim_with(seed: u64, races: bool, module: &'static str, ptx: &str) -> Result<Gpu> {
        Gpu::over(Device::Sim(sim::Sim::with(seed, races, module, ptx)?), 1)
    }

    fn over(device: Device, threads: usize) -> Result<Gpu> {
        let mut inner = Inner { device, host: Pool::new(threads)?, scratch: 0 };
        inner.scratch = match &inner.device {
            Device::Card(card) => card.alloc(SCRATCH_BYTES)?,
            Device::Sim(sim) => sim.alloc(SCRATCH_BYTES)?,
        };
        Ok(Gpu(Arc::new(inner)))
    }

    /// What it is called.
    pub fn name(&self) -> String {
        verb!(self, device => device.name())
    }

    /// Bytes free and in all.
    pub fn memory(&self) -> Result<(usize, usize)> {
        verb!(self, device => device.memory())
    }

    /// The host's threads.
    pub fn host(&self) -> &Pool {
        &self.0.host
    }

    /// Address of [`SCRATCH_BYTES`] bytes; panics if an op wants more than there are.
    pub fn scratch(&self, bytes: usize) -> u64 {
        assert!(bytes <= SCRATCH_BYTES, "gpu: {bytes} bytes of scratch wanted, there are {SCRATCH_BYTES}");
        self.0.scratch
    }

    /// Runs a kernel after everything before it.
    pub fn launch(&self, kernel: Kernel, grid: Grid, args: &Args) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        verb!(self, device => device.launch(kernel, grid, args.bytes()))
    }

    /// Waits until everything is done.
    pub fn synchronise(&self) -> Result<()> {
        verb!(self, device => device.synchronise())
    }

    /// Copies `from` to an address, after everything before it.
    pub fn write(&self, to: u64, from: &[u8]) -> Result<()> {
        verb!(self, device => device.write(to, from))
    }

    /// Copies from an address, and waits for the work that makes what is there.
    pub fn read(&self, from: u64, to: &mut [u8]) -> Result<()> {
        verb!(self, device => device.read(from, to))
    }

    /// Marks this moment.
    pub fn event(&self) -> Result<Event> {
        match &self.0.device {
            Device::Card(card) => card.event().map(Event::Card),
            Device::Sim(sim) => Ok(Event::Sim(sim.instructions())),
        }
    }

    /// Time between two moments in ms; on the simulator, thousands of instructions. Waits for the second.
    pub fn elapsed_ms(&self, from: &Event, to: &Event) -> Result<f64> {
        match (&self.0.device, from, to) {
            (Device::Card(card), Event::Card(from), Event::Card(to)) => card.elapsed_ms(from, to),
            (Device::Sim(_), Event::Sim(from), Event::Sim(to)) => Ok((to - from) as f64 / 1e3),
            _ => panic!("gpu: events of two devices"),
        }
    }

    /// Whether it is the simulator.
    pub fn is_sim(&self) -> bool {
        matches!(self.0.device, Device::Sim(_))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        match &self.device {
            Device::Card(card) => card.free(self.scratch),
            Device::Sim(sim) => sim.free(self.scratch),
        }
    }
}

/// One allocation on a device.
#[derive(Debug)]
pub(crate) struct Block {
    gpu: Gpu,
    start: u64,
    len: usize,
}

impl Block {
    /// `len` bytes of zeros.
    pub fn zeroed(gpu: &Gpu, len: usize) -> Result<Block> {
        let start = verb!(gpu, device => device.alloc(len.max(1)))?;
        let block = Block { gpu: gpu.clone(), start, len };
        verb!(gpu, device => device.zero(start, len))?;
        Ok(block)
    }

    /// Address of byte `at`.
    pub fn address(&self, at: usize) -> u64 {
        debug_assert!(at <= self.len);
        self.start + at as u64
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        verb!(self.gpu, device => device.free(self.start));
    }
}

/// A kernel of a module of the same name or the one given.
pub(crate) const fn kernel(module: &'static str, name: &'static str) -> Kernel {
    Kernel { module, name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_lie_as_c_lays_them_out() {
        let args = Args::new().int(1).address(2).float(1.0).flag(true).int(7).aligned();
        assert_eq!(args.bytes().len(), 32);
        assert_eq!(args.bytes()[8], 2);
        assert_eq!(args.bytes()[16..20], 1.0f32.to_le_bytes());
        assert_eq!(args.bytes()[24], 7);
    }
}
