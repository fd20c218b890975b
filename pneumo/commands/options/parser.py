"""The parser of the command line, built from the models of the options.

Like `arguments`, the module imports nothing slow.
"""

import argparse
from functools import partial
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pneumo.commands.options.arguments import COMMANDS, Options
from pneumo.runtime.errors import UserError, is_printable_text, quoted
from pneumo.training.config import RunConfig

MAX_VALUE_LENGTH = 4_096  # characters, as many as a path may have


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the whole usage."""

    def parse_known_args(self, *arguments: Any) -> tuple[argparse.Namespace, list[str]]:
        """Reject unknown arguments here, so that the message names the command's own help."""
        options, unknown = super().parse_known_args(*arguments)
        if unknown:
            self.error(f"unrecognized arguments: {quoted(' '.join(unknown))}")
        if empty := [name for name, value in vars(options).items() if value == []]:
            self.error(f"argument --{empty[0]}: must not be '--'")  # argparse turns it into a list
        return options, unknown

    def error(self, message: str) -> NoReturn:
        """Raise `UserError`."""
        raise UserError(f"{message}; see python -m {self.prog} --help")


def parse(arguments: list[str]) -> tuple[str, Options]:
    """Parse the arguments of the command line.

    A flag with an empty value counts as not set, because MLproject cannot omit a flag.

    Args:
        arguments: Arguments without the program's name.

    Returns:
        The name of the command and its options.

    Raises:
        UserError: The arguments name no command, or are invalid for it.
    """
    parser = Parser(prog="pneumo", description="An experiment harness for chest X-ray classifiers.")
    parsers = _add_commands(parser)
    values = {flag: text for flag, text in vars(parser.parse_args(arguments)).items() if text}
    command = values.pop("command")
    options = COMMANDS[command].options
    overrides = {flag: values.pop(flag) for flag in options.run_fields if flag in values}
    if overrides:
        values["overrides"] = overrides
    try:
        return command, options(**values)
    except ValidationError as error:
        first = error.errors()[0]
        flag, rule = first["loc"][0], first["msg"].removeprefix("Value error, ")
        parsers[command].error(f"argument --{flag}: {rule}: got '{quoted(values[flag])}'")


def _add_commands(parser: Parser) -> dict[str, Parser]:
    """Add a parser for each command, and return these parsers by the commands' names."""
    commands = parser.add_subparsers(
        required=True, dest="command", metavar="command", parser_class=Parser
    )
    for name, (options, description) in COMMANDS.items():
        command = commands.add_parser(
            name, help=description, description=description, allow_abbrev=False
        )
        for flag, field in flags_of(options).items():
            required = field.is_required()
            command.add_argument(
                f"--{flag}",
                required=required,
                default=argparse.SUPPRESS,
                metavar="VALUE",
                type=partial(_text, required),
                help=field.description
                + ("" if flag in options.run_fields else _default_note(field)),
            )
    return commands.choices


def flags_of(options: type[Options]) -> dict[str, FieldInfo]:
    """Return the flags of a command with the fields that they set, in the order of its help."""
    flags: dict[str, FieldInfo] = {}
    for name, field in options.model_fields.items():
        if name == "overrides":
            flags |= {
                field_name: RunConfig.model_fields[field_name] for field_name in options.run_fields
            }
        else:
            flags[name] = field
    return flags


def _default_note(field: FieldInfo) -> str:
    """Return the help's text about the default, or '' if there is no fixed default."""
    has_default = not field.is_required() and field.default is not None
    return f" (default: {field.default})" if has_default else ""


def _text(required: bool, text: str) -> str:
    """Return a flag's value; raise argparse's error if it cannot be printed and stored."""
    if (text or not required) and len(text) <= MAX_VALUE_LENGTH and is_printable_text(text):
        return text
    raise argparse.ArgumentTypeError(
        f"must have 1 to {MAX_VALUE_LENGTH} UTF-8 characters and no control characters: "
        f"got '{quoted(text)}'"
    )
