"""The dataset card of a table, `README.md` in the form that the Hugging Face Hub reads: what is in it, where from, and what was done to it.

Everything in it is counted from the table, its ledger and its refusals as they are now, so it stays true after deduplication, retries and
takedowns. Nothing in it is a guess: what nobody said is called unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pyarrow as pa
import yaml

from mtv_core.charts import number, share, size
from mtv_core.data.funnel import AGAIN, ROWS, Step, funnel
from mtv_core.data.schema import SAMPLES
from mtv_core.data.stats import Histogram, IngestStats, SampleStats, Tally
from mtv_core.ingest_charts import ratio
from mtv_core.ingest_config import IngestConfig
from mtv_core.store.rejects import Selection
from mtv_core.store.summary import Summary
from mtv_core.store.table import Table

_SIZES = (
    (1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"), (10_000_000_000, "1B<n<10B"), (100_000_000_000, "10B<n<100B"),
)  # fmt: skip
# The Hub's identifiers of licences that images come under; everything else is 'other' there.
_LICENSES = {
    **{name: name for name in ("apache-2.0", "mit", "odc-by", "cc0-1.0")},
    **{f"cc-by-{version}": f"cc-by-{version}" for version in ("2.0", "3.0", "4.0")},
    **{f"cc-by-{kind}-4.0": f"cc-by-{kind}-4.0" for kind in ("sa", "nd", "nc", "nc-sa", "nc-nd")},
    "cc-by-sa-3.0": "cc-by-sa-3.0",
    "cc0": "cc0-1.0",
    "publicdomain": "cc0-1.0",
}
_MEANING = {
    "uid": "hash of the image as received and its first caption; stays the same however the data is laid out",
    "image": "JPEG, RGB, upright",
    "width": "of `image`, px",
    "height": "of `image`, px",
    "caption": "the caption that counts",
    "captions": "all captions with their kind: `web` as received, `synthetic` written by a model",
    "caption_raw": "the first caption as received",
    "source": "name of the source",
    "shard": "id of the shard",
    "key": "name of the sample in its shard",
    "url": "where the image came from, where that is known",
    "license": "as the source says",
    "meta": "the sample's own JSON, as received",
    "sha256": "of the image as received",
    "phash": "64-bit perceptual hash",
    "split": "`train`, or `held_out` for images that no training sees",
    "ingest_id": "which ingest brought it",
}


def card(table: Table, config: IngestConfig, rows: Summary) -> str:
    """The whole document.

    Args:
        table: its ledger and refusals are read.
        config: of the latest ingest.
        rows: what the rows look like.
    """
    name = table.uri.rstrip("/").rsplit("/", 1)[-1]
    body = [
        f"# {name}\n\n{_description(rows)}",
        f"## Sources\n\n{_sources(rows.stats)}",
        f"## Licences\n\n{_licenses(rows.stats)}",
        f"## Processing\n\n{_processing(config)}",
        f"## From shards to rows\n\n{_funnel(_steps(table, config, rows.stats.rows))}",
        f"## Statistics\n\n{_statistics(rows)}",
        f"## Duplicates and evaluation data\n\n{_duplicates(table, config)}",
        f"## Columns\n\n{_columns()}",
        f"## Known limitations\n\n{_limitations(rows.stats, config)}",
        f"## Takedown\n\n{_TAKEDOWN}",
    ]
    front = _yaml(front_matter(name, rows))
    return f"---\n{front}---\n\n" + "\n\n".join(body) + "\n"


def front_matter(name: str, rows: Summary) -> dict[str, Any]:
    """What the Hub reads."""
    stats = rows.stats
    licenses = [license_name for license_name, _ in stats.licenses.top(20)]
    known = sorted({_LICENSES[one.lower()] for one in licenses if one.lower() in _LICENSES})
    all_known = stats.licenses.exact and stats.licenses.total == stats.rows and all(one.lower() in _LICENSES for one in licenses)
    splits = [{"name": split, "num_examples": count} for split, count in sorted(stats.splits.items(), reverse=True)]
    return {
        "pretty_name": name,
        "license": (known[0] if len(known) == 1 else known) if all_known and known else "other" if stats.licenses.total else "unknown",
        "size_categories": [next((label for limit, label in _SIZES if stats.rows < limit), "n>1T")],
        "task_categories": ["image-to-text", "text-to-image", "zero-shot-image-classification", "feature-extraction"],
        "tags": ["image-text", "lance", "mtv"],
        "dataset_info": {
            "features": [_feature(field) for field in SAMPLES],
            "splits": splits,
            "dataset_size": rows.image_bytes,
        },
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "samples.lance/**"}]}],
    }


def _feature(field: pa.Field) -> dict[str, Any]:
    if field.name == "image":
        return {"name": field.name, "dtype": "image"}
    if pa.types.is_list(field.type):
        inner = field.type.value_type
        return {"name": field.name, "list": [{"name": part.name, "dtype": str(part.type)} for part in inner]}
    return {"name": field.name, "dtype": str(field.type)}


def _description(rows: Summary) -> str:
    stats = rows.stats
    captions = sum(one.total or 0 for one in stats.captions.values())
    kinds = ", ".join(f"{number(one.total or 0)} {kind}" for kind, one in sorted(stats.captions.items(), reverse=True))
    held_out = stats.splits.get("held_out", 0)
    return (
        f"{number(stats.rows)} images with {number(captions)} captions ({kinds}), {size(rows.image_bytes)} of JPEGs, in one "
        f"[Lance](https://lance.org) table, `samples.lance`. {number(held_out)} rows ({share(held_out, stats.rows)}) are `held_out` by the "
        "hash of their image and are not trained on. Made by the ingest of MTV, which writes this card anew each time."
    )


def _table(head: list[str], rows: list[list[str]], words: Collection[int] = ()) -> str:
    """A Markdown table. The first column has words, the others numbers but for those named."""
    rule = "|".join("---:" if i and i not in words else "---" for i in range(len(head)))
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(_cell(one) for one in row)} |" for row in rows)])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _sources(stats: SampleStats) -> str:
    rows = [[name, number(count), share(count, stats.rows)] for name, count in sorted(stats.sources.items(), key=lambda pair: -pair[1])]
    said = _table(["source", "rows", "share"], rows)
    if not stats.domains.total:
        return f"{said}\n\nNo row says where on the web its image came from."
    known = share(stats.domains.total, stats.rows)
    return f"{said}\n\n{known} of the rows say where on the web the image came from:\n\n{_tally('domain', stats.domains)}"


def _tally(name: str, tally: Tally) -> str:
    top = tally.top(10)
    rest = 1 - sum(part for _, part in top)
    rows = [[value, share(part, 1)] for value, part in top] + ([["others", share(rest, 1)]] if rest > 1e-9 else [])
    note = "" if tally.exact else "\n\nThere are more than 1024 different ones; the shares are estimated from 512 rows."
    return _table([name, "share"], rows) + note


def _licenses(stats: SampleStats) -> str:
    unknown = stats.rows - stats.licenses.total
    if not stats.licenses.total:
        return "No source says under which licence its images are. Having them here grants no right to use them."
    said = f"As the sources say; nobody has checked it. {share(stats.licenses.total, stats.rows)} of the rows have one"
    rest = f", of {number(unknown)} rows the licence is unknown" if unknown else ""
    return f"{said}{rest}.\n\n{_tally('licence', stats.licenses)}"


def _processing(config: IngestConfig) -> str:
    return (
        f"Images are stored upright, in sRGB, with a long side of at most {config.max_side} px; a JPEG that is so already is stored byte "
        f"for byte, others are encoded as JPEG of quality {config.quality}. Captions are normalised, and kept as received beside. The "
        f"configuration of the latest ingest, revision `{config.revision()}`:\n\n```yaml\n{public(config)}```"
    )


def public(config: IngestConfig) -> str:
    """The configuration as YAML, evaluation sets by the last part of their address only: where they lie is nobody's business."""
    document = config.model_dump(mode="json")
    for one in document["decontaminate"]["sets"]:
        one.update({name: one[name].rstrip("/").rsplit("/", 1)[-1] for name in ("uri", "images") if one[name]})
    return _yaml(document)


