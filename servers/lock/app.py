"""The lock server's routes. All are for clients, under the lock role."""

from servers.lock.config import LockConfig
from servers.lock.service import LockService
from servers.seals import Call
from servers.web import Door
from wire.messages.lock import (
    Acquire,
    AskRange,
    Break,
    LeaveRange,
    Locks,
    RangeAnswer,
    Release,
    Renew,
    Restate,
    SetRange,
)
from wire.tickets import Role


class LockServer:
    """The service and its Flask app (see servers.web.Server)."""

    def __init__(self, config: LockConfig) -> None:
        self.service = LockService(config)
        door = Door("lock", config.keys.tickets, config.clock)
        self.app = door.app
        door.sealed("POST", "/v1/locks/acquire", self._acquire, Role.LOCK)
        door.sealed("POST", "/v1/locks/release", self._release, Role.LOCK)
        door.sealed("POST", "/v1/locks/renew", self._renew, Role.LOCK)
        door.sealed("POST", "/v1/locks/ranges/set", self._set_range, Role.LOCK)
        door.sealed("POST", "/v1/locks/ranges/leave", self._leave_range, Role.LOCK)
        door.sealed("POST", "/v1/locks/ranges/ask", self._ask_range, Role.LOCK)
        door.sealed("POST", "/v1/locks/ranges/restate", self._restate_ranges, Role.LOCK)
        door.sealed("POST", "/v1/locks/break", self._break, Role.LOCK)
        door.sealed("GET", "/v1/locks", self._locks, Role.LOCK)

    def start(self) -> None:
        """Starts the thread that ends leases and places."""
        self.service.start()

    def close(self) -> None:
        """Answers those who wait, stops the thread and closes the database."""
        self.service.close()

    def _acquire(self, call: Call) -> bytes:
        return self.service.acquire(call.ticket, call.counter(), call.message(Acquire))

    def _release(self, call: Call) -> bytes:
        return self.service.release(call.ticket, call.counter(), call.message(Release))

    def _renew(self, call: Call) -> bytes:
        return self.service.renew(call.ticket, call.counter(), call.message(Renew))

    def _set_range(self, call: Call) -> bytes:
        return self.service.set_range(call.ticket, call.counter(), call.message(SetRange))

    def _leave_range(self, call: Call) -> bytes:
        return self.service.leave_range(call.ticket, call.counter(), call.message(LeaveRange))

    def _ask_range(self, call: Call) -> RangeAnswer:
        return self.service.ask_range(call.ticket, call.message(AskRange))

    def _restate_ranges(self, call: Call) -> bytes:
        return self.service.restate_ranges(call.ticket, call.counter(), call.message(Restate))

    def _break(self, call: Call) -> bytes:
        return self.service.break_lock(call.ticket, call.counter(), call.message(Break))

    def _locks(self, _call: Call) -> Locks:
        return self.service.locks()


def make_server(config: LockConfig) -> LockServer:
    """The lock server, not started: leases end by themselves only after ``start``."""
    return LockServer(config)
