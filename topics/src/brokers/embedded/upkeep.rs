//! What the writer does between transactions: checkpoints, the size limit, retention, the ends of
//! old ids, free pages; and topics made and reset.

use super::Shared;
use super::dead;
use super::slice;
use super::sql::{self, UNIT, space};
use super::topic::{self, Ensured, TopicState};
use super::writer::Writer;
use crate::broker::{BrokerError, ResetFrom};
use crate::catalogue::{Cleanup, TopicSpec};
use crate::failpoint;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Between two looks at retention and old ids.
const EVERY: Duration = Duration::from_secs(2);
/// Chunks that one step of retention deletes.
const CHUNKS_A_STEP: usize = 64;
/// When so much was written to the write-ahead file it is copied back.
const CHECKPOINT_FROM: u64 = 24 << 20;
/// Free pages given back to the file system at a time (64 KiB each).
const PAGES_A_STEP: u32 = 64;

/// When things were last done.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    looked: Option<Duration>,
    /// About how many bytes went to the write-ahead file since it was copied back.
    pub(super) written: u64,
}

/// Bytes of the write-ahead file.
pub(super) fn wal_bytes(dir: &Path) -> u64 {
    std::fs::metadata(dir.join(format!("{}-wal", sql::FILE))).map_or(0, |m| m.len())
}

/// Copies the write-ahead file back, so that the next start is quick.
pub(super) fn checkpoint_at_close(conn: &Connection) {
    if let Err(error) = checkpoint(conn, "truncate") {
        tracing::warn!(%error, "the write-ahead file could not be copied back; the next start will");
    }
}

/// (frames in the file, frames copied)
fn checkpoint(conn: &Connection, how: &str) -> Result<(i64, i64), BrokerError> {
    failpoint::hit("log.checkpoint.before");
    let done = conn.query_row(&format!("pragma wal_checkpoint({how})"), [], |row| Ok((row.get(1)?, row.get(2)?)))?;
    failpoint::hit("log.checkpoint.after");
    Ok(done)
}

impl Writer {
    /// Called after each round of work, and once a second without any.
    pub(super) fn tend(&mut self) {
        if let Err(error) = self.try_tend() {
            tracing::warn!(%error, "upkeep of the log failed; it is tried again");
        }
    }

    fn try_tend(&mut self) -> Result<(), BrokerError> {
        self.tend_wal()?;
        self.tend_size()?;
        let now = self.shared.clock.elapsed();
        if self.upkeep.looked.is_some_and(|looked| now.saturating_sub(looked) < EVERY) {
            return Ok(());
        }
        self.upkeep.looked = Some(now);
        if !self.shared.progress.lock().1.is_empty() {
            let done = self.transaction(|writer, _, _| writer.store_progress());
            if done.is_err() {
                let mut progress = self.shared.progress.lock();
                progress.1 = progress.0.keys().cloned().collect();
            }
            done?;
        }
        self.forget_ids()?;
        let topics = self.shared.topics.read().clone();
        let mut freed = false;
        for topic in topics.values() {
            freed |= self.retain(topic)?;
        }
        let free: i64 = self.conn.query_row("pragma freelist_count", [], |row| row.get(0))?;
        let pages: i64 = self.conn.query_row("pragma page_count", [], |row| row.get(0))?;
        if free > 1_024 && free > pages / 4 {
            self.conn.execute_batch(&format!("pragma incremental_vacuum({PAGES_A_STEP})"))?;
        }
        if freed {
            // There may be more to delete: look again at once.
            self.upkeep.looked = None;
        }
        Ok(())
    }

    fn tend_wal(&mut self) -> Result<(), BrokerError> {
        // The file is written from its start again once all of it was copied back, at the same size:
        // what counts is what was written since.
        if self.upkeep.written >= CHECKPOINT_FROM {
            self.upkeep.written = 0;
            let wal = wal_bytes(&self.shared.options.dir);
            let (frames, copied) = checkpoint(&self.conn, "passive")?;
            if wal > self.shared.options.wal_limit {
                // A reader is in the way, or the file has grown once: cut it.
                self.conn.busy_timeout(Duration::from_millis(50))?;
                let cut = checkpoint(&self.conn, "truncate");
                self.conn.busy_timeout(Duration::from_secs(5))?;
                cut?;
                tracing::debug!(frames, copied, "the write-ahead file was over its limit and was cut");
            }
        }
        Ok(())
    }

