"""Compiled programs as text, in the notations of several backends."""

import textwrap
from fractions import Fraction

import pytest
from ledger_fixtures import GRID, GROUPS, program

from jaxdist import ledger
from jaxdist.ledger import _hlo as hlo

WORKERS = [[0, 2, 4, 6], [1, 3, 5, 7]]
MODEL = [[0, 1], [2, 3], [4, 5], [6, 7]]


def read(body: str, **options: str) -> list[tuple[tuple[str, ...], str, str, Fraction, int | None]]:
    return [e[:5] for e in ledger.compiled(program(body, **options), GRID)]


@pytest.mark.parametrize(
    'text, expected',
    [
        ('{{0,2,4,6},{1,3,5,7}}', WORKERS),
        ('{{0,2,4,6}, {1,3,5,7}}', WORKERS),
        ('[2,4]<=[4,2]T(1,0)', WORKERS),
        ('[4,2]<=[8]', MODEL),
        ('[4,2]<=[2,4]', MODEL),
        ('[2,4]<=[2,2,2]T(2,0,1)', WORKERS),
        ("mesh['workers'=4,'model'=2] {'workers'}", WORKERS),
        ("mesh['workers'=4,'model'=2] {'model'}", MODEL),
        ("mesh['workers'=4,'model'=2] {'workers','model'}", [list(range(8))]),
        ("mesh['all'=8] {'all':(1)4}", WORKERS),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'a'}", MODEL),
        ("mesh['a'=2,'b'=4], device_ids=([8]) {'b'}", [list(range(4)), list(range(4, 8))]),
        ("mesh['all'=8] {'all':(4)2}", MODEL),
        ("mesh['all'=8] {'all':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ('[1,8]<=[8]', [list(range(8))]),
        ('{}', [list(range(8))]),
        ('{{0}}', [[0]]),
    ],
)
def test_groups_in_every_notation(text: str, expected: list[list[int]]) -> None:
    assert hlo.groups(f', channel_id=1, replica_groups={text}, dimensions={{0}}', 8) == expected


def test_groups_in_an_unknown_notation() -> None:
    with pytest.raises(ValueError, match=r'notation that the ledger does not know: <0\.\.7>'):
        hlo.groups(', replica_groups=<0..7>, dimensions={0}', 8)
    with pytest.raises(ValueError, match='does not know: mesh'):
        hlo.groups(", replica_groups=mesh['a'=8], device_ids=<=[8] {'a'}", 8)


@pytest.mark.parametrize(
    'shape, expected',
    [
        ('f32[4,8]{1,0}', {'float32': 128}),
        ('(f32[4,8]{1,0}, /*index=1*/s8[3]{0}, f32[])', {'float32': 132, 'int8': 3}),
        ('bf16[256,512]{1,0:T(8,128)(2,1)S(1)}', {'bfloat16': 262144}),
        ('s4[3]{0:E(4)}', {'int4': Fraction(3, 2)}),
        ('u4[2]', {'uint4': 1}),
        ('pred[5]{0}', {'bool': 5}),
        ('f8e4m3fn[7]', {'float8_e4m3fn': 7}),
        ('f8e5m2[7]', {'float8_e5m2': 7}),
        ('(u32[]{:S(2)}, token[])', {'uint32': 4}),
        ('f16[<=8]', {'float16': 16}),
        ('c64[2]', {'complex64': 16}),
        ('f32[0,4]', {'float32': 0}),
    ],
)
def test_shapes(shape: str, expected: dict[str, Fraction]) -> None:
    assert hlo.payload(shape) == expected


def test_an_unknown_dtype() -> None:
    with pytest.raises(ValueError, match="'q7' is not a dtype"):
        hlo.payload('q7[3]')


def test_every_kind() -> None:
    collectives = read(f"""
        %a = f32[80]{{0}} all-reduce(%x), channel_id=1, {GROUPS}, use_global_device_ids=true, to_apply=%add
        %b = f32[320]{{0}} all-gather(f32[80]{{0}} %x), channel_id=1, {GROUPS}, dimensions={{0}}
        %c = f32[80]{{0}} all-to-all(x), channel_id=1, {GROUPS}, dimensions={{0}}
        %d = f32[20]{{0}} reduce-scatter(%x), channel_id=1, {GROUPS}, dimensions={{0}}, to_apply=%add
        ROOT %e = f32[80]{{0}} collective-permute(%x), channel_id=1, source_target_pairs={{{{0,2}},{{2,4}},{{5,5}}}}
    """)
    expected = [('all_reduce', 480), ('all_gather', 960), ('all_to_all', 240), ('reduce_scatter', 240), ('permute', 80)]
    assert collectives == [(('workers',), kind, 'float32', sent, 1) for kind, sent in expected]


