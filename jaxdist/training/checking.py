"""Checks of the batch and the loss that a step is made for."""

import functools
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.gradient import as_seen, has_state
from jaxdist.core.layout import traced_types
from jaxdist.core.mesh import path_text
from jaxdist.core.model_state import check_values
from jaxdist.core.types import Batch, Loss, Params, Parts
from jaxdist.core.workers import Workers
from jaxdist.models.parts import walk
from jaxdist.training.mean_loss import refuse_mean


def check_batch(batch: Batch, workers: int, accumulate: int = 1, devices: int = 1) -> None:
    """Says what is wrong with a batch that workers, their devices, or the parts of an accumulation, do not divide.

    Raises:
        InputError: with the sizes that would do.

    >>> check_batch({'x': jnp.ones(8)}, workers=3)
    Traceback (most recent call last):
    jaxdist.InputError: a batch of 8 examples cannot be divided among 3 workers; 6 or 9 would do
    """
    if not isinstance(batch, Mapping) or not batch:
        raise InputError(
            f"a batch is a dict of arrays [B, ...], such as {{'x': x, 'y': y}}; this one is a {type(batch).__name__}"
            f'{"" if batch else " without entries"}'
        )
    sizes = {name: jnp.shape(x)[0] if jnp.shape(x) else 0 for name, x in batch.items()}
    size = next(iter(sizes.values()), 0)
    if len(set(sizes.values())) != 1 or size < 1:
        raise InputError(f'every array of a batch needs the same number of rows, 1 or more; here they have {sizes}')
    if accumulate < 1:
        raise InputError(f'accumulate={accumulate} must be 1 or more')
    need = workers * devices * accumulate
    if size % need:
        parts = f' of {devices} devices' if devices > 1 else ''
        parts += f' in {accumulate} parts each' if accumulate > 1 else ''
        low, high = size // need * need, (size // need + 1) * need
        sizes_text = f'{low} or {high}' if low else f'{high}'
        raise InputError(
            f'a batch of {size} examples cannot be divided among {workers} workers{parts}; {sizes_text} would do'
        )


def check_update(update: Any) -> None:
    """Checks that this is an optax transformation.

    Raises:
        InputError: it is text, a function that makes a transformation, or something else.

    >>> check_update('mean() | sgd(0.1)')
    Traceback (most recent call last):
    jaxdist.InputError: the update is the text of a line: write jaxdist.build('mean() | sgd(0.1)')
    """
    if isinstance(update, optax.GradientTransformation):
        return
    if isinstance(update, str):
        raise InputError(f'the update is the text of a line: write jaxdist.build({update!r})')
    if isinstance(update, optax.MultiSteps):
        raise InputError('the update is an optax.MultiSteps: give its gradient_transformation()')
    if callable(update):
        name = getattr(update, '__name__', update)
        raise InputError(f'the update is the function {name}: call it, as in {name}(...)')
    raise InputError(
        'the update must be an optax transformation, as optax.chain(jaxdist.mean(), optax.adam(1e-3)) or jaxdist.build('
        f"'mean() | adam(1e-3)'), not a {type(update).__name__}"
    )


class PrecisionWarning(UserWarning):
    """Parameters are stored in a type that loses small updates."""


