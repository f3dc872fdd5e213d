"""Credentials from Prefect blocks: into the environment, into no message."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from tasks import credentials

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in credentials._TOGETHER | {"AWS_REGION", credentials.VARIABLE}:
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)


def test_nothing_is_asked_for_nothing() -> None:
    assert credentials.load() == []


@pytest.mark.prefect
def test_a_secret_of_a_server(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.blocks.system import Secret

    given = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": SECRET}
    Secret(value=json.dumps(given)).save("mtv-test-s3", overwrite=True, _sync=True)
    monkeypatch.setenv(credentials.VARIABLE, "secret/mtv-test-s3")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of somebody else")
    assert credentials.load() == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert "AWS_SESSION_TOKEN" not in os.environ
    monkeypatch.setenv(credentials.VARIABLE, "secret/mtv-nowhere")
    with pytest.raises(ValueError, match="cannot be loaded"):
        credentials.load()


def test_aws_credentials() -> None:
    """As prefect-aws has them."""
    block = SimpleNamespace(
        aws_access_key_id="AKIA", aws_secret_access_key=SecretStr(SECRET), aws_session_token=None, profile_name=None, region_name="eu"
    )
    assert credentials.variables(block, "aws-credentials/x") == {
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "eu",
    }


@pytest.mark.parametrize(
    "value", [SECRET, [SECRET], {"AWS_SECRET_ACCESS_KEY": [SECRET]}, {"LD_PRELOAD": SECRET}, {"aws_secret_access_key": SECRET}, 3]
)
def test_what_is_no_credential_is_refused_and_not_repeated(value: Any) -> None:
    with pytest.raises(ValueError, match="the block 'secret/x'") as refused:
        credentials.variables(SimpleNamespace(get=lambda: value), "secret/x")
    assert SECRET not in str(refused.value)
