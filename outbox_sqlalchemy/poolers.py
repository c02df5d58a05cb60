"""Connections that lead through a pooler in transaction mode, which gives each transaction another session.

Prepared statements are then somebody else's, or nobody's, and what one sets on the session others find on theirs. A
pooler makes up the process id that a client is told for its cancel requests, so comparing that with the server's own tells.
"""

from typing import Any

from sqlalchemy import Pool, event

POOLED = "outbox.pooled"  # in a connection's `info`


def look_out(pool: Pool) -> None:
    """Look at each new connection of *pool*, before SQLAlchemy asks anything on it."""
    event.listen(pool, "connect", _look, insert=True)


def _look(dbapi: Any, record: Any) -> None:
    look = _LOOKS.get(type(dbapi.driver_connection).__module__.partition(".")[0])
    if look is None:
        return
    try:
        record.info[POOLED] = look(dbapi)
    except BaseException:
        _abort(dbapi)  # SQLAlchemy 2.0.40 forgets a connection on which a listener has failed
        raise


def _abort(dbapi: Any) -> None:
    """Close it without a word to the server."""
    if hasattr(dbapi.driver_connection, "terminate"):  # asyncpg's
        dbapi.driver_connection.terminate()
    else:
        dbapi.close()


def _look_through_asyncpg(dbapi: Any) -> bool:
    """Over the simple protocol, which prepares nothing and answers with the number of rows."""
    pid = dbapi.driver_connection.get_server_pid()
    found = dbapi.run_async(lambda driver: driver.execute(f"SELECT WHERE pg_backend_pid() = {int(pid)}"))
    if found == "SELECT 1":
        return False
    # What statement_cache_size, prepared_statement_cache_size and prepared_statement_name_func would say, if they could be
    # said after connecting. A statement without a name lives until the next, in the session in which it is used at once.
    dbapi.driver_connection._stmt_cache_enabled = False
    dbapi._prepared_statement_cache = None
    dbapi._prepared_statement_name_func = str
    return True


def _look_through_psycopg(dbapi: Any) -> bool:
    pooled = bool(dbapi.run_async(_differs))
    if pooled:
        dbapi.driver_connection.prepare_threshold = None
    return pooled


async def _differs(driver: Any) -> bool:
    cursor = await driver.execute("SELECT pg_backend_pid()", prepare=False)
    (pid,) = await cursor.fetchone()
    await driver.rollback()
    return bool(pid != driver.info.backend_pid)


_LOOKS = {"asyncpg": _look_through_asyncpg, "psycopg": _look_through_psycopg}
