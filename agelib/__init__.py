"""agelib: estimate a person's age, in years, from a photo of the face.

The notebooks import one module for one job. Faces travel in this order, and no module
imports from its right: env -> data -> loading -> ages -> model -> predict -> loop ->
train, with `recipe` holding every choice of a training run, `hardware` what the machine
can do, `runs` and `states` what a run's folder holds, `weights` where a network's come
from. `ages` is the method: an age as a distribution, its loss, and how it is read off.
`quality` measures images, `metrics` predictions, `explain` where a network looks;
`plots` and `gallery` show them, `results` brings what was measured on the real faces.
`photo` finds faces with `detector` and crops them as a model wants them; `sample` draws
the bundled faces, `kaggle` builds what goes to Kaggle, `server` lets photos into
JupyterLab and keeps them out of saved notebooks.

What comes from outside is read in one place each: `tables`, `images`, `weights`,
`states`, and `files`, which also writes files that are whole or not there.
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
