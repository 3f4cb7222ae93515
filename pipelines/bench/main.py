"""Measurements against peers: `polyvit bench feed|step|cotrain|gpu ...`; each takes `--json FILE`.

polyvit bench feed       the feed against a torch DataLoader with the same decode function
polyvit bench step       our training step against timm, Hugging Face and a bare block of the same shapes
polyvit bench cotrain    co-training's steps against the same steps run task by task
polyvit bench gpu        steps, mix, attention and peers on a GPU, bounded in time
"""

import importlib
import sys
from collections.abc import Sequence

BENCHES = {
    "feed": "the feed against a torch DataLoader with the same decode function",
    "step": "our training step against timm, Hugging Face and a bare block of the same shapes",
    "cotrain": "co-training's steps against the same steps run task by task",
    "gpu": "steps, mix, attention and peers on a GPU, bounded in time",
}


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit bench`: hand over to `pipelines.bench.<name>`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in BENCHES:
        return importlib.import_module(f"pipelines.bench.{arguments[0]}").main(arguments[1:])
    width = max(map(len, BENCHES))
    lines = [f"  {name:<{width}}  {what}" for name, what in BENCHES.items()]
    usage = "\n".join(["usage: polyvit bench NAME ...   (polyvit bench NAME --help)", "", *lines])
    if arguments and arguments[0] in ("-h", "--help"):
        print(usage)
        raise SystemExit(0)  # as argparse does
    what = f"unknown benchmark {arguments[0]!r}" if arguments else "which benchmark?"
    print(f"error: {what}\n{usage}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
