"""agelib: estimate a person's age, in years, from a photo of the face.

The notebooks import one module for one job. Faces travel in this order, and no module
imports from its right: env -> data -> loading -> ages -> model -> predict -> loop ->
train, with `recipe` holding every choice of a training run, `hardware` what the machine
can do, `runs` and `states` what a run's folder holds, `weights` where a network's come
from. `ages` is the method: an age as a distribution, its loss, and how it is read off.
`conformal` makes its intervals keep what they promise, and `degrade` makes bad photos
of good ones. `outcome` reads what a run predicted, whether of one network or of folds.

`quality` measures images, `metrics` predictions, `trust` what one may rely on, and
`explain` where a network looks; `plots`, `trust_plots` and `gallery` show them, and
`results` brings what was measured on the real faces. `photo` finds faces with
`detector` and crops them as a model wants them, `album` does so for a folder of photos;
`export` writes the network for other programs, `browser` a page that runs it. `sample`
draws the bundled faces, `pages` makes notebooks readable, `kaggle` builds what goes to
Kaggle, `server` lets photos into JupyterLab and keeps them out of saved notebooks.

What others made is read with care, each kind in one place: `tables`, `images`,
`weights`, `states`, and `files`, which also writes files that are whole or not there.
"""

import os

# Read once, when torch loads OpenMP: threads that spin while they wait starve each
# other when another process wants a core. A shorter spin halves a training step's time
# beside one busy process, and costs nothing measurable on an idle machine.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# A notebook can start processes on several GPUs only if it never touched one, and the
# usual way to ask whether there is one touches it.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

__version__ = "0.1.0"
