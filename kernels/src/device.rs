//! Where ops run: one enum, matched once at each door.
//!
//! A [`Stream`] is a device's queue and its verbs. On the CPU a call returns when its work is done, so there is nothing
//! to wait for; the verbs exist so that callers are written once for every device.

use crate::{
    DeviceError, Result,
    gpu::{Args, Download, Gpu, Grid, OWN_BYTES, PINNED_BYTES, Section, kernel},
    pool::Pool,
    tensor::Tensor,
};

/// What a stream may run on, by the name that a user gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// The host.
    #[default]
    Cpu,
    /// The first CUDA card.
    Cuda,
    /// The simulator of a card: exact, and some ten thousand times slower.
    Sim,
}

/// A device's queue of work.
#[derive(Debug)]
pub enum Stream {
    /// The host: ops run on the threads of this pool, and return when done.
    Cpu(Pool),
    /// A device with memory of its own, which runs what it is handed in order: a CUDA card or its simulator.
    Gpu(Gpu),
}

/// Bytes that a block of the fill and copy kernels owns.
const FILLED: usize = 16 << 10;

/// Numbers on their way to the host.
#[derive(Debug)]
#[must_use]
pub struct Pending(Option<Download>);

/// Sets every word of `t` on a device.
pub(crate) fn fill(gpu: &Gpu, t: &mut Tensor, word: u32) -> Result<()> {
    let bytes = t.size_bytes();
    let args = Args::new().address(t.device_mut()?).word(word).long(bytes);
    gpu.launch(kernel("cast", "cast_fill"), Grid::row(bytes.div_ceil(FILLED), 256), &args)
}

impl Stream {
    /// A stream on the host with `threads` threads; 0 takes every core.
    pub fn cpu(threads: usize) -> Result<Stream> {
        Ok(Stream::Cpu(Pool::new(threads)?))
    }

    /// A stream on `kind`, with `threads` host threads; 0 takes every core.
    pub fn open(kind: Kind, threads: usize) -> Result<Stream> {
        match kind {
            Kind::Cpu => Stream::cpu(threads),
            Kind::Cuda => Stream::cuda(threads),
            Kind::Sim => Stream::sim(threads),
        }
    }

    /// A stream on the first CUDA card, with `threads` host threads for what runs here.
    pub fn cuda(threads: usize) -> Result<Stream> {
        Ok(Stream::Gpu(Gpu::cuda(0, threads)?))
    }

    /// A stream on the simulator of a card.
    pub fn sim(threads: usize) -> Result<Stream> {
        Ok(Stream::Gpu(Gpu::sim(1, false, threads)?))
    }

    /// The host's threads: for work on what lies here, as weights that are drawn or read.
    pub fn host(&self) -> &Pool {
        match self {
            Stream::Cpu(pool) => pool,
            Stream::Gpu(gpu) => gpu.host(),
        }
    }

