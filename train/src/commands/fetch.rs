//! `esker fetch`: files of a Hugging Face repository into a folder. A feature of the build, `hub`: it brings an HTTP
//! client and TLS.

use super::Failure;
use crate::cli::fetch::Fetch;

#[cfg(feature = "hub")]
mod hub;

/// Takes the files, or says how to come by a build that can.
pub fn run(args: Fetch) -> Result<(), Failure> {
    #[cfg(feature = "hub")]
    return hub::run(args);
    #[cfg(not(feature = "hub"))]
    {
        let by_hand = format!("or copy the files of {} by hand into {}", args.repo, args.out.display());
        Err(Failure::input("this build cannot fetch: it has no HTTP client")
            .help("build one that can with `cargo build --release --features hub`")
            .help(by_hand))
    }
}
