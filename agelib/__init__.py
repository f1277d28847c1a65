"""agelib: estimate a person's age, in years, from a photo of the face.

The notebooks import one module for one job, in this order of travel:
env -> data -> model -> train -> predict -> metrics -> plots, with `recipe` holding
every choice of a training run and `quality` measuring the images themselves.
"""

__version__ = "0.1.0"
