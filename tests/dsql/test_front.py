"""The local Aurora DSQL, met by clients of all kinds: well-behaved, wrong, hostile."""

import contextlib
import io
import os
import shlex
import signal
import socket
import ssl
import struct
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import boto3
import certifi
import psutil
import psycopg2
import pytest
from click.testing import CliRunner
from psycopg2 import errors
from serving import InThread

from workshop_lib.cli import main
from workshop_lib.dsql import CLUSTER_NAMES, Rate, read_token, wire
from workshop_lib.dsql.front import local_cluster
from workshop_lib.services import local
from workshop_lib.services.processes import wait_until

DENIED = "unable to accept connection, access denied"
OC000 = r"change conflicts with another transaction \(OC000\)"
REFUSED = "unsupported statement: Truncate"


@pytest.fixture
def table(cursor):
    """An empty table t (n, v)."""
    cursor.execute("DROP TABLE IF EXISTS t")
    cursor.execute("CREATE TABLE t (n int PRIMARY KEY, v text)")
    return "t"


# --- signing in ---


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sslnegotiation": "direct"},
        {"host": "localhost", "hostaddr": None},
        {"host": "127.0.0.1", "hostaddr": None},
        {"options": "-c search_path=public -cTimeZone=UTC --extra-float-digits=1"},
        {"client_encoding": "'utf-8'", "application_name": "a name"},
    ],
)
def test_any_client_signs_in_as_to_a_cluster(connect, changes):
    with connect(**changes).cursor() as cursor:
        assert cursor.row("SELECT current_user, current_setting('transaction_isolation')") == (
            "admin",
            "repeatable read",
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sslmode": "disable"}, "SSL is mandatory"),
        ({"sslrootcert": certifi.where()}, "certificate verify failed"),
        ({"host": "other.dsql.us-east-1.on.aws"}, "does not match host name"),
        ({"dbname": "template1"}, DENIED),
        ({"user": "nobody"}, DENIED),
        ({"user": "workshop_owner"}, DENIED),
        ({"options": "-c work_mem=8MB"}, 'parameter "work_mem" not supported'),
        ({"options": "-c search_path=a\\ -c --work_mem=1"}, "not supported"),
        ({"options": "-c enable_seqscan\\ -c\\ work_mem=8MB"}, "configuration parameter"),
        ({"options": "nonsense"}, "invalid command-line argument"),
        ({"client_encoding": "LATIN1"}, "client_encoding"),
    ],
)
def test_a_wrong_sign_in_is_told_what_is_wrong(connect, changes, message):
    with pytest.raises(psycopg2.OperationalError, match=message):
        connect(**changes)


@pytest.fixture
def signer(cluster):
    def sign(*, region="us-east-1", host=cluster.host, life_s=900, **credentials):
        client = boto3.client("dsql", **{**cluster.signing, "region_name": region, **credentials})
        return client.generate_db_connect_admin_auth_token(host, region, ExpiresIn=life_s)

    return sign


def test_a_wrong_token_learns_nothing(connect, signer, cluster):
    for password in (
        *("x", "", "a" * 15_000, "https://[", "é" * 300, "?" + "&" * 99),
        signer(region="eu-west-1"),
        signer(host="other.dsql.us-east-1.on.aws"),
        signer(aws_access_key_id="AKIDEXAMPLE"),
        signer(aws_secret_access_key="another one"),
        cluster.token("somebody"),
        cluster.token().replace("Expires=900", "Expires=901"),
        cluster.token()[:-1] + "é",
        cluster.token().replace("/?", "/x?"),
        cluster.token().replace("/?", "?"),
        cluster.token() + "#x",
        cluster.token() + "#",
        cluster.token() + "\n",
        cluster.token().replace("?", "?Action=DbConnectAdmin&"),
        cluster.token("somebody").replace("?", "?Action=DbConnectAdmin&"),  # then the signed one
    ):
        said = DENIED if password else "no password supplied"
        with pytest.raises(psycopg2.OperationalError, match=said):
            connect(password=password)


def test_a_token_opens_nothing_after_its_end_and_none_lasts_more_than_a_week(connect, signer):
    with pytest.raises(psycopg2.OperationalError, match="must be less than a week"):
        connect(password=signer(life_s=604_801))
    connect(password=signer(life_s=604_800))
    token = signer(life_s=1)
    end = datetime.now(UTC) + timedelta(seconds=1)
    assert wait_until(lambda: datetime.now(UTC) > end, 60)
    for late in (token, token.replace("?", "?X-Amz-Expires=900&")):
        with pytest.raises(psycopg2.OperationalError, match=DENIED):
            connect(password=late)


