from .convert import official_to_state as official_to_state
from .convert import state_to_official as state_to_official
from .model import AVBert as AVBert
from .model import Sequences as Sequences
