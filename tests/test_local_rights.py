"""What the local `admin` plants gains it nothing: not now, not when the engines start again."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import psycopg2
import pytest

from workshop_lib.services import local
from workshop_lib.services.engines import HOST, OWNER
from workshop_lib.services.state_folder import StateFolder
from workshop_lib.settings import load_settings

TYPES = [
    "text", "name", "varchar", "bpchar", '"char"', "bool", "int2", "int4", "int8", "numeric", "oid",
    "regclass", "regtype", "regproc", "interval", "timestamptz", "anyelement",
]  # fmt: skip
OPERATORS = ["=", "<>", "!~", "~", "~~", "||", "+", "-", ">", "<", ">=", "<="]
FUNCTIONS = [
    "format", "set_config", "current_setting", "pg_column_size", "substr", "md5", "random",
    "clock_timestamp", "transaction_timestamp", "make_interval", "to_regnamespace",
    "pg_event_trigger_ddl_commands",
]  # fmt: skip
TRAP = "LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught(); {} END $$"
PLANTED_SCHEMAS = ("public", OWNER)  # a role's search path begins with the schema of its name
ATTRIBUTES = "rolsuper, rolcreatedb, rolreplication, rolbypassrls"
DESPERATE = [
    "ALTER ROLE admin SUPERUSER",
    "ALTER ROLE workshop_owner SET search_path = public",
    "ALTER ROLE ALL SET search_path = public",
    "ALTER DATABASE postgres SET search_path = public",
    "ALTER SYSTEM SET search_path = 'public'",
    "SET ROLE workshop_owner",
    "SET SESSION AUTHORIZATION workshop_owner",
    "REASSIGN OWNED BY workshop_owner TO admin",
    "GRANT workshop_owner TO admin",
    "GRANT pg_execute_server_program TO admin",
    "CREATE ROLE boss IN ROLE workshop_owner",
    "CREATE ROLE boss BYPASSRLS",
    "SELECT FROM pg_authid",
    "CREATE LANGUAGE plpython3u",
    "CREATE FUNCTION f(cstring) RETURNS cstring LANGUAGE internal AS 'int4in'",
    "CREATE EVENT TRIGGER mine ON ddl_command_end EXECUTE FUNCTION public.trap_event()",
    "CREATE OR REPLACE FUNCTION dsql_rules.active() RETURNS boolean LANGUAGE sql RETURN true",
    "CREATE TABLE sys.mine (id INT)",
    "DROP SCHEMA sys CASCADE",
    "DROP EVENT TRIGGER dsql_rules_before",
    "CREATE RULE mine AS ON INSERT TO sys.jobs DO ALSO SELECT public.caught()",
    "CREATE TRIGGER mine AFTER INSERT ON dsql_rules.doomed EXECUTE FUNCTION public.trap_trigger()",
    "INSERT INTO sys.jobs SELECT 'x', 'x', 'x', 'x', 1, 1, 'x', now(), now()",
    "ALTER DEFAULT PRIVILEGES FOR ROLE workshop_owner GRANT ALL ON TABLES TO admin",
    "LOAD 'vector'",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "SELECT pg_read_file('/etc/hosts')",
]


class Server:
    """A local PostgreSQL of these tests alone, that can be started again."""

    def __init__(self, folder: StateFolder) -> None:
        self.folder = folder
        self.held = self._attach()

    def _attach(self) -> local.Attachment:
        return local.attach(self.folder, ["postgres"], load_settings().values)

    def attach(self) -> None:
        """Open once more beside what is open."""
        self._attach().release()

    def restart(self) -> None:
        local.stop(self.folder)
        self.held.release()
        self.held = self._attach()

    @contextlib.contextmanager
    def cursor(
        self, user: str = "admin", *, rules: bool = False
    ) -> Iterator[psycopg2.extensions.cursor]:
        secrets = self.held.secrets
        with contextlib.closing(
            psycopg2.connect(
                host=HOST,
                port=self.held.engines["postgres"].port,
                user=user,
                password=secrets["owner" if user == OWNER else user],
                dbname="postgres",
            )
        ) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(f"SET workshop.dsql_rules = '{'on' if rules else 'off'}'")
            yield cursor

    def one(self, question: str, user: str = OWNER) -> object:
        with self.cursor(user) as cursor:
            cursor.execute(question)
            return cursor.fetchone()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = StateFolder(tmp_path_factory.mktemp("rights").resolve())
    server = Server(folder)
    yield server
    server.held.release()
    local.reset(folder)


def plant(cursor, *statements):
    """Execute each; what PostgreSQL refuses is not what this is about. Returns how many it took."""
    count = 0
    for statement in statements:
        with contextlib.suppress(psycopg2.Error):
            cursor.execute(statement)
            count += 1
    return count


@pytest.fixture(scope="module")
def planted(server):
    """All that admin can put where others might run it; each records who else than admin runs it.

    A sequence, as it keeps its value when the transaction is rolled back.
    """
    with server.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")
        cursor.execute("CREATE SEQUENCE public.catches")
        cursor.execute(
            "CREATE FUNCTION public.caught() RETURNS text LANGUAGE plpgsql AS $$ BEGIN "
            "IF current_user::text OPERATOR(pg_catalog.<>) 'admin'::text THEN "
            "PERFORM nextval('public.catches'); EXECUTE 'ALTER ROLE admin SUPERUSER'; "
            "END IF; RETURN ''; END $$"
        )
        cursor.execute(
            f"CREATE FUNCTION public.trap_trigger() RETURNS trigger {TRAP.format('RETURN NEW;')}"
        )
        plant(
            cursor, f"CREATE FUNCTION public.trap_event() RETURNS event_trigger {TRAP.format('')}"
        )
        for schema in PLANTED_SCHEMAS:
            plant(cursor, f'CREATE SCHEMA "{schema}"')
            plant_operators_and_functions(cursor, schema)
        plant_objects(cursor)
        for role in ("admin", "admin IN DATABASE postgres"):
            cursor.execute(f"ALTER ROLE {role} SET search_path = public, pg_catalog")
    return server


def plant_operators_and_functions(cursor, schema):
    """Operators for each pair of types that has none, and functions named as PostgreSQL's."""
    traps = {
        (left, right): f'CREATE FUNCTION "{schema}".trap({left}, {right}) RETURNS bool '
        + TRAP.format("RETURN true;")
        for left, right in itertools.product(TYPES, TYPES)
    }
    operators = [
        f'CREATE OPERATOR "{schema}".{operator} '
        f'(LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = "{schema}".trap)'
        for left, right in traps
        for operator in OPERATORS
    ]
    plant(cursor, *traps.values())
    assert plant(cursor, *operators) > 250
    arguments = ["", "text", "record", "anyelement", "VARIADIC text[]", "bigint", "int", "oid"]
    arguments += [f"text, {kind}" for kind in TYPES] + ["text, text, bool", "text, int, int"]
    body = "RETURNS text " + TRAP.format("RETURN 'x';")
    functions = [
        f'CREATE FUNCTION "{schema}".{name}({taken}) {body}'
        for name in FUNCTIONS
        for taken in arguments
    ]
    assert plant(cursor, *functions) > 50


