"""A TCP line between an edge and a cloud that goes silent, breaks, tears and garbles what it carries."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Harm = Literal["", "flip", "tear"]


@dataclass(eq=False)
class _Wire:
    """One connection: both of its ends, and whether it has been left without anybody at the other."""

    ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    is_stranded: bool = False

    def close(self) -> None:
        for end in self.ends:
            end.transport.abort()


@dataclass(eq=False)
class Line:
    """Carries bytes both ways. Everything but `run` may be called from any thread."""

    far_port: int
    port: int = 0
    wires: list[_Wire] = field(default_factory=list)
    made: int = 0
    _harms: dict[bool, Harm] = field(default_factory=dict)
    _is_cut: bool = False
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)
    _ending: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    @property
    def address(self) -> str:
        """Where the edge connects to."""
        return f"tcp://127.0.0.1:{self.port}"

    def strand(self) -> None:
        """Half-open: what is connected carries nothing any more, and neither end is told. New ones work."""
        self._call(lambda: [setattr(wire, "is_stranded", True) for wire in self.wires])

    def stall(self) -> None:
        """Nothing passes, and nothing that is sent is taken."""
        self._call(self._flowing.clear)

    def go_on(self) -> None:
        """End a stall; what waited comes now."""
        self._call(self._flowing.set)

    def cut(self) -> None:
        """Close what is connected, and whatever connects until `mend`."""
        self._is_cut = True
        self._call(lambda: [wire.close() for wire in self.wires])

    def mend(self) -> None:
        """Let new connections through."""
        self._is_cut = False

    def harm(self, kind: Harm, *, is_up: bool) -> None:
        """Flip a bit of the next piece in a direction, or let half of it through and close."""
        self._harms[is_up] = kind

    def end(self) -> None:
        """Close everything."""
        self._call(self._ending.set)

    def _call(self, do) -> None:  # type: ignore[no-untyped-def]
        assert self._loop is not None
        self._loop.call_soon_threadsafe(do)

    async def run(self, ready: threading.Event) -> None:
        """Serve until `end`."""
        self._loop = asyncio.get_running_loop()
        self._flowing.set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._ending.wait()
        server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.made += 1
        if self._is_cut:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.far_port)
        wire = _Wire((writer, far_writer))
        self.wires.append(wire)
        try:
            await asyncio.gather(
                self._carry(reader, far_writer, wire, True), self._carry(far_reader, writer, wire, False)
            )
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            wire.close()
            self.wires.remove(wire)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wire: _Wire, is_up: bool
    ) -> None:
        while data := await reader.read(1 << 16):
            await self._flowing.wait()
            if wire.is_stranded:
                await asyncio.get_running_loop().create_future()
            harm = self._harms.pop(is_up, "")
            if harm == "flip":
                middle = len(data) // 2
                data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            writer.write(data[: len(data) // 2] if harm == "tear" else data)
            await writer.drain()
            if harm == "tear":
                break
        raise ConnectionResetError


@contextmanager
def line_to(address: str) -> Iterator[Line]:
    """Run a line to a cloud's address on a thread of its own."""
    line, ready = Line(int(address.rpartition(":")[2])), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(line.run(ready)))
    thread.start()
    try:
        assert ready.wait(60)
        yield line
    finally:
        line.end()
        thread.join(timeout=60)
        assert not thread.is_alive()
