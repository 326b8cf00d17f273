"""The kernel's end of a mount."""

from collections.abc import Iterator

import pytest

from tests.support.kernel import Kernel
from tests.support.stack import Stack


@pytest.fixture(scope="module")
def kernel(shared_stack: Stack) -> Iterator[Kernel]:
    """One that has mounted a realm."""
    found = Kernel(shared_stack)
    yield found
    found.close()
