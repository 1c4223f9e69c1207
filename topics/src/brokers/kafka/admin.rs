//! Topics are created from the catalogue, and checked against it where they exist.

use super::config::{CALL, KafkaOptions, MAX_RECORD, failed};
use super::link::Heard;
use crate::broker::BrokerError;
use crate::catalogue::{Cleanup, TopicSpec};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::time::Duration;

/// A topic as Kafka should have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// With the prefix.
    pub(super) name: String,
    pub(super) partitions: u32,
    /// Another number of partitions is as good, where the topic exists.
    pub(super) any_count: bool,
    /// Name and value of each setting.
    pub(super) settings: Vec<(&'static str, String)>,
}

impl Wanted {
    /// From the catalogue. The record's timestamp is when it was appended, so that retention counts
    /// from arrival however old the event is (R10).
    pub(super) fn of(spec: &TopicSpec, prefix: &str) -> Wanted {
        let retention = spec.retention.map_or_else(|| "-1".to_owned(), |age| age.as_millis().to_string());
        let cleanup = match spec.cleanup {
            // What was read is deleted by quikflow itself.
            Cleanup::Delete | Cleanup::Consumed => "delete",
            Cleanup::Compact => "compact",
        };
        Wanted::new(format!("{prefix}{}", spec.name), spec.partitions, cleanup, retention)
    }

    /// One of quikflow's own: compacted, one partition.
    pub(super) fn own(name: String) -> Wanted {
        Wanted::new(name, 1, "compact", "-1".to_owned())
    }

    /// One of quikflow's own with a partition a share of the work.
    pub(super) fn shared(name: String, shares: u32) -> Wanted {
        Wanted { any_count: true, ..Wanted::new(name, shares.max(1), "compact", "-1".to_owned()) }
    }

    fn new(name: String, partitions: u32, cleanup: &str, retention: String) -> Wanted {
        let settings = vec![
            ("cleanup.policy", cleanup.to_owned()),
            ("retention.ms", retention),
            ("message.timestamp.type", "LogAppendTime".to_owned()),
            ("max.message.bytes", MAX_RECORD.to_string()),
        ];
        Wanted { name, partitions, any_count: false, settings }
    }
}

/// The administrator's connection, with threads of its own for the calls that are futures.
pub(super) struct Admin {
    client: AdminClient<Heard>,
    runtime: tokio::runtime::Runtime,
    brokers: String,
}

