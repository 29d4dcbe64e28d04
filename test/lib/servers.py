"""The real servers that tests and bench/ talk to: redis-server, Ceph's RGW, and the fault proxy
between. Each object starts one, knows how to ask it questions of its own, and stops only it."""

import datetime
import hashlib
import hmac
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import xml.etree.ElementTree as ET

import spawn

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SERVERS = os.path.join(ROOT, "test", "servers")


def free_port():
    """A TCP port nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(condition, what, seconds=30, step=0.01):
    """Polls for a state that has no event to wait on. Fails loudly, never goes on silently."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(step)


# --- Redis -------------------------------------------------------------------------------------------


class RedisError(Exception):
    pass


class RedisClient:
    """Just enough RESP2 to ask a server things."""

    def __init__(self, address, timeout=30):
        if isinstance(address, str):
            self.sock = socket.socket(socket.AF_UNIX)
        else:
            self.sock = socket.socket()
        self.sock.settimeout(timeout)
        self.sock.connect(address)
        self.file = self.sock.makefile("rb")

    def close(self):
        self.file.close()
        self.sock.close()

    def cmd(self, *args):
        out = [b"*%d\r\n" % len(args)]
        for a in args:
            a = a if isinstance(a, bytes) else str(a).encode("utf-8", "surrogateescape")
            out.append(b"$%d\r\n%s\r\n" % (len(a), a))
        self.sock.sendall(b"".join(out))
        return self._reply()

    def _reply(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("redis closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RedisError(rest.decode("utf-8", "replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            n = int(rest)
            if n < 0:
                return None
            data = self.file.read(n + 2)
            return data[:-2]
        if kind == b"*":
            n = int(rest)
            return None if n < 0 else [self._reply() for _ in range(n)]
        raise RedisError(f"odd reply {line!r}")


class Redis:
    """A redis-server of our own: append-only file on, on a port and a socket below `dir`."""

    def __init__(self, dir, password=None, options=()):
        self.dir = dir
        self.password = password
        self.port = free_port()
        self.socket = os.path.join(dir, "s")
        self.options = list(options)
        self.proc = None
        self._client = None
        os.makedirs(dir, exist_ok=True)
        self.start()

    def start(self):
        args = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1",
                "--unixsocket", self.socket, "--dir", self.dir, "--save", "",
                "--appendonly", "yes", "--appendfsync", "everysec",
                "--slowlog-log-slower-than", "10000", "--slowlog-max-len", "1000",
                "--enable-debug-command", "local", "--logfile", os.path.join(self.dir, "log")]
        if self.password:
            args += ["--requirepass", self.password]
        self.proc = spawn.Process(args + self.options, stdin=spawn.DEVNULL, stdout=spawn.DEVNULL,
                                  start_new_session=True)

        def up():
            if self.proc.poll() is not None:
                raise RuntimeError(f"redis-server ended at once; see {self.dir}/log")
            try:
                # Loading the append-only file answers -LOADING.
                return self.connect().cmd("PING") == b"PONG"
            except (OSError, RedisError):
                return False
        wait_until(up, "redis-server", 60)

    def connect(self):
        c = RedisClient(("127.0.0.1", self.port))
        if self.password:
            c.cmd("AUTH", self.password)
        return c

    def cmd(self, *args):
        """One command on a connection of our own (which counts in commandstats)."""
        if self._client is None:
            self._client = self.connect()
        try:
            return self._client.cmd(*args)
        except (OSError, ConnectionError):
            self._client = self.connect()
            return self._client.cmd(*args)

    def address(self, port=None):
        auth = f":{self.password}@" if self.password else ""
        return f"redis://{auth}127.0.0.1:{port or self.port}"

    def info(self, section):
        text = self.cmd("INFO", section).decode()
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def calls(self):
        """Calls by command. Commands that functions call inside the server count there too; a
        client's own calls of functions are `fcall` and `fcall_ro`."""
        stats = {}
        for name, value in self.info("commandstats").items():
            stats[name.removeprefix("cmdstat_")] = int(re.match(r"calls=(\d+)", value).group(1))
        return stats

    def function_calls(self):
        stats = self.calls()
        return stats.get("fcall", 0) + stats.get("fcall_ro", 0)

    def seconds_in_calls(self):
        """Time this server has spent inside function calls."""
        c = self.info("commandstats")
        return sum(int(dict(kv.split("=") for kv in c[f"cmdstat_{k}"].split(","))["usec"])
                   for k in ("fcall", "fcall_ro") if f"cmdstat_{k}" in c) / 1e6

    def used_memory(self):
        return int(self.info("memory")["used_memory"])

    def slow_calls(self):
        """[(milliseconds, command, unix time)] of calls longer than 10 ms since slowlog_reset()."""
        return [(e[2] / 1000, b" ".join(e[3][:4]).decode("utf-8", "replace")[:120], e[1])
                for e in self.cmd("SLOWLOG", "GET", "1000")]

    def slowlog_reset(self):
        self.cmd("SLOWLOG", "RESET")

    def pause(self):
        self.proc.send_signal(signal.SIGSTOP)

    def resume(self):
        self.proc.send_signal(signal.SIGCONT)

    def kill(self):
        self.proc.kill()
        self.proc.wait()
        self._client = None

    def stop(self):
        self._client = None
        if self.proc and self.proc.poll() is None:
            self.proc.send_signal(signal.SIGCONT)
            self.proc.terminate()
            try:
                self.proc.wait(20)
            except subprocess.TimeoutExpired:
                self.proc.kill()
                self.proc.wait()

    close = stop


# --- S3 ----------------------------------------------------------------------------------------------


class S3Error(Exception):
    def __init__(self, status, body):
        super().__init__(f"HTTP {status}: {body[:200]!r}")
        self.status = status


class S3Client:
    """Signature V4 over http.client: to make buckets and to damage and remove objects behind the
    file system's back."""

    def __init__(self, host, port, access, secret, region="us-east-1"):
        self.host, self.port, self.access, self.secret = host, port, access, secret
        self.region = region

    def request(self, method, path, query=None, body=b""):
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        digest = hashlib.sha256(body).hexdigest()
        path = urllib.parse.quote(path, safe="/-_.~")
        pairs = sorted((query or {}).items())
        qs = "&".join(f"{urllib.parse.quote(k, safe='-_.~')}={urllib.parse.quote(v, safe='-_.~')}"
                      for k, v in pairs)
        headers = {"host": f"{self.host}:{self.port}", "x-amz-content-sha256": digest,
                   "x-amz-date": stamp}
        signed = ";".join(sorted(headers))
        canonical = "\n".join([method, path, qs]
                              + [f"{k}:{headers[k]}" for k in sorted(headers)] + ["", signed, digest])
        scope = f"{day}/{self.region}/s3/aws4_request"
        to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, scope,
                             hashlib.sha256(canonical.encode()).hexdigest()])
        key = ("AWS4" + self.secret).encode()
        for part in (day, self.region, "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
        headers["Authorization"] = (f"AWS4-HMAC-SHA256 Credential={self.access}/{scope}, "
                                    f"SignedHeaders={signed}, Signature={signature}")
        conn = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            conn.request(method, path + ("?" + qs if qs else ""), body=body, headers=headers)
            reply = conn.getresponse()
            data = reply.read()
        finally:
            conn.close()
        if reply.status >= 300:
            raise S3Error(reply.status, data)
        return data

    def make_bucket(self, bucket):
        try:
            self.request("PUT", f"/{bucket}")
        except S3Error as e:
            if e.status != 409:
                raise

    def get(self, bucket, key):
        return self.request("GET", f"/{bucket}/{key}")

    def put(self, bucket, key, body):
        self.request("PUT", f"/{bucket}/{key}", body=body)

    def delete(self, bucket, key):
        self.request("DELETE", f"/{bucket}/{key}")

    def list(self, bucket, prefix=""):
        """[(key, size)] of all objects."""
        out, marker = [], ""
        while True:
            xml = ET.fromstring(self.request("GET", f"/{bucket}",
                                             {"prefix": prefix, "marker": marker}))
            ns = xml.tag[:xml.tag.index("}") + 1] if xml.tag.startswith("{") else ""
            page = [(c.find(ns + "Key").text, int(c.find(ns + "Size").text))
                    for c in xml.findall(ns + "Contents")]
            out += page
            if xml.findtext(ns + "IsTruncated") != "true" or not page:
                return out
            marker = page[-1][0]


# A bucket is a place for objects: `kind` and `url` go to `siltfs format`; keys in objects(), get(),
# put() and delete() are below the volume's name, which is the first part of every key in the bucket.


class DirBucket:
    kind = "file"

    def __init__(self, path, volume="vol"):
        self.url = self.path = path
        self.volume = volume
        os.makedirs(path, exist_ok=True)

    def objects(self, prefix="packs/"):
        out = []
        top = os.path.join(self.path, self.volume)
        for d, _, names in os.walk(top):
            for n in names:
                key = os.path.relpath(os.path.join(d, n), top)
                if key.startswith(prefix):
                    out.append((key, os.path.getsize(os.path.join(d, n))))
        return sorted(out)

    def get(self, key):
        with open(os.path.join(self.path, self.volume, key), "rb") as f:
            return f.read()

    def put(self, key, body):
        path = os.path.join(self.path, self.volume, key)
        if os.path.exists(path):
            os.unlink(path)
        with open(path, "wb") as f:
            f.write(body)

    def delete(self, key):
        os.unlink(os.path.join(self.path, self.volume, key))


class S3Bucket:
    kind = "s3"

    def __init__(self, rgw, name, prefix="", port=None, volume="vol"):
        self.rgw, self.name = rgw, name
        self.url = f"http://{rgw.host}:{port or rgw.port}/{name}" + (f"/{prefix}" if prefix else "")
        self.below = f"{prefix}/{volume}/" if prefix else f"{volume}/"

    def _key(self, key):
        return self.below + key

    def objects(self, prefix="packs/"):
        return [(k[len(self.below):], n)
                for k, n in self.rgw.client.list(self.name, self._key(prefix))]

    def get(self, key):
        return self.rgw.client.get(self.name, self._key(key))

    def put(self, key, body):
        self.rgw.client.put(self.name, self._key(key), body)

    def delete(self, key):
        self.rgw.client.delete(self.name, self._key(key))

    def empty(self):
        for key, _ in self.objects(""):
            self.delete(key)


class Rgw:
    """Ceph's S3 server. A whole test/run shares one (SILT_RGW_DIR); a test run by itself starts its
    own. The folder's file `env` says where it listens and with which keys."""

    def __init__(self, dir, store="memstore"):
        shared = os.environ.get("SILT_RGW_DIR")
        self.own = not shared
        self.dir = shared or dir
        if self.own:
            os.makedirs(self.dir, exist_ok=True)
            spawn.run([os.path.join(SERVERS, "rgw"), "start", self.dir, store]).check_returncode()
        env = {}
        with open(os.path.join(self.dir, "env")) as f:
            for line in f:
                m = re.match(r"(?:export )?(\w+)=['\"]?(.*?)['\"]?$", line.strip())
                if m:
                    env[m.group(1)] = m.group(2)
        url = urllib.parse.urlparse(env["SILT_RGW_URL"])
        self.host, self.port = url.hostname, url.port
        self.access, self.secret = env["SILT_RGW_ACCESS_KEY"], env["SILT_RGW_SECRET_KEY"]
        self.client = S3Client(self.host, self.port, self.access, self.secret)
        self.buckets = []

    def environment(self):
        return {"SILTFS_ACCESS_KEY": self.access, "SILTFS_SECRET_KEY": self.secret}

    def bucket(self, prefix="", port=None):
        name = f"silt-{os.getpid()}-{len(self.buckets)}"
        self.client.make_bucket(name)
        b = S3Bucket(self, name, prefix, port)
        self.buckets.append(b)
        return b

    def stop(self):
        if self.own:
            spawn.run([os.path.join(SERVERS, "rgw"), "stop", self.dir])
            return
        for b in self.buckets:  # memory is what a shared memstore has least of
            try:
                b.empty()
            except (OSError, S3Error):
                pass

    close = stop


# --- The proxy that adds faults and delay --------------------------------------------------------------


class Proxy:
    """test/servers/faultproxy.py in front of a port. `args` are its own options; set() changes them
    while it runs: set(hold=1), set(p503=0.2, methods="PUT")."""

    def __init__(self, target_port, args=(), log=None, port=None):
        args = list(args)
        if "--control" not in args:
            args += ["--control", str(free_port())]
        self.port, self.control = port or free_port(), int(args[args.index("--control") + 1])
        self.log = open(log, "ab") if log else spawn.DEVNULL
        self.proc = spawn.Process(
            [sys.executable, os.path.join(SERVERS, "faultproxy.py"), "--listen", str(self.port),
             "--target", f"127.0.0.1:{target_port}", *args],
            stdin=spawn.PIPE, stdout=self.log, stderr=self.log, start_new_session=True)

        def up():
            if self.proc.poll() is not None:
                raise RuntimeError("faultproxy.py ended at once")
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", self.port)) == 0
        wait_until(up, "the fault proxy", 20)
        wait_until(lambda: self.ask("stats") is not None, "its control port", 20)

    def ask(self, what):
        conn = http.client.HTTPConnection("127.0.0.1", self.control, timeout=10)
        try:
            conn.request("GET", f"/{what}")
            reply = conn.getresponse()
            body = reply.read()
        except ConnectionRefusedError:
            return None
        finally:
            conn.close()
        if reply.status != 200:
            raise RuntimeError(f"the fault proxy says {body!r}")
        return json.loads(body)

    def set(self, **settings):
        self.ask("set?" + urllib.parse.urlencode({k.replace("_", "-"): v
                                                  for k, v in settings.items()}))

    def stop(self):
        if self.proc.poll() is None:
            self.proc.terminate()
            try:
                self.proc.wait(5)
            except subprocess.TimeoutExpired:
                self.proc.kill()
                self.proc.wait()
        if self.log is not spawn.DEVNULL:
            self.log.close()

    close = stop
