"""What can be known of the benchmarks without a GPU."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pico
import pytest
from edges import named
from flax import nnx

from benchmarks import annotations, measured, segment, swin, train_step
from benchmarks.aot import __main__ as aot
from benchmarks.aot import cases, layouts, pool, sass
from benchmarks.aot import report as aot_report
from benchmarks.aot.in_mosaic import __main__ as in_mosaic
from benchmarks.aot.in_mosaic import cases as mosaic_cases
from benchmarks.aot.in_mosaic import compiler as mosaic_compiler
from benchmarks.aot.in_mosaic import counts as mosaic_counts
from benchmarks.aot.in_mosaic import limits as mosaic_limits
from benchmarks.aot.in_mosaic import report as mosaic_report
from benchmarks.aot.in_triton import __main__ as in_triton
from benchmarks.aot.in_triton import cases as triton_cases
from benchmarks.aot.in_triton import limits
from benchmarks.aot.in_triton import report as triton_report
from benchmarks.aot.step import __main__ as aot_step
from benchmarks.aot.step import cases as step_cases
from benchmarks.aot.step import collectives
from benchmarks.aot.step import report as step_report
from benchmarks.aot.step.tasks import TASKS
from benchmarks.gpu import flex, functions, hopper, peers, plan, suite, timing, torch_worker
from benchmarks.gpu import report as gpu_report
from benchmarks.tpu import variants
from natjax.kernels import checks
from natjax.kernels.backends import jax_triton, mosaic_gpu, pallas_triton
from natjax.kernels.backends.mosaic_gpu import candidates as mosaic_candidates
from natjax.kernels.spec import KERNELS, CallSpec
from natjax.kernels.tuning import problems, settings
from natjax.train.engine.network import split_network
from natjax.train.tasks.detection.datasets.coco_json import read_annotations

ROOT = pathlib.Path(__file__).parents[1]
ROW = {
    "tile": [4, 8],
    "chunk": [2, 16],
    "warps": 4,
    "stages": 2,
    "bytes": 3_350_000_000,
    "useful": 10**9,
    "executed": 2 * 10**9,
    "registers": 90,
    "spill": 0,
    "shared": 10240,
    "instructions": 632,
    "matrix": {"wgmma": 6},
    "cp_async": 8,
}


def shape_of(case):
    p = case.problem
    bias = p.rpb and case.kernel not in ("av", "av_transposed")
    products = checks.float32_products()
    return CallSpec(p.neighborhood, p.head_dim, p.head_dim, case.dtype, bias, products)


def test_every_kernel_is_compiled_for_every_chip_in_ci():
    quick = {(case.kernel, case.chip) for case in cases.quick_cases()}
    assert quick == {(kernel, chip) for kernel in KERNELS for chip in cases.CHIPS}
    keys = [case.key for case in cases.all_cases()]
    assert len(set(keys)) == len(keys)


# Bytes that are lived with.
SPILLED = {"nat_tiny-stage2-d1/bfloat16/dkeyvalue/a100": 4}


def test_the_committed_table_is_of_the_present_settings():
    rows = aot_report.read()
    assert list(rows) == [case.key for case in cases.all_cases()], "run `make aot`"
    for case in cases.all_cases():
        row = rows[case.key]
        assert row["spill"] <= SPILLED.get(case.key, 0), case.key
        chip = cases.CHIPS[case.chip].name
        config, _ = settings.resolve(pallas_triton, case.kernel, shape_of(case), chip)
        used = [list(config.tile), list(config.chunk), config.num_warps, config.num_stages]
        assert [row[k] for k in ("tile", "chunk", "warps", "stages")] == used, "run `make aot`"


def test_the_committed_document_is_that_of_the_table():
    document = json.loads(aot_report.TABLE.read_text())
    text = aot_report.document(document["rows"], document["environment"])
    assert aot_report.DOCUMENT.read_text() == text


def test_a_job_that_ends_its_process_does_not_take_others_along():
    assert list(pool.run(os._exit, [3], 1)) == [
        {"error": "the compiler's process ended with exit code 3"}
    ]
    done, failed = pool.run(dict, [[("registers", 90)], 7], 2)
    assert done == {"registers": 90}
    assert "TypeError: 'int' object is not iterable" in failed["error"]


def test_new_spills_and_errors_fail():
    rows = {"a": ROW | {"spill": 8}, "b": ROW, "c": {"error": "shared memory"}}
    reasons = aot.failed(rows, {"a": ROW | {"spill": 8}})
    assert reasons == {"c": "shared memory"}
    reasons = aot.failed(rows, {"a": ROW})
    assert reasons["a"] == "spills 8 bytes of registers; 0 are known"


def test_moves_are_found():
    text = """
      %fusion.1 = bf16[8,4]{1,0} fusion(%p)
      %copy.2 = bf16[8,4]{0,1} copy(%fusion.1), metadata={}
      ROOT %transpose.1.3 = f32[8,2,2]{2,1,0} transpose(%copy.2), dimensions={0,2,1}
      %slice.4 = f32[3]{0} slice(%x)
    """
    assert len(layouts.moves(text, 32)) == 2
    assert len(layouts.moves(text, 3)) == 3
    assert layouts.moves(text, 33) == []


def test_the_document_has_figures_and_times():
    case = next(case for case in cases.all_cases() if case.chip == "h100")
    environment = {"date": "2026-01-01", "jax": "1", "ptxas": "2"}
    text = aot_report.document({case.key: ROW}, environment)
    assert "90 reg, 10 KiB, 632 ins, 6 wgmma" in text
    assert (
        f"| {case.problem.name}, {case.dtype} | {case.kernel} | 3350 | 1.0 | 2.0 | 1000 | 2 |"
        in (text)
    )
    spilled = aot_report.document({case.key: ROW | {"spill": 8}}, environment)
    assert "**8 B spilled**" in spilled
    twice = aot_report.document({case.key: ROW | {"exponentials": [32, 16]}}, environment)
    assert "6 wgmma, **2.0x exponentials**" in twice


@pytest.mark.parametrize("name", ["1d-ragged-dilation", "2d-mixed-dilation", "3d"])
def test_peers_with_a_mask_function_see_the_same_neighbors(name):
    problem = named(name)
    query, key = np.indices((problem.neighborhood.num_tokens,) * 2)
    seen = peers.is_neighbor(problem, *peers.tables(problem), query, key)
    np.testing.assert_array_equal(seen, problem.neighborhood.dense_mask())


def test_tokamax_is_given_the_mask_and_the_bias(monkeypatch):
    """Here a stand-in of one line each for what is installed on machines with a GPU alone."""

    def attend(query, key, value, bias, mask):
        logits = jnp.einsum("bqnd,bknd->bnqk", query, key) * query.shape[-1] ** -0.5 + bias
        weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf))
        return jnp.einsum("bnqk,bknd->bqnd", weights, value)

    module = types.SimpleNamespace(dot_product_attention=attend)
    monkeypatch.setitem(sys.modules, "tokamax", module)
    problem = problems.Problem(name="2d", shape=(5, 6), kernel_size=(3, 3), heads=2)
    arrays = problem.arrays()
    expected = problem.op(**arrays, **problem.arguments, implementation="reference")
    np.testing.assert_allclose(peers.tokamax(problem, arrays), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["1d-ragged-dilation", "2d-mixed-dilation", "3d"])
def test_flex_attention_sees_the_same_neighbors_and_bias(name):
    problem = named(name)
    hood = problem.neighborhood
    numpy = types.SimpleNamespace(as_tensor=lambda x, **_: x, clamp=np.clip, int32=np.int32)
    rpb = np.asarray(problem.arrays()["rpb"])
    is_neighbor, add_bias = flex.modifications(numpy, problem, rpb, "cpu")
    query, key = np.indices((hood.num_tokens,) * 2)
    seen = is_neighbor(0, 0, query, key)
    np.testing.assert_array_equal(seen, hood.dense_mask())
    expected = rpb[0, *hood.dense_bias_index()]
    np.testing.assert_array_equal(
        add_bias(1.0, 0, 0, query, key)[seen] - 1, (expected + 1 - 1)[seen]
    )


def test_flash_attention_4_has_masks_in_blocks_of_its_own_tiles():
    def torch(major):
        cuda = types.SimpleNamespace(get_device_capability=lambda: (major, 0))
        return types.SimpleNamespace(cuda=cuda)

    assert flex.mask_block(torch(9), "cuda") == (128, 128)
    assert flex.mask_block(torch(10), "cuda") == (256, 128)
    for major, device in ((8, "cuda"), (9, "cpu")):
        with pytest.raises(NotImplementedError, match=rf"9.x and 10.x; got {device}"):
            flex.mask_block(torch(major), device)


def test_a_chain_of_calls_is_its_calls_one_after_the_other():
    problem = named("1d")
    arrays = functions.arrays_of(problem, "xla", "float32")
    one = functions.step(problem, "xla", "forward+backward")
    twice = functions.chain(one, 2)(arrays)
    for name, x in one(one(arrays)).items():
        np.testing.assert_allclose(twice[name], x, rtol=1e-6)
    program = timing.compile_program(problem, "xla", "forward", "float32")
    assert timing.measure(program, arrays, 0.01)["ms"] > 0


def test_fractions_are_of_what_is_useful():
    problem = problems.NAT_TINY[3]
    array = 8 * 49 * 16 * 32
    assert plan.moved_bytes(problem, "forward", 2) == 4 * 2 * array
    assert plan.useful_flops(problem, "forward") == 4 * 49 * array
    ceilings = {"copy_bytes_per_second": 16e3 * array, "matmul_flops_per_second": 1e6 * array}
    fractions = gpu_report.fractions(problem, "forward", 1.0, 2, ceilings)
    assert fractions == {
        "of_copy_bandwidth": pytest.approx(0.5),
        "of_matmul_rate": pytest.approx(0.196),
    }


def test_dry_run(tmp_path):
    """All of the benchmark that runs without a GPU, as on a machine that has one."""
    path = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--json", str(path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "tests: passed" in run.stdout
    document = json.loads(path.read_text())
    assert document["environment"]["dry_run"]
    rows = {(row["problem"], row["mode"], row["variant"]): row for row in document["rows"]}
    assert set(rows) == {
        (problem.name, mode, variant)
        for problem in plan.tiny()
        for mode in plan.MODES
        for variant in plan.VARIANTS
    }
    for (_, _, variant), row in rows.items():
        if variant == "cudnn":
            assert "cuDNN" in row["error"]
        elif variant in ("tokamax", "fa4") and "error" in row:
            reasons = f"No module named '{variant}", "no bias"
            assert any(reason in row["error"] for reason in reasons), row
        elif variant in plan.TORCH_VARIANTS and document["environment"]["torch"] == "none":
            assert row["error"] == "torch cannot be imported"
        elif variant == "flex_fa4":
            assert "compute capability" in row["error"]
        else:
            assert row["ms"] > 0, row
    last = run.stdout.splitlines()[-1]
    assert last.startswith(f"| {plan.tiny()[-1].name} | forward+backward | ")


def test_dry_run_for_tpus(tmp_path):
    """All of the benchmark that runs without a TPU, as on a machine that has one."""
    path = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.tpu", "--dry-run", "--json", str(path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "tests: passed" in run.stdout
    document = json.loads(path.read_text())
    assert document["environment"]["dry_run"]
    rows = {(row["mode"], row["variant"]): row for row in document["rows"]}
    assert set(rows) == {(mode, variant) for mode in plan.MODES for variant in variants.VARIANTS}
    for row in rows.values():
        assert row.get("ms", 0) > 0, row
    assert run.stdout.splitlines()[-1].startswith("| tiny | forward+backward | ")


def test_splash_attention_is_given_the_neighborhood():
    problem = variants.tiny()[0]
    arrays = variants.arrays_of(problem, "splash-128", "float32")
    tokens = problem.neighborhood.num_tokens
    out = variants.step(problem, "splash-128", "forward", interpret=True)(arrays)["query"]
    maps = {
        name: x[:, :, :tokens].swapaxes(1, 2).reshape(1, *problem.shape, 2, 16)
        for name, x in arrays.items()
    }
    expected = problem.op(**maps, kernel_size=problem.kernel_size).reshape(1, tokens, 2, 16)
    np.testing.assert_allclose(out[:, :, :tokens].swapaxes(1, 2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch_worker.is_available(), reason="PyTorch is installed: nothing breaks down")
def test_a_worker_that_breaks_down_leaves_rows_that_say_so():
    problem = plan.tiny()[0]
    worker = torch_worker.TorchWorker("flex_fa4", [problem], "float32")
    assert not worker.wait(120)
    rows = worker.measure(1)
    assert [(row["problem"], row["mode"]) for row in rows] == [
        (problem.name, mode) for mode in plan.MODES
    ]
    assert all(row["error"] == "out of time, or it broke down" for row in rows)


def test_numbers_of_a_dry_run_stay_out_of_the_results():
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert "--dry-run needs --json" in run.stderr


def test_bfloat16_arrays_without_a_bias_for_full_attention():
    arrays = functions.arrays_of(plan.tiny()[0], "cudnn", "bfloat16")
    assert set(arrays) == {"query", "key", "value"}
    assert arrays["query"].dtype == jnp.bfloat16


HLO = """
HloModule jit_step