def warn_of_rounding(params: Params) -> None:
    """Warns if parameters are of 16 bits: an update that is small beside its entry is rounded away.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as seen:
    ...     warnings.simplefilter('always')
    ...     warn_of_rounding({'w': jnp.zeros(3, jnp.bfloat16), 'b': jnp.zeros(3)})
    >>> print(seen[0].message)
    parameter 'w' is bfloat16, and loses updates smaller than 1/512 of an entry: let init return float32, and compute in
    bfloat16 with make_step(compute=jnp.bfloat16), or --precision bfloat16
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    short = [(path, x.dtype) for path, x in leaves if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4]
    if short:
        path, dtype = short[0]
        more = f' (one of {len(short)})' if len(short) > 1 else ''
        warnings.warn(
            f'parameter {path_text(path)!r}{more} is {dtype}, and loses updates smaller than '
            f'1/{4 / float(jnp.finfo(dtype).eps):.0f} of an entry: let init return float32, and compute in {dtype} '
            f'with make_step(compute=jnp.{dtype}), or --precision bfloat16',
            PrecisionWarning,
            stacklevel=3,
        )


def check_parts(loss: Loss, parts: Parts, params: Params, values: Any, batch: Batch) -> None:
    """Checks that a step whose gradient is that of a model's parts was given their loss.

    Args:
        loss: the loss.
        parts: the parts.
        params: the parameters' shapes.
        values: the shapes of the model state; () without one.
        batch: the batch, or its shapes.

    Raises:
        InputError: there is a model state, or the loss returns other sums than the last part.

    >>> parts = Parts(lambda edge, batch: batch['x'], lambda row, x: x, lambda edge, x, batch: ({'loss': x.sum()}, 4))
    >>> params, batch = {'edge': (), 'blocks': jnp.ones(2)}, {'x': jnp.ones(4)}
    >>> check_parts(lambda p, b, key: ({'loss': b['x'].sum(), 'other': 0.0}, 4), parts, params, (), batch)
    Traceback (most recent call last):
    jaxdist.InputError: the loss has the sums loss, other, and the last part of the model loss: on this layout the step
    follows the parts, so give their loss, as `from_parts` makes it
    """
    if has_state(values):
        raise InputError('a model in parts has no model state on a layout with stages or regather')
    walked = lambda params, batch: parts.last(params['edge'], walk(parts, params, batch), batch)  # noqa: E731
    given, own = (
        sorted(jax.eval_shape(fn, params, batch)[0])
        for fn in (lambda params, batch: loss(params, batch, jax.random.key(0)), walked)
    )
    if given != own:
        raise InputError(
            f'the loss has the sums {", ".join(given)}, and the last part of the model {", ".join(own)}: on this layout'
            ' the step follows the parts, so give their loss, as `from_parts` makes it'
        )


def check_key(key: Any) -> None:
    """Checks that this is one random key.

    Raises:
        InputError: it is a number, or a key of the former kind.

    >>> check_key(0)
    Traceback (most recent call last):
    jaxdist.InputError: init takes a random key, such as jax.random.key(0), not int32[]
    """
    dtype = jnp.result_type(key)
    if not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) or jnp.shape(key):
        raise InputError(
            f'init takes a random key, such as jax.random.key(0), not {dtype}[{",".join(map(str, jnp.shape(key)))}]'
        )


def what_varies(
    loss: Loss, params: Params, values: Any, batch: Batch, workers: Workers, taken: tuple[str, ...]
) -> tuple[bool, Any]:
    """Whether the count that the loss returns depends on the data, and which values of the model state may vary.

    Args:
        loss: the loss.
        params: the parameters' shapes.
        values: the shapes of the model state; () without one.
        batch: the whole batch, or its shapes.
        workers: the workers.
        taken: names that the sums may not have.

    Raises:
        InputError: the loss returns something else, such as a mean.

    >>> from jaxdist.core.workers import simulated
    >>> loss = lambda p, b, key: ({'loss': p * jnp.sum(b['x'])}, jnp.sum(b['x'] > 0))
    >>> what_varies(loss, jnp.float32(1), (), {'x': jnp.ones(4)}, simulated(2), ())
    (True, ())
    """

    def evaluate(params: Params, values: Any, batch: Batch, varies: Any) -> tuple[jax.Array, jax.Array, Any]:
        values = jax.tree.map(lambda x, v: collectives.pvary(x, workers.axis) if v else x, values, varies)
        out = loss(as_seen(collectives.pvary(params, workers.axis), values), batch, jax.random.key(0))
        _check_form(out, values)
        twice = sorted({'count', 'skipped', 'not_finite', *taken} & set(out[0]))
        if twice:
            raise InputError(f"the loss's sums must not be called {twice}: the step's own metrics have these names")
        for name, x in {**out[0], 'count': out[1]}.items():
            if jnp.shape(x) != ():
                raise InputError(
                    f'the loss must return scalars, sums over the batch; {name!r} has shape {jnp.shape(x)}'
                )
        return jnp.asarray(out[0]['loss']), jnp.asarray(out[1]), out[2] if has_state(values) else ()

    specs = (P(), P(), P(workers.axis))
    varies = jax.tree.map(lambda _: False, values)
    while True:
        code = functools.partial(evaluate, varies=varies)
        with _traceable():
            (_, uneven, new), program = traced_types(code, workers, specs, params, values, batch)
        if new == varies:
            refuse_mean(program)
            return bool(uneven), varies
        varies = jax.tree.map(lambda a, b: a or b, new, varies)


@contextmanager
def _traceable() -> Iterator[None]:
    """A context in which a loss is traced; an error about a value that is not known yet has the place and the cure."""
    try:
        yield
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        inner = tuple(str(folder) for folder in (Path(jax.__file__).parent, Path(__file__).parents[1]))
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(inner)]
        place = f' in {frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line}' if frames else ''
        raise InputError(
            f'the loss cannot be compiled: it uses the value of a parameter or of the batch as a number of Python or '
            f'NumPy{place}\nTake jax.numpy in place of numpy, and jnp.where or jax.lax.cond in place of if'
        ) from error


def _check_form(out: Any, values: Any) -> None:
    """Checks what a loss returned, apart from the shapes of sums and count."""
    tuples, sums = isinstance(out, tuple), "sums a dict that holds 'loss', as in ({'loss': jnp.sum(...)}, batch_size"
    if tuples and len(out) == 3 and not has_state(values):
        raise InputError(
            'the loss returned three values, and with the third, a model state, init must return Variables(params, '
            'state); without one the loss returns (sums, count)'
        )
    if tuples and len(out) == 2 and has_state(values):
        raise InputError(
            'init returned Variables, so the loss must return (sums, count, state) with the state after the batch; it '
            'returned two values'
        )
    if not (tuples and len(out) in (2, 3) and isinstance(out[0], dict) and 'loss' in out[0]):
        raise InputError(
            f'the loss must return {"(sums, count, state)" if has_state(values) else "(sums, count)"} with {sums}'
            f'{", state" if has_state(values) else ""}); it returned {out}'
        )
    if has_state(values):
        check_values(values, out[2])
