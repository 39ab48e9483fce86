"""Reports as pages of HTML, made of plain values.

`charts.py` line charts and dots as inline SVG
`page.py`   parts of a page (sections, tiles, claims, figures, facts) and the document around them
`style.py`  colours, type and widths
"""
