"""Numbers as text: bytes, seconds, ratios, decimals."""

import math

from jaxdist.core.errors import InputError

UNITS = ('B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')
"""Decimal units: a kB is 1000 bytes."""


def bytes_text(n: float) -> str:
    """`n` bytes with three significant digits and a decimal unit; whole bytes below 1 kB.

    Raises:
        InputError: if `n` is negative or not finite.

    >>> bytes_text(0), bytes_text(999), bytes_text(1000), bytes_text(12_345_678)
    ('0 B', '999 B', '1.00 kB', '12.3 MB')
    """
    value = _checked(n, 'bytes')
    unit = 0
    while value >= 999.5 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f'{value:.0f} B' if unit == 0 else f'{_three_digits(value)} {UNITS[unit]}'


def seconds_text(s: float) -> str:
    """`s` seconds: micro- and milliseconds below one second, then seconds, then the two largest units, rounded.

    Raises:
        InputError: if `s` is negative or not finite.

    >>> (
    ...     seconds_text(0.0042),
    ...     seconds_text(12.34),
    ...     seconds_text(125),
    ...     seconds_text(3720),
    ...     seconds_text(273_600),
    ... )
    ('4.20 ms', '12.3 s', '2 min 05 s', '1 h 02 min', '3 d 04 h')
    """
    value = _checked(s, 'seconds')
    if 0 < value < 0.0009995:
        return f'{_three_digits(1e6 * value)} µs'
    if value < 0.9995:
        return f'{_three_digits(1000 * value)} ms'
    if value < 59.95:
        return f'{_three_digits(value)} s'
    for large, small, size in (('min', 's', 1), ('h', 'min', 60)):
        count = round(value / size)
        if count < {'min': 60 * 60, 'h': 24 * 60}[large]:
            return f'{count // 60} {large} {count % 60:02d} {small}'
    hours = round(value / 3600)
    return f'{hours // 24} d {hours % 24:02d} h'


def ratio_text(value: float, first: float) -> str:
    """How many times fewer or more `value` is than `first`, as text; empty if only one of them is 0.

    >>> ratio_text(10, 39), ratio_text(2048, 100), ratio_text(1.02, 1), ratio_text(5, 5), ratio_text(0, 5)
    ('x3.9 fewer', 'x20 more', 'x1.02 more', 'same', '')
    """
    if not value or not first:
        return '' if value != first else 'same'
    ratio = max(value / first, first / value)
    if ratio < 1.005:
        return 'same'
    digits = 2 if ratio < 1.995 else 1 if ratio < 9.95 else 0
    return f'x{ratio:.{digits}f} {"fewer" if value < first else "more"}'


def decimals(half: float | None) -> int:
    """The number of decimals that shows two significant digits of an uncertainty; 3 without one.

    >>> decimals(0.0123), decimals(0.31), decimals(15.0), decimals(None)
    (3, 2, 0, 3)
    """
    return min(max(1 - math.floor(math.log10(half)), 0), 6) if half else 3


def _checked(value: float, unit: str) -> float:
    if not math.isfinite(value) or value < 0:
        raise InputError(f'{unit} must be finite and not negative, got {value}')
    return float(value)


def _three_digits(value: float) -> str:
    return f'{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}'
