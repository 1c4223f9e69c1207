//! Configuration outside `topologies.toml`: `quikflow.toml` and the environment, which wins.
//!
//! A setting `x` is written `x = "…"` in the file and `QUIKFLOW_X` in the environment; a secret also
//! as `QUIKFLOW_X_FILE`, a file that holds it. Values of secrets never reach a message or a log.

use crate::exit::{Context, Failure};
use quikflow_sinks::stores::StoreUrls;
use quikflow_topics::diagnostics::closest;
use quikflow_topics::units::parse_duration;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What can be set: name, whether it is a secret, what for.
pub(crate) const KNOWN: [(&str, bool, &str); 31] = [
    ("broker", false, "embedded (default), kafka://host:port,… or fluvio://host:port"),
    ("kafka_user", false, "who signs in to Kafka; without it nobody does"),
    ("kafka_password", true, "the password of kafka_user"),
    ("kafka_mechanism", false, "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512 (default)"),
    ("kafka_tls", false, "on: the connections to Kafka are encrypted; off by default"),
    ("kafka_ca", false, "a PEM file of the authorities to trust; the system's when not set"),
    ("standby", false, "on: a process of pipelines on Kafka keeps a copy of the others' state too; off by default"),
    ("fluvio_domain", false, "the name in Fluvio's certificate: with it the connections are encrypted"),
    ("fluvio_ca", false, "a PEM file of the authority that signed Fluvio's certificate"),
    ("fluvio_cert", false, "a PEM file of this client's certificate for Fluvio"),
    ("fluvio_key", false, "a PEM file of that certificate's key"),
    ("mongodb_url", true, "documents; the embedded store when not set"),
    ("elasticsearch_url", true, "search; the embedded store when not set"),
    ("clickhouse_url", true, "analytics; the embedded store when not set"),
    ("redis_url", true, "badges, presence and sessions; the embedded store when not set"),
    ("mysql_url", true, "users, accounts and workspaces; the embedded store when not set"),
    ("mysql_replica_url", true, "reads of users and workspaces"),
    ("store_timeout", false, "so long may a call of a real store take before it is made again; 60s when not set"),
    (
        "local_sinks",
        false,
        "off: of several `run sinks`, one that leaves embedded stores (audit log, outbox) to another; on by default",
    ),
    (
        "embedded_stores_url",
        false,
        "the query address of the process that has the embedded stores (audit log, outbox): a `run query` elsewhere reads them from it",
    ),
    ("smtp_url", true, "not served yet: e-mail is written to the local outbox, and the start refuses the setting"),
    ("token", true, "the bearer token that both addresses ask for; needed outside loopback"),
    (
        "jwt_key",
        true,
        "the RSA private key (PEM, 2048 bits or more) that access tokens are signed with: one for all processes of a system; \
         when not set, the process makes one in its data directory",
    ),
    ("url", false, "the running process that commands ask"),
    ("ingest_url", false, "the ingest address that `send` and `demo` use"),
    ("data", false, "the data directory"),
    ("topologies", false, "the declaration file"),
    ("ingest_addr", false, "where ingest listens"),
    ("query_addr", false, "where the query API listens"),
    ("health_addr", false, "where a process answers /health and /metrics, whichever parts it runs; nowhere when not set"),
    ("workers", false, "timely workers"),
];

/// Settings in force.
#[derive(Clone, Default)]
pub(crate) struct Settings {
    values: BTreeMap<String, String>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

impl Settings {
    /// A setting that is `on` or `off`.
    ///
    /// # Errors
    /// Exit 2 for another value.
    pub(crate) fn switch(&self, name: &str, default: bool) -> Result<bool, Failure> {
        match self.get(name) {
            None => Ok(default),
            Some("on") => Ok(true),
            Some("off") => Ok(false),
            Some(_) => Err(Failure::usage(format!("`{name}` is neither on nor off"))),
        }
    }

    /// Reads `quikflow.toml` (or `config`) and the environment.
    ///
    /// # Errors
    /// A file that cannot be read, an unknown setting, a `…_FILE` that cannot be read: exit 2.
    pub(crate) fn load(config: Option<&Path>) -> Result<Settings, Failure> {
        let default = PathBuf::from("quikflow.toml");
        let file = match config {
            Some(path) => Some(path.to_owned()),
            None => default.exists().then_some(default),
        };
        let text = match &file {
            Some(path) => std::fs::read_to_string(path).usage(path.display())?,
            None => String::new(),
        };
        let name = file.map_or_else(String::new, |path| path.display().to_string());
        Settings::from(&name, &text, &|name| std::env::var(name).ok())
    }

