//! Accounts, workspaces and roles in SQLite.

use super::sqlite::Small;
use quikflow_gateway::sign_in::Away;
use quikflow_gateway::sign_in::accounts::{Account, Accounts, Granted, Role, Workspace};
use quikflow_topics::ids::EventTime;
use rusqlite::{Connection, OptionalExtension, Row};
use std::path::Path;

const TABLES: &str =
    "CREATE TABLE IF NOT EXISTS accounts(user TEXT PRIMARY KEY, email TEXT NOT NULL UNIQUE, password TEXT NOT NULL,
        role TEXT NOT NULL) WITHOUT ROWID;
     CREATE TABLE IF NOT EXISTS workspaces(id TEXT PRIMARY KEY, name TEXT NOT NULL, created_by TEXT NOT NULL,
        created INTEGER NOT NULL) WITHOUT ROWID;
     CREATE TABLE IF NOT EXISTS roles(workspace TEXT NOT NULL, user TEXT NOT NULL, role TEXT NOT NULL,
        PRIMARY KEY(workspace, user)) WITHOUT ROWID;
     CREATE INDEX IF NOT EXISTS roles_by_user ON roles(user, workspace);";

/// The embedded store.
pub(super) struct Embedded(Small);

impl Embedded {
    pub(super) fn new(dir: &Path) -> Embedded {
        Embedded(Small::new("accounts", dir.join("stores/accounts.sqlite"), TABLES))
    }

    async fn one(&self, column: &'static str, value: &str) -> Result<Option<Account>, Away> {
        let value = value.to_owned();
        let sql = match column {
            "email" => "SELECT user, email, password, role FROM accounts WHERE email = ?1",
            _ => "SELECT user, email, password, role FROM accounts WHERE user = ?1",
        };
        self.0.read(move |connection| connection.prepare_cached(sql)?.query_row([value], account).optional()).await
    }
}

/// A role as it is stored; one that is not known, of another version, may nothing.
fn role(row: &Row<'_>, at: usize) -> rusqlite::Result<Role> {
    Ok(Role::of(&row.get::<_, String>(at)?).unwrap_or(Role::Guest))
}

fn account(row: &Row<'_>) -> rusqlite::Result<Account> {
    Ok(Account { user: row.get(0)?, email: row.get(1)?, password: row.get(2)?, role: role(row, 3)? })
}

fn is_there(connection: &Connection, sql: &str, values: &[&str]) -> rusqlite::Result<bool> {
    connection.prepare_cached(sql)?.exists(rusqlite::params_from_iter(values))
}

#[async_trait::async_trait]
impl Accounts for Embedded {
    async fn account(&self, user: &str) -> Result<Option<Account>, Away> {
        self.one("user", user).await
    }

    async fn account_by_email(&self, email: &str) -> Result<Option<Account>, Away> {
        self.one("email", email).await
    }

    async fn put_account(&self, account: &Account) -> Result<bool, Away> {
        let Account { user, email, password, role } = account.clone();
        self.0
            .write(move |transaction| {
                if is_there(transaction, "SELECT 1 FROM accounts WHERE email = ?1 AND user <> ?2", &[&email, &user])? {
                    return Ok(false);
                }
                let sql = "INSERT INTO accounts(user, email, password, role) VALUES(?1, ?2, ?3, ?4) ON CONFLICT(user) DO UPDATE
                           SET email = excluded.email, password = excluded.password, role = excluded.role";
                transaction.execute(sql, [user.as_str(), &email, &password, role.name()]).map(|_| true)
            })
            .await
    }

    async fn remove_account(&self, user: &str) -> Result<bool, Away> {
        let user = user.to_owned();
        self.0.write(move |transaction| Ok(transaction.execute("DELETE FROM accounts WHERE user = ?1", [user])? > 0)).await
    }

    async fn create_workspace(&self, workspace: &Workspace) -> Result<bool, Away> {
        let Workspace { id, name, created_by, created } = workspace.clone();
        self.0
            .write(move |transaction| {
                let sql = "INSERT INTO workspaces(id, name, created_by, created) VALUES(?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING";
                if transaction.execute(sql, rusqlite::params![id, name, created_by, created.0])? == 0 {
                    return Ok(false);
                }
                let sql = "INSERT INTO roles(workspace, user, role) VALUES(?1, ?2, ?3)";
                transaction.execute(sql, [id.as_str(), &created_by, Role::Admin.name()]).map(|_| true)
            })
            .await
    }

    async fn workspaces(&self, user: &str) -> Result<Vec<(Workspace, Role)>, Away> {
        let user = user.to_owned();
        let sql = "SELECT w.id, w.name, w.created_by, w.created, r.role FROM roles r JOIN workspaces w ON w.id = r.workspace
                   WHERE r.user = ?1 ORDER BY w.id";
        self.0
            .read(move |connection| {
                let mut statement = connection.prepare_cached(sql)?;
                let rows = statement.query_map([user], |row| {
                    let created = EventTime(row.get(3)?);
                    let workspace = Workspace { id: row.get(0)?, name: row.get(1)?, created_by: row.get(2)?, created };
                    Ok((workspace, role(row, 4)?))
                })?;
                rows.collect()
            })
            .await
    }

    async fn members(&self, workspace: &str) -> Result<Vec<(String, Role)>, Away> {
        let workspace = workspace.to_owned();
        let sql = "SELECT user, role FROM roles WHERE workspace = ?1 ORDER BY user";
        self.0
            .read(move |connection| {
                let mut statement = connection.prepare_cached(sql)?;
                let rows = statement.query_map([workspace], |row| Ok((row.get(0)?, role(row, 1)?)))?;
                rows.collect()
            })
            .await
    }

    async fn role(&self, workspace: &str, user: &str) -> Result<Option<Role>, Away> {
        let (workspace, user) = (workspace.to_owned(), user.to_owned());
        let sql = "SELECT role FROM roles WHERE workspace = ?1 AND user = ?2";
        let one = move |connection: &Connection| {
            connection.prepare_cached(sql)?.query_row([workspace, user], |row| role(row, 0)).optional()
        };
        self.0.read(one).await
    }

    async fn grant(&self, workspace: &str, user: &str, role: Option<Role>) -> Result<Granted, Away> {
        let (workspace, user) = (workspace.to_owned(), user.to_owned());
        self.0
            .write(move |transaction| {
                if !is_there(transaction, "SELECT 1 FROM workspaces WHERE id = ?1", &[&workspace])? {
                    return Ok(Granted::Missing);
                }
                let admin = "SELECT 1 FROM roles WHERE workspace = ?1 AND user = ?2 AND role = 'admin'";
                let others = "SELECT 1 FROM roles WHERE workspace = ?1 AND user <> ?2 AND role = 'admin'";
                let who = [workspace.as_str(), &user];
                if role != Some(Role::Admin) && is_there(transaction, admin, &who)? && !is_there(transaction, others, &who)? {
                    return Ok(Granted::LastAdmin);
                }
                let changed = match role {
                    Some(role) => transaction.execute(
                        "INSERT INTO roles(workspace, user, role) VALUES(?1, ?2, ?3)
                         ON CONFLICT(workspace, user) DO UPDATE SET role = excluded.role",
                        [workspace.as_str(), &user, role.name()],
                    )?,
                    None => transaction.execute("DELETE FROM roles WHERE workspace = ?1 AND user = ?2", who)?,
                };
                Ok(if changed > 0 { Granted::Done } else { Granted::Missing })
            })
            .await
    }
}
