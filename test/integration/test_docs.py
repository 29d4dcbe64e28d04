#!/usr/bin/env python3
"""What README promises: every message of its table is one that the sources print, every sentence of
SEMANTICS names a test that exists."""

import glob
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal  # noqa: E402

suite = silt.Suite(needs_fuse=False)

# What the kernel or Redis says, not siltfs.
FROM_ELSEWHERE = {"/dev/fuse", "Input/output error", "Transport endpoint is not connected",
                  "No locks available"}


def readme(begin, end):
    with open(os.path.join(silt.ROOT, "README.md")) as f:
        text = f.read()
    return text[text.index(f"\n## {begin}\n"):text.index(f"\n## {end}\n")]


def strings_of_the_sources():
    """All string constants of the C files, neighbours joined, one text each."""
    out = []
    for folder in ("meta", "cache", "fs", "tools"):
        for path in glob.glob(os.path.join(silt.ROOT, folder, "*.[ch]")):
            with open(path) as f:
                text = re.sub(r"/\*.*?\*/", "", f.read(), flags=re.S)
            for m in re.finditer(r'(?:"(?:[^"\\\n]|\\.)*"\s*)+', text):
                out.append("".join(re.findall(r'"((?:[^"\\\n]|\\.)*)"', m.group(0))))
    return out


@suite.case
def every_message_of_the_table_is_printed(t):
    strings = strings_of_the_sources()
    rows = re.findall(r"^\| (.*?) \| ", readme("Troubleshooting", "Not there yet"), re.M)[1:]
    check(len(rows) > 10, f"rows of the table: {rows}")
    for row in rows:
        for message in re.findall(r"`([^`]+)`", row):
            if message in FROM_ELSEWHERE:
                continue
            parts = [re.escape(p.strip()) for p in message.removeprefix("warning: ").split("...")]
            parts = [re.sub(r"\d+", r"(?:\\d+|%[a-z]+)", p) for p in parts]
            pattern = re.compile(".*".join(parts))
            check(any(pattern.search(s) for s in strings), f"no source prints {message!r}")


@suite.case
def every_sentence_names_a_test_that_exists(t):
    seen = 0
    for group in re.findall(r"\(([^()]*\b(?:test|unit)_[^()]*)\)", readme("SEMANTICS", "Troubleshooting")):
        source = None
        for name, case in re.findall(r"\b((?:test|unit)_\w+)|`([^`]+)`", group):
            for path in (f"test/integration/{name}.py", f"test/{name}.c"):
                if name and os.path.exists(os.path.join(silt.ROOT, path)):
                    with open(os.path.join(silt.ROOT, path)) as f:
                        source = f.read()
                    break
            else:
                check(source and re.search(rf"\b{name or case}\(", source),
                      f"({group.strip()}): there is no {name or case}")
            seen += 1
    check(seen > 50, f"tests named: {seen}")
    paragraphs = readme("SEMANTICS", "Troubleshooting").split("\n\n")[2:]
    equal([p[:60] for p in paragraphs if not re.search(r"\b(test|unit)_\w+", p)], [],
          "paragraphs without any test")


suite.main()
