"""What is compiled of the kernels in Triton's language, and for which GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.aot import cases
from benchmarks.aot.cases import Case
from natjax.kernels import checks
from natjax.kernels.backends.jax_triton.config import KernelConfig
from natjax.kernels.spec import CallSpec, Kernel
from natjax.kernels.tuning.problems import Problem

# Compute capability, ptxas' name, and the bytes of shared memory that a block may have.
TARGETS = {
    "a100": (80, "sm_80", 166_912),
    "ada": (89, "sm_89", 101_376),
    "h100": (90, "sm_90a", 232_448),
    "b200": (100, "sm_100a", 232_448),
    "rtx5090": (120, "sm_120a", 101_376),
}
# For all chips.
_EVERYWHERE = (
    ("nat_tiny-stage1-d1", "bfloat16"),
    ("nat_tiny-stage3-d1", "bfloat16"),
    ("heads-of-128", "bfloat16"),
    ("image-256", "bfloat16"),
)
# The fused kernels, for all chips.
_FUSED_EVERYWHERE = (
    ("heads-of-64", "bfloat16"),
    ("nat_tiny-stage1-d1", "float32"),
    ("video-30x48x80", "bfloat16"),
)
# The fused kernels, for an H100.
_FUSED_ON_H100 = (
    ("nat_tiny-stage2-d1", "bfloat16"),
    ("nat_tiny-stage4-d1", "bfloat16"),
    ("dinat_tiny-stage1-d8", "bfloat16"),
    ("window-31", "bfloat16"),
    ("heads-of-128", "float32"),
)
_QUICK = ("nat_tiny-stage1-d1",)


def all_cases() -> list[Case]:
    """Every case, problem by problem."""
    return [
        Case(problem=problem, dtype=dtype, kernel=kernel, chip=chip)
        for problem, dtype in cases.PROBLEMS
        for kernel in kernels_of(problem, dtype)
        for chip in TARGETS
        if _is_compiled((problem.name, dtype), kernel, chip)
    ]


def _is_compiled(problem: tuple[str, str], kernel: Kernel, chip: str) -> bool:
    if problem in _EVERYWHERE:
        return True
    is_fused = kernel in cases.FUSED
    if problem in _FUSED_EVERYWHERE:
        return is_fused
    return problem in _FUSED_ON_H100 and is_fused and chip == "h100"


def kernels_of(problem: Problem, dtype: str) -> Iterator[Kernel]:
    """Kernels that a problem needs: none for the bias where that of queries sums its gradient."""
    summed = sums_bias(problem, dtype)
    return (x for x in cases.kernels_of(problem) if x != "dbias" or not summed)


def sums_bias(problem: Problem, dtype: str) -> bool:
    """Whether the kernel "dquery" also sums the gradient of the bias."""
    value_dim = problem.value_dim or problem.head_dim
    spec = CallSpec(
        problem.neighborhood,
        problem.head_dim,
        value_dim,
        dtype,
        problem.rpb,
        checks.float32_products(),
    )
    return problem.rpb and KernelConfig.suggest("dquery", spec).sums_bias(spec)


def quick_cases() -> list[Case]:
    """Each kernel for the two chips that differ most, and the forward kernel for all."""
    return [
        case
        for case in all_cases()
        if (
            case.problem.name in _QUICK
            and case.dtype == "bfloat16"
            and (case.chip in ("a100", "h100") or case.kernel == "forward")
        )
        or (case.problem.name, case.kernel, case.chip) == ("heads-of-128", "dbias", "h100")
    ]
