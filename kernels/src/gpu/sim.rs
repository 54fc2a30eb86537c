//! The simulator as a device: the PTX of the same kernels, run on the host by `esker-ptx-sim`.
//!
//! A launch has ended when the call returns, so there is nothing to wait for. A fault (an access out of bounds, memory
//! that nobody wrote, a deadlock) is an error that names the instruction.

use super::{Grid, Kernel, images};
use crate::{DeviceError, Result};
use esker_ptx_sim::{Checks, Launch, Memory, Module, Options, launch};
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
}

#[derive(Debug, Default)]
struct State {
    memory: Memory,
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
        Sim { state: Mutex::default(), options: Options { seed, checks, ..Options::default() }, instead: None }
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

    /// Bytes free and in all: as much as the host gives.
    pub fn memory(&self) -> Result<(usize, usize)> {
        let used = self.state().memory.used();
        Ok((usize::MAX - used, usize::MAX))
    }

    /// Instructions of warps run so far.
    pub fn instructions(&self) -> u64 {
        self.state().instructions
    }

    /// One allocation, unwritten.
    pub fn alloc(&self, bytes: usize) -> Result<u64> {
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

    /// Copies to the device.
    pub fn write(&self, to: u64, from: &[u8]) -> Result<()> {
        self.state().memory.write(to, from).map_err(outside)
    }

    /// Copies from the device.
    pub fn read(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.state().memory.read(from, to).map_err(outside)
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

fn outside(e: esker_ptx_sim::OutOfRange) -> DeviceError {
    DeviceError::Simulator { fault: e.to_string() }
}
