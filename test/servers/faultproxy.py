#!/usr/bin/env python3
"""A proxy that adds delay and faults between a client and a server. HTTP/1.1 by default (it knows where
requests and replies begin and end); with --tcp plain bytes, for Redis.

    faultproxy.py --listen 7490 --target 127.0.0.1:7480 [--control 7491] [settings]
    faultproxy.py --listen 6390 --target 127.0.0.1:6379 --tcp --delay-ms 0.5

Every setting is an option and may be changed while the proxy runs, through the control port:

    curl 'http://127.0.0.1:7491/set?p503=0.2&methods=PUT'    answers with all settings as JSON
    curl http://127.0.0.1:7491/stats                         counters as JSON
    curl http://127.0.0.1:7491/reset                         counters back to 0
    curl http://127.0.0.1:7491/drop                          closes (RST) every connection now

Probabilities are from 0 to 1 and are drawn for each request; at most one fault strikes a request.

    p503    a 503 with an empty body; `when503` says at which moment (one is drawn):
            before  without reading the request's body, then the connection is closed
            after   when the body was taken; the server never sees the request
            lost    when the server has done the work: its answer is lost
    pcut    the connection ends in the middle: of the request's body, or of the reply (after `cut-bytes`
            bytes of its body, or a random number of them if -1), or instead of a reply that has no body.
            `cut-how`: fin (clean close), rst, or both. `cut-where`: request, reply, or both.
    pstall  nothing moves for `stall-s` seconds, before the reply or in the middle of its body
    delay-ms  HTTP: each request waits so long. TCP: each direction is so much later (so a round trip is
            two of it); may be a fraction.
    methods which HTTP methods faults and delay strike, e.g. GET,PUT; empty: all
    hold    1: nothing moves at all (TCP and HTTP), until 0
    refuse  1: new connections are closed at once

With --cert and --key clients speak TLS to the proxy (HTTP only).

Not meant for hostile peers; python3's own library only."""

import argparse
import asyncio
import collections
import json
import random
import signal
import socket
import ssl
import struct
import threading
import time
import urllib.parse

CHUNK = 256 << 10
HEAD_MAX = 64 << 10

SETTINGS = {  # name: (default, meaning)
    "p503": (0.0, "probability of a 503 with an empty body"),
    "when503": ("before,after,lost", "moments of the 503"),
    "pcut": (0.0, "probability of a cut connection"),
    "cut-bytes": (-1, "bytes of the reply's body before the cut; -1: random"),
    "cut-how": ("both", "fin, rst or both"),
    "cut-where": ("both", "request, reply or both"),
    "pstall": (0.0, "probability of a stall"),
    "stall-s": (60.0, "length of a stall"),
    "delay-ms": (0.0, "delay of a request (HTTP) or of each direction (TCP)"),
    "methods": ("", "HTTP methods that faults strike; empty: all"),
    "hold": (0, "1: nothing moves"),
    "refuse": (0, "1: new connections are closed"),
}


class Closed(Exception):
    """A peer went away, or a fault closed the connection."""


