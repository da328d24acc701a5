"""vLLM's own process: verifies the chains of many answers, one step of vLLM after the other.

Runs in an environment of its own (`make setup-vllm`), because vLLM pins other versions than ours. Three
things are put into vLLM:

- `ChainScheduler`, a subclass of vLLM's scheduler. A prompt is read up to its last token; then the answer
  rests until rows of it are asked for. Its drafts are `spec_token_ids`, which vLLM verifies in one step.
- `CoupledRule`, in place of vLLM's samplers: it chooses the token after every row by our rule, with the noise
  that the edge shares (`decoding.sampling`), from vLLM's logits, where they lie.
- `RulesOfPass`, vLLM's grammar output with the sampling parameters of each answer. What an answer may say in
  each row travels as vLLM's own bit masks.

Written against one minor version of vLLM (`vllm_process.VERSION`): its inner names change.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import select
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm import EngineArgs, SamplingParams
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.llava import LlavaForConditionalGeneration
from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration
from vllm.model_executor.models.utils import WeightsMapper
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.outputs import SamplerOutput
from vllm.v1.request import Request, RequestStatus

from vlm_spec_decode.core import types
from vlm_spec_decode.core.errors import NotFinite
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.models.choose import DeviceChoices
from vlm_spec_decode.models.choose_batch import BatchChoices
from vlm_spec_decode.models.engines import vllm_messages as wire

CHAIN = 32
"""Drafted tokens that one step of vLLM verifies, of one answer; longer chains take several steps."""

REJECTED = -1
"""What vLLM takes for "no token" in a sampler's output."""

ALL_LEGAL = -1
"""A word of a bit mask that allows all of its 32 ids."""

ORPHANED_S = 1.0
"""Within this time after its pipe has closed, it is known whether the cloud has ended."""

UNNAMED_TOWER = re.compile(r"^(model\.)?vision_tower\.(?!vision_model\.)")
"""Tensors of a vision tower as Transformers 5 saves them, without the part of the name that vLLM expects."""


def _read_saved_towers() -> None:
    """Let vLLM read a LLaVA that Transformers 5 has saved; in every worker, which imports this module."""
    names = WeightsMapper(orig_to_new_regex={UNNAMED_TOWER: "vision_tower.vision_model."})
    for kind in (LlavaForConditionalGeneration, LlavaNextForConditionalGeneration):
        kind.hf_to_vllm_mapper = kind.hf_to_vllm_mapper | names


def _ask_for_every_tensor() -> None:
    """Let vLLM refuse a checkpoint with gaps, as it does only for quantised ones; in every worker."""
    track = DefaultModelLoader.track_weights_loading

    def strictly(loader: Any, model: Any, loaded: set[str] | None, quantized: bool = True) -> None:  # noqa: ARG001
        track(loader, model, loaded, quantized=True)

    DefaultModelLoader.track_weights_loading = strictly


def _tell_tensors(tell: Callable[[float], None], folder: str) -> None:
    """Call `tell` with the share of a checkpoint's bytes that vLLM has read, about a hundred times."""
    total = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors")) or 1
    read = DefaultModelLoader.get_all_weights

    def told(loader: Any, *args: Any) -> Iterator[tuple[str, Tensor]]:
        done = last = 0
        for name, tensor in read(loader, *args):
            yield name, tensor
            done += tensor.nbytes
            if done - last > total // 100:
                tell(min(1.0, done / total))
                last = done

    DefaultModelLoader.get_all_weights = told


_read_saved_towers()
_ask_for_every_tensor()


class NoDrafts:
    """The proposer that switches vLLM's verification on and never proposes anything: drafts come from us."""

    def __init__(self, config: Any) -> None:
        """Take vLLM's config, as vLLM gives it to every proposer."""

    def load_model(self, *args: Any, **settings: Any) -> None:
        """There is nothing to load."""

    def propose(self, *_args: Any, **_settings: Any) -> list[list[int]]:
        """Propose nothing."""
        return []


