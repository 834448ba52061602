//! What an error code of librdkafka or of a broker means to who asked. Every code there is stands in one of the tables,
//! so that a new version of librdkafka is looked at.

use rdkafka_sys::bindings::rd_kafka_resp_err_t as Code;
use task_api::system::SystemError;

use super::code_text;

/// A newer owner has the transactional id.
const FENCED: &[Code] = &[
    Code::RD_KAFKA_RESP_ERR__FENCED,
    Code::RD_KAFKA_RESP_ERR_PRODUCER_FENCED,
    Code::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH,
];

/// Passes: a broker or a network is away, a leader or a coordinator moves, a topic is being made, a quota is used up.
const RETRIABLE: &[Code] = &[
    Code::RD_KAFKA_RESP_ERR__FAIL,
    Code::RD_KAFKA_RESP_ERR__TRANSPORT,
    Code::RD_KAFKA_RESP_ERR__RESOLVE,
    Code::RD_KAFKA_RESP_ERR__MSG_TIMED_OUT,
    Code::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN,
    Code::RD_KAFKA_RESP_ERR__TIMED_OUT,
    Code::RD_KAFKA_RESP_ERR__QUEUE_FULL,
    Code::RD_KAFKA_RESP_ERR__ISR_INSUFF,
    Code::RD_KAFKA_RESP_ERR__NODE_UPDATE,
    Code::RD_KAFKA_RESP_ERR__WAIT_COORD,
    Code::RD_KAFKA_RESP_ERR__IN_PROGRESS,
    Code::RD_KAFKA_RESP_ERR__PREV_IN_PROGRESS,
    Code::RD_KAFKA_RESP_ERR__OUTDATED,
    Code::RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE,
    Code::RD_KAFKA_RESP_ERR__WAIT_CACHE,
    Code::RD_KAFKA_RESP_ERR__INTR,
    // A broker that knows of no broker, not even of itself, because the controller has lost sight of all.
    Code::RD_KAFKA_RESP_ERR__PARTIAL,
    // So librdkafka says that it found no leaders of partitions yet.
    Code::RD_KAFKA_RESP_ERR__NOENT,
    Code::RD_KAFKA_RESP_ERR__RETRY,
    Code::RD_KAFKA_RESP_ERR__UNKNOWN_BROKER,
    Code::RD_KAFKA_RESP_ERR__DESTROY_BROKER,
    // A broker met something that it had not thought of.
    Code::RD_KAFKA_RESP_ERR_UNKNOWN,
    // A broker may not have heard yet of a topic that was just created, or of its new leader.
    Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
    Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_ID,
    Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
    Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
    Code::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
    Code::RD_KAFKA_RESP_ERR_BROKER_NOT_AVAILABLE,
    Code::RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE,
    Code::RD_KAFKA_RESP_ERR_STALE_CTRL_EPOCH,
    Code::RD_KAFKA_RESP_ERR_NETWORK_EXCEPTION,
    Code::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
    Code::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
    Code::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
    Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
    Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    Code::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
    // Brokers are down: with them the topic could have its copies.
    Code::RD_KAFKA_RESP_ERR_INVALID_REPLICATION_FACTOR,
    Code::RD_KAFKA_RESP_ERR_NOT_CONTROLLER,
    Code::RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS,
    Code::RD_KAFKA_RESP_ERR_TRANSACTION_COORDINATOR_FENCED,
    Code::RD_KAFKA_RESP_ERR_OPERATION_NOT_ATTEMPTED,
    Code::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
    Code::RD_KAFKA_RESP_ERR_LOG_DIR_NOT_FOUND,
    Code::RD_KAFKA_RESP_ERR_REASSIGNMENT_IN_PROGRESS,
    Code::RD_KAFKA_RESP_ERR_FETCH_SESSION_ID_NOT_FOUND,
    Code::RD_KAFKA_RESP_ERR_INVALID_FETCH_SESSION_EPOCH,
    Code::RD_KAFKA_RESP_ERR_LISTENER_NOT_FOUND,
    Code::RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH,
    Code::RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH,
    Code::RD_KAFKA_RESP_ERR_STALE_BROKER_EPOCH,
    Code::RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE,
    Code::RD_KAFKA_RESP_ERR_PREFERRED_LEADER_NOT_AVAILABLE,
    Code::RD_KAFKA_RESP_ERR_ELIGIBLE_LEADERS_NOT_AVAILABLE,
    Code::RD_KAFKA_RESP_ERR_UNSTABLE_OFFSET_COMMIT,
    Code::RD_KAFKA_RESP_ERR_THROTTLING_QUOTA_EXCEEDED,
    Code::RD_KAFKA_RESP_ERR_REBOOTSTRAP_REQUIRED,
];

