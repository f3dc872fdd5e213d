"""Which weights an expert is made of, by which revision its labels are known, and what a wrong configuration is answered."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mtv_core import experts
from mtv_core.experts import licenses, source
from mtv_core.experts.config import _LATER, DepthExpertConfig, DetectionExpertConfig, ExpertConfig
from mtv_core.experts.source import WEIGHTS

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def depth(model: str | Path = "blocks:depth-r1", **fields: object) -> DepthExpertConfig:
    return DepthExpertConfig.model_validate({"model": str(model), **fields})


def detection(model: str = "blocks:detection-r1", **fields: object) -> DetectionExpertConfig:
    return DetectionExpertConfig.model_validate({"model": model, **fields})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with the weights of depth-r1."""
    return Path(shutil.copytree(WEIGHTS / "depth-r1", tmp_path / "mine"))


def test_configs_and_revisions_load_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, mtv_core.labelling_config as l; from mtv_core import experts;"
        "experts.revision('depth', l.DepthExpertConfig(model='blocks:depth-r1'));"
        "print([m for m in ('torch', 'transformers', 'lance') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# A changed number here relabels every table there is: raise LABEL_SCHEMA_VERSION or phrases.VERSION on purpose, or find what slipped in.
@pytest.mark.parametrize(
    ("name", "config", "revision"),
    [
        ("depth", depth("blocks:depth-r1"), "24ed9ec763f2f2a2"),
        ("depth", depth("blocks:depth-r2"), "a82338b7d93e0c83"),
        ("detection", detection("blocks:detection-r1"), "8400f724a46e898d"),
        ("detection", detection("blocks:detection-r2"), "9135f9317045f76a"),
        ("detection", detection("blocks:detection-r2", vocabulary=["dog", "cat"]), "f94e0feaeb9b71c0"),
        ("depth", DepthExpertConfig(revision=COMMIT), "71fd4a917c2f9b48"),
        ("detection", DetectionExpertConfig(revision=COMMIT), "0f4fe0fe3619d65e"),
    ],
)
def test_revisions_are_frozen(name: str, config: ExpertConfig, revision: str) -> None:
    assert experts.revision(name, config) == revision


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat16"}, {"vocabulary": ["dog"]}, {"vocabulary": ["cat"]}, {"max_phrases": 3}, {"prompt": "{}"},
        {"threshold": 0.2}, {"nms": 0.5}, {"max_boxes": 3}, {"phrases_column": "tags"},
    ],
)  # fmt: skip
def test_what_changes_labels_changes_the_revision(change: dict[str, object]) -> None:
    assert experts.revision("detection", detection(**change)) != experts.revision("detection", detection())


def test_every_field_is_in_the_revision_or_known_not_to_matter() -> None:
    for config in (depth(), detection(), detection(vocabulary=["dog"])):
        left_out = set(type(config).model_fields) - set(config.label_parameters())
        # What came later is left out while it has its default: labels from before it are still known.
        later = set(_LATER) & set(type(config).model_fields)
        allowed = {"model", "revision", "accept_license", "device"} | later
        assert left_out == allowed | ({"max_phrases"} if getattr(config, "vocabulary", None) else set())
    changed = detection(phrases_column="tags")
    assert set(changed.label_parameters()) >= set(_LATER) - {
        name for name in _LATER if getattr(changed, name) == DetectionExpertConfig.model_fields[name].default
    }


def test_place_device_and_readme_do_not_matter_weights_do(folder: Path) -> None:
    revision = experts.revision("depth", depth())
    (folder / "README.md").write_text("about it")
    (folder / "train.log").write_text("loss 1")
    assert experts.revision("depth", depth(folder, device="cpu", accept_license=True)) == revision
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert experts.revision("depth", depth(folder)) != revision


def test_processor_is_part_of_the_revision(folder: Path) -> None:
    before = experts.revision("depth", depth(folder))
    processor = folder / "preprocessor_config.json"
    processor.write_text(processor.read_text().replace('"resample": 3', '"resample": 2'))
    assert experts.revision("depth", depth(folder)) != before


