"""Reads a topic with another Kafka client, committed records only, and checks that each is there once.

    python3 tests/services/read_committed.py HOST:PORT TOPIC [EXPECTED]

Prints one line: records, distinct (partition, key, value) triples and the largest event time. Fails
when two rows are the same, when a window has two final rows, and when EXPECTED is given and is
not the number of records. Where confluent-kafka is not installed it says so and counts as skipped
(exit 77).
"""

import json
import sys


def main() -> int:
    try:
        from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition
    except ImportError:
        print("skipped: no confluent-kafka for this Python")
        return 77
    servers, topic = sys.argv[1], sys.argv[2]
    consumer = Consumer({
        "bootstrap.servers": servers,
        "group.id": "read-committed-check",
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
    })
    found = consumer.list_topics(topic, timeout=20).topics[topic]
    if not found.partitions:
        print(f"no topic {topic}")
        return 1
    consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in found.partitions])
    ended, records, distinct, newest, final, twice = set(), 0, set(), 0, set(), []
    while len(ended) < len(found.partitions):
        message = consumer.poll(20)
        if message is None:
            print("no answer within 20 s")
            return 1
        if message.error():
            if message.error().code() == KafkaError._PARTITION_EOF:
                ended.add(message.partition())
                continue
            print(message.error())
            return 1
        headers = dict(message.headers() or [])
        value = json.loads(message.value())
        if value.get("final") is True:
            window = (message.key(), value.get("window_start"))
            if window in final:
                twice.append(window)
            final.add(window)
        newest = max(newest, int(headers["time"]))
        records += 1
        distinct.add((message.partition(), message.key(), message.value()))
    consumer.close()
    print(f"records={records} distinct={len(distinct)} newest={newest}")
    if final and len(distinct) != records:
        print("a record is there twice")
        return 1
    if twice:
        print(f"{len(twice)} windows have two final rows, such as {twice[0]}")
        return 1
    if len(sys.argv) > 3 and records != int(sys.argv[3]):
        print(f"expected {sys.argv[3]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
