"""Train an agent and compare it with every rule on held-out seeds.

    python train.py                                     PPO on ai_factory/Edge-v0
    python train.py --algo sac --seed 1
    python train.py --resume runs/Edge-v0-ppo-s0 --total-steps 600000

``python train.py --help`` lists every option. The work is done by `ai_factory_agents.training`.
"""

from __future__ import annotations

import sys

from ai_factory_agents.training import main

if __name__ == "__main__":
    sys.exit(main())
