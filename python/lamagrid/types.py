"""Types of requests to the grid and of its answers.

The dictionaries come from the native module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

if TYPE_CHECKING:
    import enum

    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Scalar = bool | int | float | str | np.generic | enum.Enum | None

Durability = Literal["full", "process"]
OutputFormat = Literal["png", "jpeg", "webp", "bmp", "tiff"]
Options = TypeVar("Options", bound="_CommonOptions")


class Failure(TypedDict):
    """Why a task failed.

    Attributes:
        kind: As `lamagrid.errors` names it.
        message: For people.
    """

    kind: str
    message: str


class Counters(TypedDict):
    """How often a task was tried: attempts, those lost with their node, and those that reported a failure."""

    attempts: int
    crashes: int
    failures: int


class Stages(TypedDict):
    """Where the time of a task went, in milliseconds."""

    queue_ms: float
    transfer_ms: float
    decode_ms: float
    load_ms: float
    infer_ms: float
    pixels_ms: float
    encode_ms: float
    store_ms: float
    total_ms: float


class TaskInfo(TypedDict):
    """A task, as the scheduler knows it.

    Attributes:
        status: ``queued``, ``processing``, ``completed``, ``failed`` or ``cancelled``.
        position: Tasks before it in its queue, while it waits.
        wait_ms: How long it is expected to wait, if the scheduler can estimate it.
        node: Which node works on it, or did last.
        created_wall_ms: Milliseconds since the Unix epoch.
        finished_wall_ms: The same, of a task that has ended.
    """

    id: str
    model: str
    queue: str
    status: str
    failure: Failure | None
    position: int | None
    wait_ms: int | None
    node: str | None
    counters: Counters
    stages: Stages
    created_wall_ms: int
    finished_wall_ms: int | None


class ModelOffer(TypedDict):
    """A model that a node serves.

    Attributes:
        queue: The resource class of its tasks.
        routed: Whether the scheduler chooses the queue; ``queue`` is then the model's usual one.
        loaded: Whether it is in memory.
        present: Whether its files are on the host of the node.
        memory_bytes: Its memory on the device, by its files before it is loaded; 0 where it is unknown.
        pinned: Whether it stays in memory once it is loaded.
    """

    model: str
    queue: str
    routed: bool
    loaded: bool
    present: bool
    memory_bytes: int
    pinned: bool


class WithheldModel(TypedDict):
    """A configured model that a node does not offer, and why."""

    model: str
    reason: str


class NodeInfo(TypedDict):
    """The registration of a node.

    Attributes:
        kind: ``torch``, ``python`` or ``echo``.
        device: ``cpu``, ``cuda:0``, ...
        gpu: The name of the GPU.
        memory_bytes: Of the device, 0 where it is unknown.
        cores: Processor cores of the host.
        pid: On its host.
        withheld: Configured models that it does not offer.
        labels: Names that a queue may require.
        device_id: The unique id of the GPU.
        host_memory_bytes: Of the host, within the limits of the node's process; 0 where it is unknown.
        cpu_features: Instruction sets that speed models up.
    """

    name: str
    kind: str
    version: str
    device: str
    gpu: str | None
    memory_bytes: int
    cores: int
    models: list[ModelOffer]
    pid: int
    withheld: list[WithheldModel]
    labels: list[str]
    device_id: str | None
    host_memory_bytes: int
    cpu_features: list[str]


class LiveFigures(TypedDict):
    """The last measurements of a node; a figure that it cannot read is None.

    Attributes:
        free_memory_bytes: Of the device.
        model_memory_bytes: Of the models in memory.
        resident_bytes: Of the node's process.
        utilisation_percent: Of the device, 0 to 100.
        temperature_c: Of the device, in degrees Celsius.
        load_percent: The load average of the host's last minute per core, times 100.
    """

    free_memory_bytes: int | None
    model_memory_bytes: int
    resident_bytes: int
    utilisation_percent: int | None
    temperature_c: int | None
    load_percent: int


class _NodeStatus(TypedDict):
    info: NodeInfo
    state: str
    running: int
    slots: int
    queues: list[str]


class NodeStatus(_NodeStatus, total=False):
    """A node, as the scheduler knows it.

    Attributes:
        state: ``ready``, ``busy``, ``suspect``, ``draining``, ...
        running: Tasks that it works on.
        slots: How many it can work on at once.
        queues: The queues that it serves.
        figures: Its live figures; absent before the first.
    """

    figures: LiveFigures


class QueueStatus(TypedDict):
    """A queue: how many tasks wait and run, and how many may wait."""

    queue: str
    waiting: int
    running: int
    max_tasks: int
    paused: bool


class GridStatus(TypedDict):
    """The nodes and queues of the grid."""

    version: str
    nodes: list[NodeStatus]
    queues: list[QueueStatus]


@dataclass(frozen=True)
class _CommonOptions:
    example: Pixels | bytes | None = None
    durability: Durability = "full"
    deadline: float | None = None
    client: str | None = None
    task_id: str | None = None
    params: Mapping[str, Scalar] = field(default_factory=dict)

    @classmethod
    def names(cls) -> list[str]:
        """The options that may be given as keywords, besides ``params``."""
        return [each.name for each in fields(cls) if each.name != "params"]

    def with_keywords(self: Options, keywords: Mapping[str, Any]) -> Options:
        """The same options with other values; names that are no field go to ``params``."""
        known = {name: keywords[name] for name in self.names() if name in keywords}
        params = {name: value for name, value in keywords.items() if name not in known}
        return replace(self, **known, params={**self.params, **params})


@dataclass(frozen=True)
class PluginOptions(_CommonOptions):
    """How a plugin's task is run.

    Attributes:
        example: The bytes of the file that MakeGIF compares with.
        durability: See `TaskOptions`.
        deadline: See `TaskOptions`.
        client: See `TaskOptions`.
        task_id: See `TaskOptions`.
        params: The fields of upstream's form: ``upscale=2``, ``clicks="[[10, 20, 1, 0]]"``; how the plugin
            is built: ``realesrgan_model``, ``realesrgan_no_half``, ``interactive_seg_model``, ``background``;
            and ``quality`` and ``keep_orientation`` of the answer.
    """


@dataclass(frozen=True)
class TaskOptions(_CommonOptions):
    """How a task is run.

    Attributes:
        example: ``(h, w, 3)`` u8 RGB, or the bytes of a file, for paint by example.
        durability: ``full`` survives power loss, ``process`` the death of any process.
        deadline: Seconds after which the result is useless; the task fails then.
        client: On whose behalf, up to 128 letters, digits and ``-_.:@/%``: shares are fair and limits hold
            between clients. Without it, this program is one client.
        task_id: From :func:`lamagrid.new_task_id`. Submitting the same task under the same id again tells how
            the first one is doing; nothing runs twice.
        params: Fields of Lama Cleaner's ``Config`` by their names: ``hd_strategy="Crop"``, ...; and how its
            model is built: ``sd_controlnet``, ``no_half``, ... (`lamagrid.options` has all of them). With
            ``keep_orientation=True`` a file's EXIF is upstream's: its orientation stays as it was.
        model: As nodes offer it.
        queue: Where it waits; by default the scheduler chooses the cheapest one that can serve it.
        output: The format of the file that the result shall be, with alpha, EXIF and PNG ``parameters`` of an
            image that is a file; see :meth:`Task.wait_bytes`. Its orientation is 1: the pixels are upright.
            EXIF that cannot be read is left out. Without ``output`` the result is pixels.
        quality: Of that file, 1 to 100, where its format is lossy.
        priority: -128 to 127, higher goes first.
        wait_limit: Seconds that it may wait for a node. Can only shorten the scheduler's ``wait_limit_ms``.
        no_node_wait: Seconds that it may wait while no node can run it, instead of the scheduler's
            ``no_node_wait_ms``; batch work may wait for days.
        run_limit: Seconds that one attempt may take; then it is stopped and tried again. Can only shorten the
            scheduler's ``run_limit_ms``.
    """

    model: str = "lama"
    queue: str | None = None
    output: OutputFormat | None = None
    quality: int = 95
    priority: int = 0
    wait_limit: float | None = None
    no_node_wait: float | None = None
    run_limit: float | None = None
