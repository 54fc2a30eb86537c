//! Runs a grid: clusters of blocks of warps, in an order drawn from a seed.
//!
//! One cluster runs at a time, its warps by turns of random length, until it ends. A cluster that runs very long is
//! taken to wait for another one (a grid-wide barrier, a counter of turns), so that the next is started beside it.
//! Nothing here depends on addresses of the host or on time: a seed always gives the same run.

mod access;
mod address;
mod alu;
mod atomic;
mod barrier;
mod bulk;
mod collective;
mod compare;
mod convert;
mod copy;
mod delivery;
mod float;
mod integer;
mod matrix;
mod mbarrier;
mod memory;
mod plan;
mod start;
mod step;
mod traffic;
mod warp;
mod watch;
mod wgmma;

use std::collections::HashMap;

use crate::fault::{Fault, FaultKind, Stop};
use crate::ir::{Kernel, Op};
use crate::memory::Memory;
use crate::race::{GlobalShadow, Races};
use crate::report::{LineReport, Report};
use crate::window;
use barrier::Barrier;
use bulk::Job;
use mbarrier::MbarState;
use plan::Plan;
use start::fill_rows;
use warp::{LANES, Warp};

/// The shape of a launch, as the host gives it to the driver.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Blocks of the grid.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster; `[1, 1, 1]` where the kernel says nothing or says it itself.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// The parameters' bytes, laid out as [`Kernel::params`] says.
    pub params: &'a [u8],
}

/// How to run a launch.
#[derive(Clone, Debug)]
pub struct Options {
    /// Draws the order of warps and blocks, and how late copies arrive.
    pub seed: u64,
    /// What is looked for beyond what always is.
    pub checks: Checks,
    /// Whether bank conflicts and sectors are counted, by line.
    pub counters: bool,
    /// Instructions of warps after which the launch is given up.
    pub instructions_max: u64,
}

/// What is looked for. Bounds, alignment, unwritten memory, deadlocks and misuse always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checks {
    /// Nothing more: the fastest.
    Basic,
    /// Also races, by which accesses happen before which.
    Races,
}

impl Default for Options {
    fn default() -> Options {
        Options { seed: 0, checks: Checks::Races, counters: false, instructions_max: 1 << 34 }
    }
}

/// Runs `kernel` over a grid to its end.
pub fn launch(kernel: &Kernel, memory: &mut Memory, shape: Launch<'_>, options: &Options) -> Result<Report, Fault> {
    let plan = Plan::new(kernel, &shape).map_err(|why| Fault {
        kernel: kernel.name.clone(),
        file: kernel.file.clone(),
        line: kernel.line,
        text: kernel.text_of(kernel.line),
        block: [0; 3],
        warp: 0,
        lane: 0,
        kind: Box::new(FaultKind::Launch(why)),
    })?;
    let mut x = Context {
        kernel,
        memory,
        plan,
        params: shape.params,
        counters: options.counters,
        delays: delays(options.seed),
        products: 0,
        rng: Rng::new(options.seed),
        report: Report::default(),
        counts: vec![0; kernel.code.len()],
        lines: vec![LineReport::default(); if options.counters { kernel.code.len() } else { 0 }],
        pc: 0,
        races: None,
        shadow: GlobalShadow::new(watch::grains(kernel).1),
    };
    run_grid(&mut x, options)?;
    Ok(x.finish())
}

/// What all of a launch shares.
pub(crate) struct Context<'a> {
    pub kernel: &'a Kernel,
    pub memory: &'a mut Memory,
    pub plan: Plan,
    pub params: &'a [u8],
    pub counters: bool,
    pub rng: Rng,
    /// How late copies inwards, copies outwards and products of warpgroups may be.
    delays: [u32; 3],
    /// Multiply-adds of warpgroups.
    pub products: u64,
    pub report: Report,
    /// How often each instruction ran.
    counts: Vec<u64>,
    pub lines: Vec<LineReport>,
    /// The instruction that runs.
    pub pc: u32,
    /// The race check of the cluster that runs.
    pub races: Option<Box<Races>>,
    /// And of device memory.
    pub shadow: GlobalShadow,
}

/// Each kind of engine is prompt, quick, slow or as late as can be, on its own: drawn from the seed.
fn delays(seed: u64) -> [u32; 3] {
    let mut rng = Rng::new(seed ^ 0xD31A);
    let copies = [0, 40, 1500, 1 << 20];
    [copies[rng.below(4) as usize], copies[rng.below(4) as usize], [0, 2, 1 << 20][rng.below(3) as usize]]
}

