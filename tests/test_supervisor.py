"""The supervisor: what it starts, what it starts again, and that nothing outlives it."""

import errno
import itertools
import os
import random
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from clients.http import HttpWire
from clients.session import call_plain
from dfs.logins import own_services
from servers.ports import Claims
from servers.supervision import Changes, Plan, RealmRoot, Settings
from servers.supervision_child import Child
from servers.supervision_control import Ask, ControlServer, RootLock, Told, ask
from tests.support.ports import own_ports
from tests.support.processes import marked
from tests.support.realm import RealRealm
from tests.support.times import wait_until
from wire.errors import fail
from wire.messages.common import Health
from wire.messages.lock import Held

NAMES = ["auth", "directory", "lock", "files-1", "files-2"]


@pytest.fixture(scope="module")
def own_realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRealm]:
    """A realm whose services these tests may kill and stop, one test after the other."""
    with RealRealm(tmp_path_factory.mktemp("own") / "realm") as realm:
        yield realm


@pytest.fixture
def root(tmp_path: Path) -> RealmRoot:
    root = RealmRoot(tmp_path / "root")
    root.make()
    return root


def health(wire: HttpWire, url: str) -> Health:
    return msgspec.json.decode(call_plain(wire, "GET", f"{url}/healthz", b""), type=Health)


def test_every_service_answers_from_its_own_process(own_realm: RealRealm) -> None:
    services = own_realm.status()["services"]
    assert [service["name"] for service in services] == NAMES
    with closing(HttpWire()) as wire:
        for service in services:
            assert service["state"] == "running"
            answer = health(wire, service["url"])
            assert answer.service == service["role"]
            assert os.getpgid(answer.pid) == service["pid"]


def test_what_is_kept_is_for_the_owner_only(own_realm: RealRealm) -> None:
    for path in own_realm.root.rglob("*"):
        assert not stat.S_IMODE(path.lstat().st_mode) & 0o077, path


def test_a_second_supervisor_is_refused_in_one_sentence(own_realm: RealRealm) -> None:
    refused = own_realm.run("up", "--root", str(own_realm.root), status=6)
    assert refused.stderr.splitlines() == [
        f"dfs: the realm in {own_realm.root} runs already, at {own_realm.url}"
        f" (process {own_realm.process.pid})"
    ]


@pytest.mark.parametrize("name", ["directory", "files-1"])
def test_a_killed_service_is_started_again(own_realm: RealRealm, name: str) -> None:
    old = own_realm.kill(name)
    assert own_realm.wait_running(name, other_than=old) != old


def test_a_killed_worker_takes_its_service_down_and_it_is_started_again(own_realm: RealRealm) -> None:
    own_realm.expect_log(r"Unexpected exit from worker|lock ended with status 1")
    service = own_realm.service("lock")
    with closing(HttpWire()) as wire:
        os.kill(health(wire, service["url"]).pid, signal.SIGKILL)
    own_realm.wait_running("lock", other_than=service["pid"])


def test_a_stopped_service_stays_away_until_it_is_started(own_realm: RealRealm) -> None:
    root = ("--root", str(own_realm.root))
    own_realm.run("stop", "files-2", *root)
    service = own_realm.service("files-2")
    assert (service["state"], service["pid"]) == ("stopped", 0)
    own_realm.run("start", "files-2", *root)
    assert own_realm.service("files-2")["state"] == "running"
    unknown = own_realm.run("stop", "files-9", *root, status=7)
    assert "there is no service 'files-9'" in unknown.stderr


