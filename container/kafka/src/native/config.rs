//! What topics and brokers are configured to do, and how large the cluster is.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_int;
use std::time::Duration;

use rdkafka_sys::bindings as rd;
use rdkafka_sys::bindings::rd_kafka_ConfigSource_t as Source;
use rdkafka_sys::bindings::rd_kafka_ResourceType_t as Kind;
use rdkafka_sys::bindings::rd_kafka_admin_op_t as Op;
use rdkafka_sys::bindings::rd_kafka_resp_err_t as Code;
use task_api::system::{ConfigEntry, ConfigSource, Configs, SystemError};

use super::admin::slice;
use super::rights::Tried;
use super::{Client, c_text, rust_text};

/// The resource of a question or an order, in C.
struct Resource(*mut rd::rd_kafka_ConfigResource_t);

impl Drop for Resource {
    fn drop(&mut self) {
        // SAFETY: ours.
        unsafe { rd::rd_kafka_ConfigResource_destroy(self.0) }
    }
}

impl Resource {
    fn new(kind: Kind, name: &str) -> Result<Resource, SystemError> {
        let text = c_text(name)?;
        // SAFETY: the name is copied.
        let resource = unsafe { rd::rd_kafka_ConfigResource_new(kind, text.as_ptr()) };
        if resource.is_null() {
            Err(SystemError::Fatal(format!("{name:?} is no name")))
        } else {
            Ok(Resource(resource))
        }
    }

    fn set(&self, key: &str, value: &str) -> Result<(), SystemError> {
        let (name, text) = (c_text(key)?, c_text(value)?);
        let set = rd::rd_kafka_AlterConfigOpType_t::RD_KAFKA_ALTER_CONFIG_OP_TYPE_SET;
        // SAFETY: name and value are copied; the error is ours.
        unsafe {
            let refused =
                rd::rd_kafka_ConfigResource_add_incremental_config(self.0, name.as_ptr(), set, text.as_ptr());
            if refused.is_null() {
                return Ok(());
            }
            let why = rust_text(rd::rd_kafka_error_string(refused));
            rd::rd_kafka_error_destroy(refused);
            Err(SystemError::Fatal(format!("{key}={value}: {why}")))
        }
    }
}

impl Client {
    /// The configurations of the topics that exist among `topics`.
    pub(crate) fn describe_configs(
        &self,
        topics: &[String],
        timeout: Duration,
    ) -> Result<BTreeMap<String, Configs>, SystemError> {
        self.configs(Kind::RD_KAFKA_RESOURCE_TOPIC, topics, timeout)
    }

    fn configs(
        &self,
        kind: Kind,
        names: &[String],
        timeout: Duration,
    ) -> Result<BTreeMap<String, Configs>, SystemError> {
        let resources = names.iter().map(|name| Resource::new(kind, name)).collect::<Result<Vec<_>, _>>()?;
        let mut pointers: Vec<_> = resources.iter().map(|resource| resource.0).collect();
        let answer = self.ask(Op::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS, None, timeout, |options, queue| {
            // SAFETY: all are alive during the call; librdkafka copies them.
            unsafe {
                rd::rd_kafka_DescribeConfigs(self.rk, pointers.as_mut_ptr(), pointers.len(), options, queue);
            }
        })?;
        let mut found = BTreeMap::new();
        // SAFETY: what the event lends lives until `answer` is dropped.
        unsafe {
            let result = rd::rd_kafka_event_DescribeConfigs_result(answer.0);
            let mut n = 0;
            for resource in slice(rd::rd_kafka_DescribeConfigs_result_resources(result, &raw mut n), n) {
                let name = rust_text(rd::rd_kafka_ConfigResource_name(*resource));
                match rd::rd_kafka_ConfigResource_error(*resource) {
                    Code::RD_KAFKA_RESP_ERR_NO_ERROR => drop(found.insert(name, entries(*resource))),
                    Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                    | Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC => {}
                    code => {
                        let why = rust_text(rd::rd_kafka_ConfigResource_error_string(*resource));
                        let told = format!("the configuration of topic {name} cannot be read: {why}");
                        return Err(self.error_of(code, &told, Tried::topic("DescribeConfigs", &name)));
                    }
                }
            }
        }
        Ok(found)
    }

