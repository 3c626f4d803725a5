"""The commands fit, validate and predict: what can be said without Lightning, which takes seconds to import."""

import re
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..cli import PROGRAM, Parser, Refused, count

RECIPES = files(__package__) / "recipes"
EXTRA = (
    *(
        "PIL",
        "jsonargparse",
        "lightning",
        "matplotlib",
        "docstring_parser",
        "numpy",
        "scipy",
        "sklearn",
        "tensorboard",
        "torchdata",
    ),
    *("torchmetrics", "torchvision", "tqdm", "yaml"),
)


def fit(arguments: list[str]) -> int:
    return _call("running", "fit", with_recipes(arguments, "fit"))


def validate(arguments: list[str]) -> int:
    if not any(argument.partition("=")[0] in ("--ckpt_path", "--help", "-h") for argument in arguments):
        Parser(prog=f"{PROGRAM} validate").error("--ckpt_path: got none, expected the checkpoint of a run")
    return _call("running", "validate", with_recipes(arguments, "validate"))


def predict(arguments: list[str]) -> int:
    parser = Parser(
        prog=f"{PROGRAM} predict",
        description="Name the classes that a trained net sees in image files.",
    )
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of them")
    parser.add_argument("--ckpt_path", type=Path, required=True, help="checkpoint of `densenet-fast fit`")
    parser.add_argument("--top", type=count, default=3, help="how many classes of each image (default: 3)")
    parser.add_argument("--batch_size", type=count, default=64, help="images at a time (default: 64)")
    parser.add_argument("--csv", type=Path, help="also write file, class and probability into this file")
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, or auto (default)")
    options = parser.parse_args(arguments)
    return _call("predicting", "predict", options)


def list_recipes(arguments: list[str]) -> int:
    description = "List the recipes, which `fit --config` takes by name."
    Parser(prog=f"{PROGRAM} recipes", description=description).parse_args(arguments)
    for name in recipes():
        first_line = (RECIPES / f"{name}.yaml").read_text().partition("\n")[0]
        print(f"{name:30} {first_line.removeprefix('# ')}")
    return 0


def _call(module: str, name: str, options: Any) -> int:
    """What the module's function returns. Some packages are missed at its import, some when they are used."""
    try:
        return getattr(import_module(f".{module}", __package__), name)(options)
    except ModuleNotFoundError as error:
        missing = next((known for known in EXTRA if re.search(rf"\b{known}\b", error.name or str(error))), None)
        if missing is None:
            raise
        needed = "pip install '.[train]' in a checkout of densenet_fast"
        raise Refused(f"{missing} is not installed; training needs: {needed}") from None


def recipes() -> list[str]:
    """Names of the recipes, which `--config` takes."""
    return sorted(entry.name.removesuffix(".yaml") for entry in RECIPES.iterdir() if entry.name.endswith(".yaml"))


def with_recipes(arguments: list[str], command: str) -> list[str]:
    """`arguments` with the names of recipes behind `--config` replaced by their files."""
    found, is_config = [], False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if is_config:
            argument = _config(argument, command)
        elif option in ("--config", "-c") and equals:
            argument = f"{option}={_config(value, command)}"
        is_config = argument in ("--config", "-c") and not is_config
        found.append(argument)
    return found


def _config(value: str, command: str) -> str:
    if Path(value).is_file():
        return value
    if value not in recipes():
        expected = f"a file or a recipe, as {recipes()[0]} ({PROGRAM} recipes lists them)"
        Parser(prog=f"{PROGRAM} {command}").error(f"--config: got {value!r}, expected {expected}")
    return str(RECIPES / f"{value}.yaml")
