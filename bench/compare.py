"""Compares whole commands, interleaved in rounds, writes the results as Markdown, and holds them against the aims.
Started by bench/run.

Rounds of backups and restores (bench/rounds.py) on many small tables and on a few large ones; WAL segment by segment
and under load, with the requests to a bucket (bench/segments.py, bench/ahead.py); drills (bench/drill.py); the start
of the programs; memory in runs of its own, since sampling costs CPU. The exit code is 1 when a command failed and, at
`--scale full`, when an aim is missed that no bound explains (bench/aims.py, bench/bounds.md).
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time

import aims
import drill
import results
import segments
from measure import CommandFailed, Runner
from rounds import Rounds, say
from servers import Cluster
from tools import BEST, PGPROOF, ZSTD, Copy, PgBackRest, PgBaseBackup, PgProof

# The aims are for the size of `full`, and it has to be done in 35 minutes.
SCALES = {
    "tiny": {"pgbench": 2, "json": 10, "tables": 50, "rounds": 1, "segments": 4, "drill_segments": 3,
             "ahead_segments": 10},
    "small": {"pgbench": 20, "json": 100, "tables": 500, "rounds": 2, "segments": 15, "drill_segments": 5,
              "ahead_segments": 20},
    "full": {"pgbench": 200, "json": 1000, "tables": 5000, "rounds": 5, "segments": 60, "drill_segments": 30,
             "ahead_segments": 40},
}
MEMORY = " (memory sampled)"


class Measurements:
    """Costs by (row, tool's key), rows in the order in which they came up; failures are kept and shown."""

    def __init__(self):
        self.names = {}
        self.rows = {}
        self.sizes_mb = {}
        self.requests = {}
        self.failures = []

    def add(self, row, tool, cost):
        self.names.setdefault(tool.key, tool.name)
        self.rows.setdefault(row, {}).setdefault(tool.key, []).append(cost)
        if cost.wall_s > 0.2:
            say(f"  {row}: {tool.name}: {cost.wall_s:.3f} s"
                + (f", {cost.cpu_s:.2f} CPU s" if cost.cpu_s is not None else "")
                + (f", {cost.peak_rss_mb:.0f} MB" if cost.peak_rss_mb else ""))

    def add_size(self, row, tool, size_bytes):
        self.sizes_mb.setdefault(row, {}).setdefault(tool.key, []).append(size_bytes / 1e6)

    def failed(self, row, tool, error):
        failure = (row, tool.name, str(error).splitlines()[0])
        if failure not in self.failures:
            self.failures.append(failure)
            say(f"  {row}: {tool.name}: FAILED: {error}")


class Bench:
    def __init__(self, arguments, scratch):
        self.arguments = arguments
        self.scratch = scratch
        path = f"{arguments.postgresql}:/usr/local/bin:/usr/bin:/bin"
        self.runner = Runner(arguments.account, {"PATH": path, "HOME": scratch, "LC_ALL": "C.UTF-8"})
        self.measurements = Measurements()
        self.versions = {}
        self.commands = {}
        self.notes = []
        self.began = time.monotonic()

    def minutes(self):
        return (time.monotonic() - self.began) / 60

    def cluster(self, name, number, **data):
        folder = os.path.join(self.scratch, name)
        self.runner.run(["mkdir", "-p", folder], self.scratch)
        cluster = Cluster(self.runner, self.arguments.postgresql, folder, 54300 + number)
        cluster.start()
        say(f"Filling {name}: {data} (minute {self.minutes():.1f})")
        cluster.fill(data.get("pgbench", 0), data.get("json", 0), data.get("tables", 0))
        return cluster

    def tools(self, cluster, place, with_copy=False):
        """Every tool, each with a home of its own below a new name in the cluster's folder."""
        def build(kind, name, *first):
            return kind(*first, cluster, self.runner, os.path.join(cluster.folder, name + str(place)))
        tools = []
        if self.arguments.pgproof != "none":
            tools.append(build(PgProof, "p", self.arguments.pgproof))
        tools += [build(PgBaseBackup, "b4", "lz4"), build(PgBaseBackup, "bz", "zstd"),
                  build(PgBackRest, "rb", self.arguments.pgbackrest, True),
                  build(PgBackRest, "rp", self.arguments.pgbackrest, False)]
        if with_copy:
            tools.append(build(Copy, "c"))
        return tools

    def measure(self, row, tool, command, memory=False):
        """The command's cost; a failing command is recorded, and the comparison goes on without it."""
        self.commands.setdefault(row.split(" (")[0], {}).setdefault(tool.key, " ".join(command))
        # What the command before left to be written must not be paid for by one that syncs.
        os.sync()
        try:
            cost = self.runner.run(command, tool.cluster.folder, server_pid=tool.cluster.pid, memory=memory)
        except CommandFailed as error:
            self.measurements.failed(row, tool, error)
            return None
        self.measurements.add(row, tool, cost)
        return cost

    def check(self, row, tool, look):
        """What a command made must be right; otherwise it has failed."""
        try:
            look()
        except CommandFailed as error:
            self.measurements.failed(row, tool, error)

    def begin(self, tool):
        try:
            tool.begin()
            return True
        except CommandFailed as error:
            self.measurements.failed("preparation", tool, error)
            return False

    def program_start(self, cluster):
        class Floor:
            key = "floor-true"
            name = "floor: /bin/true"
            start = ["/bin/true"]
        Floor.cluster = cluster
        tools = [tool for tool in self.tools(cluster, "s") if tool.key != ZSTD]
        for _ in range(30):
            for tool in [*tools, Floor]:
                self.measure("program start", tool, tool.start)

    def run(self, scale):
        """Returns what fills the braces in the names of the rows that have aims."""
        rows = {"tables": "", "memory": MEMORY}
        if scale["tables"]:
            rows["tables"] = f" ({scale['tables']} small tables)"
            self.small_tables(scale, rows["tables"])
        self.large_tables(scale)
        self.many_segments(scale)
        say(f"Done in {self.minutes():.1f} minutes")
        return rows

    def small_tables(self, scale, suffix):
        cluster = self.cluster("tables", 2, tables=scale["tables"])
        try:
            files = sum(len(names) for _, _, names in os.walk(cluster.data))
            self.notes.append(f"{scale['tables']} small tables: {files} files.")
            Rounds(self, cluster, suffix, clear=False).run(scale["rounds"])
            Rounds(self, cluster, suffix[:-1] + ", memory sampled)", memory=True, clear=False,
                   keys={PGPROOF}).run(1, first=scale["rounds"])
        finally:
            cluster.stop()

    def large_tables(self, scale):
        cluster = self.cluster("main", 1, pgbench=scale["pgbench"], json=scale["json"])
        for tool in self.tools(cluster, "v"):
            self.versions[tool.key] = tool.version
            self.measurements.names[tool.key] = tool.name
        files = len(cluster.relation_files())
        self.notes.append(f"Data: pgbench -s {scale['pgbench']} and {scale['json']} MB of JSON rows: "
                          f"{cluster.size_bytes() / 1e9:.2f} GB, {files} relation files, page checksums on, "
                          f"PostgreSQL {cluster.sql('show server_version')}.")
        sampled = {PGPROOF, BEST}
        try:
            Rounds(self, cluster, change=True, delta=True, floor=True).run(scale["rounds"])
            segments.one_by_one(self, cluster, scale["segments"])
            self.program_start(cluster)
            Rounds(self, cluster, MEMORY, change=True, memory=True, keys=sampled).run(1, first=scale["rounds"])
            segments.one_by_one(self, cluster, 8, MEMORY, memory=True, keys=sampled)
            say(f"(minute {self.minutes():.1f})")
            drill.drills(self, cluster, scale["drill_segments"], min(3, scale["rounds"]))
        finally:
            cluster.stop()
        shutil.rmtree(cluster.folder)

    def many_segments(self, scale):
        cluster = self.cluster("ahead", 3)
        try:
            segments.under_load(self, cluster, scale["ahead_segments"], scale["rounds"])
        finally:
            cluster.stop()
        shutil.rmtree(cluster.folder)


def parse_arguments():
    parser = argparse.ArgumentParser(prog="bench/run", description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--segments", type=int, help="WAL segments to push and get")
    parser.add_argument("--pgbench-scale", type=int, help="pgbench's scale, 15 MB each")
    parser.add_argument("--json-mb", type=int, help="megabytes of JSON rows")
    parser.add_argument("--tables", type=int, help="how many small tables (0: no such measurement)")
    parser.add_argument("--pgproof", metavar="PATH", default="none")
    parser.add_argument("--pgbackrest", metavar="PATH", default=shutil.which("pgbackrest"))
    parser.add_argument("--moto", metavar="PATH", default=os.environ.get("PGPROOF_MOTO_SERVER"),
                        help="moto's server, a simulator of S3, to count requests (left out: they are not counted)")
    parser.add_argument("--directory", metavar="DIR", default="/var/tmp",
                        help="where the scratch folder is made: four times the data must fit")
    parser.add_argument("--results", metavar="FILE", default=os.path.join(os.path.dirname(__file__), "RESULTS.md"))
    parser.add_argument("--account", help=argparse.SUPPRESS)
    parser.add_argument("--postgresql", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    scale = dict(SCALES[arguments.scale])
    for name, given in (("rounds", arguments.rounds), ("segments", arguments.segments), ("json", arguments.json_mb),
                        ("pgbench", arguments.pgbench_scale), ("tables", arguments.tables)):
        if given is not None:
            scale[name] = given
    return arguments, scale


def main():
    arguments, scale = parse_arguments()
    bounds = aims.read_bounds()
    load_before = os.getloadavg()[0]
    scratch = tempfile.mkdtemp(prefix="pgb.", dir=arguments.directory)
    os.chmod(scratch, 0o755)
    if os.geteuid() == 0:
        shutil.chown(scratch, arguments.account)
    # The account may be unable to read where the programs were built.
    for name in ("pgproof", "pgbackrest"):
        program = getattr(arguments, name)
        if program != "none":
            copied = os.path.join(scratch, name)
            shutil.copy(program, copied)
            os.chmod(copied, 0o755)
            setattr(arguments, name, copied)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bench = Bench(arguments, scratch)
    try:
        rows = bench.run(scale)
    finally:
        for name in os.listdir(scratch):
            data = os.path.join(scratch, name, "data")
            if os.path.exists(os.path.join(data, "postmaster.pid")):
                Cluster(bench.runner, arguments.postgresql, os.path.join(scratch, name), 0).stop()
        shutil.rmtree(scratch, ignore_errors=True)
    judged = arguments.scale == "full" and scale == SCALES["full"] and arguments.pgproof != "none"
    judgements = aims.judge(aims.measured_by(bench.measurements, rows), bounds)
    with open(arguments.results, "w") as file:
        file.write(results.markdown(bench, load_before, judgements, rows, judged))
    missed = [each for each in judgements if each.missed]
    for each in missed:
        say(f"{each.aim.key}, against {each.peer or 'the limit'}: {each.verdict}: "
            + ("" if each.reached is None else f"{each.reached:.2f} instead of {each.allowed:.2f}"))
    failures = len(bench.measurements.failures)
    say(f"{os.path.abspath(arguments.results)}: {failures} failed commands, {len(missed)} aims missed"
        + ("" if judged else " (of another scale, for orientation)"))
    sys.exit(1 if failures or (judged and missed) else 0)


if __name__ == "__main__":
    main()
