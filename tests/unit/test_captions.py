"""Captions: what is stored, what is refused, and what no text can do to us."""

from __future__ import annotations

import contextlib
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mtv_core.blocks import captions as blocks
from mtv_core.data.boilerplate import is_boilerplate
from mtv_core.data.captions import BadCaptionError, Caption, CaptionConfig, choose, clean
from mtv_core.data.sources.base import RawCaption

PLAIN = CaptionConfig()
# What breaks cleaners: marks, joiners, selectors, tags, surrogates, white space, entities, tags of HTML, and letters around them.
PIECES = st.sampled_from(
    [
        *"aéßИ语ก😀❤👩🏽\u0301\u0316\u05b0\u0b3e\u200b\u200c\u200d\u202e\u2066\ufe0f\ufe0e\U000e0100\U0001f3f4\U000e0067\U000e007f\ud800\udc00",
        *"\0\x08\t\n\x0b\x1c\x1f\x7f\x85\u00a0\u2028\u3000\u2800\u3164\ufeff\ue000\uffff\u00ad\u0646\u06cc<>&;#/ab 1",
        *(
            "&amp;",
            "&lt;",
            "&#60;",
            "&#x26;",
            "&nbsp;",
            "&#0;",
            "&zwnj;",
            "<b>",
            "</b>",
            "<br/>",
            "<!-- x -->",
            "<p class='x'>",
            "&am",
            "p;",
        ),
    ]
)
WILD = st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=40)


def slow_clean(text: str) -> str:
    """The fast path's oracle: character by character, for texts without HTML, joiners, selectors and flags."""
    kept = []
    for char in text:
        if char.isspace() or char in "\u2800\u3164\uffa0":
            kept.append(" ")
        elif unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co") and char not in "\u034f\ufffe\uffff":
            kept.append(char)
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split())


