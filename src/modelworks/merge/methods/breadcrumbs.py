"""Breadcrumbs: drop each model's smallest changes and its very largest, and add up the rest.

lambda * sum(w_i kept_i) (Davari and Belilovsky 2023, arXiv:2312.06795).
"""

from __future__ import annotations

from modelworks.merge.consensus import OutlierParams, all_but_outliers, thinning

BREADCRUMBS = thinning("breadcrumbs", OutlierParams, all_but_outliers, elects=False, reads=3, paper="arXiv:2312.06795")
