//! Accounts and sessions: the same calls, the same answers, in SQLite, MySQL and Redis.
//!
//! A real store is asked where a `QUIKFLOW_TEST_…` variable names a server; else its tests count as ignored.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod common;

use common::harness;
use common::proxy::{Proxy, Way};
use quikflow_gateway::sign_in::Away;
use quikflow_gateway::sign_in::accounts::{Account, Accounts, Granted, Role, Workspace};
use quikflow_gateway::sign_in::sessions::{MOST_OF_A_USER, Session, Sessions, Turn, Turned};
use quikflow_sinks::stores::sign_in::{SignInStores, sign_in};
use quikflow_topics::ids::EventTime;
use std::sync::Arc;
use std::time::Duration;

/// Where accounts are.
const ACCOUNTS: [&str; 2] = ["accounts", "real:mysql"];
/// Where sessions are.
const SESSIONS: [&str; 2] = ["sessions", "real:redis"];

crate::tests! {
    each ACCOUNTS: async an_account_is_found_by_user_and_address_and_no_two_have_one_address,
    each ACCOUNTS: async of_two_who_take_an_address_at_once_one_has_it,
    each ACCOUNTS: async a_workspace_has_an_admin_from_its_first_moment_to_its_last,
    each ACCOUNTS: async two_admins_who_leave_at_once_leave_one,
    each SESSIONS: async a_session_is_there_until_it_ends_or_is_over,
    each SESSIONS: async a_token_is_exchanged_once_and_a_copy_ends_the_session,
    each SESSIONS: async of_two_who_show_one_token_at_once_one_is_done,
    each SESSIONS: async a_user_has_so_many_sessions_and_no_more,
    each ACCOUNTS: async what_was_answered_is_there_after_the_process_ended,
    async sessions_that_are_away_are_said_to_be,
}

/// A folder, and the stores in it; real ones in a namespace of the folder's name.
struct House {
    dir: tempfile::TempDir,
    real: Vec<String>,
}

impl House {
    fn new(store: &str) -> House {
        common::need(store);
        House { dir: tempfile::tempdir().unwrap(), real: vec![store.to_owned()] }
    }

    fn open(&self) -> SignInStores {
        sign_in(self.dir.path(), &common::urls_for(self.dir.path(), &self.real)).unwrap()
    }
}

fn account(user: &str, email: &str, role: Role) -> Account {
    Account { user: user.into(), email: email.into(), password: format!("$argon2id$of {user}"), role }
}

fn workspace(id: &str, by: &str) -> Workspace {
    Workspace {
        id: id.into(), name: format!("Räume von {by}"), created_by: by.into(), created: EventTime(1_800_000_000_000_000)
    }
}

async fn an_account_is_found_by_user_and_address_and_no_two_have_one_address(store: &'static str) {
    let house = House::new(store);
    let accounts = house.open().accounts;
    assert_eq!(accounts.account("ann").await.unwrap(), None);
    assert!(!accounts.remove_account("ann").await.unwrap());
    // Ids compare as they are: not by a collation, and not with padding.
    for (user, email) in [("ann", "ann@x.org"), ("Ann", "ann@x.org "), ("änn", "änn@x.org"), (&"u".repeat(200), "long@x.org")] {
        assert!(accounts.put_account(&account(user, email, Role::User)).await.unwrap(), "{user}");
        assert_eq!(accounts.account(user).await.unwrap(), Some(account(user, email, Role::User)));
        assert_eq!(accounts.account_by_email(email).await.unwrap(), Some(account(user, email, Role::User)));
    }
    assert_eq!(accounts.account_by_email("ANN@x.org").await.unwrap(), None);
    assert!(!accounts.put_account(&account("bob", "ann@x.org", Role::User)).await.unwrap(), "a second one with the address");
    assert!(!accounts.put_account(&account("Ann", "ann@x.org", Role::User)).await.unwrap(), "the same by a change");
    assert_eq!(accounts.account("bob").await.unwrap(), None);
    // Another address and role; the one before is free.
    assert!(accounts.put_account(&account("ann", "new@x.org", Role::SuperAdmin)).await.unwrap());
    assert!(accounts.put_account(&account("ann", "new@x.org", Role::SuperAdmin)).await.unwrap(), "again changes nothing");
    assert_eq!(accounts.account("ann").await.unwrap(), Some(account("ann", "new@x.org", Role::SuperAdmin)));
    assert!(accounts.put_account(&account("bob", "ann@x.org", Role::Guest)).await.unwrap());
    assert!(accounts.remove_account("bob").await.unwrap());
    assert_eq!(accounts.account_by_email("ann@x.org").await.unwrap(), None);
}