    /// Sets these settings of a topic and leaves its others as they are.
    pub(crate) fn alter_configs(
        &self,
        topic: &str,
        set: &BTreeMap<String, String>,
        timeout: Duration,
    ) -> Result<(), SystemError> {
        let resource = Resource::new(Kind::RD_KAFKA_RESOURCE_TOPIC, topic)?;
        set.iter().try_for_each(|(key, value)| resource.set(key, value))?;
        let mut pointers = [resource.0];
        let op = Op::RD_KAFKA_ADMIN_OP_INCREMENTALALTERCONFIGS;
        let answer = self.ask(op, None, timeout, |options, queue| {
            // SAFETY: all are alive during the call; librdkafka copies them.
            unsafe {
                rd::rd_kafka_IncrementalAlterConfigs(self.rk, pointers.as_mut_ptr(), 1, options, queue);
            }
        })?;
        // SAFETY: what the event lends lives until `answer` is dropped.
        unsafe {
            let result = rd::rd_kafka_event_IncrementalAlterConfigs_result(answer.0);
            let mut n = 0;
            for resource in
                slice(rd::rd_kafka_IncrementalAlterConfigs_result_resources(result, &raw mut n), n)
            {
                let code = rd::rd_kafka_ConfigResource_error(*resource);
                if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                    let why = rust_text(rd::rd_kafka_ConfigResource_error_string(*resource));
                    let told = format!("the configuration of topic {topic} cannot be changed: {why}");
                    return Err(self.error_of(code, &told, Tried::topic("AlterConfigs", topic)));
                }
            }
        }
        Ok(())
    }

    /// The ids of all brokers that answer, or that any topic that this client may see has a replica on: those that
    /// are down now are not told otherwise.
    pub(crate) fn brokers_named(&self, timeout: Duration) -> Result<BTreeSet<i32>, SystemError> {
        let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        let mut answer: *const rd::rd_kafka_metadata = std::ptr::null();
        // SAFETY: the answer is ours and destroyed here; what it points to lives as long as it, and counts are
        // those of its arrays.
        unsafe {
            let code = rd::rd_kafka_metadata(self.rk, 1, std::ptr::null_mut(), &raw mut answer, timeout_ms);
            if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(self.error(code, ""));
            }
            let counted = |n: c_int| usize::try_from(n).unwrap_or(0);
            let all = &*answer;
            let mut ids: BTreeSet<i32> =
                slice(all.brokers, counted(all.broker_cnt)).iter().map(|broker| broker.id).collect();
            for topic in slice(all.topics, counted(all.topic_cnt)) {
                for partition in slice(topic.partitions, counted(topic.partition_cnt)) {
                    ids.extend(slice(partition.replicas, counted(partition.replica_cnt)));
                }
            }
            rd::rd_kafka_metadata_destroy(answer);
            Ok(ids)
        }
    }

    /// Broker `id`'s own settings.
    pub(crate) fn broker_configs(&self, id: i32, timeout: Duration) -> Result<Configs, SystemError> {
        let found = self.configs(Kind::RD_KAFKA_RESOURCE_BROKER, &[id.to_string()], timeout)?;
        Ok(found.into_values().next().unwrap_or_default())
    }
}

/// # Safety
/// `resource` is alive.
unsafe fn entries(resource: *const rd::rd_kafka_ConfigResource_t) -> Configs {
    // SAFETY: what the resource lends lives as long as it.
    unsafe {
        let mut n = 0;
        let entries = slice(rd::rd_kafka_ConfigResource_configs(resource, &raw mut n), n);
        let entry = |entry: &*const rd::rd_kafka_ConfigEntry_t| {
            let source = match rd::rd_kafka_ConfigEntry_source(*entry) {
                Source::RD_KAFKA_CONFIG_SOURCE_DYNAMIC_TOPIC_CONFIG => ConfigSource::Topic,
                Source::RD_KAFKA_CONFIG_SOURCE_DEFAULT_CONFIG => ConfigSource::Default,
                _ => ConfigSource::Broker,
            };
            let value = rust_text(rd::rd_kafka_ConfigEntry_value(*entry));
            (rust_text(rd::rd_kafka_ConfigEntry_name(*entry)), ConfigEntry { value, source })
        };
        entries.iter().map(entry).collect()
    }
}
