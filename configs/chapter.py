"""Does a textbook chapter on activation functions hold? Every claim measured, beside what exact theory says.

    python -m train run configs/chapter.py
    python -m train run configs/chapter.py --claims relu_projection swish_fit
    python -m train run configs/chapter.py --full

Cost: about four minutes on two CPU cores beside other work, with most programs in the compilation cache; not yet timed
from an empty one.
Expect: most claims hold with a correction. Their formula is right, what is concluded from it is not.
The README has them.
"""

from train.experiments.chapter import Chapter


def get_config() -> Chapter:
    return Chapter()