def test_a_role_signs_in_without_a_password_and_keeps_the_rules(connect, cursor):
    role = f"role_{os.getpid()}"
    cursor.execute(f'CREATE ROLE "{role}" LOGIN')
    for _ in range(2):  # the first time it is given a password that nobody knows
        with connect(user=role).cursor() as theirs:
            assert theirs.row("SELECT current_user, current_setting('workshop.dsql_rules')") == (
                role,
                "on",
            )
            with pytest.raises(errors.FeatureNotSupported):
                theirs.execute("TRUNCATE t")
    with pytest.raises(psycopg2.OperationalError, match=DENIED):
        connect(user=role, password=cursor.connection.info.password)  # admin's token
    cursor.execute(f'ALTER ROLE "{role}" NOLOGIN')
    with pytest.raises(psycopg2.OperationalError):
        connect(user=role)
    cursor.execute(f'DROP ROLE "{role}"')


def refuses(arguments, *, dsn=""):
    """Whether this leads to the front: it refuses what the engine itself does not."""
    with contextlib.closing(psycopg2.connect(dsn, **arguments)) as connection:
        with connection.cursor() as cursor, pytest.raises(errors.FeatureNotSupported):
            cursor.execute("LOCK TABLE pg_class")
        return connection.info.ssl_in_use


def test_what_the_workshop_hands_out_reaches_the_cluster(shared):
    assert refuses(shared.database_arguments())
    token = shared.dsql.generate_db_connect_admin_auth_token("localhost", "us-east-1")
    assert refuses({**shared.database_arguments(), "password": token, "host": "localhost"})
    done = CliRunner().invoke(main, ["dsql", "--seconds", "60"])
    assert done.exit_code == 0, done.output
    lines = dict(line.split(maxsplit=1) for line in done.output.split("\n\n")[0].splitlines())
    assert refuses(lines)
    assert read_token(lines["password"]).life_s == 60
    (psql,) = (line for line in done.output.splitlines() if line.startswith("  psql "))
    assert refuses({"password": lines["password"]}, dsn=shlex.split(psql)[1])
    exports = CliRunner().invoke(main, ["env"]).output.splitlines()
    (url,) = (line for line in exports if line.startswith("export LOCAL_DSQL_URL="))
    assert refuses({}, dsn=shlex.split(url)[1].partition("=")[2])


# --- statements ---


def refused(cursor, sql, code="0A000", message=REFUSED):
    with pytest.raises(psycopg2.Error) as caught:
        cursor.execute(sql)
    assert (caught.value.pgcode, caught.value.diag.message_primary) == (code, message)
    assert caught.value.diag.context is None


def test_a_refusal_aborts_a_transaction_and_no_session(cursor, table):
    refused(cursor, "TRUNCATE t")
    cursor.execute("BEGIN; INSERT INTO t VALUES (1)")
    refused(cursor, "TRUNCATE t")
    aborted = "current transaction is aborted, commands ignored until end of transaction block"
    refused(cursor, "TRUNCATE t", "25P02", aborted)
    cursor.execute("COMMIT")
    assert cursor.statusmessage == "ROLLBACK"
    assert cursor.row("SELECT count(*) FROM t") == (0,)


def test_a_string_of_statements_is_one_transaction_up_to_the_one_that_is_refused(cursor, table):
    refused(cursor, "INSERT INTO t VALUES (1); TRUNCATE t; INSERT INTO t VALUES (2)")
    several = "multiple ddl statements not supported in a transaction"
    refused(cursor, "CREATE TABLE a (n int); CREATE INDEX ASYNC ON t (v)", message=several)
    mixed = "ddl and dml are not supported in the same transaction"
    refused(cursor, "CREATE TABLE a (n int); INSERT INTO t VALUES (1)", message=mixed)
    assert cursor.row("SELECT (SELECT count(*) FROM t), to_regclass('a')") == (0, None)


