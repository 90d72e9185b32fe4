"""The UNet of Stable Diffusion 1.x, applied frame by frame, and a reference UNet whose features it can attend to.

The UNet is that of latent diffusion (Rombach et al. 2022, arXiv:2112.10752), appendix E, with the numerics of its
released weights. The reference network and the way its features are read follow spec xnemo.md, sections 1.1-1.4:

    banks = ReferenceUNet(**size).apply(reference, latent, context)  # {"down_0/attn_0": (b, l, c)}
    pairs = project_banks(net, params, banks)                        # once for all steps and frames
    eps = net.apply({"params": params}, x, time, context, banks=pairs)

A block attends only to its own tokens if its name is not in `banks`, and so does a sample for which `reads_b` is False.

In a fresh network, `proj_out` of every transformer and `conv_out` are zero, as when Stable Diffusion was first trained.
A fresh network therefore returns zero, and a fresh transformer changes nothing. All other parameters start with Flax's
defaults.

Shape suffixes: b batch, f frames, h height, w width, n = b f, l = h w tokens, s keys, c channels.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidmotion.models import forms
from vidmotion.models.attention import Attention, FeedForward, layer_norm
from vidmotion.models.blocks import SAME, Downsample, Dtype, ResBlock, Upsample, group_norm
from vidmotion.models.dit import sincos_2d

Banks = Mapping[str, jax.Array]
Pairs = Mapping[str, tuple[jax.Array, jax.Array]]
Make = Callable[..., nn.Module]

EPSILON = 1e-5  # for the norms in residual blocks and the last norm
TRANSFORMER_EPSILON = 1e-6  # for the group norm at a transformer's entrance
zeros = nn.initializers.zeros

# `UNet(**SIZES[name])`; parameters: sd15 859,520,964, tiny 3,250,340.
SIZES: dict[str, dict[str, Any]] = {
    "sd15": {
        "channels": (320, 640, 1280, 1280),
        "attention": (True, True, True, False),
        "layers_per_block": 2,
        "heads": 8,
        "context_width": 768,
        "norm_groups": 32,
    },
    "tiny": {
        "channels": (32, 64, 64, 64),
        "attention": (True, True, True, False),
        "layers_per_block": 2,
        "heads": 2,
        "context_width": 48,
        "norm_groups": 8,
    },
}


def time_code(time_b: jax.Array, width: int) -> jax.Array:
    """Encodes the time as cosines, then sines, at width / 2 rates from 1 down towards 1/10000; float32."""
    rate = np.float32(10000.0 ** (-2 * np.arange(width // 2) / width))
    angle = time_b.astype(jnp.float32)[:, None] * rate[None]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def embedded_time(time_b: jax.Array, width: int, dtype: Dtype) -> jax.Array:
    """Embeds the time for the residual blocks, (b, 4 width), with two layers that belong to the calling module."""
    dense = functools.partial(forms.Dense, 4 * width, dtype=dtype)
    time_bc = dense(name="time_0")(time_code(time_b, width))
    return dense(name="time_1")(nn.silu(time_bc))


class Transformer(nn.Module):
    """A transformer over the places of each frame: self-attention, cross-attention to a context, GEGLU.

    Attributes:
      heads: the number of heads of the attentions.
      groups: the number of groups of the group norm at the entrance.
      context: whether there is a cross-attention to a context (`norm2`, `cross`).
      within: makes a module that stands between the attentions and the feed-forward layer, or
        None. That module is called as ``(x_bfhwc, time_bc, condition)``, with the residual stream and the
        embedded time, and returns the new stream.
      dtype: the dtype of the computation.
    """

    heads: int
    groups: int
    context: bool = True
    within: Make | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_bfhwc: jax.Array,
        time_bc: jax.Array,
        context_bsc: jax.Array | None = None,
        bank: tuple[jax.Array, jax.Array] | None = None,
        reads_b: jax.Array | None = None,
        condition: Any = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the new stream, and the output of the first norm, (b f, l, c), which is the bank of this block."""
        b, f, h, w, c = x_bfhwc.shape
        dense = functools.partial(forms.Dense, c, dtype=self.dtype)
        y = x_bfhwc.reshape(b * f, h, w, c)
        y = group_norm(self.groups, TRANSFORMER_EPSILON, self.dtype, "norm")(y)
        y = dense(name="proj_in")(y.reshape(b * f, h * w, c))
        seen = layer_norm(self.dtype, "norm1")(y)
        y = y + Attention(self.heads, self.dtype, name="self")(seen, None, bank, reads_b)
        if self.context:
            context = jnp.repeat(context_bsc.astype(self.dtype), f, axis=0)
            q = layer_norm(self.dtype, "norm2")(y)
            y = y + Attention(self.heads, self.dtype, name="cross")(q, context)
        if self.within is not None:
            y = self.within(name="within")(y.reshape(b, f, h, w, c), time_bc, condition)
            y = y.reshape(b * f, h * w, c)
        y = y + FeedForward(self.dtype, name="ff")(layer_norm(self.dtype, "norm3")(y))
        y = dense(kernel_init=zeros, name="proj_out")(y)
        return x_bfhwc + y.reshape(x_bfhwc.shape), seen


