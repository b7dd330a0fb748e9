"""Lists of integers as EDM's users write them: 1,2,5-10."""

import re
from collections.abc import Sequence


def parse_int_list(text: str | Sequence[int]) -> Sequence[int]:
    """'1,2,5-10' -> [1, 2, 5, 6, 7, 8, 9, 10] (EDM's syntax for seeds); one range stays a range. Raises ValueError."""
    if not isinstance(text, str):
        return text
    ranges = []
    for part in text.split(','):
        match = re.fullmatch(r'\s*(\d+)(?:-(\d+))?\s*', part)
        if match is None:
            raise ValueError(f'{part!r} is neither a number nor a range such as 0-63')
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first:
            raise ValueError(f'the range {part.strip()} runs backwards')
        ranges.append(range(first, last + 1))
    return ranges[0] if len(ranges) == 1 else [number for numbers in ranges for number in numbers]


def format_int_list(numbers) -> str:
    """[0, 1, 2, 7] -> '0-2,7'."""
    if isinstance(numbers, range) and numbers.step == 1 and len(numbers) > 1:
        return f'{numbers[0]}-{numbers[-1]}'
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ','.join(str(first) if first == last else f'{first}-{last}' for first, last in ranges)
