//! What any process writes to Redis, heard by pub/sub.

use super::{NAME, Redis};
use crate::changes::{Change, Hub};
use futures::StreamExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Between two tries to connect.
const PAUSE: Duration = Duration::from_secs(1);
/// So often is a server asked that says nothing: one that is cut off says nothing either.
const QUIET: Duration = Duration::from_secs(20);

impl Redis {
    /// Passes on what is published of the sinks (sink → table), for ever; a broken connection is made again, and what came
    /// meanwhile has been missed.
    pub(super) async fn listen_for_ever(self: Arc<Self>, tables: BTreeMap<String, String>, hub: Arc<Hub>) {
        loop {
            let ended = self.listen_once(&tables, &hub).await;
            hub.is_deaf();
            if let Err(error) = ended {
                tracing::debug!(store = NAME, %error, "changes are not heard, they will be listened for again");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn listen_once(&self, tables: &BTreeMap<String, String>, hub: &Hub) -> Result<(), redis::RedisError> {
        let subscribe = async {
            let (mut sink, messages) = self.client.get_async_pubsub().await?.split();
            for name in tables.keys() {
                sink.subscribe(format!("{}:changes:{name}", self.prefix)).await?;
            }
            Ok::<_, redis::RedisError>((sink, messages))
        };
        let Ok(subscribed) = tokio::time::timeout(QUIET, subscribe).await else { return Ok(()) };
        let (mut sink, mut messages) = subscribed?;
        hub.hears();
        loop {
            let message = match tokio::time::timeout(QUIET, messages.next()).await {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(_) => {
                    match tokio::time::timeout(QUIET, sink.ping::<redis::Value>()).await {
                        Ok(answer) => drop(answer?),
                        Err(_) => return Ok(()),
                    }
                    continue;
                }
            };
            let name = message.get_channel_name().rsplit_once(":changes:").map_or("", |(_, name)| name);
            let Some(table) = tables.get(name) else { continue };
            let keys: Vec<String> = serde_json::from_slice(message.get_payload_bytes()).unwrap_or_default();
            hub.tell(table, change(keys));
        }
    }
}

/// Of no key, or of a message that cannot be read, anything may have changed.
fn change(mut keys: Vec<String>) -> Change {
    if keys.is_empty() {
        return Change::Missed;
    }
    keys.iter_mut().for_each(|key| *key = key.replace('\u{1f}', "/"));
    keys.sort_unstable();
    keys.dedup();
    Change::Keys(keys.into())
}
