"""The OpenAI-compatible endpoint against its bars: conformance, tokens, added time, load, hostile requests.

The conformance matrix is asked by the real `openai` client, over a pair that writes JSON; the rest over the
shipped pair. The load runs against `vsd serve --local` in a process of its own, the time to a 503 with a
`vsd cloud` that is killed.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import random
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import openai
from figures import ROOT, Figure

sys.path.insert(0, str(ROOT))

from test.serve.chat_pair import write_pair
from test.serve.conformance import KEY, Asker, cases
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.api import Engine
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.serve.openai_api.server import OpenAiServer, edge_timing
from vlm_spec_decode.serve.openai_api.settings import ServeSettings
from vlm_spec_decode.strategies.registry import STRATEGIES

PROMPTS = ROOT / "vlm_spec_decode" / "assets" / "prompts"
CHAT = "/v1/chat/completions"
CLIENTS = 64
START_S = 120.0


def figures(out: Path, *, quick: bool) -> list[Figure]:
    """Measure all; `out` takes the logs of the processes."""
    found = [*conformance(), *tokens(quick=quick), *first_token(quick=quick)]
    found += [*load(out, quick=quick), *hostile(quick=quick), *lost_cloud(out)]
    return found


@dataclass(frozen=True)
class Prompt:
    """One question of the shipped set: its instruction, and its picture as a file and as a data URL."""

    instruction: str
    picture: Path

    @property
    def body(self) -> dict[str, Any]:
        """A chat about it."""
        url = f"data:image/jpeg;base64,{base64.b64encode(self.picture.read_bytes()).decode()}"
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": self.instruction}]
        return {"model": "target", "messages": [{"role": "user", "content": parts}], "max_tokens": 96}


def prompts(count: int) -> list[Prompt]:
    """Return the first questions of the shipped set."""
    rows = json.loads((PROMPTS / "prompts.json").read_text(encoding="utf-8"))
    return [Prompt(row["instruction"], PROMPTS / row["file"]) for row in rows[:count]]


@contextmanager
def serving(settings: ServeSettings, edge: EdgeSettings) -> Iterator[OpenAiServer]:
    """Serve on a thread of this process."""
    server = OpenAiServer(settings, edge)
    server.start()
    try:
        yield server
    finally:
        server.close()


def conformance() -> list[Figure]:
    """Make every request of the matrix; a failed one is named on stderr."""
    failed, count = [], 0
    with tempfile.TemporaryDirectory() as name:
        draft, target = write_pair(Path(name))
        keys = Path(name, "keys")
        keys.write_text(KEY)
        keys.chmod(0o600)
        settings = ServeSettings(
            bind="127.0.0.1:0", api_keys=keys, model_name=("robot-vlm",), max_body_mib=1, max_megapixels=0.5
        )
        with serving(settings, EdgeSettings(draft=str(draft), target=str(target))) as server:
            ask = Asker(openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0))
            for case, check in cases():
                count += 1
                try:
                    check(ask)
                except Exception as error:  # noqa: BLE001 - whatever it is, the case has failed
                    failed.append(case)
                    print(f"conformance: {case}: {error!r}", file=sys.stderr)
    return [Figure("serve conformance failed", len(failed), 0, "at most", f"of {count} cases")]


def tokens(*, quick: bool) -> list[Figure]:
    """Compare token ids with those of the engine of `vsd ask`, every strategy, greedy and sampled."""
    asked, different, count = prompts(2 if quick else 12), [], 0
    with (
        serving(ServeSettings(bind="127.0.0.1:0"), EdgeSettings()) as server,
        Engine.local() as engine,
        httpx.Client(timeout=60) as web,
    ):
        own = engine._runtime.engine  # what `vsd ask` asks, with the configuration that its options make
        for strategy, temperature, prompt in product(STRATEGIES, (0.0, 0.8), asked):
            sampled = {"temperature": temperature, "seed": 11}
            params = replace(own.config.params, **sampled)
            observation = Observation(engine.picture(prompt.picture), prompt.instruction)
            *_, last = own.answer(observation, replace(own.config, strategy=strategy, params=params))
            form = {"response_format": {"type": "robot_actions"}}
            more = {"vsd": {"strategy": strategy, "token_ids": True}, **sampled, **form}
            found = web.post(server.url + CHAT, json=prompt.body | more).json()
            count += 1
            if tuple(found["vsd"]["token_ids"]) != last.result.tokens:
                different.append((strategy, temperature, prompt.instruction))
    print(f"tokens: different {different}", file=sys.stderr)
    return [Figure("serve tokens different", len(different), 0, "at most", f"of {count} answers")]


CLIENT = """
import http.client, json, sys, time
bodies = json.loads(sys.stdin.readline())
connection = http.client.HTTPConnection(sys.argv[1])
for line in sys.stdin:
    began_s = time.perf_counter()
    connection.request("POST", sys.argv[2], bodies[int(line)], {"content-type": "application/json"})
    response = connection.getresponse()
    response.readline()
    print(time.perf_counter() - began_s, flush=True)
    response.read()
    print("end", flush=True)