impl Admin {
    pub(super) fn new(options: &KafkaOptions) -> Result<Admin, BrokerError> {
        let client = options.client().create_with_context(options.heard()).map_err(|e| failed("the settings", &e))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| BrokerError::Storage(format!("kafka: no thread: {e}")))?;
        Ok(Admin { client, runtime, brokers: options.brokers.clone() })
    }

    /// Runs a call to its end, on a thread that may block.
    fn call<T: Send>(&self, future: impl Future<Output = T> + Send) -> Result<T, BrokerError> {
        let runtime = &self.runtime;
        std::thread::scope(|scope| scope.spawn(|| runtime.block_on(future)).join())
            .map_err(|_| BrokerError::Storage("kafka: the administrator's thread ended by a panic".to_owned()))
    }

    /// Creates what is missing, then checks what is there.
    pub(super) fn ensure(&self, wanted: &[Wanted]) -> Result<(), BrokerError> {
        let there = self.partitions()?;
        let missing: Vec<&Wanted> = wanted.iter().filter(|w| !there.contains_key(&w.name)).collect();
        let new: Vec<NewTopic<'_>> = missing
            .iter()
            .map(|w| {
                let topic = NewTopic::new(&w.name, i32::try_from(w.partitions).unwrap_or(i32::MAX), TopicReplication::Fixed(-1));
                w.settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value))
            })
            .collect();
        let options = AdminOptions::new().request_timeout(Some(CALL)).operation_timeout(Some(CALL));
        if !new.is_empty() {
            let made = self.call(self.client.create_topics(&new, &options))?.map_err(|e| failed("creating topics", &e))?;
            for result in made {
                match result {
                    // Another process may have made it in the meantime; what it is, is checked below.
                    Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                    Err((name, code)) => {
                        let error = rdkafka::error::KafkaError::AdminOp(code);
                        return Err(failed(&format!("creating topic `{name}`"), &error));
                    }
                }
            }
        }
        let there = self.visible(wanted)?;
        for w in wanted {
            let count = there.get(&w.name).copied().unwrap_or(0);
            if count != w.partitions && !w.any_count {
                return Err(BrokerError::Storage(format!(
                    "kafka: topic `{}` has {count} partitions and {} are declared; declare {count}, or make the topic anew",
                    w.name, w.partitions
                )));
            }
        }
        let checked: Vec<&Wanted> = wanted.iter().collect();
        self.check_settings(&checked)
    }

    /// The topics' partitions, when all of `wanted` can be seen: a new one takes a moment.
    fn visible(&self, wanted: &[Wanted]) -> Result<BTreeMap<String, u32>, BrokerError> {
        for _ in 0..200 {
            let there = self.partitions()?;
            if wanted.iter().all(|w| there.contains_key(&w.name)) {
                return Ok(there);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let what = "kafka: a topic that was made is not there after 10 s; may the user describe topics?";
        Err(BrokerError::Storage(what.to_owned()))
    }

    fn check_settings(&self, topics: &[&Wanted]) -> Result<(), BrokerError> {
        if topics.is_empty() {
            return Ok(());
        }
        let asked: Vec<ResourceSpecifier<'_>> = topics.iter().map(|w| ResourceSpecifier::Topic(&w.name)).collect();
        let options = AdminOptions::new().request_timeout(Some(CALL));
        let found =
            self.call(self.client.describe_configs(&asked, &options))?.map_err(|e| failed("reading topics' settings", &e))?;
        for (w, resource) in topics.iter().zip(found) {
            let resource = resource.map_err(|code| {
                failed(&format!("reading the settings of topic `{}`", w.name), &rdkafka::error::KafkaError::AdminOp(code))
            })?;
            for (name, value) in &w.settings {
                let is = resource.get(name).and_then(|entry| entry.value.as_deref()).unwrap_or("");
                let enough = *name == "max.message.bytes" && is.parse::<usize>().is_ok_and(|bytes| bytes >= MAX_RECORD);
                if is != value && !enough {
                    return Err(BrokerError::Storage(format!(
                        "kafka: topic `{}` has {name}={is} and {value} is declared; change one of them (kafka-configs --alter)",
                        w.name
                    )));
                }
            }
        }
        Ok(())
    }

    /// All topics that can be seen, with their number of partitions.
    pub(super) fn partitions(&self) -> Result<BTreeMap<String, u32>, BrokerError> {
        let metadata =
            self.client.inner().fetch_metadata(None, CALL).map_err(|e| failed(&format!("asking {}", self.brokers), &e))?;
        let count =
            |t: &rdkafka::metadata::MetadataTopic| (t.name().to_owned(), u32::try_from(t.partitions().len()).unwrap_or(0));
        Ok(metadata.topics().iter().map(count).collect())
    }

    /// Deletes the records of a topic's partitions that come before these offsets.
    pub(super) fn delete_records(&self, topic: &str, before: impl IntoIterator<Item = (u32, u64)>) -> Result<(), BrokerError> {
        let mut list = TopicPartitionList::new();
        for (partition, end) in before {
            let (partition, end) = (i32::try_from(partition).unwrap_or(i32::MAX), i64::try_from(end).unwrap_or(i64::MAX));
            list.add_partition_offset(topic, partition, Offset::Offset(end)).map_err(|e| failed("deleting records", &e))?;
        }
        let options = AdminOptions::new().request_timeout(Some(CALL)).operation_timeout(Some(CALL));
        let done = self.call(self.client.delete_records(&list, &options))?;
        done.map_err(|e| failed(&format!("deleting the records of topic `{topic}`"), &e))?;
        Ok(())
    }
}