def test_values_and_rows_have_a_largest_size(cursor):
    message = "datatype limit greater than 1048576 bytes not supported for {}"
    cursor.execute("DROP TABLE IF EXISTS large")
    cursor.execute("CREATE TABLE large (a text, b text, c bytea)")
    row = (
        "INSERT INTO large SELECT repeat('x', {}), repeat('x', {}), decode(repeat('00', {}), 'hex')"
    )
    mebibyte = 1 << 20
    cursor.execute(row.format(mebibyte, mebibyte, 0))
    cursor.execute("UPDATE large SET b = '', c = a::bytea")
    for text, binary, kind in ((mebibyte + 1, 0, "text"), (0, mebibyte + 1, "bytea")):
        refused(cursor, row.format(text, 0, binary), "54000", message.format(kind))
    refused(cursor, "UPDATE large SET a = a || 'x'", "54000", message.format("text"))
    refused(cursor, row.format(mebibyte, mebibyte, 1), "54000", "maximum row size exceeded")


def test_indexes_and_constraints_answer_with_a_job_and_a_tag_of_their_own(cursor, table):
    cursor.execute("CREATE INDEX ASYNC IF NOT EXISTS i ON t (v)")
    (job,) = cursor.fetchone()
    assert (cursor.statusmessage, len(job)) == ("CREATE INDEX", 26)
    cursor.execute("CALL sys.wait_for_job(%s)", (job,))
    cursor.execute(
        "SELECT status, object_id = 'i'::regclass FROM sys.jobs WHERE job_id = %s", (job,)
    )
    assert cursor.fetchone() == ("completed", True)
    refused(cursor, "CALL sys.wait_for_job('x')", "22P02", "Unable to convert text to UUID")
    cursor.execute("ALTER TABLE t ADD CONSTRAINT c CHECK (n > 0) NOT VALID")
    cursor.execute("ALTER TABLE ASYNC t VALIDATE CONSTRAINT c")
    assert (cursor.statusmessage, len(cursor.fetchone()[0])) == ("ALTER TABLE", 26)
    assert cursor.row("SELECT convalidated FROM pg_constraint WHERE conname = 'c'") == (True,)


def test_a_column_of_the_primary_key_stays(cursor, table):
    refused(cursor, "ALTER TABLE t DROP v, DROP n", message="cannot drop primary key column n")
    cursor.execute('CREATE TABLE "o\'""dd" (n int PRIMARY KEY, "c\'d" int)')
    cursor.execute('ALTER TABLE "o\'""dd" DROP "c\'d"')
    assert cursor.statusmessage == "ALTER TABLE"
    refused(cursor, "ALTER TABLE t DROP x", "42703", 'column "x" of relation "t" does not exist')
    refused(cursor, "ALTER TABLE nothing DROP x", "42P01", 'relation "nothing" does not exist')
    cursor.execute('DROP TABLE "o\'""dd"')


def test_rules_cannot_be_switched_off(cursor, table):
    cursor.execute("ALTER TABLE t DISABLE TRIGGER USER")
    assert cursor.statusmessage == "ALTER TABLE"
    for sql in (
        "SELECT set_config('workshop.dsql_rules', 'off', false)",
        "UPDATE pg_settings SET setting = 'off' WHERE name = 'workshop.dsql_rules'",
        "SET workshop.dsql_rules = off",
        "ALTER ROLE admin SET workshop.dsql_rules = off",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET workshop.dsql_rules = off RETURN 1",
    ):
        with pytest.raises(errors.FeatureNotSupported):
            cursor.execute(sql)
    cursor.execute("SET search_path = dsql_rules")
    for sql in (
        "SELECT dsql_rules.run_job('X', 'SET workshop.dsql_rules = off')",
        "SELECT run_job('X', 'SET workshop.dsql_rules = off')",
        "CALL drop_columns('t', '[]', 'SET workshop.dsql_rules = off')",
        "SELECT note('rows', -1000000)",
        "SELECT count(*) FROM ts_stat($$SELECT set_config('workshop.dsql_rules','off',false)$$)",
    ):
        with pytest.raises((errors.FeatureNotSupported, errors.InsufficientPrivilege)):
            cursor.execute(sql)
    cursor.execute("RESET search_path")
    cursor.execute("RESET ALL; SET SESSION AUTHORIZATION DEFAULT")
    assert cursor.row("SHOW workshop.dsql_rules") == ("on",)
    cursor.execute("DROP TRIGGER IF EXISTS dsql_rules_insert ON t")
    assert cursor.statusmessage == "DROP TRIGGER"
    too_many = "INSERT INTO t SELECT generate_series(1, 3001)"
    refused(cursor, too_many, "54000", "transaction row limit exceeded")


