"""What a fit found, for readers: findings in plain words, figures, and one self-contained HTML file."""

from posthoc_inn.report.findings import findings
from posthoc_inn.report.findings.judging import Finding
from posthoc_inn.report.html import ReportContent, render, write_report

__all__ = ["Finding", "ReportContent", "findings", "render", "write_report"]
