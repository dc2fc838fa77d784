"""Start and stop real services for tests, each by its own pid.

Everything listens on 127.0.0.1, on a port below the range from which the kernel takes ports for
outgoing connections, so that a server can come back on the port it had.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
import redis
from sqlalchemy.engine import URL, make_url

#: The longest time that a server stays frozen, in seconds: how long a caller without a limit waits.
AWAY = 10.0
AXE_SCRIPT = Path(__file__).parent / "axe/node_modules/axe-core/axe.min.js"


def free_port() -> int:
    """Return a free port on 127.0.0.1."""
    while True:
        port = random.randint(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(ready: Callable[[], object], what: str, timeout: float = 60.0) -> None:
    """Poll `ready` until it returns a true value; an exception counts as "not yet".

    :raises TimeoutError: after `timeout` seconds, with the last exception as its cause.
    """
    deadline = time.monotonic() + timeout
    reason: Exception | None = None
    while time.monotonic() < deadline:
        try:
            if ready():
                return
        except Exception as error:
            reason = error
        time.sleep(0.02)
    raise TimeoutError(f"{what} is not ready after {timeout:g} s") from reason


def redis_binary() -> str | None:
    """Return the path of the Redis server, or None."""
    return shutil.which("redis-server")


def postgres_binary(name: str) -> str | None:
    """Return the path of a PostgreSQL program, or None. Debian keeps the server's outside PATH."""
    packaged = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    return str(packaged[0]) if packaged else shutil.which(name)


def pgbouncer_binary() -> str | None:
    """Return the path of PgBouncer, or None."""
    return shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")


class Server(ABC):
    """One server process with a folder and a port of its own; a context manager."""

    name: str
    #: How long it may take to start, in seconds.
    patience = 60.0

    def __init__(self) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="byok-"))
        self.process: subprocess.Popen[bytes] | None = None
        self._thaw: threading.Timer | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @abstractmethod
    def launch(self) -> subprocess.Popen[bytes]:
        """Start the program; output goes to `self.directory / "log"`."""

    @abstractmethod
    def ready(self) -> bool:
        """Return True if the server answers; may raise instead."""

    def start(self) -> None:
        """Start the server and wait until it answers.

        :raises ChildProcessError: The program ended; the message is what it printed.
        """
        process = self.process = self.launch()
        try:
            wait_until(lambda: process.poll() is not None or self.ready(), self.name, self.patience)
            if process.poll() is not None:
                raise ChildProcessError((self.directory / "log").read_text(errors="replace"))
        except BaseException:
            self.kill()
            raise

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server, if it runs."""
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """End the server at once, as a crash does (SIGKILL)."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop_process(self) -> None:
        """Freeze the server (SIGSTOP) for at most ``AWAY``: its port accepts, nothing answers."""
        self._thaw = threading.Timer(AWAY, self.cont)
        self._thaw.daemon = True
        self._thaw.start()
        self.signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Thaw a frozen server (SIGCONT)."""
        if self._thaw is not None:
            self._thaw.cancel()
        self.signal(signal.SIGCONT)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze the server during a block."""
        self.stop_process()
        try:
            yield
        finally:
            self.cont()

    def harm(self, how: str) -> None:
        """Take the server away: it is "killed" or "frozen"."""
        self.kill() if how == "killed" else self.stop_process()

    def revive(self) -> None:
        """Bring it back, on the port that it had."""
        self.start() if self.process is None else self.cont()

    def restart(self) -> None:
        """Kill the server and start it again on the same port."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """End the server and delete its folder."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


