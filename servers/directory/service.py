"""The directory: every request as one transaction (changes) or one view (reads)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import assert_never

import msgspec
from prometheus_client import Histogram
from sqlalchemy import Connection

from servers.database import Database
from servers.directory import acls, attributes, content, namespace, store
from servers.directory.access import Access
from servers.directory.clock import Clock
from servers.directory.config import DirectoryConfig
from servers.directory.promises import Author, Promises
from servers.directory.rename import rename
from servers.directory.store import Inode
from servers.directory.telling import shown_by
from servers.directory.transaction import Transaction
from servers.directory.view import View
from servers.replies import Replies, settle
from wire import acl, codec
from wire.errors import BadMessage
from wire.limits import OPS_MAX
from wire.messages.directory import (
    ROOT_INO,
    Commit,
    Create,
    CreateNameless,
    Drop,
    Hold,
    Link,
    Mutated,
    Mutations,
    Op,
    OpenWrite,
    RemoveXattr,
    Rename,
    Reserve,
    Result,
    Rmdir,
    SetAttr,
    SetXattr,
    Unlink,
)
from wire.permissions import Identity
from wire.tickets import Role

ROOT_MODE = 0o041777


class Directory:
    """Inodes and names of a realm. Thread-safe; one process a database, because the clock is in memory."""

    def __init__(
        self,
        database: Database,
        replies: Replies,
        config: DirectoryConfig,
        promises: Promises,
        waited: Histogram,
    ) -> None:
        self._database = database
        self._promises = promises
        self._waited = waited
        self._replies = replies
        self._config = config
        self._clock = Clock(config.clock_ns)
        self._access = Access()
        database.write(self._begin)

    def _begin(self, connection: Connection) -> None:
        if self._clock.load(connection):
            return
        now = self._clock.tick()
        root = Inode(ROOT_INO, ROOT_MODE, 2, 0, 0, 0, 0, now, now, now, now, now, 0, 0, ROOT_INO)
        store.insert_inodes(connection, [root])
        self._clock.save(connection)

    def mutate(self, session: int, counter: int, message: Mutations, who: Identity) -> bytes:
        """The encoded Mutated, the first time and every time that this counter comes again; when all who were
        promised otherwise know of the change, or believe nothing any more. Raises Unavailable if too many
        wait for that: the change is made then, and who asks again waits again."""
        if sum(op.count for op in message.ops if isinstance(op, Reserve)) > OPS_MAX:
            raise BadMessage(f"a request reserves at most {OPS_MAX} numbers")
        done: list[tuple[Transaction, Mutated]] = []
        author = Author(session, message.feed)
        with self._promises.changing(author) as change:
            try:
                outcome = self._write(session, counter, message, who, done)
            finally:
                # Also if the commit has failed: it may be there all the same.
                for tx, mutated in done:
                    self._promises.tell_change(change, tx.stamped, shown_by(mutated))
        reply = settle(outcome)
        with self._waited.time():
            if done and not done[0][0].is_repeated:
                self._promises.wait(change.waiting)
            else:
                self._promises.wait_for_all(author)
        if done:
            return _without(reply, change.unpromised)
        shown = shown_by(codec.decode(reply, Mutated))
        return _without(reply, self._promises.give(session, 0, shown))

    def _write(
        self,
        session: int,
        counter: int,
        message: Mutations,
        who: Identity,
        done: list[tuple[Transaction, Mutated]],
    ) -> bytes | OSError:
        """The reply; in ``done`` what was done, if it was not done before."""
        receipts = content.open_receipts(self._config.keys.tickets[Role.JOIN], message.ops)
        with self._access.changing() as change:

            def run(connection: Connection) -> bytes | OSError:
                def apply() -> Mutated:
                    tx = Transaction(
                        connection,
                        self._access,
                        who,
                        session,
                        config=self._config,
                        clock=self._clock,
                        change=change,
                        receipts=receipts,
                    )
                    mutated = Mutated([_apply(tx, op) for op in message.ops])
                    tx.finish()
                    done.append((tx, mutated))
                    return mutated

                return self._replies.once(connection, session, counter, message.acked, apply)

            return self._database.write(run)

    @contextmanager
    def view(self, session: int, who: Identity) -> Iterator[View]:
        """One state of the directory, to read from."""
        generation = self._access.generation
        with self._database.read() as connection:
            yield View(connection, self._access, who, session, generation)


def _without(reply: bytes, unpromised: list[int]) -> bytes:
    """The encoded Mutated, saying that of these nothing is promised."""
    if not unpromised:
        return reply
    return codec.encode(msgspec.structs.replace(codec.decode(reply, Mutated), unpromised=unpromised))


def _apply(tx: Transaction, op: Op) -> Result:
    match op:
        case Reserve():
            return namespace.reserve(tx, op)
        case Create():
            return namespace.create(tx, op)
        case CreateNameless():
            return namespace.create_nameless(tx, op)
        case Link():
            return namespace.link(tx, op)
        case Unlink():
            return namespace.unlink(tx, op)
        case Rmdir():
            return namespace.rmdir(tx, op)
        case Rename():
            return rename(tx, op)
        case SetAttr():
            return attributes.set_attr(tx, op)
        case SetXattr():
            return acls.set_acl(tx, op) if op.name in acl.NAMES else attributes.set_xattr(tx, op)
        case RemoveXattr():
            return acls.remove_acl(tx, op) if op.name in acl.NAMES else attributes.remove_xattr(tx, op)
        case OpenWrite():
            return content.open_write(tx, op)
        case Commit():
            return content.commit(tx, op)
        case Hold():
            return namespace.hold(tx, op)
        case Drop():
            return namespace.drop(tx, op)
        case _:
            assert_never(op)
