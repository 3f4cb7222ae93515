"""The classes of the nine toy data sets: names and ids of the real sets, and what is drawn for each class.

In: nothing. Out: constants; row k of a table is class k.
"""

IMAGENET = (
    ("n01440764", "tench, Tinca tinca"),
    ("n01443537", "goldfish, Carassius auratus"),
    ("n01484850", "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"),
    ("n01491361", "tiger shark, Galeocerdo cuvieri"),
    ("n01494475", "hammerhead, hammerhead shark"),
    ("n01496331", "electric ray, crampfish, numbfish, torpedo"),
    ("n01498041", "stingray"),
    ("n01514668", "cock"),
)
"""The first wnids of LOC_synset_mapping.txt; the label is the line number."""

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

CIFAR100_FINE_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_COARSE_NAMES = """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
    household_furniture insects large_carnivores large_man-made_outdoor_things
    large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals
    non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
"""
CIFAR100_PAIRS = (
    ("beaver", "dolphin"), ("aquarium_fish", "flatfish"), ("orchid", "poppy"), ("bottle", "bowl"),
    ("apple", "mushroom"), ("clock", "keyboard"), ("bed", "chair"), ("bee", "beetle"),
)  # fmt: skip
"""Two fine classes of each of the first coarse classes, in the order of `CIFAR100_COARSE_NAMES`."""

PETS = (
    ("Abyssinian", 1, 1, "plain", 0.06, 0.85),
    ("american_bulldog", 2, 1, "plain", 0.12, 1.0),
    ("american_pit_bull_terrier", 2, 2, "checks", 0.62, 0.75),
    ("basset_hound", 2, 3, "dots", 0.95, 0.9),
    ("beagle", 2, 4, "stripes", 0.1, 0.95),
    ("Bengal", 1, 2, "dots", 0.11, 1.0),
    ("Birman", 1, 3, "stripes", 0.58, 0.9),
    ("Bombay", 1, 4, "plain", 0.75, 0.3),
)
"""Breed, species (1 cat, 2 dog), breed id, and the drawing: coat, hue, brightness. Class id = row from 1."""
PETS_HEADER = (
    "#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37 Class ids\n#SPECIES: 1:Cat 2:Dog\n#BREED ID: 1-25:Cat 1:12:Dog\n"
    "#All images with 1st letter as captial are cat images\n"  # codespell:ignore captial
    "#images with small first letter are dog images\n"
)

RESISC45 = (
    ("circular_farmland", "rings"), ("dense_residential", "checks"), ("rectangular_farmland", "blocks"),
    ("storage_tank", "dots"), ("terrace", "terraces"), ("desert", "dunes"), ("intersection", "crossing"),
    ("runway", "lane"),
)  # fmt: skip

KINETICS = (
    ("climbing a rope", "up"), ("abseiling", "down"), ("inflating balloons", "grow"),
    ("blowing out candles", "shrink"), ("driving car", "sideways"), ("spinning poi", "spin"),
    ("bouncing on trampoline", "bounce"), ("swinging on something", "swing"),
)  # fmt: skip

MOMENTS = (
    ("ascending", "up", "circle"), ("bouncing", "bounce", "square"), ("inflating", "grow", "ring"),
    ("rolling", "roll", "cross"), ("descending", "down", "triangle"), ("shrinking", "shrink", "diamond"),
    ("spinning", "spin", "bar"), ("swinging", "swing", "crescent"),
)  # fmt: skip

AUDIOSET = (
    (501, "/m/01v_m0", "Sine wave", "tone"), (503, "/m/0hdsk", "Chirp tone", "chirp"),
    (520, "/m/0chx_", "White noise", "noise"), (505, "/m/07pt_g0", "Pulse", "pulse"),
    (396, "/m/03kmc9", "Siren", "siren"), (496, "/m/07rcgpl", "Hum", "hum"),
    (460, "/m/07qnq_y", "Thump, thud", "thump"), (127, "/m/09xqv", "Cricket", "cricket"),
)  # fmt: skip
"""Index, mid and display name as in the real class_labels_indices.csv, and the sound."""

VGGSOUND = (
    ("playing flute", "tone"), ("bird chirping, tweeting", "chirp"), ("wind noise", "noise"),
    ("typing on computer keyboard", "pulse"), ("ambulance siren", "siren"), ("car engine idling", "hum"),
    ("playing bass drum", "thump"), ("cricket chirping", "cricket"),
)  # fmt: skip

KINETICS_700 = (
    "playing piano", "playing drums", "playing violin", "playing trumpet", "playing accordion", "playing cello",
    "playing marimba", "playing flute",
)  # fmt: skip
KINETICS_SOUNDS = (
    "playing organ", "playing xylophone", "playing bagpipes", "playing guitar", "playing clarinet",
    "playing harmonica", "playing saxophone", "tap dancing",
)  # fmt: skip
UCF101 = (
    "PlayingCello", "PlayingDaf", "PlayingFlute", "PlayingPiano", "PlayingTabla", "PlayingViolin", "Drumming",
    "BoxingSpeedBag",
)  # fmt: skip
"""Names as the real folders have them; their ids here are those of the toy `classInd.txt`, sorted from 1."""
ESC50 = ("dog", "rooster", "pig", "cow", "frog", "cat", "hen", "insects")
"""Targets 0 to 7 of the real set."""
CHARADES = (
    "Holding some clothes", "Putting clothes somewhere", "Taking some clothes from somewhere",
    "Throwing clothes somewhere", "Tidying some clothes", "Washing some clothes", "Closing a door",
    "Fixing a door",
)  # fmt: skip
"""c000 to c007 of the real set."""

SONGS = (
    ("circle", 0.0, 450.0), ("square", 0.33, 600.0), ("triangle", 0.6, 790.0), ("cross", 0.15, 1040.0),
    ("ring", 0.8, 1380.0), ("diamond", 0.48, 1830.0), ("bar", 0.9, 2420.0), ("crescent", 0.7, 3200.0),
)  # fmt: skip
"""Shape, hue and the resonance in Hz of each kind of video with sound."""
