//! `esker sim`: the peers' protocol in virtual time.

use super::Failure;
use crate::cli::peers::Sim;
use esker_comms::sim::{Config, run as play};
use std::time::Instant;

/// Plays the world and prints its table; fails where a promise was broken.
pub fn run(args: Sim) -> Result<(), Failure> {
    let share = |name: &str, x: f64, most: f64| match (0.0..=most).contains(&x) {
        true => Ok(x),
        false => Err(Failure::input(format!("--{name} {x} lies outside 0 to {most}"))),
    };
    if !(1..=1500).contains(&args.peers) || args.rounds == 0 {
        return Err(Failure::input("--peers takes 1 to 1500, --rounds at least 1"));
    }
    if let [from, to] = args.partition[..]
        && from >= to
    {
        return Err(Failure::input(format!("--partition {from} {to}: FROM has to be a round before TO")));
    }
    let config = Config {
        validators: args.validators.into(),
        churn: share("churn", args.churn, 0.5)?,
        liars: share("liars", args.liars, 1.0)?,
        kills: share("kills", args.kills, args.peers as f64)?,
        delay: args.delay,
        loss: share("loss", args.loss, 0.5)?,
        partition: args.partition.first().copied().zip(args.partition.get(1).copied()),
        one_way: args.one_way,
        contributors: args.contributors,
        ..Config::calm(args.peers, args.rounds, args.seed)
    };
    let began = Instant::now();
    let report = play(&config);
    let seconds = began.elapsed().as_secs_f64();
    let speed = report.events as f64 / seconds;
    super::print(&format!("{}played in {seconds:.1} s, {speed:.0} events a second\n", report.table()))?;
    if report.holds() {
        Ok(())
    } else {
        Err(Failure::check(format!("a promise was broken; --seed {} plays it again", args.seed)))
    }
}
