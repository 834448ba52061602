//! What a job file says of time: how long a call may take, and how long a commit may be waited for.

mod stage;

use stage::with;

#[track_caller]
fn says(text: &str, expected: &str) {
    match job_file::parse(text, "job.toml") {
        Ok(file) => panic!("accepted: {file:?}"),
        Err(problems) => assert_eq!(problems.to_string(), expected),
    }
}

#[test]
fn stuck_after_is_a_duration_or_off() {
    let stuck = |text: &str| with("inputs", &format!("stuck-after = {text}\ninputs"));
    let read =
        |text: &str| job_file::parse(&stuck(text), "job.toml").expect("valid").spec.task.stuck_after_ms;
    assert_eq!((read("\"off\""), read("\"90s\"")), (None, Some(90_000)));
    says(
        &stuck("\"never\""),
        "job.toml:8: `task.stuck-after`: \"never\" is not a duration; valid: a number and a unit (ms, s, m, h, d), \
         such as \"500ms\", \"10s\" or \"1m 30s\", or \"off\"",
    );
    says(
        &stuck("\"10ms\""),
        "job.toml:8: `task.stuck-after`: is too short; the least is \"1s\"; \"off\" lets tasks hang",
    );
}

#[test]
fn a_commit_interval_that_no_transaction_can_wait_for_is_refused() {
    let exactly = |commit: &str, more: &str| {
        with("inputs", &format!("commit = \"{commit}\"\ndelivery = \"exactly-once\"\ninputs"))
            .replace("type = \"kafka\"", &format!("type = \"kafka\"{more}"))
    };
    says(
        &exactly("20m", ""),
        "job.toml:8: `task.commit`: \"20m\" is too long for `delivery = \"exactly-once\"`; valid: less than the \"15m\" \
         that brokers let a transaction be open; a broker whose transaction.max.timeout.ms is longer needs \
         `producer = { \"transaction.timeout.ms\" = \"…\" }` of `systems.kafka` as well",
    );
    let given = "\nproducer = { \"transaction.timeout.ms\" = 10000 }";
    says(
        &exactly("10s", given),
        "job.toml:8: `task.commit`: \"10s\" is too long for `delivery = \"exactly-once\"`; valid: less than \
         `transaction.timeout.ms` of `systems.kafka.producer`, which is 10000",
    );
    for text in [exactly("9s", given), exactly("14m", ""), exactly("20m", &given.replace("10000", "1800000"))]
    {
        job_file::parse(&text, "job.toml").unwrap_or_else(|problems| panic!("{problems}"));
    }
    let at_least = with("inputs", "commit = \"20m\"\ninputs");
    assert!(job_file::parse(&at_least, "job.toml").is_ok(), "its transactions begin at the commit");
}
