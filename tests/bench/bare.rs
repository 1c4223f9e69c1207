//! The floor of one event a request: a server on the same library that reads each body, answers 202
//! and keeps nothing. It is this program again, as a process of its own, so that its CPU time is.

use std::error::Error;
use std::io::BufRead as _;
use std::process::{Child, Command, Stdio};

/// The argument that makes this program the bare server.
pub(crate) const ARGUMENT: &str = "bare-server";

/// Starts it; the process and its address.
pub(crate) fn start() -> Result<(Child, String), Box<dyn Error>> {
    let mut child = Command::new(std::env::current_exe()?).arg(ARGUMENT).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    Ok((child, line.trim().to_owned()))
}

/// Serves until it is killed.
pub(crate) fn serve() -> Result<(), Box<dyn Error>> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        let answer = |_: bytes::Bytes| async { (axum::http::StatusCode::ACCEPTED, r#"{"accepted":1,"duplicates":0}"#) };
        let router = axum::Router::new().route("/v1/events", axum::routing::post(answer));
        Ok(axum::serve(listener, router).await?)
    })
}
