//! Which inputs must wait for others: Samza's bootstrapping and tiered-priority choosers, decided between batches.

use types::Timestamp;

/// What job.toml says of an input, and where it ended when the thread started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Input {
    /// Higher is read first.
    pub priority: i32,
    /// Of a bootstrap stream: the end that must be reached before any other input is read.
    pub bootstrap_until: Option<u64>,
}

/// Whether there is more of an input than what its task has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum More {
    /// Nothing was heard of it yet.
    #[default]
    Unknown,
    /// Messages of it are here and wait.
    InHand,
    /// It goes on behind what was read, but perhaps with nothing that can be seen yet: the last message came so long
    /// ago.
    Expected {
        /// Since the last message, ms.
        quiet_ms: u64,
    },
    /// It was read to where it ends for a reader of committed messages.
    Nothing,
}

/// How far an input has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Everything below this offset was handed to the task.
    pub position: u64,
    /// Whether there is more.
    pub more: More,
    /// Nothing will come any more.
    pub ended: bool,
}

/// What follows in a log comes within this time if it can be seen: else others need not wait for it. Longer than a
/// fetch, so that a backlog is read in one go.
const FETCH_MS: u64 = 20;
/// So long an input waits for what may come of others; then it has a turn, however often something does come.
const PATIENCE_MS: u64 = 1_000;
/// How long a turn is.
const TURN_MS: u64 = 100;

impl Input {
    fn is_bootstrapping(&self, progress: &Progress) -> bool {
        !progress.ended && self.bootstrap_until.is_some_and(|until| progress.position < until)
    }
}

impl Progress {
    fn is_in_hand(&self) -> bool {
        !self.ended && self.more == More::InHand
    }

    fn may_come(&self) -> bool {
        let soon = match self.more {
            More::Unknown | More::InHand => true,
            More::Expected { quiet_ms } => quiet_ms < FETCH_MS,
            More::Nothing => false,
        };
        soon && !self.ended
    }
}

/// Decides which inputs of a thread must wait for others.
#[derive(Debug, Clone)]
pub struct Chooser {
    inputs: Vec<Input>,
    /// By input: since when it waits for what may come of others.
    waiting_since: Vec<Option<Timestamp>>,
    /// By input: when its turn is over.
    turn_until: Vec<Timestamp>,
}

impl Chooser {
    /// For these inputs, in this order from now on.
    #[must_use]
    pub fn new(inputs: Vec<Input>) -> Chooser {
        let (waiting_since, turn_until) =
            (vec![None; inputs.len()], vec![Timestamp::default(); inputs.len()]);
        Chooser { inputs, waiting_since, turn_until }
    }

    /// Whether any input can ever have to wait.
    #[must_use]
    pub fn matters(&self) -> bool {
        let first = |input: &Input| input.priority == self.inputs[0].priority;
        self.inputs.iter().any(|input| input.bootstrap_until.is_some() || !first(input))
    }

    /// For each input, whether it must wait now.
    ///
    /// A higher priority goes first with what is in hand. What may still come of it is waited for too, but not for
    /// ever: behind an open transaction nothing comes, however much is there.
    #[must_use]
    pub fn waits(&mut self, now: Timestamp, progress: &[Progress]) -> Vec<bool> {
        let both = || self.inputs.iter().zip(progress);
        if both().any(|(input, progress)| input.is_bootstrapping(progress)) {
            return self.inputs.iter().map(|input| input.bootstrap_until.is_none()).collect();
        }
        let highest = |of: fn(&Progress) -> bool| {
            both().filter(|(_, progress)| of(progress)).map(|(input, _)| input.priority).max()
        };
        let (in_hand, may_come) = (highest(Progress::is_in_hand), highest(Progress::may_come));
        let of = self.inputs.iter().zip(&mut self.waiting_since).zip(&mut self.turn_until);
        of.map(|((input, waiting_since), turn_until)| {
            if in_hand.is_some_and(|highest| input.priority < highest) {
                return true;
            }
            if may_come.is_none_or(|highest| input.priority >= highest) {
                *waiting_since = None;
                return false;
            }
            let since = *waiting_since.get_or_insert(now);
            if now.since(since) >= PATIENCE_MS {
                (*waiting_since, *turn_until) = (None, now.plus(TURN_MS));
            }
            now >= *turn_until
        })
        .collect()
    }
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
    fn at(position: u64, more: More) -> Progress {
        Progress { position, more, ended: false }
    }
    fn waits(inputs: &[Input], progress: &[Progress]) -> Vec<bool> {
        Chooser::new(inputs.to_vec()).waits(Timestamp::default(), progress)
    }

