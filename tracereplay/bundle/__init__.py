"""Bundles: what a stranger needs of two traces to see what they show, in one ZIP file that names nobody.

allowed      what may be told: the lists, and marks for the rest
cleaned      a trace anew, with nothing else in it
redaction    what is kept out on request: texts, tokens, values
statistics   what stands for values
reproducer   the first call that differs, as a script
weights      a small model as data
readme       README.md, and the engines' listings
manifest     sizes, digests, what was left out
make         all of it, written as one file
check        whether a file is such a bundle
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracereplay.bundle.check import Bundle, check_bundle, refuse_mode, used_model
    from tracereplay.bundle.make import Made, make_bundle
    from tracereplay.bundle.redaction import Redaction
else:
    from tracereplay.lazily import imported_on_use

    __getattr__ = imported_on_use(
        __name__,
        {
            "tracereplay.bundle.check": ("Bundle", "check_bundle", "refuse_mode", "used_model"),
            "tracereplay.bundle.make": ("Made", "make_bundle"),
            "tracereplay.bundle.redaction": ("Redaction",),
        },
    )

__all__ = ["Bundle", "Made", "Redaction", "check_bundle", "make_bundle", "refuse_mode", "used_model"]
