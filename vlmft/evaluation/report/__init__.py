"""One HTML file that tells what changed: `content.py` is the contract, `write_report` makes the file."""

from vlmft.evaluation.report.content import Curve, Report, ReportAnswer, ReportRow, View, rows_to_picture
from vlmft.evaluation.report.page import write_report

__all__ = ["Curve", "Report", "ReportAnswer", "ReportRow", "View", "rows_to_picture", "write_report"]
