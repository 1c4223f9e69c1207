//! Who is there: workspaces, users, channels and their members, calls going on, sessions open.

use super::random::{Random, Zipf};

/// A user.
#[derive(Clone, Debug)]
pub(crate) struct User {
    /// `usr_0017`
    pub(crate) id: String,
    /// Their workspace, by index.
    pub(crate) workspace: usize,
    /// Index in the devices' list.
    pub(crate) device: usize,
    /// Where they connect from.
    pub(crate) ip: String,
    /// Channels they are in, by index, the busiest first.
    pub(crate) channels: Vec<usize>,
    /// Online now.
    pub(crate) online: bool,
}

/// A channel.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    /// `chn_003`
    pub(crate) id: String,
    /// Members, by index.
    pub(crate) members: Vec<usize>,
    /// The newest messages (id, author): to edit, delete, react and reply to.
    pub(crate) recent: Vec<(String, usize)>,
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// Workspace ids.
    pub(crate) workspaces: Vec<String>,
    /// Users.
    pub(crate) users: Vec<User>,
    /// Channels.
    pub(crate) channels: Vec<Channel>,
    /// Which user acts: few are busy.
    pub(crate) activity: Zipf,
}

impl World {
    /// So many users in workspaces of some 200, each workspace with its channels.
    pub(crate) fn new(users: usize, random: &mut Random) -> World {
        let users = users.max(2);
        let workspaces = users.div_ceil(200);
        let per_workspace = (users.div_ceil(workspaces) / 6).clamp(3, 40);
        let mut channels: Vec<Channel> = (0..workspaces * per_workspace)
            .map(|at| Channel { id: format!("chn_{at:04}"), members: Vec::new(), recent: Vec::new() })
            .collect();
        let joining = Zipf::new(per_workspace, 0.8);
        let users: Vec<User> = (0..users)
            .map(|at| {
                let workspace = at % workspaces;
                let first = workspace * per_workspace;
                // Everyone is in the workspace's general channel, and in a few more.
                let mut mine = vec![first];
                for _ in 0..2 + random.index(5) {
                    let channel = first + joining.draw(random);
                    if !mine.contains(&channel) {
                        mine.push(channel);
                    }
                }
                mine.sort_unstable();
                for &channel in &mine {
                    channels[channel].members.push(at);
                }
                User {
                    id: format!("usr_{at:05}"),
                    workspace,
                    device: random.index(4),
                    ip: format!("10.{}.{}.{}", random.below(32), random.below(256), 1 + random.below(254)),
                    channels: mine,
                    online: false,
                }
            })
            .collect();
        World {
            workspaces: (0..workspaces).map(|at| format!("ws_{}", at + 1)).collect(),
            activity: Zipf::new(users.len(), 0.9),
            users,
            channels,
        }
    }

    /// A user who does something now.
    pub(crate) fn actor(&self, random: &mut Random) -> usize {
        // Spread ranks over workspaces: neighbours in rank are in different ones.
        self.activity.draw(random)
    }

    /// A user's channel: the busier the more often.
    pub(crate) fn channel_of(&self, user: usize, random: &mut Random) -> usize {
        let mine = &self.users[user].channels;
        mine[Zipf::new(mine.len(), 1.0).draw(random)]
    }

    /// Another member of a channel, if there is one.
    pub(crate) fn other_member(&self, channel: usize, not: usize, random: &mut Random) -> Option<usize> {
        let members = &self.channels[channel].members;
        (0..4).map(|_| *random.pick(members)).find(|&member| member != not)
    }
}
