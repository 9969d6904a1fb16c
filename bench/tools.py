"""The tools that are compared, each by its whole commands as an operator would type them.

A tool's `begin` makes a new, empty repository and is never timed. A command that a tool does not have is None. Its
`key` stays the same whatever its version is called; aims and bounds go by it.
"""

import os
import re

PGPROOF = "pgproof"
LZ4 = "pg_basebackup-lz4"
ZSTD = "pg_basebackup-zstd"
BEST = "pgbackrest-best"
PLAIN = "pgbackrest-plain"
ASYNC = "pgbackrest-async"
CP = "cp"


def folder_bytes(folder):
    return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(folder) for name in names)


def forget_cache(folder):
    """The pages of all files below it leave the page cache."""
    for at, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(at, name)
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


class Tool:
    archive = None  # its archive_command
    ends_after_s = 0.5  # what its archive_command has left behind has ended
    wal_push = wal_get = verify = second = verify_stored = verify_restored = restore_delta = None

    def __init__(self, key, name, cluster, runner, home):
        self.key = key
        self.name = name
        self.cluster = cluster
        self.runner = runner
        self.home = home
        self.repository = os.path.join(home, "repository")

    def make_home(self):
        self.cluster.archive_with(None)
        self.runner.run(["mkdir", "-p", self.home], self.cluster.folder)

    def repository_bytes(self):
        return folder_bytes(self.repository)

    def forget_cache(self):
        """The repository's pages leave the page cache, as they would on a restore after a disaster."""
        forget_cache(self.repository)


class PgBaseBackup(Tool):
    """tar, compressed by the server, with the WAL it needs (without, it waits for the archiver in steps of one
    second); restored by tar and one sync, and verified on what was restored, for it cannot read tar."""

    def __init__(self, method, *rest):
        super().__init__(f"pg_basebackup-{method}", f"pg_basebackup {method}", *rest)
        self.method = method
        self.program = os.path.join(self.cluster.programs, "pg_basebackup")
        level = ":level=1" if method == "zstd" else ""
        self.full = [self.program, "-d", self.cluster.conninfo, "-D", self.repository, "-Ft", "-X", "fetch",
                     "-c", "fast", f"--compress=server-{method}{level}"]
        self.start = [self.program, "--version"]

    @property
    def version(self):
        return self.runner.run([self.program, "--version"], self.cluster.folder).output.strip()

    def begin(self):
        self.make_home()

    def restore(self, into):
        suffix, decompress = ("lz4", "lz4 -dc") if self.method == "lz4" else ("zst", "zstd -dcq")
        return ["sh", "-c", f"mkdir -m 700 '{into}' && {decompress} '{self.repository}/base.tar.{suffix}' | "
                            f"tar -x -C '{into}' && sync -f '{into}'"]

    def verify_restored(self, restored):
        return [os.path.join(self.cluster.programs, "pg_verifybackup"), "-n", "-q",
                "-m", os.path.join(self.repository, "backup_manifest"), restored]


class Copy(Tool):
    """What a plain shell command costs: the floor for WAL."""

    def __init__(self, *rest):
        super().__init__(CP, "cp", *rest)
        self.full = self.start = None

    def begin(self):
        self.make_home()
        self.runner.run(["mkdir", self.repository], self.cluster.folder)

    def wal_push(self, path):
        kept = os.path.join(self.repository, os.path.basename(path))
        return ["sh", "-c", f"cp '{path}' '{kept}.tmp' && sync '{kept}.tmp' && mv '{kept}.tmp' '{kept}' && "
                            f"sync '{self.repository}'"]

    def wal_get(self, name, path):
        return ["cp", os.path.join(self.repository, name), path]


