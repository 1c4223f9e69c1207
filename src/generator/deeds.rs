//! What people do, as events: one function a deed.

use super::random::Zipf;
use super::text;
use super::traffic::{Planned, Traffic, call_id};
use serde_json::{Map, Value, json};

/// An event's type and payload.
pub(super) type Deed = (&'static str, Value);

impl Traffic {
    pub(super) fn come_online(&mut self, user: usize, now: i64) -> Deed {
        self.world.users[user].online = true;
        let session = self.random.exponential(1_200.0) + 30.0;
        self.later(now, session, Planned::Offline(user));
        if self.random.chance(0.3) {
            self.later(now, 0.5, Planned::Online(user));
            return ("LOGIN_SUCCESS", self.audit(user, "LOW"));
        }
        self.online(user)
    }

    pub(super) fn online(&mut self, user: usize) -> Deed {
        let device = text::DEVICES[self.world.users[user].device];
        ("USER_ONLINE", json!({ "userId": self.user(user), "workspaceId": self.workspace(user), "device": device }))
    }

    pub(super) fn offline(&mut self, user: usize) -> Deed {
        self.world.users[user].online = false;
        let seen = crate::commands::rfc3339(self.now());
        ("USER_OFFLINE", json!({ "userId": self.user(user), "workspaceId": self.workspace(user), "lastSeen": seen }))
    }

    pub(super) fn say(&mut self, user: usize, reply: bool) -> Deed {
        let channel = self.world.channel_of(user, &mut self.random);
        self.say_in(user, channel, reply)
    }

    pub(super) fn say_in(&mut self, user: usize, channel: usize, reply: bool) -> Deed {
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
    pub(super) fn recent(&mut self, user: usize, own: bool) -> Option<(usize, String, usize)> {
        let channel = self.world.channel_of(user, &mut self.random);
        let recent = &self.world.channels[channel].recent;
        let found = recent.iter().rev().find(|(_, author)| !own || *author == user)?;
        Some((channel, found.0.clone(), found.1))
    }

    pub(super) fn message(&self, channel: usize, message: &str, user: usize) -> Value {
        json!({ "messageId": message, "channelId": self.channel(channel), "workspaceId": self.workspace(user), "userId": self.user(user) })
    }

    pub(super) fn edit(&mut self, user: usize) -> Deed {
        let Some((channel, message, _)) = self.recent(user, true) else { return self.say(user, false) };
        let mut payload = self.message(channel, &message, user);
        payload["content"] = text::sentence(&mut self.random, &self.words).into();
        ("MESSAGE_EDITED", payload)
    }

    pub(super) fn delete(&mut self, user: usize) -> Deed {
        let Some((channel, message, _)) = self.recent(user, true) else { return self.say(user, false) };
        self.world.channels[channel].recent.retain(|(id, _)| *id != message);
        ("MESSAGE_DELETED", self.message(channel, &message, user))
    }

    pub(super) fn react(&mut self, user: usize) -> Deed {
        let Some((channel, message, _)) = self.recent(user, false) else { return self.say(user, false) };
        let mut payload = self.message(channel, &message, user);
        payload["emoji"] = text::EMOJI[self.emoji.draw(&mut self.random)].into();
        ("REACTION_ADDED", payload)
    }

    pub(super) fn typing(&mut self, user: usize, now: i64) -> Deed {
        let channel = self.world.channel_of(user, &mut self.random);
        let pause = 2.0 + self.random.exponential(4.0);
        self.later(now, pause, Planned::Say(user, channel));
        (
            "USER_TYPING",
            json!({ "userId": self.user(user), "workspaceId": self.workspace(user), "channelId": self.channel(channel) }),
        )
    }

    pub(super) fn status(&mut self, user: usize) -> Deed {
        let (status, words) =
            *self.random.pick(&[("away", "back soon"), ("busy", "in a meeting"), ("online", ""), ("dnd", "focus")]);
        (
            "STATUS_CHANGED",
            json!({ "userId": self.user(user), "workspaceId": self.workspace(user), "status": status, "statusText": words }),
        )
    }

    pub(super) fn view(&mut self, user: usize) -> Deed {
        let page = text::PAGES[Zipf::new(text::PAGES.len(), 1.0).draw(&mut self.random)];
        let properties = json!({ "referrer": *self.random.pick(text::PAGES), "width": 1280 + 160 * self.random.below(5) });
        (
            "PAGE_VIEW",
            json!({ "userId": self.user(user), "workspaceId": self.workspace(user), "page": page, "properties": properties }),
        )
    }

    pub(super) fn feature(&mut self, user: usize) -> Deed {
        let feature = text::FEATURES[Zipf::new(text::FEATURES.len(), 0.9).draw(&mut self.random)];
        ("FEATURE_USED", json!({ "userId": self.user(user), "workspaceId": self.workspace(user), "feature": feature }))
    }

    pub(super) fn client_error(&mut self, user: usize) -> Deed {
        let (error, page) = (*self.random.pick(text::ERRORS), *self.random.pick(text::PAGES));
        (
            "ERROR_OCCURRED",
            json!({ "userId": self.user(user), "workspaceId": self.workspace(user), "error": error, "page": page }),
        )
    }

    pub(super) fn metric(&mut self, user: usize) -> Deed {
        let (metric, unit, median) = *self.random.pick(text::METRICS);
        let value = (self.random.around(median, 0.5) * 100.0).round() / 100.0;
        (
            "PERFORMANCE_METRIC",
            json!({ "userId": self.user(user), "workspaceId": self.workspace(user), "metric": metric, "value": value, "unit": unit }),
        )
    }

    pub(super) fn call(&mut self, caller: usize, now: i64) -> Deed {
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

    pub(super) fn audit(&self, user: usize, severity: &str) -> Value {
        let who = &self.world.users[user];
        json!({ "userId": who.id, "email": self.email(user), "ip": who.ip, "userAgent": text::AGENTS[who.device], "severity": severity })
    }

    pub(super) fn fail_login(&mut self, user: usize, now: i64, left: u32) -> Deed {
        if left > 1 {
            let pause = 1.0 + self.random.exponential(4.0);
            self.later(now, pause, Planned::FailLogin { user, left: left - 1 });
        }
        let mut payload = self.audit(user, "MEDIUM");
        payload["details"] = "wrong password".into();
        ("LOGIN_FAILED", payload)
    }

    pub(super) fn deny(&mut self, user: usize, now: i64, left: u32) -> Deed {
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

    pub(super) fn export(&mut self, user: usize) -> Deed {
        let mut payload = self.audit(user, "CRITICAL");
        payload["resource"] = format!("workspace:{}", self.workspace(user)).into();
        payload["action"] = "export".into();
        payload["details"] = format!("{} rows as csv", 100 + self.random.below(100_000)).into();
        ("DATA_EXPORTED", payload)
    }

    pub(super) fn new_user(&mut self, now: i64) -> Deed {
        let user = self.world.users.len() + self.unborn.len();
        self.unborn.insert(user);
        if self.random.chance(0.3) {
            let (after, banned) = (self.random.exponential(120.0), self.random.chance(0.4));
            self.later(now, after, Planned::Left { user, banned });
        }
        let id = format!("usr_{user:05}");
        ("USER_CREATED", json!({ "userId": id, "email": format!("{id}@example.com"), "displayName": format!("User {user}") }))
    }

    pub(super) fn updated(&mut self, user: usize) -> Deed {
        let changes = json!({ "displayName": format!("User {user} {}", self.random.below(100)) });
        ("USER_UPDATED", json!({ "userId": self.user(user), "changes": changes }))
    }
}