def test_variadic_and_asynchronous_collectives_count_once() -> None:
    """In the form of XLA for GPU."""
    collectives = read(f"""
        %y = s8[8]{{0}} custom-call(%x), custom_call_target="f", metadata={{op_name="a (b, c"}}
        %s = (f32[80]{{0}}, s8[8]{{0}}) all-reduce-start(%x, %y), channel_id=1, {GROUPS}, to_apply=%add
        %t = (f32[80]{{0}}, s8[8]{{0}}) all-reduce-done(%s)
        %g = (f32[80]{{0}}, f32[320]{{0}}) all-gather-start(%x), channel_id=2, {GROUPS}, dimensions={{0}}
        %h = f32[320]{{0}} all-gather-done(%g)
        %p = (f32[80]{{0}}, f32[80]{{0}}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{{{0,1}}}}
        %q = f32[80]{{0}} collective-permute-done(%p)
        %m = ((f32[80]{{0}}), f32[20]{{0}}) reduce-scatter-start(%x), channel_id=3, {GROUPS}, to_apply=%add
        %n = f32[20]{{0}} reduce-scatter-done(%m)
    """)
    workers = ('workers',)
    assert collectives == [
        (workers, 'all_reduce', 'float32', 480, 1),
        (workers, 'all_reduce', 'int8', 12, 1),
        (workers, 'all_gather', 'float32', 960, 1),
        (('model',), 'permute', 'float32', 40, 1),
        (workers, 'reduce_scatter', 'float32', 240, 1),
    ]


def test_called_computations() -> None:
    more = """
        %async (p: f32[80]) -> f32[80] {
          %p = f32[80]{0} parameter(0)
          ROOT %r = f32[80]{0} all-to-all(%p), channel_id=1, replica_groups=[4,2]<=[8]
        }, execution_thread="other"

        %called (p: f32[80]) -> f32[80] {
          %p = f32[80]{0} parameter(0)
          %s = ((f32[80]{0}), f32[80]{0}) async-start(%p), calls=%async
          ROOT %r = f32[80]{0} async-done(%s), calls=%async
        }
    """
    sends = (('model',), 'all_to_all', 'float32', 160, 1)
    assert read('ROOT %r = f32[80]{0} call(%x), to_apply=%called', more=more) == [sends]
    assert read('ROOT %r = f32[80]{0} fusion(%x), kind=kLoop, calls=%called', more=more) == [sends]
    assert read('ROOT %r = f32[80]{0} custom-call(%x), called_computations={%called}', more=more) == [sends]
    assert read('ROOT %r = f32[80]{0} negate(%x)', more=more) == []


LISTED = 'branch_computations={%local, %synchronise}'
NAMED = 'true_computation=%synchronise, false_computation=%local'


@pytest.mark.parametrize('branches', [LISTED, NAMED])
def test_branches(branches: str) -> None:
    more = f"""
        %local (p: f32[80]) -> f32[80] {{
          ROOT %p = f32[80]{{0}} parameter(0)
        }}

        %synchronise (p: f32[80]) -> f32[80] {{
          %p = f32[80]{{0}} parameter(0)
          ROOT %r = f32[80]{{0}} all-reduce(%p), channel_id=1, {GROUPS}, to_apply=%add
        }}
    """
    body = f'%i = s32[] constant(1)\nROOT %choice = f32[80]{{0}} conditional(%i, %x, %x), {branches}'
    [collective] = ledger.compiled(program(body, more=more), GRID)
    assert collective.branch == (ledger.Branch('choice', 1),)
    assert ledger.totals([collective]) == {(('workers',), 'float32', True): 480}


LOOP = f"""
    %body (s: (s32[], f32[80], s32[])) -> (s32[], f32[80], s32[]) {{
      %s = (s32[]{{:T(128)}}, f32[80]{{0}}, s32[]) parameter(0)
      %i = s32[] get-tuple-element(%s), index=0
      %y = f32[80]{{0}} get-tuple-element(%s), index=1
      %by = s32[] get-tuple-element(%s), index=2
      %j = s32[]{{:T(128)}} add(%i, %by)
      %z = f32[80]{{0}} all-reduce(%y), channel_id=1, {GROUPS}, to_apply=%add
      ROOT %t = (s32[], f32[80]{{0}}, s32[]) tuple(%j, %z, %by)
    }}

    %ends (s: (s32[], f32[80], s32[])) -> pred[] {{
      %s = (s32[], f32[80]{{0}}, s32[]) parameter(0)
      %i = s32[] get-tuple-element(%s), index=0
      %n = s32[] constant(9)
      ROOT %lt = pred[] compare(%i, %n), direction=LT
    }}
"""
ENTERED = """
    %zero = s32[] constant(0)
    %start = s32[] copy(%zero)
    %by = s32[] constant(2)
    %t = (s32[], f32[80]{0}, s32[]) tuple(%start, %x, %by)
    ROOT %w = (s32[], f32[80]{0}, s32[]) while(%t), condition=%ends, body=%body
"""
KNOWN = ENTERED.rstrip() + ', backend_config={"known_trip_count":{"n":"7"},"known_init_step":{"init":"0","step":"1"}}'


