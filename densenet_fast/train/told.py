"""What is wrong with an option, in one sentence: what was got, what was expected; also where a library says it."""

import re
from typing import Any

from ..cli import Refused

# Of jsonargparse, once it is one line.
_OF_OPTION = re.compile(r'Parser key "(?P<option>[\w.]+)": (?P<why>.*)')
_WITHIN = re.compile(r"Problem with given class_path '(?P<cls>[\w.]+)': (?P<why>.*?) - Expected a NoneType")
_ONE_TYPE = re.compile(r"Expected an? (?P<types>.*?)\. Got value: (?P<got>.*)")
_TYPES = re.compile(
    r".*?Does not validate against any of .*? Subtypes: \[(?P<types>.*?)\] Errors: .*Given value: (?P<got>.*)"
)
_NOT_ACCEPTED = re.compile(r"Option '(?P<name>\w+)' is not accepted")
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "NoneType": "null",
    "str": "text",
    "collections.abc.Sequence": "a list",
}


def expect(holds: bool, option: str, got: Any, expected: str) -> None:
    """
    Raises:
        Refused: it does not hold.
    """
    if not holds:
        raise Refused(f"{option}: got {got}, expected {expected}")


def one_line(message: str) -> str:
    """jsonargparse's or Lightning's message in one line, without Python's names of types."""
    return re.sub(r"<class '([\w.]+)'>", r"\1", " ".join(message.split()))


def of_parser(message: str, data: list[str]) -> str:
    """What jsonargparse refuses. `data`: the names of the data sets."""
    message = one_line(message)
    of_option = _OF_OPTION.fullmatch(message)
    expected_data = f"expected {', '.join(data)} or the path of a class that extends ImageData"
    if re.fullmatch(r"the following arguments are required: \w+\.data", message):
        return f"--data: got none, {expected_data}"
    if of_option is None:
        return message
    option, why = of_option["option"], of_option["why"]
    within = _WITHIN.search(why)
    if within is not None and (of_class := _OF_OPTION.fullmatch(within["why"])):
        option, why = f"{option}.{of_class['option']}", of_class["why"]
    elif within is not None and (unknown := _NOT_ACCEPTED.match(within["why"])):
        name = within["cls"].rpartition(".")[2]
        return f"--{option}.{unknown['name']}: {name} has no such option; those that it has: --{option}.help {name}"
    elif option == "data":
        got = re.sub(r".* Given value:\s*", "", why)
        because = f" ({within['why']})" if within is not None else ""
        return f"--data: got {got!r}{because}, {expected_data}"
    if (group := re.match(r"Unable to load config '(.*?)'", why)) is not None:
        return f"--{option}: got {group[1]}, expected a file, or an option of it, as --model.name or --trainer.devices"
    if option == "data.seed":  # to which it is linked
        option = "seed_everything"
    found = _ONE_TYPE.fullmatch(why) or _TYPES.fullmatch(why)
    if found is None:
        return f"--{option}: {why}"
    return f"--{option}: got {found['got']}, expected {_in_words(found['types'])}"


def _in_words(types: str) -> str:
    types = re.sub(r"typing\.Literal\[(.*?)\]", lambda literal: literal[1].replace("'", ""), types)
    words = list(dict.fromkeys(_WORDS.get(name, name) for name in re.split(r", (?![^\[]*\])", types)))
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def of_worker(message: str) -> str:
    """A refusal's sentence, also where a worker that reads images has put its traceback around it."""
    return message.rpartition(f"{Refused.__name__}: ")[2].strip()
