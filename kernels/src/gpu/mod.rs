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
//! **Order.** Launches, copies and fills happen in the order of calls, though three queues work on them: what crosses
//! the bus does so beside the kernels, by way of pinned slots (`copies`). Inside a section ([`Gpu::graph`]) launches are
//! noted and handed over together, as a graph from the third time on (`graph`). Nothing is allocated in a step; an op that
//! needs room has [`SCRATCH_BYTES`] for the time of its own launches.

pub mod card;
mod copies;
mod device;
mod graph;
pub mod images;
pub mod nvrtc;
pub mod sim;

pub use graph::{Counts, Section};

use crate::{DeviceError, Result, pool::Pool};
use copies::{COPIES_BYTES, Copies, SLOT_BYTES, Ticket};
use device::{Device, Exec, Fence, Lane, Pinned};
use graph::{Launch, Recorder};
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes that ops may use between their own launches.
pub const SCRATCH_BYTES: usize = 32 << 20;

/// Device memory that is taken beside every arena: the scratch of ops, and the slots that copies go through.
pub const OWN_BYTES: usize = SCRATCH_BYTES + COPIES_BYTES;

/// Pinned memory of the host that a device takes.
pub const PINNED_BYTES: usize = COPIES_BYTES;

/// A kernel, by its module and its own name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// Module that holds it: see [`images::MODULES`].
    pub module: &'static str,
    /// Name in the `.cu`.
    pub name: &'static str,
}

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl PartialEq for Args {
    fn eq(&self, other: &Args) -> bool {
        self.bytes() == other.bytes()
    }
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
    engine: Mutex<Engine>,
    host: Pool,
    scratch: u64,
    /// Last, so that graphs go before the device that made them.
    device: Device,
}

/// What orders work: locked for the time of a call.
#[derive(Debug)]
struct Engine {
    recorder: Recorder,
    copies: Copies,
}

/// A moment in the stream's order.
#[derive(Debug)]
pub enum Event {
    /// On a card.
    Card(card::Event),
    /// On the simulator: instructions run so far.
    Sim(u64),
}