    fn from(file: &str, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Settings, Failure> {
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
            // The parser's own picture of the place would show a secret's line.
            Failure::usage(format!("{file}: {}", e.message().lines().next().unwrap_or("not TOML")))
        })?;
        let mut values = BTreeMap::new();
        for (name, value) in table {
            let bare = name.strip_suffix("_file").unwrap_or(&name);
            let Some((_, secret, _)) = KNOWN.iter().find(|(known, ..)| *known == name || *known == bare) else {
                let hint = closest(&name, KNOWN.map(|(known, ..)| known)).map_or_else(
                    || format!("available: {}", KNOWN.map(|(known, ..)| known).join(", ")),
                    |near| format!("did you mean `{near}`?"),
                );
                return Err(Failure::usage(format!("{file}: unknown setting `{name}`; {hint}")));
            };
            let text = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(number) => number.to_string(),
                _ => return Err(Failure::usage(format!("{file}: `{name}` is not text or a whole number"))),
            };
            if bare != name && *secret {
                values.insert(bare.to_owned(), read_secret(&name, &text)?);
            } else if bare != name {
                return Err(Failure::usage(format!("{file}: `{name}`: only secrets are read from files, write `{bare}`")));
            } else {
                values.insert(name, text);
            }
        }
        for (name, secret, _) in KNOWN {
            let variable = variable(name);
            let in_file = if secret { env(&format!("{variable}_FILE")) } else { None };
            match (env(&variable).filter(|v| !v.is_empty()), in_file.filter(|v| !v.is_empty())) {
                (Some(_), Some(_)) => {
                    return Err(Failure::usage(format!("{variable} and {variable}_FILE are both set; unset one of them")));
                }
                (Some(value), None) => {
                    values.insert(name.to_owned(), value);
                }
                (None, Some(path)) => {
                    values.insert(name.to_owned(), read_secret(&format!("{variable}_FILE"), &path)?);
                }
                (None, None) => {}
            }
        }
        Ok(Settings { values })
    }

    /// These and no others.
    #[cfg(test)]
    pub(crate) fn of<'a>(values: impl IntoIterator<Item = (&'a str, &'a str)>) -> Settings {
        Settings { values: values.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect() }
    }

    /// A setting's value.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The flag's value, else the setting's, else the default.
    pub(crate) fn or(&self, flag: Option<String>, name: &str, default: &str) -> String {
        flag.or_else(|| self.get(name).map(str::to_owned)).unwrap_or_else(|| default.to_owned())
    }

    /// Refuses what was asked for and is not compiled in, naming the Cargo feature.
    ///
    /// # Errors
    /// Exit 2.
    pub(crate) fn check_components(&self) -> Result<(), Failure> {
        let missing = |what: &str, setting: &str, feature: &str| {
            Err(Failure::usage(format!(
                "{what} is asked for by `{setting}` and is not compiled in: this build has no Cargo feature `{feature}`; \
                 build with `--features {feature}`, or unset QUIKFLOW_{} to use the embedded one",
                setting.to_uppercase()
            )))
        };
        match self.get("broker").unwrap_or("embedded") {
            "embedded" => {}
            broker if broker.starts_with("kafka://") && cfg!(feature = "kafka") => {}
            broker if broker.starts_with("kafka://") => return missing("Kafka", "broker", "kafka"),
            broker if broker.starts_with("fluvio://") && cfg!(feature = "fluvio") => {}
            broker if broker.starts_with("fluvio://") => return missing("Fluvio", "broker", "fluvio"),
            _ => return Err(Failure::usage("`broker` is none of embedded, kafka://host:port,… and fluvio://host:port")),
        }
        for (setting, what, feature, there) in [
            ("mongodb_url", "MongoDB", "mongodb", cfg!(feature = "mongodb")),
            ("elasticsearch_url", "Elasticsearch", "elasticsearch", cfg!(feature = "elasticsearch")),
            ("clickhouse_url", "ClickHouse", "clickhouse", cfg!(feature = "clickhouse")),
            ("redis_url", "Redis", "redis", cfg!(feature = "redis")),
            ("mysql_url", "MySQL", "mysql", cfg!(feature = "mysql")),
            ("mysql_replica_url", "MySQL", "mysql", cfg!(feature = "mysql")),
        ] {
            if self.get(setting).is_some() && !there {
                return missing(what, setting, feature);
            }
        }
        if self.get("smtp_url").is_some() {
            return Err(Failure::usage(
                "`smtp_url` is set, and no build sends e-mail by SMTP yet: unset QUIKFLOW_SMTP_URL to have it written to the outbox",
            ));
        }
        if self.get("mysql_replica_url").is_some() && self.get("mysql_url").is_none() {
            return Err(Failure::usage("`mysql_replica_url` is set without `mysql_url`, the server it follows"));
        }
        Ok(())
    }

    /// Where the real stores are.
    ///
    /// # Errors
    /// Exit 2 where `store_timeout` is no duration.
    pub(crate) fn store_urls(&self) -> Result<StoreUrls, Failure> {
        let longest = self.get("store_timeout").map(parse_duration).transpose();
        let longest_call = longest.map_err(|error| Failure::usage(format!("QUIKFLOW_STORE_TIMEOUT: {error}")))?;
        if longest_call.is_some_and(|longest| longest.is_zero()) {
            return Err(Failure::usage("QUIKFLOW_STORE_TIMEOUT: no call ends in no time"));
        }
        let url = |name: &str| self.get(name).map(str::to_owned);
        Ok(StoreUrls {
            mongodb: url("mongodb_url"),
            elasticsearch: url("elasticsearch_url"),
            clickhouse: url("clickhouse_url"),
            redis: url("redis_url"),
            mysql: url("mysql_url"),
            mysql_replica: url("mysql_replica_url"),
            embedded: None,
            longest_call,
        })
    }
}

