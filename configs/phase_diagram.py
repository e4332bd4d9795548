"""How deep a plain network trains at which weight variance, beside the depth scales of mean-field theory.

From a checkout:

    python -m train run configs/phase_diagram.py
    python -m train run configs/phase_diagram.py --smoke
    python -m train run configs/phase_diagram.py --activations erf --sigma-w-squared 1 1.4 2 3 --seeds 0

Cost: 160 cells of up to 14 runs; 1,070 s of CPU time, so about 10 minutes on two idle cores, and 2.1 GB.
Expect: both activations train deepest near their critical point (sigma_w^2 = 1.76 and 1.17), to about 60 layers, where
width and budget end it. Away from it depth limits follow 6 xi_gradient in rank (0.99 over 20 columns, 95 % interval
0.96 to 1.00) and are 1.0 to 1.4 times as large; 6 xi_c ranks them worse (0.89, 0.67 to 0.97), for chaotic networks
stop at 0.5 to 0.7 of it.
"""

from jaxact import activations
from train.experiments.phase_diagram import PhaseDiagram


def get_config() -> PhaseDiagram:
    # Both saturate at 1 and have slope 1 at 0; hard_tanh's kinks move its critical point and set the scales of
    # correlations and gradients further apart in the chaotic phase, the one place where they can be told apart.
    return PhaseDiagram(activations=(activations.tanh, activations.hard_tanh))
