//! Places where a test can end the process: before and after each write, sync, commit, answer,
//! sink flush and offset commit.
//!
//! `QUIKFLOW_FAILPOINT=name:n` aborts the process at the n-th hit of `name` (as kill -9 would: no
//! destructor runs). `QUIKFLOW_FAILPOINT_LOG=FILE` appends one line to FILE just before, so that a
//! test can prove the hit. Neither set, a failpoint costs one relaxed load.

use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

struct Armed {
    name: String,
    nth: u64,
    hits: AtomicU64,
    log: Option<std::path::PathBuf>,
}

static ANY: AtomicBool = AtomicBool::new(false);
static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Reads the environment; call once, first thing in `main`.
pub fn init() {
    let armed = ARMED.get_or_init(|| {
        let spec = std::env::var("QUIKFLOW_FAILPOINT").ok()?;
        let (name, nth) = spec.rsplit_once(':')?;
        Some(Armed {
            name: name.to_owned(),
            nth: nth.parse().ok()?,
            hits: AtomicU64::new(0),
            log: std::env::var_os("QUIKFLOW_FAILPOINT_LOG").map(Into::into),
        })
    });
    ANY.store(armed.is_some(), Ordering::Relaxed);
}

/// Marks a place; aborts the process where the environment says so.
#[inline]
pub fn hit(name: &'static str) {
    if ANY.load(Ordering::Relaxed) {
        hit_slow(name);
    }
}

#[cold]
fn hit_slow(name: &str) {
    let Some(Some(armed)) = ARMED.get() else { return };
    if armed.name != name || armed.hits.fetch_add(1, Ordering::SeqCst) + 1 != armed.nth {
        return;
    }
    if let Some(path) = &armed.log
        && let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path)
    {
        let written = writeln!(file, "{name}:{}", armed.nth).and_then(|()| file.sync_all());
        if written.is_err() {
            std::process::abort();
        }
    }
    std::process::abort();
}
