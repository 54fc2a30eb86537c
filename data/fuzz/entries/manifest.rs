use std::path::Path;

use esker_data::pack::{Manifest, Split};
use esker_data::shard::Check;

/// Reads the bytes as a manifest.json and looks for its shards where there are none.
pub fn run(bytes: &[u8]) -> Result<(), String> {
    let manifest = Manifest::parse(bytes, Path::new("manifest.json")).map_err(text_of)?;
    for split in [Split::Train, Split::Val] {
        let opened = manifest.open(Path::new("no such folder"), split, Check::Header);
        assert!(opened.is_err());
    }
    Ok(())
}

fn text_of(error: impl std::fmt::Display) -> String {
    error.to_string()
}
