"""All commands of ``natjax`` in one parser, and what becomes of their errors.

Exit codes: 0 done, 1 something failed on the way, 2 wrong use or a full disk, 130 interrupted, 143
stopped by SIGTERM. Each command imports what it needs when it runs, so that help comes at once.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from natjax.cli.attention import add_attention
from natjax.cli.convert import add_convert
from natjax.cli.models import add_models
from natjax.cli.tune import add_tune
from natjax.train.cli.data import add_data
from natjax.train.cli.evaluate import add_eval
from natjax.train.cli.export import add_export
from natjax.train.cli.predict import add_predict
from natjax.train.cli.train import add_train
from natjax.train.cluster import processes
from natjax.train.errors import Stopped, UserError, explain

# Modules that come with other extras than natjax[train].
_EXTRAS = {"cv2": "dense", "PIL": "images", "flatbuffers": "export"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def run_command(argv: Sequence[str]) -> int:
    """Run one command and return the exit code.

    Args:
      argv: Arguments without the program's name.
    """
    try:
        args = _parser().parse_args(argv)
        return args.command(args)
    except SystemExit as stop:  # help, or a flag that tyro has explained
        return stop.code if isinstance(stop.code, int) else 2
    except Stopped as stop:
        return _fail(str(stop), 128 + stop.signal)
    except KeyboardInterrupt as interrupt:
        return _fail(str(interrupt), 130) if interrupt.args else 130
    except ModuleNotFoundError as error:
        return _missing_module(error)
    except Exception as error:
        explained = explain(error)
        if explained is None:
            raise
        return _fail(*explained)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"natjax: {processes.label()}{message}\n")
    return code


def _missing_module(error: ModuleNotFoundError) -> int:
    if (error.name or "").startswith("natjax"):
        raise error
    extra = _EXTRAS.get(error.name or "", "train")
    return _fail(f"{error.name} is missing; install it with: pip install 'natjax[{extra}]'", 2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="natjax", description="Neighborhood Attention Transformers in JAX.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_train(commands)
    add_eval(commands)
    add_predict(commands)
    add_attention(commands)
    add_export(commands)
    add_convert(commands)
    add_data(commands)
    add_models(commands)
    add_tune(commands)
    return parser
