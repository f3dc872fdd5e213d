"""Labels as PyArrow, pandas and torch are those that the table has, in the shapes that are promised."""

from __future__ import annotations

import inspect
import io
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import typer
from label_tables import QuickExpert, config, make_table, sample_rows
from PIL import Image

from flows.cli import app
from mtv_core import experts, labelling, labelling_worker
from mtv_core.data.depth import decode
from mtv_core.data.schema import SAMPLES
from mtv_core.executor import SerialExecutor
from mtv_core.reading import decode_depth, open_labels
from mtv_core.store.table import Table


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Table, str]]:
    """24 labelled rows with a tag; after it 4 rows came that have no labels."""
    monkeypatch.setattr(experts, "load", QuickExpert)
    labelling_worker.loaded.cache_clear()
    table = make_table(tmp_path / "table")
    tag = labelling.run(table.uri, config(), SerialExecutor()).tag
    table.append(sample_rows(4, first=24))
    yield table, tag
    labelling_worker.loaded.cache_clear()


def truth(table: Table, tag: str | None = None) -> list[dict[str, Any]]:
    view = Table.at(table.uri, tag)
    return pa.Table.from_batches(view.scan(), view.schema).to_pylist()


def test_arrow_is_what_is_stored(table: tuple[Table, str]) -> None:
    at, tag = table
    found = open_labels(at.uri, tag).to_arrow()
    rows = truth(at, tag)
    assert len(rows) == 24
    assert found.to_pylist() == [{name: row[name] for name in found.column_names} for row in rows]
    assert {"uid", "depth", "depth_rev", "boxes", "phrases", "scores", "detection_rev"} <= set(found.column_names)
    assert "image" not in found.column_names
    np.testing.assert_array_equal(decode_depth(found["depth"][3]), decode(rows[3]["depth"]))
    assert decode_depth(open_labels(at.uri).to_arrow()["depth"][-1]) is None


def test_pandas_is_decoded(table: tuple[Table, str]) -> None:
    at, _ = table
    frame = open_labels(at.uri).to_pandas()
    rows = truth(at)
    assert list(frame.uid) == [row["uid"] for row in rows]
    empty = 0
    for row, (_, found) in zip(rows, frame.iterrows(), strict=True):
        if row["depth"] is None:
            assert (found.depth, found.boxes, found.phrases, found.scores) == (None, None, None, None)
            continue
        np.testing.assert_array_equal(found.depth, decode(row["depth"]))
        assert found.boxes.shape == (len(row["boxes"]), 4)
        assert found.boxes.tolist() == row["boxes"]
        assert (found.scores.tolist(), found.phrases) == (row["scores"], row["phrases"])
        empty += not len(found.boxes)
    assert 0 < empty < 24


def test_a_slice_is_the_one_that_a_training_sees(table: tuple[Table, str]) -> None:
    at, _ = table
    labels = open_labels(at.uri, where="array_length(boxes) > 0", limit=5, columns=["uid", "boxes"])
    wanted = sorted((row for row in truth(at) if row["boxes"]), key=lambda row: row["uid"])[:5]
    assert len(labels) == 5
    assert sorted(labels.to_arrow()["uid"].to_pylist()) == [row["uid"] for row in wanted]
    assert len(open_labels(at.uri, split="held_out")) == 0
    assert open_labels(at.uri, split="held_out").to_pandas().empty
    assert len(open_labels(at.uri)) == 28
    assert sum(batch.num_rows for batch in open_labels(at.uri, where="width > 80").batches(3)) == len(
        open_labels(at.uri, where="width > 80")
    )


def test_torch_gives_tensors(table: tuple[Table, str]) -> None:
    at, tag = table
    data = open_labels(at.uri, tag).torch()
    batches = list(torch.utils.data.DataLoader(data, batch_size=7, collate_fn=list))
    assert [len(batch) for batch in batches] == [7, 7, 7, 3]
    for row, sample in zip(truth(at, tag), (one for batch in batches for one in batch), strict=True):
        assert (sample.uid, sample.caption, sample.phrases) == (row["uid"], row["caption"], row["phrases"])
        assert sample.image.dtype == torch.uint8
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(row["image"]))))
        np.testing.assert_array_equal(sample.depth.numpy(), decode(row["depth"]))
        assert sample.boxes.tolist() == row["boxes"]
        assert sample.scores.tolist() == row["scores"]


