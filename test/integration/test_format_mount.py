#!/usr/bin/env python3
"""Bad input: each has one clear line that says what to do, and a non-zero status. And how mounts begin
and end: mount -t siltfs, SIGTERM, umount, fusermount3 -u, all of which flush everything first."""
# timeout: 600
# asan: yes

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import SILTFS, DirBucket, check, equal, payload  # noqa: E402

suite = silt.Suite()


def refused(p, *words, status=None):
    """One line on stderr that has all the words, a non-zero status, nothing crashed."""
    lines = [x for x in p.err.strip().splitlines() if x.strip()]
    said = p.err.strip()
    check(p.returncode != 0, f"went through, saying {p.out!r} {said!r}; want a refusal")
    check(p.returncode > 0, f"killed by signal {-p.returncode}: {said}")
    if status is not None:
        equal(p.returncode, status, "exit status")
    equal(len(lines), 1, f"lines on stderr ({said!r})")
    for w in words:
        check(re.search(w, said, re.I), f"{said!r} does not say {w!r}")


def try_format(t, address, name="vol", bucket=None, kind="file", env=None, options=()):
    bucket = bucket or t.folder("o")
    return t.siltfs("format", "--storage", kind, "--bucket", bucket, *options, address, name,
                    check_status=False, env=env)


def try_mount(t, address, mountpoint=None, options=(), env=None, wrap=(), timeout=60):
    mountpoint = mountpoint or t.folder("m")
    if not any(o.startswith("cache-dir=") for o in options):
        options = [*options, "cache-dir=none"]  # the default takes most of the disk
    opts = ["-o", ",".join(options)]
    t.finally_do(lambda: subprocess.run(["umount", "-l", mountpoint], stderr=subprocess.DEVNULL))
    return silt.run(*wrap, SILTFS, "mount", address, mountpoint, *opts, check_status=False,
                    env=env, timeout=timeout)


# --- the metadata address ------------------------------------------------------------------------------


@suite.case
def an_address_that_is_none(t):
    for bad in ("", "nonsense", "http://x/", "redis://", "redis://host:notaport", "redis://h:99999",
                "redis://h/notadb", "local:"):
        refused(try_format(t, bad))
        refused(try_mount(t, bad))


@suite.case
def nobody_listens(t):
    port = silt.free_port()
    refused(try_format(t, f"redis://127.0.0.1:{port}"), str(port))
    refused(try_mount(t, f"redis://127.0.0.1:{port}"), str(port))
    refused(try_mount(t, "redis+socket:///nowhere/redis.sock"), "/nowhere/redis.sock")
    refused(try_mount(t, "redis://no-such-host.invalid"), "no-such-host.invalid")
    refused(try_mount(t, f"local:{t.tmp}/nowhere"), "nowhere", "format")


@suite.case
def wrong_password(t):
    r = t.redis(password="right")
    bad = f"redis://:wrong@127.0.0.1:{r.port}"
    none = f"redis://127.0.0.1:{r.port}"
    for address in (bad, none):
        p = try_format(t, address)
        refused(p, "password")
        check("wrong@" not in p.err, "the message must not show the password")
    v = t.volume(redis=r)
    for address in (bad, none):
        refused(try_mount(t, address), "password")
    # From the environment and from a file, it works.
    with open(os.path.join(t.tmp, "pw"), "w") as f:
        f.write("right\n")
    os.chmod(f.name, 0o600)
    for env in ({"SILTFS_META_PASSWORD": "right"}, {"SILTFS_META_PASSWORD_FILE": f.name}):
        m = t.mount(v, address=none, env=env)
        m.umount()
    refused(try_mount(t, none, env={"SILTFS_META_PASSWORD_FILE": "/nowhere/pw"}), "/nowhere/pw")


@suite.case
def no_such_volume(t):
    r = t.redis()
    refused(try_mount(t, r.address()), "volume", "format")
    refused(try_mount(t, r.address() + "/3"), "volume", "format")
    refused(t.siltfs("status", r.address(), check_status=False), "volume")


@suite.case
def format_over_a_volume(t):
    v = t.volume()
    refused(try_format(t, v.address, "vol"), "vol")
    refused(try_format(t, v.address, "another"), "vol")
    m = t.mount(v)  # it is untouched
    with open(m / "f", "w") as f:
        f.write("x")


@suite.case
def two_volumes_of_one_name_in_one_bucket(t):
    v = t.volume()
    p = try_format(t, t.redis().address(), v.name, bucket=v.bucket.url)
    refused(p, v.name)


class Gate:
    """Before a Redis port: what a client sends passes until `word` is in it; then `shut` is set, and
    nothing of that comes through. With `cut`, that connection is closed."""

    def __init__(self, port, word, cut=False):
        self.target, self.word, self.cut = port, word, cut
        self.shut = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                for pair, word in ((client, server), self.word), ((server, client), None):
                    threading.Thread(target=self.pass_on, args=(*pair, word), daemon=True).start()

    def pass_on(self, source, sink, word):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if word and word in data:
                    self.shut.set()
                    if self.cut:
                        break
                    continue
                sink.sendall(data)
        for s in (source, sink):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.listener.close()


CREATE = b"\r\nsilt1_format\r\n"  # the call that makes the volume: the last step of a format
MARKER = "siltfs-volume.json"


