"""What a report shows of two traces beyond their verdict, collected while they are compared.

scale     which column of a map a row is
errors    the map: the error of each operator at each row, one byte a cell
values    values of single calls: digests, histograms
collect   `Details`: all of that
"""

from tracereplay.comparator.details.collect import Details, Generated
from tracereplay.comparator.details.errors import BEYOND, INFINITE, SAME, UNSEEN, WITHIN, ErrorMap
from tracereplay.comparator.details.scale import Run, Scale
from tracereplay.comparator.details.values import Digests, Histogram, Histograms

__all__ = [
    "BEYOND", "INFINITE", "SAME", "UNSEEN", "WITHIN", "Details", "Digests", "ErrorMap", "Generated", "Histogram",
    "Histograms", "Run", "Scale",
]  # fmt: skip
