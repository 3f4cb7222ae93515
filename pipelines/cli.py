"""`polyvit COMMAND ...`: a table of commands, each of which is also `python -m pipelines.<command>`."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from polyvit import __version__

COMMANDS = {
    "init": "look at folders of data and write a config for them",
    "synth": "write the nine layouts at toy size",
    "index": "scan the data of a config and say what is there and what is not",
    "inspect": "a report on the data: counts, classes, broken files, duplicates, contact sheets",
    "shard": "write tasks as WebDataset tar shards with their index",
    "tokenize": "decode tasks once, into Parquet files of tensors",
    "plan": "look before you spend: steps, probabilities, epochs, parameters, missing data",
    "cotrain": "co-train one model on all tasks of a config",
    "sweep": "try values of any keys, report, register the best model",
    "compare": "finished runs side by side: leaderboard, pictures, one HTML page",
    "evaluate": "evaluate a checkpoint: any split, several views, a table and JSON",
    "interference": "which tasks pull shared weights apart: gradients in pairs, by layer",
    "probe": "linear probes: new heads on the frozen features of a checkpoint",
    "predict": "labels for media files: a few, or millions as a Ray job",
    "embed": "embeddings of files, or of a config's examples, as Parquet",
    "neighbours": "a picture of which clips a pre-trained AVBert takes for alike, across picture and sound",
    "register": "register a model with MLflow; move and list aliases",
    "export": "cut one task out: torch.export, ONNX, int8, with figures",
    "bench": "measure the training step and co-training against peers",
    "extend": "give a trained model new tasks; measure what the old ones lose",
    "serve": "answer over HTTP, on Ray Serve",
    "recipes": "list the recipes that ship",
    "config": "what a config says and from where; validate, diff, keys, schema",
}

MODULES = {"bench": "bench.main"}
"""Commands whose module is not `pipelines.<command>`."""


def usage() -> str:
    """The text of `polyvit --help`: one line for each command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: polyvit COMMAND ...   (polyvit COMMAND --help)", "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Call the `main` of the command's module in `pipelines`. Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:
        return complete()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(__version__)
        return 0
    if arguments[0] not in COMMANDS:
        print(f"error: unknown command {arguments[0]!r}\n{usage()}", file=sys.stderr)
        return 2
    return importlib.import_module(f"pipelines.{MODULES.get(arguments[0], arguments[0])}").main(arguments[1:])


def complete() -> int:
    """Answer a TAB in a shell: commands, then the flags of the command (argcomplete, `docs/install.md`)."""
    import argcomplete  # for a TAB in a shell only

    before = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])].split(" ")
    words = [word for word in before[:-1] if word]
    start = int(os.environ["_ARGCOMPLETE"])  # words that are the program: `polyvit`, or `python -m polyvit`
    if len(words) <= start:
        parser = argparse.ArgumentParser(prog="polyvit")
        parser.add_argument("command", choices=COMMANDS)
        argcomplete.autocomplete(parser, always_complete_options=False)
    command = words[start]
    if command in COMMANDS and command not in MODULES:
        os.environ["_ARGCOMPLETE"] = str(start + 1)
        importlib.import_module(f"pipelines.{command}").main([])
    return 0


if __name__ == "__main__":
    sys.exit(main())
