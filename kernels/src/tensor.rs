//! Memory: an [`Arena`] lays tensors out before the first step; a [`Tensor`] is an owned window of it.
//!
//! The same layout code runs on an arena that only measures and on one that places, so the memory table a plan prints
//! is the memory a run takes. Windows are disjoint and handed out once, and a `Tensor` is not `Clone`: `&` and `&mut`
//! mean what they say. A tensor is contiguous and row-major, with at most four dimensions and its dtype as a value. An
//! op may be given a tensor longer than its problem: it uses the head of it.

use crate::{
    DeviceError, Result,
    device::{self, Stream},
    gpu::{Block, Gpu},
};
use half::bf16;
use serde::Serialize;
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU8, Ordering},
};

/// Every tensor starts on such a boundary: a cache line, and a vector of the widest kind.
pub const ALIGN_BYTES: usize = 64;

/// How an element is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// The upper half of an f32.
    Bf16,
    /// Token ids, positions, targets.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::Bf16 => 2,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::U32 => "u32",
        })
    }
}

/// What a tensor is for: the rows of the memory table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Weights in the dtype that ops read, and f32 master copies.
    Weights,
    /// Gradients of weights.
    Gradients,
    /// Moments of the optimiser.
    Optimiser,
    /// What forward keeps for backward.
    Activations,
    /// Buffers that every layer uses in turn.
    Scratch,
    /// Tokens, targets, positions, tables.
    Inputs,
    /// Keys and values of tokens already seen, in generation.
    Cache,
}

impl Class {
    /// All classes in the order of the table.
    pub const ALL: [Class; 7] = [
        Class::Weights,
        Class::Gradients,
        Class::Optimiser,
        Class::Activations,
        Class::Scratch,
        Class::Inputs,
        Class::Cache,
    ];
}

/// Bytes by class, padding to [`ALIGN_BYTES`] included.
pub type Table = std::collections::BTreeMap<Class, usize>;

/// Hands out tensors from one block of memory, or only counts them.
#[derive(Debug)]
pub struct Arena {
    memory: Option<Arc<Memory>>,
    used: usize,
    class: Class,
    table: Table,
}

impl Arena {
    /// An arena that counts and places nothing: its tensors have shapes and no memory.
    pub fn measure() -> Arena {
        Arena { memory: None, used: 0, class: Class::Scratch, table: Table::new() }
    }

    /// An arena with `bytes` bytes on the stream's device, all zero and present.
    pub fn place(s: &Stream, bytes: usize) -> Result<Arena> {
        match s {
            Stream::Cpu(pool) => {
                let mut memory = HostMem::map(bytes)?;
                // Touching each page now means that no step pays for it, and that memory in use is memory planned.
                // SAFETY: nobody else has seen this mapping yet.
                pool.chunks(unsafe { memory.window_mut() }, 1 << 21, |_, piece, _| piece.fill(0));
                Ok(Arena::over(memory, None))
            }
            // The mirror's pages come into being when the host touches them.
            Stream::Gpu(gpu) => Ok(Arena::over(HostMem::map(bytes)?, Some(Block::zeroed(gpu, bytes)?))),
        }
    }

    fn over(host: HostMem, device: Option<Block>) -> Arena {
        let memory = Memory { host, device, moving: Mutex::new(()) };
        Arena { memory: Some(Arc::new(memory)), used: 0, class: Class::Scratch, table: Table::new() }
    }

    /// Runs `layout` twice: on a measuring arena, then on one of just that size.
    pub fn build<T>(s: &Stream, mut layout: impl FnMut(&mut Arena) -> T) -> Result<(T, Table)> {
        let mut measured = Arena::measure();
        layout(&mut measured);
        let mut placed = Arena::place(s, measured.used)?;
        let made = layout(&mut placed);
        assert_eq!(placed.used, measured.used, "arena: a layout that depends on where it runs");
        Ok((made, placed.table))
    }

    /// Counts what follows under `class`.
    pub fn class(&mut self, class: Class) -> &mut Arena {
        self.class = class;
        self
    }

    /// The next window.
    pub fn tensor<const N: usize>(&mut self, dtype: DType, shape: [usize; N]) -> Tensor {
        assert!((1..=4).contains(&N), "arena: a tensor has 1 to 4 dimensions");
        let len: usize = shape.iter().product();
        let bytes = (len * dtype.bytes()).next_multiple_of(ALIGN_BYTES);
        let at = self.used;
        self.used += bytes;
        *self.table.entry(self.class).or_default() += bytes;
        let mut dims = [1; 4];
        dims[..N].copy_from_slice(&shape);
        if let Some(memory) = &self.memory {
            assert!(self.used <= memory.host.len(), "arena: {} bytes placed in {}", self.used, memory.host.len());
        }
        Tensor { memory: self.memory.clone(), at, len, dims, rank: N, dtype, newer: AtomicU8::new(NEITHER) }
    }