impl Context<'_> {
    /// How late the next of that kind is, in instructions.
    pub fn delay(&mut self, kind: usize) -> u64 {
        u64::from(self.rng.below(self.delays[kind] + 1))
    }

    fn finish(mut self) -> Report {
        let r = &mut self.report;
        r.macs += self.products;
        for (inst, &n) in self.kernel.code.iter().zip(&self.counts) {
            r.instructions += n;
            match &inst.op {
                Op::Mma(m) => {
                    r.tensor += n;
                    r.macs += n * u64::from(m.k) * 128;
                }
                Op::Wgmma(_) => r.tensor += n,
                Op::Bulk(_)
                | Op::Ld(_)
                | Op::St(_)
                | Op::Atom(_)
                | Op::CpAsync(_)
                | Op::LdMatrix(_)
                | Op::StMatrix(_) => r.memory += n,
                Op::Bra { .. } | Op::Brx { .. } | Op::Exit | Op::Trap => r.control += n,
                Op::Warp { .. } | Op::Bar(_) | Op::Fence { .. } | Op::CpCommit | Op::CpWait { .. } | Op::Nanosleep => {
                    r.sync += n;
                }
                _ => r.alu += n,
            }
        }
        for (i, line) in self.lines.iter().enumerate() {
            if line.sectors + line.sectors_best + line.conflicts > 0 {
                r.lines.push(LineReport { line: self.kernel.code[i].line, count: self.counts[i], ..line.clone() });
            }
        }
        self.report
    }
}

/// xorshift64*, from a seed spread by splitmix64.
pub(crate) struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Rng {
        let z = (seed ^ 0x9E37_79B9_7F4A_7C15).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        Rng((z ^ z >> 31) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u32) -> u32 {
        (((self.next() >> 32) * u64::from(n)) >> 32) as u32
    }
}

/// A block while it runs.
pub(crate) struct Cta {
    pub id: [u32; 3],
    pub shared: Vec<u8>,
    pub written: Vec<u64>,
    pub barriers: [Barrier; 16],
    /// Warps that have not ended.
    pub live_warps: u32,
    pub mbars: HashMap<u64, MbarState>,
}

/// A cluster while it runs.
pub(crate) struct Cluster {
    pub ctas: Vec<Cta>,
    pub warps: Vec<Warp>,
    /// Its race check while another cluster runs.
    races: Option<Box<Races>>,
    /// Copies on their way.
    jobs: Vec<Job>,
    /// Instructions its warps have run.
    tick: u64,
    /// How often its barrier has opened.
    cluster_phase: u64,
}

/// Turns of a cluster before the next one is started beside it.
const PATIENCE: u64 = 1 << 20;

fn run_grid(x: &mut Context<'_>, options: &Options) -> Result<(), Fault> {
    let p = x.plan;
    let clusters: [u32; 3] = std::array::from_fn(|i| p.grid[i] / p.cluster[i]);
    let total = clusters.iter().map(|&n| u64::from(n)).product::<u64>();
    // Blocks start in order on the seed 0, in reverse or from the middle on others: any order is allowed.
    let turn = |n: u64| match options.seed % 3 {
        0 => n,
        1 => total - 1 - n,
        _ => (n + total / 2) % total,
    };
    let (mut started, mut ran) = (0, 0);
    let mut running: Vec<Cluster> = Vec::new();
    let mut spare: Option<Cluster> = None;
    while started < total || !running.is_empty() {
        if started < total {
            let n = turn(started);
            let (cx, cy) = (u64::from(clusters[0]), u64::from(clusters[1]));
            let at = [(n % cx) as u32, (n / cx % cy) as u32, (n / cx / cy) as u32];
            let mut c = spare.take().unwrap_or_else(|| Cluster::new(x));
            c.start(x, at);
            c.watch(x, options.checks, started);
            running.push(c);
            started += 1;
        }
        let mut i = 0;
        while i < running.len() {
            std::mem::swap(&mut x.races, &mut running[i].races);
            let (n, done) = running[i].run(x, PATIENCE)?;
            std::mem::swap(&mut x.races, &mut running[i].races);
            ran += n;
            if done {
                spare = Some(running.swap_remove(i));
            } else {
                i += 1;
            }
            if ran > options.instructions_max {
                let c = running.last().or(spare.as_ref()).expect("one has just run");
                return Err(c.endless(x, ran));
            }
        }
    }
    Ok(())
}

impl Cluster {
    fn new(x: &Context<'_>) -> Cluster {
        let (p, k) = (&x.plan, x.kernel);
        let cta = || Cta {
            id: [0; 3],
            shared: vec![0xFF; p.shared as usize],
            written: vec![0; p.shared as usize / 64 + 1],
            barriers: Default::default(),
            live_warps: 0,
            mbars: HashMap::new(),
        };
        let warp = || Warp::new(k.rows, k.preds, k.local_bytes as usize);
        Cluster {
            ctas: (0..p.blocks).map(|_| cta()).collect(),
            warps: (0..p.blocks * p.warps).map(|_| warp()).collect(),
            races: None,
            jobs: Vec::new(),
            tick: 0,
            cluster_phase: 0,
        }
    }

    /// Starts its race check, if one is wanted; `number` tells it from other clusters.
    fn watch(&mut self, x: &Context<'_>, checks: Checks, number: u64) {
        let p = &x.plan;
        self.races = (checks == Checks::Races).then(|| {
            let grain = watch::grains(x.kernel).0;
            Box::new(Races::new(p.blocks as usize, p.warps as usize, p.shared as usize, grain, number))
        });
    }

