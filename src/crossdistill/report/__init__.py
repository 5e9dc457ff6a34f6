"""One self-contained HTML page that shows whether distillation helped, of a run or of a suite, and its figures.

Everything is drawn from the files of one folder, without a network, a clock or a random number of its own: the
same folder gives the same page.
"""

from crossdistill.report.figures import league_chart_svg
from crossdistill.report.league import is_bench, league_markdown, write_league
from crossdistill.report.page import write_report

__all__ = ["is_bench", "league_chart_svg", "league_markdown", "write_league", "write_report"]
