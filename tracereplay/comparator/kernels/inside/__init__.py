"""From the operator to the kernel: what ran inside one call on each side, aligned and compared.

a place ──look.look_inside──▶ computing kernels ──sequence.align──▶ rows ──values.compare──▶ `inside.Inside`
"""

from tracereplay.comparator.kernels.inside.look import Place, look_inside

__all__ = ["Place", "look_inside"]
