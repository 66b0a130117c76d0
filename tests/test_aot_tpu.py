"""`benchmarks.aot.tpu`, but for compiling: reading what libtpu dumps, and the committed table."""

import json
import math

import pytest

from benchmarks.aot.tpu import block, bundles, cases, estimate, others, report

# In the form that libtpu 0.0.50 has, of a loop in a loop; real ones are a thousand times longer.
CODE = """\
// kernel: natjax_tpu_forward
     0   : > { %s1 = smov 0  ;;  %v2 = vld [vmem:[#allocation2] sm:$0xff] }
   0x1   : > { %p3 = scmp.ge.s32.totalorder %s1, 2 }
   0x2 LB: >> { %v4 = vadd.f32 %v2, %v2 }
   0x3   : >> { %v5 = vmul.f32 %v4, %v4  ;;  %v6 = vmul.f32 %v4, %v2 }
   0x4   : >> { %7 = sbr.rel (!%p3) target bundleno = 2 (0x2), region = 1 }
   0x5 PF: > { %8 = vst [vmem:[#allocation2]] %v2 }
"""
SLOTS = """\
// utilization
MXU, VALU, VSTORE, VSTORE:SPILL, SALU
4 2 1 1 2
//
0 0 0 0 1
0 0 0 0 1
0 1 0 0 0
0 2 1 1 0
0 0 0 0 1
0 0 1 0 0
"""


@pytest.fixture
def dumped(tmp_path):
    name = "1700000000-12-natjax_tpu_forward.1-71"
    (tmp_path / f"{name}-final_bundles.txt").write_text(CODE)
    (tmp_path / f"{name}-schedule-analysis_final_bundles.txt").write_text("nothing")
    table = tmp_path / f"{name}-final_hlo-static-per-bundle-utilization.txt"
    table.write_text(SLOTS)
    return tmp_path


def test_bundles_are_counted_by_loop(dumped):
    found = bundles.read(dumped, "natjax_tpu_forward")
    assert found.count == (0, 3, 3)
    assert found.total([1, 1, 14]) == 3 + 14 * 3
    assert found.busiest(2) == ("VALU", 2)
    assert found.slots[2]["VSTORE:SPILL"] == 1
    with pytest.raises(ValueError, match="loops of depth 2"):
        found.total([1, 1])
    with pytest.raises(LookupError, match="natjax_tpu_backward"):
        bundles.read(dumped, "natjax_tpu_backward")


BRANCHES = """\
     0   : > { %s1 = smov 0 }
   0x1   : > { %2 = sbr.rel (%p1) target = $region9 }
   0x2   : > { %3 = sbr.rel (%p2) target = $region3 }
   0x3   : > { %v4 = vadd.f32 %v2, %v2 }
   0x4 PF: > { %v5 = vadd.f32 %v2, %v2 }
   0x5   : > { %6 = sbr.rel (%p3) target = $region5 }
   0x6   : > { %v7 = vadd.f32 %v2, %v2 }
   0x7   : > { %v8 = vadd.f32 %v2, %v2 }
   0x8 PF: > { %s9 = smov 0 }
   0x9 PF: > { %s10 = smov 0 }
"""


def test_what_branches_skip_is_weighed(tmp_path):
    name = "1700000000-12-natjax_tpu_large_forward.1-71"
    (tmp_path / f"{name}-final_bundles.txt").write_text(BRANCHES)
    table = tmp_path / f"{name}-final_hlo-static-per-bundle-utilization.txt"
    table.write_text("\n".join(["// utilization", "VALU", "2", "//", *"0001011100"]) + "\n")
    kernel = "natjax_tpu_large_forward"
    assert bundles.read(tmp_path, kernel).total([1, 4]) == 4 * 10
    found = bundles.read(tmp_path, kernel, (0.25, 0.5))
    assert found.total([1, 4]) == 4 * (10 - 0.75 - 2 * 0.5)
    assert found.slots[1]["VALU"] == 0.25 + 1 + 2 * 0.5
    with pytest.raises(LookupError, match="2 branches in the body of the grid, not 3"):
        bundles.read(tmp_path, kernel, (0.25, 0.5, 0.5))


LOOP_IN_A_BRANCH = """\
     0   :  { %0 = sbr.rel (%p0) target = $region4 }
   0x0 LB: > { %1 = sbr.rel (%p1) target = $region9 }
   0x1 LB: >> { %v2 = vadd.f32 %v2, %v2 }
   0x2   : > { %3 = sbr.rel (!%p2) target = $region21 }
   0x3   : > { %4 = sbr.rel (%p3) target = $region5 }
   0x4 LB: >> { %s5 = smov 0 }
   0x5 LB: >>> { %v6 = vadd.f32 %v2, %v2 }
   0x6   : >>> { %7 = sbr.rel (!%p4) target = $region32 }
   0x7   : >> { %8 = sbr.rel (!%p5) target = $region43 }
   0x8 PF: > { %v9 = vadd.f32 %v2, %v2 }
   0x9 PF: > { %10 = sbr.rel (!%p6) target = $region54 }
   0xa PF:  { %s11 = smov 0 }
"""


