"""Ways to spoil a file: its bytes, its JSON, the header of a safetensors file."""

import json
import random
from collections.abc import Callable

_NUMBERS = (0, 1, -1, 2, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63)
_VALUES = (
    *_NUMBERS,
    None,
    True,
    False,
    0.5,
    -1e308,
    1e-320,
    float("nan"),
    float("inf"),
    "",
    "x",
    "é\u2028",
    "\ud800",
    "0",
    "../x",
    [],
    {},
    [None],
    {"": None},
    [[[]]],
)
_LETTERS = b'{}[]":,\\\n\r\t 0-9\x00\xff\xfe\xc3\xed\xa0\x80'

Mutation = Callable[[bytes, random.Random], bytes]


def bytewise(content: bytes, draw: random.Random) -> bytes:
    """One to four small mutations of bytes."""
    spoilt = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        start = draw.randint(0, len(spoilt))
        end = min(len(spoilt), start + int(2 ** draw.uniform(0, 8)))
        kind = draw.randrange(7)
        if kind == 0 and start < len(spoilt):
            spoilt[start] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del spoilt[start:]
        elif kind == 2:
            del spoilt[start:end]
        elif kind == 3:
            spoilt[start:start] = spoilt[start:end] * draw.randint(1, 3)
        elif kind == 4:
            spoilt[start:start] = bytes(draw.choices(_LETTERS, k=draw.randint(1, 9)))
        elif kind == 5:  # a count
            size = draw.choice((4, 8))
            number = draw.choice(_NUMBERS) % 2 ** (8 * size)
            spoilt[start : start + size] = number.to_bytes(size, "little")
        else:
            spoilt[start:end] = bytes(draw.choices(range(256), k=end - start))
    return bytes(spoilt)


def in_json(content: bytes, draw: random.Random) -> bytes:
    """Change, remove or repeat a value, a key or an item of a JSON document."""
    try:
        document = json.loads(content)
    except ValueError:
        return bytewise(content, draw)
    for _ in range(draw.randint(1, 3)):
        document = _spoilt(document, draw)
    text = json.dumps(document)
    if draw.randrange(30) == 0:
        text = text.replace("null", "[" * 100_000, 1)
    if draw.randrange(30) == 0:
        text = text.replace("0", "9" * 5000, 1)
    return text.encode()


def in_json_lines(content: bytes, draw: random.Random) -> bytes:
    """`in_json` in one line of many."""
    lines = content.split(b"\n")
    number = draw.randrange(len(lines))
    lines[number] = in_json(lines[number], draw)
    return b"\n".join(lines)


def in_safetensors(content: bytes, draw: random.Random) -> bytes:
    """Mutate the header as JSON, with the right length, or mutate bytes."""
    size = int.from_bytes(content[:8], "little")
    if draw.randrange(3) == 0:
        return bytewise(content, draw)
    header = in_json(content[8 : 8 + size], draw)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def either(*mutations: Mutation) -> Mutation:
    """One of several mutations."""
    return lambda content, draw: draw.choice(mutations)(content, draw)


def _spoilt(node, draw: random.Random):
    """The document with one node mutated; deeper nodes are chosen less often."""
    if not isinstance(node, (dict, list)) or not node or draw.randrange(4) == 0:
        return draw.choice(_VALUES)
    keys = list(node) if isinstance(node, dict) else range(len(node))
    key = draw.choice(keys)
    copy = node.copy()
    kind = draw.randrange(6)
    if kind == 0:
        del copy[key]
    elif kind == 1 and isinstance(copy, dict):
        copy[draw.choice(("", "x", "id", "text", "vocab_size"))] = copy.pop(key)
    elif kind == 1:
        copy.insert(key, copy[key])
    else:
        copy[key] = _spoilt(copy[key], draw)
    return copy
