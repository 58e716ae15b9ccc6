"""What users of other adapters complain about, on both of ours alike."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.engine.local.checkpoints import tiny_bert
from tests.integrations.adapters.frameworks import EACH, Adapter, Framework

from nimbed import FakeEmbedder
from nimbed.errors import CheckpointError, ConfigurationError, UnknownModelError, install_line

SECRET = "nvapi-very-secret"


@EACH
def test_a_wrong_model_is_told_at_the_first_call_not_before(framework: Framework) -> None:
    ours = framework.make(model="./no-such-folder")
    with pytest.raises(UnknownModelError, match="no-such-folder"):
        ours.query("a")


@EACH
@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda one: one.model_copy(),
        lambda one: one.model_copy(update={"truncate": "END"}),
    ],
)
def test_a_copy_shares_the_weights_and_leaves_the_original_its_own(
    framework: Framework, copied: Any
) -> None:
    ours = framework.make().made
    shared = ours.embedder
    other = copied(ours)
    assert other.embedder is shared
    setattr(other, framework.model, "./no-such-folder")
    with pytest.raises(UnknownModelError):
        Adapter(framework, other).query("a")
    assert ours.embedder is shared


@EACH
def test_dimensions_are_those_of_the_card(framework: Framework) -> None:
    assert len(framework.from_embedder(FakeEmbedder(), dimensions=32).query("a")) == 32
    for wrong in (48, 0, -1, 65):
        ours = framework.from_embedder(FakeEmbedder(), dimensions=wrong)
        with pytest.raises(ConfigurationError, match="it offers 16, 32, 64"):
            ours.query("a")
        with pytest.raises(ConfigurationError, match="it offers 16, 32, 64"):
            ours.passages(["a"])


@EACH
def test_nvidias_key_goes_to_nvidia_alone(
    framework: Framework, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NIMBED_API_KEY", raising=False)
    monkeypatch.setenv("NVIDIA_API_KEY", SECRET)
    assert framework.make(model="m", base_url="http://localhost:9").made.api_key is None
    hosted = framework.make(model="m", base_url="https://integrate.api.nvidia.com").made
    assert hosted.api_key is not None
    assert hosted.api_key.get_secret_value() == SECRET


@EACH
def test_a_missing_framework_names_its_pip_line(framework: Framework) -> None:
    code = (
        f"import sys; sys.modules[{framework.needs!r}] = None\n"
        f"try: import {framework.package}\n"
        f"except ImportError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    extra = framework.package.removeprefix("nimbed_").replace("_", "-")
    assert install_line(extra) in said.stdout


@EACH
def test_a_folder_is_told_its_card_and_a_task_its_prompt(
    framework: Framework, tmp_path: Path
) -> None:
    folder = tiny_bert(tmp_path / "model", pooling="cls", prompts={"query": "q: ", "sort": "s: "})
    sorting = framework.make(model=str(folder), prompt_name="sort")
    assert sorting.query("the river") == sorting.passages(["the river"])[0]
    assert sorting.made.spec != framework.make(model=str(folder)).made.spec
    with pytest.raises(CheckpointError, match="pools by cls"):
        framework.make(model=str(folder), card="minilm").query("a")