/// The environment variable of a setting.
pub(crate) fn variable(name: &str) -> String {
    format!("QUIKFLOW_{}", name.to_uppercase())
}

fn read_secret(name: &str, path: &str) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).usage(format!("{name}: {path}"))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let text = "data = \"a\"\nworkers = 3\n";
        let env = |name: &str| (name == "QUIKFLOW_DATA").then(|| "b".to_owned());
        let settings = Settings::from("quikflow.toml", text, &env).unwrap();
        assert_eq!(settings.get("data"), Some("b"));
        assert_eq!(settings.get("workers"), Some("3"));
        assert_eq!(settings.or(Some("c".into()), "data", "d"), "c");
        assert_eq!(settings.or(None, "topologies", "topologies.toml"), "topologies.toml");
    }

    #[test]
    fn an_unknown_setting_stops_the_start_and_the_near_one_is_named() {
        let failure = Settings::from("q.toml", "brokr = \"x\"", &none).unwrap_err();
        assert_eq!(failure.message, "q.toml: unknown setting `brokr`; did you mean `broker`?");
        assert_eq!(failure.outcome, crate::exit::Outcome::Usage);
    }

    #[test]
    fn secrets_come_from_files_and_never_show() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "s3cret\n").unwrap();
        let shown = path.display().to_string();
        let env = move |name: &str| (name == "QUIKFLOW_TOKEN_FILE").then(|| shown.clone());
        let settings = Settings::from("", "", &env).unwrap();
        assert_eq!(settings.get("token"), Some("s3cret"));
        assert!(!format!("{settings:?}").contains("s3cret"));
        let broken = Settings::from("q.toml", "token = \"s3cret", &none).unwrap_err();
        assert!(!broken.message.contains("s3cret"), "{}", broken.message);
    }

    #[test]
    fn what_is_not_compiled_in_is_refused_with_its_feature() {
        for (text, feature, there) in [
            ("broker = \"kafka://h:9092\"", "kafka", cfg!(feature = "kafka")),
            ("broker = \"fluvio://h:9003\"", "fluvio", cfg!(feature = "fluvio")),
            ("mongodb_url = \"mongodb://u:pw@h\"", "mongodb", cfg!(feature = "mongodb")),
            ("redis_url = \"redis://:pw@h\"", "redis", cfg!(feature = "redis")),
        ] {
            if there {
                assert!(Settings::from("q.toml", text, &none).unwrap().check_components().is_ok());
                continue;
            }
            let failure = Settings::from("q.toml", text, &none).unwrap().check_components().unwrap_err();
            assert!(failure.message.contains(&format!("`--features {feature}`")), "{}", failure.message);
            assert!(!failure.message.contains("pw"), "{}", failure.message);
        }
        assert!(Settings::from("q.toml", "broker = \"embedded\"", &none).unwrap().check_components().is_ok());
        let smtp = Settings::from("q.toml", "smtp_url = \"smtp://u:pw@h\"", &none).unwrap().check_components().unwrap_err();
        assert!(smtp.message.contains("QUIKFLOW_SMTP_URL") && !smtp.message.contains("pw"), "{}", smtp.message);
    }
}
