"""Looking at a plan or a file: tables, charts, one HTML page, and the accounting of every byte.

Other folders use `accounting`, `figures`, `inspection`, `page`, `plots`, `table`; users `examine`, `plot`, `save_page`,
and what they and a result give back: `Inspection`, `Nominal`, `Report`, `TensorFigures`.
"""

from __future__ import annotations

from opq.report.accounting import Nominal
from opq.report.inspection import Inspection, TensorFigures, examine
from opq.report.page import save_page
from opq.report.plots import plot
from opq.report.table import Report

__all__ = [
    "Inspection",
    "Nominal",
    "Report",
    "TensorFigures",
    "accounting",
    "examine",
    "figures",
    "inspection",
    "page",
    "plot",
    "plots",
    "save_page",
    "table",
]