    /// Runs `f` on one of the stream's own threads, so that the ops inside need not wake one each time.
    pub fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match self {
            Stream::Cpu(pool) => pool.enter(f),
            Stream::Gpu(gpu) => gpu.host().enter(f),
        }
    }

    /// Runs `f`, a part of a step that comes again and again. On a device its launches go over together, as a graph from the
    /// third time on; see [`Gpu::graph`]. `size` tells apart forms of one part, as the rows of a micro-batch.
    pub fn graph<R, E: From<DeviceError>>(
        &self,
        name: &'static str,
        size: usize,
        f: impl FnOnce() -> std::result::Result<R, E>,
    ) -> std::result::Result<R, E> {
        match self {
            Stream::Cpu(_) => f(),
            Stream::Gpu(gpu) => gpu.graph(Section { name, size }, f),
        }
    }

    /// Copies `from` into the head of `to`, whose dtype is u32.
    pub fn upload_u32(&self, from: &[u32], to: &mut Tensor) -> Result<()> {
        to.u32_mut()[..from.len()].copy_from_slice(from);
        self.push(to)
    }

    /// Copies `from` into the head of `to`, whose dtype is f32.
    pub fn upload_f32(&self, from: &[f32], to: &mut Tensor) -> Result<()> {
        to.f32_mut()[..from.len()].copy_from_slice(from);
        self.push(to)
    }

    /// On a device, brings `t` over now rather than in the midst of the launches that read it.
    fn push(&self, t: &Tensor) -> Result<()> {
        match self {
            Stream::Cpu(_) => Ok(()),
            Stream::Gpu(_) => t.device().map(drop),
        }
    }

    /// Copies the head of `from`, f32, into `to`; waits for the work that makes it.
    pub fn download_f32(&self, from: &Tensor, to: &mut [f32]) -> Result<()> {
        self.synchronise()?;
        to.copy_from_slice(&from.f32()[..to.len()]);
        Ok(())
    }

    /// Begins to copy the head of `from`, f32, into `to`, as the work handed over so far leaves it. What is handed over
    /// before [`Stream::finish_download`] does not change it.
    pub fn start_download_f32(&self, from: &Tensor, to: &mut [f32]) -> Result<Pending> {
        if let Stream::Gpu(gpu) = self
            && let Some(download) = gpu.start_read(from.device()?, 4 * to.len())?
        {
            return Ok(Pending(Some(download)));
        }
        self.download_f32(from, to)?;
        Ok(Pending(None))
    }

    /// Waits for the bytes of `pending` alone and leaves them in `to`, the slice that they were asked for.
    pub fn finish_download(&self, pending: Pending, to: &mut [f32]) -> Result<()> {
        match (self, pending.0) {
            (Stream::Gpu(gpu), Some(download)) => gpu.finish_read(download, bytemuck::cast_slice_mut(to)),
            _ => Ok(()),
        }
    }

    /// Sets every byte of `t` to zero.
    pub fn zero(&self, t: &mut Tensor) -> Result<()> {
        match self {
            Stream::Cpu(pool) => pool.chunks(t.bytes_mut(), 1 << 20, |_, piece, _| piece.fill(0)),
            Stream::Gpu(gpu) => fill(gpu, t, 0)?,
        }
        Ok(())
    }

    /// Copies the first `len` elements of `from` over those of `to`; both have one dtype.
    pub fn copy(&self, from: &Tensor, to: &mut Tensor, len: usize) -> Result<()> {
        assert_eq!(from.dtype(), to.dtype(), "copy: dtypes");
        let bytes = len * from.dtype().bytes();
        match self {
            Stream::Cpu(pool) => {
                let from = &from.bytes()[..bytes];
                pool.chunks(&mut to.bytes_mut()[..bytes], 1 << 20, |i, piece, _| {
                    piece.copy_from_slice(&from[i << 20..][..piece.len()]);
                });
            }
            Stream::Gpu(gpu) => {
                let args = Args::new().address(from.device()?).address(to.device_mut()?).long(bytes);
                gpu.launch(kernel("cast", "cast_copy"), Grid::row(bytes.div_ceil(FILLED), 256), &args)?;
            }
        }
        Ok(())
    }

    /// Copies `len` elements, each side from an element of its own on; both tensors have one dtype.
    pub fn copy_part(&self, from: (&Tensor, usize), to: (&mut Tensor, usize), len: usize) -> Result<()> {
        assert_eq!(from.0.dtype(), to.0.dtype(), "copy_part: dtypes");
        assert!(from.1 + len <= from.0.len() && to.1 + len <= to.0.len(), "copy_part: {len} elements");
        let size = from.0.dtype().bytes();
        let (at, to_at, bytes) = (from.1 * size, to.1 * size, len * size);
        match self {
            Stream::Gpu(gpu) if at.is_multiple_of(16) && to_at.is_multiple_of(16) => {
                let (from, to) = (from.0.device()? + at as u64, to.0.device_mut()? + to_at as u64);
                let args = Args::new().address(from).address(to).long(bytes);
                gpu.launch(kernel("cast", "cast_copy"), Grid::row(bytes.div_ceil(FILLED), 256), &args)?;
            }
            // Rows that do not lie on 16 bytes go by way of the mirror.
            _ => to.0.bytes_mut()[to_at..][..bytes].copy_from_slice(&from.0.bytes()[at..][..bytes]),
        }
        Ok(())
    }

    /// Waits until everything handed to the stream is done.
    pub fn synchronise(&self) -> Result<()> {
        match self {
            Stream::Cpu(_) => Ok(()),
            Stream::Gpu(gpu) => gpu.synchronise(),
        }
    }

    /// Bytes the stream itself holds for its ops: packing buffers and the like. Part of every memory plan.
    pub fn own_bytes(&self) -> usize {
        match self {
            Stream::Cpu(pool) => pool.own_bytes(),
            Stream::Gpu(gpu) => gpu.host().own_bytes() + PINNED_BYTES + OWN_BYTES,
        }
    }

    /// Memory of the device that is free, where it has its own.
    pub fn free_bytes(&self) -> Result<Option<usize>> {
        match self {
            Stream::Cpu(_) => Ok(None),
            Stream::Gpu(gpu) => gpu.memory().map(|(free, _)| Some(free)),
        }
    }

    /// Threads on the host.
    pub fn threads(&self) -> usize {
        match self {
            Stream::Cpu(pool) => pool.lanes(),
            Stream::Gpu(gpu) => gpu.host().lanes(),
        }
    }
}
