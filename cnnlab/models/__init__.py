"""Flax linen modules: uint8 images, normalised to float[B, H, W, C], become logits float32[B, K].

A model is `(num_classes, **hyperparameters) -> nn.Module`, whose `__call__(images, *, train)` gives
logits float32[B, K]. It may ask for what the run supplies, by the name of a field: `dtype`, the
type of the computation (None: that of inputs and parameters; parameters and logits stay float32);
`head`, linear or cosine, as the loss wants it; `conv`, for `nn.Conv(conv_general_dilated=...)`,
which is quick on the devices at hand; `axis_name`, the mesh axis that shares the batch in training,
for batch norm and dropout. Two attributes of its class say more: `init_images`, how many training
images `init` sees (else one of zeros), and `cpu_images`, the fewest images that are worth a CPU
device.
"""

from cnnlab.models.airnet import AirNet, first_filters_pass_on, small_head, whitening
from cnnlab.models.catalogue import MODELS, count_parameters, model_dtype
from cnnlab.models.cnn import CNN, CPU_IMAGES
from cnnlab.models.cnn8 import CNN8
from cnnlab.models.convolution import Convolution, conv_output_size
from cnnlab.models.dense import MLP, SoftmaxRegression
from cnnlab.models.heads import HEADS, CosineHead
from cnnlab.models.layers import ACTIVATIONS, INCREASING
from cnnlab.models.resnet import ResNet, WideResNet

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "CNN8",
    "CPU_IMAGES",
    "HEADS",
    "INCREASING",
    "MLP",
    "MODELS",
    "AirNet",
    "Convolution",
    "CosineHead",
    "ResNet",
    "SoftmaxRegression",
    "WideResNet",
    "conv_output_size",
    "count_parameters",
    "first_filters_pass_on",
    "model_dtype",
    "small_head",
    "whitening",
]