def test_a_view_of_the_settings_sets_none(cursor, table):
    cursor.execute("CREATE VIEW settings AS SELECT * FROM pg_settings")
    with pytest.raises(errors.InsufficientPrivilege):
        cursor.execute("UPDATE settings SET setting = '0' WHERE name = 'lock_timeout'")
    cursor.execute("DROP VIEW settings")


def test_what_only_the_server_can_parse_does_not_run(raw, cursor):
    """The server's grammar is older than the parser's: `json_value` is an ordinary name there."""
    cursor.execute('CREATE FUNCTION "json_value"(int) RETURNS int LANGUAGE sql RETURN 1')
    later = "SELECT json_value(1); SET workshop.dsql_rules = off"
    with pytest.raises(errors.SyntaxError):
        cursor.execute(later)
    client = raw().sign_in()
    said = answers(client, parse("SELECT json_value(1)"), bind(), EXECUTE, SYNC)
    assert said == ['syntax error at or near ")"']
    assert answers(client, query("SHOW workshop.dsql_rules")) == [b"on", b"SHOW"]
    cursor.execute('DROP FUNCTION "json_value"(int)')


def test_reset_all_leaves_alone_what_the_transaction_has_done(cursor, table):
    cursor.execute("SET TimeZone = 'Asia/Tokyo'")
    cursor.execute("BEGIN; INSERT INTO t SELECT generate_series(1, 3000)")
    cursor.execute("RESET ALL")
    assert cursor.statusmessage == "RESET"
    assert cursor.row("SHOW TimeZone") != ("Asia/Tokyo",)
    refused(cursor, "INSERT INTO t VALUES (0)", "54000", "transaction row limit exceeded")
    cursor.execute("ROLLBACK")


def test_copies_and_large_answers_arrive_whole(cursor, table):
    cursor.copy_expert("COPY t FROM STDIN (FORMAT csv)", io.StringIO("1,a\n2,b\n"))
    there = io.StringIO()
    cursor.copy_expert("COPY (SELECT * FROM t ORDER BY n) TO STDOUT", there)
    assert there.getvalue() == "1\ta\n2\tb\n"
    with pytest.raises(errors.InvalidTextRepresentation):
        cursor.copy_expert("COPY t FROM STDIN", io.StringIO("x\ta\n" * 200_000))
    cursor.execute("SELECT n, repeat('é', 1000) FROM generate_series(1, 3000) n")
    rows = cursor.fetchall()
    assert (len(rows), {len(v) for _, v in rows}) == (3000, {1000})


def test_what_cannot_be_parsed_is_an_error_of_its_own_client(cursor):
    with pytest.raises(errors.SyntaxError, match='at or near "SELEC"') as caught:
        cursor.execute("SELECT 1; SELEC 1")
    assert caught.value.diag.statement_position == "11"
    for depth in (30_000, 1_500_000):
        refused(cursor, f"SELECT {'1+' * depth}1", "54001", "stack depth limit exceeded")
    refused(cursor, f"SELECT '{'x' * 5_000_000}'", "54000", "statement longer than 4194304 bytes")
    cursor.execute("SELECT 1")


def test_long_strings_are_parsed_apart_and_have_a_most_of_statements(cursor, table):
    rows = ", ".join(f"({n}, '{'x' * 100}')" for n in range(2000))
    cursor.execute(f"INSERT INTO t VALUES {rows}")
    assert cursor.row("SELECT count(*) FROM t") == (2000,)
    refused(cursor, "SELECT 1;" * 5000, "54000", "more than 3000 statements in one string")


# --- several sessions ---


def test_a_definition_does_not_wait_for_a_client_that_does_not_read(raw, cursor, table):
    cursor.execute("INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 3000) n")
    for begin in ((query("BEGIN"),), ()):
        slow = raw().sign_in()
        for said in begin:
            slow.say(said)
            slow.hear()
        slow.say(query("SELECT a.* FROM t a, t b"))
        assert slow.socket.recv(1)
        cursor.execute("ALTER TABLE t ADD COLUMN IF NOT EXISTS w int")
        slow.socket.close()


def test_a_row_that_a_client_of_the_server_has_locked_is_a_conflict_after_a_moment(
    client, cursor, table
):
    cursor.execute("INSERT INTO t VALUES (1)")
    other = client(autocommit=False)
    other.cursor().execute("UPDATE t SET v = 'theirs'")
    with pytest.raises(errors.SerializationFailure, match=OC000):
        cursor.execute("UPDATE t SET v = 'ours'")
    other.commit()
    assert cursor.row("SELECT v FROM t") == ("theirs",)


