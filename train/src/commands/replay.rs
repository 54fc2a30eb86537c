//! `esker replay`: the event log of a process, after the fact.

use super::{Failure, print, print_json};
use crate::cli::peers::Replay;
use crate::peers::replay::{self, Row};
use esker_comms::round::log::{Line, Timed};

const WHAT: &str = "name the folder of a peer, as runs/NAME-peer, or one of its events";

pub fn run(args: Replay) -> Result<(), Failure> {
    let asked = |round: Option<u64>| args.round.is_none_or(|only| round == Some(only));
    let mut failed = None;
    let replayed = replay::read(&args.path, |timed: &Timed| {
        if !args.lines || failed.is_some() || !asked(round_of(&timed.line)) {
            return;
        }
        let said = if args.json { print_json(timed) } else { print(&replay::line(timed)) };
        failed = said.err();
    })?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    if replayed.files.is_empty() {
        let message = format!("{}: holds no event log", args.path.display());
        return Err(Failure::input(message).help(WHAT));
    }
    if let [(file, _, _, 0, rest @ 1..)] = &replayed.files[..] {
        let message = format!("{}: no event log: its {rest} bytes hold no whole line of one", file.display());
        return Err(Failure::input(message).help(WHAT));
    }
    if args.lines {
        return Ok(());
    }
    if args.json {
        let rows: Vec<Row> = replayed.rows();
        return rows.iter().filter(|row| asked(Some(row.round))).try_for_each(print_json);
    }
    print(&replayed.table(args.round))
}

/// The round that a line is about, where it says so.
fn round_of(line: &Line) -> Option<u64> {
    match line {
        Line::Train { round, .. }
        | Line::Trained { round, .. }
        | Line::Accepted { round, .. }
        | Line::Applied { round, .. }
        | Line::Mismatch { round, .. }
        | Line::Synced { round, .. }
        | Line::Counted { round }
        | Line::TurnedAway { round, .. }
        | Line::Fork { round, .. } => Some(*round),
        _ => None,
    }
}
