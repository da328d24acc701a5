import pytest

from test.bridge.scripted import plain_jpeg


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    return plain_jpeg()