FileNames
1 "layers.py"

FunctionNames
1 "train_step"
2 "BatchNorm._batch_statistics"

FileLocations
1 {file_name_id=1 function_name_id=1 line=9 end_line=9}
2 {file_name_id=1 function_name_id=2 line=7 end_line=7}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}

%body.1 (p: (f32[8])) -> (f32[8]) {
  %ag.1 = (bf16[16,64]{1,0}, bf16[64,64]{1,0}) all-gather-start(%p), dimensions={0}
  %f.1 = f32[8]{0} fusion(%p), kind=kLoop, calls=%inner.2
}

%inner.2 (p: f32[8]) -> f32[8] {
  ROOT %rs.1 = f32[8,4]{1,0:T(8,128)} reduce-scatter(%p), dimensions={0}
}

ENTRY %main.3 (a: f32[8]) -> f32[8] {
  %w = (f32[8]) while(%t), condition=%cond.4, body=%body.1
  %ar = ((bf16[100]{0}), bf16[100]{0}) all-reduce-start(%a), to_apply=%add
  %done = bf16[100]{0} all-reduce-done(%ar)
  %cp = (s32[8]{0}, u8[8,24,24,3]{3,2,1,0}) collective-permute(%a, %b)
  %ag.2 = (f32[4,16,32]{2,1,0}, f32[48,7,7,64]{3,2,1,0}) all-gather(%a, %b), dimensions={0}
}
"""


def test_collectives_are_found_with_their_bytes_and_loops():
    found = collectives.collectives(HLO)
    assert [(x.kind, x.bytes, x.in_loop) for x in found] == [
        ("all-gather", 64 * 64 * 2, True),
        ("reduce-scatter", 128, True),
        ("all-reduce", 200, False),
        ("collective-permute", 32 + 8 * 24 * 24 * 3, False),
        ("all-gather", 4 * (4 * 16 * 32 + 48 * 49 * 64), False),
    ]
    totals = collectives.totals(found)["all-gather"]
    assert (totals["count"], totals["in_loops"], totals["bytes_in_loops"]) == (2, 1, 8192)


def norm_sum(frame: int, name: str = "jit(step)/jvp()/reduce_sum") -> collectives.Collective:
    line = "  %ar.9 = f32[512]{0} all-reduce(%b), to_apply=%add, metadata={op_name="
    line += f'"{name}" stack_frame_id={frame}}}\n'
    return collectives.collectives(HLO + line)[-1]


def test_sums_of_norms_are_told_apart():
    found = norm_sum(2)
    assert found.functions == ("BatchNorm._batch_statistics", "train_step")
    assert collectives.totals([found, norm_sum(1)]) == {
        kind: {"count": 1, "bytes": 2048, "in_loops": 0, "bytes_in_loops": 0}
        for kind in ("all-reduce for norms", "all-reduce")
    }


def test_other_sums_in_the_forward_pass_are_of_activations():
    other = norm_sum(1)
    gradient = norm_sum(1, "jit(step)/transpose(jvp())/reduce_sum")
    assert collectives.unexpected([norm_sum(2), other, gradient], [], (24, 24, 3), 4) == [other]


def test_only_activations_are_unexpected():
    found = collectives.collectives(HLO)
    image = (24, 24, 3)
    (moved,) = collectives.unexpected(found, [(64, 64), (32, 64)], image, 4)
    assert moved.shapes[1] == ("f32", (48, 7, 7, 64))
    assert collectives.unexpected(found, [(64, 64), (32, 64), (48, 7, 7, 64)], image, 4) == []
    # The same images in another type have been through the network; other shapes are none.
    assert len(collectives.unexpected(found, [(64, 64), (64, 32)], (32, 32, 3), 4)) == 2


def test_every_kind_of_machine_is_compiled_for_in_ci():
    quick = step_cases.quick_cases()
    kinds = {step_cases.MACHINES[case.machine].attention for case in quick}
    assert kinds == {"triton", "mosaic_tpu"}
    assert {case.task for case in quick} == set(TASKS)
    assert all(case.fsdp > 1 for case in quick)
    assert all(case.accumulate > 1 for case in quick if case.task != "detection")
    row = {"moved": ["all-gather of x"], "kernels": 1}
    assert "activations move" in aot_step.failed(quick[0], row)
    assert "no kernel of ours" in aot_step.failed(quick[0], {"moved": [], "kernels": 0})
    plain = dataclasses.replace(quick[1], attention="xla")
    assert aot_step.failed(plain, {"moved": [], "kernels": 0}) is None


def test_a_case_that_does_not_compile_leaves_no_row(monkeypatch):
    monkeypatch.setattr(pool, "run", lambda *_, **__: [{"error": "no"}, {"moved": ["x"]}])
    monkeypatch.setattr(step_report, "add", lambda key, *_: saved.append(key))
    cases, saved = step_cases.quick_cases()[1:3], []
    assert len(aot_step.compile_all(cases, 1, saves=True)) == 2
    assert saved == [cases[1].key]


def test_the_table_of_steps_is_of_the_cases_and_moves_nothing():
    if not step_report.TABLE.exists():
        pytest.fail("run `make aot-step`")
    table = json.loads(step_report.TABLE.read_text())
    known = {case.key: case for case in step_cases.all_cases()}
    assert len(known) == len(step_cases.all_cases())
    assert set(table["rows"]) <= set(known)
    for key, row in table["rows"].items():
        assert aot_step.failed(known[key], row) is None, key
    text = step_report.document(table["rows"], table["environment"])
    assert step_report.DOCUMENT.read_text() == text


@pytest.fixture
def maps():
    """Query, key, value and bias of windows of 3 on a map of 6 by 9."""
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(key, (2, 6, 9, 2, 4)) for key in keys[:3]]
    return [*arrays, jax.random.normal(keys[3], (2, 5, 5))]


def test_swins_windows_are_our_blocked_attention(maps):
    plain = swin.attend_in_windows(*maps, 3, 0)
    np.testing.assert_allclose(swin.attend_in_blocks(*maps, 3, 0), plain, atol=1e-5)


def test_shifted_windows_see_their_own_side_of_the_border_alone(maps):
    shifted = swin.attend_in_windows(*maps, 3, 1)
    # Windows that no border crosses are those of a map without borders.
    inner = swin.attend_in_blocks(*maps, 3, 1)
    np.testing.assert_allclose(shifted[:, 1:4, 1:7], inner[:, 1:4, 1:7], atol=1e-5)
    # The first row's windows hold, of their own side, that row alone.
    query, key, value, bias = maps
    changed = value.at[:, 4:].set(0.0)
    np.testing.assert_array_equal(
        swin.attend_in_windows(query, key, changed, bias, 3, 1)[:, :4], shifted[:, :4]
    )


def test_swin_tiny_has_the_published_number_of_parameters():
    model = nnx.eval_shape(
        lambda: swin.Swin(
            swin.SwinConfig(), attend=swin.pass_values, dtype="float32", rngs=nnx.Rngs(0)
        )
    )
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    assert sum(sizes) == 28_288_354


def test_the_step_is_measured_beside_swins(tmp_path, monkeypatch, capsys):
    path = tmp_path / "step.json"
    arguments = "--tiny --only nat_tiny --image-size 28 --batch 2 --rounds 2 --json"
    monkeypatch.setattr(sys, "argv", ["x", *arguments.split(), str(path)])
    assert train_step.main() == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["images_per_second"] == pytest.approx(2e3 / row["ms"])
    assert row["memory_bytes"] > row["state_bytes"] > 0
    assert "| nat_tiny | " in capsys.readouterr().out


def test_segmentation_is_measured_by_its_parts():
    pico.register()
    problem = segment.make_problem(pico.SEGMENTOR, batch=2, side=16)
    found = segment.measure_all(problem, rounds=1, torch_python=None)
    pico.unregister()
    modes = ("infer", "step")
    assert set(found.rows) == {(m, part, "natjax") for m in modes for part in segment.PARTS}
    assert all(took["cpu_seconds"] > 0 for (took,) in found.rows.values())
    rows = segment.table(found, 2).splitlines()
    assert rows[2].startswith("| inference | natjax | ")
    assert rows[3].startswith("| training step | natjax | ")


def test_memory_of_a_call_is_what_it_takes_besides():
    assert measured.measured(lambda: np.ones(2**27, np.uint8))["extra_bytes"] > 0.9 * 2**27
    assert measured.measured(lambda: None)["extra_bytes"] < 2**24


def test_models_without_attention_have_the_same_parameters():
    for variant in train_step.variants("float32", tiny=True):
        both = (variant.build, variant.build_without)
        whole, without = (split_network(build) for build in both)
        weights = jax.eval_shape(whole.init)
        assert weights == jax.eval_shape(without.init)
        images = jax.ShapeDtypeStruct((1, 28, 28, 3), jnp.float32)
        programs = [
            str(jax.make_jaxpr(model.apply)(*weights, images)) for model in (whole, without)
        ]
        assert ["exp" in program for program in programs] == [True, False]


def test_numbers_of_tiny_models_stay_out_of_the_results(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--tiny"])
    with pytest.raises(SystemExit):
        train_step.main()
    assert "--tiny needs --json" in capsys.readouterr().err


def test_a_failure_is_told_even_if_its_share_of_the_suite_is_out_of_time(tmp_path, capsys):
    file = tmp_path / "test_two.py"
    file.write_text(
        "import time\n"
        "def test_wrong(): assert 1 + 1 == 3, 'sums are wrong'\n"
        "def test_endless(): time.sleep(600)\n"
    )
    assert not suite.run([str(file)], processes=1, seconds=8)
    told = capsys.readouterr().out
    assert "out of time after 1 tests" in told
    assert "test_wrong" in told
    assert "sums are wrong" in told


MACHINE_CODE = """
.text.forward:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0020*/                   HGMMA.64x32x16.F32.BF16 R24, gdesc[UR8], !UPT ;
        /*0030*/                   MUFU.EX2 R5, R4 ;
        /*0040*/              @P0 BRA `(.L_x_1) ;
        /*0050*/                   EXIT ;
.L_x_2:
        /*0060*/                   BRA `(.L_x_2);
