//! The main job on a real Fluvio, end to end, while processes are killed; see `support/fluvio.rs` for how it is named.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod support;

use support::chat::Chat;
use support::traffic::generated;
use support::{both, fluvio, harness, kills};

crate::tests! {
    in turn:
    async the_main_job_is_exact_on_fluvio,
    async events_of_all_types_are_exact_on_fluvio,
    async r17_r19_kills_of_the_server_and_of_send_change_nothing,
    async r19_a_kill_at_every_failpoint_changes_nothing,
}

/// How long the whole of a run with kills takes, in seconds.
const RUN: usize = 60;

async fn the_main_job_is_exact_on_fluvio() {
    let start = fluvio::start("chat");
    let folder = tempfile::tempdir().unwrap();
    let chat = Chat::take(folder.path());
    let server = start.run(&folder.path().join("data"));
    chat.send(&server);
    server.settle();
    chat.is_there(&server).await;
    assert_eq!(server.stop().code(), Some(0));
}

async fn events_of_all_types_are_exact_on_fluvio() {
    let start = fluvio::start("types");
    let folder = tempfile::tempdir().unwrap();
    let (file, expected) = generated(folder.path(), 20_000);
    let server = start.run(&folder.path().join("data"));
    let sent = server.send(&file, &[]).wait_with_output().unwrap();
    assert!(matches!(sent.status.code(), Some(0 | 1)), "{}", both(&sent));
    server.settle();
    expected.check(&server).await;
    assert_eq!(server.stop().code(), Some(0));
}

async fn r17_r19_kills_of_the_server_and_of_send_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    kills::at_random_moments(fluvio::start("kills"), folder.path(), 20_261_128, RUN, 900).await;
}

async fn r19_a_kill_at_every_failpoint_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    kills::at_every_failpoint(fluvio::start("points"), folder.path()).await;
}