    /// Sets every block, warp and register to its start, at cluster `at` of the grid.
    fn start(&mut self, x: &Context<'_>, at: [u32; 3]) {
        let p = &x.plan;
        for (rank, cta) in self.ctas.iter_mut().enumerate() {
            let rank = rank as u32;
            let within = [rank % p.cluster[0], rank / p.cluster[0] % p.cluster[1], rank / p.cluster[0] / p.cluster[1]];
            cta.id = std::array::from_fn(|i| at[i] * p.cluster[i] + within[i]);
            cta.shared.fill(0xFF);
            cta.written.fill(0);
            cta.barriers = Default::default();
            cta.live_warps = p.warps;
            cta.mbars.clear();
        }
        (self.tick, self.cluster_phase) = (0, 0);
        for (i, w) in self.warps.iter_mut().enumerate() {
            let (cta, id) = (i / p.warps as usize, i as u32 % p.warps);
            let left = p.threads - id * LANES as u32;
            let live = if left >= LANES as u32 { u32::MAX } else { (1 << left) - 1 };
            w.start(cta, id, live);
            fill_rows(x, w, self.ctas[cta].id, at, cta as u32);
        }
    }

    /// Runs warps by turns for about `limit` instructions; how many it were, and whether all warps have ended.
    fn run(&mut self, x: &mut Context<'_>, limit: u64) -> Result<(u64, bool), Fault> {
        let mut ran = 0;
        let count = self.warps.len() as u32;
        while ran < limit {
            self.late(x, false)?;
            let first = x.rng.below(count);
            let next = (0..count).map(|i| ((first + i) % count) as usize).find(|&i| self.warps[i].runnable());
            let Some(i) = next else {
                if self.warps.iter().all(|w| w.live == 0) {
                    return self.left_over(x).map(|()| (ran, true));
                }
                if self.late(x, true)? {
                    continue;
                }
                return Err(self.deadlock(x));
            };
            // Mostly long turns, which are fast; sometimes very short ones.
            let turn = 4 << x.rng.below(8);
            let n = self.turn(x, i, turn)?;
            ran += n;
            self.tick += n;
        }
        Ok((ran, false))
    }

    /// Lets copies arrive that are due, or any one.
    fn late(&mut self, x: &mut Context<'_>, any: bool) -> Result<bool, Fault> {
        if self.jobs.is_empty() {
            return Ok(false);
        }
        self.deliver(x, any).map_err(|(warp, pc, stop)| self.fault(x, warp, pc, *stop))
    }

    /// Blocks may not end before their copies.
    fn left_over(&mut self, x: &Context<'_>) -> Result<(), Fault> {
        let Some(job) = self.jobs.first() else { return Ok(()) };
        let stop = Stop::misuse(job.lane, "the block ends with a bulk copy on its way");
        Err(self.fault(x, job.warp, job.pc, *stop))
    }

    fn fault(&self, x: &Context<'_>, i: usize, pc: u32, stop: Stop) -> Fault {
        let (k, w) = (x.kernel, &self.warps[i]);
        let line = k.code[pc as usize].line;
        Fault {
            kernel: k.name.clone(),
            file: k.file.clone(),
            line,
            text: k.text_of(line),
            block: self.ctas[w.cta].id,
            warp: w.id,
            lane: stop.lane,
            kind: Box::new(stop.kind),
        }
    }

    /// The fault of warps that all wait, told at the first of them.
    fn deadlock(&self, x: &Context<'_>) -> Fault {
        let mut waits = Vec::new();
        let mut first = None;
        for (i, w) in self.warps.iter().enumerate() {
            for (mask, wait) in &w.waits {
                let lane = mask.trailing_zeros();
                let pc = w.pcs[lane as usize - usize::from(lane == 32)] - 1;
                first.get_or_insert((i, pc, lane));
                let [bx, by, bz] = self.ctas[w.cta].id;
                let line = x.kernel.code[pc as usize].line;
                waits.push(format!(
                    "block ({bx}, {by}, {bz}) warp {} lanes {mask:#010x} at line {line} for {wait}",
                    w.id
                ));
            }
        }
        let (i, pc, lane) = first.expect("a warp that cannot run waits for something");
        self.fault(x, i, pc, Stop { lane, kind: FaultKind::Deadlock { waits } })
    }

    fn endless(&self, x: &Context<'_>, ran: u64) -> Fault {
        let i = self.warps.iter().position(|w| w.live != 0).unwrap_or(0);
        let w = &self.warps[i];
        let pc = w.pc.min(x.kernel.code.len() as u32 - 1);
        let what = format!("warp {} stood here last", w.id);
        self.fault(x, i, pc, Stop { lane: w.mask.trailing_zeros() & 31, kind: FaultKind::Endless(ran, what) })
    }
}

/// The name of a place for messages, from its generic window.
pub(crate) fn space_name(address: u64) -> &'static str {
    match address {
        a if a >= window::DATA => "constant",
        a if a >= window::PARAM => "parameter",
        a if a >= window::LOCAL => "local",
        a if a >= window::SHARED => "shared",
        _ => "global",
    }
}
