//! A chain of kernels that the driver launches at once. See [`super::super::graph`] for when.

use super::super::graph::Launch;
use super::{Card, Lane, call, check};
use crate::Result;
use cudarc::driver::sys;
use std::{ffi::c_void, ptr};

/// A chain, ready to launch.
#[derive(Debug)]
pub struct Exec {
    context: sys::CUcontext,
    graph: sys::CUgraph,
    exec: sys::CUgraphExec,
    nodes: Vec<sys::CUgraphNode>,
}

// SAFETY: the driver's handles may be used from any thread whose current context is theirs, and every call sets it.
unsafe impl Send for Exec {}

impl Card {
    /// A graph of these launches, each after the one before.
    pub(in crate::gpu) fn build(&self, launches: &[Launch]) -> Result<Exec> {
        self.current()?;
        let mut made = Exec { context: self.context, graph: ptr::null_mut(), exec: ptr::null_mut(), nodes: Vec::new() };
        call!(cuGraphCreate(&mut made.graph, 0))?;
        for launch in launches {
            let (mut node, before) = (ptr::null_mut(), made.nodes.last().copied());
            let (from, count) = before.as_ref().map_or((ptr::null(), 0), |node| (ptr::from_ref(node), 1));
            self.with_node(launch, |node_params| {
                call!(cuGraphAddKernelNode_v2(&mut node, made.graph, from, count, node_params))
            })?;
            made.nodes.push(node);
        }
        call!(cuGraphInstantiateWithFlags(&mut made.exec, made.graph, 0))?;
        Ok(made)
    }

    /// Other arguments for a node; a launch that is under way keeps its own.
    pub(in crate::gpu) fn change(&self, exec: &Exec, node: usize, launch: &Launch) -> Result<()> {
        self.current()?;
        self.with_node(launch, |node_params| {
            call!(cuGraphExecKernelNodeSetParams_v2(exec.exec, exec.nodes[node], node_params))
        })
    }

    /// Runs it after everything before.
    pub(in crate::gpu) fn launch_graph(&self, exec: &Exec) -> Result<()> {
        self.current()?;
        call!(cuGraphLaunch(exec.exec, self.stream(Lane::Compute)))
    }

    /// Hands `f` what the driver wants to know of a node; it copies the arguments.
    fn with_node(&self, launch: &Launch, f: impl FnOnce(&sys::CUDA_KERNEL_NODE_PARAMS) -> Result<()>) -> Result<()> {
        let Launch { kernel, grid, args } = launch;
        let mut len = args.bytes().len();
        let mut extra = [
            sys::CU_LAUNCH_PARAM_BUFFER_POINTER_AS_INT as usize as *mut c_void,
            args.bytes().as_ptr().cast_mut().cast(),
            sys::CU_LAUNCH_PARAM_BUFFER_SIZE_AS_INT as usize as *mut c_void,
            (&raw mut len).cast(),
            ptr::null_mut(),
        ];
        let [x, y, z] = grid.blocks;
        f(&sys::CUDA_KERNEL_NODE_PARAMS {
            func: self.function(*kernel)?,
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared,
            kernelParams: ptr::null_mut(),
            extra: extra.as_mut_ptr(),
            kern: ptr::null_mut(),
            ctx: ptr::null_mut(),
        })
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        // On the way down there is nobody to tell. A graph that was never finished has no executable.
        let _ = call!(cuCtxSetCurrent(self.context));
        if !self.exec.is_null() {
            let _ = call!(cuGraphExecDestroy(self.exec));
        }
        if !self.graph.is_null() {
            let _ = call!(cuGraphDestroy(self.graph));
        }
    }
}