def plant_objects(cursor):
    """Tables and views that shadow the catalogs, and a table whose every part runs code."""
    names = "pg_class pg_trigger pg_roles pg_namespace pg_attribute pg_type pg_proc jobs doomed"
    for schema, name in itertools.product(PLANTED_SCHEMAS, names.split()):
        cursor.execute(
            f'CREATE VIEW "{schema}".{name} AS SELECT public.caught() AS trap, 1::oid AS oid, '
            "'admin'::name AS rolname"
        )
    domains = ("text", "regclass", "bigint", "int8")
    plant(cursor, *(f"CREATE DOMAIN public.{name} AS pg_catalog.text" for name in domains))
    # Made without the rules: the next start is to attach them.
    cursor.execute(
        'CREATE TABLE public."trap\'; SELECT caught(); --" (r INT DEFAULT 0, row_count INT);'
        "CREATE TABLE public.trapped (id INT, r INT, n INT);"
        "CREATE FUNCTION public.indexed(int) RETURNS int IMMUTABLE "
        + TRAP.format("RETURN 1;")
        + ";CREATE INDEX ON public.trapped (public.indexed(id));"
        "CREATE TRIGGER dsql_rules_update AFTER UPDATE ON public.trapped "
        "FOR EACH ROW EXECUTE FUNCTION public.trap_trigger();"
        "CREATE TABLE public.parent (id INT) PARTITION BY LIST (id);"
        "CREATE TABLE public.part PARTITION OF public.parent DEFAULT;"
        "CREATE TRIGGER dsql_rules_update AFTER UPDATE ON public.parent "
        "FOR EACH ROW EXECUTE FUNCTION public.trap_trigger();"
        "CREATE VIEW public.of_jobs AS SELECT * FROM sys.jobs"
    )


def nothing_gained(server):
    assert server.one("SELECT is_called FROM public.catches") == (False,)
    assert server.one(f"SELECT {ATTRIBUTES} FROM pg_roles WHERE rolname = 'admin'") == (False,) * 4
    assert server.one("SELECT rolconfig FROM pg_roles WHERE rolname = 'workshop_owner'") == (None,)
    granted = "SELECT count(*) FROM pg_auth_members WHERE member = 'admin'::regrole"
    assert server.one(f"{granted} AND roleid < 16384") == (0,)


