#!/usr/bin/env python3
"""What cache/store.h promises, for every kind of store: the conformance program over a directory and over
RGW, directly and through faults; and no PUT that was reported done is missing, whatever breaks.

    test/integration/test_store.py [NAME...]     cases whose name has one of these words
    test/integration/test_store.py --list
"""
# timeout: 900

import json
import os
import re
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "test", "lib"))
from servers import Proxy, Rgw, free_port  # noqa: E402

BUILD = os.path.abspath(os.environ.get("SILT_BUILD", os.path.join(ROOT, "build")))
QUICK = os.environ.get("SILT_QUICK") == "1"
CASES = []


def case(fn):
    CASES.append((fn.__name__, fn))
    return fn


def cases_for(kinds, faults=None):
    def add(fn):
        for k in kinds:
            for f in faults or [None]:
                name = "_".join(x for x in (fn.__name__, k, f) if x)
                CASES.append((name, lambda c, k=k, f=f: fn(c, k, *([f] if f else []))))
        return fn
    return add


class Failure(Exception):
    pass


class Skip(Exception):
    pass


class Context:
    """The servers of a run, started when first asked for."""

    def __init__(self):
        self.tmp = tempfile.mkdtemp(prefix="silt-store-")
        self._rgw = None
        self.buckets = 0

    def rgw(self):
        if not self._rgw:
            self._rgw = Rgw(os.path.join(self.tmp, "rgw"))
        return self._rgw

    def bucket(self, port=None, scheme="http"):
        self.buckets += 1
        return f"{scheme}://127.0.0.1:{port or self.rgw().port}/silt-store-{os.getpid()}-{self.buckets}"

    def close(self):
        if self._rgw:
            self._rgw.close()
        shutil.rmtree(self.tmp, ignore_errors=True)


class Faults:
    """The fault proxy before RGW, with its control port."""

    def __init__(self, c, *args):
        self.control = free_port()
        self.proxy = Proxy(c.rgw().port, ["--control", str(self.control), "--seed", "1", *args],
                           log=os.path.join(c.tmp, "proxy.log"))
        self.port = self.proxy.port

    def ask(self, what):
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                f"http://127.0.0.1:{self.control}/{what}", timeout=10) as reply:
            return json.load(reply)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.proxy.stop()


def environment(c, kind, bucket, **settings):
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    if kind != "file":
        env.update(c.rgw().environment())
    env.update({f"SILT_TEST_STORE_{k.upper()}": str(v) for k, v in settings.items()},
               SILT_TEST_STORE_KIND=kind, SILT_TEST_STORE_BUCKET=bucket)
    return env


def has_s3v2():
    program = os.path.join(BUILD, "test", "store_conformance")
    with open(program, "rb") as f:
        return b"s3v2 takes keys" in f.read()


def conform(c, kind, bucket, seconds=180, **settings):
    if kind == "s3v2" and not has_s3v2():
        raise Skip("built without libs3")
    done = subprocess.run([os.path.join(BUILD, "test", "store_conformance")],
                          env=environment(c, kind, bucket, **settings), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds)
    if done.returncode != 0:
        raise Failure(f"store_conformance ended with {done.returncode}:\n"
                      + done.stdout.decode(errors="replace")[-4000:])
    return done.stdout.decode(errors="replace")


# --- Conformance -----------------------------------------------------------------------------------------


@cases_for(["file", "s3", "s3v2"])
def conformance(c, kind):
    bucket = os.path.join(c.tmp, "objects") if kind == "file" else c.bucket() + "/some/prefix"
    conform(c, kind, bucket, large_mib=16 if QUICK else 64, ops=40 if kind == "file" else 20)


FAULTS = {
    "503": ["--p503", "0.1"],
    "cut": ["--pcut", "0.1"],
    "stall": ["--pstall", "0.01", "--stall-s", "600"],
    "mixed": ["--p503", "0.05", "--pcut", "0.05", "--pstall", "0.005", "--stall-s", "600",
              "--delay-ms", "1"],
}


