//! A job file that is valid, and what is said of one that is not.
#![allow(dead_code, reason = "each file of tests uses some of it")]

/// The least there is.
pub const GOOD: &str = r#"[job]
name = "flight-delays"

[package]
path = "flight-delays"

[task]
inputs = ["kafka.flights"]

[systems.kafka]
type = "kafka"
bootstrap = "127.0.0.1:9092"
"#;

/// What is said of a file that is refused.
pub fn errors(text: &str) -> String {
    match job_file::parse(text, "job.toml") {
        Ok(file) => panic!("accepted: {file:?}"),
        Err(problems) => problems.to_string(),
    }
}

/// `GOOD` with one line replaced.
pub fn with(line: &str, instead: &str) -> String {
    assert!(GOOD.contains(line), "{line}");
    GOOD.replace(line, instead)
}

/// A file is refused with this text.
#[track_caller]
pub fn says(text: &str, expected: &str) {
    assert_eq!(errors(text), expected);
}
