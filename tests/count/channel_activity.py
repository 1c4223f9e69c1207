#!/usr/bin/env python3
"""Counts channel activity from raw JSON lines, independently of the engine.

    tests/count/channel_activity.py FILE.jsonl[.gz] > counts.json

Prints one JSON object a (channel, minute): window_start, channel, messages, authors, characters,
sorted by channel and minute, and on standard error what was left out and why. A message counts
when its content has 1 to 10,000 characters: the rule that `topologies.toml` declares.
"""

import gzip
import json
import sys
from datetime import datetime, timezone


def main(path: str) -> None:
    opener = gzip.open if path.endswith(".gz") else open
    groups: dict[tuple[str, int], list] = {}
    sent = refused = 0
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            event = json.loads(line)
            payload = event["payload"]
            length = len(payload["content"])
            if not 1 <= length <= 10_000:
                refused += 1
                continue
            sent += 1
            at = datetime.fromisoformat(event["timestamp"].replace("Z", "+00:00"))
            minute = int(at.timestamp()) // 60 * 60
            group = groups.setdefault((payload["channelId"], minute), [0, set(), 0])
            group[0] += 1
            group[1].add(payload["userId"])
            group[2] += length
    for (channel, minute), (messages, authors, characters) in sorted(groups.items()):
        start = datetime.fromtimestamp(minute, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        row = {"window_start": start, "channel": channel, "messages": messages, "authors": len(authors), "characters": characters}
        print(json.dumps(row, ensure_ascii=False))
    print(f"{sent} messages in {len(groups)} groups, {refused} refused", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
