//! Brokers with other limits than Kafka's usual ones.

use std::time::Duration;

use rustix::process::Signal;
use types::Delivery;

use crate::brokers::Brokers;
use crate::container::Container;
use crate::job::Job;
use crate::master::Master;
use crate::time::feed;

#[test]
fn transactions_fit_brokers_that_allow_short_ones_and_an_id_that_they_have_forgotten_costs_a_start_and_no_row()
 {
    let brokers = Brokers::own(&[
        "--set",
        "transaction.max.timeout.ms=12000",
        "--set",
        "transactional.id.expiration.ms=7000",
        "--set",
        "transaction.remove.expired.transaction.cleanup.interval.ms=500",
    ]);
    let job = Job::new("counter", "limits", Delivery::ExactlyOnce, brokers, 1);
    let master = Master::start();
    let container = Container::start(&job, &master, 1, "state", &[]);
    feed(&job, 10);
    master.wait(&container, "ten rows", |status| status.processed == 10 && status.commits > 0);
    // Nothing comes for longer than these brokers remember. Kafka's usual week is long: an idle container proves once a
    // minute that it owns its tasks.
    std::thread::sleep(Duration::from_secs(10));
    feed(&job, 10);
    let log = container.log.clone();
    assert_eq!(container.exit_code(), 1);
    let log = std::fs::read_to_string(log).expect("a log");
    assert!(log.contains("not currently assigned to its transactional id"), "{log}");
    let outputs =
        || [0, 1].map(|partition| job.rows(&job.topic("out"), partition).len()).iter().sum::<usize>();
    assert_eq!(outputs(), 10, "what failed is not seen");

    let container = Container::start(&job, &master, 2, "state", &[]);
    master.wait(&container, "the others", |status| status.processed == 10 && status.commits > 0);
    container.signal(Signal::TERM);
    assert_eq!(container.exit_code(), 143);
    assert_eq!(outputs(), 20);
}
