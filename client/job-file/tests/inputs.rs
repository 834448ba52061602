//! Inputs that are patterns, and inputs that were: what is read, and the texts of errors.

mod stage;

use stage::{GOOD, errors, says, with};
use types::SystemStream;

#[test]
fn a_pattern_among_the_inputs_takes_settings_and_stands_for_nothing_that_the_job_writes() {
    let inputs = "inputs = [\"kafka.flights\"]";
    let pattern = |text: &str| with(inputs, &format!("inputs = ['kafka./{text}/']"));
    let job = job_file::parse(
        &format!("{}[streams.'kafka./o-\\d+/']\npriority = 3\n", pattern("o-\\d+")),
        "job.toml",
    );
    let spec = job.expect("it is valid").spec;
    let stream = |name: &str| SystemStream { system: "kafka".into(), stream: name.into() };
    assert_eq!(
        (spec.stream(&stream("o-12")).priority, spec.stream(&stream("o-12")).topic.as_str()),
        (3, "o-12")
    );
    assert_eq!(spec.stream(&stream("o-12x")).priority, 0, "the whole name must match");
    says(
        &pattern("o-("),
        "job.toml:8: `task.inputs[0]`: \"o-(\" is not a regular expression: unclosed group; valid: \
         <system>./<regex>/, such as \"kafka./^orders-.*/\", which must match the whole name",
    );
    says(
        &with(inputs, "inputs = ['kafka./o-.*']"),
        "job.toml:8: `task.inputs[0]`: \"kafka./o-.*\" begins a pattern and does not end it; valid: \
         <system>./<regex>/, such as \"kafka./^orders-.*/\", which must match the whole name",
    );
    let written = format!("{}[streams.\"kafka.o-out\"]\nserde = \"json\"\n", pattern("o-.*"));
    assert!(
        errors(&written)
            .contains("`task.inputs[0]`: it matches \"o-out\", the topic of [streams.\"kafka.o-out\"]")
    );
    let dead =
        format!("{}[errors]\nprocess = \"dead-letter\"\ndead-letter = \"kafka.o-dead\"\n", pattern("o-.*"));
    assert!(errors(&dead).contains("it matches the dead-letter stream \"kafka.o-dead\""));
    let unused = format!("{GOOD}[streams.\"kafka./o-.*/\"]\npriority = 1\n");
    assert!(errors(&unused).contains("is a pattern that is none of [task] inputs"));
    let topic = format!("{}[streams.\"kafka./o-.*/\"]\ntopic = \"x\"\n", pattern("o-.*"));
    assert!(
        errors(&topic).contains("job.toml:14: `streams.kafka./o-.*/.topic`: a pattern stands for topics")
    );
    let files =
        pattern("o-.*").replace("type = \"kafka\"\nbootstrap = \"127.0.0.1:9092\"", "type = \"jsonl\"");
    assert!(errors(&files).contains("`task.inputs[0]`: patterns are for systems of type \"kafka\""));
}

#[test]
fn an_input_that_is_former_too_is_refused() {
    says(
        &with("inputs = ", "former-inputs = [\"kafka.flights\"]\ninputs = "),
        "job.toml:8: `task.former-inputs[0]`: \"kafka.flights\" is an input; take it out of one of the two",
    );
}
