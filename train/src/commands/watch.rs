//! `esker watch`: a process of a shared run in the terminal.

use super::{Failure, print};
use crate::{cli::peers::Watch, live::watch};
use std::{io::IsTerminal, thread::sleep, time::Duration};

/// Home, and clear what follows.
const AGAIN: &str = "\x1b[H\x1b[J";
/// Clear all once, at the start.
const BEGIN: &str = "\x1b[2J";

pub fn run(args: Watch) -> Result<(), Failure> {
    let first = watch::drawn(args.addr)?;
    if args.once || !std::io::stdout().is_terminal() {
        return print(&first);
    }
    print(&format!("{BEGIN}{AGAIN}{first}"))?;
    loop {
        sleep(Duration::from_secs(1));
        print(&format!("{AGAIN}{}", watch::drawn(args.addr)?))?;
    }
}
