"""Service `videohub`: one JPEG of the front camera per request.

An OpenGL context belongs to one thread, and drawing takes tens of milliseconds in software; so a separate
thread draws, only on request, and one frame answers all requests that were waiting when it was begun.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

from vlm_spec_decode.sim.go2.services import NOT_IMPLEMENTED, Reply

GET_IMAGE_SAMPLE = 1001
Answer: TypeAlias = Callable[[Reply], None]
Draw: TypeAlias = Callable[[], bytes]


class VideoHub:
    """Takes requests from any thread; `run` draws in the thread that calls it, until `stop`.

    `open_camera` is entered in that thread and yields a function that returns one JPEG.
    """

    name = "videohub"
    version = "1.0.0.1"

    def __init__(self, open_camera: Callable[[], AbstractContextManager[Draw]]) -> None:
        self._open_camera = open_camera
        self._asked: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self.is_open = False
        """Whether the camera has been opened."""

    def handle(self, api_id: int, parameter: str, answer: Answer) -> None:
        """Queue one request for a frame."""
        del parameter
        if api_id != GET_IMAGE_SAMPLE:
            answer(Reply(NOT_IMPLEMENTED))
        else:
            self._asked.put(answer)

    def stop(self) -> None:
        """Let `run` return."""
        self._asked.put(None)

    def run(self) -> None:
        """Open the camera and draw what is asked for."""
        with self._open_camera() as draw:
            self.is_open = True
            while (waiting := self._next()) is not None:
                jpeg = draw()
                for answer in waiting:
                    answer(Reply(binary=jpeg))

    def _next(self) -> list[Answer] | None:
        """Wait for a request and return all that wait; None to end."""
        waiting = [self._asked.get()]
        while not self._asked.empty():
            waiting.append(self._asked.get())
        answers = [answer for answer in waiting if answer is not None]
        return answers if len(answers) == len(waiting) else None
