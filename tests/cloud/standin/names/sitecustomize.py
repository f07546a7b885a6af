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
from functools import partial
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


def look_up(ask, host, port, *args, **more):
    return ask(*(lead(host, port) or (host, port)), *args, **more)


def connect(psycopg2, connect_there, dsn=None, **arguments):
    """libpq asks the system, not Python; `hostaddr` is its way to be told the address of a name."""
    host = arguments.get("host", "")
    try:
        place = lead(host, arguments.get("port", ""))
    except socket.gaierror as error:
        said = f'could not translate host name "{host}" to address: {error.strerror}\n'
        raise psycopg2.OperationalError(said) from None
    if place:
        arguments |= {"hostaddr": place[0], "port": place[1]}
    return connect_there(dsn, **arguments)


def teach(put=setattr):
    put(socket, "getaddrinfo", partial(look_up, socket.getaddrinfo))
    try:
        import psycopg2  # some Pythons below have none
    except ImportError:
        return
    put(psycopg2, "connect", partial(connect, psycopg2, psycopg2.connect))


if "STAND_IN_NAMES" in os.environ:
    teach()