def _yaml(document: dict[str, Any]) -> str:
    """By libyaml, where PyYAML has it: five times as fast."""
    return str(yaml.dump(document, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False, allow_unicode=True))


def _steps(table: Table, config: IngestConfig, rows: int) -> list[Step]:
    """The funnel of the whole table, from its ledger and its refusals."""
    entries = table.ledger.read().select(["shard", "rows_in"])
    last = dict(zip(*(column.to_pylist() for column in entries.columns), strict=True))  # a retry adds an entry of the same shard
    refused: dict[str, int] = {}
    for group in table.rejects.groups(Selection(stage="ingest", samples=True), examples=0):
        refused[group.error] = refused.get(group.error, 0) + group.rows
    known = rows + sum(refused.values())
    received = max(sum(last.values()), known)
    steps = funnel(IngestStats(received=received, refused=refused, again=received - known, added=rows), config.filters)
    names = {AGAIN: "rows already, or removed since", ROWS: "rows now"}
    return [step.model_copy(update={"name": names.get(step.name, step.name)}) for step in steps]


def _funnel(steps: list[Step]) -> str:
    rows = [
        [
            step.name,
            number(step.left),
            f"−{number(step.lost)}" if step.lost else "",
            ", ".join(f"{reason} {number(count)}" for reason, count in step.reasons.items()),
        ]
        for step in steps
    ]
    return _table(["step", "left", "taken", "why"], rows, words={3})


