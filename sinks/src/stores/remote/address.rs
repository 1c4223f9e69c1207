//! A store's URL, taken apart. It may hold a password: it is never shown.

/// The parts of `scheme://user:password@host:port/path?options`.
pub(crate) struct Address {
    pub(crate) scheme: String,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    host: String,
    /// Without the slashes around it.
    pub(crate) path: String,
}

impl Address {
    /// None: not such a URL.
    pub(crate) fn parse(url: &str) -> Option<Address> {
        let (scheme, rest) = url.split_once("://")?;
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, host) = match authority.rsplit_once('@') {
            Some((login, host)) => (Some(login), host),
            None => (None, authority),
        };
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            Some((user, password)) => (Some(decoded(user)), (!password.is_empty()).then(|| decoded(password))),
            None => (None, None),
        };
        let user = user.filter(|user| !user.is_empty());
        let path = decoded(path.trim_matches('/'));
        (!host.is_empty()).then(|| Address { scheme: scheme.to_ascii_lowercase(), user, password, host: host.to_owned(), path })
    }

    /// Scheme, host and port only.
    pub(crate) fn base(&self) -> String {
        format!("{}://{}", self.scheme, self.host)
    }
}

/// Percent-encoded text as what it stands for.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        let digit = |b: u8| char::from(b).to_digit(16);
        rest = tail;
        match (byte, tail) {
            (b'%', [high, low, after @ ..]) if digit(*high).is_some() && digit(*low).is_some() => {
                bytes.push((digit(*high).unwrap_or(0) * 16 + digit(*low).unwrap_or(0)) as u8);
                rest = after;
            }
            _ => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_and_its_login_decoded() {
        let address = Address::parse("HTTPS://me%40x:p%3aw%@host:8443/some_db/?a=b").unwrap();
        assert_eq!((address.base().as_str(), address.path.as_str()), ("https://host:8443", "some_db"));
        assert_eq!((address.user.as_deref(), address.password.as_deref()), (Some("me@x"), Some("p:w%")));
        let bare = Address::parse("http://host").unwrap();
        assert_eq!((bare.user, bare.password, bare.path.as_str()), (None, None, ""));
        assert!(Address::parse("host:80").is_none() && Address::parse("http:///x").is_none());
    }
}
