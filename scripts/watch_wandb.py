"""Watch every product of a network as it trains on digits, in Weights & Biases.

WANDB_MODE=offline python scripts/watch_wandb.py [PROJECT] needs no account: `wandb sync` sends the run later; some
seconds on one core. Needs pip install "jaxact[study,wandb]".
"""

import sys

from watch_tensorboard import train


def main(project: str = "watched", **options: int) -> None:
    """Train, and log the numbers of every step as a row."""
    import wandb

    with wandb.init(project=project) as run:
        for step, numbers in train(**options):
            run.log(numbers, step=step)


if __name__ == "__main__":
    main(*sys.argv[1:])