def test_rows_by_number_in_any_order_and_more_than_once(table: tuple[Table, str]) -> None:
    at, tag = table
    uids = [row["uid"] for row in truth(at, tag)]
    data = open_labels(at.uri, tag).torch(transform=lambda sample: sample.uid)
    assert data.__getitems__([5, 2, 5, -1]) == [uids[5], uids[2], uids[5], uids[-1]]
    assert data[3] == uids[3]
    with pytest.raises(IndexError):
        data[24]
    assert open_labels(at.uri).torch()[27].boxes is None


def test_another_process_reads_it_unless_it_was_forked(table: tuple[Table, str]) -> None:
    at, tag = table
    data = open_labels(at.uri, tag).torch()
    uid = data[0].uid
    loader = torch.utils.data.DataLoader(data, batch_size=8, collate_fn=list, num_workers=1, multiprocessing_context="forkserver")
    assert next(iter(loader))[0].uid == uid
    again = pickle.loads(pickle.dumps(data))
    assert again[0].uid == uid
    data._process = os.getpid() + 1
    with pytest.raises(RuntimeError, match="forkserver"):
        data[0]


def test_what_was_opened_stays(table: tuple[Table, str]) -> None:
    at, tag = table
    labels, tagged = open_labels(at.uri), open_labels(at.uri, tag)
    at.append(sample_rows(2, first=40))
    assert (len(labels), len(tagged), len(open_labels(at.uri))) == (28, 24, 30)
    assert tagged.revisions == {name: {found.revision: 24} for name, found in at.accepted().items()}
    assert labels.revisions["depth"][""] == 4


def test_where_it_is(table: tuple[Table, str], monkeypatch: pytest.MonkeyPatch) -> None:
    at, _ = table
    monkeypatch.setenv("MTV_HOME", str(Path(at.uri).parent))
    assert len(open_labels("table")) == 28
    monkeypatch.delenv("MTV_HOME")
    monkeypatch.chdir(Path(at.uri).parent)
    assert len(open_labels("table")) == 28


def test_mistakes(table: tuple[Table, str], tmp_path: Path) -> None:
    at, tag = table
    with pytest.raises(ValueError, match="no column 'box'; its columns are uid"):
        open_labels(at.uri, columns=["box"])
    with pytest.raises(ValueError, match="not both"):
        open_labels(at.uri, tag, version=1)
    with pytest.raises(FileNotFoundError, match="mtv ingest"):
        open_labels(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        open_labels(at.uri, "mtv-000000000000")
    with pytest.raises(ValueError, match="cannot be used"):
        open_labels(at.uri, where="nonsense > 3")


# docs/labels.md


PAGE = Path(__file__).parents[2] / "docs" / "labels.md"


def test_the_page_is_true(table: tuple[Table, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its examples run as they stand and are five lines each."""
    at, tag = table
    home = Path(at.uri).parent / "home"
    (home / "tables").mkdir(parents=True)
    view = Table.at(at.uri, tag)
    labelled = Table.create_or_open(str(home / "tables" / "mine"))
    labelled.append(pa.Table.from_batches(view.scan(list(SAMPLES.names))))
    labelling.run(labelled.uri, config(), SerialExecutor())
    monkeypatch.setenv("MTV_HOME", str(home))
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        assert len([line for line in example.splitlines() if line]) <= 5
        exec(compile(example, "docs/labels.md", "exec", dont_inherit=True), {})
    assert "(4, 4) float32" in capsys.readouterr().out


def test_the_page_names_every_option_and_argument() -> None:
    text = PAGE.read_text()
    arguments = [name for name in inspect.signature(open_labels).parameters if name != "table"]
    assert [name for name in arguments if f"`{name}`" not in text] == []
    command = typer.main.get_command(app).commands["label"].commands["import"]  # type: ignore[attr-defined]
    shared = {"--preset", "--sources", "--table", "--set", "--expert", "--help"}
    options = [option for one in command.params for option in one.opts if option.startswith("--")]
    assert [option for option in options if option not in shared and option not in text] == []
