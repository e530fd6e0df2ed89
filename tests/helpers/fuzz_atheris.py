"""The reader under libFuzzer, guided by the branches of the package's own code; for longer runs than a test.

    pip install atheris
    python tests/helpers/fuzz_atheris.py -max_total_time=600 -seed=1 [CORPUS]

The first byte of an input says what the others stand for: a file as it is; the common entry, the index, or the payload
of one tensor of a valid file, signed anew. Any exception but the file's own errors stops the run and saves the input.
"""

from __future__ import annotations

import functools
import sys

import atheris

with atheris.instrument_imports(include=["opq"], enable_loader_override=False):
    import fuzz

fuzz.narrowed()
SEEDS = fuzz.seeds()
PARTS = [fuzz.taken_apart(data) for number, data in enumerate(SEEDS) if number != fuzz.ENTRIES]


def case(data: bytes) -> fuzz.Case:
    """The file that an input stands for."""
    kind, rest = data[0] if data else 0, data[1:]
    if kind % 4 == 0:
        return fuzz.Case("whole", rest, True, fuzz.ANY)
    if kind % 4 == 1:
        return fuzz.Case("common entry", fuzz.with_common(rest), True, fuzz.SIGNED)
    parts = PARTS[kind // 4 % 3]
    if kind % 4 == 2:
        return fuzz.Case("index", fuzz.put_together(parts, head=rest), True, fuzz.SIGNED)
    k = kind // 12 % len(parts.payloads)
    changed, head = fuzz._with(parts, k, rest), index_for(kind // 4 % 3, k, len(rest))
    return fuzz.Case("payload", fuzz.put_together(changed, head=head), True, fuzz.SIGNED)


@functools.cache
def index_for(number: int, k: int, length: int) -> bytes:
    """The index of a valid file of which one payload has another length."""
    parts = fuzz._with(PARTS[number], k, bytes(length))
    return fuzz.index.encode(parts.plan, parts.places)


def corpus() -> list[bytes]:
    """Inputs that stand for the valid files and all their parts."""
    whole = [bytes([0]) + data for data in SEEDS]
    commons = [bytes([1]) + data[8 + int.from_bytes(data[:8], "little") + 4 :] for data in SEEDS]
    return [
        *whole,
        *commons,
        *(
            bytes([12 * k + 4 * number + 3]) + payload
            for number, parts in enumerate(PARTS)
            for k, payload in enumerate(parts.payloads)
        ),
    ]


def one(data: bytes) -> None:
    """One input; raises what the reader should not have raised."""
    fuzz.judge(case(data), (PARTS[0].plan, {}))


def main() -> None:
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    for number, data in enumerate(corpus() if folders else []):
        with open(f"{folders[0]}/valid-{number}", "wb") as file:
            file.write(data)
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
