"""Rounds of backups and restores: each gives every tool a new repository and runs full backups, a change of about 2.5
% of the pages, second backups, restores (repository not in the page cache), delta restores of what was restored and
then damaged, verifications; the order of the tools turns with the round.
"""

import os
import random
import shutil
import sys

from measure import CommandFailed
from tools import forget_cache

# One page of so many is changed between the two backups; indexes are not, hence a few less than 1 / 2.5 %.
CHANGE_EVERY = 36
# One page of so many is damaged before a delta restore.
DAMAGE_EVERY = 100
PAGE_BYTES = 8192


def say(text):
    print(text, file=sys.stderr, flush=True)


class Floor:
    """What the device takes for the bytes of a restore: `dd`, two at once, past the page cache, of the files that hold
    nearly all of the database, read from the page cache. It neither decodes nor checks anything."""
    key = "floor-dd"
    name = "floor: dd of the large files, O_DIRECT"

    def __init__(self, cluster):
        self.cluster = cluster

    def restore(self, into):
        copy = f"dd if=@ of=\"{into}/$(basename @)\" bs=1M oflag=direct status=none"
        return ["sh", "-c", f"mkdir -m 700 '{into}' && cd '{self.cluster.data}' && find base -type f -size +1M -print0 "
                            f"| xargs -0 -P 2 -I@ sh -c '{copy}' && sync -f '{into}'"]


def damage(directory, seed):
    """Changes a byte in one of a hundred pages of the large relation files; what they were. The files leave the page
    cache."""
    chosen = random.Random(seed)
    were = []
    for folder, _, names in os.walk(os.path.join(directory, "base")):
        for name in sorted(names):
            path = os.path.join(folder, name)
            pages = os.path.getsize(path) // PAGE_BYTES
            if not name.replace(".", "").isdigit() or pages < DAMAGE_EVERY:
                continue
            with open(path, "r+b", buffering=0) as relation:
                for page in chosen.sample(range(pages), pages // DAMAGE_EVERY):
                    at = page * PAGE_BYTES + 4096
                    byte = os.pread(relation.fileno(), 1, at)
                    os.pwrite(relation.fileno(), bytes([byte[0] ^ 0x55]), at)
                    were.append((path, at, byte))
    forget_cache(directory)
    return were


def must_be_as_before(were):
    wrong = 0
    files = {}
    for path, at, byte in were:
        if path not in files:
            files[path] = os.open(path, os.O_RDONLY)
        wrong += os.pread(files[path], 1, at) != byte
    for descriptor in files.values():
        os.close(descriptor)
    if wrong:
        raise CommandFailed(f"{wrong} of {len(were)} damaged pages came back different")


def must_be_whole(found, expected):
    if found != expected:
        different = [path for path in expected if found.get(path) != expected[path]]
        raise CommandFailed(f"restored {len(found)} relation files of {len(expected)}; different: {different[:5]}")


class Rounds:
    """`suffix` is put behind the names of rows. `clear`: what a round made is removed after it. Otherwise everything
    stays, because ext4 takes very long to create files for minutes after thousands were deleted, and would charge that
    to whoever is next. `keys`: only these tools. `delta`, `floor`: measure those too."""

    def __init__(self, bench, cluster, suffix="", change=False, memory=False, clear=True, keys=None, delta=False,
                 floor=False):
        self.bench, self.cluster, self.suffix = bench, cluster, suffix
        self.change, self.memory, self.clear = change, memory, clear
        self.keys, self.delta, self.floor = keys, delta, floor

    def run(self, count, first=0):
        for number in range(first, first + count):
            say(f"Round {number - first + 1} of {count}{self.suffix}")
            self.round(number, number - first + 1)

    def measure(self, row, tool, command):
        return self.bench.measure(row + self.suffix, tool, command, self.memory)

    def round(self, number, shown):
        bench, cluster, measurements = self.bench, self.cluster, self.bench.measurements
        tools = [tool for tool in bench.tools(cluster, number) if self.keys is None or tool.key in self.keys]
        tools = tools[number % len(tools):] + tools[:number % len(tools)]
        tools = [tool for tool in tools if bench.begin(tool)]
        whole, expected = [], {}
        for tool in tools:
            cluster.archive_with(tool.archive)
            if self.measure("full backup", tool, tool.full):
                whole.append(tool)
                expected[tool.key] = cluster.relation_files()
                measurements.add_size(f"repository after the full backup{self.suffix}", tool, tool.repository_bytes())
        if self.change:
            self.second(number, shown, whole, expected)
        cluster.archive_with(None)
        for tool in whole:
            self.restore(number, tool, expected[tool.key])
        if self.floor and whole:
            floor = Floor(cluster)
            into = os.path.join(whole[0].home, "floor")
            self.measure("restore", floor, floor.restore(into))
            shutil.rmtree(into, ignore_errors=True)
        for tool in whole:
            if tool.verify:
                self.measure("verify", tool, tool.verify)
            if tool.verify_stored:
                self.measure("verify, stored bytes only", tool, tool.verify_stored)
        if self.clear:
            for tool in tools:
                shutil.rmtree(tool.home)

    def second(self, number, shown, whole, expected):
        bench, cluster = self.bench, self.cluster
        cluster.archive_with(None)
        changed, total = cluster.change_pages(number, CHANGE_EVERY)
        share = 100 * changed / total
        bench.notes.append(f"Round {shown}{self.suffix}: {changed} of {total} pages changed ({share:.2f} %).")
        for tool in whole:
            if not tool.second:
                continue
            before = tool.repository_bytes()
            cluster.archive_with(tool.archive)
            if self.measure("second backup", tool, tool.second):
                expected[tool.key] = cluster.relation_files()
            added = tool.repository_bytes() - before
            bench.measurements.add_size(f"added by the second backup{self.suffix}", tool, added)

    def restore(self, number, tool, expected):
        bench, cluster = self.bench, self.cluster
        into = os.path.join(tool.home, "restored")
        tool.forget_cache()
        if self.measure("restore", tool, tool.restore(into)):
            bench.check(f"restore{self.suffix}", tool, lambda: must_be_whole(cluster.relation_files(into), expected))
            if tool.verify_restored:
                self.measure("verify", tool, tool.verify_restored(into))
            if self.delta and tool.restore_delta:
                were = damage(into, number)
                tool.forget_cache()
                cost = self.measure("delta restore, 1 % damaged", tool, tool.restore_delta(into))
                if cost:
                    written = cost.written_mb * 1e6
                    bench.measurements.add_size(f"written by the delta restore{self.suffix}", tool, written)
                    bench.check("delta restore, 1 % damaged", tool, lambda: must_be_as_before(were))
        if self.clear:
            shutil.rmtree(into, ignore_errors=True)
