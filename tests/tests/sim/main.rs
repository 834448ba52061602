//! The simulator: rm-core, nm-core and am-core, as they are, in one thread over a seeded network, clocks and
//! machines that crash, pause and lose each other. Invariants are checked after each step; then the faults stop
//! and everything must come to rest: every slot runs once, and after a stop nothing is left.
//!
//! A failing seed is printed; `SIM_SEED=<n> cargo test -p tests --test sim` runs it alone, with its trace.
//! `SIM_SEEDS=<n>` runs that many.

mod app_master;
mod faults;
mod judge;
mod network;
mod node;
mod resource_manager;
mod world;

use world::{Plant, World};

fn seeds() -> std::ops::Range<u64> {
    if let Ok(one) = std::env::var("SIM_SEED") {
        let one = one.parse().expect("SIM_SEED is a number");
        return one..one + 1;
    }
    let many = std::env::var("SIM_SEEDS").map_or(1000, |n| n.parse().expect("SIM_SEEDS is a number"));
    0..many
}

/// Runs one seed; the error holds the trace's end.
fn run(seed: u64, plant: Plant) -> Result<World, String> {
    let mut world = World::new(seed, plant);
    world.run().map_err(|what| format!("SEED={seed}: {what}\n{}", world.trace_end()))?;
    Ok(world)
}

#[test]
fn every_slot_runs_once_after_any_crash_and_partition() {
    for seed in seeds() {
        if let Err(report) = run(seed, Plant::Nothing) {
            panic!("{report}");
        }
    }
}

#[test]
fn a_seed_always_tells_the_same_story() {
    for seed in 0..10 {
        let first = run(seed, Plant::Nothing).expect("the seed passes").digest();
        let second = run(seed, Plant::Nothing).expect("the seed passes").digest();
        assert_eq!(first, second, "seed {seed} ran differently the second time");
    }
}

#[test]
fn a_resource_manager_that_ignores_leases_is_caught() {
    let caught = (0..200).filter_map(|seed| run(seed, Plant::IgnoreLeases).err()).next();
    let report = caught.expect("200 seeds with a planted bug, and none was caught");
    assert!(report.contains("while the lease of"), "caught, but for another reason: {report}");
}

#[test]
fn faults_really_happen() {
    let mut counts = std::collections::BTreeMap::new();
    for seed in 0..100 {
        for (what, n) in run(seed, Plant::Nothing).expect("the seed passes").faults_done {
            *counts.entry(what).or_insert(0) += n;
        }
    }
    for what in faults::KINDS {
        let done = counts.get(what).copied().unwrap_or(0);
        assert!(done >= 20, "{what} happened {done} times in 100 seeds: {counts:?}");
    }
}
