"""Looking at a plan or a file: tables, charts, one HTML page, and the accounting of every byte.

Other folders use `accounting`, `figures`, `inspection`, `page`, `plots`, `table`; users `examine`, `plot`, `save_page`.
"""

from __future__ import annotations

from opq.report.inspection import examine
from opq.report.page import save_page
from opq.report.plots import plot

__all__ = ["accounting", "examine", "figures", "inspection", "page", "plot", "plots", "save_page", "table"]