@dataclass
class RulesOfPass(GrammarOutput):  # type: ignore[misc]
    """vLLM's bit masks of one step and, for our rule, the sampling parameters of each answer in it."""

    params: dict[str, types.SamplingParams] = field(default_factory=dict)
    has_masks: bool = False


@dataclass(slots=True)
class Chain:
    """The rows of one answer that are still to be verified, and what the target has said of them."""

    rows: wire.Rows
    said: list[int] = field(default_factory=list)
    error: str = ""

    @property
    def only_reads(self) -> bool:
        """Whether only the prompt is to be read."""
        return self.rows.params is None

    @property
    def drafts(self) -> list[int]:
        """The tokens of the next step."""
        return list(self.rows.tokens[len(self.said) : len(self.said) + CHAIN])

    def legal(self, row: int) -> bytes | None:
        """What the next step may choose in its row `row`."""
        return self.rows.legal[len(self.said) + row] if self.rows.legal else None

    def advance(self, tokens: Seq[int]) -> bool:
        """Add what a step has said; return whether the target now differs from the chain, or is past it."""
        self.said += tokens
        length = len(self.said)
        return length > len(self.rows.tokens) or tuple(self.said) != self.rows.tokens[:length]


class ChainScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler, in which an answer is in a step only when rows of it were asked for.

    `chains` are the answers of the present pass by vLLM's name of them.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.chains: dict[str, Chain] = {}

    def is_read(self, request: Request) -> bool:
        """Whether all but the last known token of an answer is in the cache, so that rows can be verified."""
        return bool(
            request.status == RequestStatus.RUNNING and request.num_computed_tokens == request.num_tokens - 1
        )

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Give each answer its drafts, and let vLLM choose the step."""
        for name, chain in self.chains.items():
            request = self.requests[name]
            if self.is_read(request) and not chain.only_reads:
                request.spec_token_ids = chain.drafts
        # An answer that has lost its cache is read again when it is asked for, not as soon as there is room.
        resting = [request for request in self.waiting if request.request_id not in self.chains]
        self.waiting.remove_requests(resting)
        for request in self.waiting:
            # A prefix that is cached up to the last token but one would leave nothing to read, and vLLM would
            # choose a token at once, before anybody has asked for it.
            request.skip_reading_prefix_cache = (request.num_tokens - 1) % self.block_size == 0
        step = super().schedule(throttle_prefills)
        for request in resting:
            self.waiting.add_request(request)
        return step

    def _reserve_prefill_lookahead(self, request: Request, computed: int, new: int) -> int:
        """Return how many tokens to compute of an answer: all if it is due, else no row that chooses."""
        chain = self.chains.get(request.request_id)
        if chain and not chain.only_reads and computed == request.num_tokens - 1:
            return new
        unread: int = request.num_tokens - 1 - computed
        return max(0, min(new, unread))

    def get_grammar_bitmask(self, step: SchedulerOutput) -> RulesOfPass | None:
        """Return masks and parameters of the answers whose rows choose in this step."""
        masked, rows, params = list[str](), list[np.ndarray[Any, Any]](), dict[str, types.SamplingParams]()
        words = -(-self.vllm_config.model_config.get_vocab_size() // 32)
        for name in step.num_scheduled_tokens:
            chain = self.chains.get(name)
            if chain is None or chain.rows.params is None or self.requests[name].is_prefill_chunk:
                continue
            params[name] = chain.rows.params
            if chain.rows.legal:
                masked.append(name)
                drafted = len(step.scheduled_spec_decode_tokens.get(name, ()))
                rows += [_mask(chain.legal(row), words) for row in range(drafted + 1)]
        masks = np.stack(rows) if rows else np.empty((0, words), np.int32)
        return RulesOfPass(masked, masks, None, params=params, has_masks=bool(rows)) if params else None

    def update_draft_token_ids(self, drafts: Any) -> None:
        """Ignore vLLM's proposer: drafts come from the cloud."""

    def evict_one(self) -> bool:
        """Free the cache of the answer that rests and was used longest ago; return whether there was one."""
        for request in self.running:
            if request.request_id not in self.chains:
                self.evict(request)
                return True
        return False

    def evict(self, request: Request) -> None:
        """Free an answer's cache; it is read again when it is asked for."""
        if request.status == RequestStatus.RUNNING:
            self.running.remove(request)
            self._preempt_request(request, time.monotonic())


