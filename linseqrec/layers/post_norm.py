"""The post-norm block of models that were released with one."""

from typing import Any

from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.layers.block import Block
from linseqrec.layers.standard import dropout, split_key


class PostNormBlock(Block):
    """Two residual halves, each normed after: a mixer over time, then a feed-forward half.

        H = N(H + Drop(Mixer(H)))
        H = N(H + Drop(FeedForward(H)))

    The parts are made and named as those of `Block`.
    """

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        told: tuple[Any, ...],
        state: Any,
        *,
        dropout_key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Takes a row's events through the block; see `Block`."""
        mixer_key, *feed_keys = split_key(dropout_key, 3)
        mixer, norm = getattr(self, self.name), getattr(self, f"{self.name}_norm")
        mixed, state = mixer(x, *told, state)
        x = norm(x + self.mixer_drop(mixed, self.mixer_rate, segment_ids, mixer_key))
        return self.feed(x, *feed_keys), state

    def feed(
        self,
        x: Float[Array, "B T D"],
        hidden_key: PRNGKeyArray | None,
        output_key: PRNGKeyArray | None,
    ) -> Float[Array, "B T D"]:
        """The feed-forward half, with the keys of its dropouts."""
        fed = self.feed_forward(x, dropout_key=hidden_key)
        return self.feed_forward_norm(x + dropout(fed, self.rate, output_key))
