"""The grammar over real tokenizers: word-level as shipped, byte-level BPE and SentencePiece-like BPE."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import llguidance
import llguidance.hf
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from test.models.families import tokenizers
from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.types import Done
from vlm_spec_decode.core.disk_cache import DiskCache
from vlm_spec_decode.core.errors import GrammarError
from vlm_spec_decode.core.types import Language, Tokens
from vlm_spec_decode.decoding.grammar_mask import GrammarWalk
from vlm_spec_decode.models import grammar as grammar_module
from vlm_spec_decode.models.grammar import CompiledGrammar, compile_grammar, word_bytes
from vlm_spec_decode.models.loader import shipped
from vlm_spec_decode.models.tokenizer import TokenizerCodec

CORPUS = [
    "I see a red chair ahead. turn(-10) forward(1.6) done()",
    "no, I can not do that: turn(170) strafe(-0.5) look(10, -5)\nwait(2.5) stop() sit() hello() done()",
    "the box is left of the ball; stand_up() stand_down() rise() stretch() turn( 30 ) ( ) ) (0.25)",
] * 30


def _fast(tokenizer: Tokenizer, *more_ends: str) -> TokenizerCodec:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", clean_up_tokenization_spaces=False
    )
    ends = [fast.eos_token_id, *fast.convert_tokens_to_ids(list(more_ends))]
    return TokenizerCodec(fast, tuple(sorted(ends)))


def shipped_codec(name: str = "target") -> TokenizerCodec:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shipped(name))
    return TokenizerCodec(tokenizer, (tokenizer.eos_token_id,))


def word_codec() -> TokenizerCodec:
    """Whole words and numbers, as the language-only pair has them."""
    return shipped_codec("text_target")


def byte_level_codec() -> TokenizerCodec:
    """As Qwen has it, with two tokens that end an answer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|end|>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _fast(tokenizer, "<|end|>")


