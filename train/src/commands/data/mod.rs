//! `esker data`: token shards and what they were made from, a file a command.

mod bar;
mod export;
mod import;
mod inspect;
mod mix;
pub(super) mod prepare;
mod tokens;
mod verify;

use super::Failure;
use crate::cli::data::Data;

pub fn run(command: Data) -> Result<(), Failure> {
    match command {
        Data::Import(args) => import::run(args),
        Data::Export(args) => export::run(args),
        Data::Inspect(args) => inspect::run(args),
        Data::Mix(args) => mix::run(args),
        Data::Prepare(args) => prepare::run(args),
        Data::Verify(args) => verify::run(args),
    }
}