    fn tend_size(&mut self) -> Result<(), BrokerError> {
        let pages: i64 = self.conn.prepare_cached("pragma page_count")?.query_row([], |row| row.get(0))?;
        let free: i64 = self.conn.prepare_cached("pragma freelist_count")?.query_row([], |row| row.get(0))?;
        let page: i64 = self.conn.prepare_cached("pragma page_size")?.query_row([], |row| row.get(0))?;
        let bytes = (pages - free).max(0) as u64 * page.max(0) as u64;
        self.shared.stored_bytes.store(bytes, Ordering::Relaxed);
        let full = bytes >= self.shared.options.max_bytes;
        if full != self.shared.full.swap(full, Ordering::Relaxed) {
            if full {
                tracing::error!(bytes, "the log has reached its limit: nothing is taken until retention frees room");
            } else {
                tracing::info!(bytes, "the log has room again");
            }
        }
        Ok(())
    }

    /// Stores what followers have reported; inside a transaction.
    pub(super) fn store_progress(&self) -> Result<(), BrokerError> {
        let mut progress = self.shared.progress.lock();
        let (known, news) = &mut *progress;
        for key in std::mem::take(news) {
            sql::put_number(&self.conn, space::PROGRESS, &key, known.get(&key).copied().unwrap_or(0))?;
        }
        Ok(())
    }

    fn forget_ids(&mut self) -> Result<(), BrokerError> {
        let now = self.shared.clock.now().0;
        self.ids.expire(now);
        let span = i64::try_from(self.shared.options.id_window.as_micros()).unwrap_or(i64::MAX);
        let oldest = self.ids.oldest().unwrap_or_else(|| now.saturating_sub(span));
        let some: bool =
            self.conn.query_row("select exists(select 1 from ids where arrival < ?1 limit 1)", [oldest], |row| row.get(0))?;
        if some {
            self.transaction(|writer, _, _| {
                let mut statement = writer.conn.prepare_cached(
                    "delete from ids where id in (select id from ids where arrival < ?1 order by id limit 1000)",
                )?;
                Ok(statement.execute([oldest])?)
            })?;
        }
        Ok(())
    }

    /// Deletes the oldest chunks whose time is over; whether there were any.
    fn retain(&mut self, topic: &Arc<TopicState>) -> Result<bool, BrokerError> {
        let spec = topic.spec();
        let Some(retention) = spec.retention.filter(|_| spec.cleanup == Cleanup::Delete) else { return Ok(false) };
        let until = self.shared.clock.now().minus(i64::try_from(retention.as_micros()).unwrap_or(i64::MAX)).0;
        let old: Vec<u64> = {
            let extent = topic.extent.lock();
            extent.chunks.iter().take_while(|(_, meta)| meta.arrival < until).map(|(id, _)| *id).take(CHUNKS_A_STEP).collect()
        };
        if old.is_empty() {
            return Ok(false);
        }
        let slowest = slowest(&self.shared, &self.conn, &spec)?;
        let mut gone = Vec::new();
        for id in old {
            let Some((_, header)) = super::slice::header_at(&self.conn, topic.id, id)? else { break };
            if header.parts.iter().any(|p| slowest.get(p.partition as usize).is_none_or(|s| p.next > *s)) {
                break;
            }
            gone.push(id);
        }
        if gone.is_empty() || !self.shared.pins.release(topic.id, &gone) {
            return Ok(false);
        }
        failpoint::hit("log.retention.before");
        let done = self.transaction(|writer, _, _| {
            gone.iter().try_for_each(|id| delete_chunk(&writer.conn, topic.id, *id))?;
            remember_ends(&writer.conn, topic)
        });
        failpoint::hit("log.retention.after");
        if done.is_ok() {
            let mut extent = topic.extent.lock();
            extent.chunks.retain(|id, _| !gone.contains(id));
        }
        self.shared.pins.settle(topic.id, &gone);
        done.map(|()| true)
    }

    /// See [`Broker::ensure_topics`](crate::broker::Broker::ensure_topics).
    pub(super) fn ensure_topics(&mut self, specs: &[Arc<TopicSpec>]) -> Result<(), BrokerError> {
        let mut topics = (**self.shared.topics.read()).clone();
        let ensured = self.transaction(|writer, _, _| topic::ensure(&writer.conn, &topics, specs))?;
        for (name, ensured) in ensured {
            match ensured {
                Ensured::New(state) => drop(topics.insert(name, state)),
                Ensured::Changed { spec, layout, partitions } => {
                    let Some(state) = topics.get(&name) else { continue };
                    *state.spec.write() = spec;
                    *state.layout.write() = Arc::new(layout);
                    if let Some(count) = partitions {
                        state.extent.lock().ends = vec![0; count];
                    }
                }
            }
        }
        *self.shared.topics.write() = Arc::new(topics);
        Ok(())
    }

