"""The ``dfs`` command on a real realm: what it prints, and with what status it ends."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dfs import mount
from dfs.logins import own_services
from tests.support.realm import CODE, RealRealm
from tests.support.times import wait_until
from wire.messages.lock import Held, Range

NOBODY_THERE = "http://127.0.0.1:9"


@pytest.fixture
def as_admin(shared_realm: RealRealm, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealRealm]:
    """In this process too, the admin is logged in."""
    monkeypatch.setenv("DFS_STATE", str(shared_realm.state("admin")))
    yield shared_realm


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that failed said: one line on standard error, nothing else."""
    assert done.stdout == ""
    assert done.stderr.startswith("dfs: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("dfs: ").strip()


def test_the_help_is_there_at_once_and_names_all_verbs() -> None:
    before = os.times()
    helped = subprocess.run(RealRealm.command("--help"), capture_output=True, text=True, cwd=CODE, check=True)
    after = os.times()
    # What it computes, not what it waits for: others use the machine too.
    worked = after.children_user + after.children_system - before.children_user - before.children_system
    assert worked < 1.0
    for verb in ("up", "down", "serve", "mount", "umount", "status", "locks", "signup", "login"):
        assert f"\n  {verb} " in helped.stdout


@pytest.mark.parametrize(
    ("module", "spared"),
    [
        ("dfs.mount", {"mount.vfs", "clients.http", "rich"}),
        ("dfs.mounted", {"mount.vfs", "mount.bindings.native.serving", "clients.http"}),
        ("dfs.logins", {"requests", "urllib3", "mount.vfs", "rich"}),
        ("servers.supervisor", {"requests", "urllib3", "flask", "sqlalchemy", "granian"}),
    ],
    ids=["mount", "keeper", "login", "up"],
)
def test_what_takes_long_to_import_is_imported_by_who_needs_it(module: str, spared: set[str]) -> None:
    look = [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"]
    imported = subprocess.run(look, capture_output=True, text=True, cwd=CODE, check=True).stdout.split()
    assert not spared.intersection(imported)


@pytest.mark.parametrize(
    "verb", ["up", "down", "stop", "start", "serve", "status", "signup", "login", "locks"]
)
def test_every_verb_explains_itself(shared_realm: RealRealm, verb: str) -> None:
    assert f"Usage: dfs {verb}" in shared_realm.run(verb, "--help").stdout


def test_from_sign_up_to_log_out(shared_realm: RealRealm) -> None:
    shared_realm.expect_log("wrong user name or password for carol")
    shared_realm.join("carol")
    assert shared_realm.run("locks", "--json", user="carol").stdout == "[]\n"
    old, new = shared_realm.password_file("carol"), shared_realm.folder / "carol.new"
    new.write_text("another secret\n")
    files = ("--password-file", str(old), "--new-password-file", str(new))
    assert "carol has a new password" in shared_realm.run("passwd", *files, user="carol").stdout
    assert shared_realm.run("locks", user="carol").stdout == "No file is locked.\n"
    shared_realm.run("login", "carol", "--password-file", str(old), user="carol", status=4)
    shared_realm.run("login", "carol", user="carol", DFS_PASSWORD="another secret")
    assert "carol is logged out" in shared_realm.run("logout", user="carol").stdout
    refused = shared_realm.run("locks", user="carol", status=4)
    assert one_sentence(refused) == f"not logged in to {shared_realm.url}: use `dfs login`"


def test_wrong_credentials_are_refused_and_nobody_learns_why(shared_realm: RealRealm) -> None:
    shared_realm.expect_log("wrong user name or password for (dave|nobody-of-this-name)")
    shared_realm.sign_up("dave")
    for user in ("dave", "nobody-of-this-name"):
        refused = shared_realm.run("login", user, user="dave", status=4, DFS_PASSWORD="wrong")
        assert one_sentence(refused) == "wrong user name or password"


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("login", "eve", "--realm", NOBODY_THERE, "--password-file", "/dev/null"), 3, "nobody listens"),
        (("locks",), 4, "not logged in"),
        (("login", "eve", "--password-file", "/no/such/file"), 7, "/no/such/file: No such file"),
        (("login", "eve", "--password-file", "/dev/null"), 2, "the password is empty"),
        (("login", "eve"), 2, "there is no terminal to ask at"),
        (("login", "eve", "--realm", "ftp://x"), 2, "is not the URL of a realm"),
        (("down", "--root", "/no/such/root"), 7, "no realm runs in /no/such/root"),
    ],
)
def test_a_mistake_gets_one_sentence_and_its_status(
    shared_realm: RealRealm, arguments: tuple[str, ...], status: int, sentence: str
) -> None:
    assert sentence in one_sentence(shared_realm.run(*arguments, user="eve", status=status))


