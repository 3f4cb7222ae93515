"""The model: tokenizers and adaptor blocks per modality, shared blocks, one head a task."""
