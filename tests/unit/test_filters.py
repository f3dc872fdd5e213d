"""Filters: each against its definition, and as a configuration."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError
from tars import picture

from mtv_core.blocks.captions import caption
from mtv_core.blocks.render import render
from mtv_core.blocks.scene import sample_scene
from mtv_core.config import ConfigError, resolve_config
from mtv_core.data.filters import DEFAULT, Filter, FilterConfig, Received
from mtv_core.data.filters.caption_repetition import CaptionRepetition
from mtv_core.data.filters.script import ScriptName
from mtv_core.data.filters.words import words
from mtv_core.data.images import ImageLimits, store
from mtv_core.data.samples import Rules
from mtv_core.data.samples import make as make_sample
from mtv_core.data.sources.base import RawCaption, RawSample, ShardRef
from mtv_core.report import Reject

FILTERS: TypeAdapter[list[Filter]] = TypeAdapter(list[FilterConfig])
CLASSES: tuple[type[Filter], ...] = get_args(get_args(FilterConfig)[0])
BOUNDED = {"caption_words", "num_bytes", "meta_range"}
EXAMPLES: dict[str, dict[str, Any]] = {  # what has no default
    "min_side": {"px": 64},
    "caption_words": {"minimum": 2},
    "num_bytes": {"minimum": 100},
    "meta_range": {"field": "similarity", "minimum": 0.3},
    "url_domain": {"block": ["example.org"]},
    "script": {"scripts": ["latin"]},
}


def make(name: str, **options: Any) -> Filter:
    [made] = FILTERS.validate_python([{"name": name, **options}])
    return made


def received(caption: str = "a red sphere", **facts: Any) -> Received:
    given = {"key": "0", "width": 64, "height": 48, "num_bytes": 5000, "format": "JPEG", "captions": [caption]}
    return Received(**{**given, **facts})


def keeps(one: Filter, sample: Received) -> bool:
    message = one(sample)
    assert message is None or len(message) > 10
    return message is None


class TestEach:
    @pytest.mark.parametrize(("size", "kept"), [((64, 64), True), ((64, 500), True), ((63, 500), False), ((500, 1), False)])
    def test_min_side(self, size: tuple[int, int], kept: bool) -> None:
        assert keeps(make("min_side", px=64), received(width=size[0], height=size[1])) is kept

    @pytest.mark.parametrize(("size", "kept"), [((30, 10), True), ((10, 30), True), ((31, 10), False), ((10, 31), False), ((7, 7), True)])
    def test_max_aspect(self, size: tuple[int, int], kept: bool) -> None:
        assert keeps(make("max_aspect", ratio=3), received(width=size[0], height=size[1])) is kept

    @pytest.mark.parametrize(("count", "kept"), [(99, False), (100, True), (200, True), (201, False)])
    def test_num_bytes(self, count: int, kept: bool) -> None:
        assert keeps(make("num_bytes", minimum=100, maximum=200), received(num_bytes=count)) is kept

    @pytest.mark.parametrize(
        ("text", "count"),
        [
            ("a red sphere", 3),
            ("Levi's – 501, red-blue!", 3),
            ("... — !", 0),
            ("", 0),
            ("赤い球", 3),
            ("a 球", 2),
            ("iPhone12猫 x", 3),
            ("नमस्ते दुनिया", 2),
            ("빨간 공", 2),
            ("snake_case a/b", 2),
        ],
    )
    def test_words(self, text: str, count: int) -> None:
        assert len(words(text)) == count
        assert keeps(make("caption_words", minimum=count), received(text))
        assert not keeps(make("caption_words", minimum=count + 1), received(text))
        assert keeps(make("caption_words", maximum=count), received(text))

    @pytest.mark.parametrize(
        ("text", "kept"),
        [
            ("picture 3", True),
            ("a", True),
            ("12-34 a", False),  # one of six
            ("12 a", True),  # one of three
            ("99.99 €", False),
            ("", False),
            ("❤️❤️", False),
            ("हिन्दी", True),
            ("กำลัง", True),
            ("e\u0301" * 2 + "1", True),
        ],
    )
    def test_caption_letters(self, text: str, kept: bool) -> None:
        assert keeps(make("caption_letters"), received(text)) is kept

    def test_vowel_signs_are_letters(self) -> None:
        assert keeps(make("caption_letters", minimum=1), received("हिन्दी"))

    @pytest.mark.parametrize(
        ("text", "kept"),
        [
            ("shoes cheap shoes best shoes buy shoes shoes shoes", False),
            ("ha ha ha ha ha", True),  # five times
            ("ha ha Ha ha, ha! HA", False),
            ("哈哈哈哈哈哈哈", False),
            ("the cat of the house on the hill by the sea with the dog and the bird", True),
        ],
    )
    def test_caption_repetition(self, text: str, kept: bool) -> None:
        assert keeps(make("caption_repetition"), received(text)) is kept

    @given(st.lists(st.sampled_from("abcd"), max_size=14), st.integers(1, 6), st.floats(0, 1))
    def test_caption_repetition_is_its_definition(self, said: list[str], times: int, share: float) -> None:
        worst = max((said.count(word) for word in said), default=0)
        expected = not (worst > times and worst > share * len(said))
        assert keeps(CaptionRepetition(times=times, share=share), received(" ".join(said))) is expected

    def test_flat_image(self) -> None:
        def grey(image: Image.Image) -> np.ndarray:
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            return store(buffer.getvalue(), ImageLimits(max_side=256, quality=90, max_pixels=10**6)).grey

        flat = make("flat_image")
        assert not keeps(flat, received().seen(grey(Image.new("RGB", (100, 80), (250, 250, 250)))))
        line = Image.new("RGB", (100, 80), "white")
        line.paste("black", (10, 38, 90, 42))
        assert keeps(flat, received().seen(grey(line)))
        assert not keeps(make("flat_image", deviation=128), received().seen(grey(line)))

    @pytest.mark.parametrize(
        ("url", "kept"),
        [
            ("http://example.org/a.jpg", False),
            ("https://cdn.images.EXAMPLE.org:8080/a", False),
            ("//example.org./a", False),
            ("http://user:pw@example.org/", False),
            ("http://notexample.org/", True),
            ("http://example.org.evil.com/", True),
            ("http://other.com/?u=example.org", True),
            ("http://xn--bcher-kva.de/", False),
            ("http://www.bücher.de/", False),
            ("http://[::1]/a", True),
            ("http://[", True),
            ("not a url", True),
            ("", True),
            (None, True),
        ],
    )
    def test_url_domain(self, url: str | None, kept: bool) -> None:
        assert keeps(make("url_domain", block=["example.org", "Bücher.de"]), received(url=url)) is kept

    @pytest.mark.parametrize("url", [None, "", "http://[", "not a url"])
    def test_url_domain_refuses_what_has_none(self, url: str | None) -> None:
        assert not keeps(make("url_domain", block=["example.org"], missing="refuse"), received(url=url))

    @pytest.mark.parametrize(
        ("meta", "kept"),
        [
            ({"score": 0.3}, True),
            ({"score": 0.29}, False),
            ({"score": "0.5"}, True),
            ({"score": 1}, True),
            ({"score": 1.1}, False),
            ({"score": float("inf")}, False),
            ({"score": 10**400}, None),
            ({"score": float("nan")}, None),
            ({"score": True}, None),
            ({"score": None}, None),
            ({"score": "high"}, None),
            ({"score": [0.5]}, None),
            ({}, None),
        ],
    )
    def test_meta_range(self, meta: dict[str, Any], kept: bool | None) -> None:
        """None: as if it were missing."""
        for missing in ("keep", "refuse"):
            one = make("meta_range", field="score", minimum=0.3, maximum=1, missing=missing)
            assert keeps(one, received(meta=meta)) is (missing == "keep" if kept is None else kept)

    def test_meta_range_of_an_inner_field(self) -> None:
        one = make("meta_range", field="a.b.c", minimum=1, missing="refuse")
        assert keeps(one, received(meta={"a": {"b": {"c": 2}}}))
        assert keeps(one, received(meta={"a.b.c": 2}))
        assert not keeps(one, received(meta={"a": {"b": 2}}))

    @pytest.mark.parametrize(
        ("text", "script"),
        [
            ("a red sphere", "latin"),
            ("Tiếng Việt, şehir", "latin"),
            ("красный шар", "cyrillic"),
            ("κόκκινη σφαίρα", "greek"),
            ("کرهٔ قرمز", "arabic"),
            ("כדור אדום", "hebrew"),
            ("लाल गोला", "devanagari"),
            ("লাল গোলক", "bengali"),
            ("சிவப்பு கோளம்", "tamil"),
            ("ทรงกลมสีแดง", "thai"),
            ("红色球体", "han"),
            ("あかいボール", "kana"),
            ("빨간 공", "hangul"),
            ("წითელი ბურთი", "georgian"),
            ("կարմիր գնդակ", "armenian"),
            ("ቀይ ኳስ", "ethiopic"),
        ],
    )
    def test_script(self, text: str, script: str) -> None:
        for name in get_args(ScriptName):
            assert keeps(make("script", scripts=[name], minimum=1), received(text)) is (name == script), name

    def test_scripts_add_up(self) -> None:
        assert not keeps(make("script", scripts=["kana"], minimum=0.6), received("赤い球体"))
        assert keeps(make("script", scripts=["han", "kana"], minimum=1), received("赤い球体"))
        assert keeps(make("script", scripts=["latin"]), received("12 ❤️ 34"))  # no letter, no opinion


class TestAll:
    @pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
    def test_what_the_registry_needs(self, kind: type[Filter]) -> None:
        name = kind.model_fields["name"].default
        one = make(name, **EXAMPLES.get(name, {}))
        assert type(one) is kind
        assert kind.reason.isidentifier()
        assert kind.reason[0].isupper()
        assert FILTERS.validate_json(FILTERS.dump_json([one])) == [one]
        assert pickle.loads(pickle.dumps(one)) == one
        assert all(field.description for key, field in kind.model_fields.items() if key != "name")
        sample = received(url="http://example.org/1")
        if kind.needs_pixels:
            sample = sample.seen(np.zeros((32, 32), np.uint8))
        assert one(sample) == one(sample)
        with pytest.raises(ValidationError):
            one.name = "other"

    def test_names_and_reasons_are_unique(self) -> None:
        assert len({kind.model_fields["name"].default for kind in CLASSES}) == len({kind.reason for kind in CLASSES}) == len(CLASSES)

    def test_filters_of_one_name_are_told_apart(self) -> None:
        unsafe, marked = make("meta_range", field="punsafe", maximum=0.1), make("meta_range", field="pwatermark", maximum=0.8)
        assert (unsafe.error, unsafe.step) == ("MetaOutOfRange:punsafe", "filter meta_range punsafe")
        assert (marked.error, marked.step) == ("MetaOutOfRange:pwatermark", "filter meta_range pwatermark")
        assert make("meta_range", field="a b's", maximum=1).error == "MetaOutOfRange:a_b_s"
        assert make("meta_range", field="punsafe", maximum=0.5, label="strict").error == "MetaOutOfRange:strict"
        assert (make("min_side", px=1).error, make("min_side", px=1).step) == ("SideBelowMinimum", "filter min_side")
        labelled = make("script", scripts=["latin"], label="latin")
        assert (labelled.error, labelled.step) == ("OtherScript:latin", "filter script latin")

    def test_a_refusal_names_the_filter_that_refused(self) -> None:
        filters = [make("meta_range", field="punsafe", maximum=0.1), make("meta_range", field="pwatermark", maximum=0.8)]
        rules = Rules(ImageLimits(max_side=64, quality=90, max_pixels=10**6), held_out=0, filters=filters)
        shard = ShardRef("a.tar", "1", 1, "web", "webdataset")
        for meta, error in ((b'{"punsafe": 1}', "MetaOutOfRange:punsafe"), (b'{"pwatermark": 1}', "MetaOutOfRange:pwatermark")):
            refused = make_sample(RawSample("k", picture(1), [RawCaption(b"a red sphere")], meta), shard, rules)
            assert isinstance(refused, Reject)
            assert refused.error == error

    def test_only_what_needs_pixels_waits_for_them(self) -> None:
        assert [kind.__name__ for kind in CLASSES if kind.needs_pixels] == ["FlatImage"]

    @given(st.text(max_size=30), st.text(max_size=20), st.dictionaries(st.text(max_size=3), st.none() | st.floats() | st.text(max_size=3)))
    def test_any_sample_has_an_answer(self, text: str, url: str, meta: dict[str, Any]) -> None:
        sample = received(text, url=url, meta=meta, grey=np.zeros((32, 32), np.uint8))
        for kind in CLASSES:
            name = kind.model_fields["name"].default
            answer = make(name, **EXAMPLES.get(name, {}))(sample)
            assert answer is None or isinstance(answer, str)

    def test_defaults_are_mild(self) -> None:
        limits = ImageLimits(max_side=768, quality=92, max_pixels=10**7)
        for seed in range(40):
            rng = np.random.default_rng(seed)
            scene = sample_scene(rng)
            rendered = render(scene, 96)
            said = caption(scene, rendered, rng).text
            buffer = io.BytesIO()
            Image.fromarray(rendered.rgb).save(buffer, "JPEG")
            samples = [
                received(said).seen(store(buffer.getvalue(), limits).grey),
                received(f"picture {seed}").seen(store(picture(seed), limits).grey),
            ]
            assert [one(sample) for one in DEFAULT for sample in samples] == [None] * 6

    def test_the_first_caption_is_the_one_that_counts(self) -> None:
        one = make("caption_words", minimum=3)
        assert keeps(one, received(captions=["a red sphere", "sphere"]))
        assert not keeps(one, received(captions=["sphere", "a red sphere"]))


def problems(*filters: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve_config("demo", overrides={"ingest.filters": list(filters)})
    return "\n".join(caught.value.problems)


class TestConfig:
    def test_from_a_file(self) -> None:
        given = ["flat_image", {"name": "min_side", "px": 128}, {"name": "meta_range", "field": "punsafe", "maximum": 0.1}]
        filters = resolve_config("demo", overrides={"ingest.filters": given}).config.ingest.filters
        assert [one.name for one in filters] == ["flat_image", "min_side", "meta_range"]

    def test_none(self) -> None:
        assert resolve_config("demo", overrides={"ingest.filters": []}).config.ingest.filters == []

    def test_an_unknown_name_shows_the_known_ones(self) -> None:
        for wrong in ("flat_imge", {"name": "flat_imge"}):
            said = problems(wrong)
            assert "ingest.filters.0" in said
            assert "flat_imge" in said
            assert all(repr(kind.model_fields["name"].default) in said for kind in CLASSES)

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"name": "num_bytes"}, "without a bound the filter does nothing"),
            ({"name": "caption_words", "minimum": 5, "maximum": 3}, "minimum (5) is more than maximum (3)"),
            ({"name": "url_domain", "block": ["http://example.org/"]}, "give it as example.org"),
            ({"name": "url_domain", "block": ["*.example.org"]}, "is no domain"),
            ({"name": "script", "scripts": ["klingon"]}, "'latin'"),
            ({"name": "min_side"}, "px is missing"),
            ({"name": "meta_range", "field": "x", "minimum": float("nan")}, "finite"),
            ({"px": 3}, "name"),
            ({"name": "flat_image", "px": 3}, "unknown key 'ingest.filters.0.flat_image.px'; known keys here: name, label, deviation"),
            ({"name": "flat_image", "label": "a:b"}, "ingest.filters.0"),
            ({"name": "num_bytes", "maximun": 3}, "did you mean 'maximum'?"),
        ],
    )
    def test_mistakes_are_explained(self, given: Any, said: str) -> None:
        assert said in problems(given)


class TestDocumentation:
    TEXT = (Path(__file__).parents[2] / "docs" / "filters.md").read_text()

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"```{language}\n(.*?)```", self.TEXT, re.DOTALL)

    def test_every_filter_is_in_it(self) -> None:
        rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", self.TEXT, re.MULTILINE))
        assert rows == {kind.model_fields["name"].default: kind.reason for kind in CLASSES}
        for kind in CLASSES:
            [row] = re.findall(rf"^\| `{kind.model_fields['name'].default}` .*", self.TEXT, re.MULTILINE)
            assert all(f"`{option}`" in row for option in kind.model_fields if option not in ("name", "label"))
        assert all(name in self.TEXT for name in get_args(ScriptName))

    def test_its_examples_are_valid(self) -> None:
        examples = self.blocks("yaml")
        assert len(examples) == 2
        for example in examples:
            resolve_config("demo", {"ingest": yaml.safe_load(example)["ingest"]})

    def test_its_filter_works(self) -> None:
        [example] = self.blocks("python")
        names: dict[str, Any] = {"Filter": Filter, "Received": Received, "Field": Field, "ClassVar": ClassVar, "Literal": Literal}
        exec(compile(example, "docs/filters.md", "exec", dont_inherit=True), names)
        one = names["MaxExclamations"]()
        assert keeps(one, received("a dog!!!"))
        assert not keeps(one, received("a dog!!!!"))
