"""Runs all services of a realm's folder, each as a process of its own.

The main thread does nothing but wait for what ends the run (``Supervisor.run``): a signal, ``dfs down``, or
a start that failed. A thread a service watches over its process (servers.supervision_child), one thread
answers the control socket, one waits at the start until all is ready.

Whatever happens to the supervisor, no service outlives it: each reads from a pipe (the lifeline) whose
other end only the supervisor has, and ends when that is closed (servers.run.exit_with_parent).
"""

import errno
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from clients.http import HttpWire
from clients.session import Channel, Keyring
from servers.keys import read_keys
from servers.minting import mint
from servers.ports import Claims
from servers.supervision import Changes, Plan, RealmRoot, Settings, rotate, tail
from servers.supervision_child import Child
from servers.supervision_control import REMAINS_SECONDS, Ask, ControlServer, RootLock, Told, ask
from wire.errors import Busy, DfsError, Unavailable, fail
from wire.messages.directory import KnownServers, Servers
from wire.tickets import Role

log = logging.getLogger(__name__)

T = TypeVar("T", KnownServers, Servers)

START_SECONDS = 60.0
LOOK_AGAIN_SECONDS = 0.05
LOOK_SECONDS = 2.0
"""How long a status waits for the directory."""


class Supervisor:
    """One run of the realm in ``root``. Made when the root's lock is held; ``run`` once."""

    def __init__(self, root: RealmRoot, settings: Settings, lock: RootLock) -> None:
        self._root = root
        self._settings = settings
        self._wire = HttpWire()
        self._ended: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()
        self._verbs = threading.Lock()
        self._control = ControlServer(root, self._handle)
        lifeline, self._life = os.pipe()
        inherit = (lifeline, lock.descriptor)
        self._children = {plan.name: Child(plan, inherit, self._wire) for plan in root.plans(settings)}

    def run(self, ready: Callable[[Told], None]) -> None:
        """Starts everything, calls ``ready`` when all answer, and returns after ``dfs down``, SIGTERM or
        SIGINT, when all have ended. Raises OSError if the realm did not become ready."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._ended.put(None))  # put() may be called from a handler
        threading.Thread(target=self._control.serve_forever, name="control", daemon=True).start()
        threading.Thread(target=self._get_ready, args=(ready,), name="start", daemon=True).start()
        failure = self._ended.get()
        log.info("stopping: %s", failure or "asked to")
        self._close()
        if failure is not None:
            raise failure

    def status(self) -> Told:
        """How everything is now."""
        return Told(
            realm=self._settings.url("auth"),
            fingerprint=self._root.fingerprint(),
            pid=os.getpid(),
            services=[child.status() for child in self._children.values()],
            servers=self._ask_directory("/v1/servers", Servers),
        )

    def _close(self) -> None:
        with self._verbs:
            files = [child for name, child in self._children.items() if name.startswith("files-")]
            # The file servers first: they speak to the directory.
            for wave in (files, [child for child in self._children.values() if child not in files]):
                with ThreadPoolExecutor(len(wave)) as pool:
                    list(pool.map(Child.close, wave))
        self._control.shutdown()
        self._control.server_close()
        self._wire.close()

    def _handle(self, question: Ask) -> Told:
        match question.verb:
            case "down":
                self._ended.put(None)
            case "stop" | "start":
                with self._verbs:
                    child = self._child(question.name)
                    log.info("asked to %s %s", question.verb, question.name)
                    child.stop() if question.verb == "stop" else child.start()
                if question.verb == "start" and not child.wait_running(START_SECONDS):
                    raise self._did_not_start(child.plan)
        return self.status()

    def _child(self, name: str) -> Child:
        try:
            return self._children[name]
        except KeyError:
            names = ", ".join(self._children)
            raise fail(errno.ENOENT, f"there is no service {name!r}; there are {names}") from None

    def _get_ready(self, ready: Callable[[Told], None]) -> None:
        try:
            for child in self._children.values():
                child.start()
            for child in self._children.values():
                if not child.wait_running(START_SECONDS):
                    raise self._did_not_start(child.plan)
            self._wait_for_file_servers()
            log.info("ready at %s", self._settings.url("auth"))
            ready(self.status())
        except OSError as error:
            self._ended.put(error)

    def _wait_for_file_servers(self) -> None:
        missing = {name for name in self._children if name.startswith("files-")}
        deadline = time.monotonic() + START_SECONDS
        while missing:
            if time.monotonic() > deadline:
                raise self._did_not_start(self._children[min(missing)].plan)
            if known := self._ask_directory("/v1/servers/known", KnownServers):
                missing -= {server.name for server in known.servers if server.state == "alive"}
            time.sleep(LOOK_AGAIN_SECONDS if missing else 0.0)

    def _did_not_start(self, plan: Plan) -> OSError:
        end = tail(plan.log)
        return DfsError(f"{plan.name} did not start; the end of {plan.log}:\n{end}")

    def _ask_directory(self, path: str, answer: type[T]) -> T | None:
        """The directory's word, asked with a ticket made from its own keys; None if it is away."""
        keys = read_keys(self._root.keys("directory")).tickets
        channel = Channel(
            self._wire,
            self._settings.local_url("directory"),
            Role.DIRECTORY,
            _own_keyring(keys[Role.DIRECTORY]),
            deadline_seconds=LOOK_SECONDS,
        )
        try:
            return channel.call("GET", path, None, answer)
        except Unavailable:
            return None


def _own_keyring(ticket_key: bytes) -> Keyring:
    """A directory session that lasts for one look and belongs to no user."""
    keys = {Role.DIRECTORY: ticket_key}
    number, name = int.from_bytes(os.urandom(7)) + 1, "supervisor"
    return Keyring(mint(keys, keys, number, name, name, now=time.time(), life_seconds=60.0))


def run(root: RealmRoot, changes: Changes, ready: Callable[[Told], None]) -> None:
    """Runs the realm in ``root`` until it is told to end. Raises Busy if it runs already, EADDRINUSE if
    somebody else has one of its ports, and what ``Supervisor.run`` raises."""
    os.umask(0o077)
    root.make()
    lock = _take(root)  # until this process and all that inherited the lock have ended
    _log_to(root)
    root.make_keys()
    claims = Claims()  # until this process ends
    settings = root.settings(changes, claims)
    for name, port in [*settings.ports.items(), ("the feed", settings.feed_port)]:
        if port and not claims.take(settings.host, port):
            raise fail(errno.EADDRINUSE, f"port {port}, for {name}, is taken: choose others with --port")
    root.record(settings)
    Supervisor(root, settings, lock).run(ready)


def _log_to(root: RealmRoot) -> None:
    """To the supervisor's log; warnings to the terminal too, if somebody sits there."""
    rotate(root.log("supervisor"))
    handlers: list[logging.Handler] = [logging.FileHandler(root.log("supervisor"))]
    if sys.stderr.isatty():
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setLevel(logging.WARNING)
        handlers.append(terminal)
    logging.basicConfig(
        level=logging.INFO, handlers=handlers, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )


def _take(root: RealmRoot) -> RootLock:
    """The root's lock. What a killed supervisor left behind is given time to end."""
    lock = RootLock(root)
    deadline = time.monotonic() + REMAINS_SECONDS
    while not lock.try_to_take():
        try:
            running = ask(root, Ask("status"))
        except OSError as error:
            if time.monotonic() > deadline:
                raise Busy(f"processes of an earlier run in {root.path} do not end") from error
            time.sleep(0.05)
        else:
            raise Busy(f"the realm in {root.path} runs already, at {running.realm} (process {running.pid})")
    return lock
