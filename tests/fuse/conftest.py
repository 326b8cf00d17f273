"""The kernel's end of a mount."""

from collections.abc import Iterator

import pytest

from tests.support.kernel import Kernel
from tests.support.stack import Stack


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One that has mounted a realm."""
    with Stack(tmp_path_factory.mktemp("stack")) as stack:
        found = Kernel(stack)
        yield found
        found.close()