def sentencepiece_codec() -> TokenizerCodec:
    """As Llama has it: a mark for the space, bytes for what is unknown, a first space that is not shown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=tokens, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _fast(tokenizer)


CODECS: dict[str, Callable[[], TokenizerCodec]] = {
    "word level": word_codec,
    "subword, digit by digit": shipped_codec,
    "byte level": byte_level_codec,
    "sentencepiece": sentencepiece_codec,
}


@pytest.fixture(scope="module", params=CODECS)
def codec(request: pytest.FixtureRequest) -> TokenizerCodec:
    return CODECS[request.param]()


@pytest.fixture(scope="module")
def grammar(codec: TokenizerCodec) -> CompiledGrammar:
    return compile_grammar(language(), codec)


def wander(grammar: CompiledGrammar, codec: TokenizerCodec, rng: random.Random) -> Tokens:
    """Walk at random to the end; after some words prefer what leads into calls and out of them."""
    state, said = grammar.start(), []
    names = "turn forward strafe look wait sit stop done turn( forward( look( wait( stop( done( ( ) () 1"
    liked = {*codec.encode(names), *codec.stop_ids}
    while (mask := state.mask()) is not None:
        legal = np.flatnonzero(mask).tolist()
        good = [t for t in legal if t in liked]
        said.append(rng.choice(good if good and len(said) > 6 and rng.random() < 0.8 else legal))
        state = state.after(said[-1])
    return tuple(said)


def test_any_walk_parses_and_ends(codec: TokenizerCodec, grammar: CompiledGrammar) -> None:
    pattern = re.compile(language().pattern)
    kinds = set()
    for seed in range(150):
        said = wander(grammar, codec, random.Random(seed))
        text = codec.decode(said)
        actions = parse_answer(text)
        assert actions, text
        assert not any(isinstance(action, Done) for action in actions[:-1])
        assert pattern.fullmatch(text) or pattern.fullmatch(" " + text)
        assert said[-1] in codec.stop_ids
        assert not set(said[:-1]) & set(codec.tokenizer.all_special_ids)
        kinds |= {type(action) for action in actions}
    assert len(kinds) >= 4


@pytest.mark.parametrize(
    "text",
    [
        "i see a red chair ahead . turn ( -10 ) forward ( 1.6 ) done ( )",
        "turn ( 30 )",
        "no , i can not do that . done ( )",
        "ok . look ( 10 , -5 ) sit ( ) done ( )",
    ],
)
def test_answers_of_the_models_are_legal_token_by_token(
    codec: TokenizerCodec, grammar: CompiledGrammar, text: str
) -> None:
    state = grammar.start()
    for token in codec.encode(text):
        mask = state.mask()
        assert mask is not None
        assert mask[token], codec.decode((token,))
        state = state.after(token)
    mask = state.mask()
    assert mask is not None
    assert mask[list(codec.stop_ids)].sum() == 1, (
        "one of the ids that end an answer, so that it can be forced"
    )
    if "done" in text:
        assert mask.sum() == 1
        assert set(GrammarWalk(grammar).forced(codec.encode(text))) <= set(codec.stop_ids)


def test_no_call_no_end(codec: TokenizerCodec, grammar: CompiledGrammar) -> None:
    walk = GrammarWalk(grammar)
    for text in ("", "i see a red chair ahead .", "no , i can not do that .", "turn ( 10"):
        place = walk.at(codec.encode(text))
        mask = place.mask()
        assert mask is not None
        assert not mask[list(codec.stop_ids)].any()


def forced_words(codec: TokenizerCodec, walk: GrammarWalk, text: str) -> list[str]:
    """Return the tokens of an answer, its end among them, that the grammar leaves no choice for."""
    tokens = (*codec.encode(text), codec.stop_ids[0])
    forced = [i for i in range(len(tokens)) if walk.forced(tokens[:i])[:1] == tokens[i : i + 1]]
    return [codec.decode((tokens[i],)) or "end" for i in forced]


def test_whole_words_are_forced_where_the_language_leaves_no_choice() -> None:
    codec = word_codec()
    walk = GrammarWalk(compile_grammar(language(), codec))
    text = "i see nothing . turn ( -10 ) forward ( 1.6 ) done ( )"
    assert forced_words(codec, walk, text) == [")", "(", ")", "(", ")", "end"]
    assert walk.forced(codec.encode("ok . done")) == ()
    assert walk.forced(codec.encode("turn ( 30 ) done")) == (*codec.encode("( )"), codec.stop_ids[0])


def test_numbers_beyond_the_limits_are_not_legal() -> None:
    codec = word_codec()
    walk = GrammarWalk(compile_grammar(language(), codec))
    mask = walk.at(codec.encode("ok . forward (")).mask()
    assert mask is not None
    legal = {codec.decode((t,)) for t in np.flatnonzero(mask)}
    assert {"3.0", "-3.0", "0.5", "4"} & legal == {"3.0", "-3.0", "0.5"}
    assert not {"3.1", "-3.1", "5.0", "30", ")"} & legal


def test_two_numbers_are_not_run_together() -> None:
    """`5 5` would be 55 if the words' bytes were joined as they are."""
    codec = word_codec()
    walk = GrammarWalk(compile_grammar(language(), codec))
    mask = walk.at(codec.encode("turn ( 5")).mask()
    assert mask is not None
    assert np.flatnonzero(mask).tolist() == list(codec.encode(")"))


def test_a_word_is_not_taken_for_the_beginning_of_a_call() -> None:
    """`for` begins `forward`, but no word goes on where it ends."""
    codec = word_codec()
    assert codec.encode("for do") != ()
    walk = GrammarWalk(compile_grammar(language(), codec))
    mask = walk.at(codec.encode("sit ( )")).mask()
    assert mask is not None
    assert not mask[list(codec.encode("for do"))].any()
    assert mask[list(codec.encode("forward done"))].all()


def test_a_words_bytes_are_what_decoding_shows() -> None:
    codec = word_codec()
    table = word_bytes(codec)
    ids = codec.encode("turn ( -10 ) forward ( 1.6 )")
    assert b"".join(table[i] for i in ids).decode() == codec.decode(ids) + " "


def test_the_shipped_tokenizer_is_forced_where_the_language_leaves_no_choice() -> None:
    codec = shipped_codec()
    walk = GrammarWalk(compile_grammar(language(), codec))
    text = " ok . turn(-180) forward(3) sit() done()"
    # After -180 and 3 only a point or the end of the call may follow, so neither is forced.
    assert forced_words(codec, walk, text) == ["end"]
    for text, digit, is_legal in (
        ("turn(-18", "0", True),
        ("turn(-18", "1", False),
        ("forward(3", "1", False),
    ):
        mask = walk.at(codec.encode(f" ok . {text}")).mask()
        assert mask is not None
        assert bool(mask[list(codec.encode(digit))].all()) == is_legal, text


