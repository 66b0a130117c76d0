"""Training of natjax models: data sets, input pipeline, sharded step, checkpoints, evaluation.

Start at `natjax.train.presets` (what can be trained; the papers' recipes are in
`natjax.train.recipes`), `natjax.train.loop` (how a run goes) and `natjax.train.step` (the
mathematics of one step). What is random about images is in `natjax.train.augment`. Each data set is
one file: `natjax.train.digits`, `natjax.train.fashion_mnist`, `natjax.train.emoji`.
"""
