//! The bearer token.
//!
//! Only the token's SHA-256 is kept; tokens are compared by their digests in constant time, so the
//! time taken tells nothing about how much of a guess was right.

use crate::sign_in::SignIn;
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// The variable that holds the token.
pub const TOKEN: &str = "QUIKFLOW_TOKEN";
/// The variable that names a file with the token; white space around it is cut off.
pub const TOKEN_FILE: &str = "QUIKFLOW_TOKEN_FILE";

/// Fewest characters of a token.
const SHORTEST: usize = 16;

/// Why the gateway does not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    /// An address beyond loopback without a token.
    #[error(
        "{0} is not a loopback address and no token is set: whoever reaches it could read and write everything; \
         set QUIKFLOW_TOKEN or QUIKFLOW_TOKEN_FILE, or bind 127.0.0.1"
    )]
    OpenDoor(SocketAddr),
    /// Both variables are set.
    #[error("both QUIKFLOW_TOKEN and QUIKFLOW_TOKEN_FILE are set, unset one")]
    TwoTokens,
    /// The file cannot be read.
    #[error("the token file {path} of QUIKFLOW_TOKEN_FILE cannot be read: {why}")]
    TokenFile {
        /// The file.
        path: String,
        /// The system's reason.
        why: String,
    },
    /// A token that is too easy to guess, or cannot stand in a header.
    #[error(
        "the token of {0} needs at least 16 characters and only printable ASCII without spaces, such as `openssl rand -hex 32` prints"
    )]
    WeakToken(&'static str),
}

/// Who sends: the scope of event ids. Empty on an open loopback door; `user:<id>` of one who is signed in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Principal(pub String);

/// What a request has to show: the token, or an access token of somebody who is signed in.
#[derive(Clone, Default)]
pub struct Auth {
    digest: Option<[u8; 32]>,
    pub(crate) sign_in: Option<Arc<SignIn>>,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("token", &self.digest.is_some()).finish()
    }
}

impl Auth {
    /// No token: for loopback addresses only.
    pub fn open() -> Auth {
        Auth::default()
    }

    /// A token from the variable or file named `origin`.
    ///
    /// # Errors
    /// [`GatewayError::WeakToken`].
    pub fn with_token(token: &str, origin: &'static str) -> Result<Auth, GatewayError> {
        let token = token.trim();
        if token.len() < SHORTEST || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(GatewayError::WeakToken(origin));
        }
        Ok(Auth { digest: Some(Sha256::digest(token.as_bytes()).into()), sign_in: None })
    }

    /// The same, and who is signed in may pass as far as its role goes.
    #[must_use]
    pub fn with_sign_in(mut self, sign_in: Arc<SignIn>) -> Auth {
        self.sign_in = Some(sign_in);
        self
    }

    /// What the environment says; [`Auth::open`] where it says nothing. An empty token is refused
    /// rather than taken for none.
    ///
    /// # Errors
    /// Both variables, an unreadable file, a weak token.
    pub fn from_env() -> Result<Auth, GatewayError> {
        Auth::from_vars(std::env::var(TOKEN).ok(), std::env::var(TOKEN_FILE).ok())
    }

    fn from_vars(token: Option<String>, file: Option<String>) -> Result<Auth, GatewayError> {
        match (token, file) {
            (None, None) => Ok(Auth::open()),
            (Some(_), Some(_)) => Err(GatewayError::TwoTokens),
            (Some(token), None) => Auth::with_token(&token, TOKEN),
            (None, Some(path)) => match std::fs::read_to_string(&path) {
                Ok(token) => Auth::with_token(&token, TOKEN_FILE),
                Err(why) => Err(GatewayError::TokenFile { path, why: why.to_string() }),
            },
        }
    }

    /// Whether users can sign in.
    pub fn signs_in(&self) -> bool {
        self.sign_in.is_some()
    }

    /// Whether a token is asked for.
    pub fn required(&self) -> bool {
        self.digest.is_some()
    }

    /// Whether the value of an `Authorization` header is the token.
    pub fn admits(&self, header: &[u8]) -> bool {
        let Some(digest) = &self.digest else { return false };
        let Some(token) = bearer(header) else { return false };
        let given: [u8; 32] = Sha256::digest(token).into();
        bool::from(given.ct_eq(digest))
    }
}

/// The token in the value of an `Authorization` header.
pub(crate) fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Whether `addr` may be served with `auth`.
///
/// # Errors
/// [`GatewayError::OpenDoor`] beyond loopback without a token.
pub fn may_bind(addr: SocketAddr, auth: &Auth) -> Result<(), GatewayError> {
    if auth.required() || addr.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err(GatewayError::OpenDoor(addr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_nothing_is_served_without_a_token() {
        let open = Auth::open();
        let token = Auth::with_token("0123456789abcdef", TOKEN).unwrap();
        for (addr, free) in [
            ("127.0.0.1:8080", true),
            ("127.9.9.9:1", true),
            ("[::1]:8080", true),
            ("[::ffff:127.0.0.1]:8080", true),
            ("0.0.0.0:8080", false),
            ("[::]:8080", false),
            ("192.168.1.2:8080", false),
        ] {
            let addr: SocketAddr = addr.parse().unwrap();
            assert_eq!(may_bind(addr, &open).is_ok(), free, "{addr}");
            assert_eq!(may_bind(addr, &token), Ok(()), "{addr}");
        }
        let refused = may_bind("0.0.0.0:1".parse().unwrap(), &open).unwrap_err().to_string();
        assert!(refused.contains("set QUIKFLOW_TOKEN"), "{refused}");
    }

    #[test]
    fn a_token_comes_from_one_place_and_is_no_weak_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "  a-token-long-enough\n").unwrap();
        let path = file.path().to_string_lossy().into_owned();
        let auth = Auth::from_vars(None, Some(path)).unwrap();
        assert!(auth.admits(b"Bearer a-token-long-enough") && auth.admits(b"bearer a-token-long-enough"));
        assert!(!auth.admits(b"Bearer a-token-long-enougH") && !auth.admits(b"Bearer") && !auth.admits(b""));
        assert!(!Auth::open().admits(b"Bearer "));
        assert_eq!(Auth::from_vars(Some("x".into()), Some("y".into())).unwrap_err(), GatewayError::TwoTokens);
        assert_eq!(Auth::from_vars(Some(String::new()), None).unwrap_err(), GatewayError::WeakToken(TOKEN));
        assert!(matches!(Auth::from_vars(None, Some("/no/such/file".into())), Err(GatewayError::TokenFile { .. })));
        assert!(!format!("{auth:?}").contains("enough"));
    }
}
