//! The task with stores in memory.

#[path = "../testing/stage.rs"]
mod stage;

use self::stage::Stage;
use super::*;

const TASK: &str = "Partition 2";

fn fresh() -> Stage<FlightDelays> {
    Stage::new(TASK, &["flights", "carriers"])
}

fn fly(stage: &mut Stage<FlightDelays>, carrier: &str, flight: u32, delay: i64) {
    let message = format!(
        r#"{{"year":2013,"month":1,"day":1,"carrier":"{carrier}","flight":{flight},"origin":"JFK","dest":"MIA",
        "tailnum":null,"sched_dep_time":600,"dep_time":610,"dep_delay":{delay}}}"#
    );
    stage.process(&message).expect("a flight");
}

#[test]
fn a_window_sends_the_carriers_that_changed_and_no_others() {
    let mut stage = fresh();
    fly(&mut stage, "AA", 1, 20);
    fly(&mut stage, "UA", 2, 5);
    assert_eq!(stage.window().len(), 2);
    fly(&mut stage, "AA", 3, 30);
    let expected =
        r#"{"carrier":"AA","task":"Partition 2","flights":2,"cancelled":0,"delayed":2,"delay_minutes":50}"#;
    assert_eq!(stage.window(), [(OUTPUT.to_owned(), "AA Partition 2".to_owned(), expected.to_owned())]);
    assert_eq!(stage.window(), []);
    assert_eq!(stage.stores["flights"].borrow().0.len(), 3);
}

#[test]
fn a_successor_goes_on_from_the_stores_and_sends_what_may_not_have_been_sent() {
    let mut first = fresh();
    fly(&mut first, "AA", 1, 20);
    let mut second: Stage<FlightDelays> = Stage::with(TASK, first.stores);
    let sent = second.window();
    assert_eq!(sent.len(), 1);
    assert!(sent[0].2.contains(r#""flights":1,"#), "{sent:?}");
    fly(&mut second, "AA", 2, 0);
    assert!(second.window()[0].2.contains(r#""flights":2,"#));
    assert_eq!(second.stores["carriers"].borrow().0.len(), 1);
}

#[test]
fn a_message_that_is_no_flight_stops_the_task() {
    let refusal = fresh().process(r#"{"year":2013}"#).expect_err("most of it is missing").to_string();
    assert!(refusal.contains("missing field"), "{refusal}");
}
