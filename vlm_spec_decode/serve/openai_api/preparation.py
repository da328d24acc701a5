"""From a client's request to an engine's question: pictures, turns, the answer's form, how it is sampled."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vlm_spec_decode.core.types import (
    MAX_INSTRUCTION_CHARS,
    Chat,
    ChatTurn,
    Image,
    Observation,
    SamplingParams,
)
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.mission_loop import check_instruction
from vlm_spec_decode.serve.openai_api.errors import ApiError, unsupported, wrong
from vlm_spec_decode.serve.openai_api.pictures import (
    PictureLimits,
    fetch_picture,
    is_remote,
    read_picture,
)
from vlm_spec_decode.serve.openai_api.requests import ACTIONS, TEXT, CompletionRequest, new_seed
from vlm_spec_decode.serve.openai_api.service import PreparedRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPreparer:
    """What questions are made ready by. `grammar`: both ends hold answers to actions unless asked else.

    `sees` is whether the models have a vision tower.
    """

    pictures: PictureLimits
    longest_answer: int
    grammar: bool
    sees: bool

    def check(self, asked: CompletionRequest) -> None:
        """Refuse what no model need be asked about. Raises ApiError."""
        shown = sum(bool(turn.picture) for turn in asked.turns)
        if not asked.turns or asked.turns[-1].role != "user":
            raise wrong("messages", "the last message must be the user's")
        if shown > 1:
            raise unsupported("messages", "more than one picture in a request")
        if shown and not self.sees:
            raise unsupported("messages", "the models of this server have no vision tower")
        longest = asked.max_tokens
        if longest is not None and not 1 <= longest <= self.longest_answer:
            raise wrong("max_tokens", f"max_tokens {longest}: 1 to {self.longest_answer} is wanted")
        if asked.history and asked.form != ACTIONS:
            raise wrong("vsd.history", "a history of actions is for the form robot_actions")
        if asked.form == ACTIONS:
            self._check_actions(asked, shown)

    def _check_actions(self, asked: CompletionRequest, shown: int) -> None:
        if not self.grammar:
            raise unsupported("response_format.type", "robot_actions on a server with --no-grammar")
        if len(asked.turns) > 1:
            raise unsupported(
                "messages", "robot_actions takes one message, the user's; what was done is in vsd.history"
            )
        if self.sees and not shown:
            raise wrong("messages", "robot_actions needs a picture: the models see")

    def fetches(self, asked: CompletionRequest) -> bool:
        """Whether `fetch` has anything to do."""
        return is_remote(_url(asked))

    async def fetch(self, asked: CompletionRequest) -> bytes:
        """Return the file of a picture by URL. Raises ApiError."""
        return await fetch_picture(_url(asked), self.pictures)

    def prepare(
        self, asked: CompletionRequest, engine: Engine, fetched: bytes | None = None
    ) -> PreparedRequest:
        """Return the question for an engine; decodes its picture, which may have been fetched before.

        Raises ApiError or VsdError.
        """
        url = _url(asked)
        image = engine.picture(read_picture(url, self.pictures, fetched)) if url else None
        config = self._config(asked, engine.config)
        observation = _observation(asked, image)
        # Only now: a text that is too long has been refused, and its tokens are not counted.
        told = (*(turn.text for turn in asked.turns), asked.description)
        tokens = sum(engine.count_tokens(text) for text in told if text)
        return PreparedRequest(observation, config, tokens)

    def _config(self, asked: CompletionRequest, base: EngineConfig) -> EngineConfig:
        return replace(
            base,
            strategy=asked.strategy or base.strategy,
            params=_params(asked, base.params),
            free_text=True,  # actions are read from what is told, so that an answer that is cut is no error
        )


def _url(asked: CompletionRequest) -> str:
    return next((turn.picture for turn in asked.turns if turn.picture), "")


def _observation(asked: CompletionRequest, image: Image | None) -> Observation:
    """Return what both models are asked. Raises ApiError for a chat that is too long."""
    last = asked.turns[-1].text
    if asked.form == ACTIONS:
        return Observation(image, check_instruction(last), asked.history)
    turns = [ChatTurn(turn.role, turn.text, bool(turn.picture)) for turn in asked.turns]
    if asked.description:
        turns[-1] = replace(turns[-1], text=f"{last}\n{asked.description}".strip())
    form = "free" if asked.form == TEXT else asked.form
    try:
        chat = Chat(tuple(turns), form, asked.pattern)
    except ValueError as error:
        raise ApiError(400, str(error), code="string_above_max_length", param="messages") from error
    return Observation(image, last.strip()[:MAX_INSTRUCTION_CHARS], chat=chat)


def _params(asked: CompletionRequest, base: SamplingParams) -> SamplingParams:
    temperature = base.temperature if asked.temperature is None else asked.temperature
    seed = base.seed if asked.seed is None else asked.seed
    if temperature and asked.seed is None:
        seed = new_seed()  # who samples without a seed wants another answer each time
    return replace(
        base,
        temperature=temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        seed=seed,
        max_tokens=asked.max_tokens or base.max_tokens,
        rule=asked.rule or base.rule,
    )
