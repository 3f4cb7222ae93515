"""What a contrastive task of AVBert predicts, and among which negatives: `tasks.NAME.contrastive`.

Sources: Lee et al., ICLR 2021 (arXiv 2012.04124). The paper's own numbers could not be read, and its code has no
pre-training: what is marked "ours" is a default of this project.
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from polyvit.config.inputs import Section

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class ContrastiveConfig(Section):
    """Masked embedding prediction in every stream, and correct pair prediction. Labels play no part."""

    mask: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of each modality's S clips whose embedding one learned vector replaces; at least one clip. Ours."""
    negatives: PositiveInt = 64
    """Negatives of each masked clip: clips of the same modality in the global batch; fewer where the batch has
    fewer. Ours."""
    sampling: Literal["similar", "random", "dissimilar"] = "similar"
    """Which clips become negatives, by distance to the masked clip in the CNN's embedding space. `similar`: near
    ones are likelier (content-aware negative sampling, the paper's). `dissimilar`: far ones. `random`: all alike.
    """
    interval: Annotated[float, Field(gt=0, le=1)] = 0.95
    """`similar` and `dissimilar`: the central share of the clips by distance that are drawn from. 0.95 is what
    notes on the paper say."""
    other_videos_only: bool = False
    """Whether clips of the masked clip's own video are no negatives. Ours: they are."""
    temperature: PositiveFloat = 1.0
    """Scores are divided by it. Ours: the formula that notes on the paper give has none."""
    detach_targets: bool = False
    """Whether the embeddings that are predicted, and the negatives, pass no gradient on to the CNNs. Ours: they
    pass it on."""
    sync_batch_norm: bool = True
    """Whether batch norm in this task's steps uses the statistics of all workers' clips, so that a step is the
    same on any number of workers. It costs four small sums over the workers for each norm. Ours."""
    visual: Weight = 1.0
    """Weight of masked prediction by the visual transformer. Ours, as the next ones."""
    audio: Weight = 1.0
    """The same of the audio transformer."""
    multimodal: Weight = 1.0
    """The same of the multimodal transformer: of its visual and of its audio positions."""
    pairs: Weight = 1.0
    """Weight of correct pair prediction: whether picture and sound belong together."""
    swapped: Share = 0.5
    """Share of the batch whose sound is another video's, for correct pair prediction. Balanced classes: notes."""