class Given(NamedTuple):
    """The inputs that every layer of a UNet gets besides the features; see `UNet.__call__`."""

    time_bc: jax.Array
    context_bsc: jax.Array | None
    banks: Pairs
    reads_b: jax.Array | None
    condition: Any
    skip: tuple[str, ...]


class Stage(nn.Module):
    """The base class of a UNet's stages.

    A layer of a stage is a residual block, a transformer if `attention`, and the modules of `after`.

    Attributes:
      channels: the output channels.
      layers: the number of layers.
      resample: makes the `Downsample` or `Upsample`; None where the resolution stays.
      attention: whether the layers have transformers.
      heads, groups, context, dtype: fields of the transformers.
      within: maps the name of a transformer to its `Transformer.within`, if it has one.
      after: maps a name to what makes a module that follows each layer; the module is called as
        ``(x_bfhwc, condition)``.
      remat: whether to recompute residual blocks and transformers in the backward pass.
    """

    channels: int
    layers: int
    resample: Make | None
    attention: bool
    heads: int
    groups: int
    context: bool
    within: Mapping[str, Make]
    after: Mapping[str, Make]
    remat: bool = False
    dtype: Dtype = jnp.float32

    def res(self, j: int, x: jax.Array, given: Given) -> jax.Array:
        """Runs residual block number j on each frame by itself."""
        b, f = x.shape[:2]
        block = nn.remat(ResBlock) if self.remat else ResBlock
        block = block(self.channels, self.groups, EPSILON, self.dtype, name=f"res_{j}")
        y = block(x.reshape(b * f, *x.shape[2:]), jnp.repeat(given.time_bc, f, axis=0))
        return y.reshape(b, f, *y.shape[1:])

    def layer(self, j: int, x: jax.Array, given: Given, seen: dict[str, jax.Array]) -> jax.Array:
        """Runs layer number j; adds the transformer's bank to `seen`."""
        x = self.res(j, x, given)
        if self.attention:
            block = f"{self.name}/attn_{j}"
            make = nn.remat(Transformer) if self.remat else Transformer
            size = self.heads, self.groups, self.context, self.within.get(block), self.dtype
            x, seen[block] = make(*size, name=f"attn_{j}")(
                x,
                given.time_bc,
                given.context_bsc,
                given.banks.get(block),
                given.reads_b,
                given.condition,
            )
        for name, make in self.after.items():
            if name not in given.skip or self.is_initializing():
                x = make(name=f"{name}_{j}")(x, given.condition)
        return x

    def resampled(self, x: jax.Array) -> jax.Array:
        """Changes the features to the resolution of the next stage, each frame by itself."""
        b, f = x.shape[:2]
        y = self.resample()(x.reshape(b * f, *x.shape[2:]))
        return y.reshape(b, f, *y.shape[1:])


