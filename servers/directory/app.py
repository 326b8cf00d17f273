"""The directory server's routes: what clients ask and change. (File servers: storage_routes.)"""

from collections.abc import Callable
from typing import TypeVar

import msgspec
from sqlalchemy import MetaData

from servers.database import Database
from servers.directory import reads, schema
from servers.directory.config import DirectoryConfig
from servers.directory.feed_listener import FeedListener
from servers.directory.feed_metrics import FeedMetrics, wait_histogram
from servers.directory.feed_rows import FeedRows
from servers.directory.promises import Bounds, Promises
from servers.directory.service import Directory
from servers.directory.storage import Storage
from servers.directory.storage_routes import add_storage_routes
from servers.directory.telling import promise
from servers.directory.view import View
from servers.replies import Replies
from servers.seals import Call
from servers.web import Door, Reply
from wire.messages.common import Empty
from wire.messages.directory import (
    FeedAt,
    FindCommit,
    FoundCommit,
    GetAttrs,
    GetManifest,
    GetPaths,
    GetTarget,
    GetXattrs,
    List,
    Mutations,
    Paths,
    Resolve,
)
from wire.permissions import Identity
from wire.tickets import Role

Q = TypeVar("Q", Resolve, GetAttrs, List, GetManifest, GetTarget, GetXattrs)
"""Questions that may name for whom they are asked."""


class DirectoryServer:
    """The service and its Flask app (see servers.web.Server); ``storage`` is what it does for chunks,
    ``feed`` where sessions hear what is promised no more."""

    def __init__(self, config: DirectoryConfig) -> None:
        def seconds() -> float:
            return config.clock_ns() / 1e9

        tables = MetaData()
        for table in schema.metadata.tables.values():
            table.to_metadata(tables)
        replies = Replies(tables, seconds)
        self._database = Database(config.database, tables)
        self.storage = Storage(self._database, config, [replies.forget_old])
        door = Door("directory", config.keys.tickets, seconds)
        rows = FeedRows(self._database)
        self._promises = Promises(config.lease_seconds, Bounds(config.promises_max), rows.before)
        FeedMetrics(self._promises, door.registry)
        self.feed = FeedListener(self._promises, rows, door.seals, config.feed_host, config.feed_port)
        waited = wait_histogram(door.registry)
        self._directory = Directory(self._database, replies, config, self._promises, waited)
        self.app = door.app
        self._add_routes(door)
        add_storage_routes(door, self.storage)

    def start(self) -> None:
        """Starts the feed, repair and collection. Raises OSError if the feed's port is taken."""
        self.feed.start()
        self.storage.start()

    def close(self) -> None:
        """Stops them and closes the database."""
        self.feed.close()
        self.storage.close()
        self._database.close()

    def _add_routes(self, door: Door) -> None:
        def manifest(view: View, message: GetManifest) -> msgspec.Struct:
            return reads.get_manifest(view, self.storage, message)

        def resolve(view: View, message: Resolve) -> msgspec.Struct:
            return reads.resolve(view, self.storage, message)

        views: dict[str, Callable[[Call], Reply]] = {
            "/v1/mutations": self._mutate,
            "/v1/resolve": self._reader(Resolve, resolve),
            "/v1/attrs": self._reader(GetAttrs, reads.get_attrs),
            "/v1/list": self._reader(List, reads.list_entries),
            "/v1/manifest": self._reader(GetManifest, manifest),
            "/v1/target": self._reader(GetTarget, reads.get_target),
            "/v1/xattrs": self._reader(GetXattrs, reads.get_xattrs),
            "/v1/paths": self._paths,
            "/v1/commits": self._commits,
            "/v1/feeds": self._feeds,
        }
        for path, view in views.items():
            door.sealed("POST", path, view, Role.DIRECTORY)

    def _reader(
        self, kind: type[Q], answer: Callable[[View, Q], msgspec.Struct]
    ) -> Callable[[Call], msgspec.Struct]:
        def read(call: Call) -> msgspec.Struct:
            message = call.message(kind)
            session, began = call.ticket.session, self._promises.begin()
            with self._directory.view(session, call.identity(message.caller)) as view:
                found = answer(view, message)
            return promise(self._promises, session, began, found)

        return read

    def _mutate(self, call: Call) -> bytes:
        message = call.message(Mutations)
        return self._directory.mutate(
            call.ticket.session, call.counter(), message, call.identity(message.caller)
        )

    def _paths(self, call: Call) -> Paths:
        with self._directory.view(call.ticket.session, _anybody(call)) as view:
            return reads.get_paths(view, call.message(GetPaths))

    def _commits(self, call: Call) -> FoundCommit:
        with self._directory.view(call.ticket.session, _anybody(call)) as view:
            return reads.find_commit(view, call.message(FindCommit))

    def _feeds(self, call: Call) -> FeedAt:
        call.message(Empty)
        return self.feed.at()


def _anybody(call: Call) -> Identity:
    """For questions that name no caller: a trusted session may ask for anybody, so it may see all."""
    return Identity(0, (0,)) if call.ticket.trusted else call.identity()


def make_server(config: DirectoryConfig) -> DirectoryServer:
    """The directory server, not started: repair and collection run only after ``start``."""
    return DirectoryServer(config)
