"""The routes of the storage side: what file servers call, and the looks from outside."""

import threading
from collections import OrderedDict

from servers.directory.storage import Storage
from servers.seals import Call
from servers.web import Door
from wire.errors import Replayed
from wire.messages.directory import (
    GetPlacement,
    Heartbeat,
    Inventory,
    InventoryAnswer,
    KnownServers,
    Placement,
    Register,
    Registered,
    Servers,
    Statfs,
    Tasks,
)
from wire.tickets import Role

SESSIONS_REMEMBERED = 10_000


class _Order:
    """Refuses what a file server has said already: a heartbeat that is sent again would bring a dead server
    to life, the last one too. A file server whose answer was lost says it anew, under a new number."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._last: OrderedDict[tuple[int, str], int] = OrderedDict()

    def check(self, call: Call, what: str) -> None:
        """Raises Replayed, or BadMessage if the request has no number."""
        key, number = (call.ticket.session, what), call.counter()
        with self._guard:
            if number <= self._last.get(key, -1):
                raise Replayed("this was said already, or something newer")
            self._last[key] = number
            self._last.move_to_end(key)
            if len(self._last) > SESSIONS_REMEMBERED:
                self._last.popitem(last=False)


def add_storage_routes(door: Door, storage: Storage) -> None:
    """Adds the routes; file servers show join tickets, clients directory tickets."""

    order = _Order()

    def register(call: Call) -> Registered:
        order.check(call, "register")
        return storage.register(call.message(Register))

    def heartbeat(call: Call, server: int) -> Tasks:
        order.check(call, "heartbeat")
        return storage.heartbeat(server, call.message(Heartbeat))

    def inventory(call: Call, server: int) -> InventoryAnswer:
        order.check(call, "inventory")
        return storage.inventory(server, call.message(Inventory))

    def known(call: Call) -> KnownServers:
        return storage.known_servers()

    def servers(call: Call) -> Servers:
        return storage.servers()

    def statfs(call: Call) -> Statfs:
        return storage.statfs()

    def placement(call: Call) -> Placement:
        return storage.placement(call.message(GetPlacement).count)

    door.sealed("POST", "/v1/servers", register, Role.JOIN)
    door.sealed("POST", "/v1/servers/<int:server>/heartbeat", heartbeat, Role.JOIN)
    door.sealed("POST", "/v1/servers/<int:server>/inventory", inventory, Role.JOIN)
    door.sealed("GET", "/v1/servers", servers, Role.DIRECTORY)
    door.sealed("GET", "/v1/servers/known", known, Role.DIRECTORY)
    door.sealed("GET", "/v1/statfs", statfs, Role.DIRECTORY)
    door.sealed("POST", "/v1/placement", placement, Role.DIRECTORY)
