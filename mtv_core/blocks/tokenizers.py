"""The two tokenizers of blocks, trained here on the words of its captions and prompts. `python -m mtv_core.blocks.tokenizers` writes them.

Both are byte-level BPE: any text can be encoded, the words of blocks are one token each. `weights/tokenizer` is SigLIP's convention (the
text, `</s>`, padding up to 64, no attention mask); transformers' own `SiglipTokenizer` would need sentencepiece. The detector's is a plain
CLIP tokenizer, as `Owlv2Processor` wants it: the end token has the highest id, since OWLv2 pools where the id is highest, and no text
starts with id 0, since OWLv2 masks queries that do.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from mtv_core.blocks import captions
from mtv_core.blocks.scene import COLOURS, SHAPES, SIZES

WEIGHTS = Path(__file__).parent / "weights"
TEXT_LENGTH = 64  # SigLIP's, and what transformers' pipelines pad its text to
QUERY_LENGTH = 16  # OWLv2's
# Words of prompt templates that no caption has: the templates of zero-shot evaluations.
PROMPTS: tuple[str, ...] = (
    "a photo of the {}", "a rendering of {}", "an image of {}", "a close-up photo of {}", "a small photo of {}", "this is {}",
    "a bright photo of {}", "a dark photo of {}", "a scene with {}", "a drawing of {}", "a shape in the picture", "an object on the floor",
    "one two three four objects spheres cubes cylinders cones rings crosses", "sky floor", "an empty floor",
)  # fmt: skip


def corpus() -> list[str]:
    """Every phrase, relation and template of blocks: what the merges are learnt from."""
    phrases = [f"{size}{colour} {shape}" for size, colour, shape in itertools.product(("", *(f"{s} " for s in SIZES)), COLOURS, SHAPES)]
    lines = [captions.article(phrase) for phrase in phrases]
    lines += [
        f"{captions.article(p)} {r} {captions.article(q)}, and"
        for p, q, r in zip(phrases, phrases[::-1], 40 * captions.RELATIONS, strict=False)
    ]
    lines += [template.format("a red sphere") for template in (*captions.SINGLE, *captions.SEVERAL, *PROMPTS)] * 20
    return lines


def _train(pre_tokenizer: pre_tokenizers.PreTokenizer, suffix: str) -> list[tuple[str, str]]:
    """The merges, until every word of the corpus is one token."""
    tokenizer = Tokenizer(BPE(end_of_word_suffix=suffix) if suffix else BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    options: dict[str, Any] = {"end_of_word_suffix": suffix} if suffix else {}
    trainer = BpeTrainer(vocab_size=4096, min_frequency=1, show_progress=False, **options)
    tokenizer.train_from_iterator([line.lower() for line in corpus()], trainer)
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]


def text_tokenizer() -> PreTrainedTokenizerFast:
    """The text tower's tokenizer: ids 0 `<unk>`, 1 `<pad>` (SigLIP's), 2 `</s>`."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=True)
    merges = _train(byte_level, "")
    words = ["<unk>", "<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    tokenizer = Tokenizer(BPE(vocab={w: i for i, w in enumerate(dict.fromkeys(words))}, merges=merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        model_max_length=TEXT_LENGTH,
        model_input_names=["input_ids"],
    )


def query_tokenizer() -> CLIPTokenizer:
    """The detector's tokenizer: id 0 pads, the last two ids start and end a text."""
    pattern = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    merges = _train(pattern, "</w>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|pad|>", *alphabet, *(letter + "</w>" for letter in alphabet), *(a + b for a, b in merges)]
    words = [*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={w: i for i, w in enumerate(words)}, merges=cast(Any, merges), pad_token="<|pad|>", model_max_length=QUERY_LENGTH
    )


def main() -> None:
    """Write `weights/tokenizer`. The detector's is written with each detector."""
    text_tokenizer().save_pretrained(WEIGHTS / "tokenizer")


if __name__ == "__main__":
    main()
