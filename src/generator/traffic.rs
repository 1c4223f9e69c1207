//! What happens when: the flow of events.

use super::random::{Random, Zipf};
use super::text;
use super::world::World;
use serde_json::{Map, Value, json};
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
enum Planned {
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
    options: Options,
    random: Random,
    world: World,
    words: Zipf,
    emoji: Zipf,
    done: u64,
    serial: u64,
    planned: BinaryHeap<Later>,
    members: std::vec::IntoIter<(usize, usize)>,
    unborn: BTreeSet<usize>,
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
    fn now(&self) -> i64 {
        let span = i128::from(self.options.to - self.options.from);
        let steps = i128::from(self.options.events.saturating_sub(1).max(1));
        self.options.from + i64::try_from(span * i128::from(self.done) / steps).unwrap_or(0)
    }

    fn later(&mut self, now: i64, seconds: f64, what: Planned) {
        self.serial += 1;
        self.planned.push(Reverse((now + (seconds * 1e6) as i64, self.serial, what)));
    }

    fn user(&self, user: usize) -> String {
        self.world.users[user].id.clone()
    }

    fn workspace(&self, user: usize) -> String {
        self.world.workspaces[self.world.users[user].workspace].clone()
    }

    fn channel(&self, channel: usize) -> String {
        self.world.channels[channel].id.clone()
    }

    fn email(&self, user: usize) -> String {
        format!("{}@example.com", self.world.users[user].id)
    }

