//! `quikflow account`: who may sign in.

use crate::client::{Client, Side, block_on};
use crate::exit::{Context, Ended, Failure, Outcome};
use crate::out;
use crate::settings::Settings;
use crate::table::{self, Table};
use reqwest::Method;
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Read};
use std::path::PathBuf;

/// Bytes of a file with a password, at most.
const LONGEST: u64 = 4_096;

/// Makes, changes and removes the accounts that users sign in with, and signs users out
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow account set ann --email ann@example.org --role admin")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
    /// The running process's address [default: http://127.0.0.1:8080]
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Makes or replaces a user's account; whoever is signed in by it is signed out
    Set {
        /// The user's id, as in events
        user: String,
        /// The e-mail address to sign in with
        #[arg(long)]
        email: String,
        /// guest, user, moderator, admin or super_admin
        #[arg(long, default_value = "user")]
        role: String,
        /// Reads the password's first line from here (- for standard input) instead of asking for it
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Takes an account away, and ends its sessions
    Remove {
        /// The user's id
        user: String,
    },
    /// Where a user is signed in
    Sessions {
        /// The user's id
        user: String,
    },
    /// Ends all of a user's sessions
    SignOut {
        /// The user's id
        user: String,
    },
}

/// Does it.
pub(crate) fn run(args: Args, settings: &Settings) -> Ended {
    let body = match &args.what {
        What::Set { email, role, password_file, .. } => {
            json!({ "email": email, "role": role, "password": password(password_file.as_deref())? })
        }
        _ => Value::Null,
    };
    block_on(ask(&args, settings, &body))?;
    Ok(Outcome::Done)
}

async fn ask(args: &Args, settings: &Settings, body: &Value) -> Result<(), Failure> {
    let client = Client::connect(settings, args.url.as_deref(), Side::Ingest).await?;
    let path = |user: &str, what: &str| format!("/api/v1/users/{}/{what}", super::path_segment(user));
    match &args.what {
        What::Set { user, email, role, .. } => {
            client.send(client.request(Method::PUT, &path(user, "account")).json(body)).await?;
            out::line(format!("{user} signs in as {email}, in the role {role}"))
        }
        What::Remove { user } => {
            client.send(client.request(Method::DELETE, &path(user, "account"))).await?;
            out::line(format!("{user} has no account any more"))
        }
        What::Sessions { user } => {
            let answer = client.get(&path(user, "sessions"), &[]).await?;
            let mut table = Table::new(["id", "since", "until", "address", "program"]);
            for item in answer.get("items").and_then(Value::as_array).into_iter().flatten() {
                let about = |name: &str| table::cell(item.get("about").and_then(|about| about.get(name)));
                let own = |name: &str| table::cell(item.get(name));
                table.row([own("id"), own("created"), own("expires"), about("ip"), about("userAgent")]);
            }
            out::line(table.render())
        }
        What::SignOut { user } => {
            let response = client.send(client.request(Method::DELETE, &path(user, "sessions"))).await?;
            let answer: Value = response.json().await.map_err(|error| Failure::failed(error.to_string()))?;
            out::line(format!("{} sessions of {user} have ended", table::cell(answer.get("ended"))))
        }
    }?;
    Ok(())
}

/// The password: the first line of a file or of standard input, or what is typed, twice and not shown.
fn password(file: Option<&std::path::Path>) -> Result<String, Failure> {
    let from_stdin = || {
        let mut line = String::new();
        std::io::stdin().lock().take(LONGEST).read_line(&mut line).usage("standard input")?;
        Ok(line)
    };
    let text: Result<String, Failure> = match file {
        Some(path) if path == std::path::Path::new("-") => from_stdin(),
        Some(path) => {
            let mut text = String::new();
            let file = std::fs::File::open(path).usage(path.display())?;
            file.take(LONGEST).read_to_string(&mut text).usage(path.display())?;
            Ok(text)
        }
        None if std::io::stdin().is_terminal() => {
            let ask = |prompt: &str| rpassword::prompt_password(prompt).usage("the terminal");
            let typed = ask("Password: ")?;
            if ask("Again: ")? != typed {
                return Err(Failure::usage("the two passwords are not the same"));
            }
            Ok(typed)
        }
        None => from_stdin(),
    };
    Ok(text?.lines().next().unwrap_or_default().to_owned())
}
