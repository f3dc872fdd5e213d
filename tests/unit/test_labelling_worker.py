"""The engine under labelling: every row gets its own label whatever fails, and each kind of error has its own answer."""

from __future__ import annotations

import errno
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_tables import QuickExpert, columns, config, make_table, quick_experts, rejects, sample_rows
from PIL import Image

from mtv_core import experts, labelling, labelling_engine, labelling_worker
from mtv_core.executor import SerialExecutor
from mtv_core.experts.config import DetectionExpertConfig
from mtv_core.labelling import LabellingIncompleteError
from mtv_core.labelling_config import LabelConfig
from mtv_core.labelling_engine import Engine
from mtv_core.labelling_failures import BatchSize, Evidence, ExpertUnavailableError, Failure, Kind, SickMachineError, kind_of
from mtv_core.labelling_worker import label_rows
from mtv_core.report import RejectClass
from mtv_core.store.labels import LabelWriter
from mtv_core.store.table import Table

quick = pytest.fixture(quick_experts)
ONLY_DEPTH = config().model_copy(update={"detection": None})


class Fake(QuickExpert):
    """A depth expert that does something first; tells the sizes of its batches."""

    def __init__(self, before: Callable[[Sequence[Image.Image], Sequence[str]], None] = lambda *_: None) -> None:
        depth = ONLY_DEPTH.depth
        assert depth is not None
        super().__init__("depth", depth)
        self.before, self.sizes = before, list[int]()
        self.device = SimpleNamespace(type="cpu")

    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str], phrases: Any = None) -> pa.RecordBatch:
        self.sizes.append(len(images))
        self.before(images, captions)
        return super().__call__(images, captions, phrases)


def rows(count: int) -> pa.RecordBatch:
    return sample_rows(count).combine_chunks().to_batches()[0]


def naive(part: pa.RecordBatch, expert: QuickExpert) -> list[Any]:
    """Row after row."""
    found = []
    for row in part.to_pylist():
        image = labelling_engine._decode(pa.py_buffer(row["image"]))
        found.append(expert.label(image, row["caption"])["depth"])
    return found


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, quick: None) -> Iterator[Callable[[QuickExpert], None]]:
    """Make one expert the one that is loaded; no waiting."""
    monkeypatch.setattr(labelling_engine, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(labelling_worker, "_BRAKE_SECONDS", 0.0)

    def use(expert: QuickExpert) -> None:
        monkeypatch.setattr(experts, "load", lambda *_: expert)
        labelling_worker.loaded.cache_clear()

    yield use
    labelling_worker.loaded.cache_clear()


def run(table: Table, with_config: LabelConfig = ONLY_DEPTH) -> labelling.LabelResult:
    return labelling.run(table.uri, with_config, SerialExecutor())


def label_files(table: Table) -> list[str]:
    return [path.name for path in (Path(table.uri) / "samples.lance" / "data").glob("label-*")]


# Rows and their labels


@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    batch=st.integers(1, 7),
    threads=st.integers(1, 3),
    bad=st.sets(st.integers(0, 47), max_size=6),
    broken=st.sets(st.integers(0, 47), max_size=4),
    fits=st.integers(1, 8),
    gpu=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_row_gets_its_own_label_or_its_own_failure(
    sizes: list[int], batch: int, threads: int, bad: set[int], broken: set[int], fits: int, gpu: bool
) -> None:
    everything = rows(48)
    captions = everything["caption"].to_pylist()
    failing = {captions[i] for i in bad}

    def before(_: Sequence[Image.Image], asked: Sequence[str]) -> None:
        if len(asked) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if failing & {*asked}:
            raise RuntimeError("odd picture")

    expert = Fake(before)
    if gpu:  # decoded ahead by other threads
        expert.device = SimpleNamespace(type="cuda")
    images = [b"no picture" if i in broken else image for i, image in enumerate(everything["image"].to_pylist())]
    given_rows = everything.set_column(everything.schema.get_field_index("image"), "image", pa.array(images, pa.binary()))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = [given_rows.slice(start, size) for start, size in zip(starts, sizes, strict=True)]
    with Engine(expert, BatchSize(batch), threads) as engine:
        found = list(engine.label(parts))
    wanted = naive(everything, expert)
    for start, size, labelled in zip(starts, sizes, found, strict=True):
        failed = {i - start: "UnreadableImage" if i in broken else "RuntimeError" for i in range(start, start + size)
                  if i in broken or captions[i] in failing}  # fmt: skip
        assert {i: failure.error for i, failure in labelled.failures.items()} == failed
        labels = [None if i - start in failed else wanted[i] for i in range(start, start + size)]
        assert labelled.labels["depth"].to_pylist() == labels


def test_label_rows_labels_what_has_a_label_already() -> None:
    part, expert = rows(5), Fake()
    labels, failures = label_rows(part, expert, 2)
    assert (labels["depth"].to_pylist(), failures) == (naive(part, expert), {})
    assert label_rows(part.slice(0, 0), expert, 2)[0].num_rows == 0


def test_pictures_of_one_shape_go_together() -> None:
    shapes: list[set[tuple[int, int]]] = []
    with Engine(Fake(lambda images, _: shapes.append({image.size for image in images})), BatchSize(4)) as engine:
        [labelled] = engine.label([rows(24)])
    assert sorted(shapes, key=str) == [{(72, 96)}] * 2 + [{(96, 72)}] * 2 + [{(96, 96)}] * 2
    assert labelled.labels["depth"].to_pylist() == naive(rows(24), Fake())


def test_threads_work_on_different_batches_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=20)
    with Engine(Fake(lambda *_: both.wait() and None), BatchSize(2), threads=2) as engine:
        [labelled] = engine.label([rows(8)])
    assert not labelled.failures


