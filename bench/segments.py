"""WAL segment by segment: pushed and fetched by themselves, ahead of the server under load, and what a bucket is
asked for each.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import ahead
from measure import CommandFailed
from rounds import say
from tools import PGPROOF, PgProof, PgProofPlain


def one_by_one(bench, cluster, count, suffix="", memory=False, keys=None):
    """`wal push` and `wal get` of each of so many segments."""
    say(f"WAL: {count} segments{suffix}")
    cluster.archive_with(None)
    tools = [tool for tool in bench.tools(cluster, "w" + suffix[:2].strip("( "), with_copy=True)
             if tool.wal_push and (keys is None or tool.key in keys) and bench.begin(tool)]
    paths = cluster.write_wal(count)
    destination = os.path.join(cluster.folder, "fetched")
    for row in (f"wal push{suffix}", f"wal get{suffix}"):
        for number, path in enumerate(paths):
            for tool in tools[number % len(tools):] + tools[:number % len(tools)]:
                if row.startswith("wal push"):
                    bench.measure(row, tool, tool.wal_push(path), memory)
                    continue
                if os.path.exists(destination):
                    os.unlink(destination)
                if bench.measure(row, tool, tool.wal_get(os.path.basename(path), destination), memory):
                    bench.check(row, tool, lambda path=path: must_be_equal(destination, path))


def must_be_equal(one, other):
    with open(one, "rb") as first, open(other, "rb") as second:
        if first.read() != second.read():
            raise CommandFailed(f"{other} came back different")


def under_load(bench, cluster, segments, rounds):
    """Pushing and fetching ahead (bench/ahead.py); then, with the same segments, the requests to a bucket."""
    say(f"WAL under load: {segments} segments, {rounds} rounds")
    tools = ahead.tools_for(cluster, bench.runner, cluster.folder, bench.arguments.pgproof, bench.arguments.pgbackrest)

    def take(row, tool, cost):
        bench.measurements.add(row, tool, cost)
        bench.commands.setdefault(row.split(" (")[0], {}).setdefault(tool.key, tool.archive)
    try:
        names = ahead.compare(cluster, tools, segments, rounds, 0.1, take)
    except CommandFailed as error:
        bench.measurements.failed("wal push, many wait", tools[0], error)
        return
    if bench.arguments.pgproof != "none":
        if bench.arguments.moto:
            requests(bench, cluster, names[:10])
        else:
            bench.notes.append("No server of S3 is here (moto): requests were not counted.")


class Bucket:
    """moto's server with one bucket, and its log, a line for each request."""

    def __init__(self, program, folder):
        self.log_path = os.path.join(folder, "moto.log")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{port}"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/bench", method="PUT")).close()
                return
            except OSError:
                if time.monotonic() > end or self.process.poll() is not None:
                    self.stop()
                    raise CommandFailed("moto does not answer") from None
                time.sleep(0.1)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def requests(self):
        """How many of each kind there were so far; LIST is told from GET."""
        counts = {}
        with open(self.log_path, errors="replace") as lines:
            for line in lines:
                found = re.search(r'"?(GET|PUT|POST|HEAD|DELETE) (/bench\S*) HTTP', line)
                if found:
                    method, path = found.groups()
                    kind = "LIST" if method == "GET" and "list-type" in path else method
                    counts[kind] = counts.get(kind, 0) + 1
        return counts


def requests(bench, cluster, names):
    """What a bucket is asked for each segment: pushed one by one, by the process that pushes ahead, and fetched."""
    say("Requests to S3")
    home = os.path.join(cluster.folder, "s3")
    try:
        bucket = Bucket(bench.arguments.moto, bench.scratch)
    except (CommandFailed, OSError) as error:
        bench.notes.append(f"Requests to S3 were not counted: {error}.")
        return
    paths = [os.path.join(cluster.data, "pg_wal", name) for name in names]
    fetched = os.path.join(cluster.folder, "fetched")
    try:
        # Nothing ahead, so that each command asks for its own segment only. The first push claims the timeline as well.
        tool = begin_in(bucket, bench, cluster, PgProofPlain, home)
        bench.runner.run(tool.wal_push(paths[0]), cluster.folder)
        count(bench, bucket, "S3 requests for a segment", tool, paths[1:], [tool.wal_push(path) for path in paths[1:]])
        count(bench, bucket, "S3 requests to fetch a segment", tool, paths[1:],
              [tool.wal_get(os.path.basename(path), fetched) for path in paths[1:]])
        # What `wal push` leaves behind when more segments wait.
        tool = begin_in(bucket, bench, cluster, PgProof, home)
        ahead.mark_as_waiting(cluster, names)
        count(bench, bucket, "S3 requests for a segment, pushed ahead", tool, paths,
              [[*tool.base, "wal", "push-ahead", "--cluster", "bench", paths[0]]])
    except CommandFailed as error:
        bench.measurements.failed("S3 requests for a segment", tool, error)
    finally:
        bucket.stop()
        shutil.rmtree(home, ignore_errors=True)


def begin_in(bucket, bench, cluster, kind, home):
    tool = kind(bench.arguments.pgproof, cluster, bench.runner, os.path.join(home, kind.__name__))
    tool.key = PGPROOF
    tool.make_home()
    credentials = os.path.join(tool.home, "credentials")
    lines = r"[default]\naws_access_key_id = bench\naws_secret_access_key = bench\n"
    tool.runner.run(["sh", "-c", f"umask 077; printf '{lines}' > '{credentials}'"], cluster.folder)
    tool.init(f"s3://bench/{kind.__name__}", "--endpoint", bucket.endpoint, "--allow-http", "--region", "us-east-1",
              "--credentials-file", credentials)
    cluster.archive_with("exit 1")
    return tool


def count(bench, bucket, row, tool, segments, commands):
    before = bucket.requests()
    for command in commands:
        bench.commands.setdefault(row, {}).setdefault(tool.key, " ".join(command))
        bench.runner.run(command, tool.cluster.folder)
    after = bucket.requests()
    each = {kind: (number - before.get(kind, 0)) / len(segments) for kind, number in sorted(after.items())
            if number > before.get(kind, 0)}
    for kind, number in [*each.items(), ("all", sum(each.values()))]:
        bench.measurements.requests.setdefault(f"{row}: {kind}", {}).setdefault(tool.key, []).append(number)