def test_a_statement_can_be_cancelled(connect):
    connection = connect()
    threading.Timer(0.5, connection.cancel).start()
    with pytest.raises(errors.QueryCanceled):
        connection.cursor().execute("SELECT pg_sleep(300)")


# --- the protocol itself ---


def start_up(parameters):
    text = b"".join(f"{k}\0{v}\0".encode() for k, v in parameters.items())
    return struct.pack("!ii", len(text) + 9, wire.VERSION_3) + text + b"\0"


class Raw:
    """A client that says what it likes."""

    def __init__(self, cluster, schema):
        tls = ssl.create_default_context(cafile=cluster.arguments["sslrootcert"])
        tls.set_alpn_protocols(["postgresql"])
        plain = socket.create_connection(("127.0.0.1", cluster.port), timeout=30)
        self.socket = tls.wrap_socket(plain, server_hostname=CLUSTER_NAMES[0])
        self.file = self.socket.makefile("rb")
        self.cluster, self.schema = cluster, schema

    def sign_in(self, version=wire.VERSION_3):
        begin = start_up({"user": "admin", "database": "postgres", "search_path": self.schema})
        self.say(begin[:4], struct.pack("!i", version), begin[8:])
        self.say(wire.message(b"p", self.cluster.token().encode() + b"\0"))
        self.hear(b"Z")
        return self

    def say(self, *messages):
        self.socket.sendall(b"".join(messages))

    def hear(self, last=b"Z"):
        """All up to the first message of one of these kinds, or to the end."""
        heard = []
        while not heard or heard[-1][0] not in last:
            head = self.file.read(5)
            if len(head) < 5:
                break
            kind, length = struct.unpack("!ci", head)
            heard.append((kind, self.file.read(length - 4)))
        return heard

    def kinds(self, last=b"Z"):
        return b"".join(kind for kind, _ in self.hear(last))

    def close(self):
        self.file.close()
        self.socket.close()


@pytest.fixture
def raw(cluster, schema, opened):
    def make(where=cluster):
        client = Raw(where, schema)
        opened.callback(client.close)
        return client

    return make


def query(sql):
    return wire.message(b"Q", sql.encode() + b"\0")


def parse(sql, name=b""):
    return wire.message(b"P", name + b"\0" + sql.encode() + b"\0\0\0")


def bind(statement=b"", values=()):
    sent = b"".join(struct.pack("!i", len(value)) + value for value in values)
    count = struct.pack("!hh", 0, len(values))
    return wire.message(b"B", b"\0" + statement + b"\0" + count + sent + b"\0\0")


DESCRIBE = wire.message(b"D", b"P\0")
EXECUTE = wire.message(b"E", b"\0\0\0\0\0")
SYNC = wire.message(b"S")


def errors_of(heard):
    return [wire.error_fields(body)["M"] for kind, body in heard if kind == b"E"]


def test_a_refusal_among_statements_sent_together_takes_those_before_it_back(raw, cursor, table):
    client = raw().sign_in()
    run = bind() + EXECUTE
    first = parse("INSERT INTO t VALUES (1)") + run
    assert answers(client, first, parse("TRUNCATE t"), run, SYNC) == [REFUSED]
    assert answers(client, run, SYNC) == [REFUSED]
    for sql, state in (("BEGIN", b"T"), ("TRUNCATE t", b"E"), ("ROLLBACK", b"I")):
        client.say(parse(sql), run, SYNC)
        assert client.hear()[-1] == (b"Z", state)
    assert cursor.row("SELECT count(*) FROM t") == (0,)


def test_a_prepared_index_has_its_own_tag_each_time(raw, cursor, table):
    client = raw().sign_in()
    client.say(parse("CREATE INDEX ASYNC ON t (v)", b"i"), parse("SELECT 1", b"s"))
    for _ in range(2):
        assert answers(client, bind(b"i"), DESCRIBE, EXECUTE, SYNC)[1] == b"CREATE INDEX"
        assert answers(client, bind(b"s"), EXECUTE, SYNC)[1] == b"SELECT 1"


def answers(client, *messages, last=b"Z"):
    """The rows and tags, or the errors, up to the end of it."""
    client.say(*messages)
    heard = client.hear(last)
    found = [body[6:] if kind == b"D" else body[:-1] for kind, body in heard if kind in b"DC"]
    return errors_of(heard) or found


