"""GPT-2 over one stream of motion tokens: outpainting and generation by emotion (X-NeMo, appendix E).

Spec xnemo.md, 4.3 and 4.4. The trunk is `gpt2.GPT2`, and `motion_gpt.draw` draws the tokens.

Shape suffixes: b batch, s tokens, d width, v the possible next tokens: the codes and the end.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vidmotion.models.gpt2 import GPT2, Cache
from vidmotion.models.motion_gpt import draw, next_frame_loss

# The paper's "GPT2-small". The paper does not give max_positions: 128 tokens after beginning and condition.
SIZES = {"xnemo": dict(entries=4096, width=768, layers=12, heads=12, max_positions=130)}


class TokenGPT(nn.Module):
    """Predicts the next token of the sequence [beginning, condition if there are any, token_1, token_2, ...].

    Ids 0 to entries - 1 are codes; then come `end`, `begin` and `pad`. Only codes and the end can come next, so there
    are entries + 1 logits. Embeddings and output share their weights, as in GPT-2.

    Attributes:
      entries: the number of codes.
      width, layers, heads, max_positions, mlp_dim, dropout, dtype: see `gpt2.GPT2`.
      conditions: the number of conditions, for example of pairs of emotion and level; 0 for a
        model without conditions. The id `conditions` means that no condition is given.
    """

    entries: int
    width: int
    layers: int
    heads: int
    max_positions: int
    conditions: int = 0
    mlp_dim: int | None = None
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32

    @property
    def end(self) -> int:
        """The id of the end of a sequence."""
        return self.entries

    @property
    def begin(self) -> int:
        """The id of the token at the beginning of every sequence."""
        return self.entries + 1

    @property
    def pad(self) -> int:
        """The id of the padding after the end."""
        return self.entries + 2

    @property
    def prefix(self) -> int:
        """The number of positions before the first token."""
        return 2 if self.conditions else 1

    def setup(self):
        rows = self.entries + 3 + (self.conditions + 1 if self.conditions else 0)
        init = nn.initializers.normal(0.02)
        self.table = self.param("table", init, (rows, self.width), jnp.float32)
        self.trunk = GPT2(
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            max_positions=self.max_positions,
            mlp_dim=self.mlp_dim,
            dropout=self.dropout,
            dtype=self.dtype,
        )

    def __call__(
        self, ids_bs: jax.Array, condition_b: jax.Array | None = None, deterministic: bool = True
    ) -> jax.Array:
        """Computes the logits of every next token, given the true tokens before it.

        Args:
          ids_bs: int, tokens 1 to S; to train on T tokens pass the first T - 1.
          condition_b: int, 0 to `conditions`; None for a model without conditions.
          deterministic: switches dropout off.

        Returns:
          (b, S + 1, entries + 1) float32; position s predicts token s + 1.

        Raises:
          ValueError: if a condition is missing or is given to a model without conditions, or the sequence exceeds
            max_positions.
        """
        h_bsd, _ = self.trunk(self._begun(ids_bs, condition_b), deterministic=deterministic)
        return self._logits(h_bsd[:, self.prefix - 1 :])

    def prefill(
        self, ids_bs: jax.Array, condition_b: jax.Array | None, more: int
    ) -> tuple[jax.Array, Cache]:
        """Starts decoding after given tokens.

        Args:
          ids_bs: int, the given tokens; S may be 0.
          condition_b: see `__call__`.
          more: the number of tokens that the cache has room for beyond the given ones.

        Returns:
          The logits of the next token, (b, 1, entries + 1), and the cache.

        Raises:
          ValueError: as `__call__` does.
        """
        x_bsd = self._begun(ids_bs, condition_b)
        cache = self.trunk.init_cache(len(ids_bs), x_bsd.shape[1] + more)
        h_bsd, cache = self.trunk(x_bsd, cache)
        return self._logits(h_bsd[:, -1:]), cache

    def decode(self, ids_bs: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Continues decoding with tokens (b, S).

        Returns the logits of the token after each of them, and the cache with them appended.
        """
        h_bsd, cache = self.trunk(jnp.take(self.table, ids_bs, axis=0), cache)
        return self._logits(h_bsd), cache

    def _begun(self, ids_bs: jax.Array, condition_b: jax.Array | None) -> jax.Array:
        if (condition_b is None) != (self.conditions == 0):
            raise ValueError(
                f"TokenGPT: the model has {self.conditions} conditions, so condition_b must "
                + ("be given" if self.conditions else "not be given")
            )
        front = [jnp.full((len(ids_bs), 1), self.begin)]
        if condition_b is not None:
            front.append(self.entries + 3 + condition_b[:, None])
        return jnp.take(self.table, jnp.concatenate([*front, ids_bs], axis=1), axis=0)

    def _logits(self, h_bsd: jax.Array) -> jax.Array:
        follow_vd = self.table[: self.entries + 1].astype(self.dtype)
        return jnp.einsum("bsd,vd->bsv", h_bsd, follow_vd).astype(jnp.float32)


def token_loss(logits_bsv: jax.Array, ids_bs: jax.Array, pad: int) -> jax.Array:
    """Computes the cross-entropy of the tokens in nats, averaged over all tokens except `pad`.

    Args:
      logits_bsv: the logits from `TokenGPT`, (b, S, entries + 1).
      ids_bs: the true tokens, int (b, S): codes, perhaps the end, and `pad` after it.
      pad: the id of the padding, `TokenGPT.pad`.

    Returns:
      float32 scalar; 0 if there is only padding.
    """
    mask_bs = ids_bs != pad
    ids_bs1 = jnp.where(mask_bs, ids_bs, 0)[..., None]
    return next_frame_loss(logits_bsv[:, :, None], ids_bs1, mask_bs)


