//! The task with stores in memory, over the file that it ships.

#[path = "../testing/stage.rs"]
mod stage;

use serde_json::{Value, json};

use self::stage::Stage;
use super::*;

const EDITS: &str = include_str!("edits.jsonl");

fn fresh() -> Stage<WikipediaStats> {
    Stage::new("Partition 0", &["sums", "titles"])
}

fn report(stage: &mut Stage<WikipediaStats>) -> Value {
    let sent = stage.window();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].0, OUTPUT);
    serde_json::from_str(&sent[0].2).expect("JSON")
}

#[test]
fn the_shipped_file_gives_the_figures_counted_from_it_by_other_means() {
    let mut stage = fresh();
    for line in EDITS.lines() {
        stage.process(line).expect("nothing is fatal");
    }
    let expected = json!({
        "edits": 288, "editsAllTime": 288, "bytesAdded": 28199, "uniqueTitles": 59, "malformed": 12,
        "counts": {
            "is-minor": 83, "is-new": 24, "is-unpatrolled": 81, "is-bot-edit": 56, "is-special": 8, "is-talk": 25
        }
    });
    assert_eq!(report(&mut stage), expected);
    let lines_of = |topic: &str| EDITS.lines().filter(|line| feed::topic_of(line) == topic).count();
    assert_eq!(feed::INPUTS.map(lines_of).iter().sum::<usize>(), 300);
    assert!(feed::INPUTS.map(lines_of).iter().all(|lines| *lines > 30));
}

#[test]
fn a_window_counts_anew_and_all_time_goes_on() {
    let mut stage = fresh();
    let line = |title: &str| format!(r#"{{"raw":"[[{title}]] M http://x?diff=1 * u * (+5) s"}}"#);
    stage.process(&line("A")).expect("an edit");
    stage.process(&line("A")).expect("an edit");
    stage.process("not JSON").expect("counted, not fatal");
    let first = report(&mut stage);
    assert_eq!(
        (&first["edits"], &first["uniqueTitles"], &first["malformed"]),
        (&json!(2), &json!(1), &json!(1))
    );
    stage.process(&line("B")).expect("an edit");
    let second = report(&mut stage);
    assert_eq!((&second["edits"], &second["editsAllTime"]), (&json!(1), &json!(3)));
    assert_eq!((&second["uniqueTitles"], &second["bytesAdded"]), (&json!(1), &json!(5)));
    assert_eq!((&second["malformed"], &second["counts"]["is-minor"]), (&json!(0), &json!(1)));
}

#[test]
fn a_successor_goes_on_with_the_window_it_finds() {
    let mut first = fresh();
    let lines: Vec<&str> = EDITS.lines().collect();
    lines[..150].iter().for_each(|line| first.process(line).expect("nothing is fatal"));
    let mut second: Stage<WikipediaStats> = Stage::with("Partition 0", first.stores);
    lines[150..].iter().for_each(|line| second.process(line).expect("nothing is fatal"));
    let seen = report(&mut second);
    assert_eq!((&seen["edits"], &seen["uniqueTitles"]), (&json!(288), &json!(59)));
}