def test_admin_may_not(planted):
    with planted.cursor() as cursor:
        for statement in DESPERATE:
            with pytest.raises(psycopg2.Error) as refused:
                cursor.execute(statement)
            code = refused.value.pgcode
            assert code in {"42501", "42704", "0A000", "0LP01", "42P17", "42809"}, statement


def test_nothing_that_admin_planted_runs_as_the_owner_when_the_engines_start_again(planted):
    for _ in range(2):
        planted.restart()
        nothing_gained(planted)
    every_table_has_the_rules(planted)
    nothing_is_gained_when_the_owner_works_with_the_rules_on(planted)


def nothing_is_gained_when_the_owner_works_with_the_rules_on(planted):
    statements = [
        "CREATE TABLE public.of_owner (id BIGINT PRIMARY KEY, r INT, n INT)",
        "CREATE TABLE public.other (id BIGINT GENERATED ALWAYS AS IDENTITY, tags TEXT[])",
        "ALTER TABLE public.of_owner ADD COLUMN t INT",
        "CREATE FUNCTION public.p() RETURNS INT LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'",
        "CREATE INDEX ON public.of_owner (n)",
        "INSERT INTO public.of_owner VALUES (1, 1, 1)",
        "UPDATE public.of_owner SET n = 2",
        "DELETE FROM public.of_owner",
        "SELECT dsql_rules.run_job('INDEX_BUILD', 'CREATE INDEX ON public.of_owner (n)')",
        "CALL dsql_rules.drop_columns('public.of_owner', '[\"id\"]', 'SELECT 1')",
        "SELECT dsql_rules.doom('40001', 'no')",
        "CALL sys.wait_for_job('x')",
    ]
    with planted.cursor(OWNER, rules=True) as cursor:
        assert plant(cursor, *statements) > 4
    nothing_gained(planted)


def every_table_has_the_rules(planted):
    with planted.cursor(rules=True) as cursor:
        with pytest.raises(psycopg2.errors.FeatureNotSupported, match="Truncate"):
            cursor.execute("TRUNCATE public.trapped")
        cursor.execute("INSERT INTO public.trapped SELECT 1, 1, 1 FROM generate_series(1, 3000)")
        with pytest.raises(psycopg2.errors.ProgramLimitExceeded, match="row limit"):
            cursor.execute("UPDATE public.trapped SET n = 1; UPDATE public.trapped SET n = 2")


@pytest.mark.parametrize(
    "change",
    [
        "PASSWORD 'mine'",
        "PASSWORD NULL",
        "IN DATABASE postgres SET local_preload_libraries = 'missing'",
    ],
)
def test_who_locks_itself_out_is_let_in_by_the_next_opening(server, change):
    with server.cursor() as cursor:
        cursor.execute(f"ALTER ROLE admin {change}")
    with pytest.raises(psycopg2.OperationalError), server.cursor():
        pass
    server.attach()
    assert server.one("SELECT current_user", "admin") == ("admin",)


@pytest.mark.parametrize(
    "held",
    [
        "LOCK TABLE dsql_rules.doomed IN ROW EXCLUSIVE MODE",
        "SELECT FROM sys.jobs",
        "ALTER ROLE admin SET work_mem = '8MB'",  # in another catalog than the password
    ],
)
def test_an_open_transaction_of_admin_s_keeps_nobody_out(server, held):
    with server.cursor() as holder, server.cursor() as other:
        holder.execute("BEGIN")
        holder.execute(held)
        other.execute("ALTER ROLE admin PASSWORD 'mine'")
        server.attach()
    assert server.one("SELECT current_user", "admin") == ("admin",)


def test_a_start_gives_back_what_admin_gave_away_and_takes_back_what_it_should_not_have(server):
    with server.cursor() as cursor:
        cursor.execute("DROP OWNED BY admin")
        cursor.execute("ALTER ROLE admin SET default_transaction_read_only = on")
    with server.cursor(OWNER) as cursor:
        cursor.execute("ALTER ROLE admin SUPERUSER CREATEDB REPLICATION BYPASSRLS")
        cursor.execute("GRANT pg_monitor TO admin")
    server.restart()
    with server.cursor() as cursor:
        cursor.execute("CREATE SCHEMA again; CREATE TABLE public.again (id INT)")
    assert server.one(f"SELECT {ATTRIBUTES} FROM pg_roles WHERE rolname = 'admin'") == (False,) * 4
    assert server.one("SELECT pg_has_role('admin', 'pg_monitor', 'MEMBER')") == (False,)
