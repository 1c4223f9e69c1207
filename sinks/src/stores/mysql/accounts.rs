//! Accounts, workspaces and roles: tables of their own, made by migrations. Reads that let somebody in are
//! the primary's; lists are the replica's where one is set.

use super::faults::{fault, number_of};
use super::{NAME, Sql};
use crate::store::StoreError;
use crate::stores::remote::Backend;
use crate::stores::remote::client::Pool;
use crate::stores::sign_in::away;
use quikflow_gateway::sign_in::Away;
use quikflow_gateway::sign_in::accounts::{Account, Accounts, Granted, Role, Workspace};
use quikflow_topics::ids::EventTime;
use sqlx::mysql::{MySqlPool, MySqlRow};
use sqlx::{Error, Row};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;

/// The tables, in the order in which they came. Ids compare byte by byte: they are binary. 800 bytes are 200 characters.
pub(super) const TABLES: [(&str, &str); 3] = [
    (
        "accounts",
        "CREATE TABLE IF NOT EXISTS _quikflow_accounts (user_id VARBINARY(800) PRIMARY KEY, email VARBINARY(1280) NOT NULL,
         password TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL, role VARCHAR(32) CHARACTER SET ascii NOT NULL,
         UNIQUE INDEX `by email` (email)) ENGINE = InnoDB ROW_FORMAT = DYNAMIC",
    ),
    (
        "workspaces",
        "CREATE TABLE IF NOT EXISTS _quikflow_workspaces (id VARBINARY(800) PRIMARY KEY, name TEXT CHARACTER SET utf8mb4
         COLLATE utf8mb4_bin NOT NULL, created_by VARBINARY(800) NOT NULL, created BIGINT NOT NULL)
         ENGINE = InnoDB ROW_FORMAT = DYNAMIC",
    ),
    (
        "roles in workspaces",
        "CREATE TABLE IF NOT EXISTS _quikflow_roles (workspace_id VARBINARY(800) NOT NULL, user_id VARBINARY(800) NOT NULL,
         role VARCHAR(32) CHARACTER SET ascii NOT NULL, PRIMARY KEY (workspace_id, user_id), INDEX `by user` (user_id))
         ENGINE = InnoDB ROW_FORMAT = DYNAMIC",
    ),
];

/// A row of the same key is there already.
const DUPLICATE: u16 = 1062;

/// Accounts on a MySQL server, for callers on any thread.
pub(crate) struct Shared {
    sql: Arc<Sql>,
    pool: Arc<Pool>,
    longest: Duration,
    prepared: Arc<OnceCell<()>>,
}

impl Shared {
    pub(crate) fn new(sql: Sql, pool: Arc<Pool>, longest: Duration) -> Shared {
        Shared { sql: Arc::new(sql), pool, longest, prepared: Arc::default() }
    }

    async fn run<T, F>(&self, call: impl FnOnce(Arc<Sql>) -> F + Send + 'static) -> Result<T, Away>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        let (sql, prepared) = (self.sql.clone(), self.prepared.clone());
        let call = async move {
            prepared.get_or_try_init(|| sql.prepare()).await?;
            call(sql).await
        };
        self.pool.on(NAME, self.longest, call).await.map_err(away)
    }

    /// The account that a question for one of them finds.
    async fn one(&self, question: &'static str, value: &str) -> Result<Option<Account>, Away> {
        let value = value.as_bytes().to_vec();
        self.run(async move |sql| {
            let one = sqlx::query(question).bind(value);
            let found = one.fetch_optional(sql.pool().await?).await.map_err(fault)?;
            found.as_ref().map(account).transpose().map_err(fault)
        })
        .await
    }
}

fn text(row: &MySqlRow, at: usize) -> Result<String, Error> {
    Ok(String::from_utf8_lossy(&row.try_get::<Vec<u8>, _>(at)?).into_owned())
}

/// A role as it is stored; one that is not known, of another version, may nothing.
fn role(row: &MySqlRow, at: usize) -> Result<Role, Error> {
    Ok(Role::of(&row.try_get::<String, _>(at)?).unwrap_or(Role::Guest))
}

