//! `esker tokenize`: text into token shards, `esker data prepare` with fewer options.

use super::{Failure, data};
use crate::cli;
use esker_data::pack::PackOptions;

pub fn run(args: cli::Tokenize) -> Result<(), Failure> {
    data::prepare::with(args, PackOptions::default())
}
