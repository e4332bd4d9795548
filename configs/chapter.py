"""Does a textbook chapter on activation functions hold? Every claim measured, beside what exact theory says.

    python -m train run configs/chapter.py
    python -m train run configs/chapter.py --claims relu_projection swish_fit
    python -m train run configs/chapter.py --full

Cost: to be measured.
Expect: to be measured.
"""

from train.experiments.chapter import Chapter


def get_config() -> Chapter:
    return Chapter()
