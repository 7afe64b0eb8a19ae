"""Control characters, shown: a name from a stranger's data or folder must not control the terminal."""

CONTROL = [code for code in (*range(32), *range(127, 160)) if chr(code) not in '\t\n']
DIRECTION = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
"""Characters that change the order in which others are shown."""
ESCAPES = {code: f'\\x{code:02x}' if code < 256 else f'\\u{code:04x}' for code in (*CONTROL, *DIRECTION)}


def visible(text: str) -> str:
    """The text with its control characters shown, except tabs and ends of lines.

    >>> print(visible('a\\x1b]0;title\\x07'))
    a\\x1b]0;title\\x07
    """
    return text.translate(ESCAPES)
