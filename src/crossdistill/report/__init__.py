"""One self-contained HTML page that shows whether distillation helped, and its figures.

Everything is drawn from the files of one run folder, without a network, a clock or a random number of its own: the
same folder gives the same page.
"""

from crossdistill.report.figures import league_chart_svg
from crossdistill.report.page import write_report

__all__ = ["league_chart_svg", "write_report"]
