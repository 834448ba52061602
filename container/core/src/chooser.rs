//! Which inputs must wait for others: Samza's bootstrapping and tiered-priority choosers, decided between batches.

/// What job.toml says of an input, and where it ended when the thread started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Input {
    /// Higher is read first.
    pub priority: i32,
    /// Of a bootstrap stream: the end that must be reached before any other input is read.
    pub bootstrap_until: Option<u64>,
}

/// How far an input has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Everything below this offset was handed to the task.
    pub position: u64,
    /// How much there is beyond; none if that is not known yet.
    pub lag: Option<u64>,
    /// Nothing will come any more.
    pub ended: bool,
}

impl Input {
    fn is_bootstrapping(&self, progress: &Progress) -> bool {
        !progress.ended && self.bootstrap_until.is_some_and(|until| progress.position < until)
    }
}

/// Whether any input can ever have to wait.
#[must_use]
pub fn matters(inputs: &[Input]) -> bool {
    inputs.iter().any(|input| input.bootstrap_until.is_some() || input.priority != inputs[0].priority)
}

/// For each input, whether it must wait now.
#[must_use]
pub fn waits(inputs: &[Input], progress: &[Progress]) -> Vec<bool> {
    let both = || inputs.iter().zip(progress);
    if both().any(|(input, progress)| input.is_bootstrapping(progress)) {
        return inputs.iter().map(|input| input.bootstrap_until.is_none()).collect();
    }
    // What is not known yet may be there.
    let has_more = |progress: &Progress| !progress.ended && progress.lag != Some(0);
    let highest = both().filter(|(_, progress)| has_more(progress)).map(|(input, _)| input.priority).max();
    inputs.iter().map(|input| highest.is_some_and(|highest| input.priority < highest)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bootstrap(until: u64) -> Input {
        Input { priority: 0, bootstrap_until: Some(until) }
    }
    fn priority(priority: i32) -> Input {
        Input { priority, bootstrap_until: None }
    }
    fn at(position: u64, lag: u64) -> Progress {
        Progress { position, lag: Some(lag), ended: false }
    }

    #[test]
    fn nothing_is_read_before_every_bootstrap_stream_is_at_its_end() {
        let inputs = [bootstrap(10), bootstrap(5), priority(9)];
        assert_eq!(waits(&inputs, &[at(9, 1), at(5, 0), at(0, 7)]), [false, false, true]);
        assert_eq!(waits(&inputs[..2], &[at(0, 10), at(0, 5)]), [false, false]);
        // Once there, a bootstrap stream is one of many, and what came later holds up nobody of its priority.
        assert_eq!(waits(&[bootstrap(10), priority(0)], &[at(10, 3), at(0, 7)]), [false, false]);
        let ended = Progress { ended: true, ..at(3, 0) };
        assert_eq!(waits(&[bootstrap(10), priority(0)], &[ended, at(0, 7)]), [false, false]);
    }

    #[test]
    fn lower_priorities_wait_while_a_higher_one_has_messages() {
        let inputs = [priority(2), priority(1), priority(0)];
        assert_eq!(waits(&inputs, &[at(0, 1), at(0, 1), at(0, 1)]), [false, true, true]);
        assert_eq!(waits(&inputs, &[at(1, 0), at(0, 1), at(0, 1)]), [false, false, true]);
        assert_eq!(waits(&inputs, &[Progress::default(), at(0, 1), at(0, 1)]), [false, true, true]);
        assert_eq!(waits(&inputs, &[at(1, 0), at(1, 0), at(1, 0)]), [false, false, false]);
    }

    #[test]
    fn equal_inputs_need_no_choosing() {
        assert!(!matters(&[priority(3), priority(3)]) && !matters(&[]));
        assert!(matters(&[priority(3), priority(2)]) && matters(&[bootstrap(0)]));
    }

    proptest! {
        #[test]
        fn some_input_that_has_messages_may_always_be_read(
            of in proptest::collection::vec((0..3i32, proptest::option::of(0..5u64), 0..5u64, 0..5u64, any::<bool>()), 1..6),
        ) {
            let inputs: Vec<Input> =
                of.iter().map(|(priority, until, ..)| Input { priority: *priority, bootstrap_until: *until }).collect();
            // A bootstrap stream has all that lies before its end at the start.
            let progress: Vec<Progress> = of
                .iter()
                .map(|(_, until, position, lag, ended)| Progress {
                    position: *position,
                    lag: Some((*lag).max(until.unwrap_or(0).saturating_sub(*position))),
                    ended: *ended,
                })
                .collect();
            let has_more = |p: &Progress| !p.ended && p.lag != Some(0);
            if progress.iter().any(has_more) {
                let waits = waits(&inputs, &progress);
                prop_assert!(progress.iter().zip(&waits).any(|(p, waits)| has_more(p) && !waits), "{:?}", waits);
            }
        }
    }
}