@pytest.mark.parametrize("extended", [False, True])
def test_a_duplicate_in_a_transaction_that_begins_with_it_is_no_conflict(
    raw, cursor, table, extended
):
    cursor.execute("INSERT INTO t VALUES (1)")
    client = raw().sign_in()
    strings = "BEGIN", "INSERT INTO t VALUES (2)", "COMMIT", "BEGIN", "INSERT INTO t VALUES (1)"
    if extended:
        client.say(*(parse(sql) + bind() + EXECUTE for sql in strings), SYNC)
    else:
        client.say(query(";".join(strings)))
    heard = client.hear()
    tags = [body[:-1] for kind, body in heard if kind == b"C"]
    assert tags == [b"BEGIN", b"INSERT 0 1", b"COMMIT", b"BEGIN"]
    assert errors_of(heard) == ['duplicate key value violates unique constraint "t_pkey"']
    assert b"N" not in dict(heard)  # of a BEGIN that was sent twice


def test_what_was_rolled_back_is_not_made_again_in_the_next_transaction(cursor, connect, table):
    other = connect().cursor()
    cursor.execute("BEGIN; INSERT INTO t VALUES (1)")
    cursor.execute("ROLLBACK AND CHAIN")
    other.execute("INSERT INTO t VALUES (2)")
    cursor.execute("INSERT INTO t VALUES (3)")
    cursor.execute("COMMIT")
    assert cursor.rows("SELECT n FROM t ORDER BY n") == [(2,), (3,)]


def test_prepared_statements_go_on_while_others_write(raw, cursor, table):
    cursor.execute("INSERT INTO t VALUES (1, '-')")
    client = raw().sign_in()
    add = parse("UPDATE t SET v = v || $1 WHERE n = 1 RETURNING v", b"add")
    take = parse("SELECT v FROM t", b"take")
    answers(client, add, take, parse("BEGIN", b"begin"), parse("COMMIT", b"commit"), SYNC)

    def do(name, *values):
        return answers(client, bind(name, values), EXECUTE, SYNC)

    for _ in range(2):
        assert do(b"begin") == [b"BEGIN"]
        assert do(b"add", b"a") == [b"-a", b"UPDATE 1"]
        cursor.execute("UPDATE t SET v = '-'")
        for text in b"-ab", b"-abb":
            assert do(b"add", b"b") == [text, b"UPDATE 1"]
        assert do(b"take") == [b"-abb", b"SELECT 1"]
        assert do(b"commit") == ["change conflicts with another transaction (OC000)"]
    assert do(b"take") == [b"-", b"SELECT 1"]


def test_what_is_prepared_with_the_statement_that_loses_stays_prepared(raw, cursor, table):
    cursor.execute("INSERT INTO t VALUES (1, '-')")
    client = raw().sign_in()
    answers(client, query("BEGIN"))
    cursor.execute("UPDATE t SET v = 'b'")
    update, run = parse("UPDATE t SET v = v || 'a' RETURNING v", b"u"), bind(b"u") + EXECUTE + SYNC
    assert answers(client, update, run) == [b"-a", b"UPDATE 1"]
    assert answers(client, run) == [b"-aa", b"UPDATE 1"]
    answers(client, query("ROLLBACK"))
    assert answers(client, run) == [b"ba", b"UPDATE 1"]


FLUSH = wire.message(b"H")
WAYS = {  # what is sent together, and with what its answer ends
    "to learn the types first": [
        (wire.message(b"D", b"S\0") + FLUSH, b"t"),
        (bind() + EXECUTE + SYNC, b"Z"),
    ],
    "after each message": [
        (FLUSH, b"1"),
        (SYNC, b"Z"),
        (bind() + FLUSH, b"2"),
        (EXECUTE + FLUSH, b"CE"),
        (SYNC, b"Z"),
    ],
}