"""


def test_what_a_loop_does_is_counted():
    assert sass.length(MACHINE_CODE) == 7
    loop = sass.main_loop(MACHINE_CODE)
    assert loop == sass.Loop(4, 1, 16 * 8 * 16 + 64 * 32 * 16 // 4)
    assert sass.main_loop("/*0000*/ EXIT ;") is None


def test_products_of_tf32_are_half_as_deep():
    code = MACHINE_CODE.replace("HMMA.16816.F32.BF16", "HMMA.1688.F32.TF32")
    code = code.replace("HGMMA.64x32x16.F32.BF16", "HGMMA.64x32x8.F32.TF32")
    assert sass.main_loop(code) == sass.Loop(4, 1, 16 * 8 * 8 + 64 * 32 * 8 // 4)
    once, three = (sass.needed("forward", 16, 16, 32, 1, times=times) for times in (1, 3))
    assert three == (once[0], 3 * once[1])


def test_work_that_warps_repeat_fails():
    """Four warps on 32 rows do everything twice, and two warps once."""
    exponentials, products = sass.needed("forward", 32, 32, 32, 4)
    row = {"spill": 0, "exponentials": [18, exponentials], "products": [2 * products, products]}
    assert (
        "does 18 exponentials in its loop, where 12 are needed" in aot.failed({"a": row}, {})["a"]
    )
    assert not aot.failed({"a": row}, {"a": row})
    exponentials, products = sass.needed("forward", 32, 32, 32, 2)
    row = {"spill": 0, "exponentials": [18, exponentials], "products": [2 * products, products]}
    assert "products" in aot.failed({"a": row}, {})["a"]
    assert not aot.failed({"a": row | {"products": [products, products]}}, {})


def test_the_limiter_is_the_highest_floor():
    """Of a kernel that would take a second each of issue and memory, and half that of the rest."""
    chip = cases.CHIPS["h100"]
    row = {
        "programs": 1,
        "warps": 1,
        "issued": chip.issue_rate,
        "exponentials_issued": chip.exponential_rate / 64,
        "loaded": chip.l2_bandwidth / 2,
        "bytes": chip.bandwidth * 1.5,
    }
    floors = limits.floors(row, chip)
    assert floors == pytest.approx({"issue": 1.0, "exp": 0.5, "L2": 0.5, "memory": 1.5})
    assert limits.limiter(floors) == "memory"
    assert limits.total([row, row], chip)["issue"] == pytest.approx(2.0)


def test_bytes_loaded_are_those_of_rows_and_of_columns_in_each_block():
    loaded = limits.loaded(
        "forward", tiles=2, blocks=6, rows=16, columns=8, row_bytes=64, table_bytes=2
    )
    assert loaded == 2 * 16 * 64 + 6 * (2 * 8 * 64 + 16 * 8 * 2)


# Kernels whose warps repeat each other's work, which is lived with: docs/design.md says why.
REPEATED = {
    "heads-of-256/bfloat16/dkeyvalue/h100",
    "heads-of-256/bfloat16/dkeyvalue/b200",
}
REPEATED_IN_TRITON = {"heads-of-128/float32/dquery/h100"}


@pytest.mark.parametrize(
    ("read", "known"), [(aot_report.read, REPEATED), (in_triton.read, REPEATED_IN_TRITON)]
)
def test_no_other_kernel_repeats_work_than_is_known(read, known):
    assert {key for key, row in read().items() if aot_report.repeated(row)} == known


def test_the_table_of_kernels_in_triton_is_of_the_present_settings():
    rows = in_triton.read()
    assert list(rows) == [case.key for case in triton_cases.all_cases()]
    for case in triton_cases.all_cases():
        row = rows[case.key]
        assert row["spill"] == 0, case.key
        config = jax_triton.settings.suggest(case.kernel, shape_of(case))
        used = [list(config.tile), list(config.chunk), config.num_warps, config.num_stages]
        assert [row[k] for k in ("tile", "chunk", "warps", "stages")] == used, case.key
    where = json.loads(in_triton.TABLE.read_text())["environment"]
    assert in_triton.DOCUMENT.read_text() == triton_report.document(rows, where)
    assert {case.kernel for case in triton_cases.quick_cases()} == set(KERNELS)


def test_made_up_annotations_can_be_meant(tmp_path):
    path = tmp_path / "train.json"
    annotations.write_file(path, 1e-5)
    found = read_annotations(path.read_text(), "made up")
    assert (len(found), len(found.ids), len(found.classes)) == (1, 8, 80)
    assert found.broken.size == 0
    assert found.trained.all()


def test_the_table_of_kernels_for_hopper_is_of_the_present_settings_and_without_spills():
    rows = in_mosaic.read()
    chip = cases.CHIPS["h100"].name
    keys = []
    for problem in mosaic_cases.problems(quick=False):
        p = problem
        spec = CallSpec(p.neighborhood, p.head_dim, p.head_dim, "bfloat16", p.rpb)
        for kernel in mosaic_cases.kernels_of(problem):
            keys.append(f"{problem.name}/{kernel}")
            row = rows[keys[-1]]
            assert row["spill"] == 0, keys[-1]
            assert not mosaic_limits.too_few(problem, row), keys[-1]
            config, _ = settings.resolve(mosaic_gpu, kernel, spec, chip)
            used = [list(config.tile), list(config.chunk), config.num_warps, config.num_stages]
            assert [row[k] for k in ("tile", "chunk", "warps", "stages")] == used, keys[-1]
            work = mosaic_counts.work_of(kernel, problem, config)
            assert {name: row[name] for name in work} == pytest.approx(work), keys[-1]
            # What candidates are taken to need, without Mosaic's own and barriers.
            beside = row["shared"] - mosaic_candidates.shared_memory(kernel, spec, config)
            assert 0 < beside <= 4096, keys[-1]
    assert list(rows) == keys
    devices = in_mosaic.read_devices()
    assert mosaic_compiler.wrongly_exchanged(devices) is None
    where = json.loads(in_mosaic.TABLE.read_text())["environment"]
    assert in_mosaic.DOCUMENT.read_text() == mosaic_report.document(rows, devices, where)
    assert set(mosaic_cases.problems(quick=True)) < set(mosaic_cases.problems(quick=False))


MOSAIC_CODE = """
        /*0000*/                   UTMALDG.3D [UR8], [UR4] ;