class TestClean:
    @pytest.mark.parametrize(
        ("received", "stored"),
        [
            ("a red sphere", "a red sphere"),
            ("  Cafe\u0301 \n au\tlait ", "Café au lait"),
            ("one\u2028two\u3000three\u00a0four\x85five\x1csix", "one two three four five six"),
            ("nul\0l b\x08ell\x7f", "null bell"),
            ("\ufeffbom", "bom"),
            ("soft\u00adhyphen zero\u200bwidth word\u2060joiner", "softhyphen zerowidth wordjoiner"),
            ("\u202egnp.exe\u202c \u2066x\u2069 \u200ey\u200f", "gnp.exe x y"),
            ("half \ud83d pair", "half pair"),
            ("private \ue000 use", "private use"),
            ("\u2800\u3164", ""),
            ("\u200b\u200d\ufeff", ""),
            # Joiners that are spelling stay, others go.
            ("نمی‌خواهم", "نمی‌خواهم"),
            ("क्‍ष ക്‍", "क्‍ष ക്"),
            ("ශ්‍රී ලංකා", "ශ්‍රී ලංකා"),
            ("pass\u200cword \u200dx y\u200d", "password x y"),
            # Emoji stay whole.
            ("👨‍👩‍👧 👩🏽‍🚀 ❤️ ☎︎ 🏳️‍🌈 1️⃣", "👨‍👩‍👧 👩🏽‍🚀 ❤️ ☎︎ 🏳️‍🌈 1️⃣"),
            (
                "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
                "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
            ),
            ("x\U000e0068\U000e0069\U000e007f", "x"),  # text hidden in tags
            ("x\ufe0f\ufe0e\U000e0101\U000e0102y", "x\ufe0fy"),  # bytes hidden in selectors
            ("Z\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307", "Z\u0300\u0301\u0302\u0303"),
            ("Å 한글 ² ﬁ", "Å 한글 ² ﬁ"),  # NFC, not NFKC
            # HTML
            ("Tom &amp; Jerry&#39;s &quot;show&quot;", 'Tom & Jerry\'s "show"'),
            ("Tom &amp;amp;amp; Jerry", "Tom & Jerry"),
            ("&lt;p&gt;new&lt;br /&gt;line", "new line"),
            ("<b>H</b>ello<br>you <img src='x' alt=y/> there<!-- more -->", "Hello you there"),
            ('<a href="http://x.org/?a=1&amp;b=2">link</a>', "link"),
            ("&#8203;a&nbsp;b&zwnj; &#0;", "a b \ufffd"),
            ("<video controls>clip</video> <table nowrap >x<hr noshade/><p @click = 'y'>z<td disabled class=a>", "clip x z"),
            # What only looks like HTML
            ("if a<b then c>d", None),
            ("5<i and i>3, x<p or q>r, a <b c> d", None),
            ("I <3 you, a < b > c, <lora:x:1> <name> AT&T R&D; &copy=1 &unknown;", None),
        ],
    )
    def test_known_cases(self, received: str, stored: str | None) -> None:
        assert clean(received) == (received if stored is None else stored)

    def test_html_can_be_left_alone(self) -> None:
        assert clean("a <b>bold</b> &amp; claim", markup=False) == "a <b>bold</b> &amp; claim"

    @given(WILD)
    def test_is_one_line_normal_and_final(self, text: str) -> None:
        stored = clean(text)
        assert stored == unicodedata.normalize("NFC", stored)
        assert stored == " ".join(stored.split())
        stored.encode()  # no half of a surrogate pair
        assert not any(unicodedata.category(char) in ("Cc", "Cs", "Co") for char in stored)
        assert not set(stored) & set("\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
        assert clean(stored) == stored

    @given(
        st.text(st.characters(max_codepoint=0x17F) | st.sampled_from("语ก\u0301\u0323\u2028\u200b\u202e\ufeff\ue000\ud800"), max_size=30)
    )
    def test_agrees_with_the_slow_truth(self, text: str) -> None:
        text = text.replace("&", "").replace("<", "")
        assert clean(text) == slow_clean(text)

    @given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
    def test_plain_ascii_keeps_its_words(self, text: str) -> None:
        assert clean(text, markup=False).split() == text.split()

    @pytest.mark.parametrize(
        "text",
        [
            "&" + "amp;" * 8000,
            "&#38;" * 6500,
            "&#38;#38;amp;" * 2500,
            "<" * 32_000,
            "<!--" * 8000,
            "<b " * 10_000,
            "a" + "\u0301\u0316" * 8000,
            "a" + "\u05b0\u0301\u0b3c" * 4500,
            "\u200d" * 10_000,
            "🏴" * 8000,
            "\U000e0067" * 8000,
            "http://" + "a." * 16_000,
            "a." * 2000,
            "/" * 4000,
            "image " + "1" * 4000,
            "screenshot" + "at0" * 60,
            "0-" * 2000,
        ],
    )
    def test_no_text_takes_long(self, text: str) -> None:
        began = time.process_time()
        with contextlib.suppress(BadCaptionError):
            choose([RawCaption(text.encode())], CaptionConfig(max_chars=32_768))
        assert time.process_time() - began < 0.5


def refused(config: CaptionConfig, *received: bytes) -> str:
    with pytest.raises(BadCaptionError) as caught:
        choose([RawCaption(one) for one in received], config)
    assert str(caught.value)
    return caught.value.reason


class TestChoose:
    def test_kinds_and_order_are_kept_and_texts_are_once(self) -> None:
        received = [
            RawCaption(b" a  dog "),
            RawCaption(b"one dog, running", "synthetic"),
            RawCaption(b"a dog", "synthetic"),
            RawCaption(b"a cat"),
        ]
        chosen = choose(received, PLAIN)
        assert chosen.kept == [Caption("a dog", "web"), Caption("one dog, running", "synthetic"), Caption("a cat", "web")]
        assert chosen.raw == " a  dog "

    def test_a_bad_one_among_good_ones_is_dropped(self) -> None:
        received = [b"IMG_1234.JPG", b"\xff", b"", b"x" * 40_000, "a dög".encode()]
        chosen = choose([RawCaption(one) for one in received], PLAIN)
        assert [caption.text for caption in chosen.kept] == ["a dög"]
        assert chosen.raw == "IMG_1234.JPG"  # the first as received, whatever became of it

    @pytest.mark.parametrize("before", [[], [b""], [b" \n"], [b"\xff\xfe"]])
    def test_the_original_is_the_first_that_is_text(self, before: list[bytes]) -> None:
        chosen = choose([RawCaption(one) for one in [*before, b"  a\tdog", b"b"]], PLAIN)
        assert chosen.raw == "  a\tdog"

    def test_the_original_does_not_depend_on_the_configuration(self) -> None:
        received = [RawCaption(b"a"), RawCaption(b"a longer one")]
        assert choose(received, PLAIN).raw == choose(received, CaptionConfig(min_chars=5)).raw == "a"

    @pytest.mark.parametrize("first", [b"x" * 40_000, b"word " * 1000, b"IMG_1234.JPG", b"a"])
    def test_the_original_does_not_depend_on_any_limit(self, first: bytes) -> None:
        received = [RawCaption(b""), RawCaption(first), RawCaption(b"a longer one", "synthetic")]
        generous = CaptionConfig(max_bytes=1 << 20, max_chars=1 << 20, boilerplate=False)
        for config in (PLAIN, generous, CaptionConfig(max_bytes=20), CaptionConfig(max_captions=1), CaptionConfig(min_chars=5)):
            assert choose(received, config).raw.encode() == first

    def test_many_of_the_web_do_not_push_out_the_synthetic_ones(self) -> None:
        web = [RawCaption(f"dog {n}".encode()) for n in range(5)]
        synthetic = [RawCaption(f"cat {n}".encode(), "synthetic") for n in range(5)]
        config = CaptionConfig(max_captions=2)
        for received in ([*web, *synthetic], [*synthetic, *web], [one for pair in zip(web, synthetic, strict=True) for one in pair]):
            assert sorted(caption.text for caption in choose(received, config).kept) == ["cat 0", "cat 1", "dog 0", "dog 1"]

    @pytest.mark.parametrize(
        ("received", "reason"),
        [
            ([], "NoCaption"),
            ([b""], "NoCaption"),
            ([b" \t\r\n \xe2\x80\x8b"], "NoCaption"),
            ([b"<br/>&nbsp;"], "NoCaption"),
            ([b"caf\xe9"], "CaptionNotUtf8"),
            (["a dog".encode("utf-16")], "CaptionNotUtf8"),
            (["\ud800 half".encode(errors="surrogatepass")], "CaptionNotUtf8"),
            ([b"\xc0\xafoverlong"], "CaptionNotUtf8"),
            ([b"word " * 1000], "CaptionTooLong"),
            ([b" " * 40_000 + b"a dog"], "CaptionTooLong"),
            ([b"Untitled"], "BoilerplateCaption"),
            ([b"\xff", b"Untitled", b""], "CaptionNotUtf8"),  # the first one's reason
        ],
    )
    def test_reasons(self, received: list[bytes], reason: str) -> None:
        assert refused(PLAIN, *received) == reason

    def test_lengths_are_of_characters_of_the_stored_text(self) -> None:
        config = CaptionConfig(min_chars=3, max_chars=5)
        assert choose([RawCaption("  ééé  ".encode())], config).kept[0].text == "ééé"
        assert choose([RawCaption("<b>猫猫猫猫猫</b>".encode())], config).kept[0].text == "猫猫猫猫猫"
        assert refused(config, "éé".encode()) == "CaptionTooShort"
        assert refused(config, "éééééé".encode()) == "CaptionTooLong"

    def test_utf16_is_named(self) -> None:
        with pytest.raises(BadCaptionError, match="UTF-16"):
            choose([RawCaption("a dog".encode("utf-16"))], PLAIN)

    def test_too_many_captions_cost_the_rest(self) -> None:
        received = [RawCaption(f"dog number {n}".encode()) for n in range(200)]
        assert len(choose(received, PLAIN).kept) == 100

    @given(st.lists(st.binary(max_size=12) | WILD.map(lambda text: text.encode(errors="surrogatepass")), max_size=5))
    def test_nothing_else_is_raised_and_what_is_kept_is_fit_to_store(self, received: list[bytes]) -> None:
        try:
            chosen = choose([RawCaption(one) for one in received], PLAIN)
        except BadCaptionError as error:
            reason = error.reason
        else:
            reason = None
            texts = [caption.text for caption in chosen.kept]
            assert texts
            assert len(set(texts)) == len(texts)
            assert all(text == clean(text) != "" for text in texts)
            assert chosen.raw.encode() in received
        assert reason in {None, "NoCaption", "CaptionNotUtf8", "CaptionTooShort", "CaptionTooLong", "BoilerplateCaption"}


class TestBoilerplate:
    @pytest.mark.parametrize(
        "text",
        [
            *(
                "IMG_1234.JPG",
                "img_1234",
                "IMG 1234",
                "DSC01234",
                "DSC_0001 copy",
                "P1010101",
                "_MG_4242",
                "image001",
                "photo-3",
                "GOPR0123",
            ),
            *(
                "red-car.jpg",
                "Image 12 (1).png",
                "WhatsApp Image 2020-01-01 at 10.00.00.jpeg",
                "Screenshot 2020-01-01 at 10.00.00",
                "a.webp",
            ),
            *(
                "http://example.org/a?b=c",
                "https://example.org",
                "www.example.org",
                "Example.com",
                "data:image/png;base64,AAAA",
                "a.b@c.org",
            ),
            *("404", "404 Not Found", "403 Forbidden", "null", "undefined", "N/A", "untitled", "Untitled.", "[image]", "image", "...", "—"),
            *(
                "Image not available",
                "No image available!",
                "Click to enlarge",
                "click image to enlarge",
                "Stock Photo",
                "Getty Images",
                "alt text",
            ),
            *("Photo 3 of 5", "image 1/12", "Slide 3", "1024x768", "20200101_120000", "d41d8cd98f00b204e9800998ecf8427e"),
            *(
                "Kein Bild verfügbar",
                "Image non disponible",
                "Imagen no disponible",
                "Immagine non disponibile",
                "Geen afbeelding beschikbaar",
            ),
            *("Нет изображения", "画像なし", "暂无图片", "이미지 없음", "Brak zdjęcia", "Görsel yok", "クリックで拡大", "点击放大"),
            "123e4567-e89b-12d3-a456-426614174000",
        ],
    )
    def test_refused(self, text: str) -> None:
        assert is_boilerplate(text)
        assert refused(PLAIN, text.encode()) == "BoilerplateCaption"
        assert choose([RawCaption(text.encode())], CaptionConfig(boilerplate=False)).kept

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "a",
                "one",
                "picture 3",
                "Photo 51",
                "MG 1975",
                "B-52",
                "covid-19",
                "node.js",
                "2021",
                "No. 5",
                "猫",
                "犬",
                "кот",
                "deadbeef",
            ),
            *(
                "a red sphere left of a blue cube",
                "Image of a dog",
                "photo of the Eiffel Tower",
                "Untitled, oil on canvas, 1962",
                "404 Main Street",
            ),
            *(
                "click beetle on a leaf",
                "No smoking sign",
                "a photo of a 1024x768 screen",
                "Red car.",
                "Chanel No. 5",
                "St. John",
                "loading dock",
            ),
            *(
                "stock photo of a smiling woman",
                "the image is not available in your country because",
                "❤️",
                "A1",
                "Boeing 747-400",
                "iPhone 12",
            ),
        ],
    )
    def test_kept(self, text: str) -> None:
        assert not is_boilerplate(text)

    @pytest.mark.parametrize("phrase", [*blocks.SINGLE, *blocks.SEVERAL])
    def test_blocks_captions_pass(self, phrase: str) -> None:
        text = phrase.format("a red sphere left of a blue cube, and a small green cone")
        assert choose([RawCaption(text.encode())], PLAIN).kept == [Caption(text, "web")]

    def test_more_patterns(self) -> None:
        config = CaptionConfig(patterns=("buy now.*", r"sku[- ]\d+"))
        assert refused(config, b"BUY NOW and save") == "BoilerplateCaption"
        assert refused(config, b"SKU-1") == "BoilerplateCaption"
        assert choose([RawCaption(b"do not buy now")], config).kept
        assert choose([RawCaption(b"SKU-1 in red")], config).kept

    @given(WILD)
    def test_any_text_has_an_answer(self, text: str) -> None:
        assert is_boilerplate(clean(text)) in (True, False)


class TestConfig:
    def test_a_pattern_that_is_none_is_named(self) -> None:
        with pytest.raises(ValidationError, match=r"'\(' is no regular expression"):
            CaptionConfig(patterns=("fine", "("))

    def test_limits_the_wrong_way_round(self) -> None:
        with pytest.raises(ValidationError, match="no caption would be kept"):
            CaptionConfig(min_chars=10, max_chars=5)
