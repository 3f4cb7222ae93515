"""A trained model in use: predict, package, export, extend.

In: a checkpoint or a run. Out: answers for media files; folders and files for other runtimes.
Read: predict, media_inputs, trained_model, isolated_predict, package, data_terms, pretrained, sequence_model,
clip_cnn, export, hub_config, hub_card, hub, hub_remote, extend.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
