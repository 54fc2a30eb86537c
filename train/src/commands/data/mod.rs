//! `esker data`: token shards and what they were made from, a file a command.

mod verify;

use super::Failure;
use crate::cli::data::Data;

pub fn run(command: Data) -> Result<(), Failure> {
    match command {
        Data::Verify(args) => verify::run(args),
    }
}
