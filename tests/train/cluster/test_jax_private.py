"""What natjax uses of JAX without a public name is there, and used in one file alone."""

import pathlib
import re
import subprocess
import sys

import pytest
from jobs import free_port

import natjax

ROOT = pathlib.Path(natjax.__file__).parent
CLIENT = """
import sys
import jax
from natjax.train.cluster.jax_private import coordination_client

assert coordination_client() is None
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 1, 0)
client = coordination_client()
client.key_value_set("natjax/test/1", "a value")
assert client.key_value_dir_get("natjax/test") == [("natjax/test/1", "a value")]
client.wait_at_barrier("natjax/all", 5000)
"""


@pytest.mark.oldest
def test_the_client_of_the_coordination_service():
    command = [sys.executable, "-c", CLIENT, str(free_port())]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def test_nothing_else_uses_private_names_of_jax():
    private = re.compile(r"\b(?:from|import) jax(?:lib)?(?:\.\w+)*\._|\bjax\.(?:\w+\.)*_[a-z]")
    users = {
        path.name
        for package in (ROOT, ROOT / "kernels", ROOT / "train")  # the last two may be links
        for path in package.rglob("*.py")
        if private.search(path.read_text())
    }
    # jax-triton's rule for dropping kernels is mended where jax-triton is called, and Pallas'
    # interpreter for GPUs, which tests run kernels in, is told of an effect where it is set up.
    assert users == {"jax_private.py", "library.py", "interpreter.py"}
