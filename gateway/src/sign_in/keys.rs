//! Access tokens: JWTs signed by RS256 with the key of `QUIKFLOW_JWT_KEY`, or with one that this
//! process made and keeps in its data directory.
//!
//! Processes that serve one system need one key. Time is the caller's clock's, so that tests can set it.

use super::accounts::Role;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use parking_lot::Mutex;
use rsa::pkcs1::{DecodeRsaPrivateKey, EncodeRsaPrivateKey, EncodeRsaPublicKey};
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding};
use rsa::traits::PublicKeyParts;
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Bits of a key that is made here, and fewest of one that is given.
const BITS: usize = 2048;
/// Who issues.
const ISSUER: &str = "quikflow";

/// What an access token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    iss: String,
    /// The user.
    pub(crate) sub: String,
    /// The session.
    pub(crate) sid: String,
    /// The account's role.
    pub(crate) role: String,
    /// Seconds since 1970.
    pub(crate) iat: i64,
    /// Seconds since 1970.
    pub(crate) exp: i64,
}

impl Claims {
    /// Of a session, for so many seconds from `now` (seconds since 1970) on.
    pub(crate) fn new(user: &str, session: &str, role: Role, now: i64, seconds: i64) -> Claims {
        let (sub, sid, role) = (user.to_owned(), session.to_owned(), role.name().to_owned());
        Claims { iss: ISSUER.to_owned(), sub, sid, role, iat: now, exp: now.saturating_add(seconds) }
    }
}

struct Pair {
    sign: EncodingKey,
    verify: DecodingKey,
}

/// The keys, read or made when they are first needed.
pub struct Keys {
    /// Where the key of this process is, if none was given.
    file: Option<PathBuf>,
    pair: OnceLock<Pair>,
    /// Held while a key is read or made.
    making: Mutex<()>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Why there is no key; no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// What was given is none.
    #[error("{0} holds no RSA private key of 2048 bits or more in PEM, such as `openssl genrsa 2048` prints")]
    NoKey(String),
    /// The file cannot be read or written.
    #[error("the key file {path}: {why}")]
    File {
        /// The file.
        path: String,
        /// The system's reason.
        why: String,
    },
    /// None could be made.
    #[error("no RSA key could be made: {0}")]
    NotMade(String),
}

impl Keys {
    /// A key that was given, in PEM; `origin` names the setting.
    ///
    /// # Errors
    /// [`KeyError::NoKey`].
    pub fn given(pem: &str, origin: &str) -> Result<Keys, KeyError> {
        let keys = Keys { file: None, pair: OnceLock::new(), making: Mutex::default() };
        drop(keys.pair.set(pair(pem, origin)?));
        Ok(keys)
    }

    /// The key in a file of this process's own, made where there is none as soon as something is to be signed.
    pub fn own(file: PathBuf) -> Keys {
        Keys { file: Some(file), pair: OnceLock::new(), making: Mutex::default() }
    }

    fn pair(&self, make: bool) -> Result<Option<&Pair>, KeyError> {
        if let Some(pair) = self.pair.get() {
            return Ok(Some(pair));
        }
        let Some(file) = &self.file else { return Ok(None) };
        let _one = self.making.lock();
        if let Some(pair) = self.pair.get() {
            return Ok(Some(pair));
        }
        if !file.exists() {
            if !make {
                return Ok(None);
            }
            make_file(file)?;
        }
        let at = |error: std::io::Error| KeyError::File { path: file.display().to_string(), why: error.to_string() };
        let pem = std::fs::read_to_string(file).map_err(at)?;
        let read = pair(&pem, &file.display().to_string())?;
        Ok(Some(self.pair.get_or_init(|| read)))
    }

    /// Signs. Blocking where a key has to be made first.
    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, KeyError> {
        let pair = self.pair(true)?.ok_or_else(|| KeyError::NotMade("no file to keep it in".into()))?;
        let signed = jsonwebtoken::encode(&Header::new(Algorithm::RS256), claims, &pair.sign);
        signed.map_err(|error| KeyError::NotMade(error.to_string()))
    }

