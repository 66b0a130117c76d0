"""Training of natjax models: data sets, input pipeline, sharded step, checkpoints, evaluation.

Start at `natjax.train.presets` (what can be trained), `natjax.train.loop` (how a run goes) and
`natjax.train.step` (the mathematics of one step). Each data set is one file: `natjax.train.digits`,
`natjax.train.fashion_mnist`.
"""
