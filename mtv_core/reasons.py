"""Every reason a sample or shard is refused for: at which step, what it means, and what a person can do.

One list for the funnel of the report, for `mtv failures`, for the failure budget and for the documentation. Filters name their own reasons;
an error that is none of these is a defect of MTV or of an expert.
"""

from __future__ import annotations

from dataclasses import dataclass

from mtv_core.report import Reject, RejectClass

# Steps of the funnel, in order. Filters come between captions and duplicates.
SAMPLE, IMAGE, CAPTIONS = "whole sample", "readable image", "captions"
EXACT, NEAR, PLACEHOLDER, LEAK, FORGOTTEN = "exact duplicates", "near duplicates", "placeholders", "evaluation leaks", "forgotten"
SHARD, LABEL, UNKNOWN = "shard", "label", "errors"


@dataclass(frozen=True)
class Reason:
    """One reason."""

    step: str  # of the funnel; SHARD for whole shards, LABEL for rows that an expert failed on
    what: str
    do: str
    failure: bool = True  # whether a failure budget counts it: something is broken, as opposed to not wanted


_FIX = "fix the sample and run again, or leave it"
_NOTHING = "nothing: this is what was asked for"

REASONS: dict[str, Reason] = {
    "NoImage": Reason(SAMPLE, "the sample has no image", "add it; for other names of files or columns set the source's `columns.image`"),
    "TooLarge": Reason(SAMPLE, "the image file is larger than is read", "raise ingest.max_bytes and retry", False),
    "DuplicateKey": Reason(SAMPLE, "a key occurs a second time in its shard; the first is in the table", "give every sample its own key"),
    "BadRow": Reason(
        SAMPLE,
        "the reader cannot make sense of a row: null, NaN, a wrong type",
        "fix the row and run again (labels: import the file again)",
    ),
    "UnsafePath": Reason(
        SAMPLE, "a file outside its folder or tar (absolute, `..`), a symlink or a device", "pack the file itself, by a relative name"
    ),
    "EmptyImage": Reason(IMAGE, "the image file has no bytes", _FIX),
    "UnsupportedImage": Reason(IMAGE, "the file is no image of a known format, whatever its name says", "convert it, or leave it"),
    "BrokenImage": Reason(IMAGE, "the image is cut or damaged", "fetch it again and run again, or leave it"),
    "TooManyPixels": Reason(IMAGE, "the image has more pixels than are decoded", "raise ingest.max_pixels and retry", False),
    "TooSmall": Reason(IMAGE, "a side of the image is shorter than allowed", "lower ingest.min_side and retry, or leave it", False),
    "TooElongated": Reason(
        IMAGE, "the image is longer for its width than allowed", "raise ingest.max_aspect and retry, or leave it", False
    ),
    "NoCaption": Reason(
        CAPTIONS, "the sample has no caption, or an empty one", "add one; for other names of columns set the source's `columns.captions`"
    ),
    "CaptionNotUtf8": Reason(CAPTIONS, "the caption is not UTF-8", "save it as UTF-8 and run again"),
    "CaptionTooShort": Reason(
        CAPTIONS, "no caption is as long as asked for", "lower the limit in `ingest.captions` and retry, or leave it", False
    ),
    "CaptionTooLong": Reason(CAPTIONS, "every caption is longer than allowed", "raise the limit in `ingest.captions` and retry", False),
    "BoilerplateCaption": Reason(
        CAPTIONS, "the caption says nothing of the picture: a file name, 'image', a notice", "nothing, or change `ingest.captions`", False
    ),
    "Duplicate": Reason(EXACT, "the same picture is in the table already; `survivor` is its uid", _NOTHING, False),
    "NearDuplicate": Reason(NEAR, "almost the same picture is in the table; `survivor` is its uid", _NOTHING, False),
    "Placeholder": Reason(PLACEHOLDER, "one of many copies of an 'image not available' picture", _NOTHING, False),
    "EvaluationLeak": Reason(LEAK, "the picture is in an evaluation set; `survivor` names which and where", _NOTHING, False),
    "Forgotten": Reason(FORGOTTEN, "`mtv forget` removed it, and keeps it out", _NOTHING, False),
    "TruncatedShard": Reason(
        SHARD, "the shard ends too early or is damaged inside; what comes before is in the table", "fetch it again and run again"
    ),
    "EmptyShard": Reason(SHARD, "the shard holds no sample", "look whether its files are named KEY.jpg and KEY.txt"),
    "MissingColumns": Reason(SHARD, "the shard lacks a column for the image or the caption", "name them in the source's `columns`"),
    "UnreadableShard": Reason(SHARD, "the shard is not what its name says, or is corrupt", "fetch it again, or set the source's `format`"),
    "Unreadable": Reason(SHARD, "the shard could not be read just now", "run again: it is tried again"),
    "WorkerKilled": Reason(
        SHARD, "reading the shard killed worker after worker", "raise compute.memory_limit or lower ingest.max_pixels, and run again"
    ),
    "UnreadableImage": Reason(LABEL, "an expert cannot read the stored image", "read the message; report it if the image is whole"),
    "BadPhrases": Reason(
        LABEL, "label.detection.phrases_column holds no phrases for the row, but a number or an object", "fix the value, or leave it"
    ),
    "UnknownUid": Reason(
        LABEL, "imported labels of a uid that the table does not have", "nothing, or import them into the right table", False
    ),
    "DuplicateUid": Reason(LABEL, "imported labels of a uid that came before in the file", "keep one of them, and import again"),
    "BadBoxes": Reason(LABEL, "imported boxes that cannot be taken: outside, without area or phrase", "fix the file and import it again"),
    "BadDepth": Reason(LABEL, "an imported depth map that cannot be taken: wrong shape, no value", "fix the map and import again"),
}


# What trying again does not change: another sample has the place, or it is meant to stay out.
SETTLED = frozenset(
    {
        *("Duplicate", "NearDuplicate", "Placeholder", "EvaluationLeak", "Forgotten", "DuplicateKey"),
        *("UnknownUid", "DuplicateUid", "BadBoxes", "BadDepth"),
    }
)


def describe(error: str, stage: str = "ingest") -> Reason:
    """What is known of a reason; of one that is not in the list, that it is an error of ours or of an expert."""
    if error in REASONS:
        return REASONS[error]
    if stage != "ingest":
        return Reason(LABEL, f"the {stage} expert failed on the picture", "read the message; retry with another expert or settings")
    return Reason(UNKNOWN, "an error of MTV itself", "read the message, and report it")


def counts_as_failure(reject: Reject) -> bool:
    """Whether something is broken, as opposed to a sample that is not wanted. Filters refuse what is not wanted."""
    if reject.reject_class is not RejectClass.DATA:
        return True
    return reject.error in REASONS and REASONS[reject.error].failure