class PgBackRest(Tool):
    """With two processes and zstd level 1; `best`: also encryption, bundles, and block incremental (from 2.46)."""

    def __init__(self, program, best, *rest):
        super().__init__(BEST if best else PLAIN, "pgBackRest, plain", *rest)
        self.program = program
        self.best = best
        self.blocks = best and tuple(int(part) for part in re.findall(r"\d+", self.version)[:2]) >= (2, 46)
        if best:
            self.name = "pgBackRest, encrypted, bundles" + (", blocks" if self.blocks else "")
        self.base = [program, f"--config={self.home}/pgbackrest.conf", "--stanza=bench"]
        self.full = [*self.base, "--type=full", "backup"]
        self.second = [*self.base, "--type=incr", "backup"]
        self.verify = [*self.base, "verify"]
        self.start = [program, "version"]
        self.archive = " ".join(self.base) + ' archive-push %p'

    @property
    def version(self):
        return self.runner.run([self.program, "version"], self.cluster.folder).output.strip()

    def options(self):
        options = {
            "repo1-path": self.repository, "log-path": self.home, "lock-path": f"{self.home}/lock",
            "spool-path": f"{self.home}/spool", "log-level-file": "off", "log-level-console": "warn",
            "process-max": 2, "compress-type": "zst", "compress-level": 1, "start-fast": "y",
            "repo1-retention-full": 100}
        if self.best:
            options |= {"repo1-cipher-type": "aes-256-cbc", "repo1-cipher-pass": "measuring-only", "repo1-bundle": "y"}
        if self.blocks:
            options["repo1-block"] = "y"
        return options

    def begin(self):
        self.make_home()
        path = f"{self.home}/pgbackrest.conf"
        with open(path, "w") as configuration:
            configuration.write("[global]\n")
            configuration.writelines(f"{name}={value}\n" for name, value in self.options().items())
            configuration.write(f"[bench]\npg1-path={self.cluster.data}\npg1-socket-path={self.cluster.sockets}\n"
                                f"pg1-port={self.cluster.port}\npg1-user=postgres\n")
        os.chmod(path, 0o644)
        self.runner.run([*self.base, "stanza-create"], self.cluster.folder)

    def restore(self, into):
        restore = f"{' '.join(self.base)} '--pg1-path={into}' --type=immediate restore"
        return ["sh", "-c", f"mkdir -m 700 '{into}' && {restore}"]

    def restore_delta(self, into):
        return [*self.base, f"--pg1-path={into}", "--delta", "--type=immediate", "restore"]

    def recover_to(self, into, time, server):
        """Restores, starts the server and waits until it stands at the time and accepts a session. `server`: words for
        pg_ctl that keep the copy apart, and a connection to it."""
        options, conninfo = server
        programs = self.cluster.programs
        state = f"{programs}/psql -X -q -A -t -d '{conninfo}' -c 'select pg_get_wal_replay_pause_state()'"
        return ["sh", "-c",
                f"mkdir -m 700 '{into}' && {' '.join(self.base)} '--pg1-path={into}' --type=time '--target={time}' "
                f"--target-action=pause restore && {programs}/pg_ctl -D '{into}' -s -w -t 600 -l '{into}.log' "
                f"-o '{options}' start && until [ \"$({state})\" = paused ]; do sleep 0.02; done"]

    def wal_push(self, path):
        return [*self.base, "archive-push", path]

    def wal_get(self, name, path):
        return [*self.base, "archive-get", name, path]


class PgBackRestAsync(PgBackRest):
    """Pushes and fetches ahead."""

    ends_after_s = 3

    def __init__(self, *rest):
        super().__init__(*rest)
        self.key = ASYNC
        self.name = "pgBackRest, async" + (", encrypted" if self.best else "")

    def options(self):
        return super().options() | {"archive-async": "y"}


class PgProof(Tool):
    """Always encrypted; there is one kind of backup."""

    ends_after_s = 6

    def __init__(self, program, *rest):
        super().__init__(PGPROOF, "pgproof", *rest)
        self.program = program
        self.base = [program, "--config", f"{self.home}/pgproof.toml"]
        self.full = self.second = [*self.base, "backup"]
        self.verify = [*self.base, "verify"]
        self.verify_stored = [*self.base, "verify", "--no-decode"]
        self.start = [program, "--version"]
        self.archive = " ".join(self.base) + ' wal push %p'

    @property
    def version(self):
        return self.runner.run([self.program, "--version"], self.cluster.folder).output.strip()

    def begin(self):
        self.make_home()
        self.init(f"file://{self.repository}")

    def init(self, repository, *more):
        self.runner.run([*self.base, "init", "--connection", self.cluster.conninfo,
                         "--data-directory", self.cluster.data, "--cluster", "bench", "--repository", repository,
                         "--replace-archive-command", *more],
                        self.cluster.folder)

    def configure(self, section, text):
        """Puts lines into the configuration, before its first section of that name or at its end."""
        path = f"{self.home}/pgproof.toml"
        with open(path) as lines:
            written = lines.read()
        if text in written:
            return
        at = written.find(f"\n[{section}")
        at = len(written) if at < 0 else at
        with open(path, "w") as lines:
            lines.write(f"{written[:at]}\n{text}\n{written[at:]}")

    def restore(self, into):
        return [*self.base, "restore", "--to", "immediate", "--into", into]

    def wal_push(self, path):
        return [*self.base, "wal", "push", path]

    def wal_get(self, name, path):
        return [*self.base, "wal", "get", name, path]

    def restore_delta(self, into):
        return [*self.base, "restore", "--delta", "--confirm", "bench", "--to", "immediate", "--into", into]

    def drill_to(self, time, directory):
        return [*self.base, "drill", "run", "measured", "--target", time, "--directory", directory, "--json"]


class PgProofPlain(PgProof):
    """Neither pushes nor fetches ahead."""

    ends_after_s = 0.5

    def __init__(self, *rest):
        super().__init__(*rest)
        self.key = "pgproof-plain"
        self.name = "pgproof, nothing ahead"

    def init(self, *rest):
        super().init(*rest)
        self.configure("copy.", 'archive = { push_ahead = 0, prefetch = "0 MB" }')
