"""Write to Aurora DSQL from a service: sign in, keep a pool, retry after conflicts.

Built in notebooks 08 to 10; needs boto3 and psycopg2, and on AWS certifi. Copy it and change it.

    signer = boto3.client("dsql", region_name="us-east-1")
    open_one = partial(connect, signer, HOST, "my_service", sslrootcert=certifi.where())
    begin = partial(transaction, new_pool(8), open_one)
    total = run_transaction(begin, lambda cursor: add_order(cursor, order))

`work` may run more than once before it commits: keep anything but the database out of it. It must
neither commit nor roll back. If it does, that is an error, but in two cases it goes unnoticed: a
later statement has begun another transaction (only that one is committed), or `work` used other
cursors only. What it sets with SET stays for the connection's next user: write SET LOCAL.
"""

import queue
import random
import time
from contextlib import contextmanager

import psycopg2


def connect(signer, host, user="admin", **where):
    """A new connection to Aurora DSQL, signed in with a fresh token."""
    kind = "connect_admin" if user == "admin" else "connect"
    sign = getattr(signer, f"generate_db_{kind}_auth_token")
    return psycopg2.connect(
        host=host,
        user=user,
        password=sign(host, signer.meta.region_name, ExpiresIn=60),
        dbname="postgres",
        sslmode="verify-full",
        connect_timeout=5,
        **where,
    )


def new_pool(size):
    """A pool of up to `size` connections; each is opened when it is first needed."""
    free = queue.LifoQueue()
    for _ in range(size):
        free.put((None, 0.0))
    return free


def usable(connection, expires):
    """Whether a pooled connection may be used again; if too old or not idle, it is closed here."""
    if connection and (time.monotonic() > expires or connection.info.transaction_status):
        connection.close()
    return connection is not None and not connection.closed


def new_cursor(connection):
    """A cursor whose first statement begins a transaction, whatever mode was set before."""
    connection.autocommit = False
    return connection.cursor()


def commit(cursor):
    """Commit, unless that would save nothing: after an error that was caught, or a ROLLBACK."""
    connection, status = cursor.connection, cursor.connection.info.transaction_status
    if status == psycopg2.extensions.TRANSACTION_STATUS_INERROR:
        raise RuntimeError("an error of the database was caught: COMMIT would save nothing")
    is_idle = status == psycopg2.extensions.TRANSACTION_STATUS_IDLE
    if connection.autocommit or (is_idle and cursor.query):
        raise RuntimeError("the transaction was ended by other means: COMMIT would save nothing")
    connection.commit()


@contextmanager
def transaction(free, connect, timeout_s=5, max_age_s=2400):
    """A cursor of a pooled connection; the block ends with COMMIT, after an error with ROLLBACK."""
    connection, expires = free.get(timeout=timeout_s)  # queue.Empty if all stay in use
    try:
        if not usable(connection, expires):
            connection, expires = connect(), time.monotonic() + max_age_s * random.uniform(0.8, 1)
        yield (cursor := new_cursor(connection))
        commit(cursor)
    except BaseException:
        if connection and not connection.closed:  # else the next user gets a new one
            connection.rollback()
        raise
    finally:
        free.put((connection, expires))


def run_transaction(begin, work, attempts=10):
    """What work(cursor) returns, once it is committed; after a conflict all of it runs again."""
    for attempt in range(1, attempts + 1):
        try:
            with begin() as cursor:
                return work(cursor)
        except psycopg2.errors.SerializationFailure:
            if attempt == attempts:
                raise
            time.sleep(random.uniform(0, min(0.1, 0.001 * 2**attempt)))
