"""What setup.cfg asks for can be installed together."""

import configparser
import pathlib
import re

import pytest

SETUP = configparser.ConfigParser()
SETUP.read(pathlib.Path(__file__).parents[1] / "setup.cfg")


def jax_versions(requirements):
    """What is asked of jax's version, whatever its extra."""
    (found,) = re.findall(r"^jax(?:\[\w+\])?([<>=!].*)$", requirements, re.MULTILINE)
    return set(found.split(","))


@pytest.mark.parametrize("extra", ["cuda", "tpu"])
def test_an_accelerator_wants_the_jax_of_the_library(extra):
    # A higher floor would leave out the oldest supported Python, which has no newer jax.
    asked = jax_versions(SETUP["options.extras_require"][extra])
    assert asked == jax_versions(SETUP["options"]["install_requires"])