def bucket_of(t, storage):
    if storage == "file":
        return DirBucket(t.folder("o")), {}
    return t.rgw().bucket(), t.rgw().environment()


@suite.cases_for(storage=["file", "s3"])
def a_format_that_was_killed_can_be_repeated(t, storage):
    """kill -9 after the marker is in the bucket and before there is metadata: the same command finishes
    it; another volume is told what to do, and is not mixed up with it."""
    r = t.redis()
    bucket, env = bucket_of(t, storage)
    gate = Gate(r.port, CREATE)
    t.servers.append(gate)
    p = subprocess.Popen([SILTFS, "format", "--storage", storage, "--bucket", bucket.url,
                          f"redis://127.0.0.1:{gate.port}", "vol"], stdout=subprocess.DEVNULL,
                         env={**os.environ, **env})
    check(gate.shut.wait(60), "format comes to its last step")
    p.kill()
    p.wait()
    marker = json.loads(bucket.get(MARKER))
    refused(try_mount(t, r.address(), env=env), "no siltfs volume")
    refused(try_format(t, t.redis().address(), bucket=bucket.url, kind=storage, env=env),
            "already holds a volume named vol", marker["id"], "delete")
    v = silt.Volume(t, r.address(), bucket, r, env=env)
    check("interrupted" in v.format_output, f"format says what it found: {v.format_output}")
    equal(json.loads(bucket.get(MARKER)), marker, "the marker")
    equal(r.cmd("EXISTS", "{0}f"), 0, "the note of a format, after it")
    m = t.mount(v)
    fill(m)
    m.umount()
    filled(t, v)
    # Redis loses the volume, and comes back as it was in the middle of format: the files' packs stay.
    c = r.connect()
    c.cmd("DEL", "{0}v")
    c.cmd("SET", "{0}f", marker["id"])
    refused(try_format(t, r.address(), bucket=bucket.url, kind=storage, env=env), "already holds")
    equal(json.loads(bucket.get(MARKER)), marker, "the marker")


@suite.case
def a_format_that_fails_leaves_nothing(t):
    """Redis goes away in the middle of the last step: the marker is taken back, and the same command then
    works; so it does when Redis stays away and the marker could not be taken back."""
    for stays_away in (False, True):
        r = t.redis()
        bucket = DirBucket(t.folder("o"))
        gate = Gate(r.port, CREATE, cut=not stays_away)
        t.servers.append(gate)
        if stays_away:
            killer = threading.Thread(target=lambda g=gate, r=r: (g.shut.wait(60), r.kill()))
            killer.start()
        refused(try_format(t, f"redis://127.0.0.1:{gate.port}", bucket=bucket.url), "connection closed")
        equal(bool(bucket.objects("siltfs")), stays_away, "whether there is a marker")
        if stays_away:
            killer.join()
            r.start()
        v = silt.Volume(t, r.address(), bucket, r)
        m = t.mount(v)
        fill(m)
        m.umount()
        filled(t, v)


@suite.case
def bad_arguments(t):
    r = t.redis()
    for args in (["format"], ["format", r.address()], ["mount"], ["mount", r.address()],
                 ["nosuch"], ["format", "--nosuch", r.address(), "n"], ["umount"], ["status"],
                 ["format", "--shards", "0", r.address(), "n"],
                 ["format", "--shards", "99999", r.address(), "n"],
                 ["format", "--storage", "tape", r.address(), "n"],
                 ["format", r.address(), "bad/name"], ["format", r.address(), ""]):
        p = t.siltfs(*args, check_status=False)
        check(p.returncode > 0, f"siltfs {args}: status {p.returncode}")
        check(p.err.strip(), f"siltfs {args}: says nothing")
        check(len(p.err.strip().splitlines()) <= 3, f"siltfs {args}: says too much: {p.err}")
    p = try_mount(t, r.address(), options=["nosuchoption=1"])
    refused(p, "nosuchoption")
    for what in ([], ["format"], ["mount"], ["umount"], ["status"], ["info"], ["warmup"], ["debug"]):
        p = t.siltfs(*what, "--help")
        check("usage" in p.out.lower(), f"siltfs {' '.join(what)} --help")
        check(re.search(r"\d+\.\d+", t.siltfs(*what, "--version").out), f"{what} --version")


# --- the object store ----------------------------------------------------------------------------------


