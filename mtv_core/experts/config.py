"""What an expert is configured by. Imports neither torch nor transformers, since the command line reads it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from mtv_core.experts import phrase_column, phrases
from mtv_core.experts.filters import Filter, FilterConfig

# Fields of detection that came after the first labels were written.
_LATER = ("phrases_column", "text_threshold", "min_area", "filters")
_PROMPT = "a photo of a {}"

Dtype = Literal["float32", "bfloat16", "float16"]


class ExpertConfig(BaseModel, frozen=True, extra="forbid"):
    """What all experts have in common. Path and device do not change labels, so they are not in the revision."""

    model: str = Field(
        description="hub id (owner/name), folder with safetensors and processor files, one of a registry ('models:/NAME@ALIAS'), or "
        "an embedded one ('blocks:NAME')"
    )
    revision: str = Field(
        "main", description="hub only: commit (40 hex) or branch to track; a branch is resolved to its commit through the network"
    )
    accept_license: bool = Field(
        False,
        description="set it if the weights' licence suits what you do; asked for if that is non-commercial, of its own kind or not known",
    )
    dtype: Dtype = Field("float32", description="arithmetic of the model; it changes labels a little, so it is part of their revision")
    device: str = Field("auto", description="'auto' (the GPU if there is one), 'cpu', 'cuda', 'cuda:1'")

    def label_parameters(self) -> dict[str, Any]:
        """Every setting that changes labels, for the revision."""
        return self.model_dump(mode="json", exclude={"model", "revision", "accept_license", "device"})


class DepthExpertConfig(ExpertConfig, frozen=True, extra="forbid"):
    """Which depth model, and how its maps are kept."""

    model: str = Field(
        "depth-anything/Depth-Anything-V2-Small-hf",
        description="hub id, folder, 'models:/NAME@ALIAS' of a registry, or 'blocks:depth-r1', 'blocks:depth-r2'; Small is Apache-2.0, "
        "Base and Large are CC-BY-NC",
    )
    depth_size: int = Field(
        256, ge=16, le=4096, description="longer side of the stored map, px: the objective compares patches, not pixels"
    )
    input_size: int | None = Field(
        None, ge=14, le=4096, description="side the picture is resized to, px; None: as the model's processor says"
    )
    predicts: Literal["auto", "disparity", "depth"] = Field(
        "auto", description="what the model's output is; 'auto' knows Depth Anything, DPT and GLPN. Depth is stored as 1 / depth"
    )


class DetectionExpertConfig(ExpertConfig, frozen=True, extra="forbid"):
    """Which detector, what it is asked for, and which of its boxes are kept. Constants of CLOC (references §2) unless said otherwise."""

    model: str = Field(
        "google/owlv2-base-patch16-ensemble",
        description="hub id, folder, 'models:/NAME@ALIAS' of a registry, or 'blocks:detection-r1', 'blocks:detection-r2'; an OWLv2 or a "
        "Grounding DINO",
    )
    vocabulary: tuple[str, ...] | None = Field(
        None, description="phrases looked for in every picture; None: the noun phrases of its own caption"
    )
    phrases_column: str | None = Field(
        None,
        description="column of the table that names what is looked for in each picture, or 'meta.KEY' for a key of the samples' own JSON: "
        "a list of phrases, or text with one a line or separated by commas; an empty value: nothing is looked for in that picture",
    )
    max_phrases: int = Field(20, ge=1, le=1000, description="phrases of a caption or a column that are looked for, the first of them")
    prompt: str | tuple[str, ...] | None = Field(
        None,
        description="OWLv2: what a phrase is wrapped in for the text tower, '{}' is the bare phrase; of several their embeddings' mean is "
        f"taken; null: '{_PROMPT}'. Grounding DINO takes none",
    )
    threshold: float = Field(0.1, ge=0, lt=1, description="boxes with a lower score are dropped")
    text_threshold: float = Field(
        0.25, ge=0, lt=1, description="Grounding DINO: boxes are dropped too if no word of their phrase has a larger probability"
    )
    min_area: float = Field(0.0, ge=0, lt=1, description="boxes that cover a smaller share of the picture are dropped")
    nms: float = Field(0.3, gt=0, le=1, description="of two boxes of one phrase with a larger IoU only the better is kept; 1: both are")
    filters: tuple[FilterConfig, ...] = Field(
        (),
        description="rules against label noise, by name or with options, in order: duplicates, frame_filling, repeats, slivers, weak; "
        "the report counts what each drops",
    )
    max_boxes: int = Field(20, ge=1, le=1000, description="boxes kept a picture, the best")

    @field_validator("vocabulary")
    @classmethod
    def _phrases(cls, vocabulary: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if vocabulary is None:
            return None
        cleaned = tuple(dict.fromkeys(" ".join(phrase.split()) for phrase in vocabulary))
        if not cleaned or not all(cleaned):
            raise ValueError("vocabulary needs at least one phrase and none that is empty; leave it out to take phrases from captions")
        return cleaned

    @field_validator("prompt")
    @classmethod
    def _prompt(cls, prompt: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        prompts = () if prompt is None else (prompt,) if isinstance(prompt, str) else prompt
        if prompt == () or any(one.count("{}") != 1 or one.count("{") + one.count("}") != 2 for one in prompts):
            raise ValueError(
                f"prompt must hold '{{}}' once, where the phrase goes, and no other brace: '{_PROMPT}'; so must each of several"
            )
        return prompts[0] if len(prompts) == 1 else prompt  # one in a list is that one

    @field_validator("filters")
    @classmethod
    def _filters(cls, filters: tuple[Filter, ...]) -> tuple[Filter, ...]:
        names = [rule.name for rule in filters]
        if len(set(names)) < len(names):
            raise ValueError(f"filters has {max(names, key=names.count)!r} twice; give each once")
        return filters

    @field_validator("phrases_column")
    @classmethod
    def _column(cls, column: str | None) -> str | None:
        if column is not None and (not column or column.startswith(".") or column.endswith(".")):
            raise ValueError("phrases_column must be the name of a column of the table, or 'meta.KEY' for a key of the samples' own JSON")
        if column == phrase_column.META:
            raise ValueError("phrases_column 'meta' is all of a sample's own JSON; name a key: meta.KEY")
        return column

    @model_validator(mode="after")
    def _one_source(self) -> DetectionExpertConfig:
        if self.vocabulary is not None and self.phrases_column is not None:
            raise ValueError("phrases come from a vocabulary or from a column, not from both: leave out vocabulary or phrases_column")
        return self

    @property
    def prompts(self) -> tuple[str, ...]:
        """What a phrase is wrapped in for a text tower, one at least."""
        prompt = _PROMPT if self.prompt is None else self.prompt
        return (prompt,) if isinstance(prompt, str) else prompt

    def label_parameters(self) -> dict[str, Any]:
        """Every setting that changes labels; the version of the parser too, where phrases come from captions.

        A setting that came later stays out while it has its default, so that labels from before it are still known.
        """
        later = {name for name in _LATER if getattr(self, name) == type(self).model_fields[name].default}
        parameters = {key: value for key, value in super().label_parameters().items() if key not in later}
        if self.prompt is None:  # what it stands for: it was said so once
            parameters["prompt"] = _PROMPT
        if self.vocabulary is not None:
            return {key: value for key, value in parameters.items() if key != "max_phrases"}
        if self.phrases_column is not None:
            return {**parameters, "phrases": f"column-v{phrase_column.VERSION}"}
        return {**parameters, "phrases": f"captions-v{phrases.VERSION}"}