class Down(Stage):
    """A stage on the way down: layers, whose outputs are all kept for the way up, then the lower resolution."""

    @nn.compact
    def __call__(self, x, given, kept, seen):
        """(b, f, h, w, c) -> (b, f, h/2, w/2, channels); appends to `kept`, adds to `seen`."""
        for j in range(self.layers):
            x = self.layer(j, x, given, seen)
            kept.append(x)
        if self.resample:
            x = self.resampled(x)
            kept.append(x)
        return x


class Middle(Stage):
    """The middle stage: one layer and a residual block at the lowest resolution."""

    @nn.compact
    def __call__(self, x, given, seen):
        """(b, f, h, w, c) -> (b, f, h, w, c); adds to `seen`."""
        return self.res(1, self.layer(0, x, given, seen), given)


class Up(Stage):
    """A stage on the way up: layers that also get the features kept on the way down, then the higher resolution."""

    @nn.compact
    def __call__(self, x, given, kept, seen):
        """(b, f, h, w, c) -> (b, f, 2h, 2w, channels); takes from `kept`, adds to `seen`."""
        for j in range(self.layers):
            x = self.layer(j, jnp.concatenate([x, kept.pop()], axis=-1), given, seen)
        return self.resampled(x) if self.resample else x


class UpAlone(Stage):
    """A stage like `Up` that gets no features from the way down; the output of each layer is kept."""

    @nn.compact
    def __call__(self, x, given, made, seen):
        """(b, f, h, w, c) -> (b, f, 2h, 2w, channels); appends to `made`, adds to `seen`."""
        for j in range(self.layers):
            x = self.layer(j, x, given, seen)
            made.append(x)
        return self.resampled(x) if self.resample else x


