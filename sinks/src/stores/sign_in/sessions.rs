//! Sessions in SQLite.

use super::sqlite::Small;
use quikflow_gateway::sign_in::Away;
use quikflow_gateway::sign_in::sessions::{MOST_OF_A_USER, Session, Sessions, Turn, Turned};
use quikflow_topics::ids::EventTime;
use rusqlite::{OptionalExtension, Row};
use std::path::Path;

const TABLES: &str = "CREATE TABLE IF NOT EXISTS sessions(id TEXT PRIMARY KEY, user TEXT NOT NULL, token TEXT NOT NULL,
        before TEXT NOT NULL, turned INTEGER NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL,
        about TEXT NOT NULL) WITHOUT ROWID;
     CREATE INDEX IF NOT EXISTS sessions_by_user ON sessions(user, expires);
     CREATE INDEX IF NOT EXISTS sessions_by_end ON sessions(expires);";

/// Sessions that are over and taken away with a new one, at most.
const SWEPT: i64 = 1_000;

/// The embedded store.
pub(super) struct Embedded(Small);

impl Embedded {
    pub(super) fn new(dir: &Path) -> Embedded {
        Embedded(Small::new("sessions", dir.join("stores/sessions.sqlite"), TABLES))
    }
}

fn session(row: &Row<'_>) -> rusqlite::Result<Session> {
    let time = |at: usize| row.get(at).map(EventTime);
    let (id, user, token) = (row.get(0)?, row.get(1)?, row.get(2)?);
    Ok(Session { id, user, token, created: time(3)?, expires: time(4)?, about: row.get(5)? })
}

#[async_trait::async_trait]
impl Sessions for Embedded {
    async fn open(&self, session: &Session) -> Result<(), Away> {
        let Session { id, user, token, created, expires, about } = session.clone();
        self.0
            .write(move |transaction| {
                let over = "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE expires <= ?1 LIMIT ?2)";
                transaction.execute(over, [created.0, SWEPT])?;
                let sql = "INSERT INTO sessions(id, user, token, before, turned, created, expires, about)
                           VALUES(?1, ?2, ?3, '', 0, ?4, ?5, ?6)";
                transaction.execute(sql, rusqlite::params![id, user, token, created.0, expires.0, about])?;
                let idlest = "DELETE FROM sessions WHERE id IN
                              (SELECT id FROM sessions WHERE user = ?1 ORDER BY expires DESC, id DESC LIMIT -1 OFFSET ?2)";
                let most = i64::try_from(MOST_OF_A_USER).unwrap_or(i64::MAX);
                transaction.execute(idlest, rusqlite::params![user, most]).map(drop)
            })
            .await
    }

    async fn session(&self, id: &str, now: EventTime) -> Result<Option<Session>, Away> {
        let id = id.to_owned();
        let sql = "SELECT id, user, token, created, expires, about FROM sessions WHERE id = ?1 AND expires > ?2";
        self.0
            .read(move |connection| connection.prepare_cached(sql)?.query_row(rusqlite::params![id, now.0], session).optional())
            .await
    }

    async fn sessions(&self, user: &str, now: EventTime) -> Result<Vec<Session>, Away> {
        let user = user.to_owned();
        let sql = "SELECT id, user, token, created, expires, about FROM sessions WHERE user = ?1 AND expires > ?2
                   ORDER BY created, id";
        self.0
            .read(move |connection| {
                let mut statement = connection.prepare_cached(sql)?;
                let rows = statement.query_map(rusqlite::params![user, now.0], session)?;
                rows.collect()
            })
            .await
    }

    async fn turn(&self, turn: &Turn) -> Result<Turned, Away> {
        let turn = turn.clone();
        self.0
            .write(move |transaction| {
                let sql = "SELECT token, before, turned FROM sessions WHERE id = ?1 AND expires > ?2";
                let found = transaction.prepare_cached(sql)?.query_row(rusqlite::params![turn.session, turn.now.0], |row| {
                    Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?))
                });
                let Some((token, before, turned)) = found.optional()? else { return Ok(Turned::Gone) };
                let grace = i64::try_from(turn.grace.as_micros()).unwrap_or(i64::MAX);
                if token != turn.from && (before != turn.from || turn.now.minus(turned).0 >= grace) {
                    transaction.execute("DELETE FROM sessions WHERE id = ?1", [turn.session])?;
                    return Ok(Turned::Stolen);
                }
                let sql = "UPDATE sessions SET token = ?2, before = token, turned = ?3, expires = ?4 WHERE id = ?1";
                transaction.execute(sql, rusqlite::params![turn.session, turn.to, turn.now.0, turn.expires.0])?;
                Ok(Turned::Done)
            })
            .await
    }

    async fn end(&self, id: &str) -> Result<bool, Away> {
        let id = id.to_owned();
        self.0.write(move |transaction| Ok(transaction.execute("DELETE FROM sessions WHERE id = ?1", [id])? > 0)).await
    }

    async fn end_all(&self, user: &str) -> Result<u64, Away> {
        let user = user.to_owned();
        let all = "DELETE FROM sessions WHERE user = ?1";
        self.0.write(move |transaction| Ok(transaction.execute(all, [user])? as u64)).await
    }
}
