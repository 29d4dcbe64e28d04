#!/usr/bin/env python3
"""The protocol of operations across shards holds in its models (test/model/README): names are neither lost
nor doubled, directories make no loop, every intent is finished, whoever dies or stops where. And the
models can fail: without any one of the protocol's parts spin finds what it is for."""
# timeout: 600

import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal  # noqa: E402

suite = silt.Suite(needs_fuse=False)


def errors(t, model, knob=None):
    """How many errors spin finds, and how many states it saw."""
    name = f"{model}-{knob}" if knob else model
    where = os.path.join(suite.tmp, name)
    os.makedirs(where)

    def run(*argv):
        p = subprocess.run(argv, cwd=where, capture_output=True, text=True, timeout=500)
        equal(p.returncode, 0, f"{argv[0]} of {name}: {p.stdout}{p.stderr}")
        return p.stdout
    run("spin", *([f"-D{knob}"] if knob else []), "-a",
        os.path.join(silt.ROOT, "test", "model", f"{model}.pml"))
    run("gcc", "-O1", "-w", "-DSAFETY", "-DCOLLAPSE", "-o", "pan", "pan.c")
    out = run("./pan", "-m100000")
    check("max search depth too small" not in out, "the search was complete")
    return int(re.search(r"errors: (\d+)", out).group(1)), int(re.search(r"(\d+) states, stored", out).group(1))


@suite.case
def rename(t):
    found, states = errors(t, "rename")
    equal(found, 0, "errors")
    check(states > 100000, f"{states} states")


@suite.case
def loop(t):
    found, states = errors(t, "loop")
    equal(found, 0, "errors")
    check(states > 10000, f"{states} states")


@suite.case
def the_models_can_fail(t):
    for model, knob in (("rename", "NO_FENCE"), ("rename", "NO_TAKE"), ("rename", "NO_DECISION"),
                        ("rename", "NO_TARGET_MARK"), ("loop", "LOCK_EXPIRES"), ("loop", "NO_FENCE")):
        check(errors(t, model, knob)[0] > 0, f"{model} without its protection: {knob}")


suite.main()