def corrupt(key: jax.Array, ids_bs: jax.Array, entries: int, keep: jax.Array | float) -> jax.Array:
    """Keeps each code with probability `keep` and replaces the others by random codes (T2M-GPT).

    The end and padding are never replaced. Training on such input teaches the model to continue after its own mistakes.
    """
    where, what = jax.random.split(key)
    other_bs = jax.random.randint(what, ids_bs.shape, 0, entries, ids_bs.dtype)
    changed_bs = (jax.random.uniform(where, ids_bs.shape) >= keep) & (ids_bs < entries)
    return jnp.where(changed_bs, other_bs, ids_bs)


def generate(
    model: TokenGPT,
    variables: Mapping,
    start_bs: jax.Array,
    count: int,
    *,
    key: jax.Array | None = None,
    condition_b: jax.Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance: float = 1.0,
    may_end: bool = False,
    context: int | None = None,
) -> jax.Array:
    """Generates tokens that continue given tokens (outpainting), or start from nothing (S = 0); a pure function.

    Sequences longer than max_positions are generated in windows. Each further window continues the last tokens so far
    as if they were the beginning of a sequence.

    Args:
      model, variables: the generator and its variables.
      start_bs: the given codes, int (b, S), for example of the driving video.
      count: the number of tokens to generate.
      key, temperature, top_k, top_p: see `motion_gpt.draw`.
      condition_b: see `TokenGPT`.
      guidance: the scale of the condition's effect on the logits (classifier-free guidance); 1 means no guidance.
      may_end: whether the end may be drawn, after which padding follows; if not, all `count` tokens are codes.
      context: the number of last tokens with which a further window starts; None takes half of the positions for
        tokens.

    Returns:
      The new tokens, int32 (b, count).

    Raises:
      ValueError: if count < 1, context does not fit into a window, there is guidance without a condition, or `draw`
        raises it.
    """
    room = model.max_positions - model.prefix
    context = room // 2 if context is None else context
    if count < 1 or not 0 <= context <= room:
        raise ValueError(
            f"generate: count must be at least 1 and context in [0, {room}], got {count} and {context}"
        )
    if guidance != 1.0 and condition_b is None:
        raise ValueError("generate: guidance needs a condition")
    draws = dict(temperature=temperature, top_k=top_k, top_p=top_p)
    given = start_bs.shape[1]
    all_bs = start_bs.astype(jnp.int32)
    while (missing := given + count - all_bs.shape[1]) > 0:
        first = all_bs.shape[1] == given
        seen_bs = all_bs if first and given <= room else all_bs[:, all_bs.shape[1] - context :]
        # The last token of a window is never fed back, so it needs no position.
        size = min(missing, room - seen_bs.shape[1] + 1)
        step_key = None if key is None else jax.random.fold_in(key, all_bs.shape[1])
        done_b = jnp.any(all_bs[:, given:] >= model.end, axis=1)
        made_bs = _window(
            model, variables, seen_bs, size, step_key, condition_b, guidance, may_end, done_b, draws
        )
        all_bs = jnp.concatenate([all_bs, made_bs], axis=1)
    return all_bs[:, given:]


def _window(
    model: TokenGPT,
    variables: Mapping,
    seen_bs: jax.Array,
    count: int,
    key: jax.Array | None,
    condition_b: jax.Array | None,
    guidance: float,
    may_end: bool,
    done_b: jax.Array,
    draws: Mapping,
) -> jax.Array:
    """Generates `count` tokens after `seen_bs`; all of them together must fit into one window."""
    both = guidance != 1.0

    def doubled(ids_bs: jax.Array) -> jax.Array:
        return jnp.concatenate([ids_bs, ids_bs]) if both else ids_bs

    def pick(logits_b1v: jax.Array, done_b: jax.Array, s: jax.Array | int):
        logits_bv = logits_b1v[:, 0]
        if both:
            with_bv, without_bv = jnp.split(logits_bv, 2)
            logits_bv = without_bv + guidance * (with_bv - without_bv)
        if not may_end:
            logits_bv = logits_bv.at[:, model.end].set(-jnp.inf)
        ids_b = draw(None if key is None else jax.random.fold_in(key, s), logits_bv, **draws)
        ids_b = jnp.where(done_b, model.pad, ids_b)
        return ids_b, done_b | (ids_b == model.end)

    def step(carry, s):
        ids_b, done_b, cache = carry
        logits, cache = model.apply(variables, doubled(ids_b[:, None]), cache, method="decode")
        ids_b, done_b = pick(logits, done_b, s)
        return (ids_b, done_b, cache), ids_b

    if both:
        condition_b = jnp.concatenate([condition_b, jnp.full_like(condition_b, model.conditions)])
    logits, cache = model.apply(
        variables, doubled(seen_bs), condition_b, count - 1, method="prefill"
    )
    first_b, done_b = pick(logits, done_b, 0)
    _, rest_sb = jax.lax.scan(step, (first_b, done_b, cache), jnp.arange(1, count))
    return jnp.concatenate([first_b[:, None], rest_sb.T], axis=1)
