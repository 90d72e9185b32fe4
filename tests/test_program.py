"""Programs in XLA's text form, whose figures are known by hand."""

import pytest

from vidmotion.program import Program, _groups

# A program for four devices: an all-reduce of 32 floats, a loop of three rounds around an all-gather of 64 bytes, a
# reduce-scatter that leaves 8 bfloat16, an all-to-all of 40 bytes, a permute of 5 bytes.
PROGRAM = """\
HloModule jit_update, is_scheduled=true, num_partitions=4

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%body (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %all-gather.1 = f32[16]{0} all-gather(%x), channel_id=2, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %t = (s32[], f32[16]) tuple(%i, %all-gather.1)
}

%condition (p: (s32[], f32[16])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[32]) -> f32[32] {
  %all-reduce = (f32[16]{0}, f32[4,4]{1,0}) all-reduce(%p, %q), replica_groups={{0,1,2,3}}, to_apply=%sum
  %while.1 = (s32[], f32[16]) while(%init), condition=%condition, body=%body@ROUNDS@
  %rs = bf16[8]{0} reduce-scatter(%r), replica_groups=[2,2]<=[4], dimensions={0}, to_apply=%sum
  %a2a = s8[40]{0} all-to-all(%v), replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, dimensions={0}
  %cp = u8[5]{0} collective-permute(%s), source_target_pairs={{0,1},{1,0}}
  ROOT %out = f32[32] copy(%p)
}
"""


def test_traffic_of_a_program_reckoned_by_hand():
    told = Program(PROGRAM.replace("@ROUNDS@", ', backend_config={"known_trip_count":{"n":"3"}}'))
    expected = {
        "all-reduce": 2 * 128 * 3 // 4,
        "all-gather": 3 * 64 * 3 // 4,
        "reduce-scatter": 16 * 1,  # in groups of two, half of 32 bytes is sent
        "all-to-all": 20,  # along one of two axes of size two
        "collective-permute": 5,
    }
    assert (told.moved_bytes(), told.unknown_loops) == (expected, 0)
    untold = Program(PROGRAM.replace("@ROUNDS@", ""))
    assert untold.moved_bytes() == expected | {"all-gather": 48}
    assert untold.unknown_loops == 1


