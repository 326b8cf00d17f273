"""A file server's life with the directory: it registers, sends heartbeats, does its tasks, tells what it has.

Two threads. ``heart`` registers (and again whenever the directory does not know the server any more), then
sends heartbeats; something to report wakes it early. ``inventory`` sends the list of all chunks after each
registration and now and then, and deletes what nobody knows. Neither gives up while the server runs.
"""

import errno
import logging
import os
import threading

from clients.files import ChunkClient
from clients.storage import StorageClient
from servers.files.addresses import Addresses
from servers.files.config import FilesConfig
from servers.files.disk import identity
from servers.files.store import ChunkStore
from servers.files.tasks import Work
from wire.messages.directory import Heartbeat, Inventory, Register

log = logging.getLogger(__name__)

REPORT_PAUSE_SECONDS = 0.02
"""Between something to report and the heartbeat that does: what is done meanwhile goes with it."""
INVENTORY_RETRY_SECONDS = 5.0
INVENTORY_PAGE = 10000


class Agent:
    """Its threads begin with ``start``."""

    def __init__(
        self,
        config: FilesConfig,
        store: ChunkStore,
        directory: StorageClient,
        addresses: Addresses,
        peers: ChunkClient,
    ) -> None:
        self._config = config
        self._store = store
        self._directory = directory
        self._addresses = addresses
        self._identity = identity(config.root)
        self._work = Work(store, peers, self.wake_up)
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._inventory_due = threading.Event()
        self._heartbeat_seconds = 1.0
        self._answers = True
        self._threads = [
            threading.Thread(target=self._live, name="heart", daemon=True),
            threading.Thread(target=self._take_inventories, name="inventory", daemon=True),
        ]
        self.id = 0
        """The server's id at the directory; 0 while it has none."""

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stops them; what was not reported is told by the next inventory."""
        self._stopping.set()
        self._wake.set()
        self._inventory_due.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._work.close()

    def lost(self, chunk_id: bytes) -> None:
        """Reports a chunk that this server has no more."""
        self._work.lost(chunk_id)

    def wake_up(self) -> None:
        """Has the next heartbeat sent soon."""
        self._wake.set()

    def _live(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                if self.id:
                    self.beat()
                else:
                    self.register()
                failures = 0
            except OSError as error:
                failures += 1
                log.log(logging.INFO if failures == 1 else logging.DEBUG, "the directory: %s", error)
            except Exception:
                failures += 1
                log.exception("a heartbeat failed unforeseen")
            self._rest(failures)

    def _rest(self, failures: int) -> None:
        """Until the next heartbeat is due; after a failure sooner, at first."""
        if failures:
            self._stopping.wait(min(0.1 * 2 ** min(failures, 10), self._heartbeat_seconds))
        elif self._wake.wait(self._heartbeat_seconds):
            self._stopping.wait(REPORT_PAUSE_SECONDS)

    def register(self) -> None:
        """Gets the server's id from the directory, and sends the first heartbeat. Raises OSError."""
        space = self._store.space()
        registered = self._directory.register(
            Register(
                self._identity,
                self._config.name,
                self._config.url,
                space.total_bytes,
                space.free_bytes,
                os.getpid(),
            )
        )
        self._heartbeat_seconds = registered.heartbeat_seconds
        self.id = registered.id
        self._inventory_due.set()  # before what may fail: without it nothing is told for hours
        log.info("registered as server %d", self.id)
        self.beat()

    def beat(self) -> None:
        """A heartbeat: reports, and begins the tasks that come back. Raises OSError; ENOENT means that the
        server must register again."""
        self._wake.clear()  # before the reports are looked at: what comes after wakes again
        reports = self._work.reports()
        space = self._store.space()
        message = Heartbeat(space.total_bytes, space.free_bytes, *reports)
        try:
            tasks = self._directory.heartbeat(self.id, message)
        except OSError as error:
            if error.errno == errno.ENOENT:
                self.id = 0
            raise
        self._work.confirmed(*reports)
        self._addresses.learn(tasks.servers)
        self._work.take(tasks)

    def _take_inventories(self) -> None:
        wait_seconds = self._config.inventory_seconds
        while True:
            self._inventory_due.wait(wait_seconds)
            if self._stopping.is_set():
                return
            self._inventory_due.clear()
            wait_seconds = self._config.inventory_seconds
            try:
                if self.id:
                    self._take_inventory(self.id)
            except OSError as error:
                log.info("the inventory is begun again later: %s", error)
                wait_seconds = INVENTORY_RETRY_SECONDS
            except Exception:
                log.exception("the inventory failed unforeseen")

    def _take_inventory(self, server: int) -> None:
        """Names every chunk to the directory, and deletes those that it does not know and that are old.

        The inventory begins before the first page is listed: what is stored and committed in between is
        then recorded as of this inventory, and not missed at its end.
        """
        self._directory.inventory(server, Inventory([], first=True))
        page = self._store.page(b"", INVENTORY_PAGE)
        while not self._stopping.is_set():
            following = self._store.page(page[-1], INVENTORY_PAGE) if page else []
            answer = self._directory.inventory(server, Inventory(page, last=not following))
            # What went while the page was under way has come back by it: the page was older.
            self._work.gone(set(page) - self._store.present(page))
            moment = self._config.clock() - answer.older_than_seconds
            for chunk_id in self._store.stored_before(answer.unknown, moment):
                self._store.delete(chunk_id)
                log.info("chunk %s belonged to no version and was deleted", chunk_id.hex())
            if not following:
                return
            page = following