class RedisServer(Server):
    """A Redis without files: after `kill` and `restart` it is empty."""

    name = "redis-server"

    @property
    def url(self) -> str:
        """The address of logical database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def launch(self) -> subprocess.Popen[bytes]:
        binary = redis_binary()
        if binary is None:
            raise FileNotFoundError("redis-server is not installed")
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.directory),
            "save": "",
            "appendonly": "no",
            # `dump` is searched for plain text, which compression would hide.
            "rdbcompression": "no",
        }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen([binary, *arguments], stdout=log, stderr=log)

    def ready(self) -> bool:
        with redis.Redis.from_url(self.url, socket_timeout=1) as client:
            return bool(client.ping())

    def dump(self) -> bytes:
        """Return all keys and values of all logical databases, uncompressed."""
        file = self.directory / "dump.rdb"
        with redis.Redis.from_url(self.url) as client:
            client.save()
        data = file.read_bytes()
        file.unlink()  # else a restart would load it
        return data


class PostgresServer(Server):
    """A PostgreSQL with a cluster of its own; user `byok`, no password, no unix socket.

    :param settings: Further settings of the server.
    """

    name = "postgres"

    def __init__(self, **settings: str) -> None:
        super().__init__()
        self.settings = settings

    @property
    def url(self) -> str:
        """The address of the maintenance database, for SQLAlchemy with psycopg."""
        return f"postgresql+psycopg://byok@127.0.0.1:{self.port}/postgres"

    def launch(self) -> subprocess.Popen[bytes]:
        data = self.directory / "data"
        if not data.exists():
            self._initdb(data)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "fsync": "off",
            **self.settings,
        }
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return self._run("postgres", "-D", str(data), *arguments)

    def ready(self) -> bool:
        with psycopg.connect(_conninfo(make_url(self.url)), connect_timeout=1):
            return True

    def create_database(self) -> str:
        """Make an empty database and return its address."""
        return create_database(self.url)

    def written(self, database_url: str) -> dict[str, bytes]:
        """Return all that the server has written about a database, by the kind of place.

        The places are the files of its tables and indexes, those of the whole server, the
        write-ahead log, the server's log, and a dump.
        """
        with psycopg.connect(_conninfo(_psycopg_url(database_url)), autocommit=True) as connection:
            connection.execute("CHECKPOINT")
            found = connection.execute(
                "SELECT oid FROM pg_database WHERE datname = current_database()"
            ).fetchone()
        assert found is not None
        data = self.directory / "data"
        return {
            "heap": _content(data / "base" / str(found[0])),
            "global tables": _content(data / "global"),
            "WAL": _write_ahead_log(data / "pg_wal"),
            "statement log": (self.directory / "log").read_bytes(),
            "dump": self.dump(database_url),
        }

    def dump(self, database_url: str) -> bytes:
        """Return a database as `pg_dump` writes it."""
        binary = postgres_binary("pg_dump")
        if binary is None:
            raise FileNotFoundError("pg_dump is not installed")
        address = _conninfo(_psycopg_url(database_url))
        return subprocess.run([binary, "-d", address], check=True, stdout=subprocess.PIPE).stdout

    def kill(self) -> None:
        """End the server and its children at once; a child left alone could answer once more."""
        children = self._children()
        super().kill()
        _signal_all(children, signal.SIGKILL)
        wait_until(lambda: not any(map(_is_running, children)), "the end of PostgreSQL's children")

    def stop_process(self) -> None:
        """Freeze the server, then its children: connections are accepted, nothing answers."""
        super().stop_process()
        _signal_all(self._children(), signal.SIGSTOP)

    def cont(self) -> None:
        """Thaw a frozen server with its children."""
        _signal_all(self._children(), signal.SIGCONT)
        super().cont()

    def _children(self) -> list[int]:
        if self.process is None:
            return []
        pid = self.process.pid
        listed = Path(f"/proc/{pid}/task/{pid}/children")
        try:
            return [int(child) for child in listed.read_text().split()]
        except FileNotFoundError:  # it has ended
            return []

    def stop(self) -> None:
        """End the server with its children (fast shutdown) and delete its folder."""
        if self.process is not None:
            self.cont()
            self.signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        super().stop()

    def _initdb(self, data: Path) -> None:
        if os.geteuid() == 0:
            shutil.chown(self.directory, "postgres", "postgres")
        arguments = ["-U", "byok", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        if self._run("initdb", "-D", str(data), *arguments).wait(60) != 0:
            raise ChildProcessError((self.directory / "log").read_text(errors="replace"))

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        binary = postgres_binary(program)
        if binary is None:
            raise FileNotFoundError(f"{program} is not installed")
        # PostgreSQL refuses to run as root.
        user = "postgres" if os.geteuid() == 0 else None
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                [binary, *arguments],
                cwd=self.directory,
                stdout=log,
                stderr=log,
                user=user,
                group=user,
                extra_groups=[] if user else None,
            )


class PgBouncer(Server):
    """A PgBouncer in transaction mode in front of one database, with two connections to its server.

    :param settings: Further settings of the pooler.
    """

    name = "pgbouncer"

    def __init__(self, server: PostgresServer, database_url: str, **settings: str) -> None:
        super().__init__()
        self.server, self.database = server, make_url(database_url).database
        self.settings = settings

    @property
    def url(self) -> str:
        """The address of the database through the pooler, for SQLAlchemy with psycopg."""
        return f"postgresql+psycopg://byok@127.0.0.1:{self.port}/{self.database}"

    def launch(self) -> subprocess.Popen[bytes]:
        binary = pgbouncer_binary()
        if binary is None:
            raise FileNotFoundError("PgBouncer is not installed")
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": "2",
            "max_client_conn": "500",
            **self.settings,
        }
        target = f"host=127.0.0.1 port={self.server.port} user=byok"
        lines = ["[databases]", f"{self.database} = {target}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        (self.directory / "conf").write_text("\n".join([*lines, ""]))
        user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
        if user:
            self.directory.chmod(0o755)
        with (self.directory / "log").open("ab") as log:
            command = [binary, str(self.directory / "conf")]
            return subprocess.Popen(
                command, stdout=log, stderr=log, user=user, extra_groups=[] if user else None
            )

    def ready(self) -> bool:
        with psycopg.connect(_conninfo(make_url(self.url)), connect_timeout=1):
            return True


def _content(directory: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def _write_ahead_log(directory: Path) -> bytes:
    """Return the log's records. A record continues after the header of the next page.

    A segment's first page has a long header (PostgreSQL, `access/xlog_internal.h`: 24 and 40 bytes).
    """
    parts = []
    for segment in sorted(path for path in directory.iterdir() if path.is_file()):
        content = segment.read_bytes()
        parts.append(content[40:8192])
        parts += [content[start + 24 : start + 8192] for start in range(8192, len(content), 8192)]
    return b"".join(parts)


def _is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return (
        stat.rpartition(")")[2].split()[0] not in "ZX"
    )  # ended, but not yet collected by its parent


def _signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def create_database(server_url: str) -> str:
    """Make an empty database on the PostgreSQL at `server_url` and return its address."""
    url = _psycopg_url(server_url)
    name = f"byok_{uuid.uuid4().hex}"
    with psycopg.connect(_conninfo(url), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return url.set(database=name).render_as_string(hide_password=False)


@contextlib.contextmanager
def limited_user(database_url: str) -> Iterator[str]:
    """Make a user without the right to create anything, and yield the database's address for it."""
    url, role = _psycopg_url(database_url), f"app_{uuid.uuid4().hex}"
    with psycopg.connect(_conninfo(url), autocommit=True) as connection:
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        connection.execute(f"CREATE ROLE {role} LOGIN")
    yield url.set(username=role).render_as_string(hide_password=False)
    with psycopg.connect(_conninfo(url), autocommit=True) as connection:
        connection.execute(f"DROP OWNED BY {role}")
        connection.execute(f"DROP ROLE {role}")


def drop_database(url: str, server_url: str) -> None:
    """Delete a database made by `create_database`, and end its connections."""
    with psycopg.connect(_conninfo(_psycopg_url(server_url)), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{make_url(url).database}" WITH (FORCE)'.encode())


def _psycopg_url(url: str) -> URL:
    return make_url(url).set(drivername="postgresql+psycopg")


def _conninfo(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)
