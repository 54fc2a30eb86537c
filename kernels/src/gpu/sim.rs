//! The simulator as a device: the PTX of the same kernels, run on the host by `esker-ptx-sim`.
//!
//! A launch has ended when the call returns, so there is nothing to wait for. A fault (an access out of bounds, memory
//! that nobody wrote, a deadlock) is an error that names the instruction. Copies have ended too; whether the host's waits
//! would have made it so on a card is what `order` checks. A graph is a list of launches of its own: what a node was not
//! given, it does not have.

mod order;

use super::{Fence, Grid, Kernel, Lane, Pinned, graph, images};
use crate::{DeviceError, Result};
use esker_ptx_sim::{Checks, Launch, Memory, Module, Options, launch};
use order::{Order, Place};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

/// Memory of a simulated device, and how its kernels run.
#[derive(Debug)]
pub struct Sim {
    state: Mutex<State>,
    options: Options,
    /// A module that is run in place of the one of its name.
    instead: Option<(&'static str, Arc<Module>)>,
    /// Bytes of the card that it stands for.
    bytes: usize,
}

/// Launches that run one after the other.
#[derive(Debug)]
pub struct Exec(Vec<graph::Launch>);

#[derive(Debug, Default)]
struct State {
    memory: Memory,
    order: Order,
    /// What the host's side of slots lies in; never moved, never given back before the device.
    pinned: Vec<Box<[u8]>>,
    instructions: u64,
    /// Launches so far: each is run under a seed of its own.
    launches: u64,
}

/// Parsed modules: one copy for all simulators of a process, since a text takes longer to parse than a test to run.
static MODULES: Mutex<Option<HashMap<&'static str, Arc<Module>>>> = Mutex::new(None);

impl Sim {
    /// An empty device.
    pub fn new(seed: u64, races: bool) -> Sim {
        let checks = if races { Checks::Races } else { Checks::Basic };
        let options = Options { seed, checks, ..Options::default() };
        Sim { state: Mutex::default(), options, instead: None, bytes: usize::MAX }
    }

    /// A device of so many bytes.
    pub fn of(bytes: usize) -> Sim {
        Sim { bytes, ..Sim::new(1, false) }
    }

    /// The same with other code for the module `name`: how planted bugs are run.
    pub fn with(seed: u64, races: bool, name: &'static str, ptx: &str) -> Result<Sim> {
        let instead = Some((name, parse(name, ptx)?));
        Ok(Sim { instead, ..Sim::new(seed, races) })
    }

    /// What it is called.
    pub fn name(&self) -> String {
        "PTX simulator".into()
    }

    /// Bytes free and in all; without a limit, as much as the host gives.
    pub fn memory(&self) -> Result<(usize, usize)> {
        Ok((self.bytes - self.state().memory.used(), self.bytes))
    }

    /// Instructions of warps run so far.
    pub fn instructions(&self) -> u64 {
        self.state().instructions
    }

    /// One allocation, unwritten.
    pub fn alloc(&self, bytes: usize) -> Result<u64> {
        let (free_bytes, all_bytes) = self.memory()?;
        if bytes > free_bytes {
            return Err(DeviceError::OutOfDeviceMemory { wanted_bytes: bytes, free_bytes, all_bytes });
        }
        Ok(self.state().memory.alloc(bytes))
    }

    /// Gives an allocation back.
    pub fn free(&self, address: u64) {
        self.state().memory.free(address).expect("sim: an allocation of this device");
    }

    /// Zeroes bytes.
    pub fn zero(&self, to: u64, bytes: usize) -> Result<()> {
        self.state().memory.slice_mut(to, bytes).map_err(outside)?.fill(0);
        Ok(())
    }

    /// Memory of the host.
    pub(super) fn pinned(&self, len: usize) -> Result<Pinned> {
        let mut memory = vec![0; len].into_boxed_slice();
        let at = memory.as_mut_ptr();
        self.state().pinned.push(memory);
        Ok(Pinned { at, len })
    }

    /// The host writes there.
    pub(super) fn fill_pinned(&self, to: Pinned, from: &[u8]) -> Result<()> {
        let mut state = self.state();
        state.order.host(here(to), true).map_err(disorder)?;
        // SAFETY: the device is alive, its state is locked, and every access goes through it.
        unsafe { to.fill(from) };
        Ok(())
    }

    /// The host reads there.
    pub(super) fn take_pinned(&self, from: Pinned, to: &mut [u8]) -> Result<()> {
        let mut state = self.state();
        state.order.host(here(from), false).map_err(disorder)?;
        // SAFETY: as above.
        unsafe { from.take(to) };
        Ok(())
    }

