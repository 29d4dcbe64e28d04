#!/usr/bin/env python3
"""The README's first command, from its arguments to its exit status."""
# timeout: 400

import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal  # noqa: E402

suite = silt.Suite()
QUICKSTART = os.path.join(silt.ROOT, "tools", "quickstart")


def quickstart(*args, check_status=False):
    return silt.run(QUICKSTART, "--no-install", *args, check_status=check_status, timeout=300)


def end(t, mp):
    t.finally_do(lambda: subprocess.run([silt.SILTFS, "umount", mp], stderr=subprocess.DEVNULL))


def figure(out, name):
    m = re.search(rf"^\s+{re.escape(name)}\s+([\d.]+)", out, re.M)
    check(m, f"no figure {name!r} in:\n{out}")
    return float(m.group(1))


@suite.case
def mounts_copies_warms_up_and_reads_back(t):
    data, mp = os.path.join(t.tmp, "q"), os.path.join(t.tmp, "qm")
    end(t, mp)
    p = quickstart("--data", data, "--files", "2000", mp)
    equal(p.returncode, 0, f"exit status ({p.out} {p.err})")
    check(silt.mounted(mp), "it leaves the volume mounted")
    check(figure(p.out, "files") >= 1500, "files")
    equal(figure(p.out, "files that differ"), 0, "files that differ")
    equal(figure(p.out, "GETs while reading"), 0, "GETs while reading")
    check(figure(p.out, "PUTs per 1,000 files") <= 150, "PUTs per 1,000 files")
    check(f"umount {mp}" in p.out and "rm -rf" in p.out, "says how to unmount and remove")
    check(os.listdir(os.path.join(mp, "sample")), "the files are there")
    # Again: uses what is there.
    with open(os.path.join(mp, "mine"), "w") as f:
        f.write("kept")
    p = quickstart("--data", data, "--files", "500", mp)
    equal(p.returncode, 0, f"second run ({p.out} {p.err})")
    with open(os.path.join(mp, "mine")) as f:
        equal(f.read(), "kept", "a file of the user's")
    silt.run(silt.SILTFS, "umount", mp)


@suite.case
def leaves_what_is_not_its_own(t):
    full = t.folder("full")
    with open(os.path.join(full, "precious"), "w") as f:
        f.write("x")
    p = quickstart("--data", os.path.join(t.tmp, "q2"), full)
    check(p.returncode != 0 and "not empty" in p.err, f"a directory with files: {p.err}")
    equal(os.listdir(full), ["precious"], "what was there")
    p = quickstart("--data", os.path.join(t.tmp, "q2"), "/proc")
    check(p.returncode != 0 and "mount" in p.err, f"another mount: {p.err}")
    check(not os.path.exists(os.path.join(t.tmp, "q2")), "nothing was made")
    equal(quickstart("--nosuch").returncode, 1, "an unknown option")


suite.main()