@cases_for(["s3", "s3v2"], FAULTS)
def conformance_through(c, kind, fault):
    """Faults are retried inside: the same tests pass, none of them sees one."""
    # A listing of two pages is half the work of a run: the mixture of all faults has it.
    with Faults(c, *FAULTS[fault]) as f:
        out = conform(c, kind, c.bucket(f.port), stall_ms=1500, large_mib=8, ops=12,
                      list=1010 if fault == "mixed" else 60)
        stats = f.ask("stats")
        struck = sum(n for name, n in stats.items() if name.startswith(("503", "cut", "stall")))
        retries = int(out.split("retries ")[1].split(",")[0])
        if struck < 5 or retries < 5:
            raise Failure(f"too few faults to prove anything: {stats}, {retries} retries")


@cases_for(["s3", "s3v2"])
def tls_with_own_ca(c, kind):
    """https with a CA of one's own; without that CA the store is refused at once and by name."""
    cert, key = os.path.join(c.tmp, "cert.pem"), os.path.join(c.tmp, "key.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
                    "/CN=silt-test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out",
                    cert], check=True, stderr=subprocess.DEVNULL)
    with Faults(c, "--cert", cert, "--key", key) as f:
        bucket = c.bucket(f.port, "https")
        conform(c, kind, bucket, ca=cert, large_mib=4, ops=5, list=50)
        started = time.monotonic()
        try:
            conform(c, kind, bucket)
        except Failure as e:
            if "CA that signed" not in str(e) or time.monotonic() - started > 5:
                raise Failure(f"no clear refusal: {e}") from e
        else:
            raise Failure("an unknown certificate was accepted")


# --- No PUT that was reported done is missing -------------------------------------------------------------