@pytest.mark.parametrize("way", WAYS)
def test_answers_may_be_asked_for_before_the_end(raw, cursor, table, way):
    cursor.execute("INSERT INTO t VALUES (1, '-')")
    client = raw().sign_in()

    def do(sql):
        client.say(parse(sql))
        return [one for said, last in WAYS[way] for one in answers(client, said, last=last)]

    do("BEGIN")
    do("UPDATE t SET v = 'a' WHERE n = 1")
    cursor.execute("UPDATE t SET v = 'b' WHERE n = 1")
    assert do("SELECT v FROM t") == [b"a", b"SELECT 1"]
    assert do("COMMIT") == ["change conflicts with another transaction (OC000)"]
    do("BEGIN")
    do("UPDATE t SET v = 'a' WHERE n = 1")
    cursor.execute("INSERT INTO t VALUES (2)")
    assert do("COMMIT") == [b"COMMIT"]
    assert cursor.row("SELECT v FROM t WHERE n = 1") == ("a",)


def test_rows_are_fetched_in_parts_or_the_transaction_has_lost(raw, cursor, table):
    cursor.execute("INSERT INTO t VALUES (1, '-')")
    client = raw().sign_in()
    answers(client, query("BEGIN; UPDATE t SET v = 'a'"))
    numbers, some = parse("SELECT generate_series(1, 3)"), b"E\0\0\0\x0ap\0\0\0\0\1"
    client.say(numbers, wire.message(b"B", b"p\0\0" + bytes(6)), some, SYNC, some, SYNC)
    assert client.kinds() + client.kinds() == b"12DsZDsZ"
    cursor.execute("UPDATE t SET v = 'b'")
    assert answers(client, some, SYNC) == ["change conflicts with another transaction (OC000)"]


def test_a_copy_may_be_sent_with_its_statement_while_others_write(raw, cursor, table):
    client = raw().sign_in()
    answers(client, query("BEGIN; INSERT INTO t VALUES (1)"))
    cursor.execute("INSERT INTO t VALUES (2)")
    copy = query("COPY t FROM STDIN")
    rows = wire.message(b"d", b"3\tx\n"), wire.message(b"c")
    assert answers(client, copy, *rows) == [b"COPY 1"]
    client.say(parse("COPY t FROM STDIN"), bind(), EXECUTE, SYNC)
    assert client.kinds(b"G") == b"12G"
    assert answers(client, wire.message(b"d", b"4\tx\n"), wire.message(b"c"), SYNC) == [b"COPY 1"]
    client.say(parse("COPY t FROM STDIN"), bind(), EXECUTE, FLUSH, SYNC)
    assert client.kinds(b"G") == b"12G"
    assert answers(client, wire.message(b"d", b"5\tx\n"), wire.message(b"c"), SYNC) == [b"COPY 1"]
    assert answers(client, query("COMMIT")) == [b"COMMIT"]
    assert cursor.row("SELECT count(*) FROM t") == (5,)


def test_a_copy_ends_with_a_message_that_is_none_of_its(raw, table):
    client = raw().sign_in()
    client.say(query("COPY t FROM STDIN"), wire.message(b"d", b"1\tx\n"), query("SELECT 1"))
    assert errors_of(client.hear()) == ["COPY from stdin failed: unexpected message"]
    assert client.kinds() == b"TDCZ"


def test_a_newer_client_is_told_which_protocol_is_spoken(raw):
    client = raw()
    client.sign_in(version=wire.VERSION_3 + 2)
    client.say(query("SELECT 1"))
    assert client.kinds() == b"TDCZ"


PLAIN = [
    b"\0",
    b"\x16\x03\x01",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    struct.pack("!ii", 8, wire.GSS) * 3,
    struct.pack("!iiii", 16, wire.CANCEL, 1, 1),
    struct.pack("!ii", 2**31 - 1, wire.VERSION_3),
]
IN_TLS = [
    bytes(8),
    struct.pack("!ii", 2**31 - 1, wire.VERSION_3),
    struct.pack("!ii", 8, 2 << 16),
    b"\0\0\0\x0a\0\3\0\0\xff\xff" + wire.message(b"p", b"\xff"),
    start_up({"user": "admin"}) + query("SELECT 1"),
    start_up({"user": "admin"}) + b"p\x7f\xff\xff\xff",
    start_up({"user": "admin", "options": "-c"}) + wire.message(b"p", b"x\0"),
]
SIGNED_IN = [
    b"Q\0\0\0\3",
    b"Q\x7f\xff\xff\xff",
    wire.message(b"?"),
    wire.message(b"p", b"again\0"),
    wire.message(b"P", b"a\0b"),
    wire.message(b"E", b""),
]


