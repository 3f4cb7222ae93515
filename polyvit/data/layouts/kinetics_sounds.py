"""Layout `kinetics_sounds`: 32 classes of Kinetics-400 that can be heard, in a copy of Kinetics in its own layout.

Lists, folders and names are those of layout `kinetics`; rows of other classes are passed over, so that a whole
copy of Kinetics will do. Label index: the position in `CLASSES`, sorted, whatever a list holds; or `task.classes`,
a file with the classes of another selection. No options.

The paper (Arandjelovic and Zisserman 2017) chose 34 classes of an early Kinetics; of these 31 or 32 are left in
the Kinetics-400 that is there today. AVBert's release counts 32 and does not name them. Ours: the 31 of public
copies and `strumming guitar`.
"""

from polyvit.data.index import Scan
from polyvit.data.layouts.kinetics import EXPECTS, scan_kinetics
from polyvit.data.layouts.scanning import Layout, ScanContext

CLASSES = (
    "blowing nose", "blowing out candles", "bowling", "chopping wood", "dribbling basketball", "laughing",
    "mowing lawn", "playing accordion", "playing bagpipes", "playing bass guitar", "playing clarinet",
    "playing drums", "playing guitar", "playing harmonica", "playing keyboard", "playing organ", "playing piano",
    "playing saxophone", "playing trombone", "playing trumpet", "playing violin", "playing xylophone",
    "ripping paper", "shoveling snow", "shuffling cards", "singing", "stomping grapes", "strumming guitar",
    "tap dancing", "tapping guitar", "tapping pen", "tickling",
)  # fmt: skip


def scan_kinetics_sounds(context: ScanContext) -> Scan:
    """Train, validation and test of the chosen classes."""
    if context.classes is None:
        context.classes = list(CLASSES)
    return scan_kinetics(context, others=True)


LAYOUT = Layout(scan_kinetics_sounds, EXPECTS)
