//! What happens when: the flow of events.

use super::deeds::Deed;
use super::random::{Random, Zipf};
use super::text;
use super::world::World;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

/// What traffic is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// How many events, members included.
    pub(crate) events: u64,
    /// The same seed yields the same events.
    pub(crate) seed: u64,
    /// How many users.
    pub(crate) users: usize,
    /// Event time of the first event: µs since 1970.
    pub(crate) from: i64,
    /// Event time of the last event: µs since 1970.
    pub(crate) to: i64,
    /// MEMBER_ADDED for every member of every channel first.
    pub(crate) members: bool,
    /// An `id` in every event.
    pub(crate) ids: bool,
}

/// An event.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// Its type.
    pub(crate) name: &'static str,
    /// The whole event.
    pub(crate) json: Value,
}

/// Something that happens later: when, in which order it was planned, what.
type Later = Reverse<(i64, u64, Planned)>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Planned {
    Online(usize),
    Offline(usize),
    Say(usize, usize),
    FailLogin { user: usize, left: u32 },
    Join { call: u64, channel: usize, user: usize },
    Leave { call: u64, channel: usize, user: usize },
    End { call: u64, channel: usize, caller: usize, video: bool, reason: u8, seconds: u64 },
    Left { user: usize, banned: bool },
    Deny { user: usize, left: u32 },
}

/// The flow: an iterator of events.
pub(crate) struct Traffic {
    pub(super) options: Options,
    pub(super) random: Random,
    pub(super) world: World,
    pub(super) words: Zipf,
    pub(super) emoji: Zipf,
    done: u64,
    pub(super) serial: u64,
    planned: BinaryHeap<Later>,
    members: std::vec::IntoIter<(usize, usize)>,
    pub(super) unborn: BTreeSet<usize>,
}

impl Traffic {
    /// The flow that `options` ask for.
    pub(crate) fn new(options: Options) -> Traffic {
        let mut random = Random::new(options.seed);
        let world = World::new(options.users, &mut random);
        let members: Vec<(usize, usize)> = if options.members {
            let all = world.channels.iter().enumerate().flat_map(|(c, channel)| channel.members.iter().map(move |&u| (c, u)));
            // A tenth of the events at most: the rest of the members joined before the story begins.
            all.take(usize::try_from(options.events / 10).unwrap_or(usize::MAX)).collect()
        } else {
            Vec::new()
        };
        Traffic {
            words: text::word_law(),
            emoji: Zipf::new(text::EMOJI.len(), 1.2),
            done: 0,
            serial: 0,
            planned: BinaryHeap::new(),
            members: members.into_iter(),
            unborn: BTreeSet::new(),
            options,
            random,
            world,
        }
    }

    /// Event time of event number `done`.
    pub(super) fn now(&self) -> i64 {
        let span = i128::from(self.options.to - self.options.from);
        let steps = i128::from(self.options.events.saturating_sub(1).max(1));
        self.options.from + i64::try_from(span * i128::from(self.done) / steps).unwrap_or(0)
    }

    pub(super) fn later(&mut self, now: i64, seconds: f64, what: Planned) {
        self.serial += 1;
        self.planned.push(Reverse((now + (seconds * 1e6) as i64, self.serial, what)));
    }

    pub(super) fn user(&self, user: usize) -> String {
        self.world.users[user].id.clone()
    }

    pub(super) fn workspace(&self, user: usize) -> String {
        self.world.workspaces[self.world.users[user].workspace].clone()
    }

    pub(super) fn channel(&self, channel: usize) -> String {
        self.world.channels[channel].id.clone()
    }

    pub(super) fn email(&self, user: usize) -> String {
        format!("{}@example.com", self.world.users[user].id)
    }

    fn start_something(&mut self, now: i64) -> Deed {
        let user = self.world.actor(&mut self.random);
        if !self.world.users[user].online && !self.random.chance(0.1) {
            return self.come_online(user, now);
        }
        match self.random.below(1000) {
            0..=329 => {
                let reply = self.random.chance(0.12);
                self.say(user, reply)
            }
            330..=369 => self.edit(user),
            370..=384 => self.delete(user),
            385..=484 => self.react(user),
            485..=599 => self.typing(user, now),
            600..=614 => self.status(user),
            615..=744 => self.view(user),
            745..=844 => self.feature(user),
            845..=859 => self.client_error(user),
            860..=919 => self.metric(user),
            920..=939 => self.call(user, now),
            940..=949 => self.fail_login(user, now, 1),
            950..=954 => {
                let left = 5 + self.random.below(4) as u32;
                self.fail_login(user, now, left)
            }
            955..=964 => self.deny(user, now, 1),
            965..=966 => {
                let left = 6 + self.random.below(5) as u32;
                self.deny(user, now, left)
            }
            967..=969 => self.export(user),
            970..=979 => self.new_user(now),
            980..=984 => self.updated(user),
            _ => self.offline(user),
        }
    }