def test_a_name_is_given_once_and_must_be_one(shared_realm: RealRealm) -> None:
    taken = shared_realm.run("signup", "admin", user="eve", status=6, DFS_PASSWORD="a long secret")
    assert "admin" in one_sentence(taken)
    bad = shared_realm.run("signup", "No Name", user="eve", status=2, DFS_PASSWORD="a long secret")
    assert "a user name has" in one_sentence(bad)


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("up", "--port", "x"),
        ("up", "--set", "directory.nonsense=1"),
        ("up", "--set", "directory.retention-seconds=soon"),
        ("up", "--set", "lock.lease-seconds=0"),
        ("up", "--set", "directory.lease-seconds=11"),
        ("up", "--set", "directory.replicas=0"),
        ("up", "--set", "auth.ticket-seconds=-1"),
        ("up", "--set", "auth.ticket-seconds=nan"),
        ("up", "--set", "directory.replicas=10"),
        ("up", "--set", "auth.kdf-memory-kib=8191"),
        ("up", "--set", "directory.retention-seconds=inf"),
        ("mount", "--lock-wait", "nan", "/no/such/place"),
        ("locks", "--break", "0"),
        ("user", "--admin"),
        ("user", "admin", "--gids", "wheel"),
    ],
)
def test_a_wrong_command_line_has_status_2(shared_realm: RealRealm, arguments: tuple[str, ...]) -> None:
    assert "Usage: dfs" in shared_realm.run(*arguments, user="admin", status=2).stderr


def test_an_option_of_a_service_that_is_refused_is_named(shared_realm: RealRealm) -> None:
    done = shared_realm.run("up", "--set", "lock.lease-seconds=0", user="admin", status=2)
    assert "Invalid value for '--set lock.lease-seconds': 0.0 is not in the range 0.5<=x" in done.stderr


def test_the_password_never_stands_in_the_logs(shared_realm: RealRealm) -> None:
    shared_realm.join("frank")
    for log in shared_realm.logs():
        assert "secret of" not in log.read_text()


def test_the_admin_sees_and_changes_users(shared_realm: RealRealm) -> None:
    shared_realm.join("grace")
    shared_realm.run("user", "grace", "--trusted", "--gids", "4242,27", user="admin")
    users = json.loads(shared_realm.run("user", "--json", user="admin").stdout)
    grace = next(user for user in users if user["user"] == "grace")
    assert (grace["trusted"], grace["admin"], grace["gids"]) == (True, False, [4242, 27])
    assert "grace" in shared_realm.run("user", user="admin").stdout
    shared_realm.run("user", "--json", user="grace", status=5)
    shared_realm.run("user", "nobody-of-this-name", user="admin", status=7)


def test_the_status_of_a_realm_here(shared_realm: RealRealm) -> None:
    told = json.loads(shared_realm.run("status", "--root", str(shared_realm.root), "--json").stdout)
    assert set(told) == {"realm", "services", "chunks", "mounts"}
    assert told["realm"] == shared_realm.url
    assert set(told["chunks"]) == {"total", "lacking", "condemned", "replicas"}
    assert [service["role"] for service in told["services"]] == [
        "auth",
        "directory",
        "lock",
        "files",
        "files",
    ]
    for service in told["services"]:
        assert service["pid"] > 0
        assert service["state"] == "running"
        if service["role"] == "files":
            assert set(service["replicas"]) == {"primaries", "secondaries"}
            assert service["health"] == "alive"
            assert 0 < service["free_bytes"] <= service["total_bytes"]
            assert service["heartbeat_age_seconds"] < 10
    assert "files-2" in shared_realm.run("status", "--root", str(shared_realm.root)).stdout


def test_the_status_of_a_realm_elsewhere(shared_realm: RealRealm) -> None:
    elsewhere = ("status", "--json", "--root", "/no/such/root")
    told = json.loads(shared_realm.run(*elsewhere, user="admin").stdout)
    assert [service["name"] for service in told["services"]] == [
        *("auth", "directory", "lock", "files-1", "files-2")
    ]
    assert told["chunks"]["replicas"] == 2
    stranger = shared_realm.run(*elsewhere, user="stranger")
    assert [service["role"] for service in json.loads(stranger.stdout)["services"]] == [
        *("auth", "directory", "lock")
    ]
    assert "not logged in" in stranger.stderr
    away = shared_realm.run(*elsewhere, "--realm", NOBODY_THERE, status=3)
    assert json.loads(away.stdout)["services"][0]["state"] == "dead"


def test_the_status_shows_a_mount_whose_process_is_gone(shared_realm: RealRealm, tmp_path: Path) -> None:
    record = {
        "mountpoint": str(tmp_path),
        "binding": "native",
        "pid": os.getpid(),  # runs, but nothing is mounted there
        "realm": shared_realm.url,
        "user": "heidi",
        "cache_dir": "/c",
        "control": "/s",
        "started": 1.0,
    }
    folder = shared_realm.state("heidi") / "mounts"
    folder.mkdir(parents=True)
    (folder / "x.json").write_text(json.dumps(record))
    status = ("status", "--root", str(shared_realm.root))
    told = json.loads(shared_realm.run(*status, "--json", user="heidi").stdout)
    told_besides = {
        "passthrough": False,
        "worker_pid": 0,
        "version": "",
        "state": "dead",
        "unsaved": None,
        "leased": None,
    }
    assert told["mounts"] == [record | told_besides]
    assert "heidi" in shared_realm.run(*status, user="heidi").stdout


