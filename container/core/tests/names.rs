//! Transactional ids name one job each: whoever registers one fences its former owner.

use proptest::prelude::*;
use task_api::system::{SystemError, TopicPartition};
use task_core::names::{belongs_to_another, job_of_owner};
use task_core::ownership::{Answer, Claim, OwnerRecord, Partitions, Purpose, Step};
use task_core::record::Record;
use types::{Epoch, Incarnation, JobId};

fn job() -> impl Strategy<Value = JobId> {
    // Ids have no `-`; both may look like the parts of a transactional id.
    let name = prop_oneof!["[a1][a1._-]{0,4}", Just("a-1-0".to_owned()), Just("a-1-am".to_owned())];
    let id = prop_oneof!["[a01][a1._]{0,2}", Just("am".to_owned()), Just("stop".to_owned())];
    (name, id).prop_map(|(name, id)| JobId { name, id })
}

fn ids(job: &JobId, slot: u32, thread: u32, incarnation: Incarnation) -> [String; 4] {
    [
        OwnerRecord::of_thread(job, slot, thread, incarnation).id,
        OwnerRecord::of_app_master(job, incarnation).id,
        OwnerRecord::of_stop(job, incarnation).id,
        OwnerRecord::of_user(job, incarnation, incarnation.epoch.0).id,
    ]
}

proptest! {
    #[test]
    fn two_jobs_never_have_one_transactional_id(
        (left, right) in (job(), job()),
        numbers in prop::collection::vec(0u32..3, 8),
    ) {
        let incarnation = |epoch: u32, seq: u32| Incarnation { epoch: Epoch(epoch.into()), seq: seq.into() };
        let ours = ids(&left, numbers[0], numbers[1], incarnation(numbers[2], numbers[3]));
        let theirs = ids(&right, numbers[4], numbers[5], incarnation(numbers[6], numbers[7]));
        for id in &ours {
            prop_assert!(job_of_owner(id).is_some_and(|job| job == left.to_string()), "{id}");
        }
        if left != right {
            prop_assert!(ours.iter().all(|id| !theirs.contains(id)), "{:?} and {:?}", ours, theirs);
        }
    }
}

#[test]
fn an_id_of_nobody_is_no_jobs() {
    for id in ["", "me", "a-1", "a-1-0-0-x-7", "a-1-am-5-", "a-1-boss-5-7", "5-7"] {
        assert_eq!(job_of_owner(id), None, "{id}");
    }
}

#[test]
fn a_claim_on_the_topic_of_another_job_ends_before_anything_is_written_or_fenced() {
    let incarnation = |seq| Incarnation { epoch: Epoch(7), seq };
    let job = |name: &str| JobId { name: name.into(), id: "1".into() };
    let owners = TopicPartition { topic: "__samza_checkpoint_ver_1_for_a-b_1".into(), partition: 0 };
    for theirs in [incarnation(1), incarnation(9)] {
        let me = OwnerRecord::of_thread(&job("a-b"), 0, 0, incarnation(5));
        let mut claim =
            Claim::new(me, Purpose::Run, vec![Partitions { owners: owners.clone(), follow: Vec::new() }]);
        claim.answer(&Step::Init, Answer::Done);
        let other = OwnerRecord::of_thread(&job("a_b"), 0, 0, theirs);
        let records = vec![Record::Owner(other.clone())];
        claim.answer(&Step::ReadOwners { at: 0, from: 0 }, Answer::Owners { records, until: 1 });
        assert_eq!((claim.foreign(), claim.rival(), claim.steps()), (Some(&other), None, &[][..]));
        let SystemError::Fatal(why) = belongs_to_another(&owners.topic, &other.id) else {
            panic!("it is for good")
        };
        assert!(why.contains("belongs to job `a_b-1`"), "{why}");
    }
}
