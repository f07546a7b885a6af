"""The name service of the stand-in: AWS's names lead to its servers, in every process below.

Python imports this at its start because its folder is on PYTHONPATH. STAND_IN_NAMES is a JSON file
of patterns of `name:port` and where each leads. Only looking up is replaced: clients go on using
the real names, and verify certificates against them. A name of AWS that is not listed is unknown,
so that nothing here can ever reach the real one.
"""

import json
import os
import socket
from fnmatch import fnmatch
from pathlib import Path

AWS = (".amazonaws.com", ".on.aws", ".api.aws")


def lead(host, port):
    """Where a name and port lead; None if they are none of AWS's."""
    name = host.decode() if isinstance(host, bytes) else str(host)
    if not name.endswith(AWS):
        return None
    # Read anew each time, so that a test can cut a line.
    for pattern, place in json.loads(Path(os.environ["STAND_IN_NAMES"]).read_text()):
        if fnmatch(f"{name}:{port}", pattern):
            return tuple(place)
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def teach_sockets():
    ask = socket.getaddrinfo

    def getaddrinfo(host, port, *args, **more):
        place = lead(host, port) if host else None
        return ask(*(place or (host, port)), *args, **more)

    socket.getaddrinfo = getaddrinfo


def teach_libpq():
    """libpq asks the system, not Python; `hostaddr` is its way to be told the address of a name."""
    try:
        import psycopg2  # noqa: PLC0415 -- some Pythons below have none
    except ImportError:
        return
    connect = psycopg2.connect

    def connect_there(dsn=None, **arguments):
        try:
            place = lead(arguments.get("host", ""), arguments.get("port", ""))
        except socket.gaierror:
            host = arguments["host"]
            raise psycopg2.OperationalError(
                f'could not translate host name "{host}" to address: Name or service not known\n'
            ) from None
        if place:
            arguments |= {"hostaddr": place[0], "port": place[1]}
        return connect(dsn, **arguments)

    psycopg2.connect = connect_there


teach_sockets()
teach_libpq()