@suite.case
def bucket_missing_or_not_writable(t):
    r = t.redis()
    rgw = t.rgw()
    base = f"http://{rgw.host}:{rgw.port}"
    refused(try_format(t, r.address(), kind="s3", bucket=f"{base}/no-such-bucket-here",
                       env=rgw.environment()), "no-such-bucket-here")
    bucket = rgw.bucket()
    wrong = {"SILTFS_ACCESS_KEY": rgw.access, "SILTFS_SECRET_KEY": "wrong"}
    refused(try_format(t, r.address(), kind="s3", bucket=bucket.url, env=wrong), bucket.name)
    unknown = {"SILTFS_ACCESS_KEY": "nobody", "SILTFS_SECRET_KEY": "wrong"}
    refused(try_format(t, r.address(), kind="s3", bucket=bucket.url, env=unknown), bucket.name)
    empty = {k: "" for k in ("HOME", "AWS_PROFILE")}
    refused(try_format(t, r.address(), kind="s3", bucket=bucket.url, env=empty), "SILTFS_ACCESS_KEY")
    refused(try_format(t, r.address(), kind="s3", bucket=f"http://127.0.0.1:{silt.free_port()}/b",
                       env=rgw.environment()), "127.0.0.1")
    refused(try_format(t, r.address(), kind="s3", bucket="ftp://x/y", env=rgw.environment()))
    refused(try_format(t, r.address(), bucket="/proc/version/bucket"), "/proc/version")
    # A directory that root can't write either.
    d = t.folder("o")
    silt.run("mount", "-t", "tmpfs", "-o", "ro", "none", d)
    t.finally_do(lambda: silt.run("umount", d))
    refused(try_format(t, r.address(), bucket=d), d)
    # Nothing was left that would look like a volume.
    refused(try_mount(t, r.address()), "volume")
    # A bucket that went away after format stops the mount.
    v = t.volume()
    shutil.rmtree(v.bucket.path)
    refused(try_mount(t, v.address), re.escape(v.bucket.path))


class TokenStore:
    """An S3 server that believes everyone, because Ceph's takes only session tokens of its own."""
    kind = "s3"

    def __init__(self, conditions="kept"):
        objects, self.tokens, self.conditions = {}, set(), conditions
        tokens, outer = self.tokens, self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, status, body=b"", size=None, **headers):
                self.send_response(status)
                for k, x in headers.items():
                    self.send_header(k.replace("_", "-"), x)
                self.send_header("Content-Length", str(len(body) if size is None else size))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                tokens.add(self.headers.get("x-amz-security-token"))
                url = urllib.parse.urlparse(self.path)
                data = objects.get(url.path)
                if url.query or url.path.count("/") == 1:
                    return self.answer(200, b"<ListBucketResult><IsTruncated>false</IsTruncated>"
                                            b"</ListBucketResult>")
                if data is None:
                    return self.answer(404)
                whole = len(data)
                r = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                first = int(r[1]) if r else 0
                data = data[first:int(r[2]) + 1 if r and r[2] else None]
                if self.command == "HEAD":
                    return self.answer(200, size=whole)
                if not r:
                    return self.answer(200, data)
                self.answer(206, data,
                            Content_Range=f"bytes {first}-{first + len(data) - 1}/{whole}")

            do_HEAD = do_GET

            def do_PUT(self):
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("If-None-Match") and outer.conditions == "unknown":
                    return self.answer(501)
                if (self.headers.get("If-None-Match") and outer.conditions == "kept"
                        and self.path in objects):
                    return self.answer(412)
                objects[self.path] = data
                self.answer(200)

            def do_DELETE(self):
                objects.pop(self.path, None)
                self.answer(204)

            def log_message(self, *_):
                pass
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/bucket"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@suite.cases_for(conditions=["kept", "overlooked", "unknown"])
def nothing_is_overwritten(t, conditions):
    """Servers keep, overlook or don't know If-None-Match. On each, a second volume of one name is refused,
    and ids of packs that Redis gives out again take nothing away."""
    store = TokenStore(conditions)
    t.finally_do(store.close)
    env = {"SILTFS_ACCESS_KEY": "access", "SILTFS_SECRET_KEY": "secret"}
    redis = t.redis()
    v = silt.Volume(t, redis.address(), store, redis, env=env)
    m = t.mount(v, cache=False)
    with open(m / "first", "wb") as f:
        f.write(b"first" * 1000)
    equal("overwrites objects" in m.log_text(), conditions == "overlooked", "the log says so")
    m.umount()
    refused(try_format(t, t.redis().address(), v.name, bucket=store.url, kind="s3", env=env),
            "already holds a volume")
    redis.cmd("HSET", "{0}c", "p", "0")
    m = t.mount(v, cache=False)
    for i in range(3):
        with open(m / f"more{i}", "wb") as f:
            f.write(b"more" * 1000)
    with open(m / "first", "rb") as f:
        equal(f.read(), b"first" * 1000, "what was there")
    m.umount()


READ = {b"string": ["GET"], b"hash": ["HGETALL"], b"set": ["SMEMBERS"],
        b"list": ["LRANGE", "0", "-1"], b"zset": ["ZRANGE", "0", "-1"], b"stream": ["XRANGE", "-", "+"]}


def flat(value):
    if isinstance(value, list):
        return b"\n".join(flat(x) for x in value)
    return value if isinstance(value, bytes) else str(value).encode()


def keys_and_values(c):
    """As clients see them: what DUMP gives is compressed, nothing is found in that."""
    out = [flat(c.cmd("FUNCTION", "LIST", "WITHCODE"))]
    for key in c.cmd("KEYS", "*"):
        command, *rest = READ[c.cmd("TYPE", key)]
        out += [key, flat(c.cmd(command, key, *rest))]
    return b"\n".join(out)


def contents(*paths):
    out = b""
    for top in paths:
        for d, _, names in os.walk(top) if os.path.isdir(top) else [("", (), [top])]:
            for n in names:
                path = os.path.join(d, n)
                if os.path.isfile(path):
                    with open(path, "rb") as f:
                        out += f.read()
    return out