def test_locks_shows_holder_and_queue_and_breaks(as_admin: RealRealm) -> None:
    ino = 424242  # of no file: locks are on numbers
    as_admin.expect_log(f"admin broke the lock of inode {ino}")

    def locks(*arguments: str) -> list[dict[str, object]]:
        told: list[dict[str, object]] = json.loads(
            as_admin.run("locks", "--json", *arguments, user="admin").stdout
        )
        return [lock for lock in told if lock["ino"] == ino]

    with (
        own_services(as_admin.url) as holder,
        own_services(as_admin.url) as waiter,
        ThreadPoolExecutor(1) as pool,
    ):
        held = holder.lock.acquire([ino]).answers[0]
        waiting = pool.submit(waiter.lock.acquire, [ino], 20.0)
        wait_until(locks)  # of no file, it is shown because somebody waits
        (lock,) = locks()
        assert str(lock["holder"]).startswith("admin@")
        assert lock["path"] is None
        assert "admin@" in as_admin.run("locks", user="admin").stdout
        assert locks("--break", str(ino)) == []
        granted = waiting.result().answers[0]
        assert granted.token > held.token
        waiter.lock.release([Held(ino, granted.token)])
    missing = as_admin.run("locks", "--break", str(ino), user="admin", status=7)
    assert str(ino) in one_sentence(missing)


def test_locks_shows_what_programs_lock_and_breaks_it(as_admin: RealRealm) -> None:
    ino = 424243
    as_admin.expect_log(f"admin broke the lock of inode {ino}")
    has, other = Range(False, 1, 0, 9, True, 11), Range(True, 1, 0, 2**63 - 1, False, 12)

    def locks(*arguments: str) -> list[dict[str, Any]]:
        told = json.loads(as_admin.run("locks", "--json", *arguments, user="admin").stdout)
        return [lock for lock in told if lock["ino"] == ino]

    with (
        own_services(as_admin.url) as alice,
        own_services(as_admin.url) as bob,
        ThreadPoolExecutor(1) as pool,
    ):
        assert alice.lock.set_range(ino, has).conflict is None
        assert alice.lock.set_range(ino, other).conflict is None
        waiting = pool.submit(bob.lock.set_range, ino, has, 20.0)
        wait_until(lambda: any(info.is_waiting for info in alice.lock.locks().ranges))
        (lock,) = locks()
        programs = lock["programs"]
        assert (lock["holder"], lock["path"], lock["queue"]) == (None, None, [])
        keys = ("kind", "is_exclusive", "first", "last", "pid", "is_waiting")
        assert [tuple(program[key] for key in keys) for program in programs] == [
            ("fcntl", True, 0, 9, 11, False),
            ("flock", False, 0, None, 12, False),
            ("fcntl", True, 0, 9, 11, True),
        ]
        table = as_admin.run("locks", user="admin").stdout
        assert "fcntl exclusive, bytes 0-9" in table
        assert "flock shared, whole file" in table
        assert "1. admin@" in table
        locks("--break", str(ino))
        assert waiting.result().conflict is None
        assert alice.lock.renew().ranged == []


def test_breaking_a_lock_is_for_admins(shared_realm: RealRealm) -> None:
    shared_realm.join("ivan")
    one_sentence(shared_realm.run("locks", "--break", "1", user="ivan", status=5))


def test_a_reader_that_has_enough_is_no_error_worth_a_word(shared_realm: RealRealm) -> None:
    words = " ".join(RealRealm.command("status", "--root", str(shared_realm.root), "--json"))
    done = subprocess.run(
        ["sh", "-c", f"{words} | true"],
        capture_output=True,
        text=True,
        env=shared_realm.environment(),
        cwd=CODE,
        check=True,
    )
    assert done.stderr == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user and root again")
@pytest.mark.parametrize(
    ("device", "place", "allow_other", "said"),
    [
        ("/dev/mem", "/tmp", False, "only root may use it"),
        ("/dev/null", "/", False, "a directory that you may write to"),
        ("/dev/null", "/tmp", True, "user_allow_other"),
        ("/dev/null", "/tmp", False, ""),
    ],
)
def test_an_ordinary_user_hears_what_keeps_him_from_mounting(
    device: str, place: str, allow_other: bool, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mount, "FUSE_DEVICE", device)
    monkeypatch.setattr(mount, "FUSE_CONF", str(tmp_path / "fuse.conf"))
    os.seteuid(65534)
    try:
        mount.check_rights(Path(place), allow_other)
        told = ""
    except OSError as error:
        told = str(error.strerror)
    finally:
        os.seteuid(0)
    assert said in told and bool(said) == bool(told)
