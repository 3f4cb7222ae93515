"""One task cut out of an AVBert: CNNs, transformers and head as one module of plain arrays.

In: `clips`, uint8 RGB [B, S, T, H, W, 3]; `spectrograms`, float32 log-mel [B, S, time, mel]. Out: logits [B, K].
Legend: B batch, S clips, T frames, H W, K classes.
"""

from torch import Tensor, nn

from polyvit.config import RunConfig
from polyvit.model import normalise
from polyvit.model.avbert import AVBert
from polyvit.objectives import one_answer


class SequenceTaskModel(nn.Module):
    """A copy of the model with one head, its rotations worked out: arrays as above -> logits [B, K]."""

    output = "logits"

    def __init__(self, model: AVBert, config: RunConfig, task: str) -> None:
        super().__init__()
        self.loss = config.tasks[task].loss
        self.spec, self.task = config.model.input(config.tasks[task].modality), task
        self.model = AVBert(model.config, {task: config.tasks[task]})
        kept = self.model.state_dict().keys()
        self.model.load_state_dict({name: t for name, t in model.state_dict().items() if name in kept})
        self.model.transformers.fix_rotations()

    def forward(self, clips: Tensor, spectrograms: Tensor) -> Tensor:
        """Logits, float32 [B, K]."""
        # The feed rounds spectrograms to half floats.
        inputs = {"clips": normalise(clips), "spectrograms": normalise(spectrograms.half())}
        return one_answer(self.model(inputs, self.task), self.loss)