.L_x_0:
        /*0010*/                   UTMALDG.3D [UR8], [UR4] ;
.L_x_1:
        /*0020*/                   HGMMA.64x64x16.F32.BF16 R24, R32, gdesc[UR4], R24 ;
        /*0030*/                   MUFU.EX2 R4, R5 ;
        /*0040*/              @!P2 BRA `(.L_x_4) ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
        /*0060*/               @P3 EXIT ;
        /*0070*/                   BRA `(.L_x_0) ;
.L_x_4:
        /*0080*/              @!P2 NANOSLEEP.SYNCS 0x989680 ;
        /*0090*/              @!P2 BRA `(.L_x_4) ;
        /*00a0*/                   BRA `(.L_x_1) ;
"""


def test_loops_of_machine_code_are_told_from_waits_that_try_again():
    loops = sass.loops(MOSAIC_CODE)
    assert [(x.start, x.stop) for x, _ in loops] == [(8, 10), (2, 6), (1, 8)]
    inner, outer = loops[1][1], loops[2][1]
    assert (inner.instructions, inner.exponentials, inner.copies) == (4, 1, 0)
    assert inner.products == 64 * 64 * 16 // 4
    assert (outer - inner).copies == 1


@pytest.mark.parametrize("apart", [False, True])
def test_code_counts_as_often_as_it_runs(apart):
    """Of a warpgroup that multiplies: the loop each round, and the rest of it for each image."""
    config = mosaic_gpu.settings((8, 8), (4, 16), images=2, copies_apart=apart)
    parts = mosaic_counts.Parts.of(MOSAIC_CODE, config, images=2)
    assert [parts.main.instructions, parts.image.instructions] == [4, 3]
    work = {"rounds": 6, "copied": 6}
    rest = parts.rest.instructions + parts.copying.instructions
    of_copying = rest if apart else 0
    expected = 4 * (rest + 2 * 3 + 6 * 4 + of_copying)
    assert parts.total("instructions", config, 2, work) == expected


def test_blocks_of_threads_on_a_multiprocessor():
    row = {"tile": [8, 8], "warps": 4, "registers": 129, "shared": 10 * 1024}
    # 136 registers of 128 threads.
    assert mosaic_limits.blocks_of_multiprocessor(row) == (3, 20)
    assert mosaic_limits.blocks_of_multiprocessor(row | {"warps": 12, "registers": 168}) == (1, 20)
    narrow, wide = (p for p in mosaic_cases.problems(quick=True))
    assert not mosaic_limits.too_few(narrow, row)
    alone = row | {"shared": 150 * 1024}
    assert mosaic_limits.too_few(narrow, alone)
    assert not mosaic_limits.too_few(narrow, alone | {"tile": [8, 16]})
    assert not mosaic_limits.too_few(wide, alone)


def test_what_devices_exchange_beyond_a_sum_fails():
    row = {"exchanged": ["all-reduce of f32[1,9]"], "kernels": sorted(cases.FUSED)}
    assert mosaic_compiler.wrongly_exchanged(row) is None
    more = [*row["exchanged"], "all-gather of bf16[8,9]"]
    assert "not one sum" in mosaic_compiler.wrongly_exchanged(row | {"exchanged": more})
    assert "not one sum" in mosaic_compiler.wrongly_exchanged(row | {"exchanged": more[1:]})
    assert "has the kernels" in mosaic_compiler.wrongly_exchanged(row | {"kernels": ["forward"]})
    assert mosaic_compiler.wrongly_exchanged({"error": "no"}) == "no"


def test_new_spills_and_instructions_of_kernels_for_hopper_fail():
    row = {"spill": 0, "instructions": 1000}
    assert not in_mosaic.failed({"a": row}, {"a": row})
    assert "in its loop" in in_mosaic.failed({"a": row | {"loop_spills": 2}}, {})["a"]
    assert "spills 8" in in_mosaic.failed({"a": row | {"spill": 8}}, {"a": row})["a"]
    longer = row | {"instructions": 1100}
    assert "1100 instructions, not 1000" in in_mosaic.failed({"a": longer}, {"a": row})["a"]
    assert in_mosaic.failed({"a": {"error": "no"}}, {})["a"] == "no"


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="kernels for Hopper need jax 0.12")
@pytest.mark.parametrize(
    "name",
    [
        "lines",
        "boxes-of-parts",
        "rows-past-the-end",
        "scalars-of-groups",
        "products-of-registers",
        "slots",
    ],
)
def test_checks_for_hopper_pass_where_they_can_without_one(name, monkeypatch):
    monkeypatch.setenv("NATJAX_INTERPRET", "1")
    error, allowed = hopper.CHECKS[name]()
    assert error <= allowed


def test_checks_are_for_hopper_alone():
    assert all(map(hopper.is_for, ("NVIDIA H100 80GB HBM3", "NVIDIA GH200 480GB")))
    assert not any(map(hopper.is_for, ("NVIDIA B200", "NVIDIA A100-SXM4-80GB", "cpu")))