/// Bytes of [`Gpu::start_read`] on their way.
#[derive(Debug)]
#[must_use]
pub(crate) struct Download(Ticket);

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

    /// The simulator of a card of `bytes` bytes: how a plan that does not fit is met.
    pub fn sim_of(bytes: usize, threads: usize) -> Result<Gpu> {
        Gpu::over(Device::Sim(sim::Sim::of(bytes)), threads)
    }

    fn over(device: Device, threads: usize) -> Result<Gpu> {
        let (host, scratch) = (Pool::new(threads)?, device.alloc(SCRATCH_BYTES)?);
        let engine = Engine { recorder: Recorder::default(), copies: Copies::new(&device)? };
        Ok(Gpu(Arc::new(Inner { engine: Mutex::new(engine), host, scratch, device })))
    }

    /// What it is called.
    pub fn name(&self) -> String {
        self.0.device.name()
    }

    /// Bytes free and in all.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.0.device.memory()
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

    fn engine(&self) -> MutexGuard<'_, Engine> {
        // A panic of an op leaves what was noted; the section's end hands it over.
        self.0.engine.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The engine, with everything noted so far handed over.
    fn settled(&self) -> Result<MutexGuard<'_, Engine>> {
        let mut engine = self.engine();
        engine.recorder.cut(&self.0.device)?;
        Ok(engine)
    }

    /// Runs `f` as a section: the kernels that it launches between two copies go over together, and from the third time on
    /// as a graph. A section inside a section is part of it.
    pub fn graph<R, E: From<DeviceError>>(
        &self,
        section: Section,
        f: impl FnOnce() -> std::result::Result<R, E>,
    ) -> std::result::Result<R, E> {
        // Also where `f` fails: what was noted would have been launched, and another thread may have noted some of it.
        struct Opened<'a>(&'a Gpu);
        impl Opened<'_> {
            fn close(&self) -> Result<()> {
                let mut engine = self.0.engine();
                let cut = engine.recorder.cut(&self.0.0.device);
                engine.recorder.close();
                cut
            }
        }
        impl Drop for Opened<'_> {
            fn drop(&mut self) {
                // The error that counts is that of `f`.
                let _ = self.close();
            }
        }
        let opened = self.engine().recorder.open(section).then(|| Opened(self));
        let done = f()?;
        if let Some(opened) = opened {
            std::mem::ManuallyDrop::new(opened).close()?;
        }
        Ok(done)
    }

    /// Whether sections make graphs, as they do at first; without, their launches are made one by one. For comparisons.
    pub fn use_graphs(&self, yes: bool) {
        self.engine().recorder.off = !yes;
    }

    /// What sections came to so far.
    pub fn counts(&self) -> Counts {
        self.engine().recorder.counts
    }

    /// Runs a kernel after everything before it.
    pub fn launch(&self, kernel: Kernel, grid: Grid, args: &Args) -> Result<()> {
        if grid.blocks.contains(&0) || self.engine().recorder.note(Launch { kernel, grid, args: *args }) {
            return Ok(());
        }
        self.0.device.launch(kernel, grid, args)
    }

    /// Waits until everything is done.
    pub fn synchronise(&self) -> Result<()> {
        drop(self.settled()?);
        self.0.device.synchronise()
    }

    /// Copies `from` to an address, after everything before it.
    pub fn write(&self, to: u64, from: &[u8]) -> Result<()> {
        self.settled()?.copies.write(&self.0.device, to, from)
    }

    /// Copies from an address, and waits for the work that makes what is there.
    pub fn read(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.settled()?.copies.read(&self.0.device, from, to)
    }

    /// Begins to copy `len` bytes from an address, if they fit a slot; what is done later does not change them.
    pub(crate) fn start_read(&self, from: u64, len: usize) -> Result<Option<Download>> {
        if len > SLOT_BYTES {
            return Ok(None);
        }
        self.settled()?.copies.start(&self.0.device, from, len).map(|ticket| Some(Download(ticket)))
    }

    /// Waits for those bytes, and for nothing after them.
    pub(crate) fn finish_read(&self, download: Download, to: &mut [u8]) -> Result<()> {
        self.settled()?.copies.collect(&self.0.device, download.0, to)
    }

    /// Marks this moment.
    pub fn event(&self) -> Result<Event> {
        let _engine = self.settled()?;
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
        let engine = self.engine.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        engine.copies.free(&self.device);
        self.device.free(self.scratch);
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
        let start = gpu.0.device.alloc(len.max(1))?;
        let block = Block { gpu: gpu.clone(), start, len };
        gpu.0.device.zero(start, len)?;
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
        // A launch that was noted may still name it; if that fails, nobody is left to tell.
        drop(self.gpu.settled());
        self.gpu.0.device.free(self.start);
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

    fn filled(gpu: &Gpu, word: u32) -> Vec<u8> {
        let block = Block::zeroed(gpu, 64).unwrap();
        let args = Args::new().address(block.address(0)).word(word).long(64);
        gpu.launch(kernel("cast", "cast_fill"), Grid::row(1, 256), &args).unwrap();
        let mut bytes = vec![0; 64];
        gpu.read(block.address(0), &mut bytes).unwrap();
        bytes
    }

    /// Launches of a section give what launches one by one give, each time with the numbers of that time.
    #[test]
    fn a_graph_takes_the_arguments_of_its_time() {
        let gpu = Gpu::sim(1, false, 1).unwrap();
        let block = Block::zeroed(&gpu, 128).unwrap();
        let section = Section { name: "test", size: 0 };
        let fill = |at: usize, word: u32| {
            let args = Args::new().address(block.address(at)).word(word).long(64);
            gpu.launch(kernel("cast", "cast_fill"), Grid::row(1, 256), &args)
        };
        for word in 1..6u32 {
            // Two pieces: the read is a cut. The second launch of the first piece never changes.
            let first = gpu.graph(section, || -> Result<_> {
                fill(0, word)?;
                fill(64, 7)?;
                let mut bytes = [0; 4];
                gpu.read(block.address(0), &mut bytes)?;
                fill(64, 2 * word)?;
                Ok(u32::from_le_bytes(bytes))
            });
            let mut last = [0; 4];
            gpu.read(block.address(64), &mut last).unwrap();
            assert_eq!((first.unwrap(), u32::from_le_bytes(last)), (word, 2 * word));
        }
        // The first time one by one; then built; then three times with one node changed of each piece.
        let want = Counts { single: 3, built: 2, graphs: 8, kernels: 12, changed: 6 };
        assert_eq!(gpu.counts(), want);
        assert_eq!(filled(&gpu, 0x0101_0101), [1; 64]);
    }

    /// Other kernels than last time are run one by one, and a section that fails leaves nothing behind.
    #[test]
    fn a_section_that_differs_or_fails_does_no_harm() {
        let gpu = Gpu::sim(1, false, 1).unwrap();
        let section = Section { name: "test", size: 0 };
        let block = Block::zeroed(&gpu, 128).unwrap();
        let run = |copies: usize| {
            gpu.graph(section, || -> Result<()> {
                let args = Args::new().address(block.address(0)).word(0x0202_0202).long(64);
                gpu.launch(kernel("cast", "cast_fill"), Grid::row(1, 256), &args)?;
                let args = Args::new().address(block.address(0)).address(block.address(64)).long(64);
                (0..copies).try_for_each(|_| gpu.launch(kernel("cast", "cast_copy"), Grid::row(1, 256), &args))
            })
        };
        for copies in [1, 1, 1, 2, 1, 0] {
            run(copies).unwrap();
            let mut bytes = [0; 64];
            gpu.read(block.address(64), &mut bytes).unwrap();
            assert_eq!(bytes, [2; 64]);
        }
        assert_eq!((gpu.counts().built, gpu.counts().graphs), (1, 2));
        let failed: Result<()> = gpu.graph(section, || {
            gpu.launch(kernel("cast", "cast_fill"), Grid::row(1, 256), &Args::new())?;
            Err(DeviceError::NoDriver)
        });
        assert!(failed.is_err());
        gpu.synchronise().unwrap();
    }

    /// More bytes than all slots hold, and reads that are collected after later work.
    #[test]
    fn copies_keep_the_order_of_calls() {
        let gpu = Gpu::sim(1, false, 1).unwrap();
        let len = 10 * SLOT_BYTES + 12;
        let block = Block::zeroed(&gpu, len).unwrap();
        let from: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
        gpu.write(block.address(0), &from).unwrap();
        let early = gpu.start_read(block.address(0), 16).unwrap().unwrap();
        gpu.write(block.address(0), &[9; 16]).unwrap();
        let late = gpu.start_read(block.address(0), 16).unwrap().unwrap();
        let mut all = vec![0; len];
        gpu.read(block.address(0), &mut all).unwrap();
        let (mut a, mut b) = ([0; 16], [0; 16]);
        gpu.finish_read(late, &mut b).unwrap();
        gpu.finish_read(early, &mut a).unwrap();
        assert_eq!((&a[..], b), (&from[..16], [9; 16]));
        assert_eq!((&all[..16], &all[16..]), (&[9; 16][..], &from[16..]));
    }

    #[test]
    fn a_card_that_is_too_small_says_so() {
        let gpu = Gpu::sim_of(OWN_BYTES + (1 << 20), 1).unwrap();
        assert_eq!(gpu.memory().unwrap(), (1 << 20, OWN_BYTES + (1 << 20)));
        let Err(said) = Block::zeroed(&gpu, (1 << 20) + 1) else { panic!("there is no room") };
        assert!(matches!(said, DeviceError::OutOfDeviceMemory { wanted_bytes: 1_048_577, .. }), "{said}");
        assert_eq!(said.to_string().lines().count(), 1);
    }
}
