"""The data sets that studies train on: real ones from files, generated ones from formulas; differential equations.

A task is a frozen description; `task.load()` fetches its arrays. Importing this package reads no data and
imports no data library.
"""

from train.tasks._parse import FromText, check_images, get, names, parse
from train.tasks._task import Data, DataError, Task, check_number
from train.tasks.cifar10 import Cifar10
from train.tasks.digits import Digits
from train.tasks.equations import Burgers, Equation, Poisson
from train.tasks.fashion_mnist import FashionMNIST
from train.tasks.gaussian_mixture import GaussianMixture
from train.tasks.sequences import Adding, CopyMemory, SequenceTask
from train.tasks.teacher_student import TeacherStudent

__all__ = [
    "Adding",
    "Burgers",
    "Cifar10",
    "CopyMemory",
    "Data",
    "DataError",
    "Digits",
    "Equation",
    "FashionMNIST",
    "FromText",
    "GaussianMixture",
    "Poisson",
    "SequenceTask",
    "Task",
    "TeacherStudent",
    "check_images",
    "check_number",
    "get",
    "names",
    "parse",
]
