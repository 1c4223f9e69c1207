//! A store's URL, taken apart. It may hold a password: it is never shown.

#[cfg(any(feature = "elasticsearch", feature = "clickhouse", feature = "redis"))]
use super::refused;
#[cfg(any(feature = "elasticsearch", feature = "clickhouse", feature = "redis"))]
use crate::store::StoreError;

/// The parts of `scheme://user:password@host:port/path?options`.
pub(crate) struct Address {
    pub(crate) scheme: String,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    host: String,
    /// Without the slashes around it.
    pub(crate) path: String,
    options: Vec<(String, String)>,
}

impl Address {
    /// None: not such a URL.
    pub(crate) fn parse(url: &str) -> Option<Address> {
        let (scheme, rest) = url.split_once("://")?;
        let (rest, options) = rest.split('#').next().unwrap_or_default().split_once('?').unwrap_or((rest, ""));
        let pair = |option: &str| {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            (decoded(name), decoded(value))
        };
        let options = options.split('&').filter(|option| !option.is_empty()).map(pair).collect();
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
        let (scheme, host) = (scheme.to_ascii_lowercase(), host.to_owned());
        (!host.is_empty()).then_some(Address { scheme, user, password, host, path, options })
    }

    /// What the one option says that a store over HTTP knows, `ca=FILE`: the authorities (PEM) to trust besides the public ones.
    #[cfg(any(feature = "elasticsearch", feature = "clickhouse"))]
    pub(crate) fn authorities(&self, store: &'static str) -> Result<Option<Vec<u8>>, StoreError> {
        let mut file = None;
        for (name, value) in &self.options {
            match (name.as_str(), self.scheme.as_str()) {
                ("ca", "https") if !value.is_empty() => file = Some(value),
                ("ca", "https") => return Err(refused(store, "`ca` in the URL names no file")),
                ("ca", _) => return Err(refused(store, "`ca` in the URL is for https")),
                _ => return Err(refused(store, format!("the URL has an option `{name}`, and may have `ca`"))),
            }
        }
        let read = |file: &String| authorities(store, file);
        file.map(read).transpose()
    }

    /// Scheme, host and port only.
    pub(crate) fn base(&self) -> String {
        format!("{}://{}", self.scheme, self.host)
    }
}

/// A file of authorities (PEM).
#[cfg(any(feature = "elasticsearch", feature = "clickhouse", feature = "redis"))]
pub(crate) fn authorities(store: &'static str, file: &str) -> Result<Vec<u8>, StoreError> {
    std::fs::read(file).map_err(|error| refused(store, format!("the file of authorities `{file}`: {error}")))
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
        assert_eq!(address.options, [("a".to_owned(), "b".to_owned())]);
        assert!(Address::parse("host:80").is_none() && Address::parse("http:///x").is_none());
    }

    #[cfg(any(feature = "elasticsearch", feature = "clickhouse"))]
    #[test]
    fn an_option_that_is_not_known_is_refused_by_name() {
        let said = |url: &str| match Address::parse(url).unwrap().authorities("clickhouse") {
            Ok(pem) => format!("{} bytes", pem.map_or(0, |pem| pem.len())),
            Err(error) => error.to_string(),
        };
        assert_eq!(said("https://host/db"), "0 bytes");
        for (url, words) in [
            ("https://host/db?ca=/no/such%20file", "`/no/such file`"),
            ("https://host/db?ca=", "names no file"),
            ("http://host/db?ca=/x", "is for https"),
            ("https://u:s3cret@host/db?ssl=true", "option `ssl`"),
        ] {
            let said = said(url);
            assert!(
                said.contains(words) && said.contains("QUIKFLOW_CLICKHOUSE_URL") && !said.contains("s3cret"),
                "{url}: {said}"
            );
        }
    }
}
