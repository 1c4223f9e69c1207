//! Passwords: Argon2id by the defaults of its crate (19 MiB, two passes), salted, as PHC strings.
//!
//! A check takes tens of milliseconds and 19 MiB by design, so only a few run at once, on threads for
//! blocking work, and only so many wait.

use super::Away;
use argon2::{Argon2, PasswordHasher, PasswordVerifier};
use std::sync::{Arc, OnceLock};
use tokio::sync::Semaphore;

/// Fewest characters, and most bytes.
pub(super) const SHORTEST: usize = 8;
/// Longer ones are refused: they would only cost time.
pub(super) const LONGEST: usize = 256;
/// Checks that may run or wait; one more is told to come again.
const QUEUE: usize = 64;

/// Checks and makes hashes.
pub(crate) struct Passwords {
    running: Arc<Semaphore>,
    queue: Arc<Semaphore>,
    /// What is checked where there is no account, so that the time taken does not tell.
    nobody: OnceLock<String>,
}

impl Default for Passwords {
    fn default() -> Passwords {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let running = Arc::new(Semaphore::new(cores.div_ceil(2)));
        Passwords { running, queue: Arc::new(Semaphore::new(QUEUE)), nobody: OnceLock::new() }
    }
}

fn hashed(password: &[u8]) -> Result<String, Away> {
    let hash = Argon2::default().hash_password(password);
    hash.map(|hash| hash.to_string()).map_err(|error| Away::Refused(format!("no hash of a password: {error}")))
}

impl Passwords {
    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Away> {
        let busy = || Away::Busy("too many passwords are being checked".into());
        let _place = Arc::clone(&self.queue).try_acquire_owned().map_err(|_| busy())?;
        let permit = Arc::clone(&self.running).acquire_owned().await.map_err(|_| busy())?;
        let ended = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(permit);
            done
        });
        ended.await.map_err(|error| Away::Refused(format!("the check of a password ended: {error}")))
    }

    /// The hash to be stored.
    pub(crate) async fn hash(&self, password: String) -> Result<String, Away> {
        self.run(move || hashed(password.as_bytes())).await?
    }

    /// Whether it is the password of that hash; as slow where there is none.
    pub(crate) async fn check(&self, password: String, stored: Option<String>) -> Result<bool, Away> {
        let nobody = match (&stored, self.nobody.get()) {
            (Some(_), _) => None,
            (None, Some(hash)) => Some(hash.clone()),
            (None, None) => {
                let made = self.run(|| hashed(b"nobody's")).await??;
                Some(self.nobody.get_or_init(|| made).clone())
            }
        };
        let known = stored.is_some();
        let hash = stored.or(nobody).unwrap_or_default();
        let same = move || Argon2::default().verify_password(password.as_bytes(), hash.as_str()).is_ok();
        Ok(self.run(same).await? && known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_password_passes_and_its_hash_is_salted() {
        let passwords = Passwords::default();
        let (one, other) =
            (passwords.hash("correct horse".into()).await.unwrap(), passwords.hash("correct horse".into()).await.unwrap());
        assert!(one.starts_with("$argon2id$") && one != other && !one.contains("horse"), "{one}");
        assert!(passwords.check("correct horse".into(), Some(one.clone())).await.unwrap());
        assert!(!passwords.check("correct horsE".into(), Some(one)).await.unwrap());
        assert!(!passwords.check("nobody's".into(), None).await.unwrap());
        assert!(!passwords.check(String::new(), Some("not a hash".into())).await.unwrap());
    }
}