def test_labels_are_written_while_the_next_are_made(
    tmp_path: Path, use: Callable[[QuickExpert], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = threading.Event()
    honest = LabelWriter.write

    def write(self: LabelWriter, batch: pa.RecordBatch) -> None:
        honest(self, batch)
        written.set()

    def before(_: Sequence[Image.Image], asked: Sequence[str]) -> None:
        if last in asked:
            assert written.wait(20)

    monkeypatch.setattr(LabelWriter, "write", write)
    monkeypatch.setattr(labelling_worker, "_SCAN_ROWS", 4)
    table = make_table(tmp_path / "t", count=12, rows_per_fragment=12)
    last = columns(table)["caption"][columns(table)["key"].index("00011")]
    use(Fake(before))
    assert run(table).report.rows_out == 12


def test_what_filters_count_is_reported_of_successful_calls_alone(tmp_path: Path, use: Callable[[QuickExpert], None]) -> None:
    class Counting(Fake):
        def __call__(self, images: Sequence[Image.Image], captions: Sequence[str], phrases: Any = None) -> pa.RecordBatch:
            self.counts = Counter(depth_filter_odd=len(images))
            return super().__call__(images, captions, phrases)

    table = make_table(tmp_path / "t", count=9, rows_per_fragment=9)
    first = columns(table)["caption"][0]

    def before(_: Sequence[Image.Image], asked: Sequence[str]) -> None:
        if first in asked:
            raise RuntimeError("odd")

    use(Counting(before))
    result = run(table)
    assert result.report.counts["depth_filter_odd"] == result.report.rows_out == 9 - columns(table)["depth"].count(None) < 9


def test_an_expert_gets_the_users_own_phrases(tmp_path: Path, use: Callable[[QuickExpert], None]) -> None:
    heard: dict[str, str] = {}

    class Asking(Fake):
        extra_columns = ("key", "uid")

        def phrases_in(self, part: pa.RecordBatch) -> list[list[str]]:
            return [[key, uid] for key, uid in zip(part["key"].to_pylist(), part["uid"].to_pylist(), strict=True)]

        def __call__(self, images: Sequence[Image.Image], captions: Sequence[str], phrases: Any = None) -> pa.RecordBatch:
            heard.update(map(tuple, phrases))
            return super().__call__(images, captions, phrases)

    table = make_table(tmp_path / "t", count=20, rows_per_fragment=7)
    use(Asking())
    run(table)
    stored = columns(table)
    assert heard == dict(zip(stored["key"], stored["uid"], strict=True))


def test_a_column_of_phrases_that_cannot_be_read_stops_the_run(tmp_path: Path, use: Callable[[QuickExpert], None]) -> None:
    class Asking(Fake):
        def phrases_in(self, part: pa.RecordBatch) -> list[list[str]]:
            raise ValueError("the column 'things' has integers")

    table = make_table(tmp_path / "t")
    use(Asking())
    with pytest.raises(ValueError, match="cannot be used: the column 'things' has integers"):
        run(table)
    assert not rejects(table)
    assert not label_files(table)


@pytest.mark.parametrize("value", ["5", '["dog", 3]'])
def test_a_row_whose_column_names_no_phrases_is_refused_alone(tmp_path: Path, value: str) -> None:
    table, given_rows = Table.create_or_open(str(tmp_path / "t")), sample_rows(12)
    meta = [f'{{"tags": {value if i == 5 else ["red cube"]}}}'.replace("'", '"') for i in range(12)]
    index = given_rows.schema.get_field_index("meta")
    table.append(given_rows.set_column(index, given_rows.schema.field("meta"), pa.array(meta, pa.string())), 6)
    labelling_worker.loaded.cache_clear()
    detection = DetectionExpertConfig(model="blocks:detection-r2", phrases_column="meta.tags")
    result = run(table, config().model_copy(update={"depth": None, "detection": detection}))
    assert (result.report.rows_out, result.report.rows_rejected) == (11, 1)
    [reject] = rejects(table)
    assert (reject["key"], reject["error"], reject["reject_class"]) == ("00005", "BadPhrases", "data")
    assert value.replace('"', "'") in str(reject["message"])
    stored = columns(table)
    assert [key for key, boxes in zip(stored["key"], stored["boxes"], strict=True) if boxes is None] == ["00005"]
    assert None not in stored["detection_rev"]


# What an expert answers


class Answering(Fake):
    """Changes its answer about some pictures."""

    def __init__(self, change: Callable[[dict[str, Any]], dict[str, Any]], about: set[str] | None = None) -> None:
        super().__init__()
        self.change, self.about = change, about

    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str], phrases: Any = None) -> pa.RecordBatch:
        answer = super().__call__(images, captions, phrases).to_pylist()
        wrong = [self.about is None or caption in self.about for caption in captions]
        some = [self.change(row) if odd else row for row, odd in zip(answer, wrong, strict=True)]
        return pa.RecordBatch.from_pylist(some)


