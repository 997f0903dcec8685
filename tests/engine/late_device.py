"""A device without hardware, whose copies run as late as a real one's may.

Computing is PyTorch's on the CPU and runs at once: the main stream. Copies to the host stand in a queue, the side
stream, and run only when somebody waits for them, or on a whim drawn from the seed, which an error prints. What a
copy finds in the staging area when it runs is what it copies: an area that is filled anew too early shows. So does
host memory that is unmapped, or read, before its copy has run.
"""

import random

import torch


class LateMark:
    def __init__(self, device, number):
        self._device, self._number = device, number

    def reached(self):
        self._device.whim()
        return self._device.done >= self._number

    def wait(self):
        self._device.host_waits += self._device.done < self._number
        self._device.run_until(self._number)


class LateDevice:
    """See `tracereplay.device.Device`.

    Args:
        seed: of the whims.
        eagerness: how likely a copy is to run when somebody looks.
    """

    asynchronous = True

    def __init__(self, seed, eagerness=0.3):
        self.seed = seed
        self._random = random.Random(seed)
        self._eagerness = eagerness
        self._queue = []
        self.issued = self.done = 0
        self.locked = {}
        self.copies = self.bytes = self.uploads = self.host_waits = self.held = 0

    def whim(self):
        while self._queue and self._random.random() < self._eagerness:
            self._run_one()

    def run_until(self, number):
        while self.done < number:
            self._run_one()

    def _run_one(self):
        self._queue.pop(0)[1]()
        self.done += 1

    def area(self, size):
        return torch.full((size,), 0xAB, dtype=torch.uint8)

    def lock(self, address, size):
        assert address not in self.locked, f"memory at {address:#x} was locked twice (seed {self.seed})"
        self.locked[address] = size

    def unlock(self, address):
        end = address + self.locked.pop(address)
        busy = any(address <= at < end for at, _ in self._queue)
        assert not busy, f"memory was unlocked under a copy (seed {self.seed})"

    def copy_out(self, staged, host):
        host.fill_(0xCD)  # what is read too early is not what was there by luck
        self._queue.append((host.data_ptr(), lambda: host.copy_(staged)))
        self.issued += 1
        self.copies += 1
        self.bytes += staged.numel()
        return LateMark(self, self.issued)

    def hold(self, mark):
        if isinstance(mark, LateMark):
            self.held += mark._number > self.done
            self.run_until(mark._number)

    def upload(self, host):
        self.uploads += 1
        device = host.clone()
        host.view(torch.uint8).fill_(0xEE)  # whoever reads it again is shown
        return device

    def fill(self, area, host):
        area.copy_(host)
        host.view(torch.uint8).fill_(0xEE)  # whoever reads it again is shown

    def pinned(self, shape, dtype):
        return torch.empty(shape, dtype=dtype)
