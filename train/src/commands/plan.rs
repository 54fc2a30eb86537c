//! `esker plan`: what a run would take.

use super::{Failure, print, print_json};
use crate::{cli, config, plan::Plan};

pub fn run(args: cli::Plan) -> Result<(), Failure> {
    let run = config::load(&args.file, &args.set)?;
    let plan = Plan::of(&run);
    if args.json { print_json(&plan) } else { print(&plan.to_string()) }
}
