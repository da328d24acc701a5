"""A TCP line between an edge and a cloud that goes silent, breaks, tears and garbles what it carries."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Harm = Literal["", "flip", "tear"]


@dataclass(eq=False)
class _Wire:
    """One connection: both of its ends, and whether it has been left without anybody at the other.

    `number` counts the line's connections from 1, `passed` the bytes by direction.
    """

    ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    number: int
    is_stranded: bool = False
    passed: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})

    def close(self) -> None:
        for end in self.ends:
            end.transport.abort()


@dataclass(eq=False)
class Line:
    """Carries bytes both ways. Everything but `run` may be called from any thread.

    `delay_s` is the shortest and the longest time that a piece takes; none overtakes another. `carried` is
    what the first connection has carried, by direction (up: True).
    """

    far_port: int
    port: int = 0
    delay_s: tuple[float, float] = (0.0, 0.0)
    wires: list[_Wire] = field(default_factory=list)
    made: int = 0
    flipped: int = 0
    carried: dict[bool, bytearray] = field(default_factory=lambda: {True: bytearray(), False: bytearray()})
    _harms: dict[bool, Harm] = field(default_factory=dict)
    _flips: dict[bool, tuple[float, int]] = field(default_factory=dict)
    _flips_at: dict[bool, tuple[int, int]] = field(default_factory=dict)
    _is_cut: bool = False
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)
    _ending: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _random: random.Random = field(default_factory=lambda: random.Random(5))

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

    def flip(self, share: float, bit: int, *, is_up: bool) -> None:
        """Flip a bit of the byte at `share` (0 to 1) of the next piece in a direction."""
        self._flips[is_up] = (share, bit)

    def flip_at(self, offset: int, bit: int, *, is_up: bool) -> None:
        """Flip a bit of the byte at `offset` of what the first connection carries in a direction."""
        self._flips_at[is_up] = (offset, bit)

    def end(self) -> None:
        """Close everything."""
        self._call(self._ending.set)

    def _call(self, do) -> None:  # type: ignore[no-untyped-def]
        assert self._loop is not None
        self._loop.call_soon_threadsafe(do)

    async def run(self, ready: threading.Event) -> None:
        """Serve until `end`."""
        server = await self.open()
        ready.set()
        await self._ending.wait()
        server.close()

    async def open(self) -> asyncio.Server:
        """Begin to listen."""
        self._loop = asyncio.get_running_loop()
        self._flowing.set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.made += 1
        number = self.made
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.far_port)
        except OSError:
            writer.transport.abort()
            return
        wire = _Wire((writer, far_writer), number)
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
        due_s, loop = 0.0, asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivering = asyncio.create_task(self._deliver(under_way, writer)) if self.delay_s[1] else None
        try:
            while data := await reader.read(1 << 16):
                await self._flowing.wait()
                if wire.is_stranded:
                    await loop.create_future()
                harm = self._harms.pop(is_up, "")
                data = self._flipped(data, wire, is_up)
                if harm == "flip":
                    data = self._with_flip(data, len(data) // 2, 1)
                piece = data[: len(data) // 2] if harm == "tear" else data
                if delivering:
                    due_s = max(due_s, loop.time() + self._random.uniform(*self.delay_s))
                    under_way.put_nowait((due_s, piece))
                else:
                    writer.write(piece)
                    await writer.drain()
                if harm == "tear":
                    break
            if delivering:
                under_way.put_nowait((due_s, b""))
                await delivering
        finally:
            if delivering:
                delivering.cancel()
        raise ConnectionResetError

    async def _deliver(
        self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        while (piece := await under_way.get())[1]:
            await asyncio.sleep(piece[0] - asyncio.get_running_loop().time())
            if writer.transport.is_closing():
                return
            writer.write(piece[1])

    def _flipped(self, data: bytes, wire: _Wire, is_up: bool) -> bytes:
        before = wire.passed[is_up]
        wire.passed[is_up] += len(data)
        if wire.number == 1:
            self.carried[is_up] += data
        if at := self._flips.pop(is_up, None):
            return self._with_flip(data, int(at[0] * len(data)) % len(data), 1 << at[1])
        offset, bit = self._flips_at.get(is_up, (-1, 0))
        if wire.number == 1 and before <= offset < before + len(data):
            return self._with_flip(data, offset - before, 1 << bit)
        return data

    def _with_flip(self, data: bytes, place: int, mask: int) -> bytes:
        self.flipped += 1
        return data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]


@contextmanager
def line_to(address: str) -> Iterator[Line]:
    """Run a line to a cloud's address on a thread of its own."""
    with lines_to(address, 1) as (line,):
        yield line


@contextmanager
def lines_to(address: str, count: int, delay_s: tuple[float, float] = (0.0, 0.0)) -> Iterator[list[Line]]:
    """Run several lines to a cloud's address on one thread."""
    lines = [Line(int(address.rpartition(":")[2]), delay_s=delay_s) for _ in range(count)]
    readies = [threading.Event() for _ in lines]

    async def run() -> None:
        await asyncio.gather(*(line.run(ready) for line, ready in zip(lines, readies, strict=True)))

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert all(ready.wait(60) for ready in readies)
        yield lines
    finally:
        for line in lines:
            line.end()
        thread.join(timeout=60)
        assert not thread.is_alive()