@pytest.mark.parametrize("sent", PLAIN, ids=range(len(PLAIN)))
def test_bytes_that_begin_nothing_end_their_own_connection_only(cluster, connect, sent):
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", cluster.port)
        client = stack.enter_context(socket.create_connection(address, timeout=30))
        with contextlib.suppress(OSError):  # it may have hung up already
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
        stack.enter_context(contextlib.suppress(ConnectionError))
        while client.recv(4_096):
            pass
    connect()


@pytest.mark.parametrize("sent", [*IN_TLS, *SIGNED_IN], ids=range(len(IN_TLS + SIGNED_IN)))
def test_wrong_words_are_an_error_and_the_end(raw, connect, sent):
    client = raw()
    if sent in SIGNED_IN:
        client.sign_in()
    client.say(sent)
    heard = client.hear(b"")
    assert heard[-1][0] == b"E" or sent in IN_TLS
    assert all(said == DENIED or "invalid" in said or "unsupported" in said
               for said in errors_of(heard))  # fmt: skip
    assert b"Z" not in [kind for kind, _ in heard]
    connect()


@pytest.mark.parametrize(
    "sent",
    [
        wire.message(b"Q", b"SELECT '\xff'\0"),
        parse("SELECT 1; TRUNCATE t") + SYNC,
        wire.message(b"P", b"\0SELECT $1\0\0\xff") + SYNC,
        wire.message(b"B", b"\0\0\xff\xff\xff\xff") + SYNC,
        wire.message(b"c") + query("SELEC"),
    ],
)
def test_wrong_messages_of_a_right_form_are_the_server_s_to_refuse(raw, sent):
    client = raw().sign_in()
    client.say(sent)
    assert len(errors_of(client.hear())) == 1
    client.say(query("SELECT 1"))
    assert client.kinds() == b"TDCZ"


# --- crashes, limits of connections ---


def backends(shared):
    rows = shared.database.query(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'through the front'"
    )
    return rows[0][0]


def test_a_killed_front_loses_nothing_leaves_nothing_and_comes_back(state, shared, connect, table):
    doomed = connect(application_name="through the front").cursor()
    doomed.execute("INSERT INTO t VALUES (1)")
    doomed.execute("BEGIN; INSERT INTO t VALUES (2)")
    (front,) = [e for e in local.status(state).engines if e.name == "dsql"]
    os.kill(front.pid, signal.SIGKILL)
    with pytest.raises(psycopg2.OperationalError):
        doomed.execute("SELECT 1")
    assert wait_until(lambda: backends(shared) == 0, 60)

    def is_back():
        with contextlib.suppress(psycopg2.OperationalError):
            return connect()

    assert wait_until(is_back, 120)
    with connect().cursor() as reader:
        assert reader.rows("SELECT n FROM t") == [(1,)]
    assert wait_until(lambda: not psutil.pid_exists(front.pid), 60)


@pytest.fixture
def own_front(state, opened):
    """Serves the same cluster in this process, changed as a test needs it."""

    def serve(**changes):
        serving = InThread(replace(local_cluster(state.path), **changes).serve)
        opened.callback(serving.close)
        return serving.port

    return serve


def test_more_connections_than_the_rate_allows_are_turned_away(own_front, connect, cluster):
    port = own_front(rate=Rate(per_second=1 / 3600, burst=2))
    for _ in range(2):
        connect(port=port)
    with pytest.raises(psycopg2.OperationalError, match="rate exceeded"):
        connect(port=port)


def test_a_connection_ends_when_its_time_is_over(own_front, raw, cluster):
    client = raw(replace(cluster, port=own_front(life_s=0.5))).sign_in()
    client.say(query("SELECT pg_sleep(300)"))
    (said,) = errors_of(client.hear())
    assert "60 minutes" in said


def test_a_table_has_at_most_24_indexes(cursor, table):
    for _ in range(23):
        cursor.execute("CREATE INDEX ASYNC ON t (v)")
    refused(cursor, "CREATE INDEX ASYNC ON t (v)", "54000",
            "more than 24 indexes per table not allowed")  # fmt: skip


def test_a_cluster_has_at_most_ten_schemas(own_front, connect, schema):
    with connect(port=own_front(max_schemas=1)).cursor() as cursor:
        refused(cursor, "CREATE SCHEMA one_too_many", "54000", "more than 10 schemas not allowed")
        cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")


def test_while_the_database_is_down_the_cluster_says_that_it_wakes_up(own_front, connect, cluster):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()
    port = own_front(server=lambda: nobody)
    with pytest.raises(psycopg2.OperationalError, match="waking up cluster"):
        connect(port=port)
