"""Compares whole commands, interleaved in rounds, and writes the results as Markdown. Started by bench/run.

Each round gives every tool a new repository and runs: full backups, a change of about 2.5 % of the pages, second
backups, restores (repository not in the page cache), verifications; the order of the tools turns with the round.
WAL follows segment by segment, the start of the programs, and memory in runs of its own. What is shown is the
median. CPU is that of the command's process tree and of what the server did meanwhile.
"""

import argparse
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time

from measure import CommandFailed, Runner
from servers import Cluster
from tools import Copy, PgBackRest, PgBaseBackup, PgProof

SCALES = {
    "tiny": {"pgbench": 2, "json": 10, "tables": 50, "rounds": 1, "segments": 4, "memory": []},
    "small": {"pgbench": 20, "json": 100, "tables": 500, "rounds": 3, "segments": 20, "memory": []},
    "full": {"pgbench": 200, "json": 1000, "tables": 5000, "rounds": 5, "segments": 60, "memory": [1.0, 8.0]},
}
# One page of so many is changed between the two backups; indexes are not, hence a few less than 1 / 2.5 %.
CHANGE_EVERY = 36


def say(text):
    print(text, file=sys.stderr, flush=True)


class Measurements:
    """Costs by (row, tool), rows in the order in which they came up; failures are kept and shown."""

    def __init__(self):
        self.rows = {}
        self.sizes_mb = {}
        self.failures = []

    def add(self, row, tool, cost):
        self.rows.setdefault(row, {}).setdefault(tool.name, []).append(cost)
        if cost.wall_s > 0.2:
            say(f"  {row}: {tool.name}: {cost.wall_s:.3f} s, {cost.cpu_s:.2f} CPU s" +
                (f", {cost.peak_rss_mb:.0f} MB" if cost.peak_rss_mb else ""))

    def add_size(self, row, tool, size_bytes):
        self.sizes_mb.setdefault(row, {}).setdefault(tool.name, []).append(size_bytes / 1e6)

    def failed(self, row, tool, error):
        failure = (row, tool.name, str(error).splitlines()[0])
        if failure not in self.failures:
            self.failures.append(failure)
            say(f"  {row}: {tool.name}: FAILED: {error}")