def _statistics(rows: Summary) -> str:
    stats = rows.stats
    lines: list[tuple[str, Histogram]] = [("width, px", stats.width), ("height, px", stats.height)]
    for kind in sorted(stats.captions, reverse=True):
        lines += [
            (f"{kind} captions: letters", stats.characters[kind]),
            (f"{kind} captions: words", stats.words[kind]),
            (f"{kind} captions a sample, where there are any", stats.captions[kind]),
        ]
    found = [[name, *_quantiles(one, lambda value: number(round(value)))] for name, one in lines]
    found.insert(2, ["width / height", *_quantiles(stats.aspect, ratio)])
    mean = f" An image has {size(rows.image_bytes / stats.rows)} on average." if stats.rows else ""
    note = "Quantiles are at most 2.2 % too small; words are what spaces part."
    return f"{_table(['', 'smallest', '5 %', 'median', '95 %', 'largest'], found)}\n\n{note}{mean}"


def _quantiles(one: Histogram, say: Callable[[float], str]) -> list[str]:
    values = [one.low, *(one.quantile(q) for q in (0.05, 0.5, 0.95)), one.high]
    return ["" if value is None else say(value) for value in values]


def _duplicates(table: Table, config: IngestConfig) -> str:
    counts = table.rejects.counts("ingest")
    dedup, clean = config.dedup, config.decontaminate
    said = [f"- Exact: an image whose received bytes are in the table already is refused: {number(counts.get('Duplicate', 0))}."]
    if dedup.near_threshold is None:
        said.append("- Near duplicates are not looked for.")
    else:
        near = number(counts.get("NearDuplicate", 0))
        said.append(f"- Near: an image whose 64-bit perceptual hash differs in at most {dedup.near_threshold} bits is refused: {near}.")
    if dedup.placeholders is not None:
        copies = number(counts.get("Placeholder", 0))
        said.append(
            f"- Placeholders: a picture of {dedup.placeholders.min_copies} copies and more with differing captions is refused: {copies}."
        )
    if clean.sets:
        names = ", ".join(one.name or one.uri.rstrip("/").rsplit("/", 1)[-1] for one in clean.sets)
        how = "with the same bytes" if clean.threshold is None else f"that differ in at most {clean.threshold} bits of the hash"
        leaks = number(counts.get("EvaluationLeak", 0))
        said.append(f"- Evaluation data: images {how} from one of {names} are refused: {leaks}.")
    else:
        said.append("- Evaluation data: no evaluation sets are configured, so images of benchmarks may be in here.")
    return "\n".join(said)


def _columns() -> str:
    rows = [[f"`{field.name}`", str(field.type).replace("<", "\\<"), _MEANING[field.name]] for field in SAMPLES]
    experts = (
        "After labelling there are `depth`, `depth_rev`, `boxes`, `phrases`, `scores` and `detection_rev` too: labels of expert models."
    )
    return f"{_table(['column', 'type', 'what it is'], rows, words={1, 2})}\n\n{experts}"


def _limitations(stats: SampleStats, config: IngestConfig) -> str:
    said = [
        "Captions are what the sources have. Nobody has checked that they are true, and web captions are often loose.",
        "People, private or offensive content and marks of authors are not looked for.",
        "The languages of captions are not told apart" + _and_filters(config) + ".",
        "A perceptual hash misses crops, mirrored and strongly edited copies, and may take pictures of one scene for copies.",
    ]
    unknown = stats.rows - stats.licenses.total
    if unknown:
        said.append(f"The licence of {number(unknown)} images ({share(unknown, stats.rows)}) is unknown.")
    synthetic = stats.captions.get("synthetic")
    if synthetic is not None:
        said.append(f"{number(synthetic.total or 0)} captions were written by a model and repeat its mistakes.")
    if stats.sources:
        name, most = max(stats.sources.items(), key=lambda pair: pair[1])
        if len(stats.sources) > 1 and most > 0.5 * stats.rows:
            said.append(f"{share(most, stats.rows)} of the rows are of one source, {name}.")
    return "\n".join(f"- {one}" for one in said)


def _and_filters(config: IngestConfig) -> str:
    return ", but a filter looks at their script" if any(one.name == "script" for one in config.filters) else ""


_TAKEDOWN = """\
Whoever holds rights in a picture, or is on it, can have it removed for good: by its uid, its file, the key of its sample or its URL.
Whoever keeps this table runs

```
mtv forget --table TABLE --url https://…
```

which deletes the rows, compacts the table, removes old versions and previews, drops the tags that contained them and names their
successors. A keyed hash stays behind and keeps the picture out of later ingests. Copies that others made are out of its reach; who passes
the table on should pass on removals too. Requests go to whoever you have this table from."""
