"""One self-contained HTML page that shows whether distillation helped or will, and its figures.

Of a run, of a suite, or of a diagnosis before any training. Everything is drawn from the files of one folder, without a
network, a clock or a random number of its own: the same folder gives the same page.
"""

from crossdistill.report.diagnosis import write_diagnosis
from crossdistill.report.figures import league_chart_svg
from crossdistill.report.league import is_bench, league_markdown, write_league
from crossdistill.report.page import write_report

__all__ = ["is_bench", "league_chart_svg", "league_markdown", "write_diagnosis", "write_league", "write_report"]
