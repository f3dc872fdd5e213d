"""What the trained model is exported as. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, field_validator

Format = Literal["siglip", "timm"]


class ExportConfig(BaseModel, frozen=True, extra="forbid"):
    """Formats of the exported folder, and its name in the model registry."""

    formats: list[Format] = Field(
        ["siglip", "timm"],
        min_length=1,
        description="siglip: a folder SiglipModel and its processor load; timm: the image tower alone, in the sub-folder timm",
    )
    register_model: bool = Field(True, description="register the folder in MLflow and point the alias champion to it")
    name: str = Field("mtv", min_length=1, pattern=r"^[^/:%\"'\\]+$", description="name of the registered model, and title of its card")

    @field_validator("formats")
    @classmethod
    def _once(cls, formats: list[Format]) -> list[Format]:
        if len(set(formats)) < len(formats):
            raise ValueError("names a format twice; name each once")
        return formats
