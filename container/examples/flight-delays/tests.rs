//! The task as its job.toml runs it, in the test kit.

use std::time::Duration;

use samza::testkit::{Output, TestKit};

use super::*;

/// Flights come to task `Partition 2`.
const TASK: usize = 2;

fn fresh() -> TestKit<FlightDelays> {
    let job = job_file::parse(include_str!("job.toml"), "job.toml").expect("it is valid").spec;
    TestKit::of_job(job, 3, FlightDelays::default)
}

fn fly(kit: &mut TestKit<FlightDelays>, carrier: &str, flight: u32, delay: i64) {
    let message = format!(
        r#"{{"year":2013,"month":1,"day":1,"carrier":"{carrier}","flight":{flight},"origin":"JFK","dest":"MIA",
        "tailnum":null,"sched_dep_time":600,"dep_time":610,"dep_delay":{delay}}}"#
    );
    kit.send_to("kafka.flights", TASK as i32, None, &message);
}

/// What the next window sends.
fn window(kit: &mut TestKit<FlightDelays>) -> Vec<Output> {
    kit.advance(Duration::from_millis(500));
    kit.take(OUTPUT)
}

#[test]
fn a_window_sends_the_carriers_that_changed_and_no_others() {
    let mut kit = fresh();
    fly(&mut kit, "AA", 1, 20);
    fly(&mut kit, "UA", 2, 5);
    assert_eq!(window(&mut kit).len(), 2);
    fly(&mut kit, "AA", 3, 30);
    let expected =
        r#"{"carrier":"AA","task":"Partition 2","flights":2,"cancelled":0,"delayed":2,"delay_minutes":50}"#;
    assert_eq!(window(&mut kit), [("AA Partition 2", expected)]);
    assert_eq!(window(&mut kit), [] as [Output; 0]);
    assert_eq!(kit.task(TASK).store("flights", BytesSerde, BytesSerde).all().expect("rows").count(), 3);
}

#[test]
fn a_successor_goes_on_from_the_stores_and_sends_what_may_not_have_been_sent() {
    let mut kit = fresh();
    fly(&mut kit, "AA", 1, 20);
    assert_eq!(window(&mut kit).len(), 1);
    fly(&mut kit, "AA", 2, 0);
    kit.run();
    kit.crash();
    let sent = window(&mut kit);
    assert_eq!(sent.len(), 1);
    let report = String::from_utf8(sent[0].value.clone().expect("a report")).expect("text");
    assert!(report.contains(r#""flights":2,"#), "{report}");
    kit.crash();
    assert_eq!(window(&mut kit).len(), 1, "nobody knows whether it was sent");
    assert_eq!(
        kit.task(TASK).store("carriers", StringSerde, flight::TotalsSerde).all().expect("rows").count(),
        1
    );
}

#[test]
fn a_message_that_is_no_flight_stops_the_task() {
    let mut kit = fresh();
    kit.send_to("kafka.flights", 0, None, r#"{"year":2013}"#);
    let refusal = kit.try_run().expect_err("most of it is missing").to_string();
    assert!(refusal.contains("missing field"), "{refusal}");
}
