#!/usr/bin/env python3
"""Random POSIX operations, issued one at a time on 2 to 4 mounts of a volume (with the default options,
without kernel caches, relaxed), beside a model in memory: results, errno values and the whole tree must
be the same, whichever mount is asked. lib/checker.py says what each mount may see when.

    test_checker.py --seed N [--mounts K] [--shards S] [--ops M] [--shrink]     replays one seed
    test_checker.py --seeds A..B ...                                            a batch
    test_checker.py --kinds default,relaxed,strict ...                          on other kinds of mounts
    test_checker.py --local DIR ...         holds the model against an ordinary folder instead

Without these it plays fresh seeds, which it prints, for about a minute."""
# timeout: 600
# asan: yes

import os
import random
import shutil
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
import checker as checker_module  # noqa: E402
from checker import Checker  # noqa: E402
from checker_ops import Generator  # noqa: E402
from silt import Failure, shorten  # noqa: E402

suite = silt.Suite()
suite.parser.add_argument("--seed", type=int, help="replay this seed")
suite.parser.add_argument("--seeds", help="A..B, a batch; with A.. until it is stopped")
suite.parser.add_argument("--mounts", type=int, choices=[1, 2, 3, 4], help="default: by the seed")
suite.parser.add_argument("--shards", type=int, default=0, help="default: 1 and 8, a case each")
suite.parser.add_argument("--ops", type=int, default=300, help="operations a seed")
suite.parser.add_argument("--local", metavar="DIR", help="an ordinary folder instead of mounts")
suite.parser.add_argument("--kinds", default="default,relaxed,strict,default",
                          help="the mounts to choose from; a seed is replayed with the same")
suite.parser.add_argument("--shrink", action="store_true",
                          help="after a failure, find a shortest list of operations that fails")
suite.parser.add_argument("--go-on", action="store_true", help="play the next seed after a failure")

SECONDS = 10 if silt.QUICK or silt.SANITIZED else 30    # a case, without --seed and --seeds
PATIENCE = 90           # seconds after which an operation counts as hung
OPTIONS = {
    "default": [],
    "relaxed": ["consistency=relaxed"],
    "strict": ["attr-timeout=0", "entry-timeout=0", "dir-entry-timeout=0"],
}


class Place:
    """Where seeds are played: a volume with a mount of each kind, or an ordinary folder."""

    def __init__(self, t, shards, local):
        self.t, self.shards, self.local, self.volume = t, shards, local, None
        self.kinds = t.args.kinds.split(",")
        self.mounts = []
        self.fresh()

    def fresh(self):
        """A new volume; what the last one's mounts had in their caches is gone."""
        if self.local:
            return
        if self.volume:
            self.t.clean_up()
            self.t.remove_data()
        self.volume = self.t.volume(shards=self.shards)
        self.mounts = [self.t.mount(self.volume, options=OPTIONS[kind]) for kind in self.kinds]

    def checker(self, seed, mounts):
        """An empty folder on some of the mounts, chosen by the seed."""
        rng = random.Random(~seed)
        mounts = mounts or rng.choice([2, 2, 3, 4])
        chosen = rng.sample(range(len(self.kinds)), min(mounts, len(self.kinds)))
        tops = [self.local] * len(chosen) if self.local else [self.mounts[i].path for i in chosen]
        kinds = ["local"] * len(chosen) if self.local else [self.kinds[i] for i in chosen]
        name = f"s{seed}"
        shutil.rmtree(os.path.join(tops[0], name), ignore_errors=True)
        os.mkdir(os.path.join(tops[0], name), 0o755)
        roots = [os.path.join(top, name) for top in tops]
        for root in roots:
            silt.wait_until(lambda: os.path.isdir(root), f"{root} to be seen")
        return Checker(roots, kinds, self.shards)


def play(checker, ops, record=None):
    """What goes wrong, or None."""
    at, op = 0, None
    try:
        for at, op in enumerate(ops):
            if record is not None:
                record.append(op)
            signal.alarm(PATIENCE)
            checker.play(op)
        op = "the end"
        signal.alarm(PATIENCE)
        checker.finish()
    except (Failure, OSError) as e:
        return f"operation {at}, {shorten(op)}: {e}"
    finally:
        signal.alarm(0)
        checker.abandon()
    return None


def play_seed(t, place, seed):
    checker = place.checker(seed, t.args.mounts)
    record = []
    generator = Generator(seed, len(checker.roots))
    wrong = play(checker, generator.ops(checker, t.args.ops), record)
    if wrong:
        print(f"# seed {seed}: {wrong}\n# mounts: {', '.join(checker.kinds)}\n"
              f"# again: test/integration/test_checker.py --seed {seed} --shards {place.shards} "
              f"--ops {t.args.ops}" + (f" --mounts {t.args.mounts}" if t.args.mounts else ""), flush=True)
        if t.args.shrink:
            shrink(t, place, seed, record)
    return wrong, checker


def shrink(t, place, seed, ops):
    """Leaves out parts, large ones first, as long as what is left still goes wrong."""
    def goes_wrong(fewer):
        place.fresh()
        return play(place.checker(seed, t.args.mounts), fewer)
    checker_module.PATIENCE = 4
    if not goes_wrong(ops):
        print("# played again it does not go wrong", flush=True)
        return
    piece = max(1, len(ops) // 2)
    while piece:
        at = 0
        while at < len(ops):
            fewer = ops[:at] + ops[at + piece:]
            if fewer and goes_wrong(fewer):
                ops = fewer
            else:
                at += piece
        piece //= 2
    print(f"# {len(ops)} operations are enough:")
    for op in ops:
        print(f"#   {shorten(op)}")
    print(f"# {goes_wrong(ops)}", flush=True)


def seeds(args):
    if args.seed is not None:
        return [args.seed]
    if args.seeds:
        first, last = args.seeds.split("..")
        return range(int(first), int(last) + 1 if last else sys.maxsize)
    start = random.SystemRandom().randrange(1 << 32)
    return range(start, start + 10_000)


@suite.cases_for(shards=[1, 8])
def operations_on_several_mounts(t, shards):
    """Whichever mount is asked: what Linux says, and what the others did."""
    if t.args.shards not in (0, shards) and not (t.args.shards > 1 and shards == 8):
        return

    def hung(*_):
        raise Failure(f"hangs for more than {PATIENCE} s")
    outer, left = signal.signal(signal.SIGALRM, hung), signal.alarm(0)
    os.umask(0o022)
    try:
        batch(t, Place(t, t.args.shards or shards, t.args.local))
    finally:
        signal.signal(signal.SIGALRM, outer)
        signal.alarm(left)


def batch(t, place):
    start, waited, played, count, failed = time.monotonic(), 0.0, 0, 0, []
    limited = t.args.seed is None and not t.args.seeds
    for seed in seeds(t.args):
        if limited and time.monotonic() - start > SECONDS:
            break
        if count == 0 or failed and failed[-1] == seed - 1:
            print(f"# from seed {seed}", flush=True)
        wrong, checker = play_seed(t, place, seed)
        count, played, waited = count + 1, played + checker.played, max(waited, checker.waited)
        if wrong:
            failed.append(seed)
            if not t.args.go_on:
                break
            place.fresh()
        else:
            shutil.rmtree(checker.roots[0], ignore_errors=True)
    print(f"# {count} seeds, {played} operations, {len(failed)} seeds failed {failed}; longest wait for "
          f"another mount's change {waited * 1000:.0f} ms", flush=True)
    if failed:
        raise Failure(f"{len(failed)} of {count} seeds went wrong, the first {failed[0]}")


suite.main()
