//! Names of indexes and ids of documents.

use sha2::{Digest, Sha256};

/// A name as an index may have it.
pub(super) fn plain_name(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' }).collect();
    if plain.trim_matches('_') == name.replace('-', "_").trim_matches('_') && !plain.starts_with('_') {
        return plain;
    }
    let digest = hex::encode(&Sha256::digest(name.as_bytes())[..6]);
    format!("x{plain}_{digest}")
}

/// A document's id: the key, or its digest where it is too long.
pub(super) fn id_of(key: &str) -> String {
    if key.len() <= 512 && !key.is_empty() {
        key.to_owned()
    } else {
        format!("sha256:{}", hex::encode(Sha256::digest(key.as_bytes())))
    }
}