def test_an_answer_that_is_no_label_is_refused_with_its_picture_alone(tmp_path: Path, use: Callable[[QuickExpert], None]) -> None:
    table = make_table(tmp_path / "t", count=12, rows_per_fragment=12)
    odd = columns(table)["caption"][7]
    use(Answering(lambda _: {"depth": None}, {str(odd)}))
    assert run(table).report.rows_out == 11
    [reject] = rejects(table)
    assert (reject["error"], reject["reject_class"]) == ("BadAnswerError", "bug")
    assert [row for row, depth in enumerate(columns(table)["depth"]) if depth is None] == [7]


@pytest.mark.parametrize("change", [lambda _: {"depth": None}, lambda _: {"depth": b"odd"}, lambda row: {"depths": row["depth"]}])
def test_an_expert_whose_answers_are_no_labels_is_given_up(
    change: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path, use: Callable[[QuickExpert], None]
) -> None:
    use(Answering(change))
    table = make_table(tmp_path / "t")
    with pytest.raises(ValueError, match="cannot be used: it fails on 8 of the first 8 pictures of fragment 0: BadAnswerError: "):
        run(table)
    assert columns(table)["depth_rev"].count(None) == 24


def test_weights_that_cannot_be_loaded_are_answered_for_both_that_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise FileNotFoundError("the folder lacks a file")

    monkeypatch.setattr(experts, "load", load)
    depth = ONLY_DEPTH.depth
    assert depth is not None
    labelling_worker.loaded.cache_clear()
    with pytest.raises(ExpertUnavailableError) as caught:
        labelling_worker.loaded("depth", depth, "0" * 16)
    assert "If they are those of label.depth.model, complete them or name others; if they are those the table accepted" in str(caught.value)


