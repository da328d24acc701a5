"""From a client's question to an engine's: pictures, turns, the form of the answer, and how it is sampled."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vlm_spec_decode.core.types import MAX_INSTRUCTION_CHARS, Chat, Image, Observation, SamplingParams, Turn
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.mission_loop import check_instruction
from vlm_spec_decode.serve.openai_api.answering import Prepared
from vlm_spec_decode.serve.openai_api.errors import ApiError, unsupported, wrong
from vlm_spec_decode.serve.openai_api.pictures import PictureLimits, read_picture
from vlm_spec_decode.serve.openai_api.requests import ACTIONS, TEXT, Question, new_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What questions are made ready by. `grammar`: both ends hold answers to actions unless asked else.

    `sees` is whether the models have a vision tower.
    """

    pictures: PictureLimits
    longest_answer: int
    grammar: bool
    sees: bool

    def check(self, question: Question) -> None:
        """Refuse what no model need be asked about. Raises ApiError."""
        shown = sum(bool(turn.picture) for turn in question.turns)
        if not question.turns or question.turns[-1].role != "user":
            raise wrong("messages", "the last message must be the user's")
        if shown > 1:
            raise unsupported("messages", "more than one picture in a request")
        if shown and not self.sees:
            raise unsupported("messages", "the models of this server have no vision tower")
        longest = question.max_tokens
        if longest is not None and not 1 <= longest <= self.longest_answer:
            raise wrong("max_tokens", f"max_tokens {longest}: 1 to {self.longest_answer} is wanted")
        if question.history and question.form != ACTIONS:
            raise wrong("vsd.history", "a history of actions is for the form robot_actions")
        if question.form == ACTIONS:
            self._check_actions(question, shown)

    def _check_actions(self, question: Question, shown: int) -> None:
        if not self.grammar:
            raise unsupported("response_format.type", "robot_actions on a server with --no-grammar")
        if len(question.turns) > 1:
            raise unsupported(
                "messages", "robot_actions takes one message, the user's; what was done is in vsd.history"
            )
        if self.sees and not shown:
            raise wrong("messages", "robot_actions needs a picture: the models see")

    def prepare(self, question: Question, engine: Engine) -> Prepared:
        """Return the question for an engine; fetches and decodes its picture. Raises ApiError or VsdError."""
        url = next((turn.picture for turn in question.turns if turn.picture), "")
        image = engine.picture(read_picture(url, self.pictures)) if url else None
        config = self._config(question, engine.config)
        observation = _observation(question, image)
        # Only now: a text that is too long has been refused, and its tokens are not counted.
        told = (*(turn.text for turn in question.turns), question.description)
        tokens = sum(engine.count_tokens(text) for text in told if text)
        return Prepared(observation, config, tokens)

    def _config(self, question: Question, base: EngineConfig) -> EngineConfig:
        return replace(
            base,
            strategy=question.strategy or base.strategy,
            params=_params(question, base.params),
            free_text=True,  # actions are read from what is told, so that an answer that is cut is no error
        )


def _observation(question: Question, image: Image | None) -> Observation:
    """Return what both models are asked. Raises ApiError for a chat that is too long."""
    last = question.turns[-1].text
    if question.form == ACTIONS:
        return Observation(image, check_instruction(last), question.history)
    turns = [Turn(turn.role, turn.text, bool(turn.picture)) for turn in question.turns]
    if question.description:
        turns[-1] = replace(turns[-1], text=f"{last}\n{question.description}".strip())
    form = "free" if question.form == TEXT else question.form
    try:
        chat = Chat(tuple(turns), form, question.pattern)
    except ValueError as error:
        raise ApiError(400, str(error), code="string_above_max_length", param="messages") from error
    return Observation(image, last.strip()[:MAX_INSTRUCTION_CHARS], chat=chat)


def _params(question: Question, base: SamplingParams) -> SamplingParams:
    temperature = base.temperature if question.temperature is None else question.temperature
    seed = base.seed if question.seed is None else question.seed
    if temperature and question.seed is None:
        seed = new_seed()  # who samples without a seed wants another answer each time
    return replace(
        base,
        temperature=temperature,
        top_p=question.top_p,
        top_k=question.top_k,
        seed=seed,
        max_tokens=question.max_tokens or base.max_tokens,
        rule=question.rule or base.rule,
    )
