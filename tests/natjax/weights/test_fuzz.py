"""Many programs and damaged files: our error or a result, within memory of the file's size.

They run in processes of their own, without the checks of types at run time, which would take longer
than the reading. A failure names the seed (`fuzz_weights`).
"""

import json
import pathlib
import subprocess
import sys

import fuzz_weights
import pytest


def fuzz(kind, count, first=0):
    folder = pathlib.Path(fuzz_weights.__file__).parent
    command = [sys.executable, str(folder / "fuzz_weights.py"), kind, str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["cases"] == count
    # Neither refuses all, nor takes all, nor always for the same reason.
    assert result["read"] > count / 100
    assert result["kinds of refusal"] > 30
    return result


def test_programs_by_a_grammar():
    fuzz("programs", 10_000)


def test_damaged_files():
    fuzz("files", 2_000)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_a_million_programs(part):
    fuzz("programs", 100_000, 10**6 + part * 100_000)


@pytest.mark.slow
def test_a_hundred_thousand_damaged_files():
    fuzz("files", 100_000, 10**6)


def test_the_fuzzer_notices_a_foreign_error(monkeypatch):
    def broken(source):
        raise TypeError("len() of unsized object")

    monkeypatch.setattr(fuzz_weights, "read_torch", broken)
    with pytest.raises(SystemExit, match=r"seed 0: TypeError: len\(\) of unsized object"):
        fuzz_weights.main("programs", 0, 1, None)


def test_the_fuzzer_notices_memory(monkeypatch):
    monkeypatch.setattr(fuzz_weights, "read_torch", lambda source: bytearray(2**26))
    with pytest.raises(SystemExit, match="seed 0: AssertionError"):
        fuzz_weights.main("programs", 0, 1, None)
