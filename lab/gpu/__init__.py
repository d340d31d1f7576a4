"""A short window on a GPU: teachers side by side, then students that learn from them, within so many minutes.

``python -m lab.gpu.pack`` packs faces and weights on a machine that has them, ``python -m lab.gpu.window`` trains on one
that has only torch, numpy, Pillow and safetensors, ``python -m lab.gpu.finish`` makes checkpoints of what comes back."""
