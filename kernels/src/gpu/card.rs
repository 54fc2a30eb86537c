//! A CUDA card, through the driver alone: `libcuda` is opened when first asked for, nothing links against it.
//!
//! Calls are those of the driver's C interface, as cudarc binds them; its own streams, slices and event tracking are not
//! used. A context is made current on every call, since the threads of a pool come and go.
//!
//! There is a stream for kernels, one for copies in and one for copies out; they wait for each other where `copies` says
//! so, by events of ours, and never otherwise.

mod graph;

pub(super) use graph::Exec;

use super::{Fence, Grid, Kernel, Lane, Pinned, images};
use crate::{DeviceError, Result};
use cudarc::driver::{result, sys};
use std::{
    collections::HashMap,
    ffi::{CString, c_void},
    ptr,
    sync::Mutex,
};

/// An open card.
#[derive(Debug)]
pub struct Card {
    context: sys::CUcontext,
    /// By lane.
    streams: [sys::CUstream; 3],
    fences: Mutex<Vec<Made<sys::CUevent>>>,
    pinned: Mutex<Vec<Made<*mut c_void>>>,
    device: sys::CUdevice,
    name: String,
    capability: (u32, u32),
    functions: Mutex<HashMap<&'static str, Made<sys::CUfunction>>>,
    modules: Mutex<HashMap<&'static str, Made<sys::CUmodule>>>,
}

/// A handle of the driver's that the card keeps.
#[derive(Clone, Copy, Debug)]
struct Made<T>(T);

// SAFETY: the driver's handles may be used from any thread whose current context is theirs, and every call sets it.
unsafe impl Send for Card {}
// SAFETY: as above; the driver locks its own state.
unsafe impl Sync for Card {}

/// A moment in the stream's order.
#[derive(Debug)]
pub struct Event(sys::CUevent);

// SAFETY: as for the card.
unsafe impl Send for Event {}
// SAFETY: as for the card.
unsafe impl Sync for Event {}

/// A call of the driver, with its name for the error.
macro_rules! call {
    ($name:ident($($arg:expr),* $(,)?)) => {
        // SAFETY: handles are alive as long as the card, and lengths are those of the memory named.
        check(stringify!($name), unsafe { sys::$name($($arg),*) })
    };
}

use call;

fn check(call: &'static str, code: sys::CUresult) -> Result<()> {
    code.result().map_err(|error| DeviceError::Driver { call, why: format!("{error:?}") })
}

/// Whether the machine has a driver.
pub fn driver_present() -> bool {
    // SAFETY: opening the driver's library is allowed at any time.
    unsafe { sys::is_culib_present() }
}

/// What `esker doctor` says of a card.
#[derive(Clone, Debug)]
pub struct Info {
    /// Marketing name.
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory_bytes: usize,
    /// Multiprocessors.
    pub processors: u32,
    /// Newest CUDA that the driver knows, as 13000 for 13.0.
    pub driver_cuda: u32,
}

/// The CUDA whose compiler made the images: an older driver loads none of them.
const IMAGES_CUDA: u32 = 13000;

