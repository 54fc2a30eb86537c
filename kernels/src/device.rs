//! Where ops run: one enum, matched once at each door.
//!
//! A [`Stream`] is a device's queue and its verbs. On the CPU a call returns when its work is done, so there is nothing
//! to wait for; the verbs exist so that callers are written once for every device.

use crate::{Result, pool::Pool, tensor::Tensor};

/// A device's queue of work.
#[derive(Debug)]
pub enum Stream {
    /// The host: ops run on the threads of this pool, and return when done.
    Cpu(Pool),
}

impl Stream {
    /// A stream on the host with `threads` threads; 0 takes every core.
    pub fn cpu(threads: usize) -> Result<Stream> {
        Ok(Stream::Cpu(Pool::new(threads)?))
    }

    /// Runs `f` on one of the stream's own threads, so that the ops inside need not wake one each time.
    pub fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match self {
            Stream::Cpu(pool) => pool.enter(f),
        }
    }

    /// Copies `from` into the head of `to`, whose dtype is u32.
    pub fn upload_u32(&self, from: &[u32], to: &mut Tensor) -> Result<()> {
        match self {
            Stream::Cpu(_) => to.u32_mut()[..from.len()].copy_from_slice(from),
        }
        Ok(())
    }

    /// Copies `from` into the head of `to`, whose dtype is f32.
    pub fn upload_f32(&self, from: &[f32], to: &mut Tensor) -> Result<()> {
        match self {
            Stream::Cpu(_) => to.f32_mut()[..from.len()].copy_from_slice(from),
        }
        Ok(())
    }

    /// Copies the head of `from`, f32, into `to`; waits for the work that makes it.
    pub fn download_f32(&self, from: &Tensor, to: &mut [f32]) -> Result<()> {
        match self {
            Stream::Cpu(_) => to.copy_from_slice(&from.f32()[..to.len()]),
        }
        Ok(())
    }

    /// Sets every byte of `t` to zero.
    pub fn zero(&self, t: &mut Tensor) -> Result<()> {
        match self {
            Stream::Cpu(pool) => pool.chunks(t.bytes_mut(), 1 << 20, |_, piece, _| piece.fill(0)),
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
        }
        Ok(())
    }

    /// Waits until everything handed to the stream is done.
    pub fn synchronise(&self) -> Result<()> {
        match self {
            Stream::Cpu(_) => Ok(()),
        }
    }

    /// Bytes the stream itself holds for its ops: packing buffers and the like. Part of every memory plan.
    pub fn own_bytes(&self) -> usize {
        match self {
            Stream::Cpu(pool) => pool.own_bytes(),
        }
    }

    /// Threads on the host, or 1 where the host only enqueues.
    pub fn threads(&self) -> usize {
        match self {
            Stream::Cpu(pool) => pool.lanes(),
        }
    }
}
