//! What MySQL's errors mean: to be tried again, some row's fault, or a setting's.

use super::super::remote::{refused, setting, unavailable, unreachable};
use super::NAME;
use crate::store::StoreError;
use sqlx::Error;
use sqlx::mysql::MySqlDatabaseError;

/// The number of a server's error; 0 where it is none.
pub(super) fn number_of(error: &Error) -> u16 {
    let database = error.as_database_error().and_then(|e| e.try_downcast_ref::<MySqlDatabaseError>());
    database.map_or(0, MySqlDatabaseError::number)
}

/// Whether the server says that its disk is full, or the file that its tables share: by a number of its
/// own, or by the operating system's (28) or the storage engine's (135) in the text of another.
fn full(number: u16, text: &str) -> bool {
    let said = ["No space left on device", "rror 28 from storage engine", "errno: 28", "Errcode: 28", "errno: 135"];
    matches!(number, 1021 | 1114 | 3675)
        || (matches!(number, 3 | 1005 | 1026 | 1030 | 1598) && said.iter().any(|s| text.contains(s)))
}

/// What an error means for the sink.
pub(super) fn fault(error: Error) -> StoreError {
    let short = |text: &str| text.chars().take(300).collect::<String>();
    match &error {
        Error::Database(database) => {
            let number = number_of(&error);
            let text = short(database.message());
            match number {
                1045 | 1698 => refused(NAME, "wrong user or password"),
                1044 | 1142 | 1143 | 1227 => refused(NAME, "the user may not do this in the database that the URL names"),
                1049 => refused(NAME, "there is no database of the name that the URL gives"),
                1290 | 1792 | 1836 => refused(NAME, "the server is read-only; is it a replica?"),
                _ if full(number, &text) => unavailable(NAME, "the server's disk is full"),
                1040 | 1053 | 1146 | 1158..=1161 | 1203 | 1205 | 1213 | 1226 | 3024 => unavailable(NAME, text),
                // Data that does not fit: some row is to blame.
                1048 | 1118 | 1153 | 1264 | 1265 | 1292 | 1366 | 1406 => StoreError::BadRequest(text),
                _ => refused(NAME, format!("error {number}: {text}")),
            }
        }
        Error::Configuration(_) => refused(NAME, "the URL cannot be read: write mysql://user:password@host:port/database"),
        Error::Tls(e) => refused(NAME, format!("TLS: {e}")),
        Error::Io(e) if e.to_string().contains("certificate") => {
            refused(NAME, format!("TLS: {e} (the URL's ssl-ca names the authority that is trusted)"))
        }
        Error::Io(e) => unreachable(NAME, e),
        Error::PoolTimedOut => unreachable(NAME, "no connection within five seconds"),
        Error::ColumnDecode { .. } | Error::Decode(_) | Error::ColumnNotFound(_) => {
            refused(NAME, "a stored row has another form")
        }
        _ => unavailable(NAME, short(&error.to_string())),
    }
}

/// The same of the connection to the replica, which has a setting of its own. One that has not got the
/// database yet is away.
pub(super) fn replica_fault(error: Error) -> StoreError {
    if number_of(&error) == 1049 {
        return unavailable(NAME, "the replica has not got the database yet");
    }
    match fault(error) {
        StoreError::Refused { store, message } => {
            let message = format!("the replica: {}", message.replace(&setting(NAME), "QUIKFLOW_MYSQL_REPLICA_URL"));
            StoreError::Refused { store, message }
        }
        other => other,
    }
}