    const JUST_NOW: More = More::Expected { quiet_ms: 0 };

    #[test]
    fn nothing_is_read_before_every_bootstrap_stream_is_at_its_end() {
        let inputs = [bootstrap(10), bootstrap(5), priority(9)];
        let all = [at(9, JUST_NOW), at(5, More::Nothing), at(0, JUST_NOW)];
        assert_eq!(waits(&inputs, &all), [false, false, true]);
        assert_eq!(waits(&inputs[..2], &[at(0, JUST_NOW), at(0, JUST_NOW)]), [false, false]);
        // Once there, a bootstrap stream is one of many, and what came later holds up nobody of its priority.
        let two = [bootstrap(10), priority(0)];
        assert_eq!(waits(&two, &[at(10, JUST_NOW), at(0, JUST_NOW)]), [false, false]);
        let ended = Progress { ended: true, ..at(3, More::Nothing) };
        assert_eq!(waits(&two, &[ended, at(0, JUST_NOW)]), [false, false]);
    }

    #[test]
    fn lower_priorities_wait_while_a_higher_one_has_messages() {
        let inputs = [priority(2), priority(1), priority(0)];
        let more = |of: [More; 3]| of.map(|more| at(0, more));
        for has in [JUST_NOW, More::InHand, More::Unknown] {
            assert_eq!(waits(&inputs, &more([has; 3])), [false, true, true]);
            assert_eq!(waits(&inputs, &more([More::Nothing, has, has])), [false, false, true]);
        }
        assert_eq!(waits(&inputs, &more([More::Nothing; 3])), [false, false, false]);
    }

    #[test]
    fn behind_an_open_transaction_nothing_is_waited_for() {
        let inputs = [priority(1), priority(0)];
        let quiet = More::Expected { quiet_ms: FETCH_MS };
        assert_eq!(waits(&inputs, &[at(0, quiet), at(0, JUST_NOW)]), [false, false]);
        assert_eq!(waits(&inputs, &[at(0, More::Nothing), at(0, JUST_NOW)]), [false, false]);
    }

    #[test]
    fn a_lower_priority_has_a_turn_now_and_then_also_if_something_comes_of_a_higher_one_all_the_time() {
        let mut chooser = Chooser::new(vec![priority(1), priority(0)]);
        let mut read = 0;
        for ms in 0..10_000 {
            let waits = chooser.waits(Timestamp(ms), &[at(0, JUST_NOW), at(0, JUST_NOW)]);
            assert!(!waits[0]);
            read += u64::from(!waits[1]);
            // What is in hand goes first even then.
            let waits = chooser.waits(Timestamp(ms), &[at(0, More::InHand), at(0, JUST_NOW)]);
            assert_eq!(waits, [false, true]);
        }
        assert!((TURN_MS * 8..TURN_MS * 11).contains(&read), "{read}");
    }

    #[test]
    fn equal_inputs_need_no_choosing() {
        let matters = |inputs: &[Input]| Chooser::new(inputs.to_vec()).matters();
        assert!(!matters(&[priority(3), priority(3)]) && !matters(&[]));
        assert!(matters(&[priority(3), priority(2)]) && matters(&[bootstrap(0)]));
    }

    fn more() -> impl Strategy<Value = More> {
        prop_oneof![
            Just(More::Unknown),
            Just(More::InHand),
            (0..40u64).prop_map(|quiet_ms| More::Expected { quiet_ms }),
            Just(More::Nothing),
        ]
    }

    proptest! {
        #[test]
        fn some_input_that_has_messages_may_always_be_read(
            of in proptest::collection::vec((0..3i32, proptest::option::of(0..5u64), 0..5u64, more(), any::<bool>()), 1..6),
        ) {
            let inputs: Vec<Input> =
                of.iter().map(|(priority, until, ..)| Input { priority: *priority, bootstrap_until: *until }).collect();
            // A bootstrap stream has all that lies before its end at the start.
            let progress: Vec<Progress> = of
                .iter()
                .map(|(_, until, position, more, ended)| Progress {
                    position: *position,
                    more: if until.unwrap_or(0) > *position { More::InHand } else { *more },
                    ended: *ended,
                })
                .collect();
            let has_more = |p: &Progress| p.may_come() || !p.ended && p.more != More::Nothing;
            if progress.iter().any(has_more) {
                let waits = waits(&inputs, &progress);
                prop_assert!(progress.iter().zip(&waits).any(|(p, waits)| has_more(p) && !waits), "{:?}", waits);
            }
        }
    }
}
