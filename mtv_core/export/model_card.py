"""The model card: what the model learnt from and under which licences, what it can do by which protocol, how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from mtv_core.export.config import Format

# Licences of experts and data that put no condition on what is made with them beyond naming them.
PERMISSIVE = {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "isc"}
_SECRET = ("storage_options",)

_USE = {
    "siglip": """```python
from transformers import pipeline
classify = pipeline("zero-shot-image-classification", model="PATH/OF/THIS/FOLDER")
print(classify("picture.jpg", candidate_labels=["a red sphere", "a blue cube"], hypothesis_template="{}"))
```
`SiglipModel.from_pretrained` and `AutoProcessor.from_pretrained` load it too.
Pad texts to 64 tokens (`padding="max_length"`), use no attention mask.
""",
    "timm": """```python
import timm
backbone = timm.create_model("local-dir:PATH/OF/THIS/FOLDER/timm", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=backbone))
vectors = backbone(transform(picture)[None])  # backbone.forward_features gives the patches
```
""",
}


class ModelFacts(BaseModel, frozen=True, extra="forbid"):
    """What is known of a model beside its weights. Everything may be unknown."""

    run_id: str | None = None
    table: str | None = Field(None, description="URI of the table it learnt from")
    tag: str | None = Field(None, description="rows and labels of that table")
    experts: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="expert → revision, model, license, … of what gave its labels"
    )
    metrics: dict[str, float] = Field(default_factory=dict)
    protocols: dict[str, str] = Field(default_factory=dict, description="first part of a metric's name → protocol, version and data set")
    data_licenses: list[str] = Field(default_factory=list, description="licences of the pictures and texts, as far as the rows say")
    config: dict[str, Any] = Field(default_factory=dict, description="the run's resolved configuration")
    git_commit: str | None = None


def weights_license(facts: ModelFacts) -> str:
    """`apache-2.0` if every expert and the data are known to be permissive, else `other`: then the reader has to look at the list."""
    names = [expert.get("license", "unknown") for expert in facts.experts.values()] + (facts.data_licenses or ["unknown"])
    return "apache-2.0" if all(name.lower() in PERMISSIVE for name in names) else "other"


def render(facts: ModelFacts, name: str, formats: list[Format], errors: Mapping[str, float]) -> str:
    """The card, in Markdown with the front matter that model hubs read."""
    license_name = weights_license(facts)
    front = ["---", f"license: {license_name}", *(["license_name: see-below"] if license_name == "other" else [])]
    front += [f"library_name: {'transformers' if 'siglip' in formats else 'timm'}"]
    front += [f"pipeline_tag: {'zero-shot-image-classification' if 'siglip' in formats else 'image-feature-extraction'}", "---"]
    sections = [
        "\n".join(front),
        f"# {name}\n\nA vision transformer and a text tower trained by MTV on image-text contrast, self-distillation, masked prediction, "
        "grounding and depth at once. The last two learn from labels that expert models gave.",
        "## Use\n\n" + "\n".join(_USE[format_name] for format_name in formats),
        "## Where it comes from\n\n" + _origin(facts),
        "## Licences\n\n" + _licenses(facts, license_name),
        "## Results\n\n" + _results(facts),
        "## Checked\n\n" + "\n".join(f"- `{key}`: differs from the trained model by at most {value:.1e}" for key, value in errors.items()),
    ]
    if facts.config:
        shown = json.dumps(_without_secrets(facts.config), indent=2, ensure_ascii=False)
        sections.append(f"## Configuration\n\n<details><summary>all of it</summary>\n\n```json\n{shown}\n```\n</details>")
    return "\n\n".join(sections) + "\n"


def _origin(facts: ModelFacts) -> str:
    known = {"run": facts.run_id, "table": facts.table, "rows and labels (tag)": facts.tag, "code (git commit)": facts.git_commit}
    lines = [f"- {what}: `{value}`" for what, value in known.items() if value]
    for expert, source in facts.experts.items():
        lines.append(f"- {expert} labels: `{source.get('model', 'unknown model')}`, revision `{source.get('revision', 'unknown')}`")
    return "\n".join(lines) or "Not recorded."


def _licenses(facts: ModelFacts, license_name: str) -> str:
    lines = [f"- {expert} expert `{s.get('model', 'unknown model')}`: {s.get('license', 'unknown')}" for expert, s in facts.experts.items()]
    lines.append(f"- data: {', '.join(facts.data_licenses) or 'see the license column of the table'}")
    if license_name == "other":
        lines.append("\nOne of these is not permissive or not known: find out whether it allows what you do before you use the weights.")
    return "\n".join(lines)


def _results(facts: ModelFacts) -> str:
    shown = [name for name in facts.metrics if f"{name}_ci95" in facts.metrics and not name.startswith(("baseline/", "gain/"))]
    if not shown:
        return "Not evaluated."
    rows = ["| metric | this model | untrained | protocol |", "|---|---|---|---|"]
    for name in shown:
        protocol = facts.protocols.get(name.split("/")[0], "not recorded")
        rows.append(f"| {name} | {_number(facts.metrics, name)} | {_number(facts.metrics, f'baseline/{name}')} | {protocol} |")
    return "\n".join([*rows, "", "± is half of a 95 % interval: over seeds for probes, over pictures elsewhere."])


def _number(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return "–"
    return f"{metrics[name]:.3f}" + (f" ± {metrics[f'{name}_ci95']:.3f}" if f"{name}_ci95" in metrics else "")


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_secrets(inner) for key, inner in value.items() if key not in _SECRET}
    return [_without_secrets(inner) for inner in value] if isinstance(value, list) else value