    /// Bytes handed out.
    pub fn bytes(&self) -> usize {
        self.used
    }

    /// Bytes handed out, by class.
    pub fn table(&self) -> &Table {
        &self.table
    }
}

/// Memory here, and on a device of which it is then the mirror.
#[derive(Debug)]
struct Memory {
    host: HostMem,
    device: Option<Block>,
    /// Held while a window moves from one side to the other.
    moving: Mutex<()>,
}

/// Which side of a tensor holds what was written last.
const NEITHER: u8 = 0;
const HOST: u8 = 1;
const DEVICE: u8 = 2;

/// An owned window of an arena.
#[derive(Debug)]
pub struct Tensor {
    memory: Option<Arc<Memory>>,
    at: usize,
    len: usize,
    dims: [usize; 4],
    rank: usize,
    dtype: DType,
    /// On a device: which side is newer.
    newer: AtomicU8,
}

impl Tensor {
    /// A tensor with an arena of its own, zeroed: for tests and tools.
    pub fn alone<const N: usize>(s: &Stream, dtype: DType, shape: [usize; N]) -> Result<Tensor> {
        Ok(Arena::build(s, |arena| arena.tensor(dtype, shape))?.0)
    }

    /// Number of elements.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// How elements are stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of the elements.
    pub fn size_bytes(&self) -> usize {
        self.len * self.dtype.bytes()
    }

    /// The elements' bytes on the host. On a device, waits for the work that makes them; panics if the device is lost,
    /// which [`Stream::synchronise`] says as an error.
    pub fn bytes(&self) -> &[u8] {
        let memory = self.memory();
        self.bring_here(memory);
        // SAFETY: the arena hands a window out once, a tensor is not Clone, and `&self` keeps writers out: `bring_here`
        // writes only while the device's side is newer, which it cannot become while a reader borrows the tensor.
        unsafe { memory.host.read(self.at, self.size_bytes()) }
    }

    /// The elements' bytes on the host, to write; on a device, they are then the newer side.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let memory = self.memory();
        self.bring_here(memory);
        if memory.device.is_some() {
            self.newer.store(HOST, Ordering::Release);
        }
        // SAFETY: as in `bytes`, and `&mut self` keeps everyone else out.
        unsafe { memory.host.window(self.at, self.size_bytes()) }
    }

    fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("tensor: a measured tensor has no memory")
    }

    /// Brings the mirror up to date.
    fn bring_here(&self, memory: &Memory) {
        let Some(block) = memory.device.as_ref() else { return };
        if self.newer.load(Ordering::Acquire) != DEVICE {
            return;
        }
        let _moving = memory.moving.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if self.newer.load(Ordering::Acquire) == DEVICE {
            // SAFETY: nobody reads a mirror that is out of date, and the lock lets one thread write it.
            let mirror = unsafe { memory.host.window(self.at, self.size_bytes()) };
            block.gpu().read(block.address(self.at), mirror).expect("tensor: reading back from the device");
            self.newer.store(NEITHER, Ordering::Release);
        }
    }

    /// The device whose memory this is.
    pub fn gpu(&self) -> Option<&Gpu> {
        Some(self.memory.as_ref()?.device.as_ref()?.gpu())
    }

    /// The elements' address on the device, to read; they are brought there if the host's side is newer.
    pub(crate) fn device(&self) -> Result<u64> {
        let memory = self.memory();
        let block = memory.device.as_ref().expect("tensor: an op of a device on a tensor of the host");
        if self.newer.load(Ordering::Acquire) == HOST {
            let _moving = memory.moving.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if self.newer.load(Ordering::Acquire) == HOST {
                // SAFETY: as in `bytes`.
                let mirror = unsafe { memory.host.read(self.at, self.size_bytes()) };
                block.gpu().write(block.address(self.at), mirror)?;
                self.newer.store(NEITHER, Ordering::Release);
            }
        }
        Ok(block.address(self.at))
    }

    /// The elements' address on the device, to write; that side is then the newer one.
    pub(crate) fn device_mut(&mut self) -> Result<u64> {
        let address = self.device()?;
        self.newer.store(DEVICE, Ordering::Release);
        Ok(address)
    }

    /// The elements, which must be f32.
    pub fn f32(&self) -> &[f32] {
        assert_eq!(self.dtype, DType::F32, "tensor: f32 wanted");
        bytemuck::cast_slice(self.bytes())
    }

    /// The elements to write, which must be f32.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        assert_eq!(self.dtype, DType::F32, "tensor: f32 wanted");
        bytemuck::cast_slice_mut(self.bytes_mut())
    }

    /// The elements, which must be bf16.
    pub fn bf16(&self) -> &[bf16] {
        assert_eq!(self.dtype, DType::Bf16, "tensor: bf16 wanted");
        bytemuck::cast_slice(self.bytes())
    }

    /// The elements to write, which must be bf16.
    pub fn bf16_mut(&mut self) -> &mut [bf16] {
        assert_eq!(self.dtype, DType::Bf16, "tensor: bf16 wanted");
        bytemuck::cast_slice_mut(self.bytes_mut())
    }

    /// The elements, which must be u32.
    pub fn u32(&self) -> &[u32] {
        assert_eq!(self.dtype, DType::U32, "tensor: u32 wanted");
        bytemuck::cast_slice(self.bytes())
    }

    /// The elements to write, which must be u32.
    pub fn u32_mut(&mut self) -> &mut [u32] {
        assert_eq!(self.dtype, DType::U32, "tensor: u32 wanted");
        bytemuck::cast_slice_mut(self.bytes_mut())
    }

    /// Writes `values`, rounded to the tensor's dtype (f32 or bf16), into its head.
    pub fn set(&mut self, values: &[f32]) {
        match self.dtype {
            DType::F32 => self.f32_mut()[..values.len()].copy_from_slice(values),
            DType::Bf16 => {
                for (to, &from) in self.bf16_mut()[..values.len()].iter_mut().zip(values) {
                    *to = bf16::from_f32(from);
                }
            }
            DType::U32 => panic!("tensor: set takes f32 or bf16"),
        }
    }

    /// The elements (f32 or bf16) as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            DType::F32 => self.f32().to_vec(),
            DType::Bf16 => self.bf16().iter().map(|x| x.to_f32()).collect(),
            DType::U32 => panic!("tensor: to_f32 takes f32 or bf16"),
        }
    }

    /// Fills every byte with ones: NaN as f32 and as bf16. What reads it by mistake shows.
    pub fn poison(&mut self) {
        match self.gpu().cloned() {
            Some(gpu) => device::fill(&gpu, self, u32::MAX).expect("tensor: poison on the device"),
            None => self.bytes_mut().fill(0xff),
        }
    }
}

