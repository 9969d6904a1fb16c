"""The aims, and how a run is held against them.

An aim in seconds or megabytes is a ratio to what each peer of its row took, because figures of another machine say
nothing here; limits of memory and counts of requests are absolute. An aim is missed when the medians of the run do
not reach it. It may be missed where `bounds.md` names what bounds it, with a profile as proof, and up to the figure
that this explains; otherwise the run fails. A ratio of wall times that is off by less than a quarter is noise and no
miss: walls of equal commands differ by as much. CPU, sizes, memory and requests have no such tolerance.

The figures of the aims are of a database of 4.17 GB, 20,967 small files, and a change of 2.45 % of the pages, on two
cores; at another scale the ratios are shown for orientation.
"""

import os
import re
import statistics
from dataclasses import dataclass

from tools import ASYNC, BEST, CP, LZ4, PGPROOF, PLAIN, ZSTD

# Two walls whose ratio is within it are equal.
NOISE_OF_WALL = 1.25
BOUNDS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bounds.md")

WALL, CPU, SIZE, RSS, REQUESTS = "wall s", "CPU s", "MB", "peak RSS, MB", "requests"


@dataclass(frozen=True)
class Aim:
    key: str  # what a bound is filed under
    row: str  # as the run's tables call it; "" of small tables is put in where {tables} stands
    what: str
    ours: float  # the aim
    peers: dict  # what each peer took where the aim was set; empty: the aim is absolute
    tool: str = PGPROOF


# pg_verifybackup cannot read what pg_basebackup wrote (it is tar), so it is no peer of `verify`. `cp` is one where it
# does the same work: a copy that is durable.
AIMS = [
    Aim("full-backup", "full backup", WALL, 5, {LZ4: 5.3, ZSTD: 6.4, PLAIN: 11.2, BEST: 12.3}),
    Aim("full-backup-cpu", "full backup", CPU, 7, {LZ4: 4.9, ZSTD: 6.4, PLAIN: 10.5, BEST: 11.7}),
    Aim("repository-size", "repository after the full backup", SIZE, 435, {BEST: 435}),
    Aim("incremental", "second backup", WALL, 1.5, {BEST: 3.6}),
    Aim("incremental-without-reading", "second backup", WALL, 1, {BEST: 3.6}),
    Aim("incremental-cpu", "second backup", CPU, 2.5, {BEST: 3.9}),
    Aim("incremental-size", "added by the second backup", SIZE, 20, {BEST: 53}),
    Aim("small-files-backup", "full backup{tables}", WALL, 0.6, {LZ4: 0.40, ZSTD: 0.40, BEST: 2.1, PLAIN: 9.9}),
    Aim("small-files-restore", "restore{tables}", WALL, 1.6, {LZ4: 1.3, ZSTD: 1.3, BEST: 5.5, PLAIN: 8.5}),
    Aim("restore", "restore", WALL, 5, {LZ4: 6.7, ZSTD: 6.7, PLAIN: 11.2, BEST: 11.2}),
    Aim("delta-restore", "delta restore, 1 % damaged", WALL, 3.5, {BEST: 11.6}),
    Aim("delta-restore-size", "written by the delta restore", SIZE, 60, {BEST: 56}),
    Aim("wal-push", "wal push", WALL, 35, {CP: 19, PLAIN: 51.6, BEST: 54.4}),
    Aim("wal-push-ahead", "wal push, many wait", WALL, 26, {ASYNC: 42}),
    Aim("wal-get", "wal get", WALL, 19, {PLAIN: 24, BEST: 24}),
    Aim("wal-get-prefetched", "wal get, prefetched", WALL, 2.5, {ASYNC: 9.4}),
    Aim("verify-stored", "verify, stored bytes only", WALL, 0.8, {BEST: 2.65}),
    Aim("verify-decoded", "verify", WALL, 3.2, {BEST: 2.65}),
    Aim("drill", "drill to a time, checks apart", WALL, 18, {ASYNC: 31}),
    Aim("requests-put", "S3 requests for a segment: PUT", REQUESTS, 1, {}),
    Aim("requests-all", "S3 requests for a segment: all", REQUESTS, 1, {}),
    Aim("program-start", "program start", WALL, 3, {BEST: 6.7}),
    Aim("memory-backup", "full backup{memory}", RSS, 128, {}),
    Aim("memory-incremental", "second backup{memory}", RSS, 128, {}),
    Aim("memory-restore", "restore{memory}", RSS, 128, {}),
    Aim("memory-push", "wal push{memory}", RSS, 48, {}),
    Aim("memory-get", "wal get{memory}", RSS, 48, {}),
    Aim("memory-push-ahead", "wal push, many wait{memory}", RSS, 48, {}),
    Aim("memory-get-ahead", "wal get, prefetched{memory}", RSS, 48, {}),
]
# Against whom pgproof's `verify, stored bytes only` is held: what the peer's `verify` reads and hashes.
ROW_OF_PEER = {"verify, stored bytes only": "verify"}


