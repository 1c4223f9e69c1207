//! What the process says about itself: log lines, metrics, panics.

use crate::exit::Failure;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::sync::{Mutex, OnceLock};
use tracing_subscriber::EnvFilter;

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
static PANICKED: Mutex<Option<String>> = Mutex::new(None);

/// Threads without which the process is worth nothing: the log's and the sinks'. The engine reports
/// its own workers.
const VITAL: [&str; 2] = ["log-", "sink:"];

/// Log lines to standard error as `RUST_LOG` says (warnings when it says nothing); panics are kept.
pub(crate) fn init() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let colours = crate::out::colour_on_stderr();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    // A second call (the demo's tests) leaves the first one's in place.
    subscriber.try_init().unwrap_or_default();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("").to_owned();
        if VITAL.iter().any(|vital| name.starts_with(vital))
            && let Ok(mut kept) = PANICKED.lock()
        {
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            kept.get_or_insert_with(|| format!("the thread `{name}` panicked at {place}; restart to go on from the last commit"));
        }
        before(info);
    }));
}

/// Which vital thread has panicked, if one has.
pub(crate) fn panicked() -> Option<String> {
    PANICKED.lock().ok().and_then(|kept| kept.clone())
}

/// The recorder of metrics, installed once.
///
/// # Errors
/// When another recorder is there.
pub(crate) fn recorder() -> Result<PrometheusHandle, Failure> {
    if let Some(handle) = RECORDER.get() {
        return Ok(handle.clone());
    }
    let handle = PrometheusBuilder::new().install_recorder().map_err(|error| Failure::failed(format!("metrics: {error}")))?;
    Ok(RECORDER.get_or_init(|| handle).clone())
}
