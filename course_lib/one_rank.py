"""One rank of many, alone in its process: what it would hold, without the others.

PyTorch's own ``fake`` process group answers for the other ranks. FSDP2, DTensor, tensor and
sequence parallelism then run as on a cluster, on this machine's CPU, with real or with simulated
tensors.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch.utils._python_dispatch import _disable_current_modes

from .language import text

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@contextlib.contextmanager
def one_rank_of(
    world: int | Sequence[int], rank: int = 0, names: Sequence[str] | None = None
) -> Iterator[DeviceMesh]:
    """Be rank ``rank`` of ``world`` while the body runs; the value is the mesh of all ranks.

    ``world``: how many ranks there are, or, for a mesh of several axes, the length of each:
    ``(8, 4)``. ``names``: what the axes are called, as in ``init_device_mesh``.

    Collectives return at once and move nothing. So shapes, bytes and operations are those of a
    rank among others, and *values are not*: what should have been received is whatever lay in the
    memory, or this rank's own. Afterwards nothing is left: no process group, no mesh in a cache of
    DTensor's, also when the body raises.

    Raises ``ValueError`` for a world or a rank that cannot be, ``RuntimeError`` if this process is
    a rank already, if torch was built without ``torch.distributed``, and for what neither a single
    rank nor simulated tensors can stand in for, with what would be right instead.
    """
    axes = _axes(world)
    size = math.prod(axes)
    if not isinstance(rank, int) or not 0 <= rank < size:
        raise ValueError(text(
            zh=f"rank 要在 0 到 {size - 1} 之间，现在是 {rank!r}：一共 {size} 个 rank。",
            en=f"rank must be from 0 to {size - 1}, not {rank!r}: there are {size} ranks.",
        ))  # fmt: skip
    if names is not None and len(names) != len(axes):
        raise ValueError(text(
            zh=f"names 要给每个轴一个名字：轴有 {len(axes)} 个，名字有 {len(names)} 个。",
            en=f"names must name every axis: there are {len(axes)} axes and {len(names)} names.",
        ))  # fmt: skip
    _check_alone()
    try:
        yield _mesh(axes, rank, names)
    except RuntimeError as error:
        if (said := _cannot_be(error)) is not None:
            raise RuntimeError(said) from error
        raise
    finally:
        _leave_nothing()


def _axes(world: int | Sequence[int]) -> tuple[int, ...]:
    axes: Any = (world,) if isinstance(world, int) else world
    whole = isinstance(axes, (tuple, list)) and all(type(length) is int for length in axes)
    if not whole or not axes or min(axes) < 1:
        raise ValueError(text(
            zh=f"world 要写 rank 的个数，或网格每个轴的长度，比如 8 或 (8, 4)，现在是 {world!r}。",
            en="world must be the number of ranks, or the length of each axis of a mesh, such as "
            f"8 or (8, 4), not {world!r}.",
        ))  # fmt: skip
    return tuple(axes)


def _check_alone() -> None:
    if not dist.is_available():
        raise RuntimeError(text(
            zh="这里的 torch 没有 torch.distributed，模仿不了多个 rank。",
            en="This torch was built without torch.distributed: there are no ranks to stand for.",
        ))  # fmt: skip
    if dist.is_initialized():
        raise RuntimeError(text(
            zh=f"这个进程已经在一个进程组里了（{dist.get_backend()}，{dist.get_world_size()} 个 "
            "rank），不能再充当另一组的一个 rank。先离开那一组：退出外面的 with one_rank_of，"
            "或者调用 torch.distributed.destroy_process_group()。",
            en=f"This process is in a process group already ({dist.get_backend()}, "
            f"{dist.get_world_size()} ranks) and cannot be a rank of another one. Leave that "
            "group first: end the `with one_rank_of` around this, or call "
            "torch.distributed.destroy_process_group().",
        ))  # fmt: skip


def _mesh(axes: tuple[int, ...], rank: int, names: Sequence[str] | None) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    with _disable_current_modes():  # the mesh itself is a real tensor, also inside simulated()
        dist.init_process_group("fake", rank=rank, world_size=math.prod(axes), store=FakeStore())
        named = None if names is None else tuple(names)
        return init_device_mesh("cpu", axes, mesh_dim_names=named)


def _leave_nothing() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
    if "torch.distributed.tensor" in sys.modules:
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor import _redistribute as plans
        from torch.distributed.tensor._collective_utils import MeshTopoInfo
        from torch.distributed.tensor.debug import _clear_sharding_prop_cache

        _clear_sharding_prop_cache()
        plans.clear_redistribute_planner_cache()
        plans._gen_transform_infos.cache_clear()
        propagator: Any = DTensor._op_dispatcher.sharding_propagator
        propagator._propagate_tensor_meta_cached.cache_clear()
        build: Any = MeshTopoInfo.build_from_mesh
        build.cache_clear()


def _cannot_be(error: RuntimeError) -> str | None:
    """What to say of an error that comes of there being one rank, or no values."""
    said = str(error)
    if "hook result" in said and "TensorList" in said:
        return text(
            zh="DistributedDataParallel 要等别的 rank 的梯度，这里没有别的 rank。给它注册 PyTorch "
            "自带的 noop_hook（model.register_comm_hook(None, noop_hook)，在 "
            "torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks 里），"
            "它就不等了，桶和梯度的字节不变。",
            en="DistributedDataParallel waits for the gradients of other ranks, and there are none "
            "here. Register PyTorch's noop_hook with it (model.register_comm_hook(None, noop_hook),"
            " from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks): then it does not "
            "wait, and buckets and gradients have the same bytes.",
        )
    if "data is not allocated yet" in said and _passed(error, "nn/parallel/distributed.py"):
        return text(
            zh="DistributedDataParallel 的桶是用 C++ 直接读写内存的，模拟张量没有内存，模拟不了。"
            "这一步用真实张量测，模型可以小一些；或者用 "
            "torch.distributed._composable.replicate_with_fsdp.replicate，它可以模拟。",
            en="DistributedDataParallel fills its buckets in C++, in memory that simulated tensors "
            "do not have. Measure this step with real tensors, of a smaller model perhaps, or use "
            "torch.distributed._composable.replicate_with_fsdp.replicate, which can be simulated.",
        )
    return None


def _passed(error: BaseException, file: str) -> bool:
    place = error.__traceback__
    while place is not None:
        if place.tb_frame.f_code.co_filename.replace("\\", "/").endswith(file):
            return True
        place = place.tb_next
    return error.__cause__ is not None and _passed(error.__cause__, file)
