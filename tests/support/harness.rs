//! Runs tests of which some need what is not everywhere: a server, the shared data, a program.
//!
//! Such a test calls [`skip`] (or [`server`], [`shared`]) where its need is not met, and counts as
//! ignored, with the reason beside its name: never as passed. The files of such tests stand with
//! `harness = false` in their `Cargo.toml` and list their tests in [`tests!`](crate::tests).

#![allow(dead_code, unreachable_pub, unused_macros, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

/// What a skipped test unwinds with.
struct Skipped(String);

/// Ends the test, which counts as ignored, for this reason.
pub fn skip(reason: impl Into<String>) -> ! {
    resume_unwind(Box::new(Skipped(reason.into())))
}

/// The server that a variable (`QUIKFLOW_TEST_…`) names; skips the test where it names none.
pub fn server(variable: &str) -> String {
    match std::env::var(variable) {
        Ok(server) if !server.is_empty() => server,
        _ => skip(format!("{variable} names no server")),
    }
}

/// A file of the data shared beside the checkout, where it is there (`QUIKFLOW_SHARED`).
pub fn shared_file(name: &str) -> Option<PathBuf> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).ancestors().take(3).map(|up| up.join("shared")).collect();
    let folders: Vec<PathBuf> = std::env::var_os("QUIKFLOW_SHARED").map_or_else(beside, |folder| vec![folder.into()]);
    folders.into_iter().map(|folder| folder.join(name)).find(|file| file.exists())
}

/// The same; skips the test where it is not there.
pub fn shared(name: &str) -> PathBuf {
    shared_file(name).unwrap_or_else(|| skip(format!("no such file: shared/{name}")))
}

/// A test by name, run on a thread of its own.
pub fn test(name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || match catch_unwind(AssertUnwindSafe(body)) {
        Ok(()) => Ok(Completion::Completed),
        Err(payload) => match payload.downcast::<Skipped>() {
            Ok(skipped) => Ok(Completion::ignored_with(skipped.0)),
            Err(panic) => Err(Failed::from(said(panic.as_ref()))),
        },
    })
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".to_owned())
}

/// Runs tests as the arguments of `cargo test -- …` ask for.
pub fn run(tests: Vec<Trial>) -> ExitCode {
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// The same, one after the other unless the arguments say how many at once: of tests that kill what
/// others use, or take the whole machine.
pub fn run_in_turn(tests: Vec<Trial>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(1));
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// `main` of a file of tests: `tests! { one, async other, each STORES: async third }`. An async test has
/// a runtime of its own; one after `each` takes an item (`&'static str`) of the list and counts once for
/// each of them. After `in turn:` they run one after the other.
#[macro_export]
macro_rules! tests {
    (@block $body:expr) => {
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap().block_on($body)
    };
    (@list $all:ident $(,)?) => {};
    (@list $all:ident, each $list:path: async $name:ident $($rest:tt)*) => {
        for item in $list {
            $all.push(harness::test(format!("{}::{item}", stringify!($name)), move || $crate::tests!(@block $name(item))));
        }
        $crate::tests!(@list $all $($rest)*);
    };
    (@list $all:ident, each $list:path: $name:ident $($rest:tt)*) => {
        for item in $list {
            $all.push(harness::test(format!("{}::{item}", stringify!($name)), move || $name(item)));
        }
        $crate::tests!(@list $all $($rest)*);
    };
    (@list $all:ident, async $name:ident $($rest:tt)*) => {
        $all.push(harness::test(stringify!($name), || $crate::tests!(@block $name())));
        $crate::tests!(@list $all $($rest)*);
    };
    (@list $all:ident, $name:ident $($rest:tt)*) => {
        $all.push(harness::test(stringify!($name), $name));
        $crate::tests!(@list $all $($rest)*);
    };
    (in turn: $($list:tt)*) => {
        $crate::tests!(@main run_in_turn, $($list)*);
    };
    (@main $run:ident, $($list:tt)*) => {
        #[allow(clippy::vec_init_then_push, reason = "the list is unrolled by the macro")]
        fn main() -> std::process::ExitCode {
            let mut all = Vec::new();
            $crate::tests!(@list all, $($list)*);
            harness::$run(all)
        }
    };
    ($($list:tt)*) => {
        $crate::tests!(@main run, $($list)*);
    };
}
