//! Who may import whom (ARCHITECTURE.md, "Who may import whom"), against `cargo metadata`.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Each crate and the crates of ours that it may depend on outside its tests.
const EDGES: [(&str, &[&str]); 20] = [
    // floor 0: words
    ("types", &[]),
    // floor 1: logic
    ("session", &["types"]),
    ("job-file", &["types"]),
    ("rm-core", &["types"]),
    ("nm-core", &["types"]),
    ("am-core", &["types"]),
    ("task-api", &["types"]),
    ("task-core", &["types", "task-api"]),
    // floor 1: wire
    ("proto", &["types", "session"]),
    ("daemon", &["types", "session", "proto"]),
    // floor 1: kafka
    ("kafka", &["types", "task-api"]),
    // floor 2: processes
    ("resource-manager", &["types", "session", "proto", "daemon", "rm-core"]),
    ("node-manager", &["types", "session", "proto", "daemon", "nm-core", "nm-shim"]),
    ("nm-shim", &["types"]),
    ("app-master", &["types", "session", "proto", "daemon", "am-core", "task-api", "task-core", "kafka"]),
    ("samza", &["types", "session", "proto", "daemon", "job-file", "task-api", "task-core", "kafka"]),
    ("client", &["types", "session", "proto", "daemon", "job-file", "task-api", "task-core", "kafka"]),
    // floor 3: proof
    ("conformance", &["task-api"]),
    ("tests", &["types", "session", "rm-core", "nm-core", "am-core", "task-core", "task-api", "kafka"]),
    ("samza-rs", &[]),
];

/// What logic may use from outside: words and errors, nothing that can do anything.
const LOGIC: [&str; 8] =
    ["types", "session", "job-file", "rm-core", "nm-core", "am-core", "task-api", "task-core"];
const LOGIC_MAY_USE: [&str; 9] = [
    "serde",
    "serde_json",
    "thiserror",
    "toml",
    "humantime",
    "bytesize",
    "hashbrown",
    "hdrhistogram",
    "regex",
];

/// Heavy crates and the only ones that may name them, but for what tests need.
const HEAVY: [(&str, &[&str]); 5] = [
    ("rdkafka", &["kafka", "tests"]), // in tests: the peer that the benches compare with
    ("rdkafka-sys", &["kafka"]),
    ("rocksdb", &["samza"]),
    ("cgroups-rs", &["node-manager"]),
    ("redb", &["resource-manager"]),
];

/// Every edge that the tables above do not allow, as a line for people.
pub fn broken(root: &Path) -> Vec<String> {
    let packages = packages(root);
    let ours: Vec<&str> = packages.iter().map(name).collect();
    let mut broken = Vec::new();
    for package in &packages {
        let from = name(package);
        let Some((_, allowed)) = EDGES.iter().find(|(crate_name, _)| *crate_name == from) else {
            broken.push(format!("{from} is on no floor: add it to the table, or not at all"));
            continue;
        };
        for dependency in package["dependencies"].as_array().expect("an array") {
            let to = name(dependency);
            let for_tests = dependency["kind"] == "dev";
            if ours.contains(&to) && !for_tests && !allowed.contains(&to) {
                broken.push(format!("{from} → {to}"));
            }
            if ours.contains(&to) && for_tests && to == "tests" {
                broken.push(format!("{from} → tests: imported by none"));
            }
            if LOGIC.contains(&from) && !for_tests && !ours.contains(&to) && !LOGIC_MAY_USE.contains(&to) {
                broken.push(format!("{from} → {to}: logic may use {LOGIC_MAY_USE:?} only"));
            }
            if let Some((_, users)) = HEAVY.iter().find(|(heavy, _)| *heavy == to)
                && !users.contains(&from)
                && !for_tests
            {
                broken.push(format!("{from} → {to}: only {users:?} may"));
            }
        }
    }
    broken
}

fn name(value: &Value) -> &str {
    value["name"].as_str().expect("packages and dependencies have names")
}

fn packages(root: &Path) -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    metadata["packages"].as_array().expect("packages is an array").clone()
}
