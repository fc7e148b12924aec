"""Files of named arrays: Keras' HDF5, safetensors and, where torch is installed, PyTorch's pickles."""

import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from alexnet_resnet.errors import UserError

HDF5 = (".h5", ".hdf5")
SAFETENSORS = (".safetensors",)
TORCH = (".pth", ".pt", ".bin")


def check_suffix(path: pathlib.Path, expected: tuple[str, ...]) -> None:
    """Raises UserError unless the file's name ends as one of `expected`."""
    if path.suffix not in expected:
        raise UserError(f"weights={str(path)!r}: expected a file named {', '.join('*' + s for s in expected)}.")


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a file by name; 16-bit floats come as they are.

    An HDF5 file's names are 'layer/weight', such as 'conv1_conv/kernel', whatever the version of Keras made of them.

    Raises:
      UserError: no such file, not a file of the kind its name says, or torch is needed and not installed.
    """
    check_suffix(path, HDF5 + SAFETENSORS + TORCH)
    if not path.is_file():
        raise UserError(f"weights={str(path)!r}: expected a file, found none.")
    reader = _read_hdf5 if path.suffix in HDF5 else _read_safetensors if path.suffix in SAFETENSORS else _read_torch
    try:
        return reader(path)
    except UserError:
        raise
    except Exception as error:  # Three libraries with exceptions of their own for a damaged file.
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        raise UserError(f"weights={str(path)!r}: expected a readable {path.suffix} file, got: {reason}") from error


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays to a file of the kind its name says.

    Raises:
      UserError: a name of no known kind, or torch is needed and not installed.
    """
    check_suffix(path, HDF5 + SAFETENSORS + TORCH)
    if path.suffix in HDF5:
        _write_hdf5(path, tensors)
    elif path.suffix in SAFETENSORS:
        from safetensors.numpy import save_file

        # Not ascontiguousarray, which gives the counters an axis. Hugging Face's loader asks for the mark.
        save_file({name: np.asarray(a, order="C") for name, a in tensors.items()}, path, metadata={"format": "pt"})
    else:
        torch = _torch(path)
        torch.save({name: torch.from_numpy(np.array(a)) for name, a in tensors.items()}, path)


def _read_hdf5(path: pathlib.Path) -> dict[str, np.ndarray]:
    import h5py

    with h5py.File(path) as file:
        root = file.get("model_weights", file)
        if "layer_names" not in root.attrs:
            raise UserError(
                f"weights={str(path)!r}: expected Keras' named layers; its .weights.h5 form drops the names: "
                "save the model as .h5."
            )
        tensors = {}
        for layer in map(_text, root.attrs["layer_names"]):
            for weight in map(_text, root[layer].attrs["weight_names"]):
                name = weight.rsplit("/", 1)[-1].removesuffix(":0")
                tensors[f"{layer}/{name}"] = np.asarray(root[layer][weight])
        return tensors


def _write_hdf5(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    import h5py

    layers: dict[str, list[str]] = {}
    for name in tensors:
        layers.setdefault(name.rsplit("/", 1)[0], []).append(name)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.2.4"
        for layer, names in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{name}:0".encode() for name in names]
            for name in names:
                group.create_dataset(f"{name}:0", data=tensors[name])


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def _torch(path: pathlib.Path):
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"weights={str(path)!r}: {path.suffix} files need torch, which is not installed; "
            "expected torch or a .safetensors file."
        ) from error
    return torch


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    torch = _torch(path)
    # weights_only refuses pickles that would run code.
    state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"weights={str(path)!r}: expected a dictionary of tensors (a state dict).")
    return {
        name: tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        if tensor.dtype == torch.bfloat16
        else tensor.numpy()
        for name, tensor in state.items()
    }
