//! `esker plan`: what a run would take.

use super::{Failure, print, print_json};
use crate::{cli, config, plan::Plan};
use esker_kernels::{
    DeviceError,
    device::{Kind, Stream},
};

pub fn run(args: cli::Plan) -> Result<(), Failure> {
    let run = config::load(&args.file, &args.set)?;
    let plan = match args.device.kind() {
        Kind::Cpu => Plan::of(&run),
        // A plan for a card needs none: without a driver, nobody says how much it can give.
        kind => match Stream::open(kind, 1) {
            Ok(s) => Plan::on_device(&run, s.free_bytes()?.map(|free| free as u64)),
            Err(DeviceError::NoDriver) => Plan::on_device(&run, None),
            Err(e) => return Err(e.into()),
        },
    };
    if args.json { print_json(&plan) } else { print(&plan.to_string()) }
}