async fn of_two_who_take_an_address_at_once_one_has_it(store: &'static str) {
    let house = House::new(store);
    let (one, other) = (house.open().accounts, house.open().accounts);
    for round in 0..10 {
        let email = format!("{round}@x.org");
        let put = |accounts: Arc<dyn Accounts>, user: String| {
            let account = account(&user, &email, Role::User);
            tokio::spawn(async move { accounts.put_account(&account).await })
        };
        let both = (put(one.clone(), format!("a{round}")), put(other.clone(), format!("b{round}")));
        let (a, b) = (both.0.await.unwrap(), both.1.await.unwrap());
        let done = [&a, &b].iter().filter(|put| matches!(put, Ok(true))).count();
        assert_eq!(done, 1, "{a:?} {b:?}");
        let has = one.account_by_email(&email).await.unwrap().unwrap().user;
        assert_eq!(has.starts_with('a'), matches!(a, Ok(true)), "{has}");
    }
}

async fn a_workspace_has_an_admin_from_its_first_moment_to_its_last(store: &'static str) {
    let house = House::new(store);
    let accounts = house.open().accounts;
    assert_eq!(accounts.grant("w", "bob", Some(Role::User)).await.unwrap(), Granted::Missing);
    assert!(accounts.create_workspace(&workspace("w", "ann")).await.unwrap());
    assert!(!accounts.create_workspace(&workspace("w", "eve")).await.unwrap(), "a second one of that id");
    assert!(accounts.create_workspace(&workspace("v", "bob")).await.unwrap());
    assert_eq!(accounts.role("w", "ann").await.unwrap(), Some(Role::Admin));
    assert_eq!(accounts.role("w", "eve").await.unwrap(), None);
    assert_eq!(accounts.grant("w", "bob", Some(Role::Moderator)).await.unwrap(), Granted::Done);
    assert_eq!(accounts.grant("w", "bob", Some(Role::Moderator)).await.unwrap(), Granted::Done, "again changes nothing");
    assert_eq!(accounts.members("w").await.unwrap(), [("ann".to_owned(), Role::Admin), ("bob".to_owned(), Role::Moderator)]);
    let of_bob = accounts.workspaces("bob").await.unwrap();
    assert_eq!(of_bob, [(workspace("v", "bob"), Role::Admin), (workspace("w", "ann"), Role::Moderator)]);
    for role in [None, Some(Role::User)] {
        assert_eq!(accounts.grant("w", "ann", role).await.unwrap(), Granted::LastAdmin);
    }
    assert_eq!(accounts.grant("w", "bob", Some(Role::Admin)).await.unwrap(), Granted::Done);
    assert_eq!(accounts.grant("w", "ann", None).await.unwrap(), Granted::Done);
    assert_eq!(accounts.grant("w", "ann", None).await.unwrap(), Granted::Missing);
    assert_eq!(accounts.members("w").await.unwrap(), [("bob".to_owned(), Role::Admin)]);
    assert!(accounts.workspaces("ann").await.unwrap().is_empty());
}

async fn two_admins_who_leave_at_once_leave_one(store: &'static str) {
    let house = House::new(store);
    let (one, other) = (house.open().accounts, house.open().accounts);
    for round in 0..10 {
        let id = format!("w{round}");
        one.create_workspace(&workspace(&id, "ann")).await.unwrap();
        one.grant(&id, "bob", Some(Role::Admin)).await.unwrap();
        let leave = |accounts: Arc<dyn Accounts>, user: &'static str| {
            let id = id.clone();
            tokio::spawn(async move { accounts.grant(&id, user, None).await.unwrap() })
        };
        let both = (leave(one.clone(), "ann"), leave(other.clone(), "bob"));
        let mut ended = [both.0.await.unwrap(), both.1.await.unwrap()];
        ended.sort_by_key(|granted| *granted as u8);
        assert_eq!(ended, [Granted::Done, Granted::LastAdmin]);
        assert_eq!(one.members(&id).await.unwrap().len(), 1);
    }
}

