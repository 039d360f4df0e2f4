"""A pickled model is the path of its bundle, and options."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pools import TEXTS

from stonnx import SentenceTransformer
from stonnx._errors import BundleIntegrityError, ModelNotFoundError


def test_a_pickled_model_is_its_path_and_options(minilm_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(minilm_bundle.parent)
    model = SentenceTransformer(
        minilm_bundle.name, prompts={"q": "ask: "}, default_prompt_name="q", truncate_dim=50, threads=1
    )
    model.max_seq_length = 12
    model.similarity_fn_name = "dot"
    message = pickle.dumps(model)
    assert len(message) < 5000
    monkeypatch.chdir("/")
    twin = pickle.loads(message)
    assert type(twin) is SentenceTransformer
    for name in ("prompts", "default_prompt_name", "truncate_dim", "max_seq_length", "similarity_fn_name", "device"):
        assert getattr(twin, name) == getattr(model, name)
    assert twin.info.threads == 1
    np.testing.assert_array_equal(twin.encode(TEXTS), model.encode(TEXTS))
    again = copy.deepcopy(twin)
    again.prompts["q"] = ""
    assert twin.prompts["q"] == "ask: "


def test_a_pickled_model_whose_bundle_has_gone_or_changed(
    minilm: Any, minilm_bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "bundle").symlink_to(other_bundle)
    state = minilm.__getstate__()
    twin = SentenceTransformer.__new__(SentenceTransformer)
    with pytest.raises(BundleIntegrityError, match="is another bundle than when the model was pickled"):
        twin.__setstate__(state | {"_directory": tmp_path / "bundle"})
    with pytest.raises(ModelNotFoundError, match=r"is not a bundle here\. A pickled model is the path of its bundle"):
        twin.__setstate__(state | {"_directory": tmp_path})
    twin.__setstate__(state)
    assert twin.info.directory == str(minilm_bundle.resolve())
