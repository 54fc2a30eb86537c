//! What a launch counted.

use std::fmt;

/// Counters of one launch. An instruction counts once for each warp that runs it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// All instructions.
    pub instructions: u64,
    /// Arithmetic on registers.
    pub alu: u64,
    /// Loads and stores, with copies and atomics.
    pub memory: u64,
    /// Branches and exits.
    pub control: u64,
    /// Barriers, fences, and what warps do together.
    pub sync: u64,
    /// Products on tensor cores.
    pub tensor: u64,
    /// Multiply-adds of those.
    pub macs: u64,
    /// Branches that split a warp.
    pub divergent: u64,
    /// Atomic additions of floats: their order, and so the last bits of the sums, differ from run to run on a device.
    pub float_atomics: u64,
    /// Bytes read from and written to device memory.
    pub global_read: u64,
    /// See `global_read`.
    pub global_written: u64,
    /// Bytes read from and written to shared memory.
    pub shared_read: u64,
    /// See `shared_read`.
    pub shared_written: u64,
    /// Per line of the PTX, the lines that touch memory; counted when asked for.
    pub lines: Vec<LineReport>,
}

/// Memory traffic of one instruction, over a launch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LineReport {
    /// Line of the PTX.
    pub line: u32,
    /// Times a warp ran it.
    pub count: u64,
    /// Sectors of 32 bytes of device memory it touched.
    pub sectors: u64,
    /// Sectors it would have touched had its bytes lain together.
    pub sectors_best: u64,
    /// Passes over the banks of shared memory beyond those its bytes need.
    pub conflicts: u64,
}

impl Report {
    /// Passes lost to bank conflicts, over all lines.
    pub fn bank_conflicts(&self) -> u64 {
        self.lines.iter().map(|l| l.conflicts).sum()
    }

    /// Sectors of device memory touched.
    pub fn sectors(&self) -> u64 {
        self.lines.iter().map(|l| l.sectors).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} warp instructions: {} arithmetic, {} memory, {} control, {} sync, {} tensor ({} multiply-adds)",
            self.instructions, self.alu, self.memory, self.control, self.sync, self.tensor, self.macs
        )?;
        writeln!(
            f,
            "bytes: {} read and {} written in device memory, {} and {} in shared memory; {} split branches",
            self.global_read, self.global_written, self.shared_read, self.shared_written, self.divergent
        )?;
        for l in self.lines.iter().filter(|l| l.conflicts > 0 || l.sectors > l.sectors_best) {
            writeln!(
                f,
                "line {}: run {} times, {} extra passes over banks, {} sectors where {} would do",
                l.line, l.count, l.conflicts, l.sectors, l.sectors_best
            )?;
        }
        Ok(())
    }
}
