//! Who may sign in, the workspaces, and who is what in them: what the gateway asks of a store.
//!
//! `quikflow-sinks` has them in MySQL, and in SQLite where no URL is set. Accounts are no records: a
//! password's hash never passes through a topic.

use super::Away;
use quikflow_topics::ids::EventTime;
use serde::Serialize;
use std::fmt;

/// What somebody may do; each may what those before it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads what is open to all.
    Guest,
    /// Reads and writes what is its own.
    #[default]
    User,
    /// Takes away what others wrote.
    Moderator,
    /// Manages members; reads analytics and the audit log.
    Admin,
    /// Everything, in every workspace.
    SuperAdmin,
}

impl Role {
    /// All of them, the least first.
    pub const ALL: [Role; 5] = [Role::Guest, Role::User, Role::Moderator, Role::Admin, Role::SuperAdmin];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Role::Guest => "guest",
            Role::User => "user",
            Role::Moderator => "moderator",
            Role::Admin => "admin",
            Role::SuperAdmin => "super_admin",
        }
    }

    /// By its name.
    pub fn of(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One who may sign in.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    /// The user's id, as in events.
    pub user: String,
    /// In small letters; no two accounts have one.
    pub email: String,
    /// The password's hash as a PHC string.
    pub password: String,
    /// What it may in every workspace.
    pub role: Role,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("user", &self.user).field("role", &self.role).finish_non_exhaustive()
    }
}

/// A workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    /// Its id, as in events.
    pub id: String,
    /// For people.
    pub name: String,
    /// The user who made it.
    pub created_by: String,
    /// When.
    pub created: EventTime,
}

/// What became of a change of somebody's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granted {
    /// It is as asked for.
    Done,
    /// There is no such workspace, or nobody of that name in it to take away.
    Missing,
    /// The workspace would be without an admin: nothing was changed.
    LastAdmin,
}

/// Accounts, workspaces and roles; strong: what was answered is durable, and the next read sees it.
#[async_trait::async_trait]
pub trait Accounts: Send + Sync {
    /// The account of a user.
    async fn account(&self, user: &str) -> Result<Option<Account>, Away>;
    /// The account with this e-mail address, in small letters.
    async fn account_by_email(&self, email: &str) -> Result<Option<Account>, Away>;
    /// Makes or replaces a user's account. False: another one has the e-mail address.
    async fn put_account(&self, account: &Account) -> Result<bool, Away>;
    /// Takes an account away. False: there was none.
    async fn remove_account(&self, user: &str) -> Result<bool, Away>;
    /// Makes a workspace whose creator is its admin from the first moment. False: its id is taken.
    async fn create_workspace(&self, workspace: &Workspace) -> Result<bool, Away>;
    /// A user's workspaces by id, with the role in each. May be of a replica.
    async fn workspaces(&self, user: &str) -> Result<Vec<(Workspace, Role)>, Away>;
    /// Who is in a workspace, by user id. May be of a replica.
    async fn members(&self, workspace: &str) -> Result<Vec<(String, Role)>, Away>;
    /// What a user is in a workspace.
    async fn role(&self, workspace: &str, user: &str) -> Result<Option<Role>, Away>;
    /// Gives a user a role in a workspace, or takes it away.
    async fn grant(&self, workspace: &str, user: &str, role: Option<Role>) -> Result<Granted, Away>;
}
