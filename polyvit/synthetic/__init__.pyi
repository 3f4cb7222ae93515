from .media import SOUNDS as SOUNDS
from .media import encode_image as encode_image
from .media import encode_sound as encode_sound
from .media import mixture as mixture
from .media import textured_shape as textured_shape
from .write import write_synthetic as write_synthetic