class Bench:
    def __init__(self, arguments, scratch):
        self.arguments = arguments
        self.scratch = scratch
        environment = {"PATH": f"{arguments.postgresql}:/usr/local/bin:/usr/bin:/bin", "HOME": scratch, "LC_ALL": "C.UTF-8"}
        self.runner = Runner(arguments.account, environment)
        self.measurements = Measurements()
        self.versions = {}
        self.commands = {}
        self.notes = []

    def cluster(self, name, number, **data):
        folder = os.path.join(self.scratch, name)
        self.runner.run(["mkdir", "-p", folder], self.scratch)
        cluster = Cluster(self.runner, self.arguments.postgresql, folder, 54300 + number)
        cluster.start()
        say(f"Filling {name}: {data}")
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
        self.commands.setdefault(row.split(" (")[0], {}).setdefault(tool.name, " ".join(command))
        # What the command before left to be written must not be paid for by one that syncs.
        os.sync()
        try:
            cost = self.runner.run(command, tool.cluster.folder, server_pid=tool.cluster.pid, memory=memory)
        except CommandFailed as error:
            self.measurements.failed(row, tool, error)
            return None
        self.measurements.add(row, tool, cost)
        return cost

    def begin(self, tool):
        try:
            tool.begin()
            return True
        except CommandFailed as error:
            self.measurements.failed("preparation", tool, error)
            return False

    def is_whole(self, found, expected):
        if found != expected:
            different = [path for path in expected if found.get(path) != expected[path]]
            raise CommandFailed(f"restored {len(found)} relation files of {len(expected)}; different: {different[:5]}")

    def rounds(self, cluster, suffix, count, change, memory=False, clear=True):
        """`clear`: what a round made is removed after it. Otherwise everything stays, because ext4 takes very
        long to create files for minutes after thousands were deleted, and would charge that to whoever is next."""
        for number in range(count):
            say(f"Round {number + 1} of {count}{suffix}")
            tools = self.tools(cluster, number)
            tools = tools[number % len(tools):] + tools[:number % len(tools)]
            tools = [tool for tool in tools if self.begin(tool)]
            whole = []
            expected = {}
            for tool in tools:
                cluster.archive_with(tool.archive)
                if self.measure(f"full backup{suffix}", tool, tool.full, memory):
                    whole.append(tool)
                    expected[tool.name] = cluster.relation_files()
                    self.measurements.add_size(f"repository after the full backup{suffix}", tool, tool.repository_bytes())
            if change:
                cluster.archive_with(None)
                changed, total = cluster.change_pages(number, CHANGE_EVERY)
                self.notes.append(f"Round {number + 1}{suffix}: {changed} of {total} pages changed "
                                  f"({100 * changed / total:.2f} %).")
                for tool in whole:
                    if tool.second:
                        before = tool.repository_bytes()
                        cluster.archive_with(tool.archive)
                        if self.measure(f"second backup{suffix}", tool, tool.second, memory):
                            expected[tool.name] = cluster.relation_files()
                        self.measurements.add_size(f"added by the second backup{suffix}", tool,
                                                   tool.repository_bytes() - before)
            cluster.archive_with(None)
            for tool in whole:
                into = os.path.join(tool.home, "restored")
                tool.forget_cache()
                if self.measure(f"restore{suffix}", tool, tool.restore(into), memory):
                    try:
                        self.is_whole(cluster.relation_files(into), expected[tool.name])
                    except CommandFailed as error:
                        self.measurements.failed(f"restore{suffix}", tool, error)
                    if hasattr(tool, "verify_restored"):
                        self.measure(f"verify{suffix}", tool, tool.verify_restored(into), memory)
                if clear:
                    shutil.rmtree(into, ignore_errors=True)
            for tool in whole:
                if tool.verify:
                    self.measure(f"verify{suffix}", tool, tool.verify, memory)
                if hasattr(tool, "verify_stored"):
                    self.measure(f"verify, stored bytes only{suffix}", tool, tool.verify_stored, memory)
            cluster.archive_with(None)
            for tool in tools:
                if clear:
                    shutil.rmtree(tool.home)

    def wal(self, cluster, count, suffix="", memory=False):
        say(f"WAL: {count} segments{suffix}")
        cluster.archive_with(None)
        tools = [tool for tool in self.tools(cluster, "w", with_copy=True) if tool.wal_push and self.begin(tool)]
        paths = cluster.write_wal(count)
        destination = os.path.join(cluster.folder, "fetched")
        for row in (f"wal push{suffix}", f"wal get{suffix}"):
            for number, path in enumerate(paths):
                for tool in tools[number % len(tools):] + tools[:number % len(tools)]:
                    if row.startswith("wal push"):
                        self.measure(row, tool, tool.wal_push(path), memory)
                        continue
                    if os.path.exists(destination):
                        os.unlink(destination)
                    if self.measure(row, tool, tool.wal_get(os.path.basename(path), destination), memory):
                        with open(destination, "rb") as fetched, open(path, "rb") as original:
                            if fetched.read() != original.read():
                                self.measurements.failed(row, tool, CommandFailed(f"{path} came back different"))

    def program_start(self, cluster):
        class Floor:
            name = "floor: /bin/true"
            start = ["/bin/true"]
        Floor.cluster = cluster
        tools = [tool for tool in self.tools(cluster, "s") if tool.name != "pg_basebackup zstd"]
        for _ in range(30):
            for tool in [*tools, Floor]:
                self.measure("program start", tool, tool.start)

    def run(self, scale):
        if scale["tables"]:
            cluster = self.cluster("tables", 2, tables=scale["tables"])
            try:
                suffix = f" ({scale['tables']} small tables)"
                self.rounds(cluster, suffix, min(3, scale["rounds"]), change=False, clear=False)
            finally:
                cluster.stop()
            files = len(cluster.relation_files())
            self.notes.append(f"{scale['tables']} small tables: {files} relation files.")
        cluster = self.cluster("main", 1, pgbench=scale["pgbench"], json=scale["json"])
        for tool in self.tools(cluster, "v"):
            self.versions[tool.name] = tool.version
        files = len(cluster.relation_files())
        self.notes.append(f"Data: pgbench -s {scale['pgbench']} and {scale['json']} MB of JSON rows: "
                          f"{cluster.size_bytes() / 1e9:.2f} GB, {files} relation files, page checksums on, "
                          f"{self.versions_of_server(cluster)}.")
        try:
            self.rounds(cluster, "", scale["rounds"], change=True)
            self.wal(cluster, scale["segments"])
            self.program_start(cluster)
        finally:
            cluster.stop()
        shutil.rmtree(cluster.folder)
        for number, size_gb in enumerate(scale["memory"]):
            # Three quarters of it pgbench's tables (15 MB for each unit of scale), a quarter JSON rows.
            cluster = self.cluster(f"memory{number}", 3 + number, pgbench=max(1, round(size_gb * 50)), json=size_gb * 250)
            suffix = f" ({size_gb:g} GB, memory sampled)"
            try:
                self.notes.append(f"Memory, {size_gb:g} GB: the databases hold {cluster.size_bytes() / 1e9:.2f} GB.")
                self.rounds(cluster, suffix, 1, change=True, memory=True)
                self.wal(cluster, 8, suffix, memory=True)
            finally:
                cluster.stop()
            shutil.rmtree(cluster.folder)

    def versions_of_server(self, cluster):
        return "PostgreSQL " + cluster.sql("show server_version")


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def memory_gb():
    with open("/proc/meminfo") as lines:
        return int(lines.readline().split()[1]) / 1e6