class Writer:
    """store_put in the background; what it says is read as it comes."""

    def __init__(self, c, kind, bucket, n, **settings):
        if kind == "s3v2" and not has_s3v2():
            raise Skip("built without libs3")
        self.n, self.done, self.failed = n, {}, {}
        self.proc = subprocess.Popen([os.path.join(BUILD, "test", "store_put"), str(n), "w/"],
                                     env=environment(c, kind, bucket, **settings), text=True,
                                     stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        for line in self.proc.stdout:
            word, key, rest = line.rstrip("\n").split(" ", 2)
            if word == "ok":
                self.done[key] = int(rest)
            else:
                self.failed[key] = rest

    def count(self):
        return len(self.done) + len(self.failed)

    def wait(self, n=None, seconds=200):
        end = time.monotonic() + seconds
        while self.count() < (n or self.n):
            if time.monotonic() > end:
                self.proc.kill()
                raise Failure(f"hangs at {self.count()} of {self.n} objects")
            if self.proc.poll() is not None and not self.thread.is_alive():
                break
            time.sleep(0.01)
        if n is None and self.proc.wait(10) != 0:
            raise Failure(f"store_put ended with {self.proc.returncode}")

    def verify(self, c, bucket):
        """Asks the server itself, without siltfs's code."""
        name = bucket.rsplit("/", 1)[1]
        there = dict(c.rgw().client.list(name, "w/"))
        for key, size in self.done.items():
            if there.get(key) != size:
                raise Failure(f"{key}: PUT of {size} bytes was reported done; there: {there.get(key)}")
        for key in random.Random(1).sample(sorted(self.done), min(100, len(self.done))):
            want = (key * (self.done[key] // len(key) + 1))[:self.done[key]].encode()
            if c.rgw().client.get(name, key) != want:
                raise Failure(f"{key}: other bytes than were written")
        if len(self.done) + len(self.failed) != self.n:
            raise Failure(f"{self.n - self.count()} objects were not told of")


def fresh_bucket(c, port=None):
    bucket = c.bucket(port)
    c.rgw().client.make_bucket(bucket.rsplit("/", 1)[1])
    return bucket


@cases_for(["s3", "s3v2"])
def no_put_is_lost_behind_503(c, kind):
    """Empty 503s before, after and instead of the server's answer, and too few retries to hide them:
    what fails is told, what is told to be done is there. (libs3 alone loses one in seven here.)"""
    with Faults(c, "--p503", "0.3", "--pcut", "0.1") as f:
        bucket = fresh_bucket(c, f.port)
        w = Writer(c, kind, bucket, 600, retries=2, stall_ms=1500)
        w.wait()
        w.verify(c, bucket)
        if not w.failed or len(w.done) < 100:
            raise Failure(f"proves nothing: {len(w.done)} done, {len(w.failed)} failed")


@cases_for(["s3", "s3v2"])
def no_exclusive_put_fails_by_its_own_echo(c, kind):
    """A PUT whose answer is lost is sent again; that the object is then there is not -EEXIST."""
    with Faults(c, "--p503", "0.5", "--when503", "lost", "--methods", "PUT") as f:
        bucket = fresh_bucket(c, f.port)
        w = Writer(c, kind, bucket, 200, retries=30)
        w.wait()
        w.verify(c, bucket)
        if w.failed:
            raise Failure(f"failed: {list(w.failed.items())[:3]}")


@cases_for(["s3", "s3v2"])
def no_put_is_lost_when_the_gateway_dies(c, kind):
    """kill -9 of the real server under load, three times; it comes back on the same data."""
    bucket = fresh_bucket(c)
    w = Writer(c, kind, bucket, 1800, retries=4, stall_ms=2000, connect_ms=1000)
    for k in range(3):
        w.wait(200 + 500 * k)
        with open(os.path.join(c.rgw().dir, "run", "rgw.pid")) as f:
            os.kill(int(f.read()), signal.SIGKILL)
        subprocess.run([os.path.join(ROOT, "test", "servers", "rgw"), "start", c.rgw().dir], check=True,
                       stdout=subprocess.DEVNULL)
    w.wait()
    w.verify(c, bucket)


@cases_for(["s3", "s3v2"])
def no_put_is_lost_when_the_gateway_hangs(c, kind):
    """The real server stopped for longer than the stall timeout; the call's retries outlive it."""
    bucket = fresh_bucket(c)
    w = Writer(c, kind, bucket, 1500, stall_ms=1000)
    w.wait(300)
    with open(os.path.join(c.rgw().dir, "run", "rgw.pid")) as f:
        pid = int(f.read())
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(3)  # the outage itself, not a wait for something
    finally:
        os.kill(pid, signal.SIGCONT)
    w.wait()
    w.verify(c, bucket)
    if w.failed:
        raise Failure(f"failed: {list(w.failed.items())[:3]}")


@case
def an_endless_outage_ends_with_an_error_in_time(c):
    """Nothing answers: the call ends at its deadline, not before, not much later."""
    with Faults(c, "--hold", "1") as f:
        bucket = fresh_bucket(c)
        held = bucket.replace(str(c.rgw().port), str(f.port))
        started = time.monotonic()
        w = Writer(c, "s3", held, 8, stall_ms=1000, deadline_ms=4000)
        w.wait(seconds=30)
        took = time.monotonic() - started
        if w.done or not 2 < took < 8:
            raise Failure(f"{len(w.done)} done, after {took:.1f} s")
        # A try that stalled may end so close to the deadline that none is begun after it.
        said = list(w.failed.values())
        if not all("given up after" in s and re.search("deadline of 4.0 s|no byte moved", s) for s in said):
            raise Failure(f"unclear: {w.failed}")


def main():
    words = [a for a in sys.argv[1:] if not a.startswith("-")]
    chosen = [(n, f) for n, f in CASES if not words or any(w in n for w in words)]
    if "--list" in sys.argv:
        print("\n".join(n for n, _ in chosen))
        return 0
    context, failed = Context(), 0
    try:
        for name, fn in chosen:
            started = time.monotonic()
            try:
                fn(context)
                print(f"ok {name} ({time.monotonic() - started:.1f} s)", flush=True)
            except Skip as e:
                print(f"ok {name} # skipped: {e}", flush=True)
            except (Failure, OSError, RuntimeError, TimeoutError, subprocess.SubprocessError) as e:
                failed += 1
                print(f"not ok {name}\n    " + str(e).replace("\n", "\n    "), flush=True)
    finally:
        context.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
