//! `esker doctor`: see [`crate::doctor`].

use super::{Failure, print, print_json};
use crate::{cli, doctor};
use esker_kernels::device::Stream;

pub fn run(args: cli::Doctor) -> Result<(), Failure> {
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