# Kinds of errors


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), Kind.MEMORY),
        (MemoryError(), Kind.MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), Kind.MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), Kind.MEMORY),
        (RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA"), Kind.MACHINE),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), Kind.MACHINE),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"), Kind.MACHINE),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), Kind.MACHINE),
        (OSError(errno.ENOSPC, "no space left"), Kind.MACHINE),
        (PermissionError(errno.EACCES, "weights"), Kind.MACHINE),
        (TimeoutError("hub"), Kind.TRANSIENT),
        (ConnectionResetError("peer"), Kind.TRANSIENT),
        (OSError("the store does not answer"), Kind.TRANSIENT),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), Kind.BUG),
        (ValueError("the depth model gave no finite number"), Kind.BUG),
        (AssertionError("3 labels of 4 pictures"), Kind.BUG),
    ],
)  # fmt: skip
def test_errors_are_sorted(error: Exception, kind: Kind) -> None:
    assert kind_of(error) is kind


# Memory


def test_batches_stay_halved_over_fragments_and_grow_back_when_there_is_room(tmp_path: Path, use: Callable[[QuickExpert], None]) -> None:
    room = [3]

    def before(images: Sequence[Image.Image], _: Sequence[str]) -> None:
        if len(images) > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    expert = Fake(before)
    use(expert)
    table = make_table(tmp_path / "t", count=48, rows_per_fragment=24)
    only = ONLY_DEPTH.model_copy(update={"batch_size": 8})
    assert run(table, only).report.rows_out == 48
    assert [size for size in expert.sizes if size > 3] == [8, 4]  # asked for once each, then never again
    assert not rejects(table)
    assert columns(table)["depth"].count(None) == 0
    room[0], expert.sizes = 8, []
    table.append(sample_rows(560, first=48), 40)
    assert run(table, only).report.rows_out == 560
    assert expert.sizes[:8] == [2] * 8
    assert max(expert.sizes) == 8


def test_a_picture_that_is_too_large_alone_stays_stale(tmp_path: Path, use: Callable[[QuickExpert], None]) -> None:
    def before(images: Sequence[Image.Image], _: Sequence[str]) -> None:
        if any(image.width == 72 for image in images):
            raise MemoryError("full")

    use(Fake(before))
    table = make_table(tmp_path / "t")
    with pytest.raises(
        LabellingIncompleteError, match="8 rows without depth labels are left: 2 rows failed for now: MemoryError: full; 3 rows"
    ):
        run(table)
    assert not rejects(table)
    assert columns(table)["depth_rev"].count(None) == 8
    assert not [name for name in label_files(table) if "-whole" in name]  # nobody may take these fragments for done
    use(Fake())
    assert run(table).report.rows_in == 8


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=60), st.integers(1, 32))
def test_a_batch_size_stays_within_its_limits(events: list[tuple[bool, int]], limit: int) -> None:
    size = BatchSize(limit, patience=2)
    for worked, number in events:
        before = size.now
        (size.worked if worked else size.failed)(min(number, limit))
        assert 1 <= size.now <= limit
        assert size.now >= before if worked else size.now <= before


def test_each_failure_makes_growing_rarer() -> None:
    size, tries = BatchSize(16, patience=2), []
    for step in range(2000):
        if size.now == 16:  # it never fits
            tries.append(step)
            size.failed(16)
        else:
            size.worked(size.now)
    gaps = [after - before for before, after in itertools.pairwise(tries)]
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 16 * gaps[0]
    size = BatchSize(16)
    for _ in range(3):  # three threads that failed together
        size.failed(16)
    assert size.now == 8


# Transient