fn account(row: &MySqlRow) -> Result<Account, Error> {
    Ok(Account { user: text(row, 0)?, email: text(row, 1)?, password: row.try_get(2)?, role: role(row, 3)? })
}

fn workspace(row: &MySqlRow) -> Result<(Workspace, Role), Error> {
    let created = EventTime(row.try_get(3)?);
    let workspace = Workspace { id: text(row, 0)?, name: row.try_get(1)?, created_by: text(row, 2)?, created };
    Ok((workspace, role(row, 4)?))
}

/// Makes or replaces an account. False: another one has the e-mail address.
async fn put(pool: &MySqlPool, account: &Account) -> Result<bool, Error> {
    loop {
        match put_once(pool, account).await {
            // The address, or the account was made by another process a moment ago.
            Err(error) if number_of(&error) == DUPLICATE => {
                let other = sqlx::query("SELECT 1 FROM _quikflow_accounts WHERE email = ? AND user_id <> ?");
                let other = other.bind(account.email.as_bytes()).bind(account.user.as_bytes()).fetch_optional(pool).await?;
                if other.is_some() {
                    return Ok(false);
                }
            }
            done => return done.map(|()| true),
        }
    }
}

async fn put_once(pool: &MySqlPool, account: &Account) -> Result<(), Error> {
    // By the user's id alone: `ON DUPLICATE KEY UPDATE` would change the account that has the address.
    let changed = sqlx::query("UPDATE _quikflow_accounts SET email = ?, password = ?, role = ? WHERE user_id = ?")
        .bind(account.email.as_bytes())
        .bind(&account.password)
        .bind(account.role.name())
        .bind(account.user.as_bytes());
    if changed.execute(pool).await?.rows_affected() > 0 {
        return Ok(());
    }
    let made = sqlx::query("INSERT INTO _quikflow_accounts (user_id, email, password, role) VALUES (?, ?, ?, ?)")
        .bind(account.user.as_bytes())
        .bind(account.email.as_bytes())
        .bind(&account.password)
        .bind(account.role.name());
    made.execute(pool).await.map(drop)
}

async fn create(pool: &MySqlPool, workspace: &Workspace) -> Result<bool, Error> {
    let mut change = pool.begin().await?;
    let made = sqlx::query("INSERT INTO _quikflow_workspaces (id, name, created_by, created) VALUES (?, ?, ?, ?)")
        .bind(workspace.id.as_bytes())
        .bind(&workspace.name)
        .bind(workspace.created_by.as_bytes())
        .bind(workspace.created.0)
        .execute(&mut *change)
        .await;
    if let Err(error) = made {
        return if number_of(&error) == DUPLICATE { Ok(false) } else { Err(error) };
    }
    sqlx::query("INSERT INTO _quikflow_roles (workspace_id, user_id, role) VALUES (?, ?, ?)")
        .bind(workspace.id.as_bytes())
        .bind(workspace.created_by.as_bytes())
        .bind(Role::Admin.name())
        .execute(&mut *change)
        .await?;
    change.commit().await?;
    Ok(true)
}

async fn grant(pool: &MySqlPool, workspace: &str, user: &str, role: Option<Role>) -> Result<Granted, Error> {
    let mut change = pool.begin().await?;
    // The workspace's row is the lock under which its admins are counted.
    let there = sqlx::query("SELECT 1 FROM _quikflow_workspaces WHERE id = ? FOR UPDATE").bind(workspace.as_bytes());
    if there.fetch_optional(&mut *change).await?.is_none() {
        return Ok(Granted::Missing);
    }
    if role != Some(Role::Admin) {
        let admins = sqlx::query("SELECT user_id FROM _quikflow_roles WHERE workspace_id = ? AND role = 'admin' LIMIT 2");
        let admins = admins.bind(workspace.as_bytes()).fetch_all(&mut *change).await?;
        let admins = admins.iter().map(|row| text(row, 0)).collect::<Result<Vec<_>, _>>()?;
        if admins == [user] {
            return Ok(Granted::LastAdmin);
        }
    }
    let changed = match role {
        Some(role) => {
            let put = "INSERT INTO _quikflow_roles (workspace_id, user_id, role) VALUES (?, ?, ?)
                       ON DUPLICATE KEY UPDATE role = VALUES(role)";
            let put = sqlx::query(put).bind(workspace.as_bytes()).bind(user.as_bytes()).bind(role.name());
            put.execute(&mut *change).await?;
            true
        }
        None => {
            let taken = sqlx::query("DELETE FROM _quikflow_roles WHERE workspace_id = ? AND user_id = ?");
            taken.bind(workspace.as_bytes()).bind(user.as_bytes()).execute(&mut *change).await?.rows_affected() > 0
        }
    };
    change.commit().await?;
    Ok(if changed { Granted::Done } else { Granted::Missing })
}

