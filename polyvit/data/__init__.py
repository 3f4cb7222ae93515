"""From files on disk to tokens: layouts, index, decoders, augmentation, patchify."""
