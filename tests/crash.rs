//! kill -9 of the server and of `send`, at random moments and at every failpoint: after the
//! restarts nothing is lost and nothing doubled, in no store and no view.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod support;

use support::{Start, both, kills};

#[tokio::test(flavor = "multi_thread")]
async fn r9_r17_twenty_five_kills_of_the_server_and_five_of_send_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    kills::at_random_moments(Start::default(), folder.path(), 20_261_122, 20, 700).await;
    let data = folder.path().join("data");
    let verified = support::command(&["verify", "--data", data.to_str().unwrap()]).output().unwrap();
    assert!(verified.status.success(), "{}", both(&verified));
}

#[tokio::test(flavor = "multi_thread")]
async fn r9_a_kill_at_every_failpoint_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let status = kills::at_every_failpoint(Start::default(), folder.path()).await;
    assert!(status.success(), "send ended with {status}");
}
