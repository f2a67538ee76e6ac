"""SFace (Zhong et al. 2021) in torch, out of the package's int8 .onnx file: what the VAE is to keep of a face, differentiable.

Needs the package onnx. A network must not judge what it trained: identity is then judged by another one (judges.py).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lida.photos.faces import TEMPLATE, network

SIDE = 112  # of the square that SFace reads
LEVELS = ("conv_2_relu", "conv_4_relu", "conv_6_relu")  # activations at 56, 28 and 14 pixels, for the feature loss


class SFace(nn.Module):
    """The chain of convolutions, batch norms and PReLUs; every weight is a buffer, so nothing in it trains."""

    def __init__(self, path=None):
        super().__init__()
        import onnx

        graph = onnx.load(str(path or network(None, "sface"))).graph
        values = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.initializer}
        self.steps = []
        for node in graph.node:
            options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "DequantizeLinear":
                quantized, scales, zeros = (values[name] for name in node.input)
                spread = [t.repeat_interleave(options["block_size"], options["axis"]) for t in (scales, zeros)]
                scale, zero = (t.narrow(options["axis"], 0, quantized.shape[options["axis"]]).float() for t in spread)
                values[node.output[0]] = (quantized.float() - zero) * scale
            elif node.op_type == "Reshape":
                values[node.output[0]] = values[node.input[0]].reshape(values[node.input[1]].tolist())
            elif node.op_type in ("Sub", "Mul", "Conv", "BatchNormalization", "PRelu", "Gemm", "Flatten"):
                names = [name.replace(".", "_") for name in node.input[1:]]
                for name, key in zip(names, node.input[1:]):
                    self.register_buffer(name, values[key], persistent=False)
                self.steps.append((node.op_type, names, options, node.output[0]))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the activations at LEVELS, and "identity" (B, 128) of length 1, of aligned faces (B, 3, 112, 112) in [-1, 1]."""
        x, found = (x + 1) * 127.5, {}
        for kind, names, options, output in self.steps:
            w = [getattr(self, name) for name in names]
            if kind == "Sub":
                x = x - w[0]
            elif kind == "Mul":
                x = x * w[0]
            elif kind == "Conv":
                bias = w[1] if len(w) > 1 else None
                x = F.conv2d(x, w[0], bias, options["strides"], options["pads"][:2], groups=options["group"])
            elif kind == "BatchNormalization":
                gamma, beta, mean, variance = w
                x = F.batch_norm(x, mean, variance, gamma, beta, eps=options["epsilon"])
            elif kind == "PRelu":
                x = F.prelu(x, w[0].flatten())
            elif kind == "Flatten":
                x = x.flatten(1)
            else:
                x = F.linear(x, w[0], w[1])
            if output in LEVELS:
                found[output] = x
        return found | {"identity": F.normalize(x, dim=-1)}


def aligned(x: Tensor, points: np.ndarray) -> Tensor:
    """Return squares (B, 3, S, S) aligned by their landmarks (B, 5, 2), in pixels, to SFace's template: (B, 3, 112, 112)."""
    half = (x.shape[-1] - 1) / 2
    rows = []
    for landmarks in points.astype(np.float64):
        # least squares of source = a [u, v] + [tx, ty] over template -> picture, a a similarity (Umeyama 1991)
        t, p = TEMPLATE - TEMPLATE.mean(0), landmarks - landmarks.mean(0)
        real = (t * p).sum() / (t**2).sum()
        imaginary = (t[:, 0] * p[:, 1] - t[:, 1] * p[:, 0]).sum() / (t**2).sum()
        matrix = np.array([[real, -imaginary], [imaginary, real]])
        offset = landmarks.mean(0) - matrix @ TEMPLATE.mean(0)
        middle = (SIDE - 1) / 2
        rows.append(np.column_stack([matrix * middle / half, (matrix @ [middle, middle] + offset - half) / half]))
    grid = F.affine_grid(torch.from_numpy(np.stack(rows)).to(x), [len(x), 3, SIDE, SIDE], align_corners=True)
    return F.grid_sample(x, grid, padding_mode="zeros", align_corners=True)
