"""What no well-behaved client sends: every route answers it, logs no error, and changes nothing.

"Nothing" is meant literally: everything that the services have on disk is compared, row by row.
"""

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import inspect

from clients.files import ChunkClient
from clients.http import HttpWire
from servers.files.app import FileServer
from servers.files.config import FilesConfig
from servers.keys import new_realm_keys
from tests.support.house import CHUNK, DATA, PASSWORD, ROUTES, House, Reply, Route, route
from tests.support.inprocess import InProcessWire, make_keyring
from tests.support.times import NOON
from wire import codec
from wire.errors import Problem
from wire.limits import BODY_BYTES_MAX, HEADER_BYTES_MAX
from wire.messages import auth, directory, files, lock
from wire.messages.auth import Credential
from wire.messages.common import ServerAddress
from wire.sealing import new_key, reply_context, request_context, seal, seal_to_server
from wire.tickets import Role

PLAIN = {"GET /healthz", "GET /metrics", "GET /v1/realm", "POST /v1/signup", "POST /v1/login"}

TAKING = [route for route in ROUTES if route.messages]
MUTATIONS = [route for route in ROUTES if route.is_mutation]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One for all tests that change nothing."""
    house = House(tmp_path_factory.mktemp("house"))
    yield house
    house.close()


@pytest.fixture(scope="module")
def scratch_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One for tests that may change anything."""
    house = House(tmp_path_factory.mktemp("scratch"))
    yield house
    house.close()


@pytest.fixture
def own_house(tmp_path: Path) -> Iterator[House]:
    """One that the test may change."""
    house = House(tmp_path)
    yield house
    house.close()


