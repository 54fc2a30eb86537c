//! The promises at full size: minutes, not seconds, so they run by name.
//!
//! ```text
//! cargo test --release -p esker-comms --test bars -- --ignored --nocapture
//! ```

use esker_comms::sim::{Config, run};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// A time is measured with nothing beside it.
static ALONE: Mutex<()> = Mutex::new(());

fn bar(name: &str, seconds_max: f64, config: &Config) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let began = Instant::now();
    let report = run(config);
    let seconds = began.elapsed().as_secs_f64();
    println!("{name}: {seconds:.1} s, {:.0} events/s\n{}", report.events as f64 / seconds, report.table());
    assert!(report.holds(), "{config:?}");
    assert!(report.left + report.kills >= 1500 || config.churn == 0.0, "too few kills to count");
    assert!(seconds <= seconds_max, "{name} took {seconds:.1} s, {seconds_max} are allowed");
}

#[test]
#[ignore = "a minute or two"]
fn seventy_peers_for_a_thousand_rounds() {
    bar("70 x 1000", 120.0, &Config { churn: 0.2, liars: 0.03, ..Config::calm(70, 1000, 1) });
}

#[test]
#[ignore = "a minute or two"]
fn a_thousand_peers_for_a_hundred_rounds() {
    bar("1000 x 100", 120.0, &Config { churn: 0.2, liars: 0.03, ..Config::calm(1000, 100, 1) });
}

#[test]
#[ignore = "a minute"]
fn kills_with_starts_from_disk() {
    bar("kills", 120.0, &Config { kills: 8.0, ..Config::calm(20, 200, 1) });
}