    fn go_on(&mut self, now: i64, planned: Planned) -> Deed {
        match planned {
            Planned::Online(user) => self.online(user),
            Planned::Offline(user) => self.offline(user),
            Planned::Say(user, channel) => {
                let reply = self.random.chance(0.15);
                self.say_in(user, channel, reply)
            }
            Planned::FailLogin { user, left } => self.fail_login(user, now, left),
            Planned::Deny { user, left } => self.deny(user, now, left),
            Planned::Join { call, channel, user } => (
                "PARTICIPANT_JOINED",
                json!({ "callId": call_id(call), "channelId": self.channel(channel), "userId": self.user(user) }),
            ),
            Planned::Leave { call, channel, user } => (
                "PARTICIPANT_LEFT",
                json!({ "callId": call_id(call), "channelId": self.channel(channel), "userId": self.user(user) }),
            ),
            Planned::End { call, channel, caller, video, reason, seconds } => {
                let reason = ["ended", "declined", "missed"][usize::from(reason)];
                let kind = if video { "video" } else { "audio" };
                let payload = json!({
                    "callId": call_id(call), "channelId": self.channel(channel), "callerId": self.user(caller),
                    "kind": kind, "reason": reason, "durationSeconds": seconds,
                });
                ("CALL_ENDED", payload)
            }
            Planned::Left { user, banned } => {
                let id = format!("usr_{user:05}");
                if banned {
                    ("USER_BANNED", json!({ "userId": id, "reason": "spam", "bannedBy": self.user(0) }))
                } else {
                    ("USER_DELETED", json!({ "userId": id, "reason": "asked for it" }))
                }
            }
        }
    }
}

pub(super) fn call_id(call: u64) -> String {
    format!("call_{call:08}")
}

impl Iterator for Traffic {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.done >= self.options.events {
            return None;
        }
        let now = self.now();
        let mut at = now;
        let (name, payload) = if let Some((channel, user)) = self.members.next() {
            let payload =
                json!({ "channelId": self.channel(channel), "userId": self.user(user), "workspaceId": self.workspace(user) });
            ("MEMBER_ADDED", payload)
        } else {
            // One in twenty-five is up to two seconds behind: still within a topic's disorder.
            if self.random.chance(0.04) {
                at = (now - self.random.below(2_000_000) as i64).max(self.options.from);
            }
            match self.planned.peek() {
                Some(Reverse((due, ..))) if *due <= now => match self.planned.pop() {
                    Some(Reverse((_, _, planned))) => self.go_on(now, planned),
                    None => self.start_something(now),
                },
                _ => self.start_something(now),
            }
        };
        let mut json = json!({ "type": name, "payload": payload, "timestamp": crate::commands::rfc3339(at) });
        if self.options.ids {
            json["id"] = format!("evt_{:x}_{}", self.options.seed, self.done).into();
        }
        if self.done.is_multiple_of(5) {
            json["metadata"] = json!({ "source": "generate", "correlationId": format!("c{:x}", self.done) });
        }
        self.done += 1;
        Some(Event { name, json })
    }
}

#[cfg(test)]
mod tests {
    use super::super::TYPES;
    use super::*;
    use std::collections::BTreeMap;

    fn options(events: u64, seed: u64) -> Options {
        Options { events, seed, users: 200, from: 0, to: 3_600_000_000, members: true, ids: false }
    }

    #[test]
    fn all_event_types_come_and_nothing_else() {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for event in Traffic::new(options(20_000, 1)) {
            *counts.entry(event.name).or_default() += 1;
        }
        for name in TYPES {
            assert!(counts.get(name).is_some_and(|&n| n > 3), "seed 1: {name}: {counts:?}");
        }
        assert_eq!(counts.len(), TYPES.len() + 1, "members, and nothing else: {counts:?}");
        assert_eq!(counts.values().sum::<u64>(), 20_000);
    }

    #[test]
    fn the_same_seed_is_the_same_traffic() {
        let text = |seed| Traffic::new(options(500, seed)).map(|e| e.json.to_string()).collect::<Vec<_>>();
        assert_eq!(text(3), text(3));
        assert_ne!(text(3), text(4));
    }

    #[test]
    fn disorder_is_slight_and_time_runs_from_start_to_end() {
        let times: Vec<i64> = Traffic::new(options(5_000, 2))
            .map(|e| chrono::DateTime::parse_from_rfc3339(e.json["timestamp"].as_str().unwrap()).unwrap().timestamp_micros())
            .collect();
        let mut newest = 0;
        let mut behind = 0;
        for &time in &times {
            assert!(newest - time <= 2_000_000, "seed 2: {time} after {newest}");
            behind += usize::from(time < newest);
            newest = newest.max(time);
        }
        assert!(behind > 20, "seed 2: {behind}");
        assert!(newest > 3_599_000_000 && times[0] == 0, "{newest}");
    }

    #[test]
    fn bursts_of_failed_logins_by_one_user_happen() {
        let mut by_user: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for event in Traffic::new(options(20_000, 5)).filter(|e| e.name == "LOGIN_FAILED") {
            let at = chrono::DateTime::parse_from_rfc3339(event.json["timestamp"].as_str().unwrap()).unwrap();
            by_user.entry(event.json["payload"]["userId"].to_string()).or_default().push(at.timestamp());
        }
        let burst = by_user.values_mut().any(|times| {
            times.sort_unstable();
            times.windows(5).any(|five| five[4] - five[0] < 60)
        });
        assert!(burst, "seed 5");
    }
}
