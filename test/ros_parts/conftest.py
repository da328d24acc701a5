import pytest

from test.ros_parts.scripted import plain_jpeg


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    return plain_jpeg()
