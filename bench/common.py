"""What the benchmarks share: servers of their own, one volume, one mount, counters before and after, a
table of figures with targets, and an exit status that says whether all targets were met."""

import json
import multiprocessing
import os
import random
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "test", "lib"))
import silt  # noqa: E402
from servers import Rgw  # noqa: E402


class Bench:
    def __init__(self, description):
        os.environ.setdefault("TMPDIR", "/var/tmp")
        self.t = silt.Suite()
        self.parser = self.t.parser
        self.parser.description = description
        for action in list(self.parser._actions):  # cases are for tests
            if action.dest in ("case", "list"):
                self.parser._remove_action(action)
                for o in action.option_strings:
                    self.parser._option_string_actions.pop(o)
        add = self.parser.add_argument
        add("--storage", choices=["file", "s3"], default="file", help="object store (default file)")
        add("--shards", type=int, default=1, help="of the volume (default 1)")
        add("--delay-ms", type=float, default=0, help="Redis at the end of a link with this round trip")
        add("--json", action="store_true", help="figures as one JSON object")
        add("--mount-options", default="", help="more -o options")
        self.figures, self.args, self._rgw = [], None, None

    def __enter__(self):
        self.args = self.t.args = self.parser.parse_args()
        self.t.begin()
        if self.args.storage == "s3":
            # On disk: what is measured is kept longer than memory would hold it.
            self.t._rgw = Rgw(os.path.join(self.t.tmp, "rgw"), "bluestore")
        self.redis = self.t.redis()
        address = self.redis.address()
        if self.args.delay_ms:
            # Half of the round trip on the way there, half on the way back.
            proxy = self.t.proxy(self.redis.port, *tcp_delay(self.args.delay_ms))
            address = self.redis.address(proxy.port)
        self.volume = self.t.volume(self.args.storage, self.args.shards, redis=self.redis,
                                    address=address)
        return self

    def __exit__(self, kind, value, trace):
        wrong = self.t.clean_up()
        if self.t._rgw:
            self.t._rgw.close()
        if not self.args.keep:
            own = [self.t.tmp] + ([self.t.out] if self.t.own_out and kind is None else [])
            subprocess.run(["rm", "-rf", "--one-file-system", *own])
        for line in wrong:
            print(f"trouble: {line}", file=sys.stderr)
        if kind is None:
            missed = self.report()
            sys.exit(1 if missed or wrong else 0)
        return False

    def mount(self, options=(), **kwargs):
        given = [o for o in self.args.mount_options.split(",") if o]
        return self.t.mount(self.volume, options=[*options, *given], **kwargs)

    def note(self, text):
        if not self.args.json:
            print(f"# {text}", flush=True)

    def figure(self, name, value, unit="", at_most=None, at_least=None):
        ok = None
        if at_most is not None:
            ok = value <= at_most
        if at_least is not None:
            ok = value >= at_least
        self.figures.append({"name": name, "value": value, "unit": unit, "at_most": at_most,
                             "at_least": at_least, "ok": ok})

    def report(self):
        """Prints the table; returns the number of targets missed."""
        missed = sum(f["ok"] is False for f in self.figures)
        if self.args.json:
            print(json.dumps({"bench": os.path.basename(sys.argv[0]), "storage": self.args.storage,
                              "shards": self.args.shards, "delay_ms": self.args.delay_ms,
                              "figures": self.figures, "missed": missed}))
            return missed
        where = f"{self.args.storage}, {self.args.shards} shard(s)"
        if self.args.delay_ms:
            where += f", Redis {self.args.delay_ms:g} ms away"
        print(f"{os.path.basename(sys.argv[0])} ({where})")
        for f in self.figures:
            value = f["value"]
            text = f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
            target = ""
            if f["at_most"] is not None:
                target = f"target <= {f['at_most']:g}"
            elif f["at_least"] is not None:
                target = f"target >= {f['at_least']:g}"
            verdict = {True: "ok", False: "MISSED", None: ""}[f["ok"]]
            print(f"  {f['name']:<52} {text:>14} {f['unit']:<8} {target:<16} {verdict}".rstrip())
        return missed


def tcp_delay(ms):
    """Options of the fault proxy that only delay, by `ms` a round trip."""
    return ["--tcp", "--delay-ms", f"{ms / 2:g}"]


class Calls:
    """Redis calls between two moments: what the server counted of function calls, and what the mount
    says it sent of all kinds. The two must tell the same story."""

    def __init__(self, redis, mount):
        self.redis, self.mount = redis, mount
        self.before = self._now()

    def _now(self):
        c = self.mount.counters()
        return {"fcall": self.redis.function_calls(), "sent": c["redis.calls"], "counters": c}

    def end(self):
        now = self._now()
        self.functions = now["fcall"] - self.before["fcall"]
        self.sent = now["sent"] - self.before["sent"]
        # The server counts those of our own mount and of no one else; the mount counts also what
        # isn't a function. Outermost calls are the larger.
        self.outermost = max(self.functions, self.sent)
        self.by_name = {k: v - self.before["counters"].get(k, 0)
                        for k, v in now["counters"].items() if v != self.before["counters"].get(k, 0)}
        return self


def file_name(i):
    """27 bytes, as the figures want them."""
    return f"ligand-{i:010d}-pose.sdf"[:27].ljust(27, "x")


def _in_process(function, part):
    try:
        function(part)
        os._exit(0)
    except BaseException as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr, flush=True)
        os._exit(1)


def in_processes(function, items, n):
    """function(part) in `n` processes, the parts being every n-th item. Returns the seconds."""
    start = time.monotonic()
    ctx = multiprocessing.get_context("fork")
    procs = [ctx.Process(target=_in_process, args=(function, items[i::n])) for i in range(n)]
    for p in procs:
        p.start()
    for p in procs:
        p.join()
    if any(p.exitcode for p in procs):
        raise RuntimeError("a worker failed")
    return time.monotonic() - start


def write_files(paths, size, writers):
    """Each path: created, `size` bytes that half-compress written, closed. Returns the seconds."""
    half = size // 2
    text = (b"ATOM      1  N   MET A   1      27.340  24.430   2.614  1.00  9.67           N\n"
            * (size // 80 + 1))

    def work(part):
        rng = random.Random(os.getpid())
        for p in part:
            fd = os.open(p, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            os.write(fd, rng.randbytes(half) + text[:size - half])
            os.close(fd)
    return in_processes(work, paths, writers)


def read_files(paths, readers):
    def work(part):
        for p in part:
            fd = os.open(p, os.O_RDONLY)
            while os.read(fd, 1 << 20):
                pass
            os.close(fd)
    return in_processes(work, paths, readers)


def drop_kernel_caches():
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("3\n")
        return True
    except OSError:
        return False
