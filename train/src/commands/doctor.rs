//! `esker doctor`: see [`crate::doctor`]; with `--join`, what stands between this machine and a shared run.

use super::{Failure, print, print_json};
use crate::{cli::peers::Doctor, doctor};
use esker_comms::Key;
use esker_comms::node::doctor::{Grade, probe};
use esker_kernels::device::Stream;

pub fn run(args: Doctor) -> Result<(), Failure> {
    if !args.join.is_empty() {
        return join(&args);
    }
    let stream = Stream::cpu(args.threads)?;
    let found = doctor::examine(&stream)?;
    if args.json {
        print_json(&found)?
    } else {
        print(&found.to_string())?
    }
    if found.matmul_error > found.matmul_error_max {
        let message = format!("a product of matrices is wrong by {:.2e} on this machine", found.matmul_error);
        return Err(Failure::check(message).help("please report it with the output of `esker doctor --json`"));
    }
    Ok(())
}

/// A line a finding.
fn join(args: &Doctor) -> Result<(), Failure> {
    let findings = probe(Key::generate()?, args.listen, &args.join, &args.dir);
    for finding in &findings {
        if args.json { print_json(finding)? } else { print(&format!("{finding}\n"))? }
    }
    match findings.iter().filter(|f| f.grade == Grade::Bad).count() {
        0 => Ok(()),
        bad => Err(Failure::check(format!("{bad} of these would keep this machine out of the run"))),
    }
}
