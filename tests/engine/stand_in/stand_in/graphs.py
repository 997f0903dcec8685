"""CUDA graphs without a GPU: what PyTorch dispatches in a capture is kept, and done again without its Python.

At least as strict as the real ones:

- A capture computes nothing. What it wrote to memory from outside is taken back when it ends, and what it
  allocated holds NaN.
- Memory that the captured program lets go is overwritten with NaN at that point of every replay, as a pool would
  give it away. The program lets go when its last tensor in that memory dies, not when the last operator has read
  it; what dies as a capture ends is the next one's.
- A value that reaches the host in a capture (`.item()`, a shape that depends on values) is an error.
- A replay runs no Python of the captured program: operators in PYTHON are captured as what they dispatch.
"""

import ctypes
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

PYTHON = {}  # operators whose kernels are Python, by name, and their kernels
NAN = 0xFF  # every float dtype reads it as NaN, integers as -1
SYNCHRONOUS = ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "is_nonzero")

done = Counter()  # what happened in this process: captures, replays, calls, poisoned


class GraphError(RuntimeError):
    """What CUDA would refuse."""


def _asking():
    """How many references PyTorch counts beyond the tensors that have a storage."""
    tensor = torch.zeros(1)
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) - 1


ASKING = _asking()


def poison(memory):
    memory.fill_(NAN)
    done["poisoned"] += 1


def weak(tensor):
    """A tensor in the same memory that does not keep it."""
    if not isinstance(tensor, torch.Tensor) or not tensor.numel():
        return tensor
    whole = tensor.untyped_storage()
    place = (ctypes.c_char * whole.nbytes()).from_address(whole.data_ptr())
    flat = torch.frombuffer(place, dtype=torch.uint8).view(tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


class Pool:
    """Memory that captures allocated: whole blocks, by their storage, and how often the graphs refer to each."""

    def __init__(self):
        self.blocks = {}
        self.references = Counter()
        self.held = set()  # those that the program has not let go

    def owns(self, tensor):
        return tensor.untyped_storage()._cdata in self.blocks

    def take_in(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self.blocks and storage.nbytes():
            self.blocks[storage._cdata] = torch.empty(0, dtype=torch.uint8).set_(storage)
            self.references[storage._cdata] += 1
            self.held.add(storage._cdata)

    def alias(self, tensor):
        """The same memory, by a tensor of the pool's own."""
        if self.owns(tensor):
            self.references[tensor.untyped_storage()._cdata] += 1
        return torch.empty(0, dtype=tensor.dtype).set_(
            tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
        )

    def dead(self):
        """Blocks that the program has let go since it was asked last."""
        found = {key for key in self.held if torch._C._storage_Use_Count(key) - ASKING <= self.references[key]}
        self.held -= found
        return [self.blocks[key] for key in found]


POOL = Pool()


class Graph:
    """The surface of `torch.cuda.CUDAGraph` that engines use."""

    def __init__(self, keep_graph=False):
        self.calls = []  # (function, arguments, results), or (None, block, None): the block is let go
        self._saved = {}
        self._allocated = []

    def capture_begin(self, pool=None, capture_error_mode="global"):
        done["captures"] += 1
        CAPTURE.begin(self)

    def capture_end(self):
        CAPTURE.end(self)
        for memory, before in self._saved.values():
            memory.copy_(before)
        for block in self._allocated:
            poison(block)
        self._saved.clear()

    def replay(self):
        if CAPTURE.graph is not None:
            raise GraphError("A graph was replayed while another one is captured.")
        done["replays"] += 1
        done["calls"] += len(self.calls)
        for function, arguments, results in self.calls:
            if function is None:
                poison(arguments)
                continue
            args, kwargs = arguments
            for new, old in zip(tensors(function(*args, **kwargs)), results, strict=True):
                if new.data_ptr() != old.data_ptr():
                    old.copy_(new)

    def reset(self):
        self.calls.clear()

    def pool(self):
        return POOL

    def keep(self, function, args, kwargs, result):
        given = tensors((args, kwargs))
        before = {x.untyped_storage()._cdata for x in given}
        for x in tensors(result):
            if x.untyped_storage()._cdata not in before and not POOL.owns(x):
                POOL.take_in(x)
                if POOL.owns(x):
                    self._allocated.append(POOL.blocks[x.untyped_storage()._cdata])
        mine = tree_map_only(torch.Tensor, POOL.alias, (args, kwargs))
        self.calls.append((function, mine, [POOL.alias(x) for x in tensors(result)]))

    def save_written(self, function, args, kwargs):
        """Keeps what the call is about to write over, where that is not the pool's."""
        for place, argument in enumerate(function._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            for x in tensors(value):
                key = x.untyped_storage()._cdata
                if key not in self._saved and not POOL.owns(x):
                    whole = torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage())
                    self._saved[key] = whole, whole.clone()

    def note_deaths(self):
        self.calls.extend((None, block, None) for block in POOL.dead())


def tensors(tree):
    return [x for x in tree_flatten(tree)[0] if isinstance(x, torch.Tensor)]


class Capture(TorchDispatchMode):
    """On the stack of modes while anything is captured; a break within a call leaves it there."""

    def __init__(self):
        super().__init__()
        self.graph = None
        self._on = False
        self._within = 0

    def begin(self, graph):
        if self.graph is not None:
            raise GraphError("A capture began within another one.")
        self.graph = graph
        if not self._on:
            self.__enter__()
            self._on = True

    def end(self, graph):
        if self.graph is not graph:
            raise GraphError("A capture ended that had not begun.")
        self.graph = None  # what dies now is given away when the next capture allocates
        if not self._within:
            self.__exit__(None, None, None)
            self._on = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        graph = self.graph
        if graph is None:
            return function(*args, **kwargs)
        if function._schema.name.split("::")[1] in SYNCHRONOUS:
            raise GraphError(f"{function} makes the host wait for a value, which no capture allows.")
        python = PYTHON.get(function._schema.name)
        if python is not None:
            with self:
                return python(*args, **kwargs)
        graph.note_deaths()
        graph.save_written(function, args, kwargs)
        self._within += 1
        try:
            result = function(*args, **kwargs)
        finally:
            self._within -= 1
        if self.graph is graph:  # else the call broke the capture, and its caller keeps what is to be called again
            graph.keep(function, args, kwargs, result)
        return result


CAPTURE = Capture()


class capture:  # noqa: N801 - stands for torch.cuda.graph
    """`torch.cuda.graph`."""

    def __init__(self, cuda_graph, pool=None, stream=None, capture_error_mode="global"):
        self._graph = cuda_graph

    def __enter__(self):
        self._graph.capture_begin()

    def __exit__(self, *error):
        self._graph.capture_end()
        return False