class UNet(nn.Module):
    """Predicts the noise in latents; frames exchange information only in modules that a subclass adds.

    A subclass adds its modules by overriding `within`, `after` and `added`.

    Attributes:
      channels: the channels at each resolution, highest first.
      attention: whether each resolution has transformers, highest first. The middle always has one.
      layers_per_block: the number of layers per resolution on the way down; the way up has one more.
      heads: the number of heads of every attention; divides the channels.
      context_width: the width of the cross-attention's context; 0 leaves the cross-attentions out.
      norm_groups: the number of groups of the group norms.
      latent_channels: the number of channels of the latents, both in the input and in the output.
      up: whether there is a way up; without it there is no head either.
      head: whether there is an output layer.
      places: whether to add a fixed code of row and column to every place of the latents. Stable Diffusion has none: it
        has learnt positions from the padding at the borders, which a small network cannot do in a short training.
      remat: whether to recompute residual blocks and transformers in the backward pass.
      dtype: the dtype of the computation; parameters stay float32.
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention: tuple[bool, ...] = (True, True, True, False)
    layers_per_block: int = 2
    heads: int = 8
    context_width: int = 768
    norm_groups: int = 32
    latent_channels: int = 4
    up: bool = True
    head: bool = True
    places: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    def within(self, block: str) -> Make | None:
        """Returns what makes the module inside the transformer named `block`, for example "mid/attn_0", or None; see
        `Transformer.within`."""
        return None

    def after(self) -> dict[str, Make]:
        """Returns a dictionary, in order, from the name of each module that follows every layer to what makes it; see
        `Stage.after`."""
        return {}

    def added(self, time_b: jax.Array, given: Given) -> tuple[list[jax.Array], jax.Array] | None:
        """Returns the arrays to add to the features kept on the way down, in their order, and the array to add to the
        middle's features; None adds nothing."""
        return None

    def optional(self) -> tuple[str, ...]:
        """Returns the names that `skip` may contain."""
        return tuple(self.after())

    def __call__(
        self,
        x_bfhwc: jax.Array,
        time_b: jax.Array,
        context_bsc: jax.Array | None = None,
        condition: Any = None,
        banks: Pairs | None = None,
        reads_b: jax.Array | None = None,
        skip: tuple[str, ...] = (),
    ) -> jax.Array:
        """Runs the network.

        Args:
          x_bfhwc: (b, f, h, w, latent_channels) noisy latents; h and w are multiples of
            2^(levels - 1), which is 8 for the released network.
          time_b: (b,) timestep of each sample, 0 to 999, the same for all its frames.
          context_bsc: (b, s, context_width) tokens of the cross-attention, the same for all frames.
          condition: the condition that the modules of `within`, `after` and `added` read.
          banks: maps the name of a block to keys and values of the reference, each (b or 1, l, heads, d), from
            `project_banks`; they serve all frames of a sample.
          reads_b: bool (b or 1,), False for samples that leave the banks out; None means that all read them.
          skip: the names of `optional` that are left out of this run.

        Returns:
          (b, f, h, w, latent_channels) float32; without the head, the features of the last stage.

        Raises:
          ValueError: if shapes do not fit, or blocks or names are unknown.
        """
        given = context_bsc, condition, banks or {}, reads_b, skip
        return self._run(x_bfhwc, time_b, *given)[0]

    @nn.compact
    def _run(self, x, time_b, context_bsc, condition, banks, reads_b, skip):
        self._check(x, context_bsc, banks, skip)
        conv = functools.partial(forms.Conv, kernel_size=(3, 3), padding=SAME, dtype=self.dtype)
        time_bc = embedded_time(time_b, self.channels[0], self.dtype)
        given = Given(time_bc, context_bsc, banks, reads_b, condition, skip)
        own = dict(
            heads=self.heads,
            groups=self.norm_groups,
            context=bool(self.context_width),
            within={name: make for name in block_names(self) if (make := self.within(name))},
            after=self.after(),
            remat=self.remat,
            dtype=self.dtype,
        )
        down = functools.partial(Downsample, dtype=self.dtype, name="downsample")
        up = functools.partial(Upsample, dtype=self.dtype, name="upsample")
        levels = list(enumerate(zip(self.channels, self.attention)))
        last = levels[-1][0]
        seen: dict[str, jax.Array] = {}
        b, f = x.shape[:2]
        x = conv(self.channels[0], name="conv_in")(x.reshape(b * f, *x.shape[2:]))
        if self.places:
            code = sincos_2d(x.shape[-1], *x.shape[1:3]).reshape(x.shape[1:])
            x = x + code.astype(x.dtype)[None]
        x = x.reshape(b, f, *x.shape[1:])
        kept = [x]
        for i, (c, attention) in levels:
            shape = c, self.layers_per_block, down if i < last else None, attention
            x = Down(*shape, **own, name=f"down_{i}")(x, given, kept, seen)
        x = Middle(self.channels[-1], 1, None, True, **own, name="mid")(x, given, seen)
        if added := self.added(time_b, given):
            kept = [here + more for here, more in zip(kept, added[0], strict=True)]
            x = x + added[1]
        if not self.up:
            return x, seen
        for i, (c, attention) in levels[::-1]:
            shape = c, self.layers_per_block + 1, up if i else None, attention
            x = Up(*shape, **own, name=f"up_{last - i}")(x, given, kept, seen)
        if not self.head:
            return x, seen
        x = x.reshape(b * f, *x.shape[2:])
        x = nn.silu(group_norm(self.norm_groups, EPSILON, self.dtype, "norm_out")(x))
        x = conv(self.latent_channels, kernel_init=zeros, name="conv_out")(x)
        return x.reshape(b, f, *x.shape[1:]).astype(jnp.float32), seen

    def _check(self, x, context_bsc, banks, skip) -> None:
        factor = 2 ** (len(self.channels) - 1)
        if x.ndim != 5 or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"expected latents (b, f, h, w, {self.latent_channels}) with h and w multiples of "
                f"{factor}, got {x.shape}"
            )
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention={self.attention} and channels={self.channels} differ in length"
            )
        if self.context_width and context_bsc is None:
            raise ValueError(f"this UNet needs a context (b, s, {self.context_width})")
        unknown = set(banks) - set(block_names(self))
        unknown |= set(skip) - set(self.optional())
        if unknown:
            raise ValueError(
                f"unknown names {sorted(unknown)}: banks are named {', '.join(block_names(self))}; skip may "
                f"name {', '.join(self.optional()) or 'nothing'}"
            )


