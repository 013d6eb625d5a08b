"""Reports for people and for other programs: data first, then Markdown and HTML made from it.

A report is one JSON-able value with ``"schema"`` and ``"report"`` (its kind). What the kinds share: `ceilings` (what a
GPU could do at best), `words` (numbers as text), `markdown`, `page` (a self-contained HTML page) and `svg` (plots).
``tuning*`` is the report of one tuning run.
"""
