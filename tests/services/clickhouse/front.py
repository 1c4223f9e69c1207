#!/usr/bin/env python3
"""ClickHouse's HTTP interface in front of its engine as a library (chdb-core): what a client of tests needs.

    front.py FOLDER PORT

A statement comes in `?query=`, in the body, or begins in the one and goes on in the other (an insert's
data). Settings, `database` and `param_...` come as URL parameters; bodies plain or in the native
compressed blocks (`compress=1`, `decompress=1`, LZ4). Errors have the engine's own code in
X-ClickHouse-Exception-Code. FRONT_USER and FRONT_PASSWORD change who may come in (default, no password).
"""
import base64
import os
import queue
import re
import signal
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import chdb
import lz4.block
from clickhouse_cityhash.cityhash import CityHash128

AT_ONCE = 4
PIECE = 1 << 20
WHO = (os.environ.get("FRONT_USER", "default"), os.environ.get("FRONT_PASSWORD", ""))
# Of the interface; every other parameter is a setting of the query.
INTERFACE = frozenset(
    "query database user password compress decompress default_format query_id role session_id session_timeout "
    "enable_http_compression wait_end_of_query send_progress_in_http_headers http_headers_progress_interval_ms "
    "buffer_size quota_key client_protocol_version".split())
STATUS = {60: 404, 81: 404, 47: 404, 115: 404, 46: 404, 62: 400, 6: 400, 26: 400, 27: 400, 33: 400, 38: 400, 41: 400,
          53: 400, 72: 400, 117: 400, 497: 403, 516: 403, 192: 403, 193: 403, 159: 408, 48: 501}
# The data of an insert begin behind `FORMAT Name` or `VALUES`; neither word may be part of a string.
INSERT = re.compile(rb"""\s*INSERT\s+INTO\s+(?:'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`|"(?:[^"\\]|\\.)*"|[^'`"])*?"""
                    rb"""\b(?:FORMAT\s+(?P<format>\w+)[ \t]*;?\r?\n?|(?P<values>VALUES)|(?P<other>SELECT|WITH)\b)""",
                    re.IGNORECASE | re.DOTALL)


class Refusal(Exception):
    """What this front itself refuses, with a code of the engine's list."""

    def __init__(self, code, name, text):
        super().__init__(f"Code: {code}. DB::Exception: {text} ({name})")


def checksum(block):
    number = CityHash128(block)
    return struct.pack("<QQ", number >> 64, number & (2**64 - 1))


def from_blocks(data):
    """Native compressed blocks: checksum, method, packed size with these nine bytes, size, bytes."""
    plain, at = bytearray(), 0
    while at < len(data):
        method, packed, size = struct.unpack_from("<BII", data, at + 16)
        block = data[at + 16:at + 16 + packed]
        if len(block) != packed or checksum(block) != data[at:at + 16]:
            raise Refusal(40, "CHECKSUM_DOESNT_MATCH", "Checksum doesn't match")
        if method == 0x82:
            plain += lz4.block.decompress(block[9:], uncompressed_size=size)
        elif method == 0x02:
            plain += block[9:]
        else:
            raise Refusal(89, "UNKNOWN_COMPRESSION_METHOD", f"Unknown compression method {method}")
        at += 16 + packed
    return bytes(plain)


def to_blocks(data):
    out = bytearray()
    for at in range(0, len(data), PIECE):
        piece = data[at:at + PIECE]
        packed = lz4.block.compress(piece, store_size=False)
        block = struct.pack("<BII", 0x82, len(packed) + 9, len(piece)) + packed
        out += checksum(block) + block
    return bytes(out)


class Engine:
    """Some connections; a request has one to itself while it runs."""

    def __init__(self, folder):
        self.free = queue.Queue()
        for _ in range(AT_ONCE):
            self.free.put(chdb.connect(folder))

    def answer(self, statement, data, database, settings, parameters, shape):
        connection = self.free.get()
        try:
            connection.query(f"USE `{database.replace('`', '``')}`", "Null")
            for name, value in settings.items():
                connection.query(f"SET {name} = {text(value)}", "Null")
            try:
                return self.run(connection, statement, data, parameters, shape)
            finally:
                for name in settings:
                    connection.query(f"SET {name} = DEFAULT", "Null")
        finally:
            self.free.put(connection)

    @staticmethod
    def run(connection, statement, data, parameters, shape):
        insert = INSERT.match(statement)
        if insert is None or insert["other"]:
            result = connection.query((statement + data).decode("utf-8", "surrogateescape"), shape, params=parameters or None)
            return result.bytes() or b""
        at = insert.start("values") if insert["values"] else insert.start("format")
        head = statement[:at].rstrip()
        if insert["format"]:
            head = head[:-len(b"FORMAT")]
        form = "Values" if insert["values"] else insert["format"].decode()
        stream = connection.send_insert(head.decode("utf-8", "surrogateescape"), form)
        try:
            for part in (statement[insert.end():], data):
                for begin in range(0, len(part), PIECE):
                    stream.append(part[begin:begin + PIECE])
            stream.finish()
        except BaseException:
            try:
                stream.cancel()
            except Exception:  # the first failure is the one to be told
                pass
            raise
        return b""

    def close(self):
        for _ in range(AT_ONCE):
            self.free.get(timeout=15).close()


