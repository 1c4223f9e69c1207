//! Workspaces, and who is what in them.

use super::accounts::{Granted, Role, Workspace};
use super::routes::{Body, Door, denied, field, id, role};
use crate::guard::Caller;
use crate::problem::Problem;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// Whose workspaces: of one who is signed in its own. The operator names a user.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Whose {
    user_id: Option<String>,
}

fn about(caller: &Caller, named: Option<&str>) -> Result<String, Problem> {
    let user = caller.about(named)?.ok_or_else(|| field("userId", "missing", "say whose: ?userId="))?;
    Ok(user.to_owned())
}

pub(super) async fn workspaces(
    State(door): State<Arc<Door>>,
    Extension(caller): Extension<Caller>,
    Query(whose): Query<Whose>,
) -> Result<Json<Value>, Problem> {
    let user = about(&caller, whose.user_id.as_deref())?;
    let found = door.sign_in.accounts.workspaces(&user).await?;
    let shown = |(workspace, role): &(Workspace, Role)| json!({ "id": workspace.id, "name": workspace.name, "role": role });
    Ok(Json(json!({ "items": found.iter().map(shown).collect::<Vec<_>>() })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct NewWorkspace {
    id: String,
    name: String,
    user_id: Option<String>,
}

pub(super) async fn create_workspace(
    State(door): State<Arc<Door>>,
    Extension(caller): Extension<Caller>,
    Body(given): Body<NewWorkspace>,
) -> Result<Response, Problem> {
    id(&given.id, "id")?;
    id(&given.name, "name")?;
    let created_by = about(&caller, given.user_id.as_deref())?;
    id(&created_by, "userId")?;
    let created = door.sign_in.clock.now();
    let workspace = Workspace { id: given.id, name: given.name, created_by, created };
    if !door.sign_in.accounts.create_workspace(&workspace).await? {
        return Err(Problem::new(409, "taken", "there is a workspace of this id"));
    }
    let body = json!({ "id": workspace.id, "name": workspace.name, "role": Role::Admin });
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

/// Who asks has to be at least so much in the workspace.
async fn at_least(door: &Door, caller: &Caller, workspace: &str, least: Role) -> Result<(), Problem> {
    let Caller::User(who) = caller else { return Ok(()) };
    if who.role == Role::SuperAdmin || door.sign_in.accounts.role(workspace, &who.user).await?.is_some_and(|role| role >= least) {
        return Ok(());
    }
    Err(denied("this needs a role in the workspace"))
}

pub(super) async fn members(
    State(door): State<Arc<Door>>,
    Extension(caller): Extension<Caller>,
    Path(workspace): Path<String>,
) -> Result<Json<Value>, Problem> {
    at_least(&door, &caller, &workspace, Role::Guest).await?;
    let found = door.sign_in.accounts.members(&workspace).await?;
    let shown = |(user, role): &(String, Role)| json!({ "userId": user, "role": role });
    Ok(Json(json!({ "items": found.iter().map(shown).collect::<Vec<_>>() })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRole {
    role: String,
}

pub(super) async fn grant(
    State(door): State<Arc<Door>>,
    Extension(caller): Extension<Caller>,
    Path((workspace, user)): Path<(String, String)>,
    Body(given): Body<NewRole>,
) -> Result<Json<Value>, Problem> {
    let user = caller.meant(&user).to_owned();
    id(&user, "user")?;
    let role = role(&given.role)?;
    if role == Role::SuperAdmin {
        return Err(field("role", "one_of", "super_admin is an account's role, not one within a workspace"));
    }
    at_least(&door, &caller, &workspace, Role::Admin).await?;
    granted(door.sign_in.accounts.grant(&workspace, &user, Some(role)).await?)?;
    Ok(Json(json!({ "userId": user, "role": role })))
}

pub(super) async fn revoke(
    State(door): State<Arc<Door>>,
    Extension(caller): Extension<Caller>,
    Path((workspace, user)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let user = caller.meant(&user).to_owned();
    // Whoever is in it may leave it.
    let leaves = matches!(&caller, Caller::User(who) if who.user == user);
    at_least(&door, &caller, &workspace, if leaves { Role::Guest } else { Role::Admin }).await?;
    granted(door.sign_in.accounts.grant(&workspace, &user, None).await?)?;
    Ok(StatusCode::NO_CONTENT)
}

fn granted(granted: Granted) -> Result<(), Problem> {
    match granted {
        Granted::Done => Ok(()),
        Granted::Missing => Err(Problem::new(404, "not_found", "there is no such workspace, or nobody of that name in it")),
        Granted::LastAdmin => {
            Err(Problem::new(409, "last_admin", "a workspace keeps an admin").detail("make somebody else its admin first"))
        }
    }
}
