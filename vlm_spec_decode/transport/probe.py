"""Whether anybody listens at a cloud's address, found out before models are loaded to talk to it."""

from __future__ import annotations

import socket

from vlm_spec_decode.core.errors import CloudUnreachable
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.transport.address import split, split_list

POLL_S = 0.1


def wait_for_listener(clouds: str, patience_s: float, clock: Clock) -> None:
    """Return when one of the clouds, a list with commas, takes a TCP connection.

    One that refuses it, or whose name is not known, is asked again until `patience_s` is over; a host that
    does not answer at all is given as long. Raises CloudUnreachable that says what each of them did.
    """
    until_s = clock.now() + patience_s
    found = split_list(clouds)
    while True:
        said = {one: _try(one, max(0.2, until_s - clock.now())) for one in found}
        if not all(said.values()):
            return
        if clock.now() >= until_s:
            each = "; ".join(f"cloud {one}: {why}" for one, why in said.items())
            raise CloudUnreachable(f"{each}; waited {patience_s:g} s; is `vsd cloud` running there?")
        clock.sleep(POLL_S)


def _try(address: str, timeout_s: float) -> str:
    """Return what is wrong with one address, nothing if it takes a connection."""
    host, port = split(address)
    try:
        with socket.create_connection((host, int(port)), timeout_s):
            return ""
    except ConnectionRefusedError:
        return "connection refused, nobody listens on this port"
    except socket.gaierror as error:
        return f"the name {host!r} is not known ({error.strerror})"
    except TimeoutError:
        return "no answer at all: host off, another network, or a firewall"
    except (OSError, ValueError) as error:
        return str(error)
