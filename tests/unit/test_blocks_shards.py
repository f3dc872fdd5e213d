"""Shards of blocks: bytes, interruption, what a URI means, and the benchmark that shares no scene with them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtv_core.blocks import benchmark, shards
from mtv_core.blocks.expert_data import TEST_SEED, TRAIN_SEED
from mtv_core.blocks.scene import RESERVED_SEEDS, SHAPES


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_two_makes_have_the_same_bytes(tmp_path: Path) -> None:
    paths = shards.write_shards(tmp_path / "a", 11, 5, 4)
    shards.write_shards(tmp_path / "b", 11, 5, 4)
    assert [path.name for path in paths] == ["00000.tar", "00001.tar", "00002.tar"]
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    shards.write_shards(tmp_path / "c", 11, 6, 4)
    assert digests(tmp_path / "a")["00000.tar"] != digests(tmp_path / "c")["00000.tar"]


def test_an_interrupted_make_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle of the second tar: the first stays, nothing half-written is visible, a rerun gives the undisturbed bytes."""
    shards.write_shards(tmp_path / "undisturbed", 12, 5, 4)
    members = shards._members

    def die(config: shards.ShardsConfig, index: int) -> object:
        if index == 6:
            raise KeyboardInterrupt
        return members(config, index)

    monkeypatch.setattr(shards, "_members", die)
    with pytest.raises(KeyboardInterrupt):
        shards.write_shards(tmp_path / "killed", 12, 5, 4)
    monkeypatch.undo()
    assert [path.name for path in sorted((tmp_path / "killed").glob("*.tar"))] == ["00000.tar"]
    before = (tmp_path / "killed" / "00000.tar").stat().st_mtime_ns
    shards.write_shards(tmp_path / "killed", 12, 5, 4)
    assert (tmp_path / "killed" / "00000.tar").stat().st_mtime_ns == before
    left = {name: digest for name, digest in digests(tmp_path / "killed").items() if not name.endswith(".partial")}
    assert left == digests(tmp_path / "undisturbed")


def test_members_hold_no_label_and_lead_back_to_the_truth(tmp_path: Path) -> None:
    (path,) = shards.write_shards(tmp_path, 3, 9, 10)
    with tarfile.open(path) as tar:
        names = tar.getnames()
        content = {name: tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]
        assert {member.mtime for member in tar.getmembers()} == {0}
    assert names == [f"{i:09d}.{kind}" for i in range(3) for kind in ("jpg", "json", "txt")]
    meta = json.loads(content["000000002.json"])
    assert set(meta) == {"seed", "index", "width", "height", "max_solids", "license"}
    sample = shards.truth(**{name: meta[name] for name in ("seed", "index", "width", "height", "max_solids")})
    assert content["000000002.txt"].decode() == sample.caption.text
    picture = np.asarray(Image.open(io.BytesIO(content["000000002.jpg"]))).astype(int)
    assert np.abs(picture - sample.rendered.rgb).mean() < 4  # what JPEG loses


def test_a_folder_is_never_a_mixture(tmp_path: Path) -> None:
    shards.write_shards(tmp_path, 3, 9, 10)
    with pytest.raises(ValueError, match="another set of blocks"):
        shards.write_shards(tmp_path, 3, 10, 10)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x.tar").touch()
    with pytest.raises(ValueError, match="not a set of blocks"):
        shards.write_shards(tmp_path / "theirs", 3, 10, 10)


def test_materialise_makes_once(tmp_path: Path) -> None:
    uri = "blocks://demo?samples=5&seed=2&shard_size=3&width=64&height=48"
    pattern = shards.materialise(uri, tmp_path)
    found = sorted(Path(pattern).parent.glob("*.tar"))
    assert len(found) == 2
    assert Path(pattern).parent.parent == tmp_path / "blocks"
    stamps = [path.stat().st_mtime_ns for path in found]
    assert shards.materialise(uri.replace("demo", "again"), tmp_path) == pattern
    assert [path.stat().st_mtime_ns for path in found] == stamps
    with tarfile.open(found[0]) as tar:
        assert Image.open(tar.extractfile("000000000.jpg")).size == (64, 48)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("blocks:demo", "is not a blocks source"),
        ("blocks://demo/sub?samples=3", "is not a blocks source"),
        ("blocks://demo?sample=3", "sample: Extra inputs"),
        ("blocks://demo?samples=none", "samples: Input should be a valid integer"),
        ("blocks://demo?samples=3&samples=4", "twice"),
        (f"blocks://demo?seed={RESERVED_SEEDS}", "seed: Input should be less than"),
    ],
)
def test_a_wrong_uri_is_refused(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shards.parse_uri(uri)


def test_experts_and_benchmark_have_seeds_no_user_can_have() -> None:
    seeds = [TRAIN_SEED, TEST_SEED, *benchmark._SEEDS.values()]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= RESERVED_SEEDS


def test_classification_is_balanced_and_cached(tmp_path: Path) -> None:
    made = benchmark.classification(tmp_path, per_class=1, size=48)
    assert made.images.shape == (48, 48, 48, 3)
    assert sorted(made.labels.tolist()) == list(range(48))
    assert benchmark.CLASS_NAMES[made.labels[13]] == f"{list(benchmark.COLOURS)[made.colours[13]]} {SHAPES[made.shapes[13]]}"
    (path,) = (tmp_path / "blocks" / "benchmark").iterdir()
    stamp = path.stat().st_mtime_ns
    np.testing.assert_array_equal(benchmark.classification(tmp_path, per_class=1, size=48).images, made.images)
    assert path.stat().st_mtime_ns == stamp


def test_retrieval_captions_fit_one_picture_only(tmp_path: Path) -> None:
    made = benchmark.retrieval(tmp_path, count=60, size=48)
    assert len(made.images) == len(made.captions) == 60
    mentioned = [{name for name in benchmark.CLASS_NAMES if name in text} for text in made.captions]
    for i, first in enumerate(mentioned):
        assert not any(first <= second for j, second in enumerate(mentioned) if i != j)


def test_dense_segments_agree_with_depth(tmp_path: Path) -> None:
    made = benchmark.dense(tmp_path, "val", count=6, size=48)
    np.testing.assert_array_equal(made.valid, made.segments != benchmark.SEGMENTS.index("sky"))
    np.testing.assert_array_equal(made.depth > 0, made.valid)
    assert made.segments.max() < len(benchmark.SEGMENTS)
    assert (made.segments >= 2).any(axis=(1, 2)).all()
    assert not np.array_equal(made.images, benchmark.dense(tmp_path, "train", count=6, size=48).images)
