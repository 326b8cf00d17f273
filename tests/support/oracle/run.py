"""Real mounts and a local directory, and the machine that works on them."""

from contextlib import ExitStack
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test

from tests.support.mounts import RealMount
from tests.support.oracle.machine import Machine
from tests.support.realm import RealRealm
from tests.support.twins import World

BATCH = 20
"""Examples of one seed."""


class Pair:
    """Two mounts of a realm that let all local users in (one of them serves open files itself, of the other
    the kernel does), and a local directory. The realm has an ``admin``."""

    def __init__(self, realm: RealRealm, binding: str, *, has_second: bool = True) -> None:
        user, name = "oracle", f"oracle-{binding}"
        if not realm.state(user).exists():
            realm.join(user)
            realm.run("user", user, "--trusted", user="admin")
        _let_others_in(realm.folder)
        options = ("--trusted", "--allow-other", "--lock-wait", "5")
        local = realm.folder / f"{name}-local"
        local.mkdir()
        local.chmod(0o1777)  # as the realm's root
        with ExitStack() as stack:
            mounts = [RealMount(realm, f"{name}-1", user, *options, binding=binding)]
            stack.enter_context(mounts[0])
            if has_second:
                mounts.append(
                    RealMount(realm, f"{name}-2", user, *options, "--no-passthrough", binding=binding)
                )
                stack.enter_context(mounts[1])
            self.world = World(local, tuple(mount.path for mount in mounts))
            self._stack = stack.pop_all()

    def __enter__(self) -> World:
        return self.world

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _let_others_in(folder: Path) -> None:
    """Other users find their way through our folders to this one."""
    for ours in (folder, *folder.parents):
        mode = ours.stat().st_mode
        if not mode & 0o001:
            ours.chmod(mode | 0o011)


def run(world: World, examples: int, steps: int, *, seed: int, shrink: bool = False) -> None:
    """Raises AssertionError at the first difference, with the steps that led there as its notes."""
    machine = seeded(seed)(type("Machine", (Machine,), {"world": world}))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
        ),
    )
