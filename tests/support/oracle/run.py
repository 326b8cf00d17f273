"""Runs the machine on real mounts."""

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

USER = "oracle"


class Pair:
    """A realm of its own in ``folder``, two mounts of it that let all local users in (one of them serves open
    files itself, of the other the kernel does), and a local directory."""

    def __init__(self, folder: Path, *, binding: str = "native") -> None:
        folder.chmod(0o711)  # other users walk through it
        self.realm = RealRealm(folder / "realm")
        self.realm.join(USER)
        self.realm.run("user", USER, "--trusted", user=USER)
        options = ("--trusted", "--allow-other", "--lock-wait", "5")
        self.mounts = (
            RealMount(self.realm, "one", USER, *options, binding=binding),
            RealMount(self.realm, "two", USER, *options, "--no-passthrough", binding=binding),
        )
        self.local = folder / "local"
        self.local.mkdir()

    def __enter__(self) -> World:
        return World(self.local, (self.mounts[0].path, self.mounts[1].path))

    def __exit__(self, *_: object) -> None:
        for mount in self.mounts:
            mount.close()
        self.realm.close()


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