"""
"""A client in a process of its own: in this one it would wait for the interpreter's lock beside the server.
It asks what each line names, and tells the seconds to the first text, and the end."""


@dataclass(frozen=True)
class Spent:
    """What one question took: seconds to its first text, and processor seconds of this process to its end."""

    first_s: float
    cpu_s: float


def first_token(*, quick: bool) -> list[Figure]:
    """Measure the first text over HTTP and from the same engine in process, in turns.

    Beside the time, which depends on what else the machine does, the processor time that a question costs
    this process more over HTTP than from the engine.
    """
    rounds, asked = (20 if quick else 100), prompts(4)
    form = {"stream": True, "response_format": {"type": "robot_actions"}}
    bodies, pictures = (
        [json.dumps(p.body | form) for p in asked],
        [p.picture.read_bytes() for p in asked],
    )
    pairs: list[tuple[Spent, Spent]] = []
    with serving(ServeSettings(bind="127.0.0.1:0"), EdgeSettings()) as server:
        engine: Any = server.service.engine
        command = [sys.executable, "-c", CLIENT, server.url.removeprefix("http://"), CHAT]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        ) as web:
            assert web.stdin is not None
            assert web.stdout is not None
            print(json.dumps(bodies), file=web.stdin)

            def over_http(which: int) -> Spent:
                cpu_s = time.process_time()
                print(which, file=web.stdin)
                first_s = float(web.stdout.readline())
                web.stdout.readline()
                while server.service.decoding:
                    time.sleep(0.001)
                return Spent(first_s, time.process_time() - cpu_s)

            def in_process(which: int) -> Spent:
                cpu_s, began_s = time.process_time(), time.perf_counter()
                image = engine.picture(pictures[which])
                answer = engine.answer(Observation(image, asked[which].instruction))
                next(answer)
                first_s = time.perf_counter() - began_s
                for _update in answer:
                    pass
                return Spent(first_s, time.process_time() - cpu_s)

            for number in range(rounds + 4):
                which = number % len(asked)
                if number % 2:
                    http, own = over_http(which), in_process(which)
                else:
                    own, http = in_process(which), over_http(which)
                if number >= 4:  # the first of each prompt warms up
                    pairs.append((http, own))
            web.stdin.close()
    added_ms = statistics.median(1e3 * (http.first_s - own.first_s) for http, own in pairs)
    cpu_ms = statistics.median(1e3 * (http.cpu_s - own.cpu_s) for http, own in pairs)
    engine_ms, engine_cpu_ms = (
        1e3 * statistics.median(getattr(own, name) for _, own in pairs) for name in ("first_s", "cpu_s")
    )
    least_ms = 1e3 * (min(http.first_s for http, _ in pairs) - min(own.first_s for _, own in pairs))
    share = added_ms / engine_ms
    note = f"{share:.1%} of {engine_ms:.1f} ms, least over least {least_ms:.1f} ms, {len(pairs)} pairs"
    whole = f"a whole answer of the engine takes {engine_cpu_ms:.0f} ms of processor time"
    return [
        Figure("serve first text ms p50", added_ms, 5.0, "at most", note),
        Figure("serve added processor ms p50", cpu_ms, 5.0, "at most", whole),
    ]


# Load ------------------------------------------------------------------------------------------------


@contextmanager
def process(out: Path, name: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Run a command of `vsd` until the block ends; yield it, and its first line of JSON."""
    log = (out / f"{name}.log").open("w", encoding="utf-8")
    command = [sys.executable, "-m", "vlm_spec_decode.cli", *arguments, "--json"]
    with log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as running:
        assert running.stdout is not None
        try:
            yield running, json.loads(running.stdout.readline())
        finally:
            running.send_signal(signal.SIGINT)
            try:
                running.wait(15)
            except subprocess.TimeoutExpired:
                running.kill()