def of_four(line):
    """Returns a program of one instruction for four devices."""
    return Program(
        f"HloModule m, num_partitions=4\n\nENTRY %e (x: f32[4]) -> f32[16] {{\n{line}\n}}\n"
    )


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        ("all-gather-start", "(f32[4], f32[16])", 48),
        ("reduce-scatter-start", "((f32[16], f32[32]), (f32[4], f32[8]))", 3 * 48),
        ("all-reduce-start", "f32[16]", 96),
        ("collective-permute-start", "(u8[100], u8[100])", 100),
    ],
)
def test_collectives_that_only_start_have_their_operands_in_their_shapes(kind, shape, expected):
    line = f"  %g = {shape} {kind}(%x), replica_groups=[1,4]<=[4], dimensions={{0}}"
    program = of_four(line)
    assert program.moved_bytes()[kind.removesuffix("-start")] == expected


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['x'=2,'y'=4] {'y'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['x'=2,'y'=4] {'x'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['x'=8] {'x':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("{}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_groups_of_devices(groups, expected):
    told = _groups(f"replica_groups={groups}, dimensions={{0}}", 8)
    assert told.tolist() == expected


@pytest.mark.parametrize(
    ("groups", "island", "expected"),
    [
        ("[1,4]<=[4]", 4, 0),
        ("[2,2]<=[4]", 2, 0),
        # Each of two devices sends half of the 64 bytes to the other island.
        ("[2,2]<=[2,2]T(1,0)", 2, 32),
        # Each of four devices sends 48 bytes; the two of an island share what leaves it.
        ("[1,4]<=[4]", 2, 24),
        ("[1,4]<=[4]", 1, 48),
    ],
)
def test_traffic_between_islands(groups, island, expected):
    line = f"  ROOT %g = f32[16]{{0}} all-gather(%x), replica_groups={groups}, dimensions={{0}}"
    program = of_four(line)
    assert program.moved_bytes(island)["all-gather"] == expected


def test_a_permute_leaves_an_island_where_one_of_its_pairs_does():
    line = "  ROOT %c = u8[5]{0} collective-permute(%x), source_target_pairs={{0,1},{1,2}}"
    program = of_four(line)
    assert program.moved_bytes(2)["collective-permute"] == 5
    assert program.moved_bytes(4)["collective-permute"] == 0


def told(path, cycles=0):
    """Returns what follows an instruction: where it comes from, and the compiler's estimate."""
    name = f', metadata={{op_name="jit(update)/{path}"}}' if path else ""
    estimate = f'{{"window_config":{{"estimated_cycles":"{cycles}"}}}}'
    return name + (f", backend_config={estimate}" if cycles else "")


# A fusion around a product, in a loop of five rounds; a copy without a name; a kernel of attention.
TPU = f"""\
HloModule jit_update, is_scheduled=true

%fused (a: bf16[8,16], b: bf16[16,4]) -> bf16[8,4] {{
  ROOT %p = bf16[8,4]{{1,0:T(8,128)(2,1)}} convolution(%a, %b){told("jvp(Net)/block_3/mlp/dot_general")}
}}

%body (t: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {{
  %f = bf16[8,4]{{1,0:T(8,128)(2,1)S(1)}} fusion(%x, %y), kind=kOutput, calls=%fused\
{told("transpose(jvp(Net))/while/body/block_3/mlp/dot_general", 200)}
  ROOT %t = (s32[], bf16[8,4]) tuple(%i, %f)
}}

%condition (t: (s32[], bf16[8,4])) -> pred[] {{
  ROOT %less = pred[] compare(%i, %n), direction=LT
}}

ENTRY %main (p: f32[32]) -> f32[32] {{
  %w = (s32[], bf16[8,4]) while(%init), condition=%condition, body=%body, \
backend_config={{"known_trip_count":{{"n":"5"}}}}
  %c = f32[1024]{{0}} copy(%p){told("", 300)}
  %k = bf16[2,8,4]{{2,1,0}} custom-call(%q), custom_call_target="tpu_custom_call"\
{told("jvp(Net)/block_0/flash_attention", 700)}
  ROOT %out = f32[32] copy(%c)
}}
"""


def test_cycles_count_as_often_as_loops_go_round():
    assert sorted(Program(TPU).cycles()) == [
        ("", "copy", 300),
        ("Net/block_*", "flash_attention", 700),
        ("Net/block_*/mlp", "dot_general", 1000),
    ]


def test_rounds_are_read_from_the_condition():
    """In the form that the TPU's compiler writes."""
    loop = """\
%cond (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(6), backend_config={"flag_configs":[]}
  %p = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%i, %limit), direction=LT
}
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = f32[8]{0} copy(%p), backend_config={"estimated_cycles":"50"}
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%a), condition=%cond, body=%body
}
"""
    program = Program(loop)
    assert list(program.cycles()) == [("", "copy", 6 * 50)] and program.unknown_loops == 0
    other = Program(loop.replace("direction=LT", "direction=GT"))
    assert list(other.cycles()) == [("", "copy", 50)] and other.unknown_loops == 1


# Two kernels for which the compiler estimates no cycles: one states its cost, of the other only shapes are known.
UNTIMED = """\
ENTRY %main (q: bf16[2,8,256,64]) -> bf16[2,8,256,64] {
  %s = bf16[2,8,256,64] custom-call(%q), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(f)/jvp(Net)/block_3/short_attention_forward/pallas_call"}, \
backend_config={"custom_call_config":{"cost_estimate":{"flops":"70","transcendentals":"5","bytes_accessed":"90"}}}
  ROOT %d = bf16[2,8,256,64] custom-call(%q, %k), custom_call_target="tpu_custom_call", \
operand_layout_constraints={bf16[2,8,256,64]{3,2,1,0}, bf16[2,8,512,64]{3,2,1,0}}, \
metadata={op_name="jit(f)/transpose(jvp(Net))/flash_mha_bwd_dkv_block_q_512/pallas_call"}
}
"""


def test_kernels_that_the_compiler_does_not_time_have_a_cost():
    # Four products of 256 queries and 512 keys of 64 channels, which take as long as 128, for 2 x 8 heads; and the
    # bytes of queries, keys and the result.
    flops = 4 * 2 * (2 * 8) * 256 * 512 * 128
    moved = 2 * 2 * 8 * 64 * (256 + 512 + 256)
    assert list(Program(UNTIMED).kernel_costs()) == [
        ("Net/block_*/short_attention_forward", "fused attention", 70, 90),
        ("Net/flash_mha_bwd_dkv_block_q_*", "fused attention", flops, moved),
    ]
    assert Program(UNTIMED).kernels()["fused attention"] == 2
    # A kernel that the compiler does time is counted with its cycles.
    assert not list(Program(TPU).kernel_costs())


def test_kernels_of_a_tpu():
    assert Program(TPU).kernels() == {"fused attention": 1, "convolution": 0, "product": 5}


@pytest.mark.parametrize(
    ("target", "kernel"),
    [
        ("__cublas$lt$matmul", "product"),
        ("__cudnn$convForward", "convolution"),
        ("__cudnn$fmhaSoftmaxBackward", "fused attention"),
        ("AssumeGatherIndicesInBound", None),
    ],
)
def test_kernels_of_a_gpu(target, kernel):
    line = f'  ROOT %c = f32[8]{{0}} custom-call(%p), custom_call_target="{target}"'
    count = Program(f"ENTRY %main (p: f32[8]) -> f32[8] {{\n{line}\n}}\n").kernels()
    assert {name for name, times in count.items() if times} == ({kernel} - {None})


def test_largest_arrays_are_those_in_memory():
    first, second, *_ = Program(TPU).largest_arrays()
    assert (first["bytes"], first["shape"], first["operation"]) == (4096, "f32[1024]", "copy")
    assert (second["bytes"], second["shape"]) == (2 * 8 * 4 * 2, "bf16[2,8,4]")
