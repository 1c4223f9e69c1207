//! Builds what stands in for a faulty function of librdkafka; see `src/brokers/kafka/leader_updates.c`.

fn main() {
    let shim = "src/brokers/kafka/leader_updates.c";
    println!("cargo::rerun-if-changed={shim}");
    // Other linkers know no `--wrap`: there the library is as it is.
    #[cfg(feature = "kafka")]
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        // All of it: its symbol is asked for by a library that the linker reads later.
        cc::Build::new().file(shim).link_lib_modifier("+whole-archive").compile("quikflow_leader_updates");
        println!("cargo::rustc-link-arg=-Wl,--wrap=rd_kafka_metadata_update_op");
    }
}
