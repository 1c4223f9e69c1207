//! A broker that records what the door appends, and answers when it is told to.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its share")]

use arrow::array::{AsArray, RecordBatch};
use axum::body::Body;
use axum::http::Request;
use quikflow_gateway::Auth;
use quikflow_ingest::{IngestLimits, IngestState};
use quikflow_topics::broker::*;
use quikflow_topics::brokers::embedded::{EmbeddedBroker, EmbeddedOptions};
use quikflow_topics::catalogue::{Catalogue, EventSpec, FieldSpec, FieldType, TopicKind, TopicSpec};
use quikflow_topics::clock::ManualClock;
use quikflow_topics::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use quikflow_topics::{Epoch, EventTime, Offset, PartitionId, partitioner::partition_of};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tower::ServiceExt;

#[derive(Default)]
pub struct Recorder {
    pub appends: Mutex<Vec<Append>>,
    pub refuse: Mutex<Option<BrokerError>>,
    /// Answers are kept back while this is some.
    pub held: Mutex<Option<Vec<(Answer<Appended>, Appended)>>>,
    next: Mutex<BTreeMap<u32, u64>>,
    wakeup: Wakeup,
}

impl Recorder {
    pub fn release(&self) {
        for (answer, appended) in self.held.lock().unwrap().take().unwrap() {
            let _gone = answer.send(Ok(appended));
        }
    }

    pub fn rows(&self) -> usize {
        self.appends.lock().unwrap().iter().flat_map(|a| &a.rows).map(|r| r.rows.num_rows()).sum()
    }

    pub fn dead(&self) -> Vec<DeadLetter> {
        self.appends.lock().unwrap().iter().flat_map(|a| a.dead_letters.clone()).collect()
    }
}

fn no<T>() -> Result<T, BrokerError> {
    Err(BrokerError::Closed)
}

impl Broker for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }
    fn ensure_topics(&self, _: &[Arc<TopicSpec>]) -> Result<(), BrokerError> {
        Ok(())
    }
    fn topic(&self, _: &str) -> Option<Arc<TopicSpec>> {
        None
    }
    fn topics(&self) -> Vec<Arc<TopicSpec>> {
        Vec::new()
    }
    fn append(&self, append: Append) -> Result<Ticket<Appended>, BrokerError> {
        if let Some(error) = self.refuse.lock().unwrap().clone() {
            return Err(error);
        }
        let mut appended = Appended { lane_line: append.lane.as_ref().map_or(0, |l| l.last), ..Appended::default() };
        let mut next = self.next.lock().unwrap();
        for rows in &append.rows {
            appended.accepted += rows.rows.num_rows() as u64;
            let keys = rows.rows.column_by_name("_key").unwrap().as_string::<i32>();
            let place = |key: Option<&str>| {
                let partition = partition_of(key, rows.topic.partitions);
                let offset = next.entry(partition.0).or_default();
                *offset += 1;
                Some((partition, Offset(*offset - 1)))
            };
            appended.positions.push(keys.iter().map(place).collect());
        }
        self.appends.lock().unwrap().push(append);
        let (answer, ticket) = Ticket::new();
        match self.held.lock().unwrap().as_mut() {
            Some(held) => held.push((answer, appended)),
            None => answer.send(Ok(appended)).unwrap(),
        }
        Ok(ticket)
    }
    fn commit_epoch(&self, _: EpochCommit) -> Result<Ticket<()>, BrokerError> {
        no()
    }
    fn reader(&self, _: &str, _: &Positions) -> Result<Box<dyn TopicReader>, BrokerError> {
        no()
    }
    fn read_record(&self, _: &str, _: PartitionId, _: Offset) -> Result<Option<RecordBatch>, BrokerError> {
        no()
    }
    fn stats(&self, _: &str) -> Result<TopicStats, BrokerError> {
        no()
    }
    fn group_offsets(&self, _: &str) -> Result<BTreeMap<(String, PartitionId), Offset>, BrokerError> {
        no()
    }
    fn groups(&self) -> Result<Vec<String>, BrokerError> {
        no()
    }
    fn report_progress(&self, _: &str, _: &str, _: &Positions) -> Result<(), BrokerError> {
        no()
    }
    fn topology_state(&self, _: &str) -> Result<TopologyState, BrokerError> {
        no()
    }
    fn last_epoch(&self) -> Result<Epoch, BrokerError> {
        no()
    }
    fn reset_topology(&self, _: &str, _: &[String], _: ResetFrom) -> Result<(), BrokerError> {
        no()
    }
    fn generation(&self, _: &str) -> Result<u64, BrokerError> {
        no()
    }
    fn append_dead_letters(&self, _: Vec<DeadLetter>) -> Result<Ticket<()>, BrokerError> {
        no()
    }
    fn dead_letters(&self, _: &DeadLetterFilter) -> Result<Vec<(u64, DeadLetter)>, BrokerError> {
        no()
    }
    fn mark_dead_letters(&self, _: &[String], _: DeadLetterStatus) -> Result<usize, BrokerError> {
        no()
    }
    fn lane_line(&self, _: &str) -> Result<u64, BrokerError> {
        no()
    }
    fn wakeup(&self) -> &Wakeup {
        &self.wakeup
    }
    fn close(&self) {}
}

fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue::default();
    let text = |name: &str| FieldSpec::new(name, FieldType::String);
    let optional = |name: &str| FieldSpec { optional: true, ..text(name) };
    let content = FieldSpec { max_length: Some(10), ..text("content") };
    for (topic, fields, events) in [
        ("QuikApp.messages", vec![text("channelId"), content], vec!["MESSAGE_SENT"]),
        (
            "QuikApp.members",
            vec![text("channelId"), text("userId"), optional("workspaceId")],
            vec!["MEMBER_ADDED", "MEMBER_REMOVED"],
        ),
    ] {
        let spec = TopicSpec { fields: fields.clone(), ..TopicSpec::new(topic, TopicKind::Events) };
        catalogue.topics.insert(topic.into(), Arc::new(spec));
        for name in events {
            let event = EventSpec {
                name: name.into(),
                topic: topic.into(),
                key: vec!["channelId".into()],
                doc: String::new(),
                fields: fields.clone(),
            };
            catalogue.events.insert(name.into(), Arc::new(event));
        }
    }
    catalogue
}

pub struct Setup<B = Recorder> {
    pub broker: Arc<B>,
    pub router: axum::Router,
    pub closing: tokio::sync::watch::Sender<bool>,
}

pub fn setup(change: impl FnOnce(&mut IngestLimits)) -> Setup {
    over(Arc::new(Recorder::default()), change)
}

/// The door over an embedded log in `dir`.
pub fn embedded(dir: &std::path::Path) -> Setup<EmbeddedBroker> {
    let options = EmbeddedOptions { sync: false, ..EmbeddedOptions::new(dir, ManualClock::at(EventTime(1_767_225_600_000_000))) };
    let broker = EmbeddedBroker::open(options).unwrap();
    broker.ensure_topics(&catalogue().topics.into_values().collect::<Vec<_>>()).unwrap();
    over(broker, |_| {})
}

fn over<B: Broker>(broker: Arc<B>, change: impl FnOnce(&mut IngestLimits)) -> Setup<B> {
    let mut limits = IngestLimits::default();
    change(&mut limits);
    let (closing, watch) = tokio::sync::watch::channel(false);
    let (router, _) = quikflow_ingest::router(IngestState {
        broker: broker.clone(),
        catalogue: Arc::new(catalogue()),
        clock: ManualClock::at(EventTime(1_767_225_600_000_000)),
        auth: Arc::new(Auth::open()),
        limits,
        ready: Arc::new(|| Ok(())),
        metrics: Arc::new(|| "m 1\n".to_owned()),
        closing: watch,
    });
    Setup { broker, router, closing }
}

pub fn event(content: &str) -> String {
    format!(
        r#"{{"type":"MESSAGE_SENT","payload":{{"channelId":"c1","content":"{content}"}},"timestamp":"2025-12-31T12:00:00Z"}}"#
    )
}

impl<B> Setup<B> {
    /// Status, body and `Retry-After` of a request.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> (u16, serde_json::Value, Option<String>) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let retry = response.headers().get("retry-after").map(|v| v.to_str().unwrap().to_owned());
        let body = axum::body::to_bytes(response.into_body(), 64 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or(serde_json::Value::Null), retry)
    }

    pub async fn post(&self, headers: &[(&str, &str)], body: impl Into<Body>) -> (u16, serde_json::Value) {
        let (status, body, _) = self.send("POST", "/v1/events", headers, body).await;
        (status, body)
    }
}
