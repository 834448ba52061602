//! The job against streams and stores in memory: no Kafka, no cluster, no waiting.

use samza::testkit::{OnError, TestKit};

use super::*;

fn kit() -> TestKit<Pages> {
    TestKit::new(Pages::default).input("kafka.visits", 2).store("pages")
}

#[test]
fn every_visit_counts_for_its_page() {
    let mut kit = kit();
    kit.send("kafka.visits", Some("/home"), r#"{"ms":10}"#);
    kit.send("kafka.visits", Some("/about"), r#"{"ms":30}"#);
    kit.send("kafka.visits", Some("/home"), r#"{"ms":5}"#);
    kit.run();
    assert_eq!(
        kit.outputs("kafka.pages"),
        [
            ("/home", r#"{"visits":1,"ms":10}"#),
            ("/about", r#"{"visits":1,"ms":30}"#),
            ("/home", r#"{"visits":2,"ms":15}"#),
        ]
    );
}

#[test]
fn a_crash_counts_nothing_twice() {
    let mut kit = kit();
    kit.send("kafka.visits", Some("/home"), r#"{"ms":10}"#);
    kit.run();
    kit.commit();
    kit.send("kafka.visits", Some("/home"), r#"{"ms":5}"#);
    kit.run();
    // Back to the last commit; the second visit is read again.
    kit.crash();
    kit.run();
    let last = kit.outputs("kafka.pages").pop();
    assert_eq!(last.expect("there are some"), ("/home", r#"{"visits":2,"ms":15}"#));
}

#[test]
fn what_is_no_visit_is_left_out_if_the_job_file_says_so() {
    let mut kit = kit().errors(|errors| errors.decode = OnError::Skip);
    kit.send("kafka.visits", Some("/home"), "not a visit");
    kit.send("kafka.visits", Some("/home"), r#"{"ms":5}"#);
    kit.run();
    assert_eq!(kit.outputs("kafka.pages"), [("/home", r#"{"visits":1,"ms":5}"#)]);
}