def text(value):
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def fields(kind, data):
    """The fields of a form, by name."""
    mark = b"--" + re.search(r'boundary="?([^";]+)', kind)[1].encode()
    found = {}
    for part in data.split(mark)[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]*)"', head)[1].decode()
        found[name] = value.removesuffix(b"\r\n").decode("utf-8", "surrogateescape")
    return found


class Front(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    engine = None

    def do_GET(self):
        url = urlsplit(self.path)
        if url.path == "/ping" or not url.query:
            return self.send(200, b"Ok.\n", {})
        return self.do_POST()

    def do_POST(self):
        values = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        try:
            data = self.body()
            self.let_in(values)
            if values.get("decompress") == "1":
                data = from_blocks(data)
            if self.headers.get_content_type() == "multipart/form-data":  # statement and parameters as a form
                values |= fields(self.headers["Content-Type"], data)
                data = b""
            statement = values.get("query", "").encode("utf-8", "surrogateescape")
            if not statement.strip():
                statement, data = data, b""
            elif INSERT.match(statement) is None and data.strip():
                statement, data = statement + b"\n" + data, b""
            settings = {name: value for name, value in values.items() if name not in INTERFACE and not name.startswith("param_")}
            for name in settings:
                if not re.fullmatch(r"\w+", name):
                    raise Refusal(115, "UNKNOWN_SETTING", f"Unknown setting '{name}'")
            parameters = {name[6:]: value for name, value in values.items() if name.startswith("param_")}
            database = values.get("database") or self.headers.get("X-ClickHouse-Database") or "default"
            shape = values.get("default_format") or self.headers.get("X-ClickHouse-Format") or "TabSeparated"
            answer = self.engine.answer(statement, data, database, settings, parameters, shape)
            self.send(200, to_blocks(answer) if values.get("compress") == "1" else answer, {})
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as failure:  # told as the server tells it
            said = str(failure)
            found = re.search(r"Code: (\d+)\.", said)
            code = int(found[1]) if found else 1001
            said = said[found.start():] if found else f"Code: 1001. DB::Exception: {said} (STD_EXCEPTION)"
            print(said[:300], file=sys.stderr, flush=True)
            self.send(STATUS.get(code, 500), said.encode("utf-8", "replace"), {"X-ClickHouse-Exception-Code": str(code)})

    def body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.exactly(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(100).split(b";")[0], 16):
            parts.append(self.exactly(size))
            self.rfile.readline(4)
        while self.rfile.readline(10_000).strip():
            pass
        return b"".join(parts)

    def exactly(self, size):
        data = self.rfile.read(size)
        if len(data) != size:  # the client is gone, and half an insert is none
            raise ConnectionError
        return data

    def let_in(self, values):
        user = values.get("user") or self.headers.get("X-ClickHouse-User") or "default"
        password = values.get("password") or self.headers.get("X-ClickHouse-Key") or ""
        kind, _, coded = self.headers.get("Authorization", "").partition(" ")
        if kind == "Basic":
            user, _, password = base64.b64decode(coded).decode("utf-8", "replace").partition(":")
        if (user, password) != WHO:
            raise Refusal(516, "AUTHENTICATION_FAILED", f"{user}: Authentication failed: password is incorrect, or there is no such user")

    def send(self, status, answer, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        self.wfile.flush()

    def log_request(self, code="-", size="-"):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    folder, port = sys.argv[1], int(sys.argv[2])
    os.makedirs(folder, exist_ok=True)
    Front.engine = Engine(folder)
    server = Server(("127.0.0.1", port), Front)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.1)
    Front.engine.close()


if __name__ == "__main__":
    main()