@dataclass(frozen=True)
class Held:
    """What a process holds: descriptors, memory in MiB, and answers under way."""

    descriptors: int
    mebibytes: float
    under_way: float
    decoding: float


def held(pid: int, url: str) -> Held:
    """Wait until nothing is under way, at most 10 s; return what the process holds then."""
    until_s, found = time.monotonic() + 10, {"under_way": 1.0, "decoding": 1.0}
    while any(found.values()) and time.monotonic() < until_s:
        time.sleep(0.2)
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        found = {
            key: float(next(x for x in lines if x.startswith(f"vsd_serve_{key} ")).split()[1])
            for key in found
        }
    time.sleep(0.5)  # the connection of this very look is closed
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    descriptors = len([*Path(f"/proc/{pid}/fd").iterdir()])
    return Held(descriptors, resident / 1024, found["under_way"], found["decoding"])


async def client(
    number: int,
    url: str,
    until_s: float,
    bodies: list[dict[str, Any]],
    expected: list[str],
    seen: Counter[str],
) -> None:
    """Ask again and again; every other client leaves its stream after the first piece."""
    rng = random.Random(number)
    leaves = number % 2 == 1
    async with httpx.AsyncClient(base_url=url, timeout=300) as web:
        while time.monotonic() < until_s:
            which = rng.randrange(len(bodies))
            try:
                await _one(web, bodies[which], expected[which], leaves, rng, seen)
            except httpx.HTTPError as error:
                seen[f"failed {type(error).__name__}"] += 1


async def _one(
    web: httpx.AsyncClient,
    body: dict[str, Any],
    expected: str,
    leaves: bool,
    rng: random.Random,
    seen: Counter[str],
) -> None:
    if leaves and rng.random() < 0.5:
        # Gone while it waits for its turn or its first text.
        try:
            await asyncio.wait_for(web.post(CHAT, json=body), rng.uniform(0.01, 1.5))
            seen["whole"] += 1
        except asyncio.TimeoutError:
            seen["left waiting"] += 1
        return
    text = ""
    async with web.stream("POST", CHAT, json=body | {"stream": True}) as response:
        if response.status_code != 200:
            seen[f"status {response.status_code}"] += 1
            return
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            piece = json.loads(line[6:])
            if "error" in piece:
                seen["errors in streams"] += 1
                return
            text += "".join(choice["delta"].get("content") or "" for choice in piece["choices"])
            if leaves:
                seen["left in the middle"] += 1
                seen["wrong"] += not expected.startswith(text)
                return
    seen["whole"] += 1
    seen["wrong"] += text != expected


def load(out: Path, *, quick: bool) -> list[Figure]:
    """Let 64 clients ask, half of which leave; compare what they are told and what the process holds."""
    bodies, seen = [prompt.body for prompt in prompts(6)], Counter[str]()
    with process(out, "serve", "serve", "--local", "--bind", "127.0.0.1:0") as (running, ready):
        url = ready["url"]
        expected = [
            httpx.post(url + CHAT, json=b, timeout=60).json()["choices"][0]["message"]["content"]
            for b in bodies
        ]

        def go(seconds: float) -> None:
            async def all_clients() -> None:
                until_s = time.monotonic() + seconds
                await asyncio.gather(
                    *(client(n, url, until_s, bodies, expected, seen) for n in range(CLIENTS))
                )

            asyncio.run(all_clients())

        go(10 if quick else 60)  # what is kept for good, such as threads and caches, is there after this
        before = held(running.pid, url)
        go(30 if quick else 600)
        after = held(running.pid, url)
    grown = 100 * (after.mebibytes / before.mebibytes - 1)
    failed = sum(n for name, n in seen.items() if name.startswith(("failed", "status", "errors")))
    note = ", ".join(f"{name} {n}" for name, n in sorted(seen.items()))
    return [
        Figure("serve load wrong", seen["wrong"], 0, "at most", note),
        Figure("serve load failed", failed, 0, "at most", "errors that a client was told"),
        Figure("serve load sessions left", after.under_way + after.decoding, 0, "at most"),
        Figure("serve load descriptors", after.descriptors - before.descriptors, 0, "at most"),
        Figure("serve load memory %", grown, 2.0, "at most", f"{before.mebibytes:.0f} MiB before"),
    ]