def test_who_waits_does_not_hold_up_a_stop_and_waits_on_afterwards(
    own_realm: RealRealm, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_realm.join("judy")
    monkeypatch.setenv("DFS_STATE", str(own_realm.state("judy")))
    with (
        own_services(own_realm.url) as holder,
        own_services(own_realm.url) as waiter,
        ThreadPoolExecutor(1) as pool,
    ):
        held = holder.lock.acquire([7]).answers[0]
        waiting = pool.submit(waiter.lock.acquire, [7], 20.0)
        wait_until(lambda: holder.lock.locks().locks[0].queue)
        own_realm.stop("lock")  # within its time: being killed would be a warning in the log
        own_realm.go_on("lock")
        holder.lock.release([Held(7, held.token)])
        granted = waiting.result().answers[0]
        assert granted.token > held.token
        waiter.lock.release([Held(7, granted.token)])


def test_nothing_outlives_a_killed_supervisor_and_the_realm_comes_back(realm: RealRealm) -> None:
    realm.join("alice")
    url, fingerprint = realm.url, realm.fingerprint
    assert len(marked(realm.mark)) > len(NAMES)
    realm.kill_supervisor()
    wait_until(lambda: not marked(realm.mark))
    realm.start()
    assert (realm.url, realm.fingerprint) == (url, fingerprint)
    assert realm.run("locks", user="alice").stdout == "No file is locked.\n"


def test_a_supervisor_waits_for_what_a_killed_one_left(realm: RealRealm) -> None:
    realm.kill_supervisor()
    realm.start()  # at once: no service of the earlier run may still have its database
    assert all(service["state"] == "running" for service in realm.status()["services"])


def test_in_the_background_from_up_to_down(realm: RealRealm) -> None:
    root = ("--root", str(realm.root))
    realm.run("down", *root)
    assert realm.process.wait() == 0
    assert not marked(realm.mark)
    told = realm.run("up", *root, "--detach")
    assert realm.url in told.stdout
    assert all(service["state"] == "running" for service in realm.status()["services"])
    assert "runs already" in realm.run("up", *root, "--detach", status=6).stderr
    realm.run("down", *root)
    assert not marked(realm.mark)
    assert "no realm runs" in realm.run("down", *root, status=7).stderr


def test_a_service_that_does_not_start_is_named_with_the_end_of_its_log(own_realm: RealRealm) -> None:
    root = own_realm.folder / "broken"
    before = marked(own_realm.mark)
    failed = own_realm.run(
        *("up", "--root", str(root), "--port", "0", "--file-servers", "1"),
        *("--set", f"lock.database=sqlite:///{root}/no/such/folder/db"),
        status=1,
    )
    assert "lock did not start" in failed.stderr
    assert "unable to open database file" in failed.stderr
    assert marked(own_realm.mark) == before


def test_a_taken_port_is_noticed(own_realm: RealRealm, tmp_path: Path) -> None:
    port = own_realm.url.rpartition(":")[2]
    refused = own_realm.run("up", "--root", str(tmp_path / "root"), "--port", port, status=6)
    assert refused.stderr == f"dfs: port {port}, for auth, is taken: choose others with --port\n"
    assert not (tmp_path / "root" / "realm.json").exists(), "what did not work is not recorded"


# Without a realm


def test_a_child_that_dies_is_started_at_once_and_then_more_and_more_slowly(tmp_path: Path) -> None:
    births = tmp_path / "births"
    code = f"import time; open({str(births)!r}, 'a').write(f'{{time.time()}}\\n'); raise SystemExit(3)"
    child = made_child(tmp_path, code)
    child.start()
    wait_until(lambda: child.deaths >= 4)
    child.close()
    times = [float(line) for line in births.read_text().splitlines()]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses[2] > pauses[1] > pauses[0]
    assert child.status().state == "stopped"


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servers.supervision_child.STOP_SECONDS", 0.2)
    code = (
        "import signal, pathlib, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f" pathlib.Path({str(tmp_path / 'ready')!r}).touch(); signal.pause()"
    )
    child = made_child(tmp_path, code)
    child.start()
    wait_until((tmp_path / "ready").exists)
    pid = child.status().pid
    child.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_a_dead_child_left_in_its_group_is_killed(tmp_path: Path) -> None:
    grandchild = tmp_path / "grandchild"
    code = (
        "import os, pathlib, subprocess, sys;"
        "p = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']);"
        f"pathlib.Path({str(grandchild)!r}).write_text(str(p.pid)); os.kill(os.getpid(), 9)"
    )
    child = made_child(tmp_path, code)
    child.start()
    wait_until(lambda: child.deaths >= 1)
    child.close()
    status = subprocess.run(
        ["ps", "-o", "stat=", "-p", grandchild.read_text()], capture_output=True, text=True
    )
    assert status.stdout.strip()[:1] in ("", "Z")


def made_child(folder: Path, code: str) -> Child:
    """A child that runs ``code`` and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    return Child(Plan("child", "test", url, url, folder / "child.log", ["-c", code]), (0,), HttpWire())


def settle(root: RealmRoot, changes: Changes) -> Settings:
    """As ``dfs up`` does it."""
    with closing(Claims()) as claims:
        settings = root.settings(changes, claims)
    root.record(settings)
    return settings


def test_what_up_is_told_once_holds(root: RealmRoot) -> None:
    first = settle(root, Changes())
    assert [first.port, first.file_servers, first.replicas, first.host] == [7400, 3, 2, "127.0.0.1"]
    assert list(first.ports.values()) == [7400, 7401, 7402, 7403, 7404, 7405]
    settle(root, Changes(port=8000, file_servers=1, options={"lock": {"lease-seconds": "3"}}))
    last = settle(root, Changes(file_servers=2, options={"lock": {"threads": "70"}}))
    assert list(last.ports.values()) == [8000, 8001, 8002, 8003, 8004]
    assert last.options == {"lock": {"lease-seconds": "3", "threads": "70"}}
    assert settle(root, Changes()) == last == root.read_settings()
    assert (first.feed_port, last.feed_port) == (7406, 8005)


def test_free_ports_are_chosen_once(root: RealmRoot) -> None:
    first = settle(root, Changes(port=0, file_servers=1))
    assert len(set(first.ports.values())) == 4
    more = settle(root, Changes(file_servers=2))
    assert {name: more.ports[name] for name in first.ports} == first.ports
    assert settle(root, Changes(port=0)) == more


def test_two_realms_that_choose_at_once_choose_different_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = own_ports(8)
    with closing(Claims()) as one, closing(Claims()) as other:
        ports: list[int] = []
        for number, claims in enumerate((one, other)):
            order = iter(range(first, first + 8))
            monkeypatch.setattr(random, "randrange", lambda *_, order=order: next(order))
            root = RealmRoot(tmp_path / str(number))
            settings = root.settings(Changes(port=0, file_servers=1), claims)  # nothing listens yet
            ports += settings.ports.values()
        assert sorted(ports) == list(range(first, first + 8))
        assert one.take("127.0.0.1", first), "who has it already"
        assert not other.take("127.0.0.1", first)
    with closing(Claims()) as later:
        assert later.take("127.0.0.1", first)


def test_damaged_settings_are_an_error_and_not_a_new_realm(root: RealmRoot) -> None:
    (root.path / "realm.json").write_text('{"host": 7}')
    with pytest.raises(OSError, match="is damaged"):
        settle(root, Changes())


def test_a_deep_root_has_a_control_socket_too(tmp_path: Path) -> None:
    deep = RealmRoot(tmp_path.joinpath(*["a folder with quite a long name"] * 8))
    deep.make()

    def handle(question: Ask) -> Told:
        if question.verb == "stop":
            raise fail(errno.ENOENT, f"no {question.name}")
        return Told(realm=question.verb)

    server = ControlServer(deep, handle)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert ask(deep, Ask("status")).realm == "status"
        with pytest.raises(FileNotFoundError, match="no x"):
            ask(deep, Ask("stop", "x"))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    with pytest.raises(FileNotFoundError, match="no realm runs"):
        ask(deep, Ask("status"))


def test_the_lock_of_a_root_is_kept_by_who_inherits_it(root: RealmRoot) -> None:
    first, second = RootLock(root), RootLock(root)
    assert first.try_to_take()
    heir = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(first.descriptor,))
    os.close(first.descriptor)
    assert not second.try_to_take()
    heir.communicate(b"")
    assert second.try_to_take()
    os.close(second.descriptor)
