//! A part of a run whose launches go to the device together, as a graph once they have been seen twice.
//!
//! ```text
//! graph("update", ..)      opens a section; launches are noted, none is made
//!   launch launch ..       runs: what was noted since the last cut is one piece of the section
//!   read, write, wait      a cut: the piece is handed to the device first, so the order of calls stays the order of work
//! closing                  a cut
//! ```
//!
//! A piece is known by its section and its place there. The first time its launches are made one by one: that loads
//! modules. When it comes back with the same kernels in the same order, it becomes a graph of one chain. From then on a
//! piece costs a comparison for each launch, a call of the driver for each whose arguments or grid changed, and one launch.
//!
//! So a graph is a cache of launches, not a recording of a step: the host's code runs each time, and what it asks for is
//! what happens. A learning rate, a clip, a scale or an address that changes from step to step reaches its node because
//! the arguments differ, and a piece with other kernels falls back to single launches. The graph is built node by node
//! rather than by capturing a stream: that gives each launch's node, without which arguments could not be changed.

use super::{Args, Device, Exec, Grid, Kernel};
use crate::Result;
use std::collections::HashMap;

/// A launch, as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Launch {
    pub kernel: Kernel,
    pub grid: Grid,
    pub args: Args,
}

/// Which part of a run: a name, and a size where one part comes in several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Section {
    /// As `update`.
    pub name: &'static str,
    /// As the rows of a micro-batch; 0 where there is nothing to tell apart.
    pub size: usize,
}

/// What graphs have done so far, for tests and reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Launches made one by one inside a section.
    pub single: u64,
    /// Graphs built.
    pub built: u64,
    /// Graphs launched.
    pub graphs: u64,
    /// Kernels that these launches ran.
    pub kernels: u64,
    /// Nodes that were given other arguments.
    pub changed: u64,
}

/// Notes the launches of an open section, and keeps what became of earlier ones.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    open: Option<Open>,
    noted: Vec<Launch>,
    kept: HashMap<(Section, usize), Kept>,
    pub counts: Counts,
    /// No section opens.
    pub off: bool,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    section: Section,
    /// Cuts so far.
    piece: usize,
}

#[derive(Debug)]
enum Kept {
    /// Kernels that came once.
    Seen(Vec<Kernel>),
    /// What the nodes hold.
    Graph(Vec<Launch>, Exec),
}

impl Recorder {
    /// Opens a section; false if none opens, or if one is open already, whose part this then is.
    pub fn open(&mut self, section: Section) -> bool {
        let outermost = self.open.is_none() && !self.off;
        if outermost {
            self.open = Some(Open { section, piece: 0 });
        }
        outermost
    }

    /// Ends the section, after a cut.
    pub fn close(&mut self) {
        self.open = None;
    }

    /// Notes a launch if a section is open.
    pub fn note(&mut self, launch: Launch) -> bool {
        if self.open.is_some() {
            self.noted.push(launch);
        }
        self.open.is_some()
    }

    /// A cut: hands the device what was noted.
    pub fn cut(&mut self, device: &Device) -> Result<()> {
        let Some(open) = self.open.as_mut().filter(|_| !self.noted.is_empty()) else { return Ok(()) };
        let key = (open.section, open.piece);
        open.piece += 1;
        let done = self.submit(device, key);
        self.noted.clear();
        done
    }

    fn submit(&mut self, device: &Device, key: (Section, usize)) -> Result<()> {
        let (noted, counts) = (&self.noted, &mut self.counts);
        let kernels = noted.iter().map(|l| l.kernel);
        match self.kept.get_mut(&key) {
            Some(Kept::Graph(nodes, exec)) if kernels.clone().eq(nodes.iter().map(|l| l.kernel)) => {
                for (i, (node, launch)) in nodes.iter_mut().zip(noted).enumerate() {
                    if node != launch {
                        device.change(exec, i, launch)?;
                        *node = *launch;
                        counts.changed += 1;
                    }
                }
                device.launch_graph(exec)?;
            }
            Some(Kept::Seen(seen)) if kernels.clone().eq(seen.iter().copied()) => {
                let exec = device.build(noted)?;
                device.launch_graph(&exec)?;
                counts.built += 1;
                self.kept.insert(key, Kept::Graph(noted.clone(), exec));
            }
            other => {
                // A graph that goes may still be running.
                if matches!(other, Some(Kept::Graph(..))) {
                    device.synchronise()?;
                }
                self.kept.insert(key, Kept::Seen(kernels.collect()));
                counts.single += noted.len() as u64;
                return noted.iter().try_for_each(|l| device.launch(l.kernel, l.grid, &l.args));
            }
        }
        counts.graphs += 1;
        counts.kernels += noted.len() as u64;
        Ok(())
    }
}
