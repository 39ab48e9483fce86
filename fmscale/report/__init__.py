"""Reports as pages of HTML, made of plain values.

`charts.py` line charts, heat maps, bars and dots as inline SVG
`page.py`   parts of a page (sections, tiles, claims, figures, tables) and the document around them
`style.css` colours, type and widths
`runs.py`   the page of runs, from their accounts
`png.py`    charts as PNG files
"""
