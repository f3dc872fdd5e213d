"""Which revision of labels every row has, as far as possible from the manifest alone.

A label file in whose name stands `whole` has the revision of its name in every row that was not deleted when it was written, and no row
is undeleted. A fragment without a file for `<expert>_rev` has no labels. So after ordinary labelling no data file is opened to see what
is stale, whatever the number of rows; of fragments that are labelled in part, or that a compaction rewrote, the revisions are read and
nothing else. The slow truth is a scan of every row:

    dataset.to_table(columns=[f"{expert}_rev"])[0].value_counts()
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from lance import LanceDataset, LanceFragment

from mtv_core.data.schema import LABELS
from mtv_core.store.labels import FragmentTask, StalePlan, revision_name

_WHOLE = re.compile(rf"label-({'|'.join(LABELS)})-([\w.-]+)-\d+-\d+-[0-9a-f]{{8}}-whole\.lance")
_ROWS = 1 << 16  # of a scan


@dataclass(frozen=True)
class _Known:
    """A fragment as the manifest has it."""

    fragment_id: int
    physical_rows: int
    num_rows: int
    revision: str | None  # of every row: '' for no labels; None: only its rows know


class LabelState:
    """The labels of one version of the samples, fragment by fragment. Holds a handle: it never leaves its process."""

    def __init__(self, dataset: LanceDataset) -> None:
        self.dataset = dataset
        self.version = int(dataset.version)
        self._counted: dict[str, dict[int, Counter[str]]] = {}

    @cached_property
    def fragments(self) -> list[LanceFragment]:
        """The fragments, which Lance makes anew each time."""
        return self.dataset.get_fragments()

    @cached_property
    def num_rows(self) -> int:
        """Rows that are not deleted."""
        return int(self.dataset.count_rows())

    @cached_property
    def files(self) -> list[str]:
        """Names of all data files, sorted."""
        return sorted(name for fragment in self._files for name, _ in fragment)

    @cached_property
    def experts(self) -> list[str]:
        """Experts that the table has columns for."""
        names = set(self.dataset.schema.names)
        return [expert for expert in LABELS if f"{expert}_rev" in names]

    def counts(self, expert: str) -> dict[str, int]:
        """Revision ('' for none yet) → rows."""
        total: Counter[str] = Counter()
        for counted in self._counts(expert).values():
            total.update(counted)
        return dict(+total)

    def any_labelled(self, expert: str) -> bool:
        """Whether any row has a revision of the expert, as refused ones have too. Where rows are read, it is up to the first that has."""
        known = self._known(expert)
        if any(one.revision and one.num_rows for one in known):
            return True
        unknown = {one.fragment_id for one in known if one.revision is None}
        if not unknown:
            return False
        fragments = [one for one in self.fragments if one.fragment_id in unknown]
        column = f"{expert}_rev"
        scanner = self.dataset.scanner(columns=[column], filter=f"{column} is not null", fragments=fragments, limit=1)
        return scanner.to_table().num_rows > 0

    def stale(self, expert: str, revision: str) -> StalePlan:
        """Which fragments have rows whose label is missing or of another revision. Before an expert has columns that is all of them."""
        return self._plan(expert, revision, keep_others=False)

    def unlabelled(self, expert: str, revision: str) -> StalePlan:
        """`stale` where rows of other revisions are to stay as they are: only those without any."""
        return self._plan(expert, revision, keep_others=True)

    def _plan(self, expert: str, revision: str, keep_others: bool) -> StalePlan:
        revision_name(revision)
        counts = self._counts(expert)
        tasks = []
        for known in self._known(expert):
            counted = counts[known.fragment_id]
            num_stale = counted[""] if keep_others else known.num_rows - counted[revision]
            if num_stale:
                tasks.append(FragmentTask(fragment_id=known.fragment_id, physical_rows=known.physical_rows, num_stale=num_stale))
        return StalePlan(expert=expert, revision=revision, version=self.version, fragments=tasks)

    # From the manifest

    @cached_property
    def _files(self) -> list[list[tuple[str, frozenset[int]]]]:
        """Of every fragment, its data files with the ids of the columns that are read from them."""
        # `DataFile.path` makes a class at each call, 20 µs; 10 000 fragments have 30 000 files.
        return [[(file._path, frozenset(file.fields)) for file in fragment.data_files()] for fragment in self.fragments]

    def _known(self, expert: str) -> list[_Known]:
        return self._all_known[expert] if expert in self.experts else self._unlabelled

    @cached_property
    def _sizes(self) -> list[tuple[int, int, int]]:
        """Of every fragment its id, physical rows, and rows."""
        return [(one.fragment_id, one.physical_rows, one.physical_rows - one.num_deletions) for one in self.fragments]

    @cached_property
    def _unlabelled(self) -> list[_Known]:
        return [_Known(*sizes, revision="") for sizes in self._sizes]

    @cached_property
    def _all_known(self) -> dict[str, list[_Known]]:
        ids = {field.name(): field.id() for field in self.dataset.lance_schema.fields()}
        found: dict[str, list[_Known]] = {}
        for expert in self.experts:
            column = ids[f"{expert}_rev"]
            found[expert] = [
                _Known(*sizes, revision=_revision(expert, next((name for name, fields in files if column in fields), None)))
                for sizes, files in zip(self._sizes, self._files, strict=True)
            ]
        return found

    # From the rows

    def _counts(self, expert: str) -> dict[int, Counter[str]]:
        """Fragment → revision → rows."""
        if expert not in self._counted:
            known = self._known(expert)
            counts = {one.fragment_id: Counter({one.revision: one.num_rows}) for one in known if one.revision is not None}
            unknown = {one.fragment_id for one in known if one.revision is None}
            if unknown:
                counts |= self._read(expert, unknown)
            self._counted[expert] = counts
        return self._counted[expert]

    def _read(self, expert: str, fragment_ids: set[int]) -> dict[int, Counter[str]]:
        column = f"{expert}_rev"
        counts: dict[int, Counter[str]] = {fragment: Counter() for fragment in fragment_ids}
        fragments = [one for one in self.fragments if one.fragment_id in fragment_ids]
        scanner = self.dataset.scanner(columns=[column], fragments=fragments, with_row_address=True, batch_size=_ROWS)
        for batch in scanner.to_batches():
            coded = batch[column].dictionary_encode()
            revisions = ["", *(str(value) for value in coded.dictionary.to_pylist())]
            codes = coded.indices.fill_null(-1).to_numpy().astype(np.int64) + 1
            addresses = batch["_rowaddr"].to_numpy() >> np.uint64(32)
            pairs, numbers = np.unique(np.stack([addresses.astype(np.int64), codes]), axis=1, return_counts=True)
            for fragment, code, number in zip(*pairs.tolist(), numbers.tolist(), strict=True):
                counts[fragment][revisions[code]] += number
        return counts


def _revision(expert: str, file: str | None) -> str | None:
    if file is None:
        return ""
    named = _WHOLE.fullmatch(file)
    return named[2] if named is not None and named[1] == expert else None
