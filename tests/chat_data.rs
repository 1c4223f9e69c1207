//! The main job on 200,000 real chat messages: what the views and stores answer equals a count
//! made independently of the engine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod support;

use support::chat::Chat;
use support::{Server, harness};

crate::tests! { async the_main_job_is_exact_on_real_chat }

async fn the_main_job_is_exact_on_real_chat() {
    let folder = tempfile::tempdir().unwrap();
    let chat = Chat::take(folder.path());
    let server = Server::start(&folder.path().join("data"));
    chat.send(&server);
    server.settle();
    chat.is_there(&server).await;
    assert_eq!(server.stop().code(), Some(0));
}
