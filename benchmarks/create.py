"""Time to make a model with freshly drawn parameters, all numbers at once and layer by layer.

    python benchmarks/create.py                   # nat_tiny
    python benchmarks/create.py --model nat_base

Each figure is of a process of its own, with everything imported and JAX's devices started, and
without JAX's persistent cache: the first model, which compiles, and the second. CPU seconds beside
those of the clock tell what a quieter machine would take.
"""

import argparse
import json
import os
import subprocess
import sys
import time


def main() -> None:
    """Measure both ways, in turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="nat_tiny")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", choices=tuple(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.worker, args.model)))
        return
    print("| way | first: s | CPU s | second: s | CPU s |\n| --- | --- | --- | --- | --- |")
    runs = {way: [] for way in WAYS}
    for _ in range(args.repeats):
        for way, found in runs.items():
            found.append(start(way, args.model))
    for way, found in runs.items():
        best = [min(values) for values in zip(*found, strict=True)]
        print(f"| {way} | {' | '.join(f'{value:.2f}' for value in best)} |")


def start(way: str, model: str) -> list[float]:
    """Figures of one process."""
    command = [sys.executable, __file__, "--worker", way, "--model", model]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout)


def measure(way: str, model: str) -> list[float]:
    """Seconds and CPU seconds of the first and of the second model."""
    import jax

    jax.block_until_ready(jax.random.key(0))
    WAYS[way]("nat_micro", abstract=True)  # imports
    figures = []
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(WAYS[way](model))
        figures += [time.perf_counter() - wall, time.process_time() - cpu]
    return figures


def at_once(model: str, *, abstract: bool = False) -> object:
    """What `natjax.create_model` does."""
    from flax import nnx

    import natjax

    make = lambda: nnx.state(natjax.create_model(model, rngs=nnx.Rngs(0)))  # noqa: E731
    return nnx.eval_shape(make) if abstract else make()


def by_layer(model: str, *, abstract: bool = False) -> object:
    """What the classes do by themselves."""
    from flax import nnx

    import natjax

    config = natjax.model_config(model)
    family = natjax.NAT if isinstance(config, natjax.NATConfig) else natjax.Isotropic
    make = lambda: nnx.state(family(config, rngs=nnx.Rngs(0)))  # noqa: E731
    return nnx.eval_shape(make) if abstract else make()


WAYS = {"at once": at_once, "layer by layer": by_layer}

if __name__ == "__main__":
    main()
