"""Does a textbook chapter on activation functions hold? Every claim measured, beside what exact theory says.

    python -m train run configs/chapter.py
    python -m train run configs/chapter.py --claims relu_projection swish_fit
    python -m train run configs/chapter.py --full

Cost: 153 s on two CPU cores (237 on slower ones) with an empty compilation cache, 2.5 GiB of memory; a report of
1.2 MB. With --smoke a minute. With --full not timed.
Expect: most claims hold with a correction: their formula is right, what is concluded from it is not. The README has the
verdicts of seeds 3000 to 3007, on which no setting or tolerance was chosen.
"""

from train.experiments.chapter import Chapter


def get_config() -> Chapter:
    return Chapter()