    /// From there to the device.
    pub(super) fn copy_in(&self, to: u64, from: Pinned, bytes: usize) -> Result<()> {
        let mut state = self.state();
        state.order.copy(Lane::In, Some(here(from)), Some(Place::Device(to))).map_err(disorder)?;
        // SAFETY: as above.
        unsafe { from.take(state.memory.slice_mut(to, bytes).map_err(outside)?) };
        Ok(())
    }

    /// From the device to there.
    pub(super) fn copy_out(&self, to: Pinned, from: u64, bytes: usize) -> Result<()> {
        let mut state = self.state();
        state.order.copy(Lane::Out, Some(Place::Device(from)), Some(here(to))).map_err(disorder)?;
        // SAFETY: as above.
        unsafe { to.fill(state.memory.slice(from, bytes).map_err(outside)?) };
        Ok(())
    }

    /// Inside the device.
    pub(super) fn hop(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        let mut state = self.state();
        // One of the two is a slot; the other end is memory that the kernels' lane alone touches.
        let (read, written) = (Some(Place::Device(from)), Some(Place::Device(to)));
        state.order.copy(Lane::Compute, read, written).map_err(disorder)?;
        state.memory.copy(to, from, bytes).map_err(outside)
    }

    /// A place in a queue.
    pub(super) fn fence(&self) -> Result<Fence> {
        Ok(Fence(self.state().order.fence()))
    }

    /// Behind what the lane was handed so far.
    pub(super) fn record(&self, lane: Lane, fence: Fence) -> Result<()> {
        self.state().order.record(lane, fence.0);
        Ok(())
    }

    /// Before what the lane will be handed.
    pub(super) fn wait(&self, lane: Lane, fence: Fence) -> Result<()> {
        self.state().order.wait(lane, fence.0);
        Ok(())
    }

    /// The host waits.
    pub(super) fn finish(&self, fence: Fence) -> Result<()> {
        self.state().order.finish(fence.0);
        Ok(())
    }

    /// A graph of these launches.
    pub(super) fn build(&self, launches: &[graph::Launch]) -> Exec {
        Exec(launches.to_vec())
    }

    /// Gives a node the grid and the arguments of `launch`.
    pub(super) fn change(&self, exec: &mut Exec, node: usize, launch: &graph::Launch) {
        exec.0[node] = *launch;
    }

    /// Runs it.
    pub(super) fn launch_graph(&self, exec: &Exec) -> Result<()> {
        exec.0.iter().try_for_each(|l| self.launch(l.kernel, l.grid, l.args.bytes()))
    }

    /// All work is done when its call returns.
    pub fn synchronise(&self) -> Result<()> {
        Ok(())
    }

    /// Runs a kernel.
    pub fn launch(&self, kernel: Kernel, grid: Grid, args: &[u8]) -> Result<()> {
        let module = match &self.instead {
            Some((name, module)) if *name == kernel.module => module.clone(),
            _ => module(kernel.module)?,
        };
        let code = module.kernel(kernel.name).unwrap_or_else(|| panic!("gpu: {kernel:?} is not in its module"));
        let mut state = self.state();
        let shape = Launch {
            grid: grid.blocks,
            block: [grid.threads, 1, 1],
            cluster: [1; 3],
            shared: grid.shared,
            params: args,
        };
        state.launches += 1;
        let options = Options { seed: self.options.seed.wrapping_add(state.launches << 32), ..self.options.clone() };
        let report = launch(code, &mut state.memory, shape, &options)
            .map_err(|fault| DeviceError::Simulator { fault: fault.to_string() })?;
        state.instructions += report.instructions;
        Ok(())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic in another test's launch leaves memory as it was.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn module(name: &'static str) -> Result<Arc<Module>> {
    let mut modules = MODULES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(module) = modules.get_or_insert_default().get(name) {
        return Ok(module.clone());
    }
    let text = images::module(name).ptx().map_err(|why| DeviceError::Kernel { why })?;
    let module = parse(name, &text)?;
    modules.get_or_insert_default().insert(name, module.clone());
    Ok(module)
}

fn parse(name: &str, text: &str) -> Result<Arc<Module>> {
    let module = Module::parse_named(name, text).map_err(|e| DeviceError::Kernel { why: e.to_string() })?;
    Ok(Arc::new(module))
}

fn here(pinned: Pinned) -> Place {
    Place::Host(pinned.at as usize)
}

fn disorder(fault: String) -> DeviceError {
    DeviceError::Simulator { fault }
}

fn outside(e: esker_ptx_sim::OutOfRange) -> DeviceError {
    DeviceError::Simulator { fault: e.to_string() }
}
