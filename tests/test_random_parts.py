"""Parts of a site and scenarios in any combination; ``python -m tests.random_parts`` plays more of them."""

from __future__ import annotations

from typing import Any

import pytest

from ai_factory_gym import AIFactoryEnv
from ai_factory_gym.sites import load_site
from tests import random_parts


@pytest.mark.filterwarnings("ignore:.*has no effect")
def test_drawn_combinations_balance() -> None:
    ran = [parts for reason, parts, _ in map(random_parts.run, range(24)) if not reason]
    assert len(ran) >= 12
    # All parts are among them.
    assert set().union(*ran) == set(random_parts.PARTS)


@pytest.mark.filterwarnings("ignore:.*has no effect")
def test_a_batch_that_has_just_shrunk_draws_no_more_than_the_brake_takes_it_to() -> None:
    # Under the brake racks go to sleep, and requests are routed to another pool: the batch of one is gone within seconds. The site drew a
    # tenth above its cap for five seconds when the bound of the draw did not know that the pace of decode follows the batch with a lag.
    site = load_site(
        {
            "name": "Drawn",
            "cap_w": 610954.8604630033,
            "model": "llama-3.1-405b",
            "demand_rps": 39.97763595316974,
            "mix": {"customer_service": 1.0},
            "group_edges": [65536.0],
            "clock_min": 0.7238578663443591,
            "drain_s": 0.0,
            "dwell_s": 60.0,
            "switch_s": 60.0,
            "reliability": {
                "gpu_faults_per_hour": 2.3595249073623943e-05,
                "hardware_share": 0.46946308447242713,
                "repair_s": 6046.443500696641,
            },
            "pools": [
                _pool("b200_sxm8", "prefill", 2, 12195.140373812686, precision="fp8", tp=8, min_active=0),
                _pool("b300_sxm8", "decode", 5, 12792.105287216104, tp=8, min_active=1, mtp=True, max_batch=512),
                _pool("gb300_nvl72", "decode", 7, 117687.36864238816, dp=8, min_active=1, mtp=True, max_batch=64),
            ],
            "series": {},
        }
    )
    env = AIFactoryEnv(
        site=site,
        scenario="mix_shift+curtailment+steady+model_mix_shift",
        levers=("batch_ceiling", "active_racks", "route_prefill", "route_decode", "power_limit"),
        reward="carbon",
        control_interval_s=20.0,
        horizon_s=800.0,
        warmup_s=180.0,
        start_time_s=4800.0,
        demand_scale=0.7831156418215532,
        lambda_tokens_per_joule="estimate",
    )
    random_parts.play(env, 113)


def _pool(rack: str, phase: str, racks: int, limit_w: float, **layout: Any) -> dict[str, Any]:
    """Return a pool's table; precision fp4 and one GPU a replica unless said otherwise."""
    table = {
        "rack": rack,
        "phase": phase,
        "racks": racks,
        "rack_limit_w": limit_w,
        "precision": "fp4",
        "tp": 1,
        "dp": 1,
    }
    return table | layout