def test_masks_do_not_depend_on_what_was_asked_before(
    codec: TokenizerCodec, grammar: CompiledGrammar
) -> None:
    """With every mask on the way asked for, and with none: both ends ask differently and must agree."""
    for seed in range(20):
        said = wander(grammar, codec, random.Random(seed))
        asked = compile_grammar(language(), codec).start()
        for i, token in enumerate(said):
            mask = asked.mask()
            silent = grammar.start()
            for earlier in said[:i] if i % 5 == 0 else ():
                silent = silent.after(earlier)
            if i % 5 == 0:
                assert (silent.mask() == mask).all()
            asked = asked.after(token)


def test_a_state_does_not_change_when_others_go_on(codec: TokenizerCodec, grammar: CompiledGrammar) -> None:
    state = grammar.start()
    for token in codec.encode("ok . turn ("):
        state = state.after(token)
    before = state.mask()
    assert before is not None
    for token in np.flatnonzero(before)[:20].tolist():
        after = state.after(token).mask()
        assert after is not None
    again = state.mask()
    assert again is not None
    assert (again == before).all()


def test_what_is_not_legal_is_a_named_error(codec: TokenizerCodec, grammar: CompiledGrammar) -> None:
    start = grammar.start()
    for token in (codec.stop_ids[0], codec.encode(")")[-1], codec.vocab_size + 5):
        with pytest.raises(GrammarError):
            start.after(token)
    state = start
    for token in codec.encode("turn ( 5 )"):
        state = state.after(token)
    mask = state.mask()
    assert mask is not None
    end = next(t for t in codec.stop_ids if mask[t])
    ended = state.after(end)
    assert ended.mask() is None
    with pytest.raises(GrammarError):
        ended.after(end)


@pytest.mark.parametrize("pattern", ["(((", r"[^\s\S]", "(?=a)b"])
def test_a_pattern_that_cannot_be_used_is_a_named_error(pattern: str) -> None:
    with pytest.raises(GrammarError) as error:
        compile_grammar(Language("x", pattern), shipped_codec())
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_an_end_token_is_a_named_error() -> None:
    with pytest.raises(GrammarError, match="ends an answer"):
        compile_grammar(language(), replace(shipped_codec(), stop_ids=()))


def test_a_tokenizer_that_cannot_be_read_is_a_named_error() -> None:
    codec = byte_level_codec()
    codec.tokenizer.backend_tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(GrammarError, match="this tokenizer cannot be used with a grammar: can't determine"):
        compile_grammar(language(), codec)


