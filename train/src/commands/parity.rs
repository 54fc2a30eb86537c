//! `esker parity`: see [`crate::parity`].

use super::{Failure, print, print_json};
use crate::{cli, parity};
use esker_kernels::device::Stream;

pub fn run(args: cli::Parity) -> Result<(), Failure> {
    let stream = Stream::cpu(args.threads)?;
    let mut reports = Vec::new();
    for dir in &args.dirs {
        let report = parity::check(&stream, dir)?;
        if !args.json {
            print(&format!("{report}\n"))?;
        }
        reports.push(report);
    }
    if args.json {
        print_json(&reports)?;
    }
    let failed: Vec<String> = reports.iter().filter(|r| !r.ok).map(|r| r.dir.display().to_string()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::check(format!("past the tolerance: {}", failed.join(", "))))
}
