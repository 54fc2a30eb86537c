//! Small worlds in which one thing goes wrong. Every failure prints its seed, and plays again from it.

use super::{Config, Report, Script, run};

fn holds(config: &Config) -> Report {
    let report = run(config);
    assert!(report.holds(), "{config:?}\n{}", report.table());
    report
}

#[test]
fn a_calm_run_counts_everybody_and_moves_the_state() {
    let report = holds(&Config::calm(12, 12, 1));
    assert!(report.rows.range(2..).all(|(_, r)| r.entries == 12), "{}", report.table());
    assert!(report.distance.1 < 0.95 * report.distance.0, "{}", report.table());
    assert_eq!(report.digest, run(&Config::calm(12, 12, 1)).digest, "one seed, two histories");
    assert_ne!(report.digest, run(&Config::calm(12, 12, 2)).digest);
}

#[test]
fn one_validator_is_a_plain_coordinator() {
    holds(&Config { validators: 1, ..Config::calm(6, 8, 3) });
}

#[test]
fn delay_one_trains_on_and_is_faster() {
    let waits = holds(&Config::calm(10, 12, 4));
    let goes_on = holds(&Config { delay: 1, ..Config::calm(10, 12, 4) });
    let end = |r: &Report| r.rows[&12].at;
    assert!(goes_on.rows.range(3..).all(|(_, r)| r.entries >= 9), "{}", goes_on.table());
    assert!(end(&goes_on) < end(&waits), "{} {}", end(&goes_on), end(&waits));
}

#[test]
fn one_validator_of_four_may_stay_dead() {
    holds(&Config { dead_validators: 1, ..Config::calm(8, 10, 5) });
}

#[test]
fn churn_and_liars() {
    for seed in [6, 7] {
        let report = holds(&Config { churn: 0.2, liars: 0.2, ..Config::calm(40, 25, seed) });
        assert!(report.newcomer_rounds <= 2, "{}", report.table());
    }
}

/// Who commits to another's update is turned away, and the update counts under its author's name. Validators once deleted
/// it with the turned away commit, and could not fold what they had just signed.
#[test]
fn one_update_under_two_names_counts_once_and_stays() {
    for (delay, seed) in [(0, 15), (1, 16)] {
        let config = Config { liars: 0.4, script: Some(Script::Twin), delay, ..Config::calm(12, 12, seed) };
        let report = holds(&config);
        assert!(report.rows.values().map(|r| r.rejects).sum::<u32>() > 20, "{}", report.table());
    }
}

#[test]
fn kills_with_a_start_from_disk() {
    for seed in [8, 9, 10] {
        let report = holds(&Config { kills: 3.0, ..Config::calm(10, 25, seed) });
        assert!(report.kills > 40, "{}", report.table());
    }
}

/// Kill a validator, then a peer, after every single order that it carries out in its first rounds.
#[test]
fn kill_at_every_step() {
    for node in [0, 2, 4] {
        for orders in (1..160).step_by(if node == 4 { 3 } else { 2 }) {
            let config = Config { kill_at: Some((node, orders)), ..Config::calm(5, 4, 100 + orders) };
            let report = holds(&config);
            // A peer has fewer orders than a validator; behind its last nothing is left to be killed.
            assert!(report.kills == 1 || orders > 60, "{config:?}");
        }
    }
}

#[test]
fn the_only_validator_is_killed_at_every_step() {
    for orders in 1..100 {
        let config = Config { validators: 1, kill_at: Some((0, orders)), ..Config::calm(4, 4, 300 + orders) };
        holds(&config);
    }
}

#[test]
fn a_partition_heals_within_two_rounds() {
    let config = Config { partition: Some((3, 8)), ..Config::calm(20, 14, 11) };
    let report = holds(&config);
    assert!(report.healed.is_some_and(|r| r <= 2), "{:?}\n{}", report.healed, report.table());
    // The side without a quorum contributes nothing; the other goes on with what it has.
    assert!(report.rows[&6].entries >= 8, "{}", report.table());
}

/// One half speaks and does not hear; once it is the half with the quorum, once the other.
#[test]
fn a_one_way_partition_heals_within_two_rounds() {
    for (validators, seed) in [(3, 13), (1, 14)] {
        let calm = Config::calm(20, 14, seed);
        let config = Config { partition: Some((3, 8)), one_way: true, partition_validators: validators, ..calm };
        let report = holds(&config);
        assert!(report.healed.is_some_and(|r| r <= 2), "{:?}\n{}", report.healed, report.table());
    }
}

#[test]
fn one_flipped_bit_is_found_in_that_round_and_mended() {
    let report = holds(&Config { flip: Some(4), ..Config::calm(6, 10, 12) });
    assert_eq!(report.mismatches, 1, "{}", report.table());
    assert_eq!(report.synced, 1);
    assert!(report.synced_bytes <= 2 << 20, "{}", report.synced_bytes);
}