def test_loops_that_are_skipped_count_for_nothing(tmp_path):
    name = "1700000000-12-natjax_tpu_forward.1-71"
    (tmp_path / f"{name}-final_bundles.txt").write_text(LOOP_IN_A_BRANCH)
    table = tmp_path / f"{name}-final_hlo-static-per-bundle-utilization.txt"
    table.write_text("\n".join(["// utilization", "VALU", "2", "//", *"001000100100"]) + "\n")
    kernel = "natjax_tpu_forward"
    assert bundles.read(tmp_path, kernel).count == (2, 5, 3, 2)
    found = bundles.read(tmp_path, kernel, (0,))
    assert found.count == (2, 5, 1)
    assert found.busiest(2) == ("VALU", 1)


def test_files_that_do_not_belong_together_are_refused(dumped):
    (table,) = dumped.glob("*utilization.txt")
    table.write_text(SLOTS[: SLOTS.rindex("0 1 0 0 0")])
    with pytest.raises(LookupError, match="6 bundles, but slots of 2"):
        bundles.read(dumped, "natjax_tpu_forward")


def test_copies_of_maps_are_found():
    text = """
      %copy.2 = bf16[8,4]{0,1} copy(%fusion.1), metadata={}
      %copy-start.1 = (bf16[8,4]{1,0:S(1)}, bf16[8,4]{1,0}, u32[]) copy-start(%x)
      %slice.4 = bf16[8,4]{1,0} slice(%x), slice={[0:8], [0:4]}
    """
    assert block.moves(text, 32) == ["%copy.2 = bf16[8,4]{0,1} copy("]
    assert block.moves(text, 33) == []


LOOPS = """
%thrice.1 (p: (s32[])) -> pred[] {
  %c.1 = s32[]{:T(128)} constant(3)
  ROOT %lt.1 = pred[]{:T(512)} compare(%i, %c.1), direction=LT
}

%twice.1 (p: (s32[])) -> pred[] {
  %c.2 = s32[]{:T(128)} constant(2)
  ROOT %lt.2 = pred[]{:T(512)} compare(%i, %c.2), direction=LT
}

%body.1 (p: (f32[8])) -> (f32[8]) {
  %f.1 = f32[8]{0} fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"100"}
}

%outer.2 (p: (f32[8])) -> (f32[8]) {
  %f.2 = f32[8]{0} fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"10"}
  %w.1 = (f32[8]) while(%t), condition=%thrice.1, body=%body.1
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %f.3 = f32[8]{0} fusion(%a), kind=kLoop, backend_config={"estimated_cycles":"1"}
  %w.2 = (f32[8]) while(%t), condition=%twice.1, body=%outer.2
}
"""


def test_estimates_of_loops_are_multiplied():
    assert estimate.cycles(LOOPS) == 1 + 2 * (10 + 3 * 100)
    with pytest.raises(LookupError, match=r"a loop of unknown length: %w\.1"):
        estimate.cycles(LOOPS.replace("%c.1), direction=LT", "%n.1), direction=LT"))
    with pytest.raises(LookupError, match="no entry"):
        estimate.cycles(LOOPS.replace("ENTRY ", ""))


def test_splash_attention_meets_the_boxes_that_its_queries_see():
    box = (8, 16)
    shape, kernel_size = (24, 48), (7, 20)
    mask = others._mask(shape, kernel_size, box).masks[0]
    seen = mask[0:1152, 0:1152]
    assert seen.sum() == 1152 * 140
    pairs = seen.reshape(9, 128, 9, 128).any((1, 3)).sum()
    along = (others._pairs(*axis) for axis in zip(shape, kernel_size, box, strict=True))
    assert pairs == math.prod(along)


ROW = {
    "temporaries": 0,
    "moved": [],
    "bytes": 2_000_000,
    "tile": [4, 8],
    "side_by_side": 7,
    "bundles": 1000,
    "inner": 120,
    "busiest": "MXU",
    "fewest": 80,
    "spills": 3,
}


def test_errors_copies_and_other_bundles_fail():
    known = {"a": ROW, "b": ROW, "c": ROW}
    rows = {
        "a": ROW | {"bundles": 1060},
        "b": ROW | {"bundles": 960},
        "c": ROW | {"moved": ["%copy.1 = bf16[8] copy("]},
        "d": {"error": "out of memory"},
    }
    assert report.failures(rows, known) == {
        "a": "1060 bundles, where the table has 1000; `make aot-tpu`",
        "c": "arguments are moved: %copy.1 = bf16[8] copy(",
        "d": "out of memory",
    }


def test_the_committed_table_and_document_are_of_the_cases():
    table = json.loads(report.TABLE.read_text())
    keys = report.all_keys()
    assert list(table["rows"]) == keys, "run `make aot-tpu`"
    assert {case.key for case in cases.quick_cases()} <= set(keys)
    assert not report.failures(table["rows"], {})
    text = report.document(table["rows"], table["environment"])
    assert report.DOCUMENT.read_text() == text
