"""Values of options that are typed as text."""

from __future__ import annotations

import pytest

from opq.cli.parsing import default_name, overrides_of, shapes
from opq.errors import OptionError


def test_shapes_of_several_arguments() -> None:
    assert shapes("sample=4,8x8 timestep= ids=24") == {"sample": (4, 8, 8), "timestep": (), "ids": (24,)}
    assert shapes("3,224,224") == (3, 224, 224)


def test_overrides_of_one_pattern_are_joined() -> None:
    assert overrides_of([], []) is None
    assert overrides_of(["*.bias"], ["a*:bits=5", "a*:max_bits=6", "b:c:bits=2"]) == {
        "*.bias": "keep",
        "a*": {"bits": 5, "max_bits": 6},
        "b:c": {"bits": 2},
    }


@pytest.mark.parametrize("text", ["a", "a:bits", "a:bits=", "a:bits=many", "a:bits=nan", "bits=3"])
def test_an_override_that_is_not_understood_is_shown(text: str) -> None:
    with pytest.raises(OptionError, match="--override is not understood") as error:
        overrides_of([], [text])
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("nets/a.safetensors", "a"),
        ("nets/folder/", "folder"),
        ("hf:ORG/NAME", "NAME"),
        ("timm:resnet18.a1_in1k?pretrained", "resnet18.a1_in1k"),
        ("weights.pth", "weights"),
        ("", "model"),
    ],
)
def test_the_output_is_named_after_the_source(source: str, name: str) -> None:
    assert default_name(source) == f"{name}.opq.safetensors"
