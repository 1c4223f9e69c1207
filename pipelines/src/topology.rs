//! The parser of `[[topology]]` and `[[test]]`.