#[async_trait::async_trait]
impl Accounts for Shared {
    async fn account(&self, user: &str) -> Result<Option<Account>, Away> {
        self.one("SELECT user_id, email, password, role FROM _quikflow_accounts WHERE user_id = ?", user).await
    }

    async fn account_by_email(&self, email: &str) -> Result<Option<Account>, Away> {
        self.one("SELECT user_id, email, password, role FROM _quikflow_accounts WHERE email = ?", email).await
    }

    async fn put_account(&self, account: &Account) -> Result<bool, Away> {
        let account = account.clone();
        self.run(async move |sql| put(sql.pool().await?, &account).await.map_err(fault)).await
    }

    async fn remove_account(&self, user: &str) -> Result<bool, Away> {
        let user = user.as_bytes().to_vec();
        self.run(async move |sql| {
            let taken = sqlx::query("DELETE FROM _quikflow_accounts WHERE user_id = ?").bind(user);
            Ok(taken.execute(sql.pool().await?).await.map_err(fault)?.rows_affected() > 0)
        })
        .await
    }

    async fn create_workspace(&self, workspace: &Workspace) -> Result<bool, Away> {
        let workspace = workspace.clone();
        self.run(async move |sql| create(sql.pool().await?, &workspace).await.map_err(fault)).await
    }

    async fn workspaces(&self, user: &str) -> Result<Vec<(Workspace, Role)>, Away> {
        let user = user.as_bytes().to_vec();
        self.run(async move |sql| {
            sql.reading(|pool| {
                let user = user.clone();
                async move {
                    let all = "SELECT w.id, w.name, w.created_by, w.created, r.role FROM _quikflow_roles r
                               JOIN _quikflow_workspaces w ON w.id = r.workspace_id WHERE r.user_id = ? ORDER BY w.id";
                    let found = sqlx::query(all).bind(user).fetch_all(pool).await.map_err(fault)?;
                    found.iter().map(|row| workspace(row).map_err(fault)).collect()
                }
            })
            .await
        })
        .await
    }

    async fn members(&self, workspace: &str) -> Result<Vec<(String, Role)>, Away> {
        let workspace = workspace.as_bytes().to_vec();
        self.run(async move |sql| {
            sql.reading(|pool| {
                let workspace = workspace.clone();
                async move {
                    let all = "SELECT user_id, role FROM _quikflow_roles WHERE workspace_id = ? ORDER BY user_id";
                    let found = sqlx::query(all).bind(workspace).fetch_all(pool).await.map_err(fault)?;
                    found.iter().map(|row| Ok((text(row, 0).map_err(fault)?, role(row, 1).map_err(fault)?))).collect()
                }
            })
            .await
        })
        .await
    }

    async fn role(&self, workspace: &str, user: &str) -> Result<Option<Role>, Away> {
        let (workspace, user) = (workspace.as_bytes().to_vec(), user.as_bytes().to_vec());
        self.run(async move |sql| {
            let one = sqlx::query("SELECT role FROM _quikflow_roles WHERE workspace_id = ? AND user_id = ?");
            let found = one.bind(workspace).bind(user).fetch_optional(sql.pool().await?).await.map_err(fault)?;
            found.map(|row| role(&row, 0)).transpose().map_err(fault)
        })
        .await
    }

    async fn grant(&self, workspace: &str, user: &str, role: Option<Role>) -> Result<Granted, Away> {
        let (workspace, user) = (workspace.to_owned(), user.to_owned());
        self.run(async move |sql| grant(sql.pool().await?, &workspace, &user, role).await.map_err(fault)).await
    }
}