@pytest.mark.parametrize(
    'body, loop, times',
    [
        (KNOWN, LOOP, 7),
        (ENTERED, LOOP, 5),  # 0, 2, 4, 6, 8
        (ENTERED.replace('constant(0)', 'constant(4)'), LOOP, 3),
        (ENTERED.replace('constant(0)', 'parameter(1)'), LOOP, None),
        (ENTERED, LOOP.replace('direction=LT', 'direction=NE'), None),
        (ENTERED, LOOP.replace('tuple(%j, %z, %by)', 'tuple(%j, %z, %j)'), None),
        (ENTERED, LOOP.replace('add(%i, %by)', 'multiply(%i, %by)'), None),
    ],
)
def test_loops(body: str, loop: str, times: int | None) -> None:
    """The trip count is in the text or, for TPU, has to be computed."""
    assert read(body, more=loop) == [(('workers',), 'all_reduce', 'float32', 480, times)]


def test_a_chain_of_fusions_on_tpu_is_one_collective() -> None:
    gather = (
        f'all-gather(%p), channel_id=1, {GROUPS}, dimensions={{0}}, frontend_attributes={{chain_id="0"}}, '
        'metadata={op_name="jit(f)/all_gather"}'
    )
    parts = [
        f"""
        %part.{i} (p: f32[80]) -> f32[320] {{
          %p = f32[80]{{0}} parameter(0)
          %g = f32[320]{{0}} {gather}
          ROOT %c = f32[320]{{0}} custom-call(%g), custom_call_target="{target}"
        }}
        """
        for i, target in enumerate(['AsyncCollectiveStart', 'Continue', 'AsyncCollectiveDone'])
    ]
    body = '\n'.join(f'%f{i} = f32[320]{{0}} fusion(%x), kind=kCustom, calls=%part.{i}' for i in range(3))
    another = '%g = f32[320]{0} ' + gather.replace('%p', '%x').replace('"0"', '"1"')
    once = (('workers',), 'all_gather', 'float32', 960, 1)
    assert read(body, more=''.join(parts)) == [once]
    assert read(f'{body}\n{another}', more=''.join(parts)) == [once, once]
    loop = LOOP.replace(
        '%z = f32[80]{0} all-reduce(%y)', '%z = f32[320]{0} ' + gather.replace('%p', '%y') + ', old=(0)'
    )
    in_a_loop = (('workers',), 'all_gather', 'float32', 960, 5)
    after, more = f'{body}\n{ENTERED}', textwrap.dedent(''.join(parts)) + textwrap.dedent(loop)
    assert read(after, more=more) == [once]  # the chain goes on in the loop
    assert read(after, more=more.replace('chain_id="0"', 'chain_id="2"', 3)) == [once, in_a_loop]


def test_reduce_scatter_on_tpu() -> None:
    more = """
        %all-reduce-scatter.3 (input: f32[80]) -> f32[40] {
          %input = f32[80]{0} parameter(0)
          %r = f32[80]{0} all-reduce(%input), channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
          %id = u32[] partition-id()
          ROOT %d = f32[40]{0} dynamic-slice(%r, %id), dynamic_slice_sizes={40}
        }
    """
    body = 'ROOT %f = f32[40]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3'
    assert read(body, more=more) == [(('model',), 'reduce_scatter', 'float32', 160, 1)]


def test_groups_without_a_channel() -> None:
    """They are groups of replicas, of which there is one unless the module has a replica count."""
    no_channel = '%a = f32[80]{0} all-reduce(%x), replica_groups={}, to_apply=%add'
    assert read(no_channel) == []
    over_all = [(('workers', 'model'), 'all_reduce', 'float32', 560, 1)]
    assert read(no_channel, head='replica_count=8') == over_all
    assert read(no_channel.replace('replica', 'channel_id=1, replica')) == over_all
    assert read(f'%a = f32[80]{{0}} all-gather(%x), {GROUPS}') == [(('workers',), 'all_gather', 'float32', 960, 1)]


def test_what_a_ragged_exchange_sends_depends_on_data() -> None:
    ragged = f'%a = f32[80]{{0}} ragged-all-to-all(%x, %x, %x), {GROUPS}'
    assert read(ragged) == [(('workers',), 'ragged_all_to_all', 'float32', 240, None)]


@pytest.mark.parametrize(
    'body, head, error, message',
    [
        ('%a = f32[80]{0} collective-broadcast(%x)', 'num_partitions=8', NotImplementedError, 'collective-broadcast'),
        (
            '%a = (f32[80]{0}, u32[], token[]) send(%x)',
            'num_partitions=8',
            NotImplementedError,
            'what send sends: a in',
        ),
        ('%a = f32[80]{0} negate(%x)', 'num_partitions=4', ValueError, r'compiled for 4 devices; the mesh .* has 8'),
        (
            '%a = f32[80]{0} all-gather(%x), channel_id=1, replica_groups={{0,8}}',
            'num_partitions=8',
            ValueError,
            'a in main.1_spmd names a device beyond the 8',
        ),
    ],
)
def test_refusals(body: str, head: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read(body, head=head)


def test_transfers_to_the_host_are_not_counted() -> None:
    assert read('%a = (f32[80]{0}, u32[], token[]) send(%x), channel_id=2, is_host_transfer=true') == []


def test_a_text_that_is_not_a_compiled_program() -> None:
    with pytest.raises(ValueError, match='no computation is marked ENTRY'):
        ledger.compiled('module @jit_f {}', GRID)
