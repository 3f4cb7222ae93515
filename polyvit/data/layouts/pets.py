"""Layout `pets` (Oxford-IIIT Pets): `images/<Breed>_<n>.jpg`, `annotations/{trainval,test}.txt`.

A line is `<image> <class id 1..37> <species> <breed id>`; lines that start with '#' are comments. Label
index: class id - 1; class name: the breed in the image's name. trainval is carved by the hash of its key, 90
% train and 10 % validation. No options.
"""

from collections import Counter, defaultdict

from polyvit.data.index import Example, Scan
from polyvit.data.layouts.scanning import Layout, ScanContext, carve, name_problem, read_lines, read_options

EXPECTS = "images/<Breed>_<n>.jpg and annotations/{trainval,test}.txt"
NUM_CLASSES = 37
TRAIN_BELOW = 0.9
"""scenic's `train[:90%]` / `train[90%:]` of the Pets task, by key hash in place of file order."""


def scan_pets(context: ScanContext) -> Scan:
    """Train, validation and test from the two lists. Raises UserError where a list is missing."""
    read_options(context, {})
    rows = [row for name in ("trainval", "test") for row in _rows(context, f"annotations/{name}.txt")]
    breeds: dict[int, Counter[str]] = defaultdict(Counter)
    for _, image, class_id in rows:
        breeds[class_id][_breed(image)] += 1
    # An id's breed is what most of its lines name; a line that differs has a wrong id or a wrong name.
    usual = {class_id: min(names, key=lambda name: (-names[name], name)) for class_id, names in breeds.items()}
    for where, image, class_id in rows:
        if reason := name_problem(image):
            context.skip("broken", where, reason)
        elif _breed(image) != usual[class_id]:
            context.skip("label", where, f"{image} has class id {class_id}, which is {usual[class_id]}")
        else:
            split = "test" if where.startswith("annotations/test") else carve(f"images/{image}", TRAIN_BELOW)
            path = f"images/{image}.jpg"
            context.add(Example(f"images/{image}", path, (class_id - 1,), split), where)
    names = [usual.get(class_id, f"class {class_id}") for class_id in range(1, NUM_CLASSES + 1)]
    return context.finish(context.classes if context.classes is not None else names)


def _rows(context: ScanContext, path: str) -> list[tuple[str, str, int]]:
    """(file:line, image, class id) of the good lines."""
    rows = []
    for number, line in read_lines(context, path):
        where, fields = f"{path}:{number}", line.split()
        if line.startswith("#") or not fields:
            continue
        if len(fields) != 4 or not fields[1].isdecimal() or len(fields[1]) > 9:
            context.skip("label", where, f"malformed row: expected 'image id species breed', found {line[:80]!r}")
        elif not 1 <= int(fields[1]) <= NUM_CLASSES:
            context.skip("label", where, f"class id {fields[1]}; allowed are 1..{NUM_CLASSES}")
        else:
            rows.append((where, fields[0], int(fields[1])))
    return rows


def _breed(image: str) -> str:
    return image.rpartition("_")[0]


LAYOUT = Layout(scan_pets, EXPECTS)