def test_a_moment_of_the_network_costs_nothing_but_time(tmp_path: Path, use: Callable[[QuickExpert], None]) -> None:
    calls = iter(range(1000))

    def before(*_: object) -> None:
        if next(calls) % 3 < 2:
            raise ConnectionResetError("reset by peer")

    use(Fake(before))
    table = make_table(tmp_path / "t")
    assert run(table).report.rows_out == 24
    assert not rejects(table)


def test_a_long_outage_leaves_rows_stale_and_is_not_waited_for_again_and_again(tmp_path: Path, use: Callable[[QuickExpert], None]) -> None:
    def before(*_: object) -> None:
        raise TimeoutError("no answer")

    expert = Fake(before)
    use(expert)
    table = make_table(tmp_path / "t", count=24, rows_per_fragment=24)
    with pytest.raises(LabellingIncompleteError, match="24 rows without depth labels are left: 24 rows failed for now: TimeoutError"):
        run(table)
    assert expert.sizes == [4] * (4 + 5)  # the first batch four times, the others once
    assert not rejects(table)
    assert not label_files(table)
    use(Fake())
    assert run(table).report.rows_out == 24


# The machine


@pytest.mark.parametrize("message", ["CUDA error: device-side assert triggered", "CUDA error: uncorrectable ECC error encountered"])
def test_a_sick_device_refuses_nothing(tmp_path: Path, use: Callable[[QuickExpert], None], message: str) -> None:
    calls = iter(range(1000))

    def before(*_: object) -> None:
        if next(calls) >= 3:  # in the second fragment, and from then on
            raise RuntimeError(message)

    use(Fake(before))
    table = make_table(tmp_path / "t")
    with pytest.raises(LabellingIncompleteError, match=r"16 rows without depth labels.*the device fails, not a picture"):
        run(table)
    assert not rejects(table)
    assert columns(table)["depth_rev"].count(None) == 16
    assert len(label_files(table)) == 1
    use(Fake())
    assert run(table).report.rows_out == 16


def test_a_sick_device_is_an_error_that_is_tried_elsewhere(use: Callable[[QuickExpert], None]) -> None:
    from tasks.cluster import is_transient

    def before(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(SickMachineError, match="restart this worker") as caught:
        label_rows(rows(4), Fake(before), 2)
    assert is_transient(caught.value)


def test_a_full_disk_under_an_expert_is_not_the_pictures_fault(tmp_path: Path, use: Callable[[QuickExpert], None]) -> None:
    def before(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    use(Fake(before))
    table = make_table(tmp_path / "t")
    with pytest.raises(OSError, match="no space left"):
        run(table)
    assert not rejects(table)


# Bugs


def test_evidence_adds_up_over_fragments(tmp_path: Path, use: Callable[[QuickExpert], None]) -> None:
    def before(*_: object) -> None:
        raise RuntimeError("wrong configuration")

    use(Fake(before))
    table = make_table(tmp_path / "t", count=12, rows_per_fragment=1)
    with pytest.raises(
        ValueError, match=r"cannot be used: it failed on 4 of the last 4 pictures, the last of them in fragment 3: .*wrong conf"
    ):
        run(table)
    assert len(rejects(table)) == 3
    assert columns(table)["depth_rev"].count(None) == 9


def test_scattered_bugs_are_refused_however_many() -> None:
    evidence, worst = Evidence(), Failure("RuntimeError", "odd", RejectClass.BUG)
    for fragment in range(500):
        evidence.check(f"fragment {fragment}", 3, 10, 3, 10, worst)
    for number in range(1, 4):
        evidence.check("one of odd pictures", number, number, 1, 1, worst)
    with pytest.raises(ExpertUnavailableError, match="4 of the first 4 pictures of one of odd"):
        evidence.check("one of odd pictures", 4, 4, 1, 1, worst)


def test_a_picture_that_does_not_fit_into_memory_decoded_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise MemoryError("full")

    monkeypatch.setattr(labelling_engine, "_decode", full)
    _, failures = label_rows(rows(3), Fake(), 2)
    assert [failure.reject_class for failure in failures.values()] == [RejectClass.TRANSIENT] * 3
