"""What every command-line script shares: one-line errors and types of options."""

import contextlib
import math
import re
import shlex
from collections.abc import Iterator

import click

from .int_lists import parse_int_list

COMMAND_LINE = 'command_line'  # in the `meta` of a SectionedCommand's context


@contextlib.contextmanager
def blame(option: str) -> Iterator[None]:
    """Turn a ValueError or OSError raised inside into one line that names `option` (exit code 1)."""
    try:
        yield
    except (ValueError, OSError) as error:
        message = ' '.join(str(error).split()) or type(error).__name__
        raise click.ClickException(f'{option}: {message}') from error


class IntList(click.ParamType):
    """A click type for `parse_int_list`; a repeated number is an error, since each seed gives one sample."""

    name = 'LIST'

    def convert(self, value, param, ctx):
        try:
            numbers = parse_int_list(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not isinstance(numbers, range) and len(set(numbers)) != len(numbers):
            self.fail('a number occurs twice', param, ctx)
        return numbers


class FloatRange(click.FloatRange):
    """click's FloatRange, which accepts NaN in any range, without NaN."""

    def convert(self, value, param, ctx):
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f'{value} is not a number', param, ctx)
        return number


class FloatList(click.ParamType):
    """Different numbers of 0 or more, separated by commas, as a list."""

    name = 'LIST'

    def convert(self, value, param, ctx):
        if isinstance(value, list):
            return value
        try:
            numbers = [float(part) for part in str(value).split(',')]
        except ValueError:
            self.fail(f'{value!r} is no list of numbers, such as 0,0.5,1', param, ctx)
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            self.fail(f'{value!r} holds a number that is negative or not finite', param, ctx)
        if len(set(numbers)) < len(numbers):
            self.fail('a number occurs twice', param, ctx)
        return numbers


class Resolution(click.ParamType):
    """Width and height, as 64x64 or 64,64."""

    name = 'WxH'

    def convert(self, value, param, ctx):
        match = re.fullmatch(r'([1-9]\d{0,4})[x,]([1-9]\d{0,4})', str(value))
        if match is None:
            self.fail(f'{value!r} is not a width and a height, such as 64x64', param, ctx)
        return int(match[1]), int(match[2])


def command_line() -> str:
    """The command that runs, as a shell takes it. It must be a SectionedCommand."""
    return click.get_current_context().meta[COMMAND_LINE]


class SectionedCommand(click.Command):
    """A command whose help shows its options under headings, and that knows its `command_line`.

    `sections` maps each heading to the name of the first parameter below it, in the order of the options.
    """

    def __init__(self, *args, sections: dict[str, str], **kwargs):
        super().__init__(*args, **kwargs)
        self.sections = sections

    def parse_args(self, ctx, args):
        ctx.meta[COMMAND_LINE] = shlex.join(['python', ctx.info_name or '', *args])
        return super().parse_args(ctx, args)

    def format_options(self, ctx, formatter):
        headings = {first: heading for heading, first in self.sections.items()}
        rows: dict[str, list] = {}
        heading = 'Options'
        for param in self.get_params(ctx):
            heading = headings.get(param.name, heading)
            record = param.get_help_record(ctx)
            if record is not None:
                rows.setdefault(heading, []).append(record)
        width = max(len(first) for records in rows.values() for first, _ in records)
        for heading, records in rows.items():
            with formatter.section(heading):
                # one column width for all sections, if that leaves room for the text
                records = [(first.ljust(min(width, 30)), text) for first, text in records]
                formatter.write_dl(records)