    fn start_something(&mut self, now: i64) -> (&'static str, Value) {
        let user = self.world.actor(&mut self.random);
        if !self.world.users[user].online && !self.random.chance(0.1) {
            return self.come_online(user, now);
        }
        match self.random.below(1000) {
            0..=329 => self.say(user, self.random.clone().index(8) == 0),
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

    fn come_online(&mut self, user: usize, now: i64) -> (&'static str, Value) {
        self.world.users[user].online = true;
        let session = self.random.exponential(1_200.0) + 30.0;
        self.later(now, session, Planned::Offline(user));
        if self.random.chance(0.3) {
            return ("LOGIN_SUCCESS", self.audit(user, "LOW"));
        }
        let device = text::DEVICES[self.world.users[user].device];
        ("USER_ONLINE", json!({ "userId": self.user(user), "workspaceId": self.workspace(user), "device": device }))
    }

    fn offline(&mut self, user: usize) -> (&'static str, Value) {
        self.world.users[user].online = false;
        let seen = crate::commands::rfc3339(self.now());
        ("USER_OFFLINE", json!({ "userId": self.user(user), "workspaceId": self.workspace(user), "lastSeen": seen }))
    }

    fn say(&mut self, user: usize, reply: bool) -> (&'static str, Value) {
        let channel = self.world.channel_of(user, &mut self.random);
        self.say_in(user, channel, reply)
    }

    fn say_in(&mut self, user: usize, channel: usize, reply: bool) -> (&'static str, Value) {
        self.serial += 1;
        let id = format!("msg_{:x}_{:08}", self.options.seed, self.serial);
        let mut payload = Map::new();
        payload.insert("messageId".into(), id.clone().into());
        payload.insert("channelId".into(), self.channel(channel).into());
        payload.insert("workspaceId".into(), self.workspace(user).into());
        payload.insert("userId".into(), self.user(user).into());
        let mut content = text::sentence(&mut self.random, &self.words);
        let kind = if self.random.chance(0.04) { *self.random.pick(&["IMAGE", "FILE"]) } else { "TEXT" };
        if self.random.chance(0.12)
            && let Some(other) = self.world.other_member(channel, user, &mut self.random)
        {
            content = format!("@{} {content}", self.user(other));
            payload.insert("mentions".into(), json!([self.user(other)]));
        }
        payload.insert("content".into(), content.into());
        payload.insert("contentType".into(), kind.into());
        if kind != "TEXT" {
            payload.insert("attachments".into(), json!([format!("files/{id}")]));
        }
        if reply && let Some((parent, _)) = self.world.channels[channel].recent.last() {
            payload.insert("replyTo".into(), parent.clone().into());
            payload.insert("threadId".into(), format!("thr_{parent}").into());
        }
        let recent = &mut self.world.channels[channel].recent;
        recent.push((id, user));
        if recent.len() > 32 {
            recent.remove(0);
        }
        ("MESSAGE_SENT", Value::Object(payload))
    }

    /// A recent message of some channel of the user's: channel, message, author.
    fn recent(&mut self, user: usize, own: bool) -> Option<(usize, String, usize)> {
        let channel = self.world.channel_of(user, &mut self.random);
        let recent = &self.world.channels[channel].recent;
        let found = recent.iter().rev().find(|(_, author)| !own || *author == user)?;
        Some((channel, found.0.clone(), found.1))
    }

    fn message(&self, channel: usize, message: &str, user: usize) -> Value {
        json!({ "messageId": message, "channelId": self.channel(channel), "workspaceId": self.workspace(user), "userId": self.user(user) })
    }

    fn edit(&mut self, user: usize) -> (&'static str, Value) {
        let Some((channel, message, _)) = self.recent(user, true) else { return self.say(user, false) };
        let mut payload = self.message(channel, &message, user);
        payload["content"] = text::sentence(&mut self.random, &self.words).into();
        ("MESSAGE_EDITED", payload)
    }

    fn delete(&mut self, user: usize) -> (&'static str, Value) {
        let Some((channel, message, _)) = self.recent(user, true) else { return self.say(user, false) };
        self.world.channels[channel].recent.retain(|(id, _)| *id != message);
        ("MESSAGE_DELETED", self.message(channel, &message, user))
    }

    fn react(&mut self, user: usize) -> (&'static str, Value) {
        let Some((channel, message, _)) = self.recent(user, false) else { return self.say(user, false) };
        let mut payload = self.message(channel, &message, user);
        payload["emoji"] = text::EMOJI[self.emoji.draw(&mut self.random)].into();
        ("REACTION_ADDED", payload)
    }

    fn typing(&mut self, user: usize, now: i64) -> (&'static str, Value) {
        let channel = self.world.channel_of(user, &mut self.random);
        let pause = 2.0 + self.random.exponential(4.0);
        self.later(now, pause, Planned::Say(user, channel));
        (
            "USER_TYPING",
            json!({ "userId": self.user(user), "workspaceId": self.workspace(user), "channelId": self.channel(channel) }),
        )
    }

    fn status(&mut self, user: usize) -> (&'static str, Value) {
        let (status, words) =
            *self.random.pick(&[("away", "back soon"), ("busy", "in a meeting"), ("online", ""), ("dnd", "focus")]);
        (
            "STATUS_CHANGED",
            json!({ "userId": self.user(user), "workspaceId": self.workspace(user), "status": status, "statusText": words }),
        )
    }

    fn view(&mut self, user: usize) -> (&'static str, Value) {
        let page = text::PAGES[Zipf::new(text::PAGES.len(), 1.0).draw(&mut self.random)];
        let properties = json!({ "referrer": *self.random.pick(text::PAGES), "width": 1280 + 160 * self.random.below(5) });
        (
            "PAGE_VIEW",
            json!({ "userId": self.user(user), "workspaceId": self.workspace(user), "page": page, "properties": properties }),
        )
    }

    fn feature(&mut self, user: usize) -> (&'static str, Value) {
        let feature = text::FEATURES[Zipf::new(text::FEATURES.len(), 0.9).draw(&mut self.random)];
        ("FEATURE_USED", json!({ "userId": self.user(user), "workspaceId": self.workspace(user), "feature": feature }))
    }

    fn client_error(&mut self, user: usize) -> (&'static str, Value) {
        let (error, page) = (*self.random.pick(text::ERRORS), *self.random.pick(text::PAGES));
        (
            "ERROR_OCCURRED",
            json!({ "userId": self.user(user), "workspaceId": self.workspace(user), "error": error, "page": page }),
        )
    }

    fn metric(&mut self, user: usize) -> (&'static str, Value) {
        let (metric, unit, median) = *self.random.pick(text::METRICS);
        let value = (self.random.around(median, 0.5) * 100.0).round() / 100.0;
        (
            "PERFORMANCE_METRIC",
            json!({ "userId": self.user(user), "workspaceId": self.workspace(user), "metric": metric, "value": value, "unit": unit }),
        )
    }

    fn call(&mut self, caller: usize, now: i64) -> (&'static str, Value) {
        let channel = self.world.channel_of(caller, &mut self.random);
        self.serial += 1;
        let (call, video) = (self.serial, self.random.chance(0.4));
        let reason = match self.random.below(10) {
            0 => 1,
            1 | 2 => 2,
            _ => 0,
        };
        let ringing = 2.0 + self.random.exponential(6.0);
        let seconds = if reason == 0 { self.random.around(180.0, 1.0).clamp(5.0, 7_200.0) } else { 0.0 };
        if reason == 0 {
            for _ in 0..1 + self.random.below(3) {
                if let Some(user) = self.world.other_member(channel, caller, &mut self.random) {
                    let stays = seconds * (0.3 + 0.7 * self.random.unit());
                    self.later(now, ringing, Planned::Join { call, channel, user });
                    self.later(now, ringing + stays, Planned::Leave { call, channel, user });
                }
            }
        }
        let end = Planned::End { call, channel, caller, video, reason, seconds: seconds as u64 };
        self.later(now, ringing + seconds + 0.5, end);
        let kind = if video { "video" } else { "audio" };
        (
            "CALL_STARTED",
            json!({ "callId": call_id(call), "channelId": self.channel(channel), "callerId": self.user(caller), "kind": kind }),
        )
    }

    fn audit(&self, user: usize, severity: &str) -> Value {
        let who = &self.world.users[user];
        json!({ "userId": who.id, "email": self.email(user), "ip": who.ip, "userAgent": text::AGENTS[who.device], "severity": severity })
    }

    fn fail_login(&mut self, user: usize, now: i64, left: u32) -> (&'static str, Value) {
        if left > 1 {
            let pause = 1.0 + self.random.exponential(4.0);
            self.later(now, pause, Planned::FailLogin { user, left: left - 1 });
        }
        let mut payload = self.audit(user, "MEDIUM");
        payload["details"] = "wrong password".into();
        ("LOGIN_FAILED", payload)
    }

    fn deny(&mut self, user: usize, now: i64, left: u32) -> (&'static str, Value) {
        if left > 1 {
            let pause = 0.5 + self.random.exponential(3.0);
            self.later(now, pause, Planned::Deny { user, left: left - 1 });
        }
        let (resource, action) = *self.random.pick(text::DENIED);
        let mut payload = self.audit(user, "HIGH");
        payload["resource"] = resource.into();
        payload["action"] = action.into();
        ("PERMISSION_DENIED", payload)
    }

    fn export(&mut self, user: usize) -> (&'static str, Value) {
        let mut payload = self.audit(user, "CRITICAL");
        payload["resource"] = format!("workspace:{}", self.workspace(user)).into();
        payload["action"] = "export".into();
        payload["details"] = format!("{} rows as csv", 100 + self.random.below(100_000)).into();
        ("DATA_EXPORTED", payload)
    }

    fn new_user(&mut self, now: i64) -> (&'static str, Value) {
        let user = self.world.users.len() + self.unborn.len();
        self.unborn.insert(user);
        if self.random.chance(0.3) {
            let (after, banned) = (self.random.exponential(120.0), self.random.chance(0.4));
            self.later(now, after, Planned::Left { user, banned });
        }
        let id = format!("usr_{user:05}");
        ("USER_CREATED", json!({ "userId": id, "email": format!("{id}@example.com"), "displayName": format!("User {user}") }))
    }

    fn updated(&mut self, user: usize) -> (&'static str, Value) {
        let changes = json!({ "displayName": format!("User {user} {}", self.random.below(100)) });
        ("USER_UPDATED", json!({ "userId": self.user(user), "changes": changes }))
    }

    fn go_on(&mut self, now: i64, planned: Planned) -> (&'static str, Value) {
        match planned {
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

fn call_id(call: u64) -> String {
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