/// A private mapping of zeroed memory, on huge pages where the system gives them.
#[derive(Debug)]
pub struct HostMem {
    start: *mut u8,
    len: usize,
    // Keeps the mapping alive; all access goes through `start`, taken from it once.
    _map: memmap2::MmapMut,
}

// SAFETY: a mapping is plain memory; `window` states who may touch what.
unsafe impl Send for HostMem {}
// SAFETY: as above.
unsafe impl Sync for HostMem {}

impl HostMem {
    /// Maps `len` bytes (at least one page).
    pub fn map(len: usize) -> Result<HostMem> {
        let wanted = len.max(4096);
        let mut map = memmap2::MmapMut::map_anon(wanted)
            .map_err(|source| DeviceError::OutOfMemory { wanted_bytes: wanted, source })?;
        #[cfg(target_os = "linux")]
        // A refusal costs speed alone.
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(HostMem { start: map.as_mut_ptr(), len, _map: map })
    }

    /// Bytes asked for.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The whole mapping.
    ///
    /// # Safety
    /// No window of it may be alive.
    unsafe fn window_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is that long and lives as long as self; no other window, by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// The bytes `at..at + len`, to read.
    ///
    /// # Safety
    /// While this window is alive nobody may write it.
    unsafe fn read(&self, at: usize, len: usize) -> &[u8] {
        assert!(at <= self.len && len <= self.len - at, "memory: window {at}+{len} of {}", self.len);
        // SAFETY: inside the mapping, by the check above; aliasing by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.add(at), len) }
    }

    /// The bytes `at..at + len`.
    ///
    /// # Safety
    /// While this window is written, no other window alive may overlap it.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn window(&self, at: usize, len: usize) -> &mut [u8] {
        assert!(at <= self.len && len <= self.len - at, "memory: window {at}+{len} of {}", self.len);
        // SAFETY: inside the mapping, by the check above; aliasing by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_what_is_placed() {
        let s = Stream::cpu(1).unwrap();
        let layout = |arena: &mut Arena| {
            let a = arena.class(Class::Weights).tensor(DType::Bf16, [3, 5]);
            let b = arena.class(Class::Activations).tensor(DType::F32, [7]);
            (a, b)
        };
        let mut measured = Arena::measure();
        layout(&mut measured);
        let ((mut a, b), table) = Arena::build(&s, layout).unwrap();
        assert_eq!(&table, measured.table());
        assert_eq!(table.values().sum::<usize>(), measured.bytes());
        a.poison();
        assert!(a.to_f32().iter().all(|x| x.is_nan()));
        assert_eq!(b.f32(), [0.0; 7]);
        assert_eq!((a.shape(), b.len()), ([3, 5].as_slice(), 7));
    }

    #[test]
    #[should_panic(expected = "f32 wanted")]
    fn a_dtype_is_checked() {
        let s = Stream::cpu(1).unwrap();
        Tensor::alone(&s, DType::Bf16, [4]).unwrap().f32();
    }
}
