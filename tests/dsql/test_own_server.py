"""DSQL's rules in the learner's own PostgreSQL: installed, kept, and removed without a trace."""

from dataclasses import replace

import psycopg2
import pytest
from click.testing import CliRunner

from workshop_lib.cli import main
from workshop_lib.database import Database
from workshop_lib.errors import SettingsError
from workshop_lib.services import local
from workshop_lib.services.endpoints import external_database
from workshop_lib.services.engines import HOST, OWNER
from workshop_lib.services.state_folder import StateFolder
from workshop_lib.settings import load_settings

OURS = """
SELECT nspname FROM pg_namespace WHERE nspname IN ('dsql_rules', 'sys')
UNION ALL SELECT evtname FROM pg_event_trigger
UNION ALL SELECT tgname FROM pg_trigger WHERE tgname LIKE 'dsql%'
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A PostgreSQL that stands for a learner's own: address and password of its superuser."""
    folder = StateFolder(tmp_path_factory.mktemp("own server").resolve())
    held = local.attach(folder, ["postgres"], load_settings().values)
    yield held.engines["postgres"].port, held.secrets
    held.release()
    local.reset(folder)


@pytest.fixture
def workshop(server, monkeypatch):
    """Runs the command as one of that server's users."""
    port, secrets = server

    def run(*words, user=OWNER):
        password = secrets["owner" if user == OWNER else user]
        monkeypatch.setenv("DATABASE_URL", f"postgresql://{user}:{password}@{HOST}:{port}/postgres")
        return CliRunner().invoke(main, list(words))

    return run


@pytest.fixture
def cursor(server, opened):
    port, secrets = server
    connection = psycopg2.connect(
        host=HOST, port=port, dbname="postgres", user=OWNER, password=secrets["owner"]
    )
    opened.callback(connection.close)
    connection.autocommit = True
    return connection.cursor()


def refuses_to_truncate(cursor, table):
    cursor.execute("SET workshop.dsql_rules = 'on'")
    with pytest.raises(psycopg2.errors.FeatureNotSupported, match="Truncate"):
        cursor.execute(f"TRUNCATE {table}")
    return True


def test_rules_are_removed_without_a_trace_and_installed_again(workshop, cursor):
    cursor.execute("CREATE TABLE IF NOT EXISTS mine (id INT)")
    done = workshop("rules", "install")
    assert (done.exit_code, done.output) == (0, "The rules are installed.\n")
    assert refuses_to_truncate(cursor, "mine")
    assert workshop("rules", "remove").output == "The rules are removed.\n"
    cursor.execute(OURS)
    assert cursor.fetchall() == []
    cursor.execute("TRUNCATE mine")
    assert workshop("rules", "remove").exit_code == 0
    for _ in range(2):
        assert workshop("rules", "install").exit_code == 0
    assert refuses_to_truncate(cursor, "mine")


def test_rules_of_another_version_are_replaced(workshop, cursor):
    assert workshop("rules", "install").exit_code == 0
    cursor.execute("CREATE TABLE IF NOT EXISTS older (id INT)")
    cursor.execute("SELECT dsql_rules.note_job('INDEX_BUILD', 'older')")
    cursor.execute(
        "CREATE VIEW of_jobs AS SELECT object_name, sys.current_session_id() FROM sys.jobs"
    )
    cursor.execute(
        "DROP EVENT TRIGGER dsql_rules_before; DROP EVENT TRIGGER dsql_rules_after;"
        "DROP FUNCTION dsql_rules.noted(text) CASCADE;"
        "CREATE FUNCTION dsql_rules.noted(another_name text) RETURNS bigint RETURN 1"
    )
    done = workshop("rules", "install")
    assert (done.exit_code, done.output) == (0, "The rules are installed.\n")
    assert refuses_to_truncate(cursor, "older")
    cursor.execute("SELECT object_name FROM of_jobs")
    assert ("older",) in cursor.fetchall()
    cursor.execute("DROP VIEW of_jobs")


def test_the_setting_decides_for_our_connections(workshop, cursor):
    cursor.execute("CREATE TABLE IF NOT EXISTS mine (id INT)")
    assert workshop("rules", "install").exit_code == 0

    def database(rules):
        return Database(external_database(load_settings(dsql_rules=rules).values), "public")

    for rules in ("auto", "off"):  # the learner's server has rules only if asked
        assert database(rules).query("TRUNCATE mine").rows == []
    with pytest.raises(psycopg2.errors.FeatureNotSupported, match="Truncate"):
        database("on").query("TRUNCATE mine")
    assert workshop("rules", "remove").exit_code == 0
    with pytest.raises(SettingsError, match="workshop rules install"):
        database("on").query("SELECT 1")


def test_off_holds_for_the_local_engine_as_well(shared):
    endpoint = replace(shared.endpoints.database, dsql_rules=False)
    unruled = Database(endpoint, shared.namespace, pool_min=1)
    unruled.query("CREATE TEMP TABLE t (id INT)")
    unruled.close()
    assert shared.endpoints.database.dsql_rules is True
    assert load_settings().values.dsql_rules == "auto"


def test_a_role_that_is_no_superuser_is_told_so(workshop):
    done = workshop("rules", "install", user="admin")
    assert done.exit_code == 1
    assert "Sign in as that server's superuser" in done.output


@pytest.mark.parametrize(
    "planted",
    [
        "CREATE SCHEMA sys AUTHORIZATION admin",
        "CREATE SCHEMA dsql_rules AUTHORIZATION admin",
        "CREATE SCHEMA sys; CREATE TABLE sys.jobs (id INT); ALTER TABLE sys.jobs OWNER TO admin",
        """CREATE SCHEMA dsql_rules;
           CREATE FUNCTION dsql_rules.active() RETURNS boolean LANGUAGE sql RETURN true;
           ALTER FUNCTION dsql_rules.active() OWNER TO admin""",
    ],
)
def test_schemas_that_another_role_owns_are_refused_and_left_alone(workshop, cursor, planted):
    assert workshop("rules", "remove").exit_code == 0
    cursor.execute("DROP SCHEMA IF EXISTS sys CASCADE")
    cursor.execute(planted)
    name = "sys" if "sys" in planted else "dsql_rules"
    cursor.execute(OURS)
    before = cursor.fetchall()
    done = workshop("rules", "install")
    cursor.execute(OURS)
    assert cursor.fetchall() == before
    cursor.execute(f"DROP SCHEMA {name} CASCADE")
    assert done.exit_code == 1
    assert f"The schema {name} belongs to the role admin" in done.output
    assert workshop("rules", "install").exit_code == 0


def test_what_others_keep_in_sys_stays_when_the_rules_go(workshop, cursor):
    assert workshop("rules", "install").exit_code == 0
    cursor.execute("CREATE VIEW mine_of_jobs AS SELECT * FROM sys.jobs")
    cursor.execute("CREATE TABLE sys.theirs (id INT)")
    assert workshop("rules", "remove").exit_code == 0
    cursor.execute("SELECT to_regclass('sys.theirs') IS NOT NULL, to_regclass('sys.jobs') IS NULL")
    assert cursor.fetchone() == (True, True)
    cursor.execute("DROP SCHEMA sys CASCADE")


def test_without_database_url_there_is_nothing_to_do(monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    done = CliRunner().invoke(main, ["rules", "install"])
    assert done.exit_code == 1
    assert "DATABASE_URL is not set" in done.output