@pytest.mark.parametrize(
    ("break_it", "error", "says"),
    [
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, r"no weights \(\*\.safetensors\); save the model"),
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "no config.json; it must be what"),
        (shutil.rmtree, FileNotFoundError, "there is no folder"),
        (lambda f: (shutil.rmtree(f), f.write_text("")), ValueError, "is a file; give the folder"),
        (lambda f: (f / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n"), ValueError, "accept_license: true"),
    ],
)
def test_wrong_folders_are_answered_with_what_to_do(folder: Path, break_it: object, error: type[Exception], says: str) -> None:
    break_it(folder)  # type: ignore[operator]
    with pytest.raises(error, match=says):
        experts.revision("depth", depth(folder))


def test_folder_that_is_no_such_model(folder: Path) -> None:
    with pytest.raises(ValueError, match="no detector that is known here"):
        experts.load("detection", detection(str(folder)))
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="cannot be loaded as"):
        experts.load("depth", depth(folder))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="the folder lacks a file"):
        experts.load("depth", depth(folder))


def test_weights_that_do_not_fit_their_config(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 4', '"num_hidden_layers": 5'))
    with pytest.raises(ValueError, match="do not belong together"):
        experts.load("depth", depth(folder))


def test_unknown_embedded_expert_lists_the_known() -> None:
    with pytest.raises(FileNotFoundError, match="blocks:depth-r1, blocks:depth-r2, blocks:detection-r1"):
        experts.revision("depth", depth("blocks:../../etc"))


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    with pytest.raises(FileNotFoundError, match=r"cannot be looked up on the hub.*local folder"):
        experts.revision("depth", DepthExpertConfig(model="owner/name"))
    # A full commit needs no look-up; loading says soon that it is not there.
    with pytest.raises(FileNotFoundError, match="not in the local cache"):
        experts.load("depth", DepthExpertConfig(model="owner/name", revision=COMMIT, accept_license=True))


def test_device_that_is_not_there() -> None:
    for device in ("cuda:99", "tpu9"):
        with pytest.raises(ValueError, match="set device: auto"):
            experts.load("depth", depth(device=device))


def test_licence_on_the_hub() -> None:
    large = "depth-anything/Depth-Anything-V2-Large-hf"
    with pytest.raises(ValueError, match=r"cc-by-nc-4\.0"):
        experts.revision("depth", depth(large, revision=COMMIT))
    assert source.resolve(depth(large, revision=COMMIT, accept_license=True)).license == "cc-by-nc-4.0"
    for model in ("google/owlv2-base-patch16-ensemble", "IDEA-Research/grounding-dino-tiny"):
        assert source.resolve(detection(model, revision=COMMIT)).license == "apache-2.0"


CARD = "---\n{}\n---\n# A model\nlicense: mit\n"  # only the front matter counts


@pytest.mark.parametrize(
    ("front", "license_name", "asked"),
    [
        ("license: apache-2.0", "apache-2.0", False),
        ("tags:\n- depth\nlicense: MIT", "mit", False),
        ("license:\n- mit\n- cc-by-nc-sa-4.0", "mit, cc-by-nc-sa-4.0", True),
        ("license: other\nlicense_name: acme-research\nlicense_link: LICENSE", "other: acme-research", True),
        ("license: other", "other", True),
    ],
)
def test_the_card_says_the_licence_of_a_folder_and_of_a_hub_model(
    front: str, license_name: str, asked: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "README.md").write_text(CARD.format(front))
    card = tmp_path / "cache" / "models--acme--depth" / "snapshots" / COMMIT / "README.md"  # as the hub's client keeps it
    card.parent.mkdir(parents=True)
    card.write_text(CARD.format(front))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the card is in the cache: no network is needed"))
    licenses._hub_card.cache_clear()
    for config in (depth(folder), depth("acme/depth", revision=COMMIT)):
        if asked:
            with pytest.raises(ValueError, match="set accept_license: true"):
                source.resolve(config)
        assert source.resolve(config.model_copy(update={"accept_license": True})).license == license_name


@pytest.mark.parametrize("front", ["tags: [depth]", "license: [", "- a list", ""])
def test_a_hub_model_without_a_known_licence_has_to_be_accepted(
    front: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(licenses, "_hub_card", lambda *_: CARD.format(front))
    with pytest.raises(ValueError, match=r"acme/depth are under a licence that is not known.*set accept_license: true"):
        source.resolve(depth("acme/depth", revision=COMMIT))
    assert source.resolve(depth("acme/depth", revision=COMMIT, accept_license=True)).license == "unknown"
    (folder / "README.md").write_text(CARD.format(front))
    assert source.resolve(depth(folder)).license == "unknown"  # a folder of one's own


def test_a_card_that_cannot_be_read_today_is_asked_for_again_tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    licenses._hub_card.cache_clear()
    with monkeypatch.context() as offline:
        offline.setattr(socket, "getaddrinfo", unreachable)
        assert licenses.of_hub("acme/depth", COMMIT) == "unknown"
    assert licenses._hub_card.cache_info().currsize == 0


@pytest.mark.parametrize(
    "prompt", ["a photo", "", "{} {}", "a {} in {place}", "{0} a {}", "a {} {", "a {} }}", "a {{}} b", "{!r} {}", ["a {}", "{}{"]]
)
def test_a_prompt_has_one_place_and_no_other_brace(prompt: object) -> None:
    with pytest.raises(ValueError, match=r"prompt must hold '\{\}' once, where the phrase goes, and no other brace"):
        detection(prompt=prompt)


def test_all_of_a_samples_own_json_names_no_phrases() -> None:
    with pytest.raises(ValueError, match=r"name a key: meta\.KEY"):
        detection(phrases_column="meta")


@pytest.mark.parametrize("fields", [{"vocabulary": []}, {"vocabulary": ["dog", " "]}, {"prompt": "a photo"}, {"treshold": 0.1}])
def test_wrong_settings_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"vocabulary|prompt|treshold"):
        detection(**fields)


# Keeping


def test_kept_folder_has_the_revision_after_the_watched_one_changed(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    revision, weights = experts.revision("depth", depth(folder)), source.resolve(depth(folder))
    kept = source.keep(weights, tmp_path / "experts")
    shutil.copytree(WEIGHTS / "depth-r2", folder, dirs_exist_ok=True)
    assert experts.revision("depth", depth(folder)) != revision == experts.revision("depth", depth(kept))
    assert source.resolve(depth(kept)).license == "mit"
    assert source.keep(weights, tmp_path / "experts") == kept
    assert [p.name for p in (tmp_path / "experts").iterdir()] == [weights.digest]


def test_folder_that_changes_while_it_is_copied_is_not_kept(folder: Path, tmp_path: Path) -> None:
    weights = source.resolve(depth(folder))
    shutil.copytree(WEIGHTS / "depth-r2", folder, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="changed while"):
        source.keep(weights, tmp_path / "experts")
    assert not list((tmp_path / "experts").iterdir())


def test_what_a_killed_copy_left_is_removed(folder: Path, tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / "experts" / f".abc.{os.uname().nodename}.{dead.pid}.partial"
    other = tmp_path / "experts" / f".abc.{os.uname().nodename}.{os.getppid()}.partial"
    for path in (left, other):
        path.mkdir(parents=True)
    source.keep(source.resolve(depth(folder)), tmp_path / "experts")
    assert not left.exists()
    assert other.exists()  # somebody is at it


def test_a_copy_that_an_earlier_process_of_the_same_id_left_does_not_stop_the_next(folder: Path, tmp_path: Path) -> None:
    weights = source.resolve(depth(folder))
    left = tmp_path / "experts" / f".{weights.digest}.{os.uname().nodename}.{os.getpid()}.partial"
    left.mkdir(parents=True)
    with ThreadPoolExecutor(4) as threads:
        kept = set(threads.map(lambda _: source.keep(weights, tmp_path / "experts"), range(4)))
    assert [str(path) for path in (tmp_path / "experts").iterdir()] == [*kept]