def _mask(bits: bytes | None, words: int) -> np.ndarray[Any, Any]:
    """Return legal ids as vLLM's words of 32 ids, low bit first; ids beyond ours are not legal."""
    if bits is None:
        return np.full(words, ALL_LEGAL, np.int32)
    padded = np.zeros(words * 4, np.uint8)
    padded[: len(bits)] = np.frombuffer(bits, np.uint8)
    return padded.view(np.int32)


class CoupledRule:
    """Chooses the token after every row of a step, in place of vLLM's samplers."""

    def __init__(self, runner: Any, vocab_size: int) -> None:
        self._runner = runner
        self._vocab_size = vocab_size
        self._params: dict[str, types.SamplingParams] = {}
        self._sample_tokens = runner.sample_tokens
        runner.sample_tokens = self.sample_tokens
        runner.sampler.forward = self.plain
        runner.rejection_sampler.forward = self.verify

    def sample_tokens(self, rules: RulesOfPass | None) -> Any:
        """Note the parameters of this step, and let vLLM apply its masks and call us."""
        self._params = rules.params if rules else {}
        return self._sample_tokens(rules if rules and rules.has_masks else None)

    def plain(self, logits: Tensor, **_settings: Any) -> SamplerOutput:
        """Choose in a step without drafts: one row an answer."""
        return self._choose(logits, [()] * len(logits))

    def verify(self, metadata: Any, _draft_probs: Any, logits: Tensor, _sampling: Any) -> SamplerOutput:
        """Choose in a step with drafts: an answer's rows follow each other, and one more than its drafts."""
        drafts, start = [], 0
        tokens = metadata.draft_token_ids.tolist()
        for count in metadata.num_draft_tokens:
            drafts.append(tuple(tokens[start : start + count]))
            start += count
        return self._choose(logits, drafts)

    def _choose(self, logits: Tensor, drafts: Seq[Tokens]) -> SamplerOutput:
        batch, start = self._runner.input_batch, 0
        waits = list[Callable[[], list[int]] | None]()
        for index, drafted in enumerate(drafts):
            end = start + len(drafted) + 1
            params = self._params.get(batch.req_ids[index])
            if params is None:
                waits.append(None)  # a part of a prompt: vLLM throws its row away
            else:
                position = int(batch.num_tokens_no_spec[index] - batch.num_prompt_tokens[index])
                waits.append(self._asked(logits[start:end, : self._vocab_size], drafted, position, params))
            start = end
        # All answers' choices are queued on the device before the first is waited for.
        said = [[0] if wait is None else wait() for wait in waits]
        width = max(len(drafted) for drafted in drafts) + 1
        rows = [tokens + [REJECTED] * (width - len(tokens)) for tokens in said]
        found = torch.tensor(rows, dtype=torch.int32).to(logits.device)
        return SamplerOutput(sampled_token_ids=found, logprobs_tensors=None)

    def _asked(
        self, logits: Tensor, drafted: Tokens, position: int, params: types.SamplingParams
    ) -> Callable[[], list[int]]:
        """Begin to choose an answer's rows; return what walks down them as long as the drafts are right."""
        choices = DeviceChoices(logits) if logits.device.type == "cpu" else BatchChoices(logits)
        positions = [position + row for row in range(len(logits))]
        finish = choices.prefetch(positions, params)

        def walk() -> list[int]:
            try:
                finish()
                pick, said = choices.pick_each(positions, params), list[int]()
                for row in range(len(logits)):
                    said.append(pick(row))
                    if row == len(drafted) or drafted[row] != said[-1]:
                        break
            except NotFinite:
                return []
            return said

        return walk


