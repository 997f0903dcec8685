"""A verdict as one HTML file that needs nothing else: no network, no second file.

page       the file: what stands where, and the policy that forbids the network
heat       the map of errors, packed for the script that draws it
plots      what SVG draws: lines and bars, as coordinates
series     what is plotted of a verdict
texts      both sides' tokens, side by side
facts      words and numbers of findings
page.j2 parts.j2 style.css page.js     what the file is made of
"""

from tracereplay.report.html.page import MARK, render

__all__ = ["MARK", "render"]