/// The beginning of time in these tests.
const NOW: EventTime = EventTime(1_800_000_000_000_000);

fn at(seconds: i64) -> EventTime {
    NOW.plus(seconds * 1_000_000)
}

fn session(id: &str, user: &str, created: i64, lasts: i64) -> Session {
    let about = r#"{"ip":"127.0.0.1","userAgent":"tést"}"#.to_owned();
    let (created, expires) = (at(created), at(created + lasts));
    Session { id: id.into(), user: user.into(), token: format!("{id}-1"), created, expires, about }
}

fn turn(session: &str, from: u32, to: u32, now: i64) -> Turn {
    let token = |number: u32| format!("{session}-{number}");
    let (session, from, to) = (session.to_owned(), token(from), token(to));
    Turn { session, from, to, now: at(now), expires: at(now + 600), grace: Duration::from_secs(10) }
}

async fn a_session_is_there_until_it_ends_or_is_over(store: &'static str) {
    let house = House::new(store);
    let (sessions, elsewhere) = (house.open().sessions, house.open().sessions);
    assert_eq!(sessions.session("s1", at(0)).await.unwrap(), None);
    assert!(!sessions.end("s1").await.unwrap());
    assert_eq!(sessions.end_all("ann").await.unwrap(), 0);
    for id in ["s2", "s1", "s3"] {
        sessions.open(&session(id, "ann", 0, 600)).await.unwrap();
    }
    sessions.open(&session("s4", "Ann ", 0, 600)).await.unwrap();
    assert_eq!(elsewhere.session("s1", at(599)).await.unwrap(), Some(session("s1", "ann", 0, 600)));
    assert_eq!(elsewhere.session("s1", at(600)).await.unwrap(), None);
    assert_eq!(sessions.turn(&turn("s1", 1, 2, 600)).await.unwrap(), Turned::Gone);
    let ids = async |user: &str, now| elsewhere.sessions(user, now).await.unwrap().into_iter().map(|s| s.id).collect::<Vec<_>>();
    assert_eq!(ids("ann", at(0)).await, ["s1", "s2", "s3"]);
    assert!(ids("ann", at(600)).await.is_empty());
    assert!(sessions.end("s2").await.unwrap());
    assert_eq!((elsewhere.session("s2", at(0)).await.unwrap(), ids("ann", at(0)).await.len()), (None, 2));
    assert_eq!(sessions.end_all("ann").await.unwrap(), 2);
    assert_eq!((ids("ann", at(0)).await.len(), ids("Ann ", at(0)).await.len()), (0, 1));
}

async fn a_token_is_exchanged_once_and_a_copy_ends_the_session(store: &'static str) {
    let house = House::new(store);
    let sessions = house.open().sessions;
    assert_eq!(sessions.turn(&turn("s1", 1, 2, 0)).await.unwrap(), Turned::Gone);
    for id in ["s1", "s2"] {
        sessions.open(&session(id, "ann", 0, 600)).await.unwrap();
    }
    assert_eq!(sessions.turn(&turn("s1", 1, 2, 100)).await.unwrap(), Turned::Done);
    let turned = sessions.session("s1", at(100)).await.unwrap().unwrap();
    assert_eq!((turned.token.as_str(), turned.expires, turned.created), ("s1-2", at(700), at(0)));
    // An answer that was lost: within ten seconds the token before is good once more.
    assert_eq!(sessions.turn(&turn("s1", 1, 3, 109)).await.unwrap(), Turned::Done);
    assert_eq!(sessions.turn(&turn("s1", 3, 4, 200)).await.unwrap(), Turned::Done);
    assert_eq!(sessions.turn(&turn("s1", 3, 5, 210)).await.unwrap(), Turned::Stolen);
    assert_eq!(sessions.turn(&turn("s1", 4, 5, 210)).await.unwrap(), Turned::Gone);
    assert_eq!(sessions.session("s1", at(210)).await.unwrap(), None);
    // One that never was any.
    assert_eq!(sessions.turn(&turn("s2", 9, 10, 0)).await.unwrap(), Turned::Stolen);
    assert!(sessions.sessions("ann", at(0)).await.unwrap().is_empty());
}

