"""Fills a topic of Kafka with plain JSON, as another producer would: no headers, the Java client's keys.

    python3 tests/bench/fill_kafka.py HOST:PORT TOPIC PARTITIONS < LINES

Each line is a key, a tab and the JSON.
"""

import sys

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic


def main() -> None:
    servers, topic, partitions = sys.argv[1], sys.argv[2], int(sys.argv[3])
    settings = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": "4194304", "retention.ms": "-1"}
    wanted = NewTopic(topic, partitions, 1, config=settings)
    # Kept by name: it ends its calls when it goes.
    admin = AdminClient({"bootstrap.servers": servers})
    for made in admin.create_topics([wanted]).values():
        made.result(30)
    producer = Producer({
        "bootstrap.servers": servers,
        "enable.idempotence": True,
        "partitioner": "murmur2",
        "compression.type": "lz4",
        "linger.ms": 20,
        "batch.size": 262144,
        "queue.buffering.max.messages": 200000,
    })
    failed = []

    def delivered(error, _message) -> None:
        if error is not None:
            failed.append(error)

    for line in sys.stdin.buffer:
        key, value = line.rstrip(b"\n").split(b"\t", 1)
        while True:
            try:
                producer.produce(topic, value, key, on_delivery=delivered)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    producer.flush()
    if failed:
        sys.exit(f"{len(failed)} records were not delivered: {failed[0]}")


if __name__ == "__main__":
    main()
