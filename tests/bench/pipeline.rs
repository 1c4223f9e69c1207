//! The benchmark: what it costs, beside a bare loop that does the same for one fixed question.
//!
//!     cargo bench --profile dev --bench pipeline -- [a] [a1] [b] [c] [d] [e] [f] [g] [k] [--events N]
//!
//! Prints events/s, CPU seconds per million events (of the server, or of this process), wall time
//! and peak memory. Nothing here is a test: figures go to docs/benchmarks.md.

#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

mod bare;
mod beside;
mod data;
mod door;
mod engine;
mod floor;
#[cfg(feature = "kafka")]
mod kafka;
mod measure;

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut cases = Vec::new();
    let mut records = 962_529;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--events" => records = arguments.next().ok_or("--events wants a number")?.parse()?,
            "--bench" => {}
            bare::ARGUMENT => return bare::serve(),
            engine::FILL => return engine::fill_and_end(arguments),
            engine::MEASURE => return engine::measure_and_end(arguments),
            "a" | "a1" | "b" | "c" | "d" | "e" | "f" | "g" | "k" => cases.push(argument),
            _ => {
                return Err(format!(
                    "unknown case {argument}: a, a1 (one event a request alone), b, c, d, e, f, g, k (Kafka), or none for all; --events N"
                )
                .into());
            }
        }
    }
    let wanted = |case: &str| cases.is_empty() || cases.iter().any(|c| c == case);
    println!("{records} events; CPU seconds are per million events");
    if wanted("c") {
        engine::engine_from_log(records)?;
    }
    if wanted("f") {
        engine::word_count(20_000_000)?;
    }
    if wanted("a") || wanted("d") || wanted("e") {
        door::batched_then_stores_then_restart(records)?;
    }
    if wanted("a") || wanted("a1") {
        door::single(records / 5, 64)?;
    }
    if wanted("b") {
        door::visible(20_000, 30)?;
    }
    if wanted("g") {
        beside::cross_join(200, 60)?;
    }
    if cases.iter().any(|case| case == "k") {
        #[cfg(feature = "kafka")]
        kafka::engine_from_kafka(records)?;
        #[cfg(not(feature = "kafka"))]
        return Err("case k needs --features kafka".into());
    }
    Ok(())
}
