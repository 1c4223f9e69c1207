//! How a command ends: 0 done, 1 the check failed or records were refused, 2 usage or configuration.

use std::fmt;
use std::process::ExitCode;

/// A command's end when it went well enough to have a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// 0
    Done,
    /// 1: what was to be said has been said.
    Failed,
    /// 2: what was to be said has been said.
    Usage,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> ExitCode {
        match outcome {
            Outcome::Done => ExitCode::SUCCESS,
            Outcome::Failed => ExitCode::from(1),
            Outcome::Usage => ExitCode::from(2),
        }
    }
}

/// Why a command could not do its work; `main` prints it.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code's meaning.
    pub(crate) outcome: Outcome,
    /// Lower case, no full stop: what, where, what to do.
    pub(crate) message: String,
}

impl Failure {
    /// Usage or configuration is at fault: exit 2.
    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure { outcome: Outcome::Usage, message: message.into() }
    }

    /// The work failed: exit 1.
    pub(crate) fn failed(message: impl Into<String>) -> Failure {
        Failure { outcome: Outcome::Failed, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::failed(error.to_string())
    }
}

impl From<quikflow_topics::BrokerError> for Failure {
    fn from(error: quikflow_topics::BrokerError) -> Failure {
        match error {
            quikflow_topics::BrokerError::Owned(message) => Failure::usage(message),
            other => Failure::failed(other.to_string()),
        }
    }
}

/// What a command returns.
pub(crate) type Ended = Result<Outcome, Failure>;

/// Adds what was being done to an IO error.
pub(crate) trait Context<T> {
    /// `what: error`, exit 1.
    fn context(self, what: impl fmt::Display) -> Result<T, Failure>;
    /// `what: error`, exit 2.
    fn usage(self, what: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::failed(format!("{what}: {error}")))
    }

    fn usage(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::usage(format!("{what}: {error}")))
    }
}