def results(bench, load_before):
    found = bench.measurements
    names = list(bench.versions) + ["cp", "floor: /bin/true"]
    lines = ["# Whole commands, measured side by side", "",
             "Written by `bench/run`; what each command does and how it is measured stands in `bench/compare.py`.",
             "Wall times on a small machine are noisy: differences below a quarter mean nothing; CPU is steadier.", "",
             f"Machine: {os.cpu_count()} cores, {memory_gb():.0f} GB of memory, Linux {platform.release().split('-')[0]}, "
             f"load {load_before:.2f} before the run. {time.strftime('%Y-%m-%d', time.gmtime())}.", ""]
    if load_before > 0.5:
        lines += ["**The machine was not idle: only ratios within a row say anything.**", ""]
    lines += table(["tool", "version"], [[name, version] for name, version in bench.versions.items()])
    lines += [f"- {note}" for note in bench.notes] + [""]
    for row, by_tool in sorted(found.rows.items(), key=lambda item: "(" in item[0]):
        ours = by_tool.get("pgproof")
        ours_s = statistics.median(cost.wall_s for cost in ours) if ours else None
        sampled = any(cost.peak_rss_mb for costs in by_tool.values() for cost in costs)
        lines += [f"## {row}", ""]
        head = ["tool", "runs", "wall s (median)", "p95", "CPU s (median)", "time of it / time of pgproof"]
        body = []
        for name in [name for name in names if name in by_tool]:
            costs = by_tool[name]
            wall = [cost.wall_s for cost in costs]
            median = statistics.median(wall)
            body.append([name, str(len(costs)), f"{median:.4f}" if median < 0.2 else f"{median:.2f}",
                         f"{percentile(wall, 0.95):.4f}" if median < 0.2 else f"{percentile(wall, 0.95):.2f}",
                         f"{statistics.median(cost.cpu_s for cost in costs):.2f}",
                         f"{median / ours_s:.2f}" if ours_s else "-"])
            if sampled:
                body[-1].append(f"{max(cost.peak_rss_mb for cost in costs):.0f}")
        lines += table(head + (["peak RSS of the tree, MB"] if sampled else []), body)
    lines += ["## Sizes", ""]
    lines += table(["what", "tool", "MB (median)"], [
        [row, name, f"{statistics.median(by_tool[name]):.1f}"]
        for row, by_tool in found.sizes_mb.items() for name in names if name in by_tool])
    lines += ["## Commands", "", "Paths below the scratch folder are shown as `$S`.", ""]
    for row, by_tool in bench.commands.items():
        lines += [f"- {row}:"] + [f"  - {name}: `{shown(command, bench)}`" for name, command in by_tool.items()]
    lines += [""]
    if found.failures:
        lines += ["## Failures", "", "A command that failed is in no figure above.", ""]
        lines += [f"- {row}, {name}: `{shown(error, bench)}`" for row, name, error in found.failures] + [""]
    return "\n".join(lines)


def shown(text, bench):
    return text.replace(bench.scratch, "$S").replace(bench.arguments.postgresql + "/", "")


def main():
    parser = argparse.ArgumentParser(prog="bench/run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--segments", type=int, help="WAL segments to push and get")
    parser.add_argument("--pgbench-scale", type=int, help="pgbench's scale, 15 MB each")
    parser.add_argument("--json-mb", type=int, help="megabytes of JSON rows")
    parser.add_argument("--tables", type=int, help="how many small tables (0: no such measurement)")
    parser.add_argument("--memory", metavar="GB,GB", help="database sizes for the memory measurement (0: none)")
    parser.add_argument("--pgproof", metavar="PATH", default="none")
    parser.add_argument("--pgbackrest", metavar="PATH", default=shutil.which("pgbackrest"))
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
    if arguments.memory:
        scale["memory"] = [float(size) for size in arguments.memory.split(",") if float(size) > 0]
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
        bench.run(scale)
    finally:
        for name in os.listdir(scratch):
            data = os.path.join(scratch, name, "data")
            if os.path.exists(os.path.join(data, "postmaster.pid")):
                Cluster(bench.runner, arguments.postgresql, os.path.join(scratch, name), 0).stop()
        shutil.rmtree(scratch, ignore_errors=True)
    with open(arguments.results, "w") as file:
        file.write(results(bench, load_before))
    say(f"{os.path.abspath(arguments.results)}: {len(bench.measurements.failures)} failed commands")
    sys.exit(1 if bench.measurements.failures else 0)


if __name__ == "__main__":
    main()
