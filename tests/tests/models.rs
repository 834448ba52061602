//! The models of protocols in tests/models: each says of its own variants which are safe.

use std::process::Command;

/// What the model says of each variant: whether it is safe, and its name.
fn verdicts(model: &str) -> Vec<(bool, String)> {
    let path = format!("{}/models/{model}", env!("CARGO_MANIFEST_DIR"));
    let run = Command::new("python3").arg(&path).output();
    let run = run.expect("python3 is there, as deploy/install-packages.sh kafka installs it");
    assert!(run.status.success(), "{path}: {}", String::from_utf8_lossy(&run.stderr));
    let text = String::from_utf8(run.stdout).expect("text");
    let verdict = |line: &str| {
        let (word, rest) = line.split_once(' ')?;
        let (_, name) = rest.trim_start().split_once(" states  ")?;
        matches!(word, "safe" | "UNSAFE").then(|| (word == "safe", name.to_owned()))
    };
    text.lines().filter_map(verdict).collect()
}

#[test]
fn ownership_is_safe_and_each_of_its_steps_is_needed() {
    let wanted = [
        (true, "the protocol, 2 incarnations"),
        (true, "the protocol, 3 incarnations"),
        (true, "a job stopped by its AM under a fresh incarnation"),
        (false, "without reading back"),
        (false, "without fencing the lower"),
        (false, "owner record inside a transaction"),
        (false, "a position from a transaction that holds nothing"),
    ];
    assert_eq!(verdicts("ownership.py"), wanted.map(|(safe, name)| (safe, name.to_owned())));
}
