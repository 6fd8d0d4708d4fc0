"""One report that tells what changed, as HTML and as Markdown: `content.py` is the contract, the writers make files."""

from vlmft.report.content import (
    Bar,
    Curve,
    Grid,
    Report,
    ReportAnswer,
    ReportRow,
    Section,
    View,
    rows_to_picture,
)
from vlmft.report.markdown import write_markdown
from vlmft.report.page import write_report
from vlmft.report.stored import put_grading, read_report, write_report_files

__all__ = [
    "Bar",
    "Curve",
    "Grid",
    "Report",
    "ReportAnswer",
    "ReportRow",
    "Section",
    "View",
    "put_grading",
    "read_report",
    "rows_to_picture",
    "write_markdown",
    "write_report",
    "write_report_files",
]
