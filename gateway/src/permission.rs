//! What a user who is signed in may: the table of paths. What is not in it, only the operator and a super
//! admin may; a stream without an end only the operator.
//!
//! Roles within a workspace are looked up where a path names one ([`crate::sign_in::routes`]); this table
//! goes by the account's own role.

use crate::problem::Problem;
use crate::sign_in::SignedIn;
use crate::sign_in::accounts::Role;
use axum::extract::Query;
use axum::http::{Method, Uri};
use percent_encoding::percent_decode_str;

/// A row: methods, path, and the least role. In a path `{}` is anything, `{self}` the user's own id or `me`,
/// `*` at the end all that follows.
type Rule = (&'static [Method], &'static str, Role);

const READ: &[Method] = &[Method::GET, Method::HEAD];

const RULES: [Rule; 20] = [
    (READ, "/api/v1/users/{self}", Role::Guest),
    (READ, "/api/v1/users/{self}/badge", Role::User),
    (READ, "/api/v1/users/{self}/sessions", Role::Guest),
    (&[Method::DELETE], "/api/v1/users/{self}/sessions", Role::Guest),
    (READ, "/api/v1/notifications", Role::User),
    (&[Method::PUT], "/api/v1/notifications/{}/read", Role::User),
    (READ, "/api/v1/workspaces", Role::Guest),
    (&[Method::POST], "/api/v1/workspaces", Role::User),
    (READ, "/api/v1/workspaces/{}/members", Role::Guest),
    (&[Method::PUT, Method::DELETE], "/api/v1/workspaces/{}/members/{}", Role::User),
    (READ, "/api/v1/analytics/*", Role::Admin),
    (READ, "/api/v1/audit/*", Role::Admin),
    (READ, "/v1/views", Role::Admin),
    (READ, "/v1/views/*", Role::Admin),
    (READ, "/v1/topologies", Role::Admin),
    (READ, "/v1/lag", Role::Admin),
    (READ, "/health", Role::Guest),
    (READ, "/docs/*", Role::Guest),
    (READ, "/openapi.json", Role::Guest),
    (READ, "/asyncapi.json", Role::Guest),
];

/// Paths whose query may say `userId`: it has to be the user's own.
const OF_A_USER: [&str; 2] = ["/api/v1/notifications", "/api/v1/notifications/{}/read"];

/// Whether a path is asked for by those who are not signed in yet.
pub(crate) fn is_open(method: &Method, path: &str) -> bool {
    method == Method::POST && ["/api/auth/login", "/api/auth/refresh", "/api/auth/logout"].contains(&path)
}

/// Whether the user may do this.
///
/// # Errors
/// 403.
pub(crate) fn check(who: &SignedIn, method: &Method, uri: &Uri) -> Result<(), Problem> {
    // What goes on for long is admitted once, and would outlive a session.
    let lasts = uri.path() == "/v1/ws" || uri.path().ends_with("/changes");
    if who.role == Role::SuperAdmin && !lasts {
        return Ok(());
    }
    let allowed = |(methods, path, least): &Rule| {
        who.role >= *least
            && methods.contains(method)
            && is_at(path, uri.path(), &who.user)
            && (!OF_A_USER.contains(path) || names_only(uri, &who.user))
    };
    if !lasts && RULES.iter().any(allowed) {
        return Ok(());
    }
    let detail = format!("the role {} may not {method} this path", who.role);
    Err(Problem::new(403, "forbidden", "not allowed").detail(detail))
}

fn is_at(rule: &str, path: &str, user: &str) -> bool {
    let mut given = path.split('/');
    for part in rule.split('/') {
        if part == "*" {
            return given.next().is_some();
        }
        let Some(segment) = given.next() else { return false };
        let same = match part {
            "{}" => !segment.is_empty(),
            "{self}" => segment == "me" || percent_decode_str(segment).decode_utf8().is_ok_and(|id| id == user),
            literal => segment == literal,
        };
        if !same {
            return false;
        }
    }
    given.next().is_none()
}

/// Whether the query names no other `userId` than the user's, and that once at most.
fn names_only(uri: &Uri, user: &str) -> bool {
    let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(uri) else { return false };
    let mut named = pairs.iter().filter(|(name, _)| name == "userId");
    named.next().is_none_or(|(_, value)| value == user) && named.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(user: &str, role: Role, method: Method, uri: &str) -> bool {
        let who = SignedIn { user: user.to_owned(), session: "s".to_owned(), role };
        check(&who, &method, &uri.parse().unwrap()).is_ok()
    }

    #[test]
    fn a_user_may_what_is_its_own_and_nothing_that_is_not_listed() {
        let user = |method, uri: &str| may("ann b/c", Role::User, method, uri);
        for uri in [
            "/api/v1/users/me",
            "/api/v1/users/ann%20b%2Fc",
            "/api/v1/users/me/badge",
            "/api/v1/notifications",
            "/api/v1/notifications?userId=ann%20b%2Fc",
            "/api/v1/notifications?limit=3&userId=ann+b/c",
            "/api/v1/workspaces",
        ] {
            assert!(user(Method::GET, uri), "{uri}");
        }
        for uri in [
            "/api/v1/users/bob",
            "/api/v1/users/",
            "/api/v1/users/me/badge/",
            "/api/v1/users/me/account",
            "/api/v1/notifications?userId=bob",
            "/api/v1/notifications?userId=ann+b/c&userId=bob",
            "/api/v1/notifications?userId=bob&userId=ann+b/c",
            "/api/v1/notifications?user%49d=bob&userId=ann+b/c",
            "/api/v1/channels/c/messages",
            "/api/v1/audit/logs",
            "/v1/sql",
            "/v1/views/channel_activity",
            "/metrics",
            "//api/v1/users/me",
        ] {
            assert!(!user(Method::GET, uri), "{uri}");
        }
        assert!(user(Method::PUT, "/api/v1/notifications/n1/read?userId=ann+b/c"));
        assert!(!user(Method::PUT, "/api/v1/users/me") && !user(Method::POST, "/v1/events") && !user(Method::POST, "/v1/sql"));
    }

    #[test]
    fn more_is_allowed_with_each_role() {
        let may = |role, method, uri| may("ann", role, method, uri);
        assert!(!may(Role::Guest, Method::POST, "/api/v1/workspaces") && may(Role::User, Method::POST, "/api/v1/workspaces"));
        let audit = "/api/v1/audit/logs/search?q=x";
        assert!(!may(Role::Moderator, Method::GET, audit) && may(Role::Admin, Method::GET, audit));
        assert!(may(Role::Admin, Method::GET, "/v1/views/channel_activity") && !may(Role::Admin, Method::POST, "/v1/dlq/replay"));
        assert!(!may(Role::SuperAdmin, Method::GET, "/v1/ws") && !may(Role::Admin, Method::GET, "/v1/views/badges/changes"));
        assert!(may(Role::SuperAdmin, Method::POST, "/v1/dlq/replay") && may(Role::SuperAdmin, Method::POST, "/v1/events"));
    }
}
