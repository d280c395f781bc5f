"""Looking for leaks and shortcuts in tables and bags before anything is trained."""

from mil.audit.findings import Finding, Severity
from mil.audit.run import AuditReport, audit
from mil.audit.shortcuts import ShortcutScore

__all__ = ["AuditReport", "Finding", "Severity", "ShortcutScore", "audit"]