# Hostile requests ------------------------------------------------------------------------------------

PATHS = (
    "/v1/../v1/models", "/v1/./models", "//v1/models", "/v1//models", "/V1/models", "/v1/models%2f",
    "/%76%31/models", "/health/../v1/models", "/health/..%2fv1/models", "/health;/v1/models",
    "/v1/models?key=x", "/v1/models#health", "http://localhost/v1/models", "/metrics",
    "/v1/models/target", "/health/", "/health%00", "*", "/../../etc/passwd",
)  # fmt: skip
"""What is asked for without a key: none of it is served."""

URLS = (
    "http://127.0.0.1:{port}/a.png", "http://localhost:{port}/a.png", "http://[::1]:{port}/",
    "HTTP://127.1:{port}/", "http://169.254.169.254/latest/meta-data/", "https://127.0.0.1:{port}/",
    "http://u:p@127.0.0.1:{port}/", "http://allowed.example@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@allowed.example/", "file:///etc/passwd",
    "http://allowed.example.evil:{port}/", "ftp://127.0.0.1:{port}/", "//127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/", "http://2130706433:{port}/", "http://0x7f.1:{port}/",
    "data:text/html,x", "javascript:1", "http://127.0.0.1:{port}/%0d%0aX: y",
)  # fmt: skip
"""Pictures that must not be fetched; a listener at the port counts who comes."""


def spoken(port: int, data: bytes) -> int:
    """Return the status of one raw request, 0 where the connection is only closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(data)
        head = connection.recv(64)
    return int(head[9:12]) if head[9:12].isdigit() else 0


def request(path: str, body: bytes = b"", key: str = "", method: str = "GET") -> bytes:
    """Return the bytes of one request, on a connection of its own."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "host: localhost",
        "connection: close",
        f"content-length: {len(body)}",
    ]
    lines += ["content-type: application/json", *([f"authorization: Bearer {key}"] if key else [])]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """Return a body with damage: bytes, pieces, numbers, nesting, or other JSON in place of a value."""
    data = bytearray(seed)
    kind = rng.randrange(7)
    if kind == 0:
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 1:
        del data[rng.randrange(len(data)) :]
    elif kind == 2:
        at = rng.randrange(len(data))
        data[at:at] = rng.choice(
            (b'"', b"{", b"[" * 2000, b"\\ud800", b"\x00", b"1e999", b"-", b"null", b"\xff\xfe")
        )
    elif kind == 3:
        data = bytearray(rng.randbytes(rng.randrange(200)))
    else:
        document = json.loads(seed)
        strange = (
            None,
            -1,
            1e308,
            2**70,
            "",
            "\u0000",
            [],
            {},
            [[]] * 50,
            {"a": {"b": []}},
            True,
            "x" * 5000,
            float("nan"),
        )
        where = document
        while isinstance(where, dict | list) and where:
            name = rng.choice(list(where)) if isinstance(where, dict) else rng.randrange(len(where))
            if rng.random() < 0.5 or not isinstance(where[name], dict | list):
                where[name] = rng.choice(strange)
                break
            where = where[name]
        data = bytearray(json.dumps(document).encode())
    return bytes(data)


def seeds() -> list[bytes]:
    """Return bodies that use every field; none may be answered, for they ask a model that is not there."""
    picture = prompts(1)[0].body["messages"][0]["content"][0]
    picture["image_url"]["url"] = picture["image_url"]["url"][:400]
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    message = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, picture]},
    ]
    chat = {
        "model": "nobody",
        "messages": message,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["a", "b"],
    }
    chat |= {
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "response_format": schema,
    }
    chat |= {
        "vsd": {"strategy": "hybrid", "rule": "coupled", "history": ["sit()"]},
        "n": 1,
        "tools": [],
        "user": "me",
    }
    items = [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]
    told = {"model": "nobody", "input": items, "instructions": "b", "text": {"format": {"type": "text"}}}
    return [json.dumps(chat).encode(), json.dumps(told).encode()]