class CoupledWorker:
    """What is added to each of vLLM's workers, one a GPU."""

    model_runner: Any

    def use_coupled_rule(self, vocab_size: int) -> None:
        """Choose by our rule from now on; after vLLM has warmed up with its own."""
        CoupledRule(self.model_runner, vocab_size)


class Host:
    """Serves one connection: loads a checkpoint, then runs passes until the other end goes away."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._names: dict[int, str] = {}

    def run(self) -> None:
        """Serve until the connection ends."""
        asked = wire.to_engine.decode(self._connection.recv_bytes())
        assert isinstance(asked, wire.LoadCheckpoint)
        try:
            self._load(asked)
            self._serve()
        except Exception as error:
            logging.getLogger(__name__).exception("vLLM has failed")
            first = (str(error).strip().splitlines() or [""])[0]
            with contextlib.suppress(OSError):  # nobody may be there any more
                self._send(wire.Refusal(f"{type(error).__name__}: {first}"))

    def _serve(self) -> None:
        while True:
            try:
                message = wire.to_engine.decode(self._connection.recv_bytes())
            except EOFError:
                return
            match message:
                case wire.Pass():
                    self._send(wire.Passed(self._pass(message.rows)))
                case wire.Forget():
                    if request := self._request(message.answer):
                        self._scheduler.evict(request)
                case wire.Close():
                    self._abort(message.answer)

    def _load(self, asked: wire.LoadCheckpoint) -> None:
        _tell_tensors(lambda share: self._send(wire.Progress(share)), asked.folder)
        arguments = EngineArgs(
            model=asked.folder,
            dtype=asked.dtype,
            max_model_len=-1,  # what the checkpoint and the cache allow
            max_num_seqs=asked.answers,
            tensor_parallel_size=asked.tensor_parallel,
            kv_cache_memory_bytes=asked.kv_bytes,
            limit_mm_per_prompt={"image": 1 if asked.sees else 0, "video": 0},
            # Robot and cloud must see the same pixels, so pictures are prepared as by our own loop.
            mm_processor_kwargs={"use_fast": False} if asked.sees else None,
            use_tqdm_on_load=False,
            async_scheduling=False,
            # On a CPU compiling takes longer than it saves: it is for trying things.
            enforce_eager=asked.device == "cpu",
            scheduler_cls=ChainScheduler,
            worker_extension_cls=f"{__name__}.CoupledWorker",
            speculative_config={
                "method": "custom_class",
                "model": f"{__name__}.NoDrafts",
                "num_speculative_tokens": CHAIN,
            },
            disable_log_stats=True,
            seed=0,
        )
        engine = LLMEngine.from_engine_args(arguments)
        engine.collective_rpc("use_coupled_rule", args=(asked.vocab_size,))
        self._engine, self._core = engine, engine.engine_core.engine_core
        self._scheduler: ChainScheduler = self._core.scheduler
        cache = self._scheduler.kv_cache_config
        kv_bytes = sum(tensor.size for tensor in cache.kv_cache_tensors)
        token_bytes = -(-kv_bytes // (cache.num_blocks * self._scheduler.block_size))
        self._send(wire.Ready(token_bytes))

    # A pass ------------------------------------------------------------------------------------------

    def _pass(self, rows: Seq[wire.Rows]) -> tuple[wire.Said, ...]:
        chains = [Chain(each) for each in rows]
        for chain in chains:
            if chain.rows.answer not in self._names:
                chain.error = self._open(chain.rows)
        self._scheduler.chains = {
            self._names[chain.rows.answer]: chain for chain in chains if not chain.error
        }
        while self._take_out_done():
            if not self._step() and not self._scheduler.evict_one():
                for name in [*self._scheduler.chains]:
                    self._fail(name, "out_of_memory")
        return tuple(
            wire.Said(answer=chain.rows.answer, tokens=tuple(chain.said), error=chain.error)
            for chain in chains
        )

    def _take_out_done(self) -> bool:
        """Take out the answers whose prompts are read and that want no more; return whether any is left."""
        scheduler = self._scheduler
        for name, chain in [*scheduler.chains.items()]:
            if chain.only_reads and scheduler.is_read(scheduler.requests[name]):
                del scheduler.chains[name]
        return bool(scheduler.chains)

    def _step(self) -> bool:
        """Run one step of vLLM; return whether it computed anything."""
        outputs, has_run = self._core.step()
        self._core.post_step(has_run)
        for output in outputs.get(0).outputs if outputs.get(0) else ():
            self._take(output.request_id, output.new_token_ids, output.finish_reason is not None)
        for name in [*self._scheduler.chains]:
            # A row whose numbers cannot be used says nothing, and vLLM reports no output for it.
            request = self._scheduler.requests.get(name)
            if request and request.num_computed_tokens >= request.num_tokens:
                self._fail(name, "not_finite")
        return bool(has_run)

    def _take(self, name: str, tokens: Seq[int], has_ended: bool) -> None:
        chain = self._scheduler.chains.get(name)
        if chain is None:
            return
        if chain.advance(tokens):
            del self._scheduler.chains[name]
        elif has_ended:
            chain.error = "too_long"
            del self._scheduler.chains[name]
        if has_ended:
            self._names.pop(chain.rows.answer, None)

    def _fail(self, name: str, error: str) -> None:
        chain = self._scheduler.chains.pop(name)
        chain.error = error
        self._abort(chain.rows.answer)

    # Answers -----------------------------------------------------------------------------------------

    def _open(self, rows: wire.Rows) -> str:
        """Hand an answer's prompt to vLLM; return why it cannot be taken, "" if it can."""
        from PIL import Image

        prompt: dict[str, Any] = {"prompt_token_ids": list(rows.prompt)}
        if rows.jpeg:
            try:
                prompt["multi_modal_data"] = {"image": Image.open(io.BytesIO(rows.jpeg)).convert("RGB")}
            except (OSError, ValueError, Image.DecompressionBombError):
                return "image"
        # vLLM must end no answer by itself: what ends one is for the cloud to say.
        endless = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True, detokenize=False)
        try:
            request = self._engine.input_processor.process_inputs(
                str(rows.answer), prompt, endless, supported_tasks=self._engine.get_supported_tasks()
            )
        except Exception as error:  # noqa: BLE001 - of one question: the others go on
            return "too_long" if getattr(error, "parameter", "") == "input_tokens" else f"{error}"
        self._engine.input_processor.assign_request_id(request)
        self._core.add_request(*self._core.preprocess_add_request(request))
        self._names[rows.answer] = request.request_id
        return ""

    def _request(self, answer: int) -> Request | None:
        found: Request | None = self._scheduler.requests.get(self._names.get(answer, ""))
        return found

    def _abort(self, answer: int) -> None:
        if name := self._names.pop(answer, None):
            self._scheduler.finish_requests([name], RequestStatus.FINISHED_ABORTED)

    def _send(self, message: wire.FromEngine) -> None:
        self._connection.send_bytes(wire.encode(message))


def main() -> None:
    """Serve: the arguments are the connection's descriptor, the package's folder, and the cloud's process.

    The cloud may have been killed before this line is reached, so it says by itself which process it is.
    """
    connection, folder, cloud = Connection(int(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    leaving = threading.Thread(target=_leave_with, args=(connection.fileno(), cloud, folder), daemon=True)
    leaving.start()
    Host(connection).run()
    leaving.join(2 * ORPHANED_S)


def _leave_with(pipe: int, cloud: int, folder: str) -> None:
    """End this process as soon as the other end of the pipe is gone, even while it loads, or hangs in a step.

    A cloud that was killed has left the folder behind: it is removed.
    """
    hangs_up = select.poll()
    hangs_up.register(pipe, 0)
    hangs_up.poll()
    until_s = time.monotonic() + ORPHANED_S
    while os.getppid() == cloud and time.monotonic() < until_s:
        time.sleep(ORPHANED_S / 10)
    if os.getppid() != cloud:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)