/// Every card that the driver sees.
pub fn cards() -> Result<Vec<Info>> {
    start()?;
    let all = result::device::get_count().map_err(|e| driver("cuDeviceGetCount", e))?;
    let mut version = 0;
    call!(cuDriverGetVersion(&mut version))?;
    (0..all)
        .map(|ordinal| {
            let device = result::device::get(ordinal).map_err(|e| driver("cuDeviceGet", e))?;
            let of = |attribute| attribute_of(device, attribute);
            // SAFETY: a device that the driver just named.
            let memory_bytes =
                unsafe { result::device::total_mem(device) }.map_err(|e| driver("cuDeviceTotalMem", e))?;
            use sys::CUdevice_attribute_enum as A;
            Ok(Info {
                name: result::device::get_name(device).map_err(|e| driver("cuDeviceGetName", e))?,
                capability: (
                    of(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                    of(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
                ),
                memory_bytes,
                processors: of(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
                driver_cuda: version as u32,
            })
        })
        .collect()
}

fn attribute_of(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<u32> {
    let mut value = 0;
    call!(cuDeviceGetAttribute(&mut value, attribute, device))?;
    Ok(value as u32)
}

fn driver(call: &'static str, error: result::DriverError) -> DeviceError {
    DeviceError::Driver { call, why: format!("{error:?}") }
}

fn start() -> Result<()> {
    if !driver_present() {
        return Err(DeviceError::NoDriver);
    }
    call!(cuInit(0))
}

impl Card {
    /// Opens card `ordinal`.
    pub fn open(ordinal: usize) -> Result<Card> {
        let all = cards()?;
        let info = all.get(ordinal).ok_or(DeviceError::NoCard { ordinal, cards: all.len() })?;
        if info.driver_cuda < IMAGES_CUDA {
            return Err(DeviceError::OldDriver { has: info.driver_cuda, wants: IMAGES_CUDA });
        }
        if info.capability < (8, 0) {
            return Err(DeviceError::OldCard { name: info.name.clone(), capability: info.capability });
        }
        let mut device = 0;
        call!(cuDeviceGet(&mut device, ordinal as i32))?;
        let (mut context, mut streams) = (ptr::null_mut(), [ptr::null_mut(); 3]);
        call!(cuDevicePrimaryCtxRetain(&mut context, device))?;
        call!(cuCtxSetCurrent(context))?;
        for stream in &mut streams {
            call!(cuStreamCreate(stream, sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32))?;
        }
        Ok(Card {
            context,
            streams,
            fences: Mutex::default(),
            pinned: Mutex::default(),
            device,
            name: info.name.clone(),
            capability: info.capability,
            functions: Mutex::default(),
            modules: Mutex::default(),
        })
    }

    /// Marketing name.
    pub fn name(&self) -> String {
        self.name.clone()
    }

    fn stream(&self, lane: Lane) -> sys::CUstream {
        self.streams[lane as usize]
    }

    fn current(&self) -> Result<()> {
        call!(cuCtxSetCurrent(self.context))
    }

    /// Bytes free and in all.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.current()?;
        let (mut free, mut all) = (0, 0);
        call!(cuMemGetInfo_v2(&mut free, &mut all))?;
        Ok((free, all))
    }

    /// One allocation.
    pub fn alloc(&self, bytes: usize) -> Result<u64> {
        self.current()?;
        let mut address = 0;
        // SAFETY: `address` is where the driver writes.
        match unsafe { sys::cuMemAlloc_v2(&mut address, bytes) } {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free_bytes, all_bytes) = self.memory()?;
                Err(DeviceError::OutOfDeviceMemory { wanted_bytes: bytes, free_bytes, all_bytes })
            }
            code => check("cuMemAlloc", code).map(|()| address),
        }
    }

    /// Gives an allocation back.
    pub fn free(&self, address: u64) {
        // On the way down there is nobody to tell.
        let _ = self.current().and_then(|()| call!(cuMemFree_v2(address)));
    }

    /// Zeroes bytes.
    pub fn zero(&self, to: u64, bytes: usize) -> Result<()> {
        self.current()?;
        call!(cuMemsetD8Async(to, 0, bytes, self.stream(Lane::Compute)))
    }

    /// Pinned memory of the host, readable at its usual speed; it lives as long as the card.
    pub(super) fn pinned(&self, len: usize) -> Result<Pinned> {
        self.current()?;
        let mut at = ptr::null_mut();
        call!(cuMemHostAlloc(&mut at, len, 0))?;
        self.pinned.lock().expect("no panic inside").push(Made(at));
        Ok(Pinned { at: at.cast(), len })
    }

    /// The host writes pinned memory.
    pub(super) fn fill_pinned(&self, to: Pinned, from: &[u8]) -> Result<()> {
        // SAFETY: the card is alive; `Copies` has waited for what was under way.
        unsafe { to.fill(from) };
        Ok(())
    }

    /// The host reads pinned memory.
    pub(super) fn take_pinned(&self, from: Pinned, to: &mut [u8]) -> Result<()> {
        // SAFETY: as above.
        unsafe { from.take(to) };
        Ok(())
    }

    /// From pinned memory to the card, beside the kernels.
    pub(super) fn copy_in(&self, to: u64, from: Pinned, bytes: usize) -> Result<()> {
        self.current()?;
        call!(cuMemcpyHtoDAsync_v2(to, from.at.cast(), bytes, self.stream(Lane::In)))
    }

    /// From the card to pinned memory, beside the kernels.
    pub(super) fn copy_out(&self, to: Pinned, from: u64, bytes: usize) -> Result<()> {
        self.current()?;
        call!(cuMemcpyDtoHAsync_v2(to.at.cast(), from, bytes, self.stream(Lane::Out)))
    }

    /// Inside the card, between the kernels.
    pub(super) fn hop(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.current()?;
        call!(cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream(Lane::Compute)))
    }

    /// A place in a queue; it counts as passed until it is recorded.
    pub(super) fn fence(&self) -> Result<Fence> {
        self.current()?;
        let mut event = ptr::null_mut();
        call!(cuEventCreate(&mut event, sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32))?;
        let mut fences = self.fences.lock().expect("no panic inside");
        fences.push(Made(event));
        Ok(Fence(fences.len() - 1))
    }

    fn event_of(&self, fence: Fence) -> sys::CUevent {
        self.fences.lock().expect("no panic inside")[fence.0].0
    }

    /// Behind what the lane was handed so far.
    pub(super) fn record(&self, lane: Lane, fence: Fence) -> Result<()> {
        self.current()?;
        call!(cuEventRecord(self.event_of(fence), self.stream(lane)))
    }

    /// Before what the lane will be handed.
    pub(super) fn wait(&self, lane: Lane, fence: Fence) -> Result<()> {
        self.current()?;
        call!(cuStreamWaitEvent(self.stream(lane), self.event_of(fence), 0))
    }

    /// The host waits.
    pub(super) fn finish(&self, fence: Fence) -> Result<()> {
        self.current()?;
        call!(cuEventSynchronize(self.event_of(fence)))
    }

    /// Waits for the kernels, and so for whatever they waited for.
    pub fn synchronise(&self) -> Result<()> {
        self.current()?;
        call!(cuStreamSynchronize(self.stream(Lane::Compute)))
    }

    /// Runs a kernel.
    pub fn launch(&self, kernel: Kernel, grid: Grid, args: &[u8]) -> Result<()> {
        self.current()?;
        let function = self.function(kernel)?;
        let mut len = args.len();
        let mut extra = [
            sys::CU_LAUNCH_PARAM_BUFFER_POINTER_AS_INT as usize as *mut c_void,
            args.as_ptr().cast_mut().cast(),
            sys::CU_LAUNCH_PARAM_BUFFER_SIZE_AS_INT as usize as *mut c_void,
            (&raw mut len).cast(),
            ptr::null_mut(),
        ];
        let [x, y, z] = grid.blocks;
        call!(cuLaunchKernel(
            function,
            x,
            y,
            z,
            grid.threads,
            1,
            1,
            grid.shared,
            self.stream(Lane::Compute),
            ptr::null_mut(),
            extra.as_mut_ptr()
        ))
    }

    /// The kernel, loaded when first asked for; one that spills on this card is refused.
    fn function(&self, kernel: Kernel) -> Result<sys::CUfunction> {
        if let Some(f) = self.functions.lock().expect("no panic inside").get(kernel.name) {
            return Ok(f.0);
        }
        let module = {
            let mut modules = self.modules.lock().expect("no panic inside");
            match modules.get(kernel.module) {
                Some(m) => m.0,
                None => {
                    let m = self.load(kernel.module)?;
                    modules.insert(kernel.module, Made(m));
                    m
                }
            }
        };
        let name = CString::new(kernel.name).expect("a kernel's name");
        let mut function = ptr::null_mut();
        call!(cuModuleGetFunction(&mut function, module, name.as_ptr()))?;
        use sys::CUfunction_attribute_enum as A;
        let mut shared = 0;
        call!(cuFuncGetAttribute(&mut shared, A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function))?;
        let most = attribute_of(
            self.device,
            sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )? as i32;
        call!(cuFuncSetAttribute(function, A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most - shared))?;
        self.functions.lock().expect("no panic inside").insert(kernel.name, Made(function));
        Ok(function)
    }

    fn load(&self, name: &str) -> Result<sys::CUmodule> {
        let (major, minor) = self.capability;
        let image = images::module(name).for_card(major, minor).map_err(|why| DeviceError::Kernel { why })?;
        let mut module = ptr::null_mut();
        call!(cuModuleLoadData(&mut module, image.as_ptr().cast()))?;
        Ok(module)
    }

    /// Marks this moment.
    pub fn event(&self) -> Result<Event> {
        self.current()?;
        let mut event = ptr::null_mut();
        call!(cuEventCreate(&mut event, sys::CUevent_flags_enum::CU_EVENT_DEFAULT as u32))?;
        call!(cuEventRecord(event, self.stream(Lane::Compute)))?;
        Ok(Event(event))
    }

    /// Time between two moments; waits for the second.
    pub fn elapsed_ms(&self, from: &Event, to: &Event) -> Result<f64> {
        self.current()?;
        let mut ms = 0.0;
        call!(cuEventSynchronize(to.0))?;
        call!(cuEventElapsedTime(&mut ms, from.0, to.0))?;
        Ok(f64::from(ms))
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // On the way down there is nobody to tell.
        let _ = self.current();
        for stream in self.streams {
            let _ = call!(cuStreamDestroy_v2(stream));
        }
        for Made(event) in self.fences.get_mut().expect("no panic inside").drain(..) {
            let _ = call!(cuEventDestroy_v2(event));
        }
        for Made(at) in self.pinned.get_mut().expect("no panic inside").drain(..) {
            let _ = call!(cuMemFreeHost(at));
        }
        let _ = call!(cuDevicePrimaryCtxRelease_v2(self.device));
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = call!(cuEventDestroy_v2(self.0));
    }
}
