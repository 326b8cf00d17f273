"""The file server's side of the directory: it registers, sends heartbeats and tells what it has."""

from clients.session import Channel, Keyring, Wire
from wire.messages.directory import Heartbeat, Inventory, InventoryAnswer, Register, Registered, Tasks
from wire.tickets import Role


class StorageClient:
    """The directory at ``base_url`` for a file server. Each call is one attempt that waits at most
    ``silence_seconds``, and raises Unavailable then: who calls comes again by itself. All may be repeated."""

    def __init__(self, wire: Wire, base_url: str, keyring: Keyring, silence_seconds: float = 5.0) -> None:
        # No patience, and an answer that may be held back: exactly one attempt.
        self._channel = Channel(wire, base_url, Role.JOIN, keyring, deadline_seconds=0.0)
        self._silence_seconds = silence_seconds

    def register(self, message: Register) -> Registered:
        """The id that this server has in the realm."""
        return self._channel.mutate(
            "/v1/servers", lambda _: message, Registered, wait_seconds=self._silence_seconds
        )

    def heartbeat(self, server: int, message: Heartbeat) -> Tasks:
        """What there is to do. ENOENT: the directory does not know this server any more; register."""
        path = f"/v1/servers/{server}/heartbeat"
        return self._channel.mutate(path, lambda _: message, Tasks, wait_seconds=self._silence_seconds)

    def inventory(self, server: int, message: Inventory) -> InventoryAnswer:
        """Which of these chunks nobody knows. ENOENT as for ``heartbeat``."""
        path = f"/v1/servers/{server}/inventory"
        # A page of 10 000 chunks takes the directory longer than a heartbeat.
        return self._channel.mutate(path, lambda _: message, InventoryAnswer, wait_seconds=30.0)
