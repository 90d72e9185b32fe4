"""GPT-2 over one stream of motion tokens: outpainting and generation by emotion (X-NeMo, appendix E).

Spec xnemo.md, 4.3 and 4.4. The trunk is `gpt2.GPT2`, drawing is `motion_gpt.draw`.

Shape suffixes: b batch, s tokens, d width, v what can follow: the codes and the end.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vidmotion.models.gpt2 import GPT2, Cache
from vidmotion.models.motion_gpt import draw, next_frame_loss

# "GPT2-small" of the paper. max_positions is not in it: 128 tokens after beginning and condition.
SIZES = {"xnemo": dict(entries=4096, width=768, layers=12, heads=12, max_positions=130)}


class TokenGPT(nn.Module):
    """Next-token prediction over [beginning, condition if there are any, token_1, token_2, ...].

    Ids: 0 to entries - 1 are codes, then `end`, `begin` and `pad`. Codes and end can follow, so the
    logits are about these entries + 1. Embeddings and output share their weights, as in GPT-2.

    Attributes:
      entries: codes.
      width, layers, heads, max_positions, mlp_dim, dropout, dtype: see `gpt2.GPT2`.
      conditions: how many conditions there are, for example pairs of emotion and level; 0 for a
        model without. The condition `conditions` means that none is given.
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
        """Id of the end of a sequence."""
        return self.entries

    @property
    def begin(self) -> int:
        """Id of what stands in front of every sequence."""
        return self.entries + 1

    @property
    def pad(self) -> int:
        """Id of what stands after the end."""
        return self.entries + 2

    @property
    def prefix(self) -> int:
        """Positions taken before the first token."""
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
        """Logits of every next token, given the true ones before it.

        Args:
          ids_bs: int, tokens 1 to S; to train on T tokens pass the first T - 1.
          condition_b: int, 0 to `conditions`; None without conditions.
          deterministic: switches dropout off.

        Returns:
          (b, S + 1, entries + 1) float32; position s is about token s + 1.

        Raises:
          ValueError: a condition is missing or not wanted, or the sequence exceeds max_positions.
        """
        h_bsd, _ = self.trunk(self._begun(ids_bs, condition_b), deterministic=deterministic)
        return self._logits(h_bsd[:, self.prefix - 1 :])

    def prefill(
        self, ids_bs: jax.Array, condition_b: jax.Array | None, more: int
    ) -> tuple[jax.Array, Cache]:
        """Starts decoding after given tokens; S may be 0.

        `more` is the number of tokens the cache has room for beside them. Returns logits of the next
        token (b, 1, entries + 1) and the cache; raises as `__call__`.
        """
        x_bsd = self._begun(ids_bs, condition_b)
        cache = self.trunk.init_cache(len(ids_bs), x_bsd.shape[1] + more)
        h_bsd, cache = self.trunk(x_bsd, cache)
        return self._logits(h_bsd[:, -1:]), cache

    def decode(self, ids_bs: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Continues with tokens (b, S): logits of each one's successor, and the longer cache."""
        h_bsd, cache = self.trunk(jnp.take(self.table, ids_bs, axis=0), cache)
        return self._logits(h_bsd), cache

    def _begun(self, ids_bs: jax.Array, condition_b: jax.Array | None) -> jax.Array:
        if (condition_b is None) != (self.conditions == 0):
            raise ValueError(
                f"TokenGPT: {self.conditions} conditions, so condition_b must "
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
    """Cross-entropy of the tokens in nats, a mean over those that are not `pad`.

    Args:
      logits_bsv: what `TokenGPT` returns, (b, S, entries + 1).
      ids_bs: what came, int (b, S): codes, perhaps the end, and `pad` after it.
      pad: `TokenGPT.pad`.

    Returns:
      float32 scalar; 0 if all is padding.
    """
    mask_bs = ids_bs != pad
    ids_bs1 = jnp.where(mask_bs, ids_bs, 0)[..., None]
    return next_frame_loss(logits_bsv[:, :, None], ids_bs1, mask_bs)


def corrupt(key: jax.Array, ids_bs: jax.Array, entries: int, keep: jax.Array | float) -> jax.Array:
    """Input tokens of which each code is kept with probability `keep`, else a random one (T2M-GPT).

    End and padding stay. It lets the model learn to go on after mistakes of its own.
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
    """Tokens that continue given ones (outpainting), or begin from nothing (S = 0); pure.

    What does not fit into max_positions is generated in windows, each continuing the last tokens of
    what there is as if they were a beginning.

    Args:
      model, variables: the generator and its variables.
      start_bs: int (b, S) codes, for example of the driving video.
      count: how many to make.
      key, temperature, top_k, top_p: see `motion_gpt.draw`.
      condition_b: see `TokenGPT`.
      guidance: scale of the condition's effect on the logits (classifier-free); 1 for none of it.
      may_end: allow the end, after which padding follows; else there are `count` codes.
      context: tokens kept at the start of a further window; None takes half of max_positions.

    Returns:
      The new tokens, int32 (b, count).

    Raises:
      ValueError: count < 1, context leaves no room, guidance without a condition, or as `draw`.
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
        # The last token made is not read again.
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
    """`count` tokens after `seen_bs`, all of which fit into max_positions."""
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
