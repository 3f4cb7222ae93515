"""Examples that a command's `--help` ends with, by command."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "init": ("polyvit init pair", "polyvit init photos/ sounds/ --out both.yaml"),
    "synth": ("polyvit synth demo-data", "polyvit synth demo-av --av --train 60"),
    "index": ("polyvit index mine.yaml", "polyvit index demo data.root=demo-data --only pets --fresh"),
    "inspect": ("polyvit inspect mine.yaml", "polyvit inspect mine.yaml --all --out report"),
    "shard": ("polyvit shard mine.yaml --out shards", "polyvit shard mine.yaml --out shards --size 256"),
    "tokenize": ("polyvit tokenize mine.yaml --out tokens",),
    "plan": ("polyvit plan mine.yaml", "polyvit plan demo schedule.kind=uniform --picture schedule.png"),
    "cotrain": (
        "polyvit cotrain mine.yaml", "polyvit cotrain mine.yaml optim.lr=0.001 --name first",
        "polyvit cotrain --resume runs/first",
    ),
    "sweep": ("polyvit sweep mine.yaml --over optim.lr=0.001,0.003", "polyvit sweep --resume NAME"),
    "compare": ("polyvit compare runs/first runs/second --out compared",),
    "evaluate": ("polyvit evaluate runs/first", "polyvit evaluate runs/first --split test --report report"),
    "probe": ("polyvit probe runs/first mine.yaml --epochs 50",),
    "predict": (
        "polyvit predict runs/first photo.jpg clip.mp4 --top-k 3",
        "polyvit predict runs/first photo.jpg --explain looked",
        "polyvit predict models:/polyvit@champion --input photos/ --output answers",
    ),
    "embed": (
        "polyvit embed runs/first photos/ --out photos.parquet",
        "polyvit embed runs/first mine.yaml --split validation --out mine.parquet",
    ),
    "interference": (
        "polyvit interference runs/NAME",
        "polyvit interference runs/NAME mine.yaml --minibatches 16 --out interference",
    ),
    "neighbours": ("polyvit neighbours runs/NAME --data videos/ --out neighbours.png",),
    "register": ("polyvit register runs/first --alias champion", "polyvit register --list"),
    "export": (
        "polyvit export runs/first --task pets --out exported",
        "polyvit export runs/first --task pets --to huggingface --out exported",
        "polyvit export runs/first --to polyvit --out exported --push ORG/NAME --private",
    ),
    "bench feed": ("polyvit bench feed --quick",),
    "bench step": ("polyvit bench step --rounds 3",),
    "bench cotrain": ("polyvit bench cotrain tiny-nine --steps 30",),
    "bench gpu": ("polyvit bench gpu --seconds 120 --json gpu.json",),
    "extend": ("polyvit extend runs/first more.yaml --freeze shared",),
    "serve": ("polyvit serve runs/first", "polyvit serve models:/polyvit@champion --port 8080 --replicas 2"),
    "recipes": ("polyvit recipes",),
    "config": (
        "polyvit config show demo optim.lr=0.1", "polyvit config validate mine.yaml",
        "polyvit config diff demo runs/NAME", "polyvit config keys schedule", "polyvit config schema",
    ),
}  # fmt: skip


def epilog(name: str) -> str | None:
    """What `polyvit NAME --help` ends with."""
    lines = [f"  {example}" for example in EXAMPLES.get(name, ())]
    return "\n".join(["examples:", *lines]) if lines else None
