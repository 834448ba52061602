//! Inputs of counting jobs, and what their outputs must be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use crate::brokers::Brokers;
use crate::topic::Topics;
use crate::wait::{Pending, check};

/// How often each key was sent.
pub type Counts = BTreeMap<String, i64>;

/// Sends `count` messages over `keys` keys to `topic`, adds them to `sent`, and returns when they are stored.
pub fn send(topics: &Topics, topic: &str, keys: usize, count: usize, sent: &mut Counts) {
    let names: Vec<String> = (0..count).map(|n| format!("key-{}", n % keys)).collect();
    topics.produce(topic, names.iter().map(|key| (key, "x")));
    for name in names {
        *sent.entry(name).or_default() += 1;
    }
}

/// Sends to a topic until told to stop, 20 times a second.
pub struct Feed {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Counts>,
}

impl Feed {
    /// Begins sending about `per_second` messages over `keys` keys to `topic`.
    #[must_use]
    pub fn start(brokers: &'static Brokers, topic: &str, keys: usize, per_second: usize) -> Feed {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, topic) = (Arc::clone(&stop), topic.to_owned());
        let thread = std::thread::spawn(move || {
            let topics = Topics::on(brokers);
            let mut sent = Counts::new();
            while !stopped.load(Ordering::Relaxed) {
                send(&topics, &topic, keys, (per_second / 20).max(1), &mut sent);
                sleep(Duration::from_millis(50));
            }
            sent
        });
        Feed { stop, thread }
    }

    /// Stops, adds what was sent to `sent`.
    ///
    /// # Panics
    /// The feed failed.
    pub fn finish(self, sent: &mut Counts) {
        self.stop.store(true, Ordering::Relaxed);
        for (key, count) in self.thread.join().expect("the feed went well") {
            *sent.entry(key).or_default() += count;
        }
    }
}

/// Whether the output of a counting job is whole: each key counted up to as often as it was sent.
///
/// # Errors
/// Some counts are missing.
pub fn is_whole(topics: &Topics, output: &str, sent: &Counts) -> Result<(), Pending> {
    let seen = topics.numbers(output);
    let highest: i64 = seen.values().filter_map(|counts| counts.iter().max()).sum();
    let wanted: i64 = sent.values().sum();
    check(highest >= wanted, || format!("{highest} of {wanted} counted"))
}

/// Asserts that the committed output of a counting job is 1, 2, …, n for each key sent n times: nothing lost, nothing
/// doubled, the state right at every message.
///
/// # Panics
/// It is not.
pub fn assert_exact(topics: &Topics, output: &str, sent: &Counts) {
    let seen = topics.numbers(output);
    assert_eq!(seen.len(), sent.len(), "keys in {output}");
    for (key, count) in sent {
        let wanted: Vec<i64> = (1..=*count).collect();
        assert_eq!(seen[key], wanted, "{output}: counts of {key}");
    }
}

/// Asserts what at-least-once owes: nothing lost, the state exact (no count beyond what was sent, each reached), and
/// what is repeated is repeated from a commit on: a run of counts that begins at most one after the highest before.
///
/// # Panics
/// It is not so.
pub fn assert_at_least_once(topics: &Topics, output: &str, sent: &Counts) {
    let seen = topics.numbers(output);
    assert_eq!(seen.len(), sent.len(), "keys in {output}");
    for (key, count) in sent {
        let mut highest = 0;
        let mut last = 0;
        for number in &seen[key] {
            assert!(
                *number == last + 1 || *number <= highest,
                "{output}: {key} jumps from {last} to {number}"
            );
            (last, highest) = (*number, highest.max(*number));
        }
        assert_eq!(highest, *count, "{output}: the last count of {key}");
    }
}