/// What `code` means; `text` says more, if it is not empty.
pub(super) fn classify(code: Code, text: &str) -> SystemError {
    let text = if text.is_empty() { code_text(code) } else { text.to_owned() };
    let text = match code {
        Code::RD_KAFKA_RESP_ERR_INVALID_TRANSACTION_TIMEOUT => format!(
            "{text}; give `transaction.timeout.ms` in the system's `producer`, no more than the brokers' \
             `transaction.max.timeout.ms`"
        ),
        Code::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING => format!(
            "{text}: nothing was written for so long (`transactional.id.expiration.ms`, 7 days) that the brokers forgot \
             the producer; nothing is lost, and a new start registers it again"
        ),
        _ => text,
    };
    if FENCED.contains(&code) {
        SystemError::Fenced(text)
    } else if RETRIABLE.contains(&code) {
        SystemError::Retriable(text)
    } else {
        SystemError::Fatal(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By number: these do not pass by themselves, or mean nothing to a job.
    const FATAL: &[i32] = &[
        -200, -199, -198, -197, -194, -191, -190, -189, -188, -186, -181, -179, -176, -175, -174, -173, -172,
        -171, -170, -169, -168, -165, -162, -161, -160, -159, -157, -155, -154, -152, -151, -150, -149, -148,
        -147, -145, -143, -142, -141, -140, -139, -138, -100, 0, 1, 2, 4, 10, 12, 17, 18, 21, 22, 23, 24, 25,
        26, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 39, 40, 42, 43, 44, 45, 46, 48, 49, 50, 53, 54, 58, 59,
        61, 62, 63, 64, 65, 66, 67, 68, 69, 73, 76, 79, 81, 82, 84, 85, 86, 87, 91, 92, 93, 94, 95, 96, 97,
        110, 111, 112, 113, 117, 118, 130,
    ];

    #[test]
    fn every_code_of_librdkafka_has_been_looked_at() {
        let mut known = 0;
        for number in -1_000..1_000 {
            let Ok(code) = Code::try_from(number) else { continue };
            known += 1;
            let places = [FENCED.contains(&code), RETRIABLE.contains(&code), FATAL.contains(&number)];
            let count = places.into_iter().filter(|is_there| *is_there).count();
            assert_eq!(count, 1, "{code:?} = {number} stands in {count} of the tables");
        }
        assert_eq!(known, FENCED.len() + RETRIABLE.len() + FATAL.len(), "a table has a code twice");
    }

    #[test]
    fn what_passes_when_a_leader_moves_or_a_broker_is_away_is_retriable() {
        for code in [
            Code::RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE,
            Code::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
            Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
            Code::RD_KAFKA_RESP_ERR_INVALID_REPLICATION_FACTOR,
            Code::RD_KAFKA_RESP_ERR_THROTTLING_QUOTA_EXCEEDED,
            Code::RD_KAFKA_RESP_ERR_UNKNOWN,
        ] {
            let found = classify(code, "");
            assert!(matches!(&found, SystemError::Retriable(why) if !why.is_empty()), "{code:?}: {found:?}");
        }
        let fenced = classify(Code::RD_KAFKA_RESP_ERR_PRODUCER_FENCED, "by another");
        assert_eq!(fenced, SystemError::Fenced("by another".into()));
        let refused = classify(Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, "");
        assert!(matches!(refused, SystemError::Fatal(_)), "a right does not come by itself: {refused:?}");
    }
}