class ReferenceUNet(UNet):
    """The network whose features another network reads: a UNet on clean latents at time 0.

    The layers after the first norm of the last transformer are never read, so their parameters, which match `UNREAD`,
    have no gradient. They exist because the released weights have them; a jitted call does not compute these layers.
    ``up=False`` makes the way down and the middle alone.
    """

    head: bool = False

    def __call__(
        self, z_bhwc: jax.Array, context_bsc: jax.Array | None = None, condition: Any = None
    ) -> dict[str, jax.Array]:
        """Computes the banks of clean latents.

        Args:
          z_bhwc: (b, h, w, latent_channels) scaled latents without noise.
          context_bsc: (b, s, context_width) tokens of the cross-attention.
          condition: the condition that the modules of a subclass read.

        Returns:
          A dictionary from the name of each block to its bank (b, l, c) of `dtype`, the normalised tokens before the
          self-attention, in the order of `block_names`.
        """
        time_b = jnp.zeros(len(z_bhwc))
        return self._run(z_bhwc[:, None], time_b, context_bsc, condition, {}, None, ())[1]


# The parameters of a four-level `ReferenceUNet` that have no gradient: 20 tensors (spec xnemo.md, 1.2).
UNREAD = r"up_3/attn_2/(self|norm2|cross|norm3|ff|proj_out)/.*"


def block_names(net: UNet) -> list[str]:
    """Returns the names of the transformers in the order in which they run; 16 in Stable Diffusion."""
    last = len(net.channels) - 1
    layers = range(net.layers_per_block)
    names = [f"down_{i}/attn_{j}" for i in range(last + 1) if net.attention[i] for j in layers]
    names.append("mid/attn_0")
    if net.up:
        layers = range(net.layers_per_block + 1)
        flags = net.attention[::-1]
        names += [f"up_{i}/attn_{j}" for i in range(last + 1) if flags[i] for j in layers]
    return names


def project_banks(net: UNet, params: Mapping[str, Any], banks: Banks) -> Pairs:
    """Projects reference features to keys and values with the reading network's own layers.

    These layers have no bias and do not see the time, so one projection serves all steps and frames. It is
    differentiable in both `params` and `banks`.

    Args:
      net: the reading network.
      params: the parameters of the reading network.
      banks: maps the name of a block to its bank (b, l, c); some of the blocks may be missing.

    Returns:
      A dictionary from the name of each block in `banks` to keys and values, (b, l, heads, d) of `net.dtype`.
    """

    def project(block: str, name: str) -> jax.Array:
        stage, attn = block.split("/")
        kernel_cc = params[stage][attn]["self"][name]["kernel"].astype(net.dtype)
        y_blc = banks[block].astype(net.dtype) @ kernel_cc
        return einops.rearrange(y_blc, "b l (h d) -> b l h d", h=net.heads)

    return {block: (project(block, "k"), project(block, "v")) for block in banks}


def random_banks(key: jax.Array, banks: Banks, ratio: float) -> Banks:
    """Drops a random share of the reference's tokens, drawn per sample and per block.

    This is X-NeMo's reference feature masking (spec xnemo.md, 1.3 and 2.4). Dropped tokens are neither projected nor
    attended to.

    Args:
      key: the random key of the draw.
      banks: maps the name of a block to its bank (b, l, c).
      ratio: the share of tokens that is dropped, 0 to 1; of l tokens, floor(l (1 - ratio)) stay.

    Returns:
      A dictionary from the name of each block to the tokens that stay, (b, floor(l (1 - ratio)), c). They are in random
      order, which makes no difference to an attention.
    """
    if not ratio:
        return banks
    kept = {}
    for i, (block, bank_blc) in enumerate(banks.items()):
        samples, tokens, _ = bank_blc.shape
        count = int(tokens * (1 - ratio))
        rank_bl = jax.random.uniform(jax.random.fold_in(key, i), (samples, tokens)).argsort()
        stay_bk = rank_bl[:, :count]
        kept[block] = jnp.take_along_axis(bank_blc, stay_bk[..., None], axis=1)
    return kept
