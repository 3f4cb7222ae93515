"""Everything a run needs, as frozen validated models.

In: a recipe's name or a YAML file, and `key=value` overrides. Out: a `RunConfig`.
Read: addresses, formats, inputs, layouts, tasks, modalities, paper_tasks, sharing, pretraining, avbert, models,
sections, run, cross_field, renamed, installed, overrides, loader, reference, provenance, schema.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
