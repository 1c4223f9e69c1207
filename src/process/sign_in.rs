//! Sign-in over the stores of accounts and sessions, and what the users' table says of a user.

use super::Setup;
use crate::exit::{Context, Failure};
use quikflow_gateway::SignIn;
use quikflow_gateway::sign_in::keys::Keys;
use quikflow_gateway::sign_in::{Away, Standing};
use quikflow_pipelines::plan::Plan;
use quikflow_sinks::store::{Documents, ReadSide};
use quikflow_sinks::stores::sign_in::{away, sign_in};
use quikflow_topics::clock::SharedClock;
use std::sync::Arc;

/// What has to be declared for sign-in to be served: each attempt is one of them.
const EVENTS: [&str; 2] = ["LOGIN_SUCCESS", "LOGIN_FAILED"];
/// The table that says who is banned or deleted.
const USERS: &str = "users";

/// Sign-in, where the declaration file has the events of it.
///
/// # Errors
/// Exit 2 for a store's URL that cannot be read.
pub(super) fn open(setup: &Setup, plan: &Plan, read: &ReadSide, clock: &SharedClock) -> Result<Option<Arc<SignIn>>, Failure> {
    if let Some(missing) = EVENTS.iter().find(|event| !plan.catalogue.events.contains_key(**event)) {
        tracing::info!("sign-in is not served: {} declares no event {missing}", setup.topologies.display());
        return Ok(None);
    }
    let stores = sign_in(&setup.data, &setup.stores).usage("stores")?;
    let has_users = read.tables.tables().iter().any(|table| table.name == USERS);
    let standing = Arc::new(Users(has_users.then(|| read.documents.clone())));
    let keys = setup.keys.clone().unwrap_or_else(|| Arc::new(Keys::own(setup.data.join("jwt-key.pem"))));
    Ok(Some(Arc::new(SignIn::new(stores.accounts, stores.sessions, standing, keys, clock.clone()))))
}

/// The users' table, where there is one.
struct Users(Option<Arc<dyn Documents>>);

#[async_trait::async_trait]
impl Standing for Users {
    async fn barred(&self, user: &str) -> Result<Option<&'static str>, Away> {
        let Some(documents) = &self.0 else { return Ok(None) };
        let found = documents.get(USERS, user).await.map_err(away)?;
        let says = |name: &str| found.as_ref().and_then(|user| user.get(name)?.as_bool()).unwrap_or(false);
        Ok(if says("banned") { Some("banned") } else { says("deleted").then_some("deleted") })
    }
}