def where_secrets_might_be(t, v, m):
    """{place: its bytes}"""
    return {
        "Redis": keys_and_values(v.redis.connect()),
        "Redis's files": contents(v.redis.dir),
        "Redis's command line": contents(f"/proc/{v.redis.proc.pid}/cmdline"),
        "the mount's log": contents(m.log, m.stderr),
        "the mount's command line": contents(f"/proc/{m.proc.pid}/cmdline"),
        "the mount table": contents("/proc/self/mountinfo"),
        "what siltfs status says": json.dumps(m.status()).encode(),
        "what siltfs format said": v.format_output.encode(),
    }


@suite.case
def secrets_are_nowhere(t):
    """The password of Redis, the secret key and the session token are not in Redis, in its files, in
    logs, in the mount table, or on a command line."""
    password, secret, token = ("Pw", "SeCrEt", "ToKeN")
    password, secret, token = (w + secrets.token_hex(16) for w in (password, secret, token))
    store = TokenStore()
    t.finally_do(store.close)
    redis = t.redis()
    redis.cmd("CONFIG", "SET", "requirepass", password)
    redis.password = password
    env = {"SILTFS_META_PASSWORD": password, "SILTFS_ACCESS_KEY": "access",
           "SILTFS_SECRET_KEY": secret, "SILTFS_SESSION_TOKEN": token}
    bare = f"redis://127.0.0.1:{redis.port}"
    v = silt.Volume(t, bare, store, redis, env=env)
    m = t.mount(v, options=["log-level=debug"])
    # The other way to say the password, which is on a command line, but should get no further.
    said = t.mount(v, address=redis.address(), env={"SILTFS_META_PASSWORD": ""})
    for x in (m, said):
        with open(x / "f", "w") as f:
            f.write("x" * 100_000)
    t.siltfs("warmup", m.path)
    check(token in store.tokens, "the store was sent the session token")

    # First: what is there is found, wherever it is.
    c = redis.connect()
    decoy = "DeCoY" + secrets.token_hex(16)
    plant = ("pad " * 500 + decoy) * 3
    for command in (["SET", "d1", plant], ["HSET", "d2", "f", plant], ["SADD", "d3", plant],
                    ["RPUSH", "d4", plant], ["ZADD", "d5", "1", plant], ["XADD", "d6", "*", "f", plant]):
        c.cmd(*command)
        equal(keys_and_values(c).count(decoy.encode()), 3, f"finds of a decoy put by {command[0]}")
        check(decoy.encode() not in c.cmd("DUMP", command[1]), "(DUMP would not have shown it)")
        c.cmd("DEL", command[1])
    silt.wait_until(lambda: decoy.encode() in contents(redis.dir), "the decoy in Redis's files")
    places = where_secrets_might_be(t, v, m)
    for place, sure in (("Redis", "silt"), ("Redis's command line", "redis-server"),
                        ("the mount's log", m.cache_dir), ("the mount's command line", m.path),
                        ("the mount table", m.path), ("what siltfs status says", m.path),
                        ("what siltfs format said", "vol")):
        check(sure.encode() in places[place], f"{place} does not even have {sure!r}")

    for what, word in (("password", password), ("secret key", secret), ("session token", token)):
        for place, held in places.items():
            check(word.encode() not in held, f"the {what} is in {place}")
    for place, held in where_secrets_might_be(t, v, said).items():
        if place != "the mount's command line":
            check(password.encode() not in held,
                  f"the password of the address is in {place} (of a mount that was given it so)")


# --- the mount point and FUSE ----------------------------------------------------------------------------


@suite.case
def mount_point_missing_or_busy(t):
    v = t.volume()
    refused(try_mount(t, v.address, os.path.join(t.tmp, "nowhere")), "nowhere")
    plain = os.path.join(t.tmp, "plain")
    open(plain, "w").close()
    refused(try_mount(t, v.address, plain), "plain", "directory")
    m = t.mount(v)
    refused(try_mount(t, v.address, m.path), re.escape(m.path), "mounted")
    # The mount that was there goes on.
    os.listdir(m.path)


@suite.case
def standard_descriptors_closed(t):
    """A mount made by a program that has closed stdin, stdout and stderr serves and ends like any."""
    v = t.volume()
    mp = t.folder("m")
    script = 'exec "$@" <&- >&- 2>&-'
    env = {"SILTFS_RUN_DIR": t.folder("run"), **v.env}
    options = f"cache-dir=none,log={t.tmp}/closed.log"
    silt.run("sh", "-c", script, "sh", silt.SILTFS, "mount", v.address, mp, "-o", options, env=env)
    try:
        with open(os.path.join(mp, "f"), "wb") as f:
            f.write(b"x" * 100_000)
        equal(os.listdir(mp), ["f"], "names")
    finally:
        t.siltfs("umount", mp, env=env)
    with open(f"{t.tmp}/closed.log") as f:
        check("ended" in f.read().splitlines()[-1], "the log goes on to the end")