def reset(sock):
    """Makes the next close send RST."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass


class Proxy:
    def __init__(self, args):
        self.set = {name: getattr(args, name.replace("-", "_")) for name in SETTINGS}
        self.target = args.target.rsplit(":", 1)
        self.random = random.Random(args.seed)
        self.stats = collections.Counter()
        self.open = set()  # things with drop()

    def change(self, pairs):
        for name, value in pairs:
            if name not in SETTINGS:
                raise ValueError(f"unknown setting {name}")
            self.set[name] = type(SETTINGS[name][0])(value)

    def strikes(self, method):
        methods = self.set["methods"]
        return not methods or method in methods.split(",")

    def draw_fault(self, method):
        """One of None, "503", "cut", "stall"."""
        if not self.strikes(method):
            return None
        x = self.random.random()
        for fault, p in (("503", "p503"), ("cut", "pcut"), ("stall", "pstall")):
            x -= self.set[p]
            if x < 0:
                return fault
        return None


# --- HTTP ----------------------------------------------------------------------------------------------


class Message:
    """Start line and headers of a request or reply."""

    def __init__(self, raw):
        self.raw = raw
        lines = raw[:-4].decode("latin-1").split("\r\n")
        self.start = lines[0].split(" ", 2)
        self.headers = [tuple(p.strip() for p in line.split(":", 1)) for line in lines[1:]]

    def get(self, name):
        for n, v in self.headers:
            if n.lower() == name:
                return v
        return None

    def without(self, name):
        """The bytes without header `name`; the others stay as they were (they may be signed)."""
        lines = self.raw[:-4].split(b"\r\n")
        keep = [x for x in lines if not x.lower().startswith(name.encode() + b":")]
        return b"\r\n".join(keep) + b"\r\n\r\n"

    def chunked(self):
        return "chunked" in (self.get("transfer-encoding") or "").lower()

    def length(self):
        return int(self.get("content-length") or 0)

    def closes(self):
        return (self.get("connection") or "").lower() == "close"


async def read_head(reader):
    try:
        return Message(await reader.readuntil(b"\r\n\r\n"))
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, OSError) as e:
        raise Closed from e


async def pieces(reader, message, has_body=True):
    """The body as it stands on the wire (chunk sizes included), piece by piece."""
    try:
        if not has_body:
            return
        if message.chunked():
            while True:
                line = await reader.readuntil(b"\r\n")
                size = int(line.split(b";")[0], 16)
                yield line + await reader.readexactly(size + 2)
                if size == 0:
                    return
        left = message.length()
        while left > 0:
            data = await reader.read(min(left, CHUNK))
            if not data:
                raise Closed
            left -= len(data)
            yield data
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, OSError) as e:
        raise Closed from e


class Session:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, proxy, reader, writer):
        self.proxy, self.reader, self.writer = proxy, reader, writer
        self.up_reader = self.up_writer = None

    def drop(self):
        for w in (self.writer, self.up_writer):
            if w:
                reset(w.get_extra_info("socket"))
                w.transport.abort()

    def close(self):
        for w in (self.writer, self.up_writer):
            if w:
                w.close()

    async def send(self, writer, data):
        while self.proxy.set["hold"]:
            await asyncio.sleep(0.02)
        try:
            writer.write(data)
            await writer.drain()
        except (ConnectionError, OSError) as e:
            raise Closed from e

    async def connect(self):
        if self.up_writer and not self.up_reader.at_eof():
            return
        host, port = self.proxy.target
        try:
            self.up_reader, self.up_writer = await asyncio.open_connection(
                host, int(port), limit=HEAD_MAX)
        except OSError as e:
            self.proxy.stats["no_server"] += 1
            raise Closed from e

    async def run(self):
        while True:
            await self.one_request()

    async def one_request(self):
        proxy = self.proxy
        request = await read_head(self.reader)
        method = request.start[0]
        proxy.stats[method] += 1
        fault = proxy.draw_fault(method)
        if proxy.set["delay-ms"] and proxy.strikes(method):
            await asyncio.sleep(proxy.set["delay-ms"] / 1000)
        when = proxy.random.choice(proxy.set["when503"].split(",")) if fault == "503" else None
        if fault:
            proxy.stats[f"{fault}_{when}_{method}" if when else f"{fault}_{method}"] += 1
        if when == "before":
            await self.unavailable(close=True)
        await self.connect()
        await self.forward(request, fault, when)
        if when == "after":
            return
        reply = await read_head(self.up_reader)
        while reply.start[1] == "100":
            reply = await read_head(self.up_reader)
        has_body = method != "HEAD" and reply.start[1] not in ("204", "304")
        if when == "lost":
            async for _ in pieces(self.up_reader, reply, has_body):
                pass
            await self.unavailable(close=False)
            return
        await self.answer(reply, has_body, fault)
        if reply.closes() or request.closes():
            raise Closed

    async def forward(self, request, fault, when):
        """Brings the request to the server, or takes it and throws it away (`when` == "after")."""
        proxy = self.proxy
        if (request.get("expect") or "").lower() == "100-continue":
            await self.send(self.writer, b"HTTP/1.1 100 Continue\r\n\r\n")
        cut_at = None
        if fault == "cut" and request.length() and self.cut_place() == "request":
            cut_at = proxy.random.randrange(request.length())
        if when != "after":
            await self.send(self.up_writer, request.without("expect"))
        done = 0
        async for data in pieces(self.reader, request):
            if cut_at is not None and done + len(data) > cut_at:
                await self.send(self.up_writer, data[:cut_at - done])
                self.cut()
            done += len(data)
            if when != "after":
                await self.send(self.up_writer, data)
        if when == "after":
            await self.unavailable(close=False)

    async def answer(self, reply, has_body, fault):
        proxy = self.proxy
        length = reply.length() if has_body else 0
        cut_at = stall_at = None
        if fault == "cut":
            cut_at = proxy.set["cut-bytes"]
            if cut_at < 0:
                cut_at = proxy.random.randrange(max(length, 1))
            if not has_body or (not length and not reply.chunked()):
                self.cut()
        if fault == "stall":
            stall_at = proxy.random.choice([0, length // 2])
            if stall_at == 0:
                await asyncio.sleep(proxy.set["stall-s"])
        await self.send(self.writer, reply.raw)
        done = 0
        async for data in pieces(self.up_reader, reply, has_body):
            if cut_at is not None and done + len(data) > cut_at:
                await self.send(self.writer, data[:cut_at - done])
                self.cut()
            if stall_at and done + len(data) > stall_at:
                await self.send(self.writer, data[:stall_at - done])
                await asyncio.sleep(proxy.set["stall-s"])
                data, done, stall_at = data[stall_at - done:], stall_at, None
            done += len(data)
            await self.send(self.writer, data)

    def cut_place(self):
        where = self.proxy.set["cut-where"]
        return self.proxy.random.choice(["request", "reply"]) if where == "both" else where

    def cut(self):
        how = self.proxy.set["cut-how"]
        if how == "rst" or (how == "both" and self.proxy.random.random() < 0.5):
            reset(self.writer.get_extra_info("socket"))
            self.writer.transport.abort()
        raise Closed

    async def unavailable(self, close):
        await self.send(self.writer, b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n"
                        + (b"Connection: close\r\n" if close else b"") + b"\r\n")
        if close:
            # Closing with bytes unread would send RST, and the client might lose the 503: let it
            # read, and take what it still sends, for a moment.
            if self.writer.can_write_eof():
                self.writer.write_eof()
            try:
                async with asyncio.timeout(0.2):
                    while await self.reader.read(CHUNK):
                        pass
            except (TimeoutError, ConnectionError, OSError):
                pass
            raise Closed


async def serve_http(proxy, reader, writer):
    session = Session(proxy, reader, writer)
    proxy.stats["connections"] += 1
    proxy.open.add(session)
    try:
        if not proxy.set["refuse"]:
            await session.run()
    except Closed:
        pass
    finally:
        proxy.open.discard(session)
        session.close()


# --- TCP -----------------------------------------------------------------------------------------------


class Pipe:
    """Two threads for each direction: one reads and stamps, one writes when the time has come. Threads,
    because asyncio rounds its sleeps up to whole milliseconds."""

    def __init__(self, proxy, client):
        self.proxy, self.socks = proxy, [client]
        self.lock = threading.Lock()
        self.down = False

    def start(self):
        host, port = self.proxy.target
        try:
            up = socket.create_connection((host, int(port)), 10)
        except OSError:
            self.proxy.stats["no_server"] += 1
            self.close()
            return
        up.settimeout(None)
        self.socks.append(up)
        self.proxy.open.add(self)
        for s in self.socks:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = self.socks[0]
        for source, sink in ((client, up), (up, client)):
            queue, ready = collections.deque(), threading.Semaphore(0)
            for fn, args in ((self.read, (source, queue, ready)), (self.write, (sink, queue, ready))):
                threading.Thread(target=fn, args=args, daemon=True).start()

    def drop(self):
        for s in self.socks:
            reset(s)
        self.close()

    def close(self):
        with self.lock:
            if self.down:
                return
            self.down = True
        self.proxy.open.discard(self)
        for s in self.socks:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()

    def read(self, source, queue, ready):
        data = b"x"
        while data:
            try:
                data = source.recv(CHUNK)
            except OSError:
                data = b""
            queue.append((time.monotonic() + self.proxy.set["delay-ms"] / 1000, data))
            ready.release()

    def write(self, sink, queue, ready):
        while True:
            ready.acquire()
            due, data = queue.popleft()
            wait = due - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            while self.proxy.set["hold"] and not self.down:
                time.sleep(0.02)
            try:
                if not data:
                    break
                sink.sendall(data)
                self.proxy.stats["bytes"] += len(data)
            except OSError:
                break
        self.close()


def serve_tcp(proxy, listener):
    while True:
        client, _ = listener.accept()
        proxy.stats["connections"] += 1
        if proxy.set["refuse"]:
            client.close()
            continue
        threading.Thread(target=Pipe(proxy, client).start, daemon=True).start()


# --- Control and start -----------------------------------------------------------------------------------


async def serve_control(proxy, reader, writer):
    status, answer = "200 OK", None
    try:
        request = await read_head(reader)
        url = urllib.parse.urlsplit(request.start[1])
        if url.path == "/set":
            proxy.change(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
            answer = proxy.set
        elif url.path == "/stats":
            answer = dict(proxy.stats, open=len(proxy.open))
        elif url.path == "/reset":
            proxy.stats.clear()
            answer = {}
        elif url.path == "/drop":
            for x in list(proxy.open):
                x.drop()
            answer = {}
        else:
            status, answer = "404 Not Found", {"error": "set, stats, reset or drop"}
    except (ValueError, Closed) as e:
        status, answer = "400 Bad Request", {"error": str(e)}
    body = json.dumps(answer).encode() + b"\n"
    writer.write(f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                 "Connection: close\r\n\r\n".encode() + body)
    try:
        await writer.drain()
    except (ConnectionError, OSError):
        pass
    writer.close()


async def main(args):
    proxy = Proxy(args)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for s in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(s, ended.set)
    # Tests abort connections all the time; asyncio need not tell.
    loop.set_exception_handler(lambda _loop, _context: None)
    host, _, port = args.listen.rpartition(":")
    host = host or "127.0.0.1"
    if args.tcp:
        listener = socket.create_server((host, int(port)), backlog=1024)
        threading.Thread(target=serve_tcp, args=(proxy, listener), daemon=True).start()
        bound = listener.getsockname()[1]
    else:
        tls = None
        if args.cert:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(args.cert, args.key)
        server = await asyncio.start_server(lambda r, w: serve_http(proxy, r, w), host, int(port),
                                            limit=HEAD_MAX, backlog=1024, ssl=tls)
        bound = server.sockets[0].getsockname()[1]
    print(f"listen={bound}", flush=True)
    if args.control is not None:
        control = await asyncio.start_server(lambda r, w: serve_control(proxy, r, w), "127.0.0.1",
                                             args.control)
        print(f"control={control.sockets[0].getsockname()[1]}", flush=True)
    await ended.wait()


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--listen", required=True, help="[HOST:]PORT; 0: a free one, printed as listen=PORT")
    p.add_argument("--target", required=True, help="HOST:PORT")
    p.add_argument("--control", type=int, help="port of the control; 0: a free one, printed")
    p.add_argument("--tcp", action="store_true", help="plain bytes instead of HTTP")
    p.add_argument("--cert", help="PEM certificate: clients speak TLS")
    p.add_argument("--key", help="its PEM key")
    p.add_argument("--seed", type=int, help="of the random choices")
    for name, (default, meaning) in SETTINGS.items():
        p.add_argument(f"--{name}", type=type(default), default=default,
                       help=f"{meaning} ({default})")
    return p.parse_args()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