async fn of_two_who_show_one_token_at_once_one_is_done(store: &'static str) {
    let house = House::new(store);
    let (one, other) = (house.open().sessions, house.open().sessions);
    for round in 0..20 {
        let id = format!("s{round}");
        one.open(&session(&id, "ann", 0, 600)).await.unwrap();
        // Without a grace the second one holds a copy.
        let show = |sessions: Arc<dyn Sessions>, to: u32| {
            let turn = Turn { grace: Duration::ZERO, ..turn(&id, 1, to, 0) };
            tokio::spawn(async move { sessions.turn(&turn).await.unwrap() })
        };
        let both = (show(one.clone(), 2), show(other.clone(), 4));
        let mut ended = [both.0.await.unwrap(), both.1.await.unwrap()];
        ended.sort_by_key(|turned| *turned as u8);
        assert_eq!(ended, [Turned::Done, Turned::Stolen]);
    }
}

async fn a_user_has_so_many_sessions_and_no_more(store: &'static str) {
    let house = House::new(store);
    let sessions = house.open().sessions;
    sessions.open(&session("other", "bob", 0, 600)).await.unwrap();
    for number in 0..MOST_OF_A_USER as i64 {
        sessions.open(&session(&format!("s{number}"), "ann", number, 600)).await.unwrap();
    }
    // The first one was refreshed lately; the second is the one that is idle for longest.
    assert_eq!(sessions.turn(&turn("s0", 1, 2, 100)).await.unwrap(), Turned::Done);
    sessions.open(&session("last", "ann", 100, 600)).await.unwrap();
    let found: Vec<String> = sessions.sessions("ann", at(100)).await.unwrap().into_iter().map(|session| session.id).collect();
    assert_eq!(found.len(), MOST_OF_A_USER);
    assert!(found.contains(&"s0".to_owned()) && !found.contains(&"s1".to_owned()) && found.contains(&"last".to_owned()));
    assert_eq!(sessions.session("s1", at(100)).await.unwrap(), None);
    assert!(sessions.session("other", at(100)).await.unwrap().is_some());
}

async fn what_was_answered_is_there_after_the_process_ended(store: &'static str) {
    let mut house = House::new(store);
    house.real = ["real:mysql", "real:redis"].into_iter().filter(|real| store == *real).map(str::to_owned).collect();
    let stores = house.open();
    stores.accounts.put_account(&account("ann", "ann@x.org", Role::Admin)).await.unwrap();
    stores.sessions.open(&session("s", "ann", 0, 600)).await.unwrap();
    drop(stores);
    let again = house.open();
    assert_eq!(again.accounts.account("ann").await.unwrap(), Some(account("ann", "ann@x.org", Role::Admin)));
    assert_eq!(again.sessions.session("s", at(0)).await.unwrap(), Some(session("s", "ann", 0, 600)));
    #[cfg(unix)]
    for name in ["accounts", "sessions"] {
        use std::os::unix::fs::PermissionsExt;
        let file = house.dir.path().join(format!("stores/{name}.sqlite"));
        if let Ok(about) = std::fs::metadata(&file) {
            assert_eq!(about.permissions().mode() & 0o077, 0, "others may read {name}");
        }
    }
}

async fn sessions_that_are_away_are_said_to_be() {
    let house = House::new("real:redis");
    let mut urls = common::urls_for(house.dir.path(), &house.real);
    let (proxy, through) = Proxy::before(urls.redis.as_deref().unwrap()).await;
    (urls.redis, urls.longest_call) = (Some(through), Some(Duration::from_secs(2)));
    let sessions = sign_in(house.dir.path(), &urls).unwrap().sessions;
    sessions.open(&session("s", "ann", 0, 600)).await.unwrap();
    for way in [Way::Cut, Way::Held] {
        proxy.set(way);
        let answer = sessions.session("s", at(0)).await;
        assert!(matches!(answer, Err(Away::Unavailable(_))), "{way:?}: {answer:?}");
        proxy.set(Way::Open);
    }
    let mut found = sessions.session("s", at(0)).await;
    for _ in 0..20 {
        if found.is_ok() {
            break;
        }
        found = sessions.session("s", at(0)).await;
    }
    assert_eq!(found.unwrap(), Some(session("s", "ann", 0, 600)));
}