    /// See [`Broker::reset_topology`](crate::broker::Broker::reset_topology). Offsets are not used
    /// again: the topics go on where they ended, in their next generation.
    pub(super) fn reset_topology(&mut self, topology: &str, outputs: &[String], from: ResetFrom) -> Result<(), BrokerError> {
        let topics = self.shared.topics.read().clone();
        let find = |name: &String| topics.get(name).cloned().ok_or_else(|| BrokerError::UnknownTopic(name.clone()));
        let outputs = outputs.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        let group = format!("topology:{topology}{UNIT}");
        self.transaction(|writer, _, _| {
            let conn = &writer.conn;
            conn.execute("delete from state where topology = ?1", [topology])?;
            for (key, _) in sql::list(conn, space::META, &format!("{topology}{UNIT}"))? {
                conn.execute("delete from kv where space = ?1 and key = ?2", (space::META, key))?;
            }
            let read = sql::list(conn, space::OFFSET, &group)?;
            if from == ResetFrom::Earliest {
                let names: BTreeSet<&str> = read.iter().filter_map(|(key, _)| key.split(UNIT).nth(1)).collect();
                for topic in names.into_iter().filter_map(|name| topics.get(name)) {
                    let ends = topic.extent.lock().ends.clone();
                    for (partition, first) in starts(conn, topic.id, &ends)?.into_iter().enumerate() {
                        dead::forget(conn, topology, &topic.spec().name, partition, first)?;
                    }
                }
            }
            for (key, _) in read {
                let mut place = key.split(UNIT).skip(1);
                let end = place.next().and_then(|name| topics.get(name)).and_then(|topic| {
                    let partition: usize = place.next()?.parse().ok()?;
                    topic.extent.lock().ends.get(partition).copied()
                });
                match (from, end) {
                    (ResetFrom::Latest, Some(end)) => sql::put_number(conn, space::OFFSET, &key, end)?,
                    _ => drop(conn.execute("delete from kv where space = ?1 and key = ?2", (space::OFFSET, key))?),
                }
            }
            for topic in &outputs {
                remember_ends(conn, topic)?;
                conn.execute("update topics set generation = generation + 1 where id = ?1", [topic.id])?;
                conn.execute_batch(&format!("delete from c{0}; delete from d{0};", topic.id))?;
            }
            Ok(())
        })?;
        self.state.forget(topology);
        for topic in outputs {
            topic.generation.fetch_add(1, Ordering::SeqCst);
            topic.extent.lock().chunks.clear();
        }
        Ok(())
    }
}

/// The earliest offset kept of each partition of a topic; `ends` where nothing is kept.
pub(super) fn starts(conn: &Connection, topic: i64, ends: &[u64]) -> Result<Vec<u64>, BrokerError> {
    let mut starts = ends.to_vec();
    if let Some((_, header)) = slice::header_at(conn, topic, 0)? {
        for (start, end) in starts.iter_mut().zip(&header.ends) {
            *start = *end;
        }
        for part in &header.parts {
            if let Some(start) = starts.get_mut(part.partition as usize) {
                *start = part.first;
            }
        }
    }
    Ok(starts)
}

/// The slowest registered group's next offset in each partition (R10).
pub(super) fn slowest(shared: &Shared, conn: &Connection, topic: &TopicSpec) -> Result<Vec<u64>, BrokerError> {
    let mut groups: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    let mut add = |key: &str, next: u64| {
        let mut parts = key.split(UNIT);
        if let (Some(group), Some(of), Some(partition)) = (parts.next(), parts.next(), parts.next())
            && of == topic.name
        {
            groups.entry(group.to_owned()).or_default().insert(partition.to_owned(), next);
        }
    };
    for (key, next) in &shared.progress.lock().0 {
        add(key, *next);
    }
    for (key, value) in sql::list(conn, space::OFFSET, "")? {
        add(&key, value.try_into().map_or(0, u64::from_le_bytes));
    }
    let partition = |p: u32| {
        let p = p.to_string();
        // A partition that a group has not mentioned is one it has not read.
        groups.values().map(|g| g.get(&p).copied().unwrap_or(0)).min().unwrap_or(u64::MAX)
    };
    Ok((0..topic.partitions).map(partition).collect())
}

/// Deletes a chunk and its big columns.
pub(super) fn delete_chunk(conn: &Connection, topic: i64, id: u64) -> Result<(), BrokerError> {
    conn.prepare_cached(&format!("delete from c{topic} where id = ?1"))?.execute([id as i64])?;
    let mut statement = conn.prepare_cached(&format!("delete from d{topic} where id >= ?1 and id < ?2"))?;
    statement.execute((super::stage::data_id(id, 0), super::stage::data_id(id + 1, 0)))?;
    Ok(())
}

/// Where a topic's partitions end, for when no chunk is left that says so.
fn remember_ends(conn: &Connection, topic: &TopicState) -> Result<(), BrokerError> {
    let extent = topic.extent.lock();
    let ends: Vec<u8> = extent.ends.iter().flat_map(|e| e.to_le_bytes()).collect();
    let mut statement = conn.prepare_cached("update topics set ends = ?2, next_chunk = ?3 where id = ?1")?;
    statement.execute((topic.id, ends, extent.next_chunk as i64))?;
    Ok(())
}
