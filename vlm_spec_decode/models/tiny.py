"""The tiny VLMs that ship: their tokenizer, image processor and configs, all Transformers' own classes.

A word is a token, and so is a number: 5 degree steps for angles, 0.1 m steps for distances. What is not
in the vocabulary is <unk>, and the models are trained to say that they do not know it.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vlm_spec_decode.models.prompt import CHAT_TEMPLATE, TEXT_TEMPLATE

IMAGE_PX = 128
PATCH_PX = 16
PATCHES_ACROSS = IMAGE_PX // PATCH_PX
NUM_IMAGE_TOKENS = PATCHES_ACROSS**2

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>")
PAD_ID, BOS_ID, EOS_ID, UNK_ID, IMAGE_ID = range(len(SPECIALS))

ANGLES = tuple(str(a) for a in range(-180, 181, 5))
DISTANCES = tuple(f"{d / 10:.1f}" for d in range(-50, 51))
NUMBERS = tuple(dict.fromkeys((*ANGLES, *DISTANCES)))


def vocabulary(words: tuple[str, ...]) -> dict[str, int]:
    """Return token ids: specials, numbers, then the given words in their order."""
    return {token: i for i, token in enumerate(dict.fromkeys((*SPECIALS, *NUMBERS, *words)))}


def build_tokenizer(words: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer; lower case, punctuation apart, numbers whole."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary(words), unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"-?\d+(?:\.\d+)?|<image>|[\p{L}_']+|[^\s]"), behavior="removed", invert=True
    )
    return wrapped(tokenizer)


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return the tokenizer as Transformers' class, with the tiny models' special tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Return LLaVA's processor: the whole frame squashed to a square, nothing cropped away."""
    images = CLIPImageProcessorPil(
        do_resize=True,
        size={"height": IMAGE_PX, "width": IMAGE_PX},
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_PX,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def target_config(vocab_size: int) -> LlavaConfig:
    """Return the target's config: deep and narrow, so that exits lie far apart (2.9 M parameters).

    The draft has the same vision tower, with the same weights: what one takes for 2.1 m, the other does too.
    """
    return _config(vocab_size, width=128, layers=12, intermediate=352)


def draft_config(vocab_size: int) -> LlavaConfig:
    """Return the draft's config: a good vision tower and a small language model (under 1 M)."""
    return _config(vocab_size, width=128, layers=2, intermediate=288)


def text_target_config(vocab_size: int) -> LlamaConfig:
    """Return the config of the language-only target (1.7 M parameters)."""
    return language_config(vocab_size, width=128, layers=8, intermediate=352)


def text_draft_config(vocab_size: int) -> LlamaConfig:
    """Return the config of the language-only draft (0.4 M parameters)."""
    return language_config(vocab_size, width=128, layers=2, intermediate=288)


def language_config(vocab_size: int, width: int, layers: int, intermediate: int) -> LlamaConfig:
    """Return the config of a language model over the tiny models' tokenizer."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.08,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )


def save_text_folder(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the tokenizer, with a chat template without image, beside a language-only model's weights."""
    tokenizer.chat_template = TEXT_TEMPLATE
    tokenizer.save_pretrained(str(folder))


def save_folder(folder: Path, processor: LlavaProcessor) -> None:
    """Write tokenizer and processor beside a model's weights."""
    processor.save_pretrained(str(folder))


def _config(
    vocab_size: int,
    width: int,
    layers: int,
    intermediate: int,
    vision_width: int = 96,
    vision_layers: int = 3,
) -> LlavaConfig:
    # Transformers' default initializer_range of 0.02 is far too small at this width.
    vision = CLIPVisionConfig(
        hidden_size=vision_width,
        intermediate_size=4 * vision_width,
        num_hidden_layers=vision_layers,
        num_attention_heads=vision_width // 32,
        image_size=IMAGE_PX,
        patch_size=PATCH_PX,
        projection_dim=vision_width,
        initializer_range=0.08,
    )
    text = language_config(vocab_size, width, layers, intermediate)
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_ID,
        image_seq_length=NUM_IMAGE_TOKENS,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
        initializer_range=0.08,
    )
