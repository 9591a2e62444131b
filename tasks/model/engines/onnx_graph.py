"""The graph of an exported model, opened so that the head is computed where it is asked for."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

KEPT = "tunetrail_kept"
"""The input that is added: for each row the position whose logits are wanted."""

_KNOWN = {"input_ids", "attention_mask", "position_ids"}
_HEADS = ("MatMul", "MatMulNBits", "Gemm")
_BEHIND_HEAD = ("Div", "Tanh", "Mul", "Cast", "Add")
"""What may stand between head and logits: a soft cap, a change of type, a bias."""


class Unsupported(Exception):
    """A graph of another form. The message says in what."""


class Graph:
    """A session over a decoder with grouped-query attention, and the names of its inputs."""

    def __init__(self, session: Any, names: list[tuple[str, str]], head_size: int) -> None:
        import numpy

        self._session = session
        self._names = names
        self._takes_positions = "position_ids" in {each.name for each in session.get_inputs()}
        shapes = {each.name: each for each in session.get_inputs()}
        self._type: Any = {"tensor(float)": numpy.float32, "tensor(float16)": numpy.float16}[
            shapes[names[0][0]].type
        ]
        self._shapes = [(shapes[past].shape[1], head_size) for past, _ in names]

    @property
    def bytes_a_token(self) -> int:
        """What one token's keys and values take in all layers."""
        import numpy

        return sum(int(heads * width) for heads, width in self._shapes) * int(
            numpy.dtype(self._type).itemsize
        )

    def buffers(self, rows: int, columns: int) -> list[Any]:
        """Room for keys and values, of shape (rows, heads, columns, width) each."""
        import numpy

        return [
            numpy.zeros((rows, heads, columns, width), self._type) for heads, width in self._shapes
        ]

    def step(self, ids: Any, filled: Any, start: Any, kept: Any, cache: list[Any]) -> Any:
        """Read tokens, write their keys and values into `cache`, and say what comes next.

        Args:
            ids: of shape (rows, tokens).
            filled: of shape (rows, columns), true where a row's cache holds a token, these included.
            start: position of each row's first token.
            kept: number of the token in `ids` behind which the next one is wanted.
            cache: contiguous arrays, of which the beginning of each row is filled.

        Returns:
            the likeliest token of each row.
        """
        import numpy
        import onnxruntime

        binding = self._session.io_binding()
        given = {"input_ids": ids, "attention_mask": filled, KEPT: kept.reshape(-1, 1, 1)}
        if self._takes_positions:
            given["position_ids"] = start[:, None] + numpy.arange(ids.shape[1])
        given = {name: numpy.ascontiguousarray(each, numpy.int64) for name, each in given.items()}
        for name, each in given.items():
            binding.bind_cpu_input(name, each)
        for (past, present), buffer in zip(self._names, cache, strict=True):
            value = onnxruntime.OrtValue.ortvalue_from_numpy(buffer)  # shares its memory
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        binding.bind_output("logits")
        self._session.run_with_iobinding(binding)
        logits = binding.get_outputs()[-1].numpy()
        return logits[:, 0].argmax(-1)


def load(folder: Path, decoder: dict[str, Any], threads: int) -> Graph:
    """Open the graph of a folder that `export_onnx` wrote.

    Args:
        decoder: the section of that name of its genai_config.json.

    Raises:
        Unsupported: when its attention or its inputs are of another kind.
    """
    import onnx
    import onnxruntime

    model = onnx.load(folder / decoder["filename"], load_external_data=False)
    inputs, layers = decoder["inputs"], range(decoder["num_hidden_layers"])
    outputs = decoder["outputs"]
    pairs = (("past_key_names", "present_key_names"), ("past_value_names", "present_value_names"))
    names = [
        (inputs[past] % layer, outputs[present] % layer)
        for layer, (past, present) in itertools.product(layers, pairs)
    ]
    known = _KNOWN | {past for past, _ in names}
    if strange := sorted({each.name for each in model.graph.input} ^ known - {"position_ids"}):
        raise Unsupported(f"its inputs are others ({', '.join(strange[:3])})")
    kinds = {node.op_type for node in model.graph.node if "Attention" in node.op_type}
    if kinds != {"GroupQueryAttention"}:
        raise Unsupported(f"its attention is {', '.join(sorted(kinds)) or 'not a single operator'}")
    _narrow_head(model.graph)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # threads that spin while they wait halve the speed when another process wants a core
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder.resolve())
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return Graph(session, names, decoder["head_size"])


def _narrow_head(graph: Any) -> None:
    """Put a choice of one position a row before the head."""
    from onnx import TensorProto, helper

    made_by = {name: node for node in graph.node for name in node.output}
    node = made_by.get("logits")
    while node is not None and node.op_type in _BEHIND_HEAD:
        node = next((made_by[name] for name in node.input if name in made_by), None)
    if node is None or node.op_type not in _HEADS:
        raise Unsupported("its head cannot be found")
    hidden = node.input[0]
    chosen = f"{hidden}/kept"
    choice = helper.make_node("GatherND", [hidden, KEPT], [chosen], name=chosen, batch_dims=1)
    graph.input.append(helper.make_tensor_value_info(KEPT, TensorProto.INT64, ["batch_size", 1, 1]))
    graph.node.insert(list(graph.node).index(node), choice)
    node.input[0] = chosen
    for output in graph.output:
        if output.name == "logits":
            output.type.tensor_type.shape.dim[1].ClearField("dim_param")
            output.type.tensor_type.shape.dim[1].dim_value = 1
