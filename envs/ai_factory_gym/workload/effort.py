"""What an answer is worth that was given with a smaller reasoning budget.

An operator may ask a reasoning model to think less: the answer gets shorter, and a little less often right. Published: 67 % fewer output
tokens at a slight loss of accuracy (Han et al., "Token-Budget-Aware LLM Reasoning", arXiv 2412.18547, ACL 2025 Findings). The form
between full effort, where nothing is lost, and the least a class allows is assumed: quadratic, because the first thoughts that are
left out are the least useful ones.
"""

from __future__ import annotations


def answer_value(effort: float, least_share: float, value_loss: float) -> float:
    """Return the value of an answer over that of the answer at full effort.

    Args:
        effort: Output tokens over those at full effort, in [least_share, 1].
        least_share: Smallest effort of the class, below 1.
        value_loss: Share of the value lost there.
    """
    missing = (1.0 - effort) / (1.0 - least_share)
    return 1.0 - value_loss * missing * missing
