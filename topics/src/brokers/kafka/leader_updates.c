/*
 * Stands in for a function of librdkafka that can end the process.
 *
 * Kafka 3.7 and later name new leaders within answers to fetches and produces. Where one of several
 * partitions has no leader at that moment - a broker that has just started - librdkafka counts it and
 * does not fill its place in (its issue 5280, open as of 2.14): it then reads what the memory held
 * before as the number of a partition, and past the end of its table. Such news is dropped here. The
 * error that came with it makes the client ask for the topic's leaders, as it does with older brokers.
 *
 * The linker puts it in place (--wrap, see build.rs). The number is RD_KAFKA_OP_RES_HANDLED.
 */
enum { HANDLED = 1 };

int __wrap_rd_kafka_metadata_update_op(void *client, void *update) {
        (void)client;
        (void)update;
        return HANDLED;
}