@pytest.fixture(autouse=True)
def no_error(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that a client sends is an error of the service."""
    yield
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    errors = [record.getMessage() for record in records if record.levelno >= logging.ERROR]
    assert not errors


@pytest.fixture
def unchanged(house: House) -> Iterator[None]:
    """After the test everything is as before."""
    before = house.state()
    yield
    assert house.state() == before


each_route = pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
each_taking = pytest.mark.parametrize("route", TAKING, ids=lambda route: route.name)
each_silent = pytest.mark.parametrize(
    "route", [route for route in ROUTES if not route.messages], ids=lambda route: route.name
)
each_mutation = pytest.mark.parametrize("route", MUTATIONS, ids=lambda route: route.name)


def refused(reply: Reply, status: int = 401) -> None:
    """Answered without a seal: nobody is known to whom it could be sealed."""
    assert (reply.status, reply.is_sealed, reply.problem.status) == (status, False, status)


def first_body(route: Route) -> bytes:
    """A body that the route takes."""
    return codec.encode(route.messages[0]) if route.messages else b""


def test_the_table_has_every_route(house: House) -> None:
    there = {
        f"{method} {rule.rule}"
        for server in house.servers.values()
        for rule in server.app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert there == {route.name for route in ROUTES} | PLAIN


# The ticket


@each_route
@pytest.mark.usefixtures("unchanged")
def test_no_right_ticket(house: House, route: Route) -> None:
    right = house.credentials[route.role]
    role_key = house.ticket_key(route.role)
    others = [role for role in Role if role is not route.role]
    wrong = [
        None,
        Credential(route.role, right.key, b""),
        Credential(route.role, right.key, b"garbage" * 20),
        Credential(route.role, right.key, right.ticket[:-1]),
        Credential(route.role, right.key, right.ticket + b"x"),
        house.forged(route.role, new_key()),
        *(house.credentials[role] for role in others),
        *(house.forged(role, role_key) for role in others),
        # A client's word about itself, sealed under the key that it has: a session key is no ticket key.
        house.forged(route.role, right.key),
    ]
    if route.rule != "/v1/sessions/renew":
        wrong.append(house.forged(route.role, role_key, expires=NOON - 1))
    for credential in wrong:
        request_id = house.request_id(route)
        key = credential.key if credential else right.key
        sealed = seal(key, first_body(route), request_context(route.method, route.path, request_id))
        refused(house.deliver(route, credential, sealed, request_id))


@pytest.mark.usefixtures("unchanged")
def test_a_ticket_header_that_is_no_base64(house: House) -> None:
    for text in ("!!!!", "AAA", "Aÿ==", " ", "A" * 4095):
        for one in ROUTES:
            refused(house.deliver(one, None, b"x" * 99, "1.1", headers={"DFS-Ticket": text}))


# The seal


@each_route
@pytest.mark.usefixtures("unchanged")
def test_no_right_seal(house: House, route: Route) -> None:
    right = house.credentials[route.role]
    body = first_body(route)
    method, path = route.method, route.path
    request_id = house.request_id(route)

    def sealed(key: bytes, method: str, path: str, request_id: str) -> bytes:
        return seal(key, body, request_context(method, path, request_id))

    good = sealed(right.key, method, path, request_id)
    for wrong in (
        sealed(new_key(), method, path, request_id),
        sealed(right.key, method, path + "1", request_id),
        sealed(right.key, method, path + "?a=1", request_id),
        sealed(right.key, "PATCH", path, request_id),
        sealed(right.key, method, path, request_id + "0"),
        seal(right.key, body, reply_context(200, method, path, request_id)),
        good[:-1],
        good[:12],
        good + b"\0",
        body or b"no body",
    ):
        refused(house.deliver(route, right, wrong, request_id))
    refused(house.deliver(route, right, good, request_id + "0"))
    refused(house.deliver(route, right, good, request_id, path=path + "?a"))


@each_mutation
@pytest.mark.usefixtures("unchanged")
def test_a_mutation_needs_a_counter_of_its_own_session(house: House, route: Route) -> None:
    session = f"{house.session.session:x}"
    for request_id in ("x", f"{session}-7", f"{session}.", f"{session}.-1", f"{session}.{2**63}", "1.7"):
        reply = house.send(route, route.messages[0], request_id)
        assert (reply.status, reply.is_sealed) == (400, True)


# The message


def spoiled(kind: inspect.Type, value: Any) -> Iterator[tuple[str, Any]]:
    """Values that do not fit ``kind``, each made from ``value`` (which does) by one change. With each the
    name of the field that is wrong; "" if it is the value itself."""
    match kind:
        case inspect.UnionType():
            inner = next((one for one in kind.types if _is_of(one, value)), None)
            if inner:
                yield from ((name, wrong) for name, wrong in spoiled(inner, value) if wrong is not None)
            if isinstance(value, dict) and "type" in value:
                yield "", value | {"type": "Nonsense"}
        case inspect.StructType(array_like=True):
            yield "", 7
            yield "", value[:-1]
            for place, field in enumerate(kind.fields):
                for _, wrong in spoiled(field.type, value[place]):
                    yield "", [*value[:place], wrong, *value[place + 1 :]]
        case inspect.StructType():
            yield "", 7
            yield "", []
            for field in kind.fields:
                if field.required:
                    left = {key: one for key, one in value.items() if key != field.encode_name}
                    yield field.encode_name, left
                for name, wrong in spoiled(field.type, value.get(field.encode_name)):
                    yield name or field.encode_name, value | {field.encode_name: wrong}
        case inspect.ListType():
            yield "", 7
            for name, wrong in spoiled(kind.item_type, value[0]) if value else ():
                yield name, [wrong, *value[1:]]
            if kind.max_length is not None:
                yield "", (value or [0]) * (kind.max_length + 1)
            if kind.min_length:
                yield "", []
        case inspect.IntType() | inspect.FloatType():
            yield from (("", wrong) for wrong in ("1", None, b"1", [1]))
            if kind.ge is not None and kind.ge > -(2**63):
                yield "", kind.ge - 1
            if kind.le is not None:
                yield "", kind.le + 1
            yield from (("", wrong) for wrong in _no_number(kind))
        case inspect.BytesType() | inspect.StrType():
            unit: str | bytes = b"x" if isinstance(kind, inspect.BytesType) else "x"
            no_text: tuple[object, ...] = (7, None, [], {})
            yield from (("", wrong) for wrong in no_text)
            if kind.max_length is not None:
                yield "", unit * (kind.max_length + 1)
            if kind.min_length:
                yield "", unit * (kind.min_length - 1)
        case inspect.BoolType():
            yield from (("", wrong) for wrong in ("true", 1, None))
        case _:
            raise AssertionError(f"how to spoil {kind}?")


def _no_number(kind: inspect.IntType | inspect.FloatType) -> list[float]:
    if isinstance(kind, inspect.IntType):
        return [0.5, float("nan")]
    return [float("nan"), float("inf")] if kind.le is not None else []


def _is_of(kind: inspect.Type, value: Any) -> bool:
    """Whether a value of a union is of this member of it."""
    match kind:
        case inspect.NoneType():
            return False
        case inspect.StructType(tag=str()):
            return isinstance(value, dict) and value.get("type") == kind.tag
        case _:
            return value is not None


def test_spoiling_finds_fields_limits_and_types() -> None:
    kind = inspect.type_info(lock.Acquire)
    wrong = list(spoiled(kind, msgspec.to_builtins(lock.Acquire(1, [5], 0.0))))
    assert ("acked", {"inos": [5], "wait_seconds": 0.0}) in wrong
    assert ("inos", {"acked": 1, "inos": [0], "wait_seconds": 0.0}) in wrong
    assert ("wait_seconds", {"acked": 1, "inos": [5], "wait_seconds": 21.0}) in wrong


@each_taking
@pytest.mark.usefixtures("unchanged")
def test_a_message_that_does_not_fit(house: House, route: Route) -> None:
    seen: set[bytes] = set()
    for message in route.messages:
        plain = msgspec.msgpack.decode(codec.encode(message))
        for field_name, wrong in spoiled(inspect.type_info(type(message)), plain):
            body = msgspec.msgpack.encode(wrong)
            if body in seen or len(body) > BODY_BYTES_MAX - 100:
                continue
            seen.add(body)
            reply = house.send(route, body)
            said = (reply.status, reply.is_sealed, field_name, str(wrong)[:300], reply.body[:200])
            assert said[:2] == (400, True), said
            assert reply.problem.kind == "BadMessage", said
            assert field_name in reply.problem.detail, said


DEEP = b"\x91" * 100_000 + b"\xc0"
NO_MESSAGES = [
    b"",
    b"\xc1",
    b"\x80\x80",
    b"\xc0",
    b"garbage",
    b"\xff" * 1000,
    b"\x81\xa1",
    b"\xdf\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\x81\xa1x\xc6\xff\xff\xff\xff",
    DEEP,
    b"\x81\xa1x" + DEEP,
]


@each_taking
@pytest.mark.usefixtures("unchanged")
def test_no_message_at_all(house: House, route: Route) -> None:
    for body in NO_MESSAGES:
        reply = house.send(route, body)
        assert (reply.status, reply.is_sealed) == (400, True), body[:20]
        assert reply.problem.kind == "BadMessage"


@each_silent
@pytest.mark.usefixtures("unchanged")
def test_a_message_where_none_is_taken(house: House, route: Route) -> None:
    for body in (b"\x80", b"garbage"):
        reply = house.send(route, body)
        assert (reply.status, reply.is_sealed, reply.problem.kind) == (400, True, "BadMessage")


# Sizes


@each_route
@pytest.mark.usefixtures("unchanged")
def test_what_is_too_large(house: House, route: Route) -> None:
    right = house.credentials[route.role]
    request_id = house.request_id(route)
    sealed = seal(right.key, first_body(route), request_context(route.method, route.path, request_id))
    long = "A" * (HEADER_BYTES_MAX + 1)
    refused(house.deliver(route, right, sealed, request_id, headers={"DFS-Ticket": long}), 413)
    for text in ("1" * 65, "", "a\tb"):
        refused(house.deliver(route, right, sealed, text), 400)
    if route.method in ("PUT", "POST"):
        refused(house.deliver(route, right, b"x" * (BODY_BYTES_MAX + 1), request_id), 413)
        for name, text, status in (
            ("CONTENT_LENGTH", str(10**12), 413),
            ("CONTENT_LENGTH", "9" * 5000, 400),
            ("CONTENT_LENGTH", "nonsense", 400),
            ("CONTENT_LENGTH", "-1", 400),
            ("CONTENT_LENGTH", str(len(sealed) + 1), 400),
            ("HTTP_TRANSFER_ENCODING", "chunked", 400),
        ):
            refused(house.deliver(route, right, sealed, request_id, environ={name: text}), status)
        refused(house.deliver(route, right, b"", request_id), 400)
    else:
        refused(house.deliver(route, right, sealed, request_id, headers={"DFS-Seal": long}), 413)


@pytest.mark.usefixtures("unchanged")
def test_numbers_in_a_url_that_are_none(house: House) -> None:
    for one in ROUTES:
        if "<" not in one.rule:
            continue
        for text in ("-1", "0x1", "1e3", "9" * 30, "9" * 5000, "\u0661", "%00", "a%0Ab", "x", "a" * 97):
            path = one.rule.split("<")[0] + text + one.rule.partition(">")[2]
            request_id = house.request_id(one)
            right = house.credentials[one.role]
            sealed = seal(right.key, first_body(one), request_context(one.method, path, request_id))
            reply = house.deliver(one, right, sealed, request_id, path=path)
            assert reply.status in (400, 401, 404), (one.name, text[:40])


def test_a_chunk_is_not_forwarded_to_what_is_no_address(tmp_path: Path) -> None:
    keys = new_realm_keys()["files"]
    nowhere = "http://127.0.0.1:1"
    with closing(FileServer(FilesConfig(keys, tmp_path, "f", nowhere, nowhere), HttpWire())) as server:
        server.agent.id = 1
        wire = InProcessWire()
        wire.apps["http://files"] = server.app
        chunks = ChunkClient(wire, make_keyring(keys.tickets))
        for url in (
            "",
            "xxx",
            "http://",
            "http://[",
            "http://a..b",
            "http://℀",
            f"http://{'a' * 300}",
            "http://h:x",
        ):
            server.addresses.learn([ServerAddress(2, url)])
            message = files.PutChunk(DATA, [2])
            assert chunks.put_once(ServerAddress(1, "http://files"), CHUNK, message, 1.0).servers == [1], url


def test_a_url_writes_no_line_into_the_log(house: House, caplog: pytest.LogCaptureFixture) -> None:
    one = route("GET /v1/chunks/<chunk>")
    refused(house.deliver(one, None, b"", "1-1", path="/v1/chunks/a%0A2026-01-01 00:00:00,000 ERROR forged"))
    assert [record.getMessage().count("\n") for record in caplog.records] == [0]


# Before there is a session


@pytest.mark.parametrize("path", ["/v1/signup", "/v1/login"])
@pytest.mark.usefixtures("unchanged")
def test_credentials_that_are_none(house: House, path: str) -> None:
    client = house.servers["auth"].app.test_client()
    public_key = msgspec.json.decode(client.get("/v1/realm").data, type=auth.Realm).public_key
    other = "/v1/login" if path == "/v1/signup" else "/v1/signup"
    good = auth.Credentials("mallory", PASSWORD, "x", b"n" * 16)

    def body(data: bytes, context: str = path) -> bytes:
        sealed = seal_to_server(public_key, data, f"dfs1 credentials {context}".encode())
        return codec.encode(auth.SealedCredentials(sealed))

    bad = [
        *NO_MESSAGES,
        codec.encode(auth.SealedCredentials(b"")),
        codec.encode(auth.SealedCredentials(b"x" * 8192)),
        codec.encode(auth.SealedCredentials(b"x" * 8193)),
        body(codec.encode(good), other),
        body(codec.encode(good))[:-1],
        *(body(data) for data in NO_MESSAGES if len(data) < 5000),
        body(b"\x81\xa1x" + b"\x91" * 7000 + b"\xc0"),
    ]
    kind = inspect.type_info(auth.Credentials)
    plain = msgspec.msgpack.decode(codec.encode(good))
    bad += [body(msgspec.msgpack.encode(wrong)) for _, wrong in spoiled(kind, plain)]
    for data in bad:
        answer = client.post(path, data=data)
        assert answer.status_code in (400, 401, 413), data[:40]
        assert msgspec.json.decode(answer.data, type=Problem).status == answer.status_code
    assert client.post(path, data=b"x" * 20_000).status_code == 413


# The same message again

REMEMBERED = [(one, message) for one in MUTATIONS if one.role is not Role.JOIN for message in one.messages]


def sealed_for(house: House, route: Route, message: msgspec.Struct, request_id: str) -> bytes:
    """The bytes that a right client sends."""
    key = house.credentials[route.role].key
    return seal(key, codec.encode(message), request_context(route.method, route.path, request_id))


@pytest.mark.parametrize(
    ("route", "message"), REMEMBERED, ids=lambda value: getattr(value, "name", None) or _kind(value)
)
def test_a_replayed_mutation_is_done_once(own_house: House, route: Route, message: msgspec.Struct) -> None:
    house, right = own_house, own_house.credentials[route.role]
    request_id = house.request_id(route)
    sealed = sealed_for(house, route, message, request_id)
    before = house.state()
    first = house.deliver(route, right, sealed, request_id)
    after = house.state()
    assert after != before
    for _ in range(2):
        assert house.deliver(route, right, sealed, request_id) == first
    # The first replay of a password change counts a guess, and takes it back.
    assert house.state() == after
    if isinstance(message, auth.ChangePassword | auth.ChangeUser):
        return
    acked = int(request_id.partition(".")[2]) + 1
    later = msgspec.structs.replace(message, acked=acked)
    house.send(route, later)
    after = house.state()
    replayed = house.deliver(route, right, sealed, request_id)
    assert (replayed.status, replayed.problem.kind) == (409, "Replayed")
    assert house.state() == after


def _kind(value: object) -> str:
    return type(value.ops[0] if isinstance(value, directory.Mutations) else value).__name__


@pytest.mark.parametrize(
    "route", [one for one in MUTATIONS if one.role is Role.JOIN], ids=lambda one: one.name
)
def test_what_a_file_server_said_already_is_refused(own_house: House, route: Route) -> None:
    house, right = own_house, own_house.credentials[route.role]
    request_id = house.request_id(route)
    sealed = sealed_for(house, route, route.messages[0], request_id)
    assert house.deliver(route, right, sealed, request_id).status == 200
    for answered in (request_id, house.request_id(route)):
        # Also the last word of a server that is dead by now: it would be alive again.
        if answered != request_id:
            assert house.send(route, route.messages[0], answered).status == 200
        after = house.state()
        replayed = house.deliver(route, right, sealed, request_id)
        assert (replayed.status, replayed.problem.kind) == (409, "Replayed")
        assert house.state() == after


@pytest.mark.parametrize("path", ["/v1/signup", "/v1/login"])
def test_replayed_credentials_make_nothing_new(own_house: House, path: str) -> None:
    client = own_house.servers["auth"].app.test_client()
    public_key = msgspec.json.decode(client.get("/v1/realm").data, type=auth.Realm).public_key
    user = "bob" if path == "/v1/signup" else "alice"
    credentials = codec.encode(auth.Credentials(user, PASSWORD, "x", b"m" * 16))
    body = codec.encode(
        auth.SealedCredentials(seal_to_server(public_key, credentials, b"dfs1 credentials " + path.encode()))
    )
    assert client.post(path, data=body).status_code == 200
    after = own_house.state()
    assert client.post(path, data=body).status_code == 200
    assert own_house.state() == after


# Chance

QUICK = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def fitting(kind: inspect.Type, name: str = "") -> st.SearchStrategy[Any]:
    """Values that fit ``kind``: the ends of its range, and what the house has, so that the rules are met."""
    match kind:
        case inspect.UnionType():
            return st.one_of([fitting(one, name) for one in kind.types])
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.StructType():
            tag = {"type": st.just(kind.tag)} if kind.tag else {}
            fields = {field.encode_name: fitting(field.type, field.encode_name) for field in kind.fields}
            return st.fixed_dictionaries(tag | fields)
        case inspect.ListType():
            return st.lists(
                fitting(kind.item_type, name),
                min_size=kind.min_length or 0,
                max_size=min(kind.max_length or 4, 4),
            )
        case inspect.IntType():
            low, high = kind.ge or 0, kind.le if kind.le is not None else 2**63 - 1
            known = [one for one in (0, 1, 2, 3, 4, 0o100644, 0o40755) if low <= one <= high]
            return st.sampled_from([low, high, *known, *known]) | st.integers(low, high)
        case inspect.FloatType():
            return st.sampled_from([0.0, 0.001]) if name == "wait_seconds" else st.floats(allow_nan=True)
        case inspect.BytesType():
            return _bytes(kind)
        case inspect.StrType():
            most = kind.max_length or 40
            return st.text(min_size=kind.min_length or 0, max_size=min(most, 40)) | st.just("x" * most)
        case _:
            raise AssertionError(f"what fits {kind}?")


def _bytes(kind: inspect.BytesType) -> st.SearchStrategy[bytes]:
    least, most = kind.min_length or 0, min(kind.max_length or 4096, 65536)
    known = [b"file", b"folder", b"user.old", b"system.x", CHUNK, b"c" * 16, b".", b"/", b"\0", b"x" * most]
    fits = [one for one in known if least <= len(one) <= most]
    return st.sampled_from(fits) | st.binary(min_size=least, max_size=min(most, max(least, 60)))


@each_route
@QUICK
@given(data=st.data())
def test_random_bytes_in_a_seal(house: House, route: Route, data: st.DataObject) -> None:
    # An empty map is a message where all may be left out.
    reply = house.send(route, data.draw(st.binary(min_size=1).filter(lambda raw: raw != b"\x80")))
    assert (reply.status, reply.is_sealed) == (400, True)


@each_route
@QUICK
@given(
    sealed=st.binary(),
    request_id=st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=70),
)
def test_random_bytes_without_a_seal(house: House, route: Route, sealed: bytes, request_id: str) -> None:
    reply = house.deliver(route, house.credentials[route.role], sealed, request_id)
    assert reply.status in (400, 401)


@each_taking
@QUICK
@given(data=st.data())
def test_a_right_message_with_a_few_wrong_bytes(
    scratch_house: House, route: Route, data: st.DataObject
) -> None:
    body = bytearray(codec.encode(data.draw(st.sampled_from(route.messages))))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    reply = scratch_house.send(route, bytes(body))
    assert reply.is_sealed
    assert reply.status != 500


@each_taking
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@QUICK
@given(data=st.data())
def test_a_message_that_fits_and_makes_no_sense(
    scratch_house: House, route: Route, data: st.DataObject
) -> None:
    message = data.draw(fitting(inspect.type_info(type(route.messages[0]))))
    reply = scratch_house.send(route, msgspec.msgpack.encode(message))
    assert reply.is_sealed
    assert reply.status != 500, (message, reply.body)
