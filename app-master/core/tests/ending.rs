//! How jobs end: by a user, by themselves, and what happens when something fails on the way.

mod stage;

use am_core::Command;
use stage::*;
use types::*;

fn fresh() -> Incarnation {
    Incarnation { epoch: Epoch(7), seq: 500 }
}

fn nonce(out: &[Command]) -> u64 {
    out.iter()
        .find_map(|c| if let Command::Mint { nonce } = c { Some(*nonce) } else { None })
        .expect("a mint")
}

#[test]
fn a_stopped_job_commits_is_fenced_and_finishes() {
    let (mut stage, launched) = running(spec(2));
    let out = stage.run(|c, now, out| c.stop(now, StopJob { kill: false }, out));
    assert_eq!(stops(&out), [(launched[0].1, 30_000), (launched[1].1, 30_000)]);
    let out = stage.exit(launched[0].0.request, launched[0].1, "n0", ExitCause::KilledByUser);
    assert!(!out.iter().any(|c| matches!(c, Command::Mint { .. })), "one still lives");
    let out = stage.exit(launched[1].0.request, launched[1].1, "n1", ExitCause::Success);
    assert_eq!(acks(&out), [launched[1].1]);
    let n = nonce(&out);
    let out = stage.run(|c, now, out| c.minted(now, n, fresh(), out));
    assert_eq!(out, [Command::Fence { incarnation: fresh(), partitions: vec![0, 1] }]);
    let out = stage.run(|c, now, out| c.tasks_fenced(now, Ok(()), out));
    assert_eq!(finish(&out), Some(JobOutcome::Finished));
    assert_eq!(finish(&stage.welcome(Vec::new())), Some(JobOutcome::Finished), "said until it is known");
}

#[test]
fn a_killed_job_gives_no_grace_even_if_it_was_stopping() {
    let (mut stage, launched) = running(spec(1));
    stage.run(|c, now, out| c.stop(now, StopJob { kill: false }, out));
    let out = stage.run(|c, now, out| c.stop(now, StopJob { kill: true }, out));
    assert_eq!(stops(&out), [(launched[0].1, 0)]);
    let out = stage.exit(launched[0].0.request, launched[0].1, "n0", ExitCause::KilledByUser);
    let n = nonce(&out);
    stage.run(|c, now, out| c.minted(now, n, fresh(), out));
    let out = stage.run(|c, now, out| c.tasks_fenced(now, Ok(()), out));
    assert_eq!(finish(&out), Some(JobOutcome::Killed));
}

#[test]
fn a_container_that_is_placed_while_the_job_stops_is_stopped_too() {
    let mut stage = Stage::of(spec(1), 1);
    let ask = asks(&stage.begin(facts(&[1]), Vec::new()))[0].clone();
    let out = stage.run(|c, now, out| c.stop(now, StopJob { kill: false }, out));
    assert!(out.contains(&Command::CancelAsk(ask.request)));
    let out = stage.report(placed(ask.request, id(1), "n0", ContainerState::Allocated));
    assert_eq!(stops(&out), [(id(1), 30_000)]);
}

#[test]
fn a_job_whose_containers_all_end_well_finishes_and_only_then_acknowledges() {
    let (mut stage, launched) = running(spec(2));
    let out = stage.exit(launched[0].0.request, launched[0].1, "n0", ExitCause::Success);
    assert_eq!((acks(&out), asks(&out)), (vec![], vec![]), "a later attempt must see that it is done");
    let out = stage.exit(launched[1].0.request, launched[1].1, "n1", ExitCause::Success);
    assert_eq!(acks(&out), []);
    let n = nonce(&out);
    stage.run(|c, now, out| c.minted(now, n, fresh(), out));
    let out = stage.run(|c, now, out| c.tasks_fenced(now, Ok(()), out));
    assert_eq!(finish(&out), Some(JobOutcome::Finished));
    assert_eq!(acks(&out), [launched[0].1, launched[1].1]);
}

#[test]
fn a_slot_that_was_done_stays_done_for_the_next_attempt() {
    let mut stage = Stage::of(spec(2), 2);
    let of = |slot| RequestId { attempt: 1, slot, try_no: 1 };
    let out = stage.begin(
        facts(&[1, 2]),
        vec![
            placed(of(0), id(1), "n0", exit(ExitCause::Success)),
            placed(of(1), id(2), "n1", ContainerState::Running),
        ],
    );
    assert_eq!((asks(&out), acks(&out)), (vec![], vec![]));
}

#[test]
fn fencing_is_tried_again_and_left_at_last() {
    let (mut stage, launched) = running(spec(1));
    stage.run(|c, now, out| c.stop(now, StopJob { kill: false }, out));
    let out = stage.exit(launched[0].0.request, launched[0].1, "n0", ExitCause::KilledByUser);
    let n = nonce(&out);
    stage.run(|c, now, out| c.minted(now, n, fresh(), out));
    let mut tries = 0;
    let outcome = loop {
        let out = stage.run(|c, now, out| c.tasks_fenced(now, Err("no broker answers".into()), out));
        if let Some(outcome) = finish(&out) {
            break outcome;
        }
        assert!(stage.core.job_status(stage.now).message.contains("no broker answers"));
        let out = stage.pass(1_000, &[]);
        assert!(out.iter().any(|c| matches!(c, Command::Fence { .. })), "{out:?}");
        tries += 1;
    };
    assert_eq!((outcome, tries), (JobOutcome::Finished, 30));
}

#[test]
fn a_mint_whose_answer_was_lost_is_asked_for_again() {
    let (mut stage, launched) = running(spec(1));
    stage.run(|c, now, out| c.stop(now, StopJob { kill: false }, out));
    let out = stage.exit(launched[0].0.request, launched[0].1, "n0", ExitCause::KilledByUser);
    let n = nonce(&out);
    stage.core.session_lost();
    assert_eq!(nonce(&stage.welcome(Vec::new())), n);
}

#[test]
fn a_job_that_cannot_be_fails_with_the_reason_after_the_welcome() {
    let mut stage = Stage::of(spec(5), 1);
    let out = stage.run(|c, now, out| c.facts_read(now, Ok(facts(&[1, 2])), out));
    assert_eq!(finish(&out), None, "what lives is not known yet");
    let out = stage.welcome(Vec::new());
    let Some(JobOutcome::Failed { reason }) = finish(&out) else { panic!("{out:?}") };
    assert!(reason.contains("5 containers for 2 tasks"), "{reason}");
}
