"""Records PyTorch's local response normalisation and its gradient, the reference of test_lrn.py.

Run in an environment with torch:

    python tests/ops/record_torch_lrn.py

The file beside it, torch_lrn.npz, is by torch 2.13.0, in float64. `outputs[n - 1, c - 1, :, :c]` is the normalisation
of `x[:, :c]` with size n, and `gradients` the gradient of sum(output * weights[:, :c]) with respect to x, alike.
"""

import pathlib

import numpy as np

SIZES, CHANNELS, ROWS = 7, 12, 3
# Far from the paper's, so that every neighbour's share shows.
K, ALPHA, BETA = 1.5, 0.6, 0.75


def main() -> None:
    """Writes torch_lrn.npz."""
    import torch  # here: the tests' collection of docstring examples imports this file

    random = np.random.default_rng(0)
    x, weights = random.normal(size=(2, ROWS, CHANNELS))
    outputs, gradients = np.zeros((2, SIZES, CHANNELS, ROWS, CHANNELS))
    for size in range(1, SIZES + 1):
        for channels in range(1, CHANNELS + 1):
            maps = torch.tensor(x[:, :channels, None], requires_grad=True)
            y = torch.nn.functional.local_response_norm(maps, size, ALPHA, BETA, K)[..., 0]
            (y * torch.tensor(weights[:, :channels])).sum().backward()
            outputs[size - 1, channels - 1, :, :channels] = y.detach().numpy()
            gradients[size - 1, channels - 1, :, :channels] = maps.grad[..., 0].numpy()
    path = pathlib.Path(__file__).with_name("torch_lrn.npz")
    np.savez_compressed(path, x=x, weights=weights, outputs=outputs, gradients=gradients, k=K, alpha=ALPHA, beta=BETA)


if __name__ == "__main__":
    main()
