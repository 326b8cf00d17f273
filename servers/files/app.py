"""Routes of a file server, and the parts it is made of."""

from clients.files import ChunkClient
from clients.http import HttpWire
from clients.session import Wire
from clients.storage import StorageClient
from servers.files.addresses import Addresses
from servers.files.agent import Agent
from servers.files.config import FilesConfig
from servers.files.peers import own_keyring
from servers.files.scrub import Scrub
from servers.files.service import FilesService
from servers.files.store import ChunkStore
from servers.seals import Call
from servers.web import Door, Server
from wire.chunking import CHUNK_ID_BYTES
from wire.errors import BadMessage
from wire.messages.common import Empty
from wire.messages.files import PutChunk, Stored
from wire.tickets import Role

COPY_DEADLINE_SECONDS = 10.0


class FileServer:
    """A ``servers.web.Server``; ``store``, ``addresses``, ``agent`` and ``scrub`` are its parts."""

    def __init__(self, config: FilesConfig, wire: Wire) -> None:
        keyring = own_keyring(config.keys, config.name, config.clock)
        peers = ChunkClient(wire, keyring, COPY_DEADLINE_SECONDS)
        directory = StorageClient(wire, config.directory_url, keyring)
        self.store = ChunkStore(config)
        self.addresses = Addresses(lambda: self.agent.wake_up())
        self.agent = Agent(config, self.store, directory, self.addresses, peers)
        self.scrub = Scrub(self.store, config.scrub_seconds, self.agent.lost)
        self._service = FilesService(
            config, self.store, self.addresses, peers, lambda: self.agent.id, self.scrub.doubt
        )
        door = Door("files", {Role.FILES: config.keys.tickets[Role.FILES]}, config.clock)
        door.sealed("PUT", "/v1/chunks/<chunk>", self._put, Role.FILES)
        door.sealed("GET", "/v1/chunks/<chunk>", self._get, Role.FILES)
        door.sealed("POST", "/v1/chunks/<chunk>/doubt", self._doubt, Role.FILES)
        self.app = door.app

    def start(self) -> None:
        """Registers with the directory and begins the scrub, in the background."""
        self.agent.start()
        self.scrub.start()

    def close(self) -> None:
        """Stops the background and closes the store."""
        self.scrub.close()
        self.agent.close()
        self._service.close()
        self.store.close()

    def _put(self, call: Call, chunk: str) -> Stored:
        return self._service.put(_chunk_id(chunk), call.message(PutChunk), call.request_id)

    def _get(self, call: Call, chunk: str) -> bytes:
        return self._service.get(_chunk_id(chunk))

    def _doubt(self, call: Call, chunk: str) -> Empty:
        call.message(Empty)
        return self._service.doubt(_chunk_id(chunk))


def make_server(config: FilesConfig, wire: Wire | None = None) -> Server:
    """The file server; ``wire`` is how it reaches the directory and the other file servers."""
    return FileServer(config, wire or HttpWire())


def _chunk_id(text: str) -> bytes:
    try:
        chunk_id = bytes.fromhex(text)
    except ValueError:
        chunk_id = b""
    if len(chunk_id) != CHUNK_ID_BYTES or chunk_id.hex() != text:
        raise BadMessage("a chunk id has 96 hexadecimal digits")
    return chunk_id
