//! Reads `[topics]`, `[events]` and `[[sink]]` of a declaration file.
