"""The routes of the storage side: what file servers call, and the looks from outside."""

from servers.directory.storage import Storage
from servers.web import Call, Door
from wire.messages.directory import (
    GetPlacement,
    Heartbeat,
    Inventory,
    InventoryAnswer,
    Placement,
    Register,
    Registered,
    Servers,
    Statfs,
    Tasks,
)
from wire.tickets import Role


def add_storage_routes(door: Door, storage: Storage) -> None:
    """Adds the routes; file servers show join tickets, clients directory tickets."""

    def register(call: Call) -> Registered:
        return storage.register(call.message(Register))

    def heartbeat(call: Call, server: int) -> Tasks:
        return storage.heartbeat(server, call.message(Heartbeat))

    def inventory(call: Call, server: int) -> InventoryAnswer:
        return storage.inventory(server, call.message(Inventory))

    def servers(call: Call) -> Servers:
        return storage.servers()

    def statfs(call: Call) -> Statfs:
        return storage.statfs()

    def placement(call: Call) -> Placement:
        return storage.placement(call.message(GetPlacement).count)

    door.sealed("POST", "/v1/servers", register, (Role.JOIN,))
    door.sealed("POST", "/v1/servers/<int:server>/heartbeat", heartbeat, (Role.JOIN,))
    door.sealed("POST", "/v1/servers/<int:server>/inventory", inventory, (Role.JOIN,))
    door.sealed("GET", "/v1/servers", servers, (Role.DIRECTORY,))
    door.sealed("GET", "/v1/statfs", statfs, (Role.DIRECTORY,))
    door.sealed("POST", "/v1/placement", placement, (Role.DIRECTORY,))