def hostile(*, quick: bool) -> list[Figure]:
    """Ask without and with wrong keys, by odd paths, for remote pictures, and with damaged bodies."""
    key, served, statuses, came = secrets.token_urlsafe(24), 0, Counter[int](), 0
    with tempfile.TemporaryDirectory() as name:
        file = Path(name, "keys")
        file.write_text(key)
        file.chmod(0o600)
        settings = ServeSettings(bind="127.0.0.1:0", api_keys=file, allow_url_host=("allowed.example",))
        with serving(settings, EdgeSettings()) as server, socket.create_server(("127.0.0.1", 0)) as trap:
            port, trap_port = int(server.url.rpartition(":")[2]), trap.getsockname()[1]
            body = json.dumps(prompts(1)[0].body).encode()
            for wrong in ("", key[:-1], f"{key}x", key.upper(), "Bearer", "x" * 5000):
                for path in PATHS:
                    served += spoken(port, request(path, key=wrong)) == 200
                for path in (CHAT, "/v1/responses"):
                    served += spoken(port, request(path, body, wrong, "POST")) == 200
            for url in URLS:
                parts = [{"type": "image_url", "image_url": {"url": url.format(port=trap_port)}}]
                asked = {
                    "model": "target",
                    "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "a"}]}],
                }
                served += spoken(port, request(CHAT, json.dumps(asked).encode(), key, "POST")) == 200
            came = _came(trap)
            _fuzz(port, key, 3_000 if quick else 100_000, statuses)
            is_alive = httpx.get(f"{server.url}/health").status_code == 200
            given = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            answers = httpx.post(server.url + CHAT, content=body, timeout=60, headers=given)
    served += statuses[200]
    broken = sum(n for status, n in statuses.items() if status >= 500 or status == 0)
    broken += not is_alive or answers.status_code != 200
    note = ", ".join(f"{status}: {n}" for status, n in sorted(statuses.items()))
    return [
        Figure(
            "serve hostile served", served + came, 0, "at most", f"{came} pictures fetched; bodies {note}"
        ),
        Figure("serve hostile crashes", broken, 0, "at most", "statuses of 500 and more, cut connections"),
    ]


def _came(trap: socket.socket) -> int:
    trap.settimeout(0.3)
    try:
        trap.accept()[0].close()
    except TimeoutError:
        return 0
    return 1


def _fuzz(port: int, key: str, count: int, statuses: Counter[int]) -> None:
    rng, originals = random.Random(5), seeds()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    for number in range(count):
        which = number % len(originals)
        try:
            connection.request(
                "POST", (CHAT, "/v1/responses")[which], mutated(originals[which], rng), headers
            )
            response = connection.getresponse()
            response.read()
            statuses[response.status] += 1
        except (http.client.HTTPException, OSError):
            statuses[0] += 1
            connection.close()
    connection.close()


def lost_cloud(out: Path) -> list[Figure]:
    """Kill the cloud under requests; return the longest time until one was told so."""
    address = f"tcp://127.0.0.1:{_free_port()}"
    edge = EdgeSettings(cloud=address, timing=edge_timing(ServeSettings().link_silence_s, 4.0))
    body = prompts(1)[0].body
    with (
        process(out, "cloud", "cloud", "--insecure", "--bind", address, "--http", "off") as (cloud, _ready),
        serving(ServeSettings(bind="127.0.0.1:0"), edge) as server,
        httpx.Client(timeout=30) as web,
    ):
        before = web.post(server.url + CHAT, json=body)
        cloud.kill()
        spent, statuses = [], []
        for _ in range(5):
            began_s = time.monotonic()
            statuses.append(web.post(server.url + CHAT, json=body).status_code)
            spent.append(time.monotonic() - began_s)
    wrong = sum(status != 503 for status in statuses) + (before.status_code != 200)
    return [
        Figure(
            "serve lost cloud s to 503",
            max(spent),
            1.0,
            "at most",
            f"the first {spent[0]:.2f} s, then at once",
        ),
        Figure("serve lost cloud not 503", wrong, 0, "at most", f"of {len(statuses)}"),
    ]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])
