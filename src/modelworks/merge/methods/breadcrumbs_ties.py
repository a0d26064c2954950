"""Breadcrumbs-TIES: drop each model's smallest changes and its very largest, and add up those of the elected sign.

Breadcrumbs (arXiv:2312.06795), but of each element only what has the sign of sum(w_i kept_i) (arXiv:2306.01708).
"""

from __future__ import annotations

from modelworks.merge.consensus import OutlierParams, all_but_outliers, thinning

BREADCRUMBS_TIES = thinning(
    "breadcrumbs_ties", OutlierParams, all_but_outliers, elects=True, reads=3, paper="arXiv:2312.06795"
)
