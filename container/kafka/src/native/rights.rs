//! Rights that brokers refuse: which one it is, of whom, on what, and the command that grants it.

use rdkafka_sys::bindings::rd_kafka_resp_err_t as Code;
use task_api::system::SystemError;

/// What was tried: the operation, and the resource's kind and name, in the words of `kafka-acls.sh`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tried<'a> {
    pub(crate) operation: &'static str,
    pub(crate) resource: &'static str,
    pub(crate) name: &'a str,
}

impl<'a> Tried<'a> {
    /// An operation on a topic.
    pub(crate) fn topic(operation: &'static str, name: &'a str) -> Tried<'a> {
        Tried { operation, resource: "topic", name }
    }
}

/// Whether the broker says that a right is missing.
pub(crate) fn is_denied(code: Code) -> bool {
    matches!(
        code,
        Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED
            | Code::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED
            | Code::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED
            | Code::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED
    )
}

/// Who is known to the brokers, and where they are.
#[derive(Debug, Default)]
pub(crate) struct Who {
    /// Its name, if it is known here: of a certificate only brokers know which.
    user: Option<String>,
    bootstrap: String,
    /// Of a producer of transactions.
    pub(crate) transactional_id: Option<String>,
}

impl Who {
    pub(crate) fn of(settings: &[(&str, &str)]) -> Who {
        let last = |name: &str| {
            let found = settings.iter().rev().find(|(key, _)| types::is_same_setting(key, name));
            found.map(|(_, value)| (*value).to_owned())
        };
        Who {
            user: last("sasl.username"),
            bootstrap: last("bootstrap.servers").unwrap_or_default(),
            transactional_id: last("transactional.id"),
        }
    }

    /// That `tried` is not allowed.
    pub(crate) fn denied(&self, tried: Tried<'_>) -> SystemError {
        let Tried { operation, resource, name } = tried;
        let user = self.user.as_deref().unwrap_or("<the job's user>");
        let on = if resource == "cluster" { "--cluster".to_owned() } else { format!("--{resource} {name}") };
        SystemError::Fatal(format!(
            "User:{user} has no right to {operation} on {resource} {name}; whoever may give it runs: kafka-acls.sh \
             --bootstrap-server {} --add --allow-principal User:{user} --operation {operation} {on} \
             (docs/kafka-rights.md lists all)",
            self.bootstrap
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_is_told_with_the_command_that_grants_it() {
        let who = Who::of(&[("metadata.broker.list", "b:9092"), ("sasl.username", "job")]);
        let told = who.denied(Tried::topic("Write", "out")).to_string();
        assert!(told.contains("User:job has no right to Write on topic out;"), "{told}");
        let command = "kafka-acls.sh --bootstrap-server b:9092 --add --allow-principal User:job --operation Write --topic out";
        assert!(told.contains(command), "{told}");
    }
}
