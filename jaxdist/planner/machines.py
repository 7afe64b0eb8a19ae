"""The machines that the planner knows, and machines of users from JSON files."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdist.core.errors import InputError


@dataclass(frozen=True)
class Machine:
    """The numbers of one device and of its links.

    Attributes:
        name: the name.
        flops: the peak of matrix products in bfloat16, in FLOP/s.
        memory: the memory that a program can use, in bytes.
        link: bytes/s that a device sends in a ring along one mesh axis, inside a group.
        group: the number of devices that the fast links join: a node, or a slice of a pod.
        slow_link: bytes/s that a device sends between groups.
        reached: the share of the peak that matrix products reach, in (0, 1].
        launch: the shortest time in which one block of the model runs forward and backward, in seconds.

    Raises:
        InputError: a number is not positive, or `reached` is above 1.

    >>> dataclasses.replace(MACHINES['v5e'], link=0.0)
    Traceback (most recent call last):
    jaxdist.InputError: link of machine 'v5e' is 0.0: give a number above 0
    """

    name: str
    flops: float
    memory: float
    link: float
    group: int
    slow_link: float
    reached: float
    launch: float

    def __post_init__(self) -> None:
        for field in NUMBERS:
            value = getattr(self, field)
            # NaN is not above 0 either.
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float('inf'):
                raise InputError(f'{field} of machine {self.name!r} is {value!r}: give a number above 0')
        if self.reached > 1:
            raise InputError(f'reached of machine {self.name!r} is {self.reached}: give a share of the peak, at most 1')
        if self.group != int(self.group):
            raise InputError(f'group of machine {self.name!r} is {self.group}: give a whole number of devices')


NUMBERS = tuple(field.name for field in dataclasses.fields(Machine) if field.name != 'name')

# TPU: Google's pages docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e} give the peak, the size of a pod, the bandwidth of
# all links of a chip in both directions, and that of the data centre's network. A chip has two links along each axis
# of the torus, and a ring uses both: `link` is half of the bandwidth, for one direction, by the number of axes.
_TPU = (
    Machine(
        name='v5e',
        flops=197e12,  # page v5e
        memory=15.75 * 2**30,  # 16 GB by the page; the compiler's message says that 15.75 GiB can be used
        link=100e9,  # page v5e: 400 GB/s, 4 ports. The Scaling Book says 90e9 (from memory)
        group=256,  # page v5e: 16 x 16
        slow_link=3.125e9,  # page v5e: 2 x 100 Gbit/s for the 8 chips of a host
        reached=0.65,  # a guess; MaxText's Llama 2 70B, if all blocks were evaluated again, would reach 0.88
        launch=0.1e-3,  # a guess
    ),
    Machine(
        name='v5p',
        flops=459e12,  # page v5p
        memory=95e9,  # page v5p; in some of its versions GiB
        link=200e9,  # page v5p: 1,200 GB/s, 6 ports. The Scaling Book says 180e9 (from memory)
        group=6144,  # page v5p: the largest slice
        slow_link=6.25e9,  # page v5p: 50 Gbit/s for a chip
        reached=0.75,  # a guess; MaxText's Llama 2 70B, if all blocks were evaluated again, would reach 0.97
        launch=0.1e-3,  # a guess
    ),
    Machine(
        name='trillium',
        flops=918e12,  # page v6e
        memory=31.25 * 2**30,  # 32 GB by the page; that 31.25 GiB can be used is from memory
        link=200e9,  # page v6e: 800 GB/s, 4 ports. The Scaling Book says 180e9 (from memory)
        group=256,  # page v6e: 16 x 16
        slow_link=12.5e9,  # page v6e: 4 x 200 Gbit/s for the 8 chips of a host
        reached=0.68,  # fitted to MaxText's Llama 3.1 70B: tests/unit/test_planner_published.py
        launch=0.1e-3,  # a guess
    ),
)

_HOPPER = Machine(
    name='h100',
    flops=989e12,  # NVIDIA's data sheet, SXM, dense (from memory; the sheet's 1,979 is with sparsity)
    memory=80e9,  # data sheet
    link=370e9,  # NVLink: 450e9 one way by the data sheet; 370 to 380e9 measured in github.com/NVIDIA/nccl issue 1264
    group=8,  # a node
    slow_link=50e9,  # DGX H100: one adapter of 400 Gbit/s for a GPU (from memory)
    reached=0.45,  # a guess: between nanotron's 0.33 (fitted) and the best published programs
    launch=1e-3,  # a guess for compiled programs; nanotron, operation by operation, takes 10e-3 (fitted)
)

MACHINES: dict[str, Machine] = {
    **{each.name: each for each in _TPU},
    'v6e': _TPU[2],
    'h100': _HOPPER,
    # The same chip with more memory: 141 GB by the data sheet.
    'h200': dataclasses.replace(_HOPPER, name='h200', memory=141e9),
    # Emulated devices on two cores: all guesses, for plans that are tried out on a laptop.
    'cpu': Machine('cpu', flops=50e9, memory=4e9, link=1e9, group=4096, slow_link=1e9, reached=0.5, launch=1e-3),
}
"""The known machines by name."""


def machine(text: str) -> Machine:
    """The machine of a name, or of a JSON file with a `Machine`'s fields.

    A file may begin from a known machine, such as `{"like": "v5e", "link": 80e9}`.

    Args:
        text: a name in `MACHINES`, or the path of a file.

    Raises:
        InputError: there is neither a machine nor a file of that name, or the file is wrong.

    >>> machine('v5e').group
    256
    >>> machine('v4')
    Traceback (most recent call last):
    jaxdist.InputError: there is no machine 'v4', nor a file of that name; there are v5e, v5p, trillium, v6e, h100, ...
    """
    if text.lower() in MACHINES:
        return MACHINES[text.lower()]
    path = Path(text)
    if not path.is_file():
        raise InputError(f'there is no machine {text!r}, nor a file of that name; there are {", ".join(MACHINES)}')
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f'{text} is not a JSON file: {error}') from error
    if not isinstance(fields, dict):
        raise InputError(f'{text} has no fields: write {{"like": "v5e", "link": 80e9}}, for example')
    return _from_fields(text, {'name': path.stem, **fields})


def _from_fields(text: str, fields: dict[str, Any]) -> Machine:
    """The machine of a file's fields."""
    like = fields.pop('like', None)
    if like is not None and like not in MACHINES:
        raise InputError(f'{text}: there is no machine {like!r} to be like; there are {", ".join(MACHINES)}')
    if unknown := sorted(set(fields) - {'name', *NUMBERS}):
        raise InputError(f'{text}: a machine has no {unknown[0]!r}; it has {", ".join(NUMBERS)}')
    if like is not None:
        return dataclasses.replace(MACHINES[like], **fields)
    if missing := [field for field in NUMBERS if field not in fields]:
        raise InputError(f'{text} lacks {", ".join(missing)}: give them, or "like": "v5e"')
    return Machine(**fields)