    /// What a token says, where this key has signed it and it is in force at `now` (seconds since 1970).
    pub(crate) fn read(&self, token: &str, now: i64) -> Option<Claims> {
        let pair = match self.pair(false) {
            Ok(pair) => pair?,
            Err(error) => {
                tracing::error!(%error, "no access token can be read");
                return None;
            }
        };
        let mut rules = Validation::new(Algorithm::RS256);
        rules.set_issuer(&[ISSUER]);
        rules.set_required_spec_claims(&["exp", "iss", "sub"]);
        rules.validate_exp = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &pair.verify, &rules).ok()?.claims;
        (claims.exp > now).then_some(claims)
    }
}

fn pair(pem: &str, origin: &str) -> Result<Pair, KeyError> {
    let none = || KeyError::NoKey(origin.to_owned());
    let pem = pem.trim();
    let key = rsa::PrivateKey::from_pkcs8_pem(pem).or_else(|_| rsa::PrivateKey::from_pkcs1_pem(pem)).map_err(|_| none())?;
    if key.size() * 8 < BITS {
        return Err(none());
    }
    let private = key.to_pkcs1_der().map_err(|_| none())?;
    let public = key.to_public_key().to_pkcs1_der().map_err(|_| none())?;
    Ok(Pair { sign: EncodingKey::from_rsa_der(private.as_bytes()), verify: DecodingKey::from_rsa_der(public.as_bytes()) })
}

/// Makes a key file that only its owner reads; whole or not at all, and the first of two makers wins.
fn make_file(file: &Path) -> Result<(), KeyError> {
    let at = |error: std::io::Error| KeyError::File { path: file.display().to_string(), why: error.to_string() };
    let made = rsa::PrivateKey::new(&mut rand::rngs::SysRng, BITS).map_err(|error| KeyError::NotMade(error.to_string()))?;
    let pem = made.to_pkcs8_pem(LineEnding::LF).map_err(|error| KeyError::NotMade(error.to_string()))?;
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(at)?;
    }
    // Processes of several containers may have one number.
    let drawn = super::drawn(12).map_err(|error| KeyError::NotMade(error.to_string()))?;
    let beside = file.with_extension(format!("{drawn}.part"));
    let mut part = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(at)?;
    part.write_all(pem.as_bytes()).and_then(|()| part.sync_all()).map_err(at)?;
    let linked = std::fs::hard_link(&beside, file);
    std::fs::remove_file(&beside).map_err(at)?;
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(at(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_by_the_key_that_signed_it_and_while_it_is_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("own/jwt-key.pem");
        let keys = Keys::own(file.clone());
        let claims = Claims::new("ann", "s1", Role::Admin, 1_000, 900);
        assert_eq!(keys.read("a.b.c", 0), None);
        assert!(!file.exists(), "a key was made to read with");
        let token = keys.sign(&claims).unwrap();
        assert_eq!(keys.read(&token, 1_899), Some(claims.clone()));
        assert_eq!(keys.read(&token, 1_900), None);
        // Another process with the file, and one with a key of its own.
        assert_eq!(Keys::own(file.clone()).read(&token, 1_000), Some(claims.clone()));
        let given = Keys::given(&std::fs::read_to_string(&file).unwrap(), "QUIKFLOW_JWT_KEY").unwrap();
        assert_eq!(given.read(&token, 1_000), Some(claims.clone()));
        let other = Keys::own(dir.path().join("other.pem"));
        let foreign = other.sign(&claims).unwrap();
        assert_eq!((keys.read(&foreign, 1_000), other.read(&token, 1_000)), (None, None));
        // A signature that was cut off or changed, and a header that asks for none.
        let (body, signature) = token.rsplit_once('.').unwrap();
        let none = "eyJhbGciOiJub25lIn0";
        for spoilt in [
            format!("{body}."),
            format!("{body}.{}", signature.replace(['a', 'b'], "c")),
            format!("{none}.{}.", body.split('.').nth(1).unwrap()),
        ] {
            assert_eq!(keys.read(&spoilt, 1_000), None, "{spoilt}");
        }
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let refused = Keys::given("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----", "QUIKFLOW_JWT_KEY");
        let said = refused.err().unwrap().to_string();
        assert!(said.starts_with("QUIKFLOW_JWT_KEY holds no RSA private key") && !said.contains("c2Vj"), "{said}");
    }
}
