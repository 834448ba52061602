//! The task as its job.toml runs it, in the test kit, over the file that it ships.

use std::time::Duration;

use samza::testkit::TestKit;
use serde_json::{Value, json};

use super::*;

const EDITS: &str = include_str!("edits.jsonl");

fn fresh() -> TestKit<WikipediaStats> {
    let job = job_file::parse(include_str!("job.toml"), "job.toml").expect("it is valid").spec;
    TestKit::of_job(job, 1, WikipediaStats::default)
}

fn send(kit: &mut TestKit<WikipediaStats>, line: &str) {
    kit.send(&format!("kafka.{}", feed::topic_of(line)), None, line);
}

/// What the next window tells.
fn report(kit: &mut TestKit<WikipediaStats>) -> Value {
    kit.advance(Duration::from_secs(10));
    let sent = kit.take(OUTPUT);
    assert_eq!(sent.len(), 1);
    serde_json::from_slice(sent[0].value.as_deref().expect("a report")).expect("JSON")
}

#[test]
fn the_shipped_file_gives_the_figures_counted_from_it_by_other_means() {
    let mut kit = fresh();
    EDITS.lines().for_each(|line| send(&mut kit, line));
    let expected = json!({
        "edits": 288, "editsAllTime": 288, "bytesAdded": 28199, "uniqueTitles": 59, "malformed": 12,
        "counts": {
            "is-minor": 83, "is-new": 24, "is-unpatrolled": 81, "is-bot-edit": 56, "is-special": 8, "is-talk": 25
        }
    });
    assert_eq!(report(&mut kit), expected);
    let lines_of = |topic: &str| EDITS.lines().filter(|line| feed::topic_of(line) == topic).count();
    assert_eq!(feed::INPUTS.map(lines_of).iter().sum::<usize>(), 300);
    assert!(feed::INPUTS.map(lines_of).iter().all(|lines| *lines > 30));
}

#[test]
fn a_window_counts_anew_and_all_time_goes_on() {
    let mut kit = fresh();
    let line = |title: &str| format!(r#"{{"raw":"[[{title}]] M http://x?diff=1 * u * (+5) s"}}"#);
    send(&mut kit, &line("A"));
    send(&mut kit, &line("A"));
    send(&mut kit, "not JSON");
    let first = report(&mut kit);
    assert_eq!(
        (&first["edits"], &first["uniqueTitles"], &first["malformed"]),
        (&json!(2), &json!(1), &json!(1))
    );
    send(&mut kit, &line("B"));
    let second = report(&mut kit);
    assert_eq!((&second["edits"], &second["editsAllTime"]), (&json!(1), &json!(3)));
    assert_eq!((&second["uniqueTitles"], &second["bytesAdded"]), (&json!(1), &json!(5)));
    assert_eq!((&second["malformed"], &second["counts"]["is-minor"]), (&json!(0), &json!(1)));
}

#[test]
fn a_successor_goes_on_with_the_window_it_finds_wherever_the_last_one_died() {
    let mut kit = fresh();
    EDITS.lines().for_each(|line| send(&mut kit, line));
    for killed_after in [1, 70, 150] {
        (0..killed_after).for_each(|_| assert!(kit.step()));
        if killed_after == 70 {
            kit.commit();
        }
        kit.crash();
    }
    let seen = report(&mut kit);
    assert_eq!((&seen["edits"], &seen["uniqueTitles"]), (&json!(288), &json!(59)));
}
