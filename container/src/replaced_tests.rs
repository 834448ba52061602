//! Containers that were replaced while they had nothing to do: nothing that they leave behind is used, and they notice.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use types::{Delivery, JobSpec};

use crate::board::{Board, Told};
use crate::clock::{Clock, SetTime};
use crate::container::run_threads;
use crate::end::End;
use crate::fake::{Broker, FakeSystem, Idle};
use crate::task_thread::Shared;
use crate::tests::{Count, assert_exact, broker, folder, job, live, model, shared};

/// Runs a container in `state` whose rows stay in its caches. When it has read and committed everything for the first
/// time, another one takes its tasks over elsewhere, processes `more` messages and ends; then `last` is done.
fn replaced(
    (broker, job, state): (&Broker, &JobSpec, PathBuf),
    more: usize,
    clock: Clock,
    last: impl Fn(&Board) + Send + Sync + 'static,
) -> Result<(), End> {
    let board = Arc::new(Board::default());
    let (once, elsewhere) = (AtomicBool::new(false), folder());
    let (there, rival, told) = (broker.clone(), job.clone(), Arc::clone(&board));
    let on_idle = move || {
        if !once.swap(true, Ordering::SeqCst) {
            for n in 0..more {
                there.append("in", n as i32 % 2, b"k1", Some(b"x"));
            }
            let new = live(&there, &rival, 6, elsewhere.path(), None);
            assert!(new.ended.is_ok(), "{:?}", new.ended);
            last(&told);
        }
        Idle::GoesOn
    };
    let system = FakeSystem::asking(broker, Box::new(on_idle));
    let first = Shared { flush_ms: 3_600_000, clock, ..shared(job, 5, &state, &system, &board) };
    run_threads(&first, &model(), &Count::default).map(drop)
}

#[test]
fn the_last_flush_of_a_container_that_was_replaced_while_idle_says_nothing_of_rows_it_has_not() {
    for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce] {
        let (broker, job, state) = (broker(30), job(delivery, true), folder());
        let ended = replaced((&broker, &job, state.path().to_owned()), 8, Clock::start(), |board| {
            board.stop(Told::Signal(15))
        });
        assert!(matches!(ended, Err(End::Fenced(_))), "{ended:?}");
        let back = live(&broker, &job, 7, state.path(), None);
        assert!(back.ended.is_ok(), "{:?}", back.ended);
        assert_exact(&broker, &job, state.path(), "back on the disk of the replaced one");
    }
}

#[test]
fn a_container_that_was_replaced_while_idle_notices_before_long() {
    let (broker, job, state) = (broker(30), job(Delivery::AtLeastOnce, true), folder());
    let time = SetTime::at(5_000);
    let clock = Clock::Set(Arc::clone(&time));
    let ended = replaced((&broker, &job, state.path().to_owned()), 0, clock, move |_| {
        time.advance(61_000);
    });
    assert!(matches!(ended, Err(End::Fenced(_))), "{ended:?}");
}
