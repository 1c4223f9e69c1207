//! quikflow
fn main() {}