def native_masks(codec: TokenizerCodec) -> llguidance.LLMatcher:
    """The matcher over llguidance's own reading of a tokenizer, slices and all."""
    end_id = next(i for i in codec.stop_ids if i == codec.tokenizer.eos_token_id)
    own = llguidance.hf.from_tokenizer(codec.tokenizer, n_vocab=codec.vocab_size, eos_token=end_id)
    pattern = llguidance.LLMatcher.grammar_from_regex(language().pattern)
    return llguidance.LLMatcher(own, pattern, log_level=0)


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece", "Qwen's own"])
def test_masks_from_the_table_of_bytes_are_llguidances_own(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First from the table as it was built, then from the one on disk."""
    monkeypatch.setenv("VSD_CACHE", str(tmp_path))
    codec = CODECS[kind]() if kind in CODECS else qwen_codec()
    native, walks = native_masks(codec), 2 if kind == "Qwen's own" else 60
    names = "turn forward strafe look wait sit stop done turn( forward( look( wait( stop( done( ( ) () 1"
    liked = set(codec.encode(names))
    for start in range(2):
        grammar_module._TOKENIZERS.clear()
        compiled = compile_grammar(language(), codec)
        assert len(list(tmp_path.glob("token-bytes*.entry"))) == 1
        for seed in range(walks):
            rng, state, other = random.Random(seed + 1000 * start), compiled.first, native.deep_copy()
            for step in range(60):
                mask = state.mask()
                bits = np.frombuffer(other.compute_bitmask(), np.uint8)
                wanted = np.unpackbits(bits, count=codec.vocab_size, bitorder="little").astype(np.bool_)
                assert mask is not None
                if not other.is_accepting():
                    wanted[codec.tokenizer.eos_token_id] = False
                assert np.array_equal(mask, wanted), (seed, step)
                legal = np.flatnonzero(mask)
                good = [t for t in liked if mask[t]]
                token = int(
                    rng.choice(good) if good and step > 4 and rng.random() < 0.8 else rng.choice(legal)
                )
                if token == codec.tokenizer.eos_token_id:
                    break
                state = state.after(token)
                assert other.consume_token(token)


def qwen_codec() -> TokenizerCodec:
    """151,646 ids; the marks of pictures behind them are hidden from answers, not from `native_masks`."""
    return _with_ends(tokenizers.qwen(tokenizers.QWEN2))


def _with_ends(tokenizer: PreTrainedTokenizerFast) -> TokenizerCodec:
    return TokenizerCodec(tokenizer, (tokenizer.eos_token_id,))


def test_hidden_tokens_change_no_mask() -> None:
    whole = tokenizers.qwen(tokenizers.QWEN2_VL)
    hidden = len(tokenizers.QWEN2_VL) - len(tokenizers.QWEN2)
    seeing, plain = TokenizerCodec(whole, (whole.eos_token_id,), hidden), qwen_codec()
    assert seeing.digest == plain.digest
    walks = [GrammarWalk(compile_grammar(language(), codec)) for codec in (seeing, plain)]
    for text in ("", "i see", "turn(", "turn(1", "done()", "no, i can not do that: sit()"):
        ids = plain.encode(text)
        assert ids == seeing.encode(text)
        one, other = (walk.at(ids).mask() for walk in walks)
        assert one is not None
        assert other is not None
        assert np.array_equal(one, other), text


@pytest.mark.parametrize("harm", ["cut", "flipped", "of other ids", "of too many marks", "text"])
def test_a_damaged_table_is_built_again(harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage with a right checksum, as only another program could make it, is found as well."""
    monkeypatch.setenv("VSD_CACHE", str(tmp_path))
    codec = byte_level_codec()
    grammar_module._TOKENIZERS.clear()
    right = compile_grammar(language(), codec).first.mask()
    tokens, special = [b"a"] * codec.vocab_size, [0]
    packed = grammar_module._packed(tokens, special)
    harmed = {
        "cut": packed[:-1],
        "flipped": packed[:4] + b"\xff\xff\xff\x7f" + packed[8:],
        "of other ids": grammar_module._packed(tokens[:-1], special),
        "of too many marks": grammar_module._packed(tokens, [codec.vocab_size]),
        "text": b"nonsense",
    }[harm]
    assert grammar_module._unpacked(packed, codec.vocab_size) == (tokens, special)
    assert grammar_module._unpacked(harmed, codec.vocab_size) is None
    (path,) = tmp_path.glob("token-bytes*.entry")
    DiskCache(tmp_path).write(path.stem, harmed)
    grammar_module._TOKENIZERS.clear()
    again = compile_grammar(language(), codec).first.mask()
    assert right is not None
    assert again is not None
    assert np.array_equal(again, right)
    assert grammar_module._unpacked(DiskCache(tmp_path).read(path.stem), codec.vocab_size) is not None


def test_draft_and_target_of_one_vocabulary_share_what_is_built_once() -> None:
    one, other = byte_level_codec(), byte_level_codec()
    first, second = (grammar_module._tokenizer(codec, 1) for codec in (one, other))
    assert first is second
    assert grammar_module._tokenizer(sentencepiece_codec(), 2) is not first


def test_answers_in_several_threads_share_no_matcher() -> None:
    """Each begins at the same state at the same time; one matcher would say that it is borrowed already."""
    compiled = compile_grammar(language(), shipped_codec())
    expected = compiled.first.mask()
    assert expected is not None

    def begin(_: int) -> bool:
        same = []
        for _ in range(40):
            walk = GrammarWalk(compiled)
            walk.forced(())
            state = compiled.start()
            same.append(np.array_equal(state.mask(), expected))
            state.after(int(np.flatnonzero(expected)[0])).legal()
        return all(same)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(begin, range(32)))
