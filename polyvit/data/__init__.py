"""From files on disk to minibatches.

The road: `layouts` scan a data set into an `index`; `loading` reads examples of it, `decode` turns their bytes
into arrays, `transforms` augment and patchify; `isolation` survives hostile files; `shards` writes data sets anew.
"""
