"""A page of codes, decoded as docs/format.md says it, bit by bit and without pcodec."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass
class Bits:
    data: bytes
    at: int = 0

    def take(self, count: int) -> int:
        if self.at + count > 8 * len(self.data):
            raise ValueError("the page ends early")
        bits = int.from_bytes(self.data[self.at // 8 : (self.at + count + 7) // 8], "little") >> self.at % 8
        self.at += count
        return bits & (1 << count) - 1

    def to_the_byte(self) -> None:
        if self.take(-self.at % 8):
            raise ValueError("bits behind the last")


@dataclasses.dataclass(frozen=True)
class State:
    low: int
    offset_bits: int
    next_low: int
    next_bits: int


def page(data: bytes, width: int) -> list[int]:
    """The integers of a page of 8 or 16 bits each."""
    bits, kind = Bits(data), {8: 11, 16: 8}[width]
    check(bytes(bits.take(8) for _ in range(4)) == b"\x70\x63\x6f\x21")
    check(bits.take(8) == 3)
    check(bits.take(8) in (0, kind))
    bits.take(bits.take(6) + 1)
    bits.to_the_byte()
    version = bits.take(8)
    check(version in (3, 4))
    if version == 4:
        bits.take(8)
    found: list[int] = []
    while of := bits.take(8):
        check(of == kind)
        found += part(bits, width)
    return found


def part(bits: Bits, width: int) -> list[int]:
    number = bits.take(24) + 1
    check(bits.take(8) == 0)
    log = bits.take(4)
    states = list(table(bits, width, log))
    bits.to_the_byte()
    at = [bits.take(log) for _ in range(4)]
    bits.to_the_byte()
    found: list[int] = []
    while len(found) < number:
        batch = []
        for k in range(min(256, number - len(found))):
            batch.append(state := states[at[k % 4]])
            at[k % 4] = state.next_low + bits.take(state.next_bits)
        found += [wrapped(state.low + bits.take(state.offset_bits), width) for state in batch]
    bits.to_the_byte()
    return found


def table(bits: Bits, width: int, log: int) -> Iterator[State]:
    size, number = 1 << log, bits.take(15)
    check(log <= 14 and 1 <= number <= size and (number > 1 or log == 0))
    bins = [
        (bits.take(log) + 1, bits.take(width) - (1 << width - 1), bits.take(4 if width == 8 else 5))
        for _ in range(number)
    ]
    check(sum(weight for weight, _, _ in bins) == size and all(wide <= width for _, _, wide in bins))
    stride = 3 * size // 5
    stride += stride % 2 == 0
    turns = [k for k, (weight, _, _) in enumerate(bins) for _ in range(weight)]
    of = [0] * size
    for step, k in enumerate(turns):
        of[stride * step % size] = k
    numbers = [weight for weight, _, _ in bins]
    for k in of:
        y, count = numbers[k], 0
        numbers[k] += 1
        while y << count < size:
            count += 1
        yield State(bins[k][1], bins[k][2], (y << count) - size, count)


def wrapped(value: int, width: int) -> int:
    half = 1 << width - 1
    return (value + half) % (2 * half) - half


def check(fine: bool) -> None:
    if not fine:
        raise ValueError("no page of this format")
