"""jsonargparse's parser, which tells mistakes in one line, and the YAML that it reads."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, get_loader, set_loader

LOAD: Callable[[str], Any] = get_loader("yaml")


def _load_yaml(text: str) -> Any:
    """As jsonargparse loads it; a name that is given twice, of which YAML takes the last, is an error."""
    nodes = [yaml.compose(text, Loader=yaml.SafeLoader)]
    while nodes:
        if isinstance(node := nodes.pop(), yaml.MappingNode):
            names = [key.value for key, _ in node.value]
            if twice := [name for name in names if names.count(name) > 1]:
                raise yaml.YAMLError(f"{twice[0]} is given twice: leave one out")
            nodes += [value for _, value in node.value]
    return LOAD(text)


set_loader("yaml", _load_yaml, exceptions=(yaml.YAMLError,))


class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Options as jsonargparse shows them, the description as it was written."""


class Parser(ArgumentParser):
    """jsonargparse's parser, whose errors name the nearest known option in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = self._told(message.strip())
        if not self.exit_on_error:
            raise ArgumentError(None, message) from ex
        if os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0":
            print(f"error: {message}", file=sys.stderr)
            print(f"see python -m {self.prog} --help for every option", file=sys.stderr)
        sys.exit(2)

    def _told(self, message: str) -> str:
        """What jsonargparse has to say, in a sentence of ours where it is known."""
        known = list(self.get_defaults().keys())
        inner = re.search(r"Problem with given class_path .*?:\n\s*(.*)", message)  # told by the group's own parser
        where = re.match(r'Parser key "([^"]+)":', message)
        if where is None:
            return message + _nearest(message, known)
        option = where[1]
        if inner:
            return f"{option}: {inner[1]}"
        value = re.search(r"Unable to load config '(.*)'", message)
        if value and any(name.startswith(f"{option}.") for name in known):
            return f"{option} is {value[1]!r}: {GROUP}"
        hints = [getattr(action, "_typehint", None) for action in self._actions if action.dest == option]
        told = _of_value(message, option, hints[0]) if hints else None
        return told or message + _nearest(message, known)


GROUP = "it is a group of options, give some of them under it or leave it out"
ONE = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: 'text, in quotes where it looks like a number, as "1:3" does',
}
SEVERAL = {
    int: "whole numbers",
    float: "numbers",
    str: 'texts, such as ["a", "b"]',
    list: "lists, no name twice, such as {a: [1, 2]}",
}


def _of_value(message: str, option: str, hint: Any) -> str | None:
    """What `message` says of a value that is not of the type `hint`, in one sentence; None if it says nothing such."""
    wanted, choices = _wanted(hint)
    given = re.search(r"^.*(Got|Given) value: (.*)", message, re.M | re.S)
    if not (wanted and given and "Expected" in message):
        return None
    outer = get_origin(hint)
    inside = given[1] == "Got" and outer in (tuple, dict) and f"'{outer.__name__}'" not in message
    near = difflib.get_close_matches(given[2].strip(), choices, n=1)
    return (
        f"{option} {'holds' if inside else 'is'} {given[2].strip()!r}: {wanted}"
        f"{f'; did you mean {near[0]}?' if near else ''}"
    )


def _wanted(hint: Any) -> tuple[str, tuple[str, ...]]:
    """What to do for a value of this type, in words, and what there is to choose from."""
    outer, inner = get_origin(hint), get_args(hint)
    if outer in (Union, UnionType):
        remedies, choices = zip(*map(_wanted, inner), strict=True)
        return " or ".join(filter(None, remedies)), sum(choices, ())
    if outer is Literal:
        return f"choose from {', '.join(inner)}", inner
    if outer is tuple:
        return f"give a list of {SEVERAL[inner[0]]}", ()
    if outer is dict:
        return f"give a mapping of names to {SEVERAL.get(inner[1], 'options')}", ()
    if dataclasses.is_dataclass(hint):
        return GROUP, ()
    return (f"give {ONE[hint]}", ()) if hint in ONE else ("", ())


def _nearest(message: str, known: list[str]) -> str:
    """A hint for the unknown option that `message` complains about; empty where it is about something else."""
    groups = {name.rpartition(".")[0] for name in known} - {""}
    nested = re.search(r"Group '([^']+)' does not accept (?:option|nested key) '([^']+)'", message)
    plain = re.search(
        r"(?:unrecognized arguments?: --|Key '|Unrecognized (?:key|option) '|option ')([\w.]+)", message, re.I
    )
    if nested:
        name = f"{nested[1]}.{nested[2]}"
    elif plain:
        name = plain[1]
    else:
        return ""
    close = difflib.get_close_matches(name, [*known, *groups], n=1, cutoff=0.4)
    return f"; did you mean {close[0]}?" if close else ""
