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

    def __init__(self, realm: RealRealm, binding: str) -> None:
        user = f"oracle-{binding}"
        realm.join(user)
        realm.run("user", user, "--trusted", user="admin")
        _let_others_in(realm.folder)
        options = ("--trusted", "--allow-other", "--lock-wait", "5")
        local = realm.folder / f"{user}-local"
        local.mkdir()
        local.chmod(0o1777)  # as the realm's root
        with ExitStack() as stack:
            one = stack.enter_context(RealMount(realm, f"{user}-1", user, *options, binding=binding))
            more = (*options, "--no-passthrough")
            two = stack.enter_context(RealMount(realm, f"{user}-2", user, *more, binding=binding))
            self.world = World(local, (one.path, two.path))
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
