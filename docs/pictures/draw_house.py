"""Draw docs/pictures/polyvit.svg: the model, and the way of the data through a run.

    python docs/pictures/draw_house.py [FILE]          FILE may end in .svg or .png

Units are those of the canvas: 16 wide, 9.8 high, y upwards.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HERE = Path(__file__).parent
WIDTH, HEIGHT = 16.0, 9.8
INK, GREY, PAPER = "#1f2933", "#66727f", "#ffffff"
COLOURS = {
    "image": "#2f6fb5", "video": "#b3541e", "audio": "#3c7d4b", "shared": "#5b4a9b", "ray": "#8a6d1d",
    "files": "#66727f",
}  # fmt: skip
ROWS = {"image": 8.2, "video": 6.7, "audio": 5.2}
INPUTS = {
    "image": ("image", "patches of 16 x 16"),
    "video": ("video", "tubelets of 4 x 16 x 16"),
    "audio": ("audio", "log-mel, patches of 16 x 16"),
}
TASKS = {
    "image": ("imagenet", "cifar10", "cifar100", "pets", "resisc45"),
    "video": ("kinetics400", "moments_in_time"),
    "audio": ("audioset", "vggsound"),
}
ROAD = (
    ("raw files", "a folder\nor a bucket", "files"),
    ("index", "one row\nan example", "ray"),
    ("plan", "which task, which\nexamples at a step", "shared"),
    ("feed", "bytes to uint8\ntokens, on free CPUs", "ray"),
    ("minibatch", "of one task", "ray"),
    ("step", "only parts that the\ntask reaches learn", "ray"),
    ("checkpoint", "curves and models\nin MLflow", "files"),
    ("use", "predict, serve,\nexport, extend", "files"),
)


def box(
    axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, fill: float = 0.12
) -> None:
    """A rounded box, its lower left corner at (x, y), `text` in its middle.

    `width`, `height`: of the canvas' units. `colour`: of the border; the inside has it at the opacity `fill`.
    """
    shape = {"boxstyle": "round,pad=0,rounding_size=0.12", "linewidth": 1.4}
    axes.add_patch(FancyBboxPatch((x, y), width, height, facecolor=PAPER, edgecolor="none", **shape))
    axes.add_patch(FancyBboxPatch((x, y), width, height, facecolor=colour, edgecolor="none", alpha=fill, **shape))
    axes.add_patch(FancyBboxPatch((x, y), width, height, facecolor="none", edgecolor=colour, **shape))
    axes.text(
        x + width / 2, y + height / 2, text, ha="center", va="center", color=INK, fontsize=10.5, linespacing=1.35
    )


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """An arrow between two points."""
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=12, color=colour, linewidth=1.4, shrinkA=0, shrinkB=0
        )
    )


def draw_model(axes: Axes) -> None:
    """The upper part: three modalities, private layers, shared layers, a head for each task."""
    axes.text(0.3, 9.42, "One model", fontsize=15, fontweight="bold", color=INK, va="center")
    note = "(blue, orange, green: private to a modality or a task; violet: shared by all)"
    axes.text(2.35, 9.4, note, fontsize=10.5, color=GREY, va="center")
    bottom, top = ROWS["audio"] - 0.5, ROWS["image"] + 0.5
    for modality, y in ROWS.items():
        colour = COLOURS[modality]
        name, pieces = INPUTS[modality]
        axes.text(0.3, y + 0.16, name, fontsize=13, fontweight="bold", color=colour, va="center")
        axes.text(0.3, y - 0.2, pieces, fontsize=9.5, color=GREY, va="center")
        arrow(axes, (3.0, y), (3.45, y), colour)
        box(axes, 3.5, y - 0.42, 1.9, 0.84, "patch_embed, cls\nand pos_embed", colour)
        arrow(axes, (5.4, y), (5.75, y), colour)
        box(axes, 5.8, y - 0.42, 1.75, 0.84, "adaptor blocks\n(l_adapt)", colour)
        arrow(axes, (7.55, y), (8.1, y), colour)
        arrow(axes, (10.5, y), (11.0, y), colour)
        draw_heads(axes, modality, y)
    box(
        axes, 8.15, bottom, 2.3, top - bottom, "shared blocks\nof a ViT\n\nattention, MLP", COLOURS["shared"], 0.22
    )


def draw_heads(axes: Axes, modality: str, y: float) -> None:
    """The tasks of one modality, each a head of its own, in two lines where they are many."""
    names, colour = TASKS[modality], COLOURS[modality]
    lines = [names[:3], names[3:]] if len(names) > 3 else [names]
    height = 0.38
    for row, line in enumerate(lines):
        x, middle = 11.05, y + (0.24 - 0.48 * row if len(lines) > 1 else 0.0)
        for name in line:
            width = 0.42 + 0.098 * len(name)
            box(axes, x, middle - height / 2, width, height, name, colour, 0.2)
            x += width + 0.12
    axes.text(15.8, y, "one head\na task", fontsize=9.5, color=GREY, ha="right", va="center")


def draw_road(axes: Axes) -> None:
    """The lower part: what happens to the data, from files to a model in use."""
    axes.text(0.3, 3.85, "One road", fontsize=15, fontweight="bold", color=INK, va="center")
    note = "(brown: runs on Ray; violet: a pure function of the seed, so the number of workers changes no batch)"
    axes.text(2.15, 3.83, note, fontsize=10.5, color=GREY, va="center")
    step = (WIDTH - 0.6) / len(ROAD)
    for place, (name, what, colour) in enumerate(ROAD):
        x = 0.3 + place * step
        box(axes, x, 2.55, step - 0.4, 0.75, name, COLOURS[colour])
        axes.text(
            x + (step - 0.4) / 2, 2.36, what, fontsize=8.8, color=GREY, ha="center", va="top", linespacing=1.3
        )
        if place + 1 < len(ROAD):
            arrow(axes, (x + step - 0.38, 2.925), (x + step - 0.02, 2.925), INK)
    draw_schedule(axes)


def draw_schedule(axes: Axes) -> None:
    """A strip of steps, each coloured by its task's modality: one task a step."""
    order = "image video audio video image image video audio image video video image audio image video image video"
    axes.text(0.3, 1.02, "A schedule draws one task for each step.", fontsize=10.5, color=INK, va="center")
    x, width = 4.55, 0.5
    for modality in order.split():
        axes.add_patch(
            FancyBboxPatch((x, 0.8), width - 0.1, 0.42, boxstyle="round,pad=0,rounding_size=0.06",
                           facecolor=COLOURS[modality], edgecolor="none", alpha=0.75)
        )  # fmt: skip
        x += width
    axes.text(x + 0.05, 1.02, "step 1, 2, 3 ...", fontsize=9.5, color=GREY, va="center")
    axes.text(
        0.3,
        0.4,
        "Each task has its own batch size, loss and learning rate.",
        fontsize=10.5,
        color=GREY,
        va="center",
    )


def draw(file: Path) -> None:
    """Write the picture, as SVG (letters as outlines, no date: the same bytes each time) or PNG."""
    plt.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "polyvit", "font.family": "DejaVu Sans"})
    figure = plt.figure(figsize=(WIDTH * 0.75, HEIGHT * 0.75), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(0, HEIGHT)
    axes.axis("off")
    draw_model(axes)
    draw_road(axes)
    metadata = {"Date": None} if file.suffix == ".svg" else None
    figure.savefig(file, facecolor=PAPER, metadata=metadata, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "polyvit.svg")