@suite.case
def fuse_not_permitted(t):
    v = t.volume()
    mp = t.folder("m")
    # A namespace without the device: what a container has that was not given it.
    wrap = ["unshare", "-m", "sh", "-c",
            'mount -t tmpfs none /dev && exec "$@"', "sh"]
    refused(try_mount(t, v.address, mp, wrap=wrap), "/dev/fuse")
    # A device that a user may not open.
    silt.run("chmod", "-R", "a+rwX", v.bucket.path)
    os.chown(mp, 65533, 65533)
    wrap = ["unshare", "-m", "sh", "-c",
            f'mknod -m 600 {t.tmp}/fuse c 10 229 && mount --bind {t.tmp}/fuse /dev/fuse && '
            'exec setpriv --reuid=65533 --regid=65533 --clear-groups "$@"', "sh"]
    home = {"HOME": t.folder("home"), "XDG_RUNTIME_DIR": t.folder("xdg")}
    for d in home.values():
        os.chown(d, 65533, 65533)
    refused(try_mount(t, v.address, mp, wrap=wrap, env=home, options=[f"log={home['HOME']}/log"]),
            "/dev/fuse")


@suite.case
def umount_while_a_container_has_it(t):
    """The daemon goes on for another mount namespace; umount says for which process, and waits."""
    m = t.mount(t.volume())
    with open(m / "f", "wb") as f:
        f.write(b"kept")
    other = subprocess.Popen(["unshare", "-m", "sh", "-c", f"read x; exec cat {m / 'f'}"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    silt.wait_until(lambda: os.readlink(f"/proc/{other.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"),
                    "a mount namespace")
    u = subprocess.Popen([SILTFS, "umount", m.path], stderr=subprocess.PIPE)
    line = u.stderr.readline().decode()
    check(f"process {other.pid}," in line and "another mount namespace" in line, line)
    check(not os.path.ismount(m.path), "it is unmounted here")
    check(u.poll() is None, "umount waits")
    out, _ = other.communicate(b"\n", timeout=30)
    equal(out, b"kept", "what the other namespace reads meanwhile")
    equal(u.wait(30), 0, "status")
    m.ended()


@suite.case
def umount_of_what_is_no_mount(t):
    refused(t.siltfs("umount", t.folder("d"), check_status=False), "mount")
    refused(t.siltfs("umount", "/nowhere", check_status=False), "/nowhere")
    refused(t.siltfs("status", t.folder("d"), check_status=False), "mount")
    refused(t.siltfs("status", "/", check_status=False))


# --- versions --------------------------------------------------------------------------------------------


class OldRedis:
    """A server that says it is Redis 6.2: the one thing that a real server here can't be."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.talk, args=(conn,), daemon=True).start()

    def talk(self, conn):
        f = conn.makefile("rb")
        while True:
            line = f.readline()
            if not line.startswith(b"*"):
                return
            args = []
            for _ in range(int(line[1:])):
                n = int(f.readline()[1:])
                args.append(f.read(n + 2)[:-2])
            name = args[0].upper()
            if name == b"INFO":
                text = b"# Server\r\nredis_version:6.2.14\r\nredis_mode:standalone\r\n"
                conn.sendall(b"$%d\r\n%s\r\n" % (len(text), text))
            elif name == b"PING":
                conn.sendall(b"+PONG\r\n")
            elif name in (b"SELECT", b"CLIENT", b"AUTH"):
                conn.sendall(b"+OK\r\n")
            elif name in (b"GET", b"HGET"):
                conn.sendall(b"$-1\r\n")
            else:
                conn.sendall(b"-ERR unknown command '%s'\r\n" % args[0])

    def close(self):
        self.listener.close()


@suite.case
def redis_too_old(t):
    old = OldRedis()
    t.servers.append(old)
    address = f"redis://127.0.0.1:{old.port}"
    refused(try_format(t, address), r"6\.2", r"7\.0")
    refused(try_mount(t, address), r"6\.2", r"7\.0")


@suite.case
def volume_of_a_newer_format(t):
    v = t.volume()
    c = v.redis.connect()
    settings = json.loads(c.cmd("GET", "{0}v"))
    changed = False
    for key in settings:
        if "version" in key:
            settings[key] = settings[key] + 1
            changed = True
    check(changed, f"no version in the settings {settings}")
    c.cmd("SET", "{0}v", json.dumps(settings))
    refused(try_mount(t, v.address), "version|newer|format", "siltfs")


@suite.case
def damaged_settings(t):
    v = t.volume()
    v.redis.cmd("SET", "{0}v", "{not json")
    refused(try_mount(t, v.address), "settings|damaged")


# --- the cache directory -----------------------------------------------------------------------------------


@suite.case
def cache_directory_full_or_not_writable(t):
    v = t.volume()
    d = t.folder("full")
    silt.run("mount", "-t", "tmpfs", "-o", "size=4m", "none", d)
    t.finally_do(lambda: silt.run("umount", d))
    with open(os.path.join(d, "filler"), "wb") as f:
        try:
            f.write(bytes(5 << 20))
        except OSError:
            pass
    refused(try_mount(t, v.address, options=[f"cache-dir={d}", "cache-size=1G"]), re.escape(d))
    ro = t.folder("ro")
    silt.run("mount", "-t", "tmpfs", "-o", "ro", "none", ro)
    t.finally_do(lambda: silt.run("umount", ro))
    refused(try_mount(t, v.address, options=[f"cache-dir={ro}"]), re.escape(ro))
    plain = os.path.join(t.tmp, "plainfile")
    open(plain, "w").close()
    refused(try_mount(t, v.address, options=[f"cache-dir={plain}"]), re.escape(plain))
    m = t.mount(v)
    refused(try_mount(t, v.address, options=[f"cache-dir={m.cache_dir}"]), re.escape(m.cache_dir))


@suite.case
def warmup_of_a_path_that_is_not_on_a_mount(t):
    v = t.volume()
    m = t.mount(v)
    refused(t.siltfs("warmup", t.folder("d"), check_status=False), "mount", status=2)
    refused(t.siltfs("warmup", m / "nothing", check_status=False), "nothing", status=2)
    refused(t.siltfs("warmup", m.path, "/usr", check_status=False), "/usr", status=2)
    p = t.siltfs("warmup", check_status=False)
    equal(p.returncode, 2, "warmup without a path")


# --- how mounts begin and end --------------------------------------------------------------------------------


def fill(m):
    """Files that are written but, some of them, not closed: what ending a mount must flush."""
    for i in range(30):
        with open(m / f"f{i}", "wb") as f:
            f.write(payload(i, 5000 + i))


def filled(t, v):
    m = t.mount(v)
    for i in range(30):
        with open(m / f"f{i}", "rb") as f:
            equal(f.read(), payload(i, 5000 + i), f"file {i} after a remount")
    m.umount()


@suite.case
def ends(t):
    """siltfs umount, fusermount3 -u, umount and SIGTERM: flushed, then ended with status 0."""
    def by_term(m):
        m.proc.send_signal(signal.SIGTERM)
    for end in (lambda m: t.siltfs("umount", m.path), by_term,
                lambda m: silt.run("fusermount3", "-u", m.path), lambda m: silt.run("umount", m.path)):
        v = t.volume()
        m = t.mount(v)
        fill(m)
        end(m)
        m.ended()
        filled(t, v)


@suite.case
def unclosed_data_is_flushed(t):
    """SIGTERM while a program has written and not closed: its bytes are there afterwards."""
    v = t.volume()
    m = t.mount(v)
    writer = subprocess.Popen([sys.executable, "-c", f"""
import os, sys
fd = os.open({m / 'open'!r}, os.O_CREAT | os.O_WRONLY)
os.write(fd, b'unclosed' * 10000)
print('written', flush=True)
sys.stdin.read()
"""], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    equal(writer.stdout.readline(), b"written\n", "the writer")
    m.proc.send_signal(signal.SIGTERM)
    m.proc.wait(60)
    writer.stdin.close()
    writer.wait()
    m = t.mount(v)
    with open(m / "open", "rb") as f:
        equal(f.read(), b"unclosed" * 10000, "what was written")


@suite.case
def ends_when_unmounted_lazily(t):
    """umount -l with a file open: the file is served until it is closed, then the daemon ends; SIGTERM
    ends it before, flushed."""
    for early in (False, True):
        v = t.volume()
        m = t.mount(v)
        fd = os.open(m / "f", os.O_CREAT | os.O_RDWR)
        os.write(fd, b"lazily" * 1000)
        silt.run("umount", "-l", m.path)
        equal(os.pread(fd, 6, 0), b"lazily", "a read after umount -l")
        if early:
            m.proc.terminate()
            m.proc.wait(20)
        else:
            os.close(fd)
            m.ended(20)
        m = t.mount(v)
        with open(m / "f", "rb") as f:
            equal(f.read(), b"lazily" * 1000, "what was written")
        if early:
            with contextlib.suppress(OSError):  # its file system is gone
                os.close(fd)


@suite.case
def in_the_background(t):
    """Without -f: returns 0 only when the mount serves requests; the daemon is then on its own."""
    v = t.volume()
    mp = t.folder("bg")
    p = try_mount(t, v.address, mp, options=[f"cache-dir={t.folder('c')}", "cache-size=256M",
                                             "free-space-ratio=0.001", f"log={t.out}/background.log"])
    equal(p.returncode, 0, f"mount ({p.err})")
    check(silt.mounted(mp), "it is mounted when the command returns")
    with open(os.path.join(mp, "f"), "w") as f:
        f.write("served")
    with open("/proc/self/mountinfo") as f:
        line = next(x for x in f if x.split()[4] == os.path.realpath(mp))
    check("fuse.siltfs" in line, f"file system type in {line}")
    t.siltfs("umount", mp)
    check(not silt.mounted(mp), "unmounted when siltfs umount returns")
    p = try_mount(t, v.address, mp, options=["ro"])
    equal(p.returncode, 0, f"read-only mount ({p.err})")
    with silt.raises(30, "a write to a read-only mount"):
        open(os.path.join(mp, "g"), "w")
    t.siltfs("umount", mp)


def start_mount(t, v, mp, *options, wrap=(), run_dir=None):
    """siltfs mount as our child, before anything is known of it."""
    options = ("cache-dir=none", f"log={t.out}/start.log", *options)
    t.finally_do(lambda: subprocess.run(["umount", "-l", mp], stderr=subprocess.DEVNULL))
    args = [*wrap, SILTFS, "mount", v.address, mp, "-o", ",".join(options)]
    return subprocess.Popen(args + (["-f"] if wrap else []),
                            env={**os.environ, "SILTFS_RUN_DIR": run_dir or t.folder("run")},
                            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return [int(x) for x in f.read().split()]


@suite.case
def a_signal_while_mounting_ends_the_daemon_too(t):
    """Ctrl-C (or SIGTERM) while siltfs mount waits for its daemon: both end, nothing is mounted, and who
    started it sees that it was the signal. Whenever it comes."""
    v = t.volume()
    mp = t.folder("m")
    v.redis.pause()  # the daemon hangs in the middle of opening
    for number in (signal.SIGINT, signal.SIGTERM):
        p = start_mount(t, v, mp)
        silt.wait_until(lambda: children(p.pid), "the daemon", 20)
        daemon = children(p.pid)[0]
        p.send_signal(number)
        err = p.communicate(timeout=30)[1]
        equal(p.returncode, -number, "how the command ended")
        check("nothing is mounted" in err, f"it says so: {err!r}")
        check(not os.path.exists(f"/proc/{daemon}"), "the daemon is gone")
    v.redis.resume()
    local = silt.Volume(t, f"local:{t.folder('local')}", None)
    for i in range(20):
        volume = local if i % 4 == 0 else v
        p = start_mount(t, volume, mp)
        with contextlib.suppress(subprocess.TimeoutExpired):
            p.wait(0.005 * (i + 1))
        p.send_signal(signal.SIGINT)
        err = p.communicate(timeout=60)[1]
        if p.returncode == 0:
            check(silt.mounted(mp), "0 means mounted")
            t.siltfs("umount", mp)
        else:
            equal((p.returncode, silt.mounted(mp)), (-signal.SIGINT, False), f"after the signal ({err})")
    p = try_mount(t, v.address, mp)
    equal(p.returncode, 0, f"a mount afterwards ({p.err})")
    t.siltfs("umount", mp)
    check(not os.path.exists(os.path.join(local.address[6:], "redis.pid")), "the private Redis ended too")


@suite.case
def containers_that_share_the_run_folder(t):
    """Two mounts that have the same pid, each in its own pid namespace, don't get in each other's way."""
    v = t.volume()
    run_dir = t.folder("run")
    mps = [t.folder("m"), t.folder("m")]
    for mp in mps:
        wrap = ["unshare", "--pid", "--fork", "--kill-child"]
        p = start_mount(t, v, mp, wrap=wrap, run_dir=run_dir)
        t.finally_do(lambda p=p: p.communicate(timeout=20))
    for mp in mps:
        silt.wait_mounted(mp, True, 20)
    with open(os.path.join(mps[0], "f"), "w") as f:
        f.write("x")
    seen = [json.loads(t.siltfs("status", "--json", mp).out) for mp in mps]
    equal([s["mountpoint"] for s in seen], [os.path.realpath(mp) for mp in mps], "who answered")
    equal(len({s["pid"] for s in seen}), 1, "pids")
    for mp in mps:
        t.siltfs("umount", mp)
    silt.wait_until(lambda: not os.listdir(run_dir), "the sockets to go", 20)


def installed(t):
    """What `ninja install` puts where: a folder that stands for /, and the files in it."""
    root = t.folder("root")
    env = {**os.environ, "DESTDIR": root}
    p = subprocess.run(["ninja", "-C", silt.BUILD, "install"], env=env, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, text=True)
    equal(p.returncode, 0, f"ninja install ({p.stdout[-2000:]})")
    return root, [os.path.join(d, f)[len(root):] for d, _, fs in os.walk(root) for f in fs]


@suite.case
def installs_what_belongs_together(t):
    """DESTDIR is respected; the helper lies where mount(8) looks, not below the prefix."""
    root, files = installed(t)
    check("/sbin/mount.siltfs" in files, f"/sbin/mount.siltfs in {files}")
    for name in ("/bin/siltfs", "/bin/warmup", "/man1/siltfs.1"):
        check(any(f.endswith(name) for f in files), f"{name} in {files}")
    for f in files:
        if os.path.islink(root + f):
            to = os.path.normpath(os.path.join(os.path.dirname(f), os.readlink(root + f)))
            check(to in files, f"{f} leads to {to}, which is not installed")
    program = root + next(f for f in files if f.endswith("/bin/siltfs"))
    check("siltfs" in silt.run(program, "--version").out, "the installed program runs")


@suite.case
def by_mount_8_and_fstab(t):
    """`mount -t siltfs` through the helper, as fstab uses it."""
    v = t.volume()
    mp = t.folder("fstab")
    t.finally_do(lambda: subprocess.run(["umount", "-l", mp], stderr=subprocess.DEVNULL))
    # As installed, but in a mount namespace of our own, so that /sbin stays as it is.
    root, files = installed(t)
    helper = next(p for p in files if p.endswith("/mount.siltfs"))
    program = next(p for p in files if p.endswith("/bin/siltfs"))
    equal(os.readlink(root + helper), program, "what the helper is a link to")
    script = f"""
set -e
mkdir -p {t.tmp}/sbin && cp -a /sbin/. {t.tmp}/sbin/ 2>/dev/null || true
cp -a {root}{helper} {t.tmp}/sbin/
mount --bind {t.tmp}/sbin "$(readlink -f {os.path.dirname(helper)})"
mkdir -p {os.path.dirname(program)}
mount --bind {root}{os.path.dirname(program)} {os.path.dirname(program)}
echo '{v.address} {mp} siltfs rw,noatime,_netdev,cache-size=256M,free-space-ratio=0.001,cache-dir={t.folder('c')} 0 0' \
	> {t.tmp}/fstab
mount -T {t.tmp}/fstab {mp}
grep -q ' {mp} fuse.siltfs ' /proc/self/mounts
echo through-fstab > {mp}/f
cat {mp}/f
umount {mp}
mount -t siltfs -o cache-dir=none {v.address} {mp}
cat {mp}/f
umount {mp}
"""
    p = silt.run("unshare", "-m", "sh", "-c", script, check_status=False)
    equal((p.returncode, p.out), (0, "through-fstab\n" * 2), f"mount -t siltfs ({p.err})")


@suite.case
def words_of_lost_data_are_tidied_up(t):
    """A daemon that could not store data leaves word for `siltfs umount`. Ended in another way, nobody
    reads that; a later mount removes it once it is old."""
    run_dir = t.folder("run")
    os.chmod(run_dir, 0o700)
    old, new, not_ours = (os.path.join(run_dir, n) for n in
                          ("17-0000abcd.sock.failed", "18-0000abce.sock.failed", "notes.failed"))
    for path in (old, new, not_ours):
        with open(path, "w") as f:
            f.write("some written data could not be stored\n")
    for path in (old, not_ours):
        os.utime(path, (1000, 1000))
    v = t.volume()
    t.mount(v, env={"SILTFS_RUN_DIR": run_dir}).umount()
    equal(sorted(os.listdir(run_dir)), sorted(os.path.basename(p) for p in (new, not_ours)), "what is left")


@suite.case
def settings_of_redis_are_reported(t):
    """format prints how Redis keeps metadata, format and mount warn of what loses it."""
    def both(*options):
        v = t.volume(redis=t.redis(options=options))
        m = t.mount(v)
        text = m.log_text()
        m.umount()
        return v.format_output, text
    said, log = both()
    check("append-only file on, fsync everysec" in said and "warning" not in said, f"format said {said!r}")
    check(not re.search("redis (has|may|does)", log), f"mount said {log!r}")
    said, log = both("--appendonly", "no")
    check("append-only file off" in said and "warning: metadata is lost when Redis restarts" in said,
          f"format said {said!r}")
    check("append-only file off" in log, f"mount said {log!r}")
    said, log = both("--appendfsync", "no")
    check("fsync no" in said and "warning: a power cut may lose metadata" in said, f"format said {said!r}")
    check("appendfsync" in log, f"mount said {log!r}")
    said, log = both("--maxmemory-policy", "allkeys-lru")
    check("warning: Redis may evict metadata" in said, f"format said {said!r}")
    check("may evict metadata" in log, f"mount said {log!r}")
    # One that does not let siltfs set anything.
    r = t.redis()
    r.cmd("ACL", "SETUSER", "default", "-config|set")
    v = t.volume(redis=r)
    check("warning: metadata takes more memory" in v.format_output, f"format said {v.format_output!r}")
    m = t.mount(v)
    check("hash-max-listpack-value" in m.log_text(), f"mount said {m.log_text()!r}")


@suite.case
def local_volumes_need_no_server(t):
    """local:DIR starts a private Redis, shares it between mounts, stops it with the last."""
    d = t.folder("local")
    v = silt.Volume(t, f"local:{d}", None)
    a, b = t.mount(v), t.mount(v)
    with open(a / "f", "wb") as f:
        f.write(b"shared")
    with open(b / "f", "rb") as f:
        equal(f.read(), b"shared", "the other mount")
    with open(os.path.join(d, "redis.pid")) as f:
        pid = int(f.read())
    a.umount()
    check(os.path.exists(f"/proc/{pid}"), "Redis runs while a mount uses it")
    b.umount()
    silt.wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the private Redis to end", 20)
    c = t.mount(v)
    with open(c / "f", "rb") as f:
        equal(f.read(), b"shared", "after a restart of everything")
    check(os.listdir(os.path.join(d, "objects")), "objects are in DIR/objects")
    refused(try_format(t, f"local:{d}", "again", bucket=DirBucket(t.folder("o")).url), "volume")


@suite.case
def a_private_redis_that_dies_is_started_again(t):
    """The redis-server of local:DIR is killed under two mounts: it comes back, one of it, and they go on."""
    d = t.folder("local")
    v = silt.Volume(t, f"local:{d}", None)
    a, b = t.mount(v), t.mount(v)
    pids = []
    for i in range(2):
        with open(a / f"before{i}", "wb") as f:
            f.write(b"before")
        with open(os.path.join(d, "redis.pid")) as f:
            pids.append(int(f.read()))
        os.kill(pids[-1], signal.SIGKILL)
        with open(a / f"after{i}", "wb") as f:
            f.write(b"after")
        with open(b / f"before{i}", "rb") as f:
            equal(f.read(), b"before", "the other mount reads")
    check("was gone: started it again" in a.log_text() + b.log_text(), "the log says so")
    equal(len(set(pids)), 2, "servers there were")
    for m in (a, b):
        m.umount()


suite.main()