@dataclass(frozen=True)
class Bound:
    """Why an aim is missed, as `bounds.md` has it."""
    key: str
    peer: str  # "": every peer
    explains: float  # the ratio (or the absolute figure) up to which it does
    cause: str  # the first paragraph
    has_profile: bool


@dataclass(frozen=True)
class Judgement:
    aim: Aim
    peer: str  # "": absolute
    allowed: float
    reached: float | None  # None: not measured
    bound: Bound | None

    @property
    def met(self):
        return self.reached is not None and self.reached <= self.allowed

    @property
    def within_noise(self):
        return (not self.met and self.reached is not None and self.aim.what == WALL
                and self.reached <= self.allowed * NOISE_OF_WALL)

    @property
    def explained(self):
        return (self.bound is not None and self.bound.has_profile and self.reached is not None
                and self.reached <= self.bound.explains)

    @property
    def missed(self):
        """What a run fails for: missed, and no bound that is named explains it. What was not measured is not met."""
        return not (self.met or self.within_noise or self.explained)

    @property
    def verdict(self):
        if self.reached is None:
            return "NOT MEASURED"
        if self.met:
            return "met"
        if self.explained:
            return f"missed: bound named ({self.bound.key})"
        return "off by less than the noise" if self.within_noise else "MISSED"


def read_bounds(path=BOUNDS):
    """Sections `## AIM` or `## AIM: PEER`. Each has a line `Explains: FIGURE`, a first paragraph that names the cause,
    and a fenced block, the profile."""
    bounds = []
    if not os.path.exists(path):
        return bounds
    with open(path) as lines:
        sections = re.split(r"^## ", lines.read(), flags=re.MULTILINE)[1:]
    for section in sections:
        title, _, body = section.partition("\n")
        key, _, peer = (part.strip() for part in title.partition(":"))
        explains = re.search(r"^Explains: ([0-9.]+)\s*$", body, flags=re.MULTILINE)
        if explains is None or key not in {aim.key for aim in AIMS}:
            raise SystemExit(f"{path}: section {title!r} names no aim, or does not say what it explains")
        text = re.sub(r"^Explains: .*$", "", body, count=1, flags=re.MULTILINE).strip()
        profile = re.search(r"^```\n.+?^```", text, flags=re.MULTILINE | re.DOTALL)
        cause = " ".join(text.split("\n\n")[0].split())
        bounds.append(Bound(key, peer, float(explains.group(1)), cause, profile is not None))
    return bounds


def judge(measured, bounds):
    """`measured(row, tool, what)` gives a median, or None where there is none. One judgement for each aim and peer."""
    judgements = []
    for aim in AIMS:
        ours = measured(aim.row, aim.tool, aim.what)
        for peer, took in (aim.peers or {"": None}).items():
            bound = next((bound for bound in bounds if bound.key == aim.key and bound.peer in ("", peer)), None)
            if not peer:
                judgements.append(Judgement(aim, "", aim.ours, ours, bound))
                continue
            theirs = measured(ROW_OF_PEER.get(aim.row, aim.row), peer, aim.what)
            ratio = ours / theirs if ours is not None and theirs else None
            judgements.append(Judgement(aim, peer, aim.ours / took, ratio, bound))
    return judgements


def measured_by(measurements, rows):
    """A lookup for `judge` in what a run measured. `rows` fills the braces in the names of rows."""
    def look_up(row, tool, what):
        row = row.format(**rows)
        if what == SIZE:
            values = measurements.sizes_mb.get(row, {}).get(tool)
        elif what == REQUESTS:
            values = measurements.requests.get(row, {}).get(tool)
        else:
            costs = measurements.rows.get(row, {}).get(tool, [])
            field = {WALL: "wall_s", CPU: "cpu_s", RSS: "peak_rss_mb"}[what]
            values = [value for value in (getattr(cost, field) for cost in costs) if value]
            if what == RSS:
                return max(values, default=None)
        return statistics.median(values) if values else None
    return look_up
